//! One Kubernetes node: a namespace in the middle, pods around it as a CNI would wire them, and the outside world.

use super::LinkSocket;
use super::{Netns, Rtnl, sysctl};
use crate::pkt::{Frame, Ip};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// How pods hang on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Every pod has a link of its own and a host route, as the ptp plugin makes them.
    Ptp,
    /// Pods are ports of one bridge that holds the gateway address, as the bridge plugin makes them.
    Bridge,
}

/// Where a host is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// A pod of this node, in a namespace of its own.
    Pod,
    /// Behind the node's uplink: the Internet, another node or a pod there. All of them share one namespace.
    Outside,
}

/// Something with addresses that can send and receive.
#[derive(Debug)]
pub struct Host {
    /// Its name in the test.
    pub name: String,
    /// Where it is attached.
    pub attach: Attach,
    /// The namespace its sockets belong to.
    pub ns: Arc<Netns>,
    /// Its addresses, one or both families.
    pub ips: Vec<IpAddr>,
    /// Name of the node's end of its link; the uplink for hosts outside.
    pub host_link: String,
    /// Its own link-layer address.
    pub mac: [u8; 6],
    /// Link-layer address of its next hop.
    pub gateway_mac: [u8; 6],
    host_index: u32,
}

impl Host {
    /// Its address of the family, if it has one.
    pub fn ip(&self, family: crate::net::Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| crate::net::Family::of(*ip) == family)
    }
}

/// The node and everything attached to it; all of it goes on drop.
#[derive(Debug)]
pub struct Node {
    topology: Topology,
    ns: Arc<Netns>,
    rtnl: Rtnl,
    world: Arc<Netns>,
    world_rtnl: Rtnl,
    uplink: u32,
    world_link: u32,
    bridge: u32,
    hosts: BTreeMap<String, Arc<Host>>,
    next_link: u32,
}

