//! Frames byte by byte: what opens, what is refused, every truncation, random bytes.

use proptest::prelude::*;

use super::*;
use crate::reason::Reason;

fn ip4(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options;
    let mut b = vec![0x40 | (header / 4) as u8, 0];
    b.extend(((header + payload.len()) as u16).to_be_bytes());
    b.extend([0x12, 0x34]);
    b.extend(fragment.to_be_bytes());
    b.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    b.extend(std::iter::repeat_n(1, options));
    b.extend(payload);
    b
}

fn ip6(next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut b = vec![0x60, 0, 0, 0];
    b.extend((payload.len() as u16).to_be_bytes());
    b.extend([next, hops]);
    b.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    b.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    b.extend(payload);
    b
}

fn tcp_header(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut b = source.to_be_bytes().to_vec();
    b.extend(destination.to_be_bytes());
    b.extend([0; 8]);
    b.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    b
}

fn p4(b: &[u8]) -> Result<Packet<u32>, Reason> {
    parse4(&Slice(b), 0)
}

fn p6(b: &[u8]) -> Result<Packet<[u32; 4]>, Reason> {
    parse6(&Slice(b), 0)
}

const A: u32 = u32::from_ne_bytes([10, 0, 0, 1]);
const B: u32 = u32::from_ne_bytes([10, 0, 0, 2]);

#[test]
fn ports_behind_options() {
    for options in [0, 4, 40] {
        let p = p4(&ip4(6, 0, options, &tcp_header(1000, 80, tcp::SYN))).unwrap();
        assert_eq!((p.source, p.destination, p.source_port, p.destination_port), (A, B, 1000, 80));
        assert_eq!((p.facts, p.flags), (facts::OPENS, tcp::SYN));
    }
    let p = p4(&ip4(17, 0, 0, &[0, 53, 1, 0, 0, 8, 0, 0])).unwrap();
    assert_eq!((p.source_port, p.destination_port, p.facts), (53, 256, facts::OPENS));
}

#[test]
fn what_opens() {
    for (flags, opens) in
        [(tcp::SYN, true), (tcp::SYN | tcp::ACK, false), (tcp::ACK, false), (tcp::RST, false)]
    {
        assert_eq!(p4(&ip4(6, 0, 0, &tcp_header(1, 2, flags))).unwrap().is(facts::OPENS), opens);
    }
    let mut sctp = [0; 16];
    for (chunk, opens) in [(1, true), (2, false), (0, false)] {
        sctp[12] = chunk;
        assert_eq!(p4(&ip4(132, 0, 0, &sctp)).unwrap().is(facts::OPENS), opens);
    }
    for (kind, opens) in [(8, true), (0, false), (13, true)] {
        let p = p4(&ip4(1, 0, 0, &[kind, 0, 0, 0, 0, 7, 0, 1])).unwrap();
        assert_eq!(p.is(facts::OPENS), opens);
        assert_eq!(p.source_port, if kind == 13 { 0 } else { 7 });
    }
    assert!(p4(&ip4(47, 0, 0, &[])).unwrap().is(facts::OPENS));
}

#[test]
fn fragments() {
    let first = p4(&ip4(17, 0x2000, 0, &[0, 1, 0, 2, 0, 8, 0, 0])).unwrap();
    assert!(first.is(facts::FIRST_FRAGMENT) && first.destination_port == 2 && first.fragment == 0x1234);
    let later = p4(&ip4(17, 3, 0, &[9; 8])).unwrap();
    assert!(later.is(facts::LATER_FRAGMENT) && later.destination_port == 0);
    assert_eq!(p4(&ip4(6, 0x2000, 0, &tcp_header(1, 2, 2)[..16])), Err(Reason::FragmentTiny));
    assert_eq!(p4(&ip4(6, 1, 0, &[0; 8])), Err(Reason::FragmentTiny));
    // Ports in the padding behind the IP length do not count.
    let mut padded = ip4(17, 0x2000, 0, &[]);
    padded.extend([0; 26]);
    assert_eq!(p4(&padded), Err(Reason::FragmentTiny));
    // IPv6: first, later, atomic.
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let fragment = |bits: u16, rest: &[u8]| {
        let mut b = vec![17, 0];
        b.extend(bits.to_be_bytes());
        b.extend([0, 0, 0, 9]);
        b.extend(rest);
        ip6(44, 64, &b)
    };
    assert!(p6(&fragment(1, &udp)).unwrap().is(facts::FIRST_FRAGMENT));
    assert!(p6(&fragment(8, &udp)).unwrap().is(facts::LATER_FRAGMENT));
    let atomic = p6(&fragment(0, &udp)).unwrap();
    assert_eq!((atomic.facts, atomic.destination_port), (facts::OPENS, 2));
    assert_eq!(p6(&fragment(1, &udp[..3])), Err(Reason::FragmentTiny));
    // A fragment of a fragment is of no datagram; an atomic one may hold a real one.
    let nested = |outer: u16, inner: u16| {
        let mut b = vec![44, 0];
        b.extend(outer.to_be_bytes());
        b.extend([0, 0, 0, 8, 17, 0]);
        b.extend(inner.to_be_bytes());
        b.extend([0, 0, 0, 9]);
        b.extend(udp);
        p6(&ip6(44, 64, &b))
    };
    assert_eq!(nested(1, 8), Err(Reason::Malformed));
    assert_eq!(nested(1, 1), Err(Reason::Malformed));
    assert!(nested(0, 8).unwrap().is(facts::LATER_FRAGMENT));
}

