//! The compiled tables, and the questions asked of them as functions of their own.
//!
//! The verifier walks a global function once, with arguments of which it knows nothing, and not again for every path
//! that leads to a call; and each has a stack frame only while it runs. Arguments and results are numbers: all that
//! 5.10 allows.

use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use policy_common::abi::{HostWord, Outcome, RuleSet, host_flags, limits};
use policy_common::family::{V4, V6};
use policy_common::judge::{PolicyMaps, classify, look_up as search};
use policy_common::side::{Side, judge_side};

use crate::access::word;
use crate::flows::scratch;
use crate::maps::{HINFO, HOSTS4, HOSTS6, INTERVAL, POLICY, PREFIX4, PREFIX6, RULESET};
use crate::skb::Skb;

/// The tables. `SOCKETS`: asked by a program that must not use the scratch value.
struct Tables<const SOCKETS: bool = false>;

/// Class and flags of an IPv4 address, as a host word.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn classify4(address: u32) -> u64 {
    classify::<V4, _>(&Tables::<false>, &address).pack()
}

/// The same for an IPv6 address in two words.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn classify6(high: u64, low: u64) -> u64 {
    let address = [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
    classify::<V6, _>(&Tables::<false>, &address).pack()
}

/// [`classify4`] for programs of sockets.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn peer4(address: u32) -> u64 {
    let loopback = u32::from_be(address) >> 24 == 127;
    classify::<V4, _>(&Tables::<true>, &address).pack() | own_if(loopback)
}

/// [`classify6`] for programs of sockets.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn peer6(high: u64, low: u64) -> u64 {
    let address = [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
    classify::<V6, _>(&Tables::<true>, &address).pack()
}

/// All loopback addresses are the host's own, also those that no interface has.
#[inline(always)]
fn own_if(loopback: bool) -> u64 {
    if loopback { HostWord { check: 0, class: 0, flags: host_flags::OWN_NODE }.pack() } else { 0 }
}

/// {rule set 16, 0 16, outcome 32} of a packet's cell.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn look_up(row: u32, class: u32, protocol: u32, port: u32) -> u64 {
    let (id, outcome) =
        search::<V4, _>(&Tables::<false>, row as u16, class as u16, protocol as u8, port as u16);
    id as u64 | (outcome.0 as u64) << 32
}

/// The verdict on one direction; see [`Side::pack`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn side(context: *mut __sk_buff, who: u64, what: u32) -> u64 {
    let skb = Skb::from_raw(context);
    // A process of the node made it.
    let own = || skb.ingress_ifindex() == 0 && skb.has_socket();
    let rules = |s: &Side| {
        let found = look_up(s.row as u32, s.class as u32, s.protocol as u32, s.port as u32);
        (found as u16, Outcome((found >> 32) as u32))
    };
    judge_side(Side::unpack(who, what), own, rules).0
}

macro_rules! tables {
    ($family:ty, $address:ty, $bits:literal, $hosts:ident, $prefixes:ident, $prefix_key:ident) => {
        impl<const S: bool> PolicyMaps<$family> for Tables<S> {
            #[inline(always)]
            fn host(&self, address: &$address) -> u32 {
                // SAFETY: an aligned word of the element that was just found; its value never changes.
                $hosts.get_ptr(address).map_or(0, |p| unsafe { read_volatile(p) })
            }
            #[inline(always)]
            fn prefix(&self, address: &$address) -> u32 {
                if S {
                    return $prefixes.get(&Key::new($bits, *address)).copied().unwrap_or(0);
                }
                let Some(s) = scratch() else { return 0 };
                s.$prefix_key = Key::new($bits, *address);
                $prefixes.get(&s.$prefix_key).copied().unwrap_or(0)
            }
            #[inline(always)]
            fn host_word(&self, slot: u32) -> u64 {
                word(HINFO.get_ptr(slot))
            }
            #[inline(always)]
            fn cell(&self, row: u16, class: u16) -> u16 {
                let index = row as u32 * limits::CLASSES + class as u32;
                let Some(p) = POLICY.get_ptr(index / limits::CELLS_PER_VALUE) else { return 0 };
                // SAFETY: the remainder is below the number of cells of a value.
                unsafe { read_volatile(p.cast::<u16>().add((index % limits::CELLS_PER_VALUE) as usize)) }
            }
            #[inline(always)]
            fn rule_set(&self, id: u16) -> Option<RuleSet> {
                // Immutable while a cell names it.
                RULESET.get(id as u32).copied()
            }
            #[inline(always)]
            fn interval(&self, index: u32) -> u64 {
                word(INTERVAL.get_ptr(index))
            }
        }
    };
}

tables!(V4, u32, 32, HOSTS4, PREFIX4, prefix4);
tables!(V6, [u32; 4], 128, HOSTS6, PREFIX6, prefix6);
