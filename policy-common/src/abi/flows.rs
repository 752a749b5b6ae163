//! Keys and values of the maps that hold state: flows, fragments, and the local addresses they are kept by.

/// Key of `LOCALS`: a further address of an endpoint. Its value is an index from 2 to 254, unique in the family.
///
/// The first address of each family stands in the endpoint's words and has index 1 without an entry here. An address
/// that is not listed (also a link-local one) is not the pod's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct LocalKey {
    /// Endpoint slot.
    pub slot: u32,
    /// 4 or 6.
    pub family: u32,
    /// Address in network order; an IPv4 address is in the first word, the rest is 0.
    pub address: [u32; 4],
}

/// The slot in keys of `LOCALS` that ask whose an address is.
pub const ANY_SLOT: u32 = u32::MAX;

/// In keys of `FRAGS`, the place behind the translation of a Service.
pub const EXIT_SIDE: u8 = 3;

/// {port of the other side 16, port of the pod 16}: the identifier of an ICMP echo stands in both.
///
/// Keys are written in the words by which the kernel hashes them: a processor waits when it reads a word that was
/// written in parts.
#[inline(always)]
#[must_use]
pub const fn ports(local: u16, remote: u16) -> u32 {
    (remote as u32) << 16 | local as u32
}

/// {0 16, index of the local address 8, IP protocol 8}. For the index see [`LocalKey`]; 255 = not an address of the pod.
#[inline(always)]
#[must_use]
pub const fn path(protocol: u8, local: u8) -> u32 {
    (local as u32) << 8 | protocol as u32
}

/// Key of an IPv4 flow, seen from the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey4 {
    /// Remote address, network order.
    pub remote: u32,
    /// See [`ports`].
    pub ports: u32,
    /// See [`path`].
    pub path: u32,
}

/// Key of an IPv6 flow, seen from the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey6 {
    /// Remote address, network order.
    pub remote: [u32; 4],
    /// See [`ports`].
    pub ports: u32,
    /// See [`path`].
    pub path: u32,
}

/// State of a flow. `word` is {epoch 32, tag 18, action 4, opener 2, flags 8}: see the flow step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Verdict, opener and epoch.
    pub word: u64,
    /// Tick of the last accepted packet.
    pub seen: u32,
    /// TCP state bits.
    pub tcp: u8,
    /// Sides that sent FIN.
    pub fins: u8,
    /// Reserved.
    pub proxy_port: u16,
    /// Deciding rule, 0 = none.
    pub rule: u32,
    /// Epoch at which the flow opened.
    pub opened: u32,
    /// Class of the remote address when the flow was judged last.
    pub class: u16,
    /// Rule set that judged the flow last.
    pub rule_set: u16,
    /// Reserved.
    pub reserved: u32,
}

/// Key of `FRAGS`: a datagram in fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Endpoint id (never reused).
    pub endpoint: u32,
    /// Identification field.
    pub id: u32,
    /// IP protocol; 0 for IPv6, whose reassembly does not look at it.
    pub protocol: u8,
    /// [`super::Direction`] as a number, or [`EXIT_SIDE`].
    pub direction: u8,
    /// 4 or 6.
    pub family: u16,
    /// Source, network order.
    pub source: [u32; 4],
    /// Destination, network order.
    pub destination: [u32; 4],
}

/// Value of `FRAGS`: the ports of the first fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Tick of the first fragment.
    pub seen: u32,
    /// Protocol of the first fragment, behind its extension headers.
    pub protocol: u8,
    /// Always 0.
    pub pad: [u8; 3],
}