#[test]
fn extension_headers_are_bounded() {
    for n in 0..9 {
        let mut b = vec![];
        for i in 0..n {
            b.extend([if i + 1 == n { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        b.extend(tcp_header(5, 443, tcp::SYN));
        let p = p6(&ip6(if n == 0 { 6 } else { 60 }, 64, &b));
        if n <= 6 {
            assert_eq!(p.unwrap().destination_port, 443, "{n} headers");
        } else {
            assert_eq!(p, Err(Reason::TooManyExtensionHeaders));
        }
    }
    // Authentication header: its length counts words of four bytes.
    let mut ah = vec![6, 1];
    ah.extend([0; 10]);
    ah.extend(tcp_header(5, 443, tcp::SYN));
    assert_eq!(p6(&ip6(51, 64, &ah)).unwrap().destination_port, 443);
}

#[test]
fn errors_name_the_flow_inside() {
    let quoted = ip4(6, 0, 0, &tcp_header(80, 4000, tcp::ACK)[..8]);
    let mut icmp = vec![3, 4, 0, 0, 0, 0, 0, 0];
    icmp.extend(&quoted);
    let mut outer = ip4(1, 0, 0, &icmp);
    // From a router: not an address of the flow.
    outer[12..16].copy_from_slice(&[192, 0, 2, 1]);
    outer[16..20].copy_from_slice(&[10, 0, 0, 1]);
    let p = p4(&outer).unwrap();
    assert_eq!((p.source, p.destination, p.source_port, p.destination_port), (B, A, 4000, 80));
    assert_eq!((p.protocol, p.flags, p.code), (6, 3, 4));
    assert_eq!(p.facts, facts::ERROR | facts::FOREIGN_ERROR);
    outer[12..16].copy_from_slice(&[10, 0, 0, 2]);
    assert_eq!(p4(&outer).unwrap().facts, facts::ERROR);
    outer[20] = 5;
    assert_eq!(p4(&outer).unwrap().facts, facts::ERROR | facts::ROUTER);
    // An error about an error, and one about a later fragment.
    let mut twice = vec![3, 0, 0, 0, 0, 0, 0, 0];
    twice.extend(&outer);
    assert_eq!(p4(&ip4(1, 0, 0, &twice)), Err(Reason::IcmpNoFlow));
    outer[28 + 7] = 1;
    assert_eq!(p4(&outer), Err(Reason::IcmpNoFlow));
    // IPv6.
    let mut icmp = vec![2, 0, 0, 0, 0, 0, 5, 0];
    icmp.extend(ip6(17, 64, &[0, 53, 3, 0]));
    assert_eq!(p6(&ip6(58, 64, &icmp)), Err(Reason::Malformed));
    icmp.extend([0; 4]);
    let p = p6(&ip6(58, 64, &icmp)).unwrap();
    assert_eq!((p.protocol, p.source_port, p.destination_port, p.flags), (17, 768, 53, 2));
}

#[test]
fn neighbours_prove_themselves_by_the_hop_limit() {
    for kind in 133..=137_u8 {
        let near = p6(&ip6(58, 255, &[kind, 0, 0, 0, 0, 0, 0, 0])).unwrap();
        assert!(near.is(facts::NEIGHBOUR));
        assert_eq!(near.is(facts::ROUTER), matches!(kind, 134 | 137));
        assert!(!p6(&ip6(58, 64, &[kind, 0, 0, 0, 0, 0, 0, 0])).unwrap().is(facts::NEIGHBOUR));
    }
    let mld = |hops, alert: [u8; 2]| {
        let mut b = vec![58, 0, alert[0], alert[1], 0, 0, 1, 0];
        b.extend([143, 0, 0, 0, 0, 0, 0, 0]);
        p6(&ip6(0, hops, &b)).unwrap().is(facts::NEIGHBOUR)
    };
    assert!(mld(1, [5, 2]) && !mld(2, [5, 2]) && !mld(1, [1, 4]));
    assert!(!p6(&ip6(58, 1, &[143, 0, 0, 0, 0, 0, 0, 0])).unwrap().is(facts::NEIGHBOUR));
}

#[test]
fn mapped_and_malformed() {
    let mut b = ip6(17, 64, &[0; 8]);
    b[24..40].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    assert_eq!(p6(&b), Err(Reason::MappedAddress));
    let good = ip4(6, 0, 0, &tcp_header(1, 2, 2));
    for (at, value) in [(0, 0x44), (0, 0x65), (3, 19), (3, 39)] {
        let mut b = good.clone();
        b[at] = value;
        assert_eq!(p4(&b), Err(Reason::Malformed), "byte {at} = {value:#x}");
    }
    // A length of 0 is a segmented packet beyond 64 KB.
    let mut big = good;
    big[2..4].copy_from_slice(&[0, 0]);
    assert!(p4(&big).is_ok());
}

#[test]
fn ethertypes() {
    let at = |t: [u8; 2]| link(&Slice(&[[0; 12].as_slice(), &t].concat()));
    assert_eq!(at([8, 0]), Ok(Link::Ip4));
    assert_eq!(at([0x86, 0xdd]), Ok(Link::Ip6));
    assert_eq!(at([8, 6]), Ok(Link::Arp));
    assert_eq!(at([0x81, 0]), Err(Reason::VlanTagged));
    assert_eq!(at([0x88, 0xcc]), Err(Reason::UnknownEthertype));
    assert_eq!(link(&Slice(&[0; 13])), Err(Reason::Malformed));
}

#[test]
fn every_truncation_is_malformed() {
    let mut icmp = vec![3, 4, 0, 0, 0, 0, 0, 0];
    icmp.extend(ip4(6, 0, 8, &tcp_header(80, 4000, tcp::ACK)[..8]));
    for whole in [ip4(6, 0, 4, &tcp_header(1, 2, 2)), ip4(17, 0, 0, &[0; 8]), ip4(1, 0, 0, &icmp)] {
        assert!(p4(&whole).is_ok());
        for n in 0..whole.len() {
            assert_eq!(p4(&whole[..n]), Err(Reason::Malformed), "{n} of {}", whole.len());
        }
    }
    let mut b = vec![6, 1, 1, 12];
    b.extend([0; 12]);
    b.extend(tcp_header(1, 2, 2));
    let whole = ip6(60, 64, &b);
    assert!(p6(&whole).is_ok());
    for n in 0..whole.len() {
        assert_eq!(p6(&whole[..n]), Err(Reason::Malformed), "{n} of {}", whole.len());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..64) {
        let _ = parse4(&Slice(&bytes), at);
        let _ = parse6(&Slice(&bytes), at);
        let _ = link(&Slice(&bytes));
    }

    #[test]
    fn random_headers_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 40..200), next in 0_usize..12, ihl in 5_u8..16,
    ) {
        let number = [0, 43, 44, 51, 60, 6, 17, 132, 1, 58, 59, 50][next];
        bytes[0] = 0x40 | ihl;
        bytes[9] = number;
        if let Ok(p) = p4(&bytes) {
            prop_assert!(!(p.is(facts::LATER_FRAGMENT) && p.is(facts::OPENS)));
        }
        bytes[0] = 0x60;
        bytes[6] = number;
        if let Ok(p) = p6(&bytes) {
            prop_assert!(!(p.is(facts::LATER_FRAGMENT) && (p.source_port, p.destination_port) != (0, 0)));
        }
    }
}
