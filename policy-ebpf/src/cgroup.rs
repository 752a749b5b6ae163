//! The hook of a control group's sockets, in both directions.
//!
//! A packet begins with its IP header, is whole, and has been translated; 1 lets it pass and 0 drops it, which a sender
//! is told ("operation not permitted"). A chain of global functions for the verifier, as at an interface.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{Direction, EndpointWord, ROW_OPEN, endpoint_config, endpoint_words};
use policy_common::decide::{decide_slowly, established};
use policy_common::family::{V4, V6};
use policy_common::flow::Host;
use policy_common::packet::{Bytes, Packet, facts, parse4, parse6};
use policy_common::reason::Reason;
use policy_common::verdict::Verdict;

use crate::access::Kernel;
use crate::bytes::Direct;
use crate::carry::{put4, put6, take4, take6};
use crate::found::{SLOW, SLOW4, SLOW6};
use crate::report::{report_place, report_socket};
use crate::skb::Skb;
use crate::sockets::slot_of_socket;

const PASS: i32 = 1;
const DROP: i32 = 0;
/// Beside what [`crate::found`] has: the packet passes the short way.
const FOUND: u64 = 1 << 8;

/// The functions of one direction.
macro_rules! direction {
    ($hook:ident, $front:ident, $slow4:ident, $slow6:ident, $direction:expr) => {
        /// Parses the packet and takes the short way if it can: see [`crate::found`], or a reason's number.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $front(context: *mut __sk_buff, word: u64, slot: u32) -> u64 {
            let skb = Skb::from_raw(context);
            let Some(kernel) = Kernel::<true>::at(skb, slot as u16) else { return Reason::Internal as u64 };
            let bytes = Direct::new(skb, kernel.zero);
            let exempt = kernel.endpoint(endpoint_words::IDENTITY) >> 32
                & endpoint_config::JUDGE_LOOPBACK as u64
                == 0;
            let Some([first]) = bytes.words::<1>(0) else { return Reason::Malformed as u64 };
            match u32::from_be(first) >> 28 {
                4 => match parse4(&bytes, 0) {
                    Ok(packet) => {
                        if exempt && loopback4(&packet)
                            || established::<V4, _>(&kernel, word, $direction, &packet).is_some()
                        {
                            return FOUND;
                        }
                        put4(skb, &packet);
                        SLOW4
                    }
                    Err(reason) => reason as u64,
                },
                6 => match parse6(&bytes, 0) {
                    Ok(packet) => {
                        if exempt && loopback6(&packet)
                            || established::<V6, _>(&kernel, word, $direction, &packet).is_some()
                        {
                            return FOUND;
                        }
                        // Only raw sockets get them, and what is inside cannot be carried.
                        if packet.is(facts::ERROR) {
                            return Reason::IcmpNoFlow as u64;
                        }
                        put6(skb, &packet);
                        SLOW6
                    }
                    Err(reason) => reason as u64,
                },
                _ => Reason::UnknownEthertype as u64,
            }
        }

        direction!(slow $slow4, V4, take4, put4, $direction);
        direction!(slow $slow6, V6, take6, put6, $direction);

        /// Judges the packet.
        #[inline(always)]
        pub(crate) fn $hook(skb: Skb) -> i32 {
            let slot = slot_of_socket(skb.raw()) as u32;
            if slot == 0 {
                return PASS;
            }
            let Some(kernel) = Kernel::<true>::at(skb, slot as u16) else { return PASS };
            let word = kernel.endpoint(endpoint_words::POLICY);
            let found = $front(skb.raw(), word, slot);
            let verdict = match found {
                SLOW4 => Verdict($slow4(skb.raw(), word, slot)),
                SLOW6 => Verdict($slow6(skb.raw(), word, slot)),
                FOUND => return PASS,
                _ if EndpointWord::unpack(word).row($direction) == ROW_OPEN => return PASS,
                reason => Verdict(reason << 4),
            };
            if verdict.is_counted() || !verdict.passes() {
                let family = if found & SLOW != 0 { found as u8 } else { 0 };
                report_socket(skb.raw(), word, verdict.0, report_place(slot, $direction, family));
            }
            if verdict.passes() { PASS } else { DROP }
        }
    };
    (slow $name:ident, $family:ty, $take:ident, $put:ident, $direction:expr) => {
        /// The long way. Returns the verdict's word.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(context: *mut __sk_buff, word: u64, slot: u32) -> u64 {
            let skb = Skb::from_raw(context);
            let Some(kernel) = Kernel::<true>::at(skb, slot as u16) else {
                return (Reason::Internal as u64) << 4;
            };
            let mut packet = $take(skb);
            decide_slowly::<$family, Kernel<true>>(&kernel, word, $direction, &mut packet).0
        }
    };
}

direction!(cgroup_in, front_socket_in, slow_socket_in4, slow_socket_in6, Direction::Ingress);
direction!(cgroup_out, front_socket_out, slow_socket_out4, slow_socket_out6, Direction::Egress);

/// Both ends are loopback addresses.
#[inline(always)]
fn loopback4(packet: &Packet<u32>) -> bool {
    let loopback = |address: u32| u32::from_be(address) >> 24 == 127;
    loopback(packet.source) && loopback(packet.destination)
}

#[inline(always)]
fn loopback6(packet: &Packet<[u32; 4]>) -> bool {
    let loopback = |[a, b, c, d]: [u32; 4]| a | b | c == 0 && d == 1u32.to_be();
    loopback(packet.source) && loopback(packet.destination)
}
