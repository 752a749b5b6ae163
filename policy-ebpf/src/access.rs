//! The endpoint and the path of a packet. Words that change while packets run are read by one volatile load.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_jiffies64;
use policy_common::abi::{InterfaceWord, TICK_SHIFT, endpoint_words, limits, tag};
use policy_common::flow::Host;

use crate::maps::{EP, IFACE, IFACE_X, META};
use crate::skb::Skb;

/// One packet at one endpoint; of `SOCKETS` at a control group and not at an interface.
pub(crate) struct Kernel<const SOCKETS: bool = false> {
    pub(crate) skb: Skb,
    pub(crate) slot: u16,
    /// 0, but the verifier does not know: what is added to it is any number from then on, so the paths that led there
    /// join instead of being walked one by one to the end.
    pub(crate) zero: u64,
    endpoint: *const u64,
}

impl Kernel {
    /// The endpoint of an interface word; `None` for a slot beyond the table.
    #[inline(always)]
    pub(crate) fn new(skb: Skb, slot: u16) -> Option<Self> {
        Self::at(skb, slot)
    }
}

impl<const SOCKETS: bool> Kernel<SOCKETS> {
    /// The endpoint of a slot; `None` for a slot beyond the table.
    #[inline(always)]
    pub(crate) fn at(skb: Skb, slot: u16) -> Option<Self> {
        let endpoint = EP.get_ptr(slot as u32)?.cast();
        let mut kernel = Self { skb, slot, endpoint, zero: 0 };
        kernel.zero = kernel.endpoint(endpoint_words::ZERO);
        Some(kernel)
    }
}

/// Reads a word of a live array.
#[inline(always)]
pub(crate) fn word(pointer: Option<*const u64>) -> u64 {
    match pointer {
        // SAFETY: the pointer comes from a look-up just now and is aligned; the word may change under us.
        Some(p) => unsafe { read_volatile(p) },
        None => 0,
    }
}

/// The word of the hook's interface, 0 = none.
#[inline(always)]
pub(crate) fn interface(ifindex: u32) -> InterfaceWord {
    let w = word(IFACE.get_ptr(ifindex & (limits::INTERFACES - 1)));
    InterfaceWord::unpack(if w as u32 == ifindex { w } else { word(IFACE_X.get_ptr(ifindex)) })
}

/// A word of `META`.
#[inline(always)]
pub(crate) fn meta(index: u32) -> u64 {
    // SAFETY: callers pass constants below the number of words; the verifier checks it.
    word(META.get_ptr(0).map(|p| unsafe { p.cast::<u64>().add(index as usize) }))
}

impl<const S: bool> Host for Kernel<S> {
    const SOCKETS: bool = S;
    #[inline(always)]
    fn slot(&self) -> u16 {
        self.slot
    }
    #[inline(always)]
    fn endpoint(&self, index: u32) -> u64 {
        // SAFETY: the map's value has eight words, and callers pass constants below that; the verifier checks it.
        unsafe { read_volatile(self.endpoint.add(index as usize)) }
    }
    #[inline(always)]
    fn meta(&self, index: u32) -> u64 {
        meta(index)
    }
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper has no arguments.
        (unsafe { bpf_jiffies64() } >> TICK_SHIFT) as u32
    }
    #[inline(always)]
    fn tag(&self) -> u16 {
        // A socket's packets may carry the tag of a pod that sent them; it says nothing about sockets.
        if S { 0 } else { self.skb.tc_index() as u16 }
    }
    #[inline(always)]
    fn tagged(&self, index: u32) -> u64 {
        let endpoint = EP.get_ptr(tag::slot(self.tag()) as u32);
        // SAFETY: callers pass constants below the number of words; the verifier checks it.
        word(endpoint.map(|p| unsafe { p.cast::<u64>().add(index as usize) }))
    }
    #[inline(always)]
    fn forget(&self, value: u64) -> u64 {
        value.wrapping_add(self.zero)
    }
}
