//! Flows, fragments and local addresses of an endpoint.

use core::ptr::{read_volatile, write_volatile};

use policy_common::abi::{Flow, Fragment, FragmentKey, HostWord, LocalKey};
use policy_common::family::{Family, V4, V6};
use policy_common::flow::FlowMaps;
use policy_common::judge::{Judge, Sides};
use policy_common::side::Side;
use policy_common::verdict::Verdict;

use crate::access::Kernel;
use crate::judge::{classify4, classify6, peer4, peer6, side};
use crate::maps::{FLOWS4, FLOWS6, FRAGS, LOCALS, SCRATCH, Scratch};
use crate::socket_side::socket_side;

impl<const S: bool> Judge<V4> for Kernel<S> {
    #[inline(always)]
    fn classify(&self, address: &u32) -> HostWord {
        HostWord::unpack(if S { peer4(*address) } else { classify4(*address) })
    }
}

impl<const S: bool> Judge<V6> for Kernel<S> {
    #[inline(always)]
    fn classify(&self, address: &[u32; 4]) -> HostWord {
        let [a, b, c, d] = address.map(|w| w as u64);
        let (high, low) = (a | b << 32, c | d << 32);
        HostWord::unpack(if S { peer6(high, low) } else { classify6(high, low) })
    }
}

impl<const S: bool> Sides for Kernel<S> {
    #[inline(always)]
    fn side(&self, asked: Side) -> Verdict {
        let (who, what) = asked.pack();
        let context = self.skb.raw();
        Verdict(if S { socket_side(context, who, what) } else { side(context, who, what) })
    }
}

macro_rules! flows {
    ($family:ty, $flows:ident) => {
        impl<const S: bool> FlowMaps<$family> for Kernel<S> {
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
                let Some(inner) = $flows.get(self.slot as u32) else { return };
                // A full LRU map makes room; a failure leaves the flow unrecorded, so its replies are judged.
                if S {
                    let _ = inner.insert(key, flow, 0);
                } else if let Some(s) = scratch() {
                    s.flow = *flow;
                    let _ = inner.insert(key, &s.flow, 0);
                }
            }
            #[inline(always)]
            fn local(&self, key: &LocalKey) -> u32 {
                let found = if S {
                    LOCALS.get_ptr(key)
                } else {
                    let Some(s) = scratch() else { return 0 };
                    s.local = *key;
                    LOCALS.get_ptr(&s.local)
                };
                // SAFETY: an aligned word of the element that was just found; its value never changes.
                found.map_or(0, |p| unsafe { read_volatile(p) })
            }
            #[inline(always)]
            fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
                // Datagrams are whole where a socket sends or gets them.
                if S {
                    return None;
                }
                let s = scratch()?;
                s.fragment_key = *key;
                // SAFETY: copied at once; a recycled element gives the ports of another datagram at worst.
                FRAGS.get_ptr(&s.fragment_key).map(|p| unsafe { read_volatile(p) })
            }
            #[inline(always)]
            fn put_fragment(&self, key: &FragmentKey, value: &Fragment) {
                if S {
                    return;
                }
                let Some(s) = scratch() else { return };
                (s.fragment_key, s.fragment) = (*key, *value);
                // On failure the later fragments are dropped and counted.
                let _ = FRAGS.insert(&s.fragment_key, &s.fragment, 0);
            }
        }
    };
}

/// This CPU's scratch value. Used from filling to the helper call only, so no two references live at a time. Not for
/// programs of sockets: those run with interrupts on, and others of this CPU come between.
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
