//! The verdict of the tables at the socket of a control group, where a peer on the same host is known by its own socket.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{HostWord, ROW_OPEN, endpoint_config, host_flags};
use policy_common::reason::Reason;
use policy_common::side::{ON_THE_WAY_IN, Side};
use policy_common::verdict::Verdict;

use crate::judge::{peer6, side};
use crate::skb::Skb;
use crate::sockets::{INBOUND, NOBODY, peer_of};

/// First half of every address that stands for an endpoint, in the order of memory.
const IDENTITIES: u64 = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);

/// The verdict on one direction. The node's own processes have no privilege here, but with a cluster's pod: they are
/// peers like any other, denied if a rule denies their address or the endpoint that they belong to, else allowed if one
/// allows either.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn socket_side(context: *mut __sk_buff, who: u64, what: u32) -> u64 {
    // An argument that is never read would not be passed, and the verifier misses it.
    Skb::from_raw(context).len();
    let asked = Side::unpack(who, what);
    let own = asked.host & host_flags::OWN_NODE != 0;
    if asked.config & endpoint_config::NODE_PASSES != 0 && own && asked.row != ROW_OPEN {
        return Verdict::plain(Reason::OwnNode).0;
    }
    let (plain, what) = Side { host: 0, ..asked }.pack();
    let by_address = side(context, plain, what);
    let denied = |verdict: u64| Verdict(verdict).reason_number() == Reason::DeniedByRule as u8;
    if !own || asked.row == ROW_OPEN || denied(by_address) {
        return by_address;
    }
    let identity = peer_of(context, (asked.bits & ON_THE_WAY_IN != 0) as u32 * INBOUND);
    if identity == NOBODY {
        return by_address;
    }
    let class = HostWord::unpack(peer6(IDENTITIES, identity)).class;
    let (plain, what) = Side { host: 0, class, ..asked }.pack();
    let by_identity = side(context, plain, what);
    // A rule names the workload; else what is said of the address holds.
    if denied(by_identity) || Verdict(by_identity).passes() {
        return by_identity;
    }
    by_address
}
