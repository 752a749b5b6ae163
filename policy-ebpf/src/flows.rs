//! Flows, fragments and local addresses of an endpoint.

use core::ptr::{read_volatile, write_volatile};

use policy_common::abi::{Flow, Fragment, FragmentKey, HostWord, LocalKey};
use policy_common::family::{Family, V4, V6};
use policy_common::flow::FlowMaps;
use policy_common::judge::{Judge, Sides};
use policy_common::side::Side;
use policy_common::verdict::Verdict;

use crate::access::Kernel;
use crate::judge::{classify4, classify6, side};
use crate::maps::{FLOWS4, FLOWS6, FRAGS, LOCALS, SCRATCH, Scratch};

impl Judge<V4> for Kernel {
    #[inline(always)]
    fn classify(&self, address: &u32) -> HostWord {
        HostWord::unpack(classify4(*address))
    }
}

impl Judge<V6> for Kernel {
    #[inline(always)]
    fn classify(&self, address: &[u32; 4]) -> HostWord {
        let [a, b, c, d] = address.map(|w| w as u64);
        HostWord::unpack(classify6(a | b << 32, c | d << 32))
    }
}

impl Sides for Kernel {
    #[inline(always)]
    fn side(&self, asked: Side) -> Verdict {
        let (who, what) = asked.pack();
        Verdict(side(self.skb.raw(), who, what))
    }
}

macro_rules! flows {
    ($family:ty, $flows:ident) => {
        impl FlowMaps<$family> for Kernel {
            type Handle = *mut u64;
            #[inline(always)]
            fn find(&self, key: &<$family as Family>::Key) -> Option<*mut u64> {
                $flows.get_value_ptr_mut(self.slot as u32, key).map(<*mut Flow>::cast)
            }
            #[inline(always)]
            fn word(&self, flow: *mut u64) -> u64 {
                read(flow, 0)
            }
            #[inline(always)]
            fn state(&self, flow: *mut u64) -> u64 {
                read(flow, 1)
            }
            #[inline(always)]
            fn origin(&self, flow: *mut u64) -> u64 {
                read(flow, 2)
            }
            #[inline(always)]
            fn judged(&self, flow: *mut u64) -> u64 {
                read(flow, 3)
            }
            #[inline(always)]
            fn touch(&self, flow: *mut u64, state: u64) {
                // SAFETY: the value has four words; the element stays mapped while the program runs.
                unsafe { write_volatile(flow.add(1), state) }
            }
            #[inline(always)]
            fn put(&self, key: &<$family as Family>::Key, flow: &Flow) {
                if let (Some(inner), Some(s)) = ($flows.get(self.slot as u32), scratch()) {
                    s.flow = *flow;
                    // A full LRU map makes room; a failure leaves the flow unrecorded, so its replies are judged.
                    let _ = inner.insert(key, &s.flow, 0);
                }
            }
            #[inline(always)]
            fn local(&self, key: &LocalKey) -> u32 {
                let Some(s) = scratch() else { return 0 };
                s.local = *key;
                // SAFETY: an aligned word of the element that was just found; its value never changes.
                LOCALS.get_ptr(&s.local).map_or(0, |p| unsafe { read_volatile(p) })
            }
            #[inline(always)]
            fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
                let s = scratch()?;
                s.fragment_key = *key;
                // SAFETY: copied at once; a recycled element gives the ports of another datagram at worst.
                FRAGS.get_ptr(&s.fragment_key).map(|p| unsafe { read_volatile(p) })
            }
            #[inline(always)]
            fn put_fragment(&self, key: &FragmentKey, value: &Fragment) {
                let Some(s) = scratch() else { return };
                (s.fragment_key, s.fragment) = (*key, *value);
                // On failure the later fragments are dropped and counted.
                let _ = FRAGS.insert(&s.fragment_key, &s.fragment, 0);
            }
        }
    };
}

/// This CPU's scratch value. Used from filling to the helper call only, so no two references live at a time.
#[inline(always)]
pub(crate) fn scratch<'a>() -> Option<&'a mut Scratch> {
    // SAFETY: this CPU's own element; tc programs of one CPU do not interrupt each other.
    SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// A word of a flow.
#[inline(always)]
fn read(flow: *mut u64, index: usize) -> u64 {
    // SAFETY: the value has four words; the element stays mapped while the program runs.
    unsafe { read_volatile(flow.add(index)) }
}

flows!(V4, FLOWS4);
flows!(V6, FLOWS6);
