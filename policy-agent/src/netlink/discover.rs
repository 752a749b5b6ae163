//! One look at all pods' interfaces and at the host's own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::link::{Device, HostLink, Seen, addresses, devices, links, nsid_of};
use super::socket::Requests;

/// Looks at the network namespace in which it was opened.
#[derive(Debug)]
pub struct Discovery {
    requests: Requests,
}

/// What one look saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Links to other namespaces by index.
    pub links: BTreeMap<u32, HostLink>,
    /// The only link whose other end has the address. Link-local and loopback addresses are left out: they are not
    /// unique.
    pub by_address: BTreeMap<IpAddr, u32>,
    /// Addresses that several links' other ends have: none of them is taken.
    pub ambiguous: BTreeMap<IpAddr, Vec<u32>>,
    /// Every address of the host's own namespace, on any interface.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Every device of the host but the loopback, by index.
    pub devices: BTreeMap<u32, Device>,
}

impl Interfaces {
    /// The link whose other end has the address, if exactly one has.
    #[must_use]
    pub fn of_address(&self, address: IpAddr) -> Option<&HostLink> {
        self.links.get(self.by_address.get(&address)?)
    }

    /// The link of this name.
    #[must_use]
    pub fn of_name(&self, name: &str) -> Option<&HostLink> {
        self.links.values().find(|link| link.name == name)
    }
}

impl Discovery {
    /// Opens its socket in the calling thread's network namespace, where it keeps looking.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open() -> io::Result<Self> {
        Ok(Self { requests: Requests::open()? })
    }

    /// Looks at everything. What changes during the look is left out and brings an event.
    ///
    /// # Errors
    /// The kernel's answer. A namespace that goes meanwhile is no error.
    pub fn snapshot(&self) -> io::Result<Interfaces> {
        let seen = self.settled()?;
        let host_addresses = addresses(&self.requests, None)?.into_iter().map(|(_, ip)| ip).collect();
        let devices = devices(&self.requests)?.into_iter().map(|device| (device.ifindex, device)).collect();
        Ok(Interfaces { devices, ..arrange(seen, host_addresses) })
    }

    /// Links whose other end is in the network namespace at this path (for example `/run/netns/NAME`).
    ///
    /// # Errors
    /// The path can't be opened or is no network namespace, or the kernel's answer.
    pub fn links_of_netns(&self, path: &Path) -> io::Result<Vec<HostLink>> {
        let netns = File::open(path)?;
        let seen = self.settled()?; // gives ids to the namespaces of all peers
        let Some(nsid) = nsid_of(&self.requests, netns.as_raw_fd())? else { return Ok(Vec::new()) };
        // The descriptor keeps the namespace, hence its id, from being reused between the two requests.
        Ok(seen.into_iter().filter(|s| s.nsid == nsid).map(|s| s.link).collect())
    }

    /// Links with the addresses of their other ends; only those that were the same before and after.
    fn settled(&self) -> io::Result<Vec<Seen>> {
        let before = links(&self.requests)?;
        let nsids: BTreeSet<i32> = before.iter().map(|s| s.nsid).collect();
        let mut inside = BTreeMap::new();
        for nsid in nsids {
            match addresses(&self.requests, Some(nsid)) {
                Ok(found) => drop(inside.insert(nsid, found)),
                // Gone since the links were dumped: so are its links.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                Err(e) => return Err(e),
            }
        }
        let after = links(&self.requests)?;
        Ok(join(after, &before, &inside))
    }
}

/// Gives each link that did not change the addresses that its peer, and no other interface, has.
fn join(after: Vec<Seen>, before: &[Seen], inside: &BTreeMap<i32, Vec<(u32, IpAddr)>>) -> Vec<Seen> {
    let mut kept = Vec::new();
    for mut seen in after {
        if !before.iter().any(|b| b.same_pair(&seen)) {
            continue;
        }
        let Some(found) = inside.get(&seen.nsid) else { continue };
        let peer = seen.link.peer_ifindex;
        let ours: BTreeSet<IpAddr> =
            found.iter().filter(|(index, _)| *index == peer).map(|(_, ip)| *ip).collect();
        seen.link.addresses = ours.into_iter().collect();
        kept.push(seen);
    }
    kept
}

fn arrange(seen: Vec<Seen>, host_addresses: BTreeSet<IpAddr>) -> Interfaces {
    let mut holders: BTreeMap<IpAddr, Vec<u32>> = BTreeMap::new();
    for Seen { link, .. } in &seen {
        for ip in link.addresses.iter().filter(|ip| is_unique(ip)) {
            holders.entry(*ip).or_default().push(link.ifindex);
        }
    }
    let mut interfaces = Interfaces { host_addresses, ..Interfaces::default() };
    for (ip, holders) in holders {
        match holders.as_slice() {
            [only] => drop(interfaces.by_address.insert(ip, *only)),
            _ => drop(interfaces.ambiguous.insert(ip, holders)),
        }
    }
    interfaces.links = seen.into_iter().map(|s| (s.link.ifindex, s.link)).collect();
    interfaces
}

fn is_unique(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !link_local && !ip.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ifindex: u32, nsid: i32, peer_ifindex: u32) -> Seen {
        let link = HostLink {
            ifindex,
            name: format!("veth{ifindex}"),
            kind: "veth".to_owned(),
            peer_ifindex,
            packets: 0,
            addresses: Vec::new(),
        };
        Seen { link, nsid }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_belongs_to_the_link_whose_peer_has_it() {
        let before = [seen(5, 0, 2), seen(6, 0, 3)];
        let found =
            vec![(2, ip("10.0.0.1")), (3, ip("192.168.7.1")), (1, ip("127.0.0.1")), (2, ip("fe80::1"))];
        let inside = BTreeMap::from([(0, found)]);
        let all = arrange(join(before.to_vec(), &before, &inside), BTreeSet::new());
        assert_eq!(all.of_address(ip("10.0.0.1")).unwrap().ifindex, 5);
        assert_eq!(all.of_address(ip("192.168.7.1")).unwrap().ifindex, 6);
        assert_eq!(all.links[&5].addresses, [ip("10.0.0.1"), ip("fe80::1")]);
        assert_eq!(all.of_address(ip("127.0.0.1")), None);
        assert_eq!(all.of_address(ip("fe80::1")), None, "link-local addresses are not unique");
    }

    #[test]
    fn a_link_that_changed_during_the_look_is_left_out() {
        let inside = BTreeMap::from([(0, vec![(2, ip("10.0.0.1"))])]);
        let reused = [seen(5, 0, 7)];
        assert_eq!(join(vec![seen(5, 0, 2)], &reused, &inside), [], "another peer under the same id");
        assert_eq!(join(vec![seen(5, 1, 2)], &[seen(5, 1, 2)], &inside), [], "its namespace went");
        assert_eq!(join(vec![seen(5, 0, 2)], &[], &inside), [], "new since the first dump");
    }

    #[test]
    fn an_address_at_two_links_belongs_to_none() {
        let both = [seen(5, 0, 2), seen(6, 1, 2)];
        let inside = BTreeMap::from([(0, vec![(2, ip("10.0.0.1"))]), (1, vec![(2, ip("10.0.0.1"))])]);
        let all = arrange(join(both.to_vec(), &both, &inside), BTreeSet::new());
        assert_eq!(all.of_address(ip("10.0.0.1")), None);
        assert_eq!(all.ambiguous[&ip("10.0.0.1")], [5, 6]);
    }
}