impl Node {
    /// Name of a pod's own end of its link.
    pub const POD_LINK: &str = "eth0";
    /// The gateway address that pods use.
    pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
    /// The gateway address that pods use.
    pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
    /// The node's own address, as its Node object gives it.
    pub const ADDRESS4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    /// The node's own address, as its Node object gives it.
    pub const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 0, 1);
    const UPLINK: &str = "uplink0";
    const BRIDGE: &str = "cni0";
    const BRIDGE_MAC: [u8; 6] = [0x0a, 0x58, 10, 244, 0, 1];

    /// A node without pods, forwarding, with its uplink to an outside that has no hosts yet.
    pub fn new(topology: Topology) -> Result<Self> {
        let (ns, world) = (Arc::new(Netns::new()?), Arc::new(Netns::new()?));
        let rtnl = ns.run(|| {
            quiet_stack()?;
            sysctl("ipv4/ip_forward", "1")?;
            sysctl("ipv6/conf/all/forwarding", "1")?;
            Rtnl::open()
        })?;
        let world_rtnl = world.run(|| quiet_stack().and_then(|()| Rtnl::open()))?;
        rtnl.add_veth(Self::UPLINK, Self::POD_LINK, &world)?;
        let uplink = rtnl.link(Self::UPLINK)?.index;
        let world_link = world_rtnl.link(Self::POD_LINK)?.index;
        rtnl.set_up(uplink)?;
        world_rtnl.set_up(world_link)?;
        rtnl.wait_operational(Self::UPLINK)?;
        for ip in [IpAddr::V4(Self::ADDRESS4), IpAddr::V6(Self::ADDRESS6)] {
            rtnl.add_address(uplink, ip.into())?;
            world_rtnl.add_route(ip.into(), world_link, None)?;
        }
        let mut node = Self {
            topology,
            ns,
            rtnl,
            world,
            world_rtnl,
            uplink,
            world_link,
            bridge: 0,
            hosts: BTreeMap::new(),
            next_link: 0,
        };
        if topology == Topology::Bridge {
            node.make_bridge()?;
        }
        Ok(node)
    }

    /// The namespace to which the node's uplink leads, under the name [`Node::POD_LINK`].
    pub fn outside(&self) -> &Arc<Netns> {
        &self.world
    }

    /// The node's own namespace, where the agent runs.
    pub fn ns(&self) -> &Arc<Netns> {
        &self.ns
    }

    /// Netlink in the node's namespace.
    pub fn rtnl(&self) -> &Rtnl {
        &self.rtnl
    }

    /// How its pods are attached.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&Arc<Host>> {
        self.hosts.get(name)
    }

    /// All hosts in the order of their names.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.hosts.values()
    }

    /// The node itself as a host: its processes send from here.
    pub fn as_host(&self) -> Host {
        Host {
            name: "node".to_owned(),
            attach: Attach::Outside,
            ns: self.ns.clone(),
            ips: vec![Self::ADDRESS4.into(), Self::ADDRESS6.into()],
            host_link: Self::UPLINK.to_owned(),
            mac: [0; 6],
            gateway_mac: [0; 6],
            host_index: 0,
        }
    }

    /// Attaches a host with these addresses; a name is used once at a time.
    pub fn add(&mut self, name: &str, attach: Attach, ips: &[IpAddr]) -> Result<Arc<Host>> {
        if self.hosts.contains_key(name) {
            bail!("the node has a host {name} already");
        }
        let host = match attach {
            Attach::Pod => self.add_pod(name, ips),
            Attach::Outside => self.add_outside(name, ips),
        };
        let host = Arc::new(host.with_context(|| format!("attach {name}"))?);
        self.hosts.insert(name.to_owned(), host.clone());
        Ok(host)
    }

    /// Takes the host away: a pod's link and namespace go, an outside host's addresses go.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let host = self.hosts.remove(name).with_context(|| format!("no host {name}"))?;
        if host.attach == Attach::Pod {
            let routed =
                |ip: &&IpAddr| self.topology == Topology::Bridge && !bridge_subnet(**ip).contains(*ip);
            for ip in host.ips.iter().filter(routed) {
                self.rtnl.delete_route((*ip).into(), self.bridge)?;
            }
            return self.rtnl.delete_link(host.host_index);
        }
        for ip in &host.ips {
            self.rtnl.delete_route((*ip).into(), self.uplink)?;
            self.world_rtnl.delete_address(self.world_link, (*ip).into())?;
        }
        Ok(())
    }

    /// Gives the node's own namespace one more address. Hosts outside reach it by their route to everything.
    pub fn add_own(&self, ip: IpAddr) -> Result<()> {
        self.rtnl.add_address(self.uplink, ip.into())
    }

    /// Takes it away.
    pub fn remove_own(&self, ip: IpAddr) -> Result<()> {
        self.rtnl.delete_address(self.uplink, ip.into())
    }

    fn make_bridge(&mut self) -> Result<()> {
        self.rtnl.add_bridge(Self::BRIDGE, Self::BRIDGE_MAC)?;
        self.bridge = self.rtnl.link(Self::BRIDGE)?.index;
        self.rtnl.set_up(self.bridge)?;
        self.rtnl.add_address(self.bridge, IpNet::new(Self::GATEWAY4.into(), 24)?)?;
        self.rtnl.add_address(self.bridge, IpNet::new(Self::GATEWAY6.into(), 64)?)
    }

    fn add_pod(&mut self, name: &str, ips: &[IpAddr]) -> Result<Host> {
        let ns = Arc::new(Netns::new()?);
        let rtnl = ns.run(|| quiet_stack().and_then(|()| Rtnl::open()))?;
        self.next_link += 1;
        let host_link = format!("veth{:x}", self.next_link);
        self.rtnl.add_veth(&host_link, Self::POD_LINK, &ns)?;
        let outer = self.rtnl.link(&host_link)?;
        let inner = rtnl.link(Self::POD_LINK)?;
        if self.topology == Topology::Bridge {
            self.rtnl.set_controller(outer.index, self.bridge)?;
        }
        self.rtnl.set_up(outer.index)?;
        rtnl.set_up(inner.index)?;
        // The end that came up first is noted at once, and a bridge forwards to it only then. The other end carries
        // packets already, though the kernel may take a second to say so.
        self.rtnl.wait_operational(&host_link)?;
        for ip in ips {
            match self.topology {
                Topology::Ptp => self.wire_ptp(&rtnl, inner.index, outer.index, *ip)?,
                Topology::Bridge => self.wire_bridge(&rtnl, inner.index, *ip)?,
            }
        }
        if self.topology == Topology::Bridge {
            announce(&ns, inner.mac, ips)?;
        }
        let gateway_mac = match self.topology {
            Topology::Ptp => outer.mac,
            Topology::Bridge => Self::BRIDGE_MAC,
        };
        Ok(Host {
            name: name.to_owned(),
            attach: Attach::Pod,
            ns,
            ips: ips.to_vec(),
            host_link,
            mac: inner.mac,
            gateway_mac,
            host_index: outer.index,
        })
    }

    fn wire_ptp(&self, pod: &Rtnl, inner: u32, outer: u32, ip: IpAddr) -> Result<()> {
        let gateway = gateway(ip);
        self.rtnl.add_address(outer, gateway.into())?;
        self.rtnl.add_route(ip.into(), outer, None)?;
        pod.add_address(inner, ip.into())?;
        pod.add_route(gateway.into(), inner, None)?;
        pod.add_route(everything(ip), inner, Some(gateway))
    }

    /// An address outside the bridge's subnet becomes a single routed one, so that tests may choose any address.
    fn wire_bridge(&self, pod: &Rtnl, inner: u32, ip: IpAddr) -> Result<()> {
        let gateway = gateway(ip);
        let subnet = bridge_subnet(ip);
        if subnet.contains(&ip) {
            pod.add_address(inner, IpNet::new(ip, subnet.prefix_len())?)?;
        } else {
            pod.add_address(inner, ip.into())?;
            pod.add_route(gateway.into(), inner, None)?;
            self.rtnl.add_route(ip.into(), self.bridge, None)?;
        }
        pod.add_route(everything(ip), inner, Some(gateway))
    }

    fn add_outside(&mut self, name: &str, ips: &[IpAddr]) -> Result<Host> {
        let next_hop = |ip: IpAddr| if ip.is_ipv4() { Self::ADDRESS4.into() } else { Self::ADDRESS6.into() };
        for ip in ips {
            self.world_rtnl.add_address(self.world_link, (*ip).into())?;
            self.world_rtnl.add_route(everything(*ip), self.world_link, Some(next_hop(*ip)))?;
            self.rtnl.add_route((*ip).into(), self.uplink, None)?;
        }
        Ok(Host {
            name: name.to_owned(),
            attach: Attach::Outside,
            ns: self.world.clone(),
            ips: ips.to_vec(),
            host_link: Self::UPLINK.to_owned(),
            mac: self.world_rtnl.link(Self::POD_LINK)?.mac,
            gateway_mac: self.rtnl.link(Self::UPLINK)?.mac,
            host_index: self.uplink,
        })
    }
}

