//! The packet's metadata. The fields of `__sk_buff` can only be reached through this type.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::{SkBuffContext, TcContext};

/// The context of a tc program. Each field is read by one volatile load: LLVM merges plain loads of neighbours into
/// one of eight bytes, and the verifier refuses it ("invalid bpf_context access").
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident: $field:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: the kernel passes a valid context; the field exists since 4.x.
            unsafe { read_volatile(&raw const (*self.raw).$field) }
        }
    };
}

impl Skb {
    /// The context of this run.
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self { raw: context.skb.skb }
    }
    /// The context of this run at a socket.
    #[inline(always)]
    pub(crate) fn of_socket(context: &SkBuffContext) -> Self {
        Self { raw: context.skb.skb }
    }
    /// The context as a number of its own functions' arguments.
    #[inline(always)]
    pub(crate) fn from_raw(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }
    /// The context, for a call.
    #[inline(always)]
    pub(crate) fn raw(self) -> *mut __sk_buff {
        self.raw
    }
    field!(
        /// Length with headers and all fragments, in bytes.
        len: len
    );
    field!(
        /// Interface of the hook.
        ifindex: ifindex
    );
    field!(
        /// Interface on which the packet came in, 0 when it was made here.
        ingress_ifindex: ingress_ifindex
    );
    field!(
        /// Whether a VLAN tag stands in the metadata instead of the bytes.
        vlan_present: vlan_present
    );
    field!(
        /// Ethertype, network order, as the sender's device set it: a hint.
        protocol: protocol
    );
    field!(
        /// Start of the linear part.
        data: data
    );
    field!(
        /// End of the linear part.
        data_end: data_end
    );
    field!(
        /// Tag that survives from the pod's hook to the last device.
        tc_index: tc_index
    );
    field!(
        /// Mark: TEST_RUN sets it, `retag` reads it.
        mark: mark
    );

    /// Sets the tag.
    #[inline(always)]
    pub(crate) fn set_tc_index(self, value: u32) {
        // SAFETY: the kernel passes a valid context, and tc programs may write this field.
        unsafe { write_volatile(&raw mut (*self.raw).tc_index, value) }
    }
    /// A word of the packet's own control block: programs of sockets find it zeroed and leave no trace in it.
    #[inline(always)]
    pub(crate) fn note<const AT: usize>(self) -> u32 {
        // SAFETY: the kernel passes a valid context; the block has five words, checked when this is compiled.
        unsafe { read_volatile(&raw const (*self.raw).cb[AT]) }
    }
    /// Writes a word of it.
    #[inline(always)]
    pub(crate) fn set_note<const AT: usize>(self, value: u32) {
        // SAFETY: as above; programs of sockets may write the block.
        unsafe { write_volatile(&raw mut (*self.raw).cb[AT], value) }
    }
    /// Whether a local socket owns the packet.
    #[inline(always)]
    pub(crate) fn has_socket(self) -> bool {
        // SAFETY: the kernel passes a valid context; the pointer is only compared with null.
        let socket = unsafe { read_volatile(&raw const (*self.raw).__bindgen_anon_2.sk) };
        !socket.is_null()
    }
    /// Makes up to `length` bytes linear if there are more than now. False when there are not.
    #[inline(always)]
    pub(crate) fn pull_more(self, length: u32) -> bool {
        let linear = self.data_end().wrapping_sub(self.data());
        let all = self.len();
        linear < all && self.pull(if all < length { all } else { length })
    }
    /// Makes the first `length` bytes linear. `data` and `data_end` change. False when it failed.
    #[inline(always)]
    fn pull(self, length: u32) -> bool {
        // SAFETY: the kernel passes a valid context; no packet pointer is used across this call.
        unsafe { aya_ebpf::helpers::bpf_skb_pull_data(self.raw, length) == 0 }
    }
}
