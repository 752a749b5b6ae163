//! The parser: it ends, reads no byte that is not there, and says the same however much follows a packet.

use policy_common::packet::{ETHERNET_HEADER, Link, Packet, Slice, facts, link, parse4, parse6};

/// Extension headers, options, and headers of transports, as they stand in packets.
pub(super) const WORDS: &[&[u8]] = &[
    &[0x08, 0x00, 0x45, 0, 0, 40],
    &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20],
    &[0, 0, 1, 4, 0, 0, 0, 0],
    &[0, 0, 5, 2, 0, 0, 1, 0],
    &[43, 0, 0, 0, 0, 0, 0, 0],
    &[44, 0, 0, 1, 0, 0, 0, 7],
    &[60, 0, 1, 4, 0, 0, 0, 0],
    &[51, 4, 0, 0, 0, 0, 0, 1],
    &[0xc2, 4, 0, 1, 0, 0],
    &[3, 4, 0, 0, 5, 0x78, 0, 0],
    &[135, 0, 0, 0, 0, 0, 0, 0],
    &[0x20, 0x00],
    &[0x1f, 0xff],
    &[0xff, 0xff, 10, 9, 0, 2],
    &[10, 9, 1, 1, 10, 9, 0, 2],
    &[0, 80, 0x9c, 0x40],
    &[0x81, 0x00, 0, 5],
];

pub(super) fn run(input: &[u8]) {
    let mut longer = input.to_vec();
    longer.extend([0xa5; 64]);
    let (bytes, padded) = (Slice(input), Slice(&longer));
    assert!(input.len() < 14 || link(&bytes) == link(&padded), "the link header is at its beginning");
    match link(&bytes) {
        Ok(Link::Ip4) => {
            if let Ok(packet) = parse4(&bytes, ETHERNET_HEADER) {
                assert_eq!(parse4(&padded, ETHERNET_HEADER), Ok(packet), "padding says nothing");
                sound(&packet);
            }
        }
        Ok(Link::Ip6) => {
            if let Ok(packet) = parse6(&bytes, ETHERNET_HEADER) {
                assert_eq!(parse6(&padded, ETHERNET_HEADER), Ok(packet), "padding says nothing");
                sound(&packet);
            }
        }
        Ok(Link::Arp) | Err(_) => {}
    }
}

fn sound<A>(packet: &Packet<A>) {
    let both = facts::FIRST_FRAGMENT | facts::LATER_FRAGMENT;
    assert!(packet.facts & both != both, "a fragment is the first or a later one");
    assert!(!packet.is(facts::ERROR) || !packet.is(facts::OPENS), "an error opens nothing");
    assert!(!packet.is(facts::LATER_FRAGMENT) || !packet.is(facts::ERROR), "a later fragment names no flow");
}

/// TCP, UDP, ICMP with a packet inside, fragments, extension headers.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let four = |protocol: u8, fragment: u16, rest: &[u8]| {
        let mut out = vec![2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 0, 0x45, 0, 0, 20 + rest.len() as u8, 0, 7];
        out.extend(fragment.to_be_bytes());
        out.extend([64, protocol, 0, 0, 10, 9, 1, 1, 10, 9, 0, 2]);
        out.extend_from_slice(rest);
        out
    };
    let six = |next: u8, rest: &[u8]| {
        let mut out = vec![
            2,
            2,
            2,
            2,
            2,
            2,
            4,
            4,
            4,
            4,
            4,
            4,
            0x86,
            0xdd,
            0x60,
            0,
            0,
            0,
            0,
            rest.len() as u8,
            next,
            255,
        ];
        out.extend([0xfd, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        out.extend([0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        out.extend_from_slice(rest);
        out
    };
    let tcp = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let udp = [0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    let inside = four(17, 0, &udp);
    let error = [&[3u8, 3, 0, 0, 0, 0, 0, 0], &inside[14..]].concat();
    let chain = [&[60u8, 0, 1, 4, 0, 0, 0, 0], &[6u8, 0, 1, 4, 0, 0, 0, 0][..], &tcp].concat();
    let part = [&[17u8, 0, 0, 1, 0, 0, 0, 7], &udp[..]].concat();
    let neighbour = [&[135u8, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 16], &[1, 1, 2, 2, 2, 2, 2, 2]].concat();
    vec![
        four(6, 0, &tcp),
        four(17, 0, &udp),
        four(17, 0x2000, &udp),
        four(17, 0x00b9, &udp),
        four(1, 0, &error),
        four(1, 0, &[8, 0, 0, 0, 0, 1, 0, 1]),
        four(132, 0, &[0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]),
        six(6, &tcp),
        six(0, &chain),
        six(44, &part),
        six(58, &neighbour),
    ]
}
