//! Links and addresses: the requests and what is read from the answers.

use std::io;
use std::net::IpAddr;

use super::message::{Attributes, Message, Request, text_of, u32_of, u64_of};
use super::socket::Requests;

/// Bytes of the fixed part of a link message.
const LINK_FIXED: usize = 16;
/// Bytes of the fixed part of an address message.
const ADDRESS_FIXED: usize = 8;
/// Bytes of the fixed part of a namespace id message.
const NSID_FIXED: usize = 4;

// Attribute numbers of the kernel's rtnetlink headers; libc has only some of them.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_TARGET_NETNSID: u16 = 10;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// The host's end of a pair whose other end is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// Index in the host's namespace.
    pub ifindex: u32,
    /// Name in the host's namespace; it can change, and be given to another link.
    pub name: String,
    /// `veth` or `netkit`; another kind is never a pod's.
    pub kind: String,
    /// Index of the other end in its own namespace.
    pub peer_ifindex: u32,
    /// Packets that the link has carried in both directions since it was made: more than none or a few before the
    /// hook is in place means that the pod talked without policy.
    pub packets: u64,
    /// Addresses of the other end, link-local ones too, sorted.
    pub addresses: Vec<IpAddr>,
}

/// Any device of the host's namespace but the loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub ifindex: u32,
    /// Name; it can change, and be given to another device.
    pub name: String,
    /// Kind of a virtual device (`bridge`, `vxlan`), empty for a real one.
    pub kind: String,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether it is one end of a pair whose other end is in another namespace.
    pub leads_away: bool,
    /// Link-layer address of an Ethernet device.
    pub mac: [u8; 6],
}

/// A link with the id of its peer's namespace, good for this look only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) link: HostLink,
    pub(super) nsid: i32,
}

impl Seen {
    /// Whether both are the same pair of ends.
    pub(super) fn same_pair(&self, other: &Self) -> bool {
        let ends = |s: &Self| (s.link.ifindex, s.nsid, s.link.peer_ifindex);
        ends(self) == ends(other)
    }
}

/// All links whose other end is in another namespace. Dumping them gives those namespaces an id.
pub(super) fn links(requests: &Requests) -> io::Result<Vec<Seen>> {
    requests.dump(&Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP as u16, &[0; LINK_FIXED]), link)
}

fn link(message: &Message<'_>) -> Option<Seen> {
    if message.kind != libc::RTM_NEWLINK {
        return None;
    }
    let attributes = message.attributes(LINK_FIXED);
    let nsid = u32_of(attributes.get(IFLA_LINK_NETNSID)?)? as i32;
    let kind = Attributes::inside(attributes.get(IFLA_LINKINFO)?).get(IFLA_INFO_KIND).map(text_of)?;
    if nsid < 0 || !matches!(kind.as_str(), "veth" | "netkit") {
        return None;
    }
    let packets = attributes.get(IFLA_STATS64).map_or(0, |stats| {
        let counter = |n: usize| stats.get(n * 8..).and_then(u64_of).unwrap_or(0);
        counter(0) + counter(1) // received, sent
    });
    let link = HostLink {
        ifindex: message.u32_at(4)?,
        name: attributes.get(IFLA_IFNAME).map(text_of)?,
        kind,
        peer_ifindex: u32_of(attributes.get(IFLA_LINK)?)?,
        packets,
        addresses: Vec::new(),
    };
    Some(Seen { link, nsid })
}

/// All devices of the calling namespace but the loopback.
pub(super) fn devices(requests: &Requests) -> io::Result<Vec<Device>> {
    requests.dump(&Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP as u16, &[0; LINK_FIXED]), device)
}

fn device(message: &Message<'_>) -> Option<Device> {
    let kind = message.body.get(2..4)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))?;
    if message.kind != libc::RTM_NEWLINK || kind == libc::ARPHRD_LOOPBACK {
        return None;
    }
    let attributes = message.attributes(LINK_FIXED);
    let info = attributes.get(IFLA_LINKINFO).map(Attributes::inside);
    Some(Device {
        ifindex: message.u32_at(4)?,
        name: attributes.get(IFLA_IFNAME).map(text_of)?,
        kind: info.and_then(|info| info.get(IFLA_INFO_KIND).map(text_of)).unwrap_or_default(),
        controller: attributes.get(IFLA_MASTER).and_then(u32_of),
        ethernet: kind == libc::ARPHRD_ETHER,
        leads_away: link(message).is_some(),
        mac: attributes.get(IFLA_ADDRESS).and_then(|mac| mac.first_chunk().copied()).unwrap_or_default(),
    })
}

/// (interface index, address) of every address of the calling namespace, or of the one with this id.
///
/// Fails with `InvalidInput` when no namespace has the id.
pub(super) fn addresses(requests: &Requests, nsid: Option<i32>) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut request = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16, &[0; ADDRESS_FIXED]);
    if let Some(nsid) = nsid {
        request = request.attribute(IFA_TARGET_NETNSID, &nsid.to_ne_bytes());
    }
    let read = |message: &Message<'_>| {
        let attributes = message.attributes(ADDRESS_FIXED);
        let answered = attributes.get(IFA_TARGET_NETNSID).and_then(u32_of).map(|id| id as i32);
        Some((answered == nsid, address(message)))
    };
    let found = requests.dump(&request, read)?;
    // The answer repeats the id: without it the addresses would be our own namespace's.
    if found.iter().any(|(honoured, _)| !honoured) {
        return Err(io::Error::other("the kernel answered for another network namespace"));
    }
    Ok(found.into_iter().filter_map(|(_, address)| address).collect())
}

/// `IFA_LOCAL` where present (IPv4, point-to-point), else `IFA_ADDRESS`.
fn address(message: &Message<'_>) -> Option<(u32, IpAddr)> {
    if message.kind != libc::RTM_NEWADDR {
        return None;
    }
    let attributes = message.attributes(ADDRESS_FIXED);
    let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?;
    let ip = match *message.body.first()? as i32 {
        libc::AF_INET => IpAddr::from(*bytes.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*bytes.first_chunk::<16>()?),
        _ => return None,
    };
    Some((message.u32_at(4)?, ip))
}

/// The id that the calling namespace gave to the namespace of the descriptor, if it gave any.
pub(super) fn nsid_of(requests: &Requests, netns: std::os::fd::RawFd) -> io::Result<Option<i32>> {
    let request = Request::new(libc::RTM_GETNSID, libc::NLM_F_ACK as u16, &[0; NSID_FIXED])
        .attribute(NETNSA_FD, &netns.to_ne_bytes());
    let mut found = None;
    requests.exchange(request, |message| {
        found = message.attributes(NSID_FIXED).get(NETNSA_NSID).and_then(u32_of).map(|id| id as i32);
    })?;
    Ok(found.filter(|id| *id >= 0))
}
