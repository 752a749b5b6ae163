//! A packet of any kind, parsed at a pod's hook or at whatever device it leaves by.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::interface_flags;
use policy_common::packet::{Bytes, ETHERNET_HEADER, Link, link, parse4, parse6};
use policy_common::reason::Reason;

use crate::access::{Kernel, interface};
use crate::bytes::Direct;
use crate::found::{ARP, PULL, SLOW4, SLOW6};
use crate::maps::{PARSED, Parsed};
use crate::skb::Skb;

/// Parses the packet into this CPU's [`Parsed`]: one of the constants of [`crate::found`], or a reason. `device` = by which it
/// leaves, 0 at a pod's hook.
#[inline(always)]
pub(crate) fn parse(skb: Skb, device: u32) -> u64 {
    let found = front(skb.raw(), device);
    let short = found == Reason::Malformed as u64 || found == Reason::FragmentTiny as u64;
    // A header may lie outside the linear part.
    if short && skb.pull_more(PULL) { front(skb.raw(), device) } else { found }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn front(context: *mut __sk_buff, device: u32) -> u64 {
    let skb = Skb::from_raw(context);
    let refused = Reason::Internal as u64;
    let (Some(kernel), Some(parsed)) = (Kernel::new(skb, 0), parsed()) else { return refused };
    let bytes = Direct::new(skb, kernel.zero);
    let bare = device != 0 && interface(device).flags & interface_flags::NO_ETHERNET != 0;
    let (kind, at) = if bare {
        let kind = match bytes.words::<1>(0) {
            Some([first]) if u32::from_be(first) >> 28 == 4 => Ok(Link::Ip4),
            Some([first]) if u32::from_be(first) >> 28 == 6 => Ok(Link::Ip6),
            Some(_) => Err(Reason::UnknownEthertype),
            None => Err(Reason::Malformed),
        };
        (kind, 0)
    } else {
        (link(&bytes), ETHERNET_HEADER)
    };
    match kind {
        Ok(Link::Arp) => ARP,
        Ok(Link::Ip4) => match parse4(&bytes, at) {
            Ok(packet) => {
                parsed.packet4 = packet;
                SLOW4
            }
            Err(reason) => reason as u64,
        },
        Ok(Link::Ip6) => match parse6(&bytes, at) {
            Ok(packet) => {
                parsed.packet6 = packet;
                SLOW6
            }
            Err(reason) => reason as u64,
        },
        Err(reason) => reason as u64,
    }
}

/// This CPU's parsed packet. One function at a time holds it: it is handed on by a call at whose end nobody needs it.
#[inline(always)]
pub(crate) fn parsed<'a>() -> Option<&'a mut Parsed> {
    // SAFETY: this CPU's own element; tc programs of one CPU do not interrupt each other.
    PARSED.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}
