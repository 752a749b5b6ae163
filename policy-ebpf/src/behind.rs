//! A translated packet, judged by the policy of the pod that sent it.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{ANY_SLOT, LocalKey};
use policy_common::exit::judge_exit;
use policy_common::family::{Family, V4, V6};
use policy_common::flow::FlowMaps;
use policy_common::reason::Reason;

use crate::access::Kernel;
use crate::found::{SLOW4, SLOW6};
use crate::front::parsed;
use crate::skb::Skb;

/// Beside a slot: the packet has lost its tag.
pub(crate) const UNTAGGED: u32 = 1 << 16;

/// Slot of the endpoint that has the source address of the parsed packet, 0 when none has. `found` = what [`crate::front::parse`] said.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn owner(context: *mut __sk_buff, found: u32) -> u64 {
    let skb = Skb::from_raw(context);
    // An argument that is never read would not be passed, and the verifier misses it.
    skb.len();
    let (Some(kernel), Some(parsed)) = (Kernel::new(skb, 0), parsed()) else { return 0 };
    let (family, address) = match found as u64 {
        SLOW4 => (4, V4::wide(&parsed.packet4.source)),
        SLOW6 => (6, V6::wide(&parsed.packet6.source)),
        _ => return 0,
    };
    FlowMaps::<V4>::local(&kernel, &LocalKey { slot: ANY_SLOT, family, address }) as u64
}

macro_rules! exit {
    ($name:ident, $family:ty, $packet:ident) => {
        /// Judges the parsed packet by the egress policy of `sender`: its slot, and perhaps [`UNTAGGED`]. Returns the
        /// verdict's word.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $name(context: *mut __sk_buff, word: u64, sender: u32) -> u64 {
            let skb = Skb::from_raw(context);
            skb.len();
            let kernel = Kernel::new(skb, sender as u16);
            let (Some(kernel), Some(parsed)) = (kernel, parsed()) else {
                return (Reason::Internal as u64) << 4;
            };
            judge_exit::<$family, Kernel>(&kernel, word, sender & UNTAGGED != 0, &mut parsed.$packet).0
        }
    };
}

exit!(exit4, V4, packet4);
exit!(exit6, V6, packet6);
