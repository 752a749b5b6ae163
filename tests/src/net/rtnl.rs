//! The few rtnetlink requests that the harness needs: links, addresses, routes, neighbours.

use super::Netns;
use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

/// A link as a dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Link-layer address; zeroes where there is none.
    pub mac: [u8; 6],
    /// Whether packets pass already: up, with a carrier that the kernel has taken note of.
    pub operational: bool,
}

/// A request socket of one namespace.
#[derive(Debug)]
pub struct Rtnl {
    socket: Mutex<Socket>,
}

impl Rtnl {
    /// Opens a socket in the namespace of the calling thread, where it stays.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("open an rtnetlink socket")?;
        socket.bind_auto().context("bind an rtnetlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("connect an rtnetlink socket")?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// A pair of veth devices: `name` here, `peer` in the namespace `into`.
    pub fn add_veth(&self, name: &str, peer: &str, into: &Netns) -> Result<()> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::NetNsFd(into.raw_fd()));
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.create(RouteNetlinkMessage::NewLink(link)).with_context(|| format!("add veth {name}"))
    }

    /// A bridge device. A given link-layer address stays; without one it changes with the ports, and hosts that know
    /// the old one talk to nobody.
    pub fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::Address(mac.to_vec()));
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.create(RouteNetlinkMessage::NewLink(link)).with_context(|| format!("add bridge {name}"))
    }

    /// Makes the link a port of the bridge `controller`.
    pub fn set_controller(&self, index: u32, controller: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Controller(controller));
        self.ask(RouteNetlinkMessage::SetLink(link), 0).context("attach a link to a bridge")
    }

    /// Sets the largest packet that the link carries, in bytes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Mtu(mtu));
        self.ask(RouteNetlinkMessage::SetLink(link), 0).context("set a link's MTU")
    }

    /// Sets the largest packet that the link hands on before it is cut up, or puts together from several, in bytes.
    pub fn set_segmentation(&self, index: u32, size: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.extend([
            LinkAttribute::GsoMaxSize(size),
            LinkAttribute::GroMaxSize(size),
            LinkAttribute::GsoIpv4MaxSize(size),
            LinkAttribute::GroIpv4MaxSize(size),
        ]);
        self.ask(RouteNetlinkMessage::SetLink(link), 0).context("set a link's sizes of segmentation")
    }

    /// Brings the link up.
    pub fn set_up(&self, index: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), 0).context("bring a link up")
    }

    /// Deletes the link; its veth peer goes with it.
    pub fn delete_link(&self, index: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(link), 0).context("delete a link")
    }

    /// Adds an address that is usable at once (IPv6: no duplicate detection).
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.create(RouteNetlinkMessage::NewAddress(message))
            .with_context(|| format!("add address {address}"))
    }

    /// A route to `to` through the link; with `via`, the next hop is taken as reachable on it.
    pub fn add_route(&self, to: IpNet, index: u32, via: Option<IpAddr>) -> Result<()> {
        let mut route = RouteMessage::default();
        route.header.address_family = family(to.addr());
        route.header.destination_prefix_length = to.prefix_len();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Boot;
        route.header.kind = RouteType::Unicast;
        route.header.scope =
            if via.is_none() && to.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
        if to.prefix_len() > 0 {
            route.attributes.push(RouteAttribute::Destination(to.addr().into()));
        }
        if let Some(via) = via {
            route.header.flags = RouteFlags::Onlink;
            route.attributes.push(RouteAttribute::Gateway(via.into()));
        }
        route.attributes.push(RouteAttribute::Oif(index));
        self.ask(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
            .with_context(|| format!("add a route to {to}"))
    }

    /// Takes the address off the link.
    pub fn delete_address(&self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        self.ask(RouteNetlinkMessage::DelAddress(message), 0)
            .with_context(|| format!("delete address {address}"))
    }

    /// Deletes the route to `to` through the link.
    pub fn delete_route(&self, to: IpNet, index: u32) -> Result<()> {
        let mut route = RouteMessage::default();
        route.header.address_family = family(to.addr());
        route.header.destination_prefix_length = to.prefix_len();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        // The kernel reads "nowhere" as "of any scope" when it deletes.
        route.header.scope = RouteScope::NoWhere;
        route.attributes.push(RouteAttribute::Destination(to.addr().into()));
        route.attributes.push(RouteAttribute::Oif(index));
        self.ask(RouteNetlinkMessage::DelRoute(route), 0).with_context(|| format!("delete the route to {to}"))
    }

    /// A neighbour that is never asked for.
    pub fn add_neighbour(&self, index: u32, ip: IpAddr, mac: [u8; 6]) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            .with_context(|| format!("add neighbour {ip}"))
    }

    /// All links of the namespace.
    pub fn links(&self) -> Result<Vec<Link>> {
        let answers = self.exchange(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(link).collect())
    }

    /// The link of this name.
    pub fn link(&self, name: &str) -> Result<Link> {
        let found = self.links()?.into_iter().find(|link| link.name == name);
        found.with_context(|| format!("no link {name} in the namespace"))
    }

    /// Waits until packets pass the link: the kernel takes note of a carrier in the background, behind all that removes
    /// namespaces of other tests.
    pub fn wait_operational(&self, name: &str) -> Result<Link> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let link = self.link(name)?;
            if link.operational {
                return Ok(link);
            }
            ensure!(Instant::now() < end, "{name} has no carrier");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn create(&self, message: RouteNetlinkMessage) -> Result<()> {
        self.ask(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = 1;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let socket = self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        socket.send(&bytes, 0).context("send a netlink request")?;
        let mut answers = Vec::new();
        loop {
            let (data, _) = socket.recv_from_full().context("receive a netlink answer")?;
            if take(&data, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Adds the messages of one datagram; true when it ended the exchange.
fn take(mut data: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> Result<bool> {
    while !data.is_empty() {
        let message =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(data).context("parse a netlink answer")?;
        let length = (message.header.length as usize).next_multiple_of(4).min(data.len());
        data = &data[length..];
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io().into()),
            other => bail!("a netlink answer of an unexpected kind: {other:?}"),
        }
    }
    Ok(false)
}

fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link { index: message.header.index, name: String::new(), mac: [0; 6], operational: false };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        }
        if let LinkAttribute::Address(bytes) = attribute {
            link.mac = bytes.as_slice().try_into().unwrap_or_default();
        }
        if let LinkAttribute::OperState(state) = attribute {
            link.operational = *state == State::Up;
        }
    }
    Some(link)
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