/// Tells everyone on the bridge who has the addresses now, as a CNI does: another pod may have had them before.
fn announce(ns: &Netns, mac: [u8; 6], ips: &[IpAddr]) -> Result<()> {
    let socket = LinkSocket::open(ns, Node::POD_LINK)?;
    for ip in ips {
        let frame = match ip {
            IpAddr::V4(ip) => Frame::arp_request(mac, *ip, *ip),
            IpAddr::V6(ip) => {
                let everyone = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let packet =
                    Ip::new((*ip).into(), everyone.into()).hop_limit(255).neighbour_advertisement(*ip, mac);
                packet.ethernet(mac, [0x33, 0x33, 0, 0, 0, 1])
            }
        };
        socket.send(&frame.bytes)?;
    }
    Ok(())
}

fn gateway(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Node::GATEWAY4.into() } else { Node::GATEWAY6.into() }
}

fn bridge_subnet(like: IpAddr) -> IpNet {
    IpNet::new_assert(gateway(like), if like.is_ipv4() { 24 } else { 64 })
}

fn everything(like: IpAddr) -> IpNet {
    let any: IpAddr =
        if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNet::new_assert(any, 0)
}

/// Addresses usable at once and no chatter on new links; earlier settings of this machine do not shine through.
fn quiet_stack() -> Result<()> {
    // Echo sockets for everybody, so that probes need no raw ones.
    sysctl("ipv4/ping_group_range", "0 2147483647")?;
    for scope in ["all", "default"] {
        sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/accept_ra"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/router_solicitations"), "0")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{SocketAddr, UdpSocket},
        time::Duration,
    };

    /// One datagram there and back again, with the source bound to the host's address.
    fn reaches(from: &Host, to: &Host, family: crate::net::Family) -> bool {
        let (source, target) = (from.ip(family).unwrap(), to.ip(family).unwrap());
        let server = to.ns.run(|| UdpSocket::bind(SocketAddr::new(target, 0)).unwrap());
        let client = from.ns.run(|| UdpSocket::bind(SocketAddr::new(source, 0)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.send_to(b"ping", server.local_addr().unwrap()).unwrap();
        let mut bytes = [0; 16];
        let Ok((_, peer)) = server.recv_from(&mut bytes) else { return false };
        assert_eq!(peer.ip(), source, "nothing on the way rewrites addresses");
        server.send_to(b"pong", peer).unwrap();
        client.recv(&mut bytes).is_ok()
    }

    fn everyone_reaches_everyone(topology: Topology) {
        let mut node = Node::new(topology).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let a = node.add("a", Attach::Pod, &[ip("10.244.0.10"), ip("fd00:10:244::a")]).unwrap();
        let b = node.add("b", Attach::Pod, &[ip("10.244.0.11"), ip("fd00:10:244::b")]).unwrap();
        let odd = node.add("odd", Attach::Pod, &[ip("172.17.3.4"), ip("fd99::1")]).unwrap();
        let out = node.add("out", Attach::Outside, &[ip("203.0.113.5"), ip("2001:db8::5")]).unwrap();
        for family in [crate::net::Family::V4, crate::net::Family::V6] {
            for (from, to) in [(&a, &b), (&b, &odd), (&odd, &a), (&a, &out), (&out, &odd)] {
                assert!(reaches(from, to, family), "{} -> {} {family:?} {topology:?}", from.name, to.name);
            }
            let process = node.as_host();
            assert!(reaches(&process, &a, family), "node -> a {family:?} {topology:?}");
        }
        node.remove("b").unwrap();
        node.remove("out").unwrap();
        let again = node.add("b", Attach::Pod, &[ip("203.0.113.5"), ip("2001:db8::5")]).unwrap();
        assert!(reaches(&a, &again, crate::net::Family::V4), "an address moves from outside to a pod");
        node.remove("a").unwrap();
        let other = node.add("a", Attach::Pod, &[ip("10.244.0.10"), ip("fd00:10:244::a")]).unwrap();
        for family in [crate::net::Family::V4, crate::net::Family::V6] {
            assert!(
                reaches(&odd, &other, family),
                "an address moves from pod to pod, {family:?} {topology:?}"
            );
        }
    }

    #[test]
    fn ptp_pods_reach_each_other_the_node_and_the_outside() {
        everyone_reaches_everyone(Topology::Ptp);
    }

    #[test]
    fn bridge_pods_reach_each_other_the_node_and_the_outside() {
        everyone_reaches_everyone(Topology::Bridge);
    }
}
