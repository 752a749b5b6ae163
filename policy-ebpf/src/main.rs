//! Entry points of the kernel programs.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(clippy::needless_pass_by_value, reason = "aya's macro hands the context over by value")
)]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod behind;
#[cfg(target_arch = "bpf")]
mod bucket;
#[cfg(target_arch = "bpf")]
mod bytes;
#[cfg(target_arch = "bpf")]
mod carry;
#[cfg(target_arch = "bpf")]
mod cgroup;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod exit;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod found;
#[cfg(target_arch = "bpf")]
mod front;
#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod judge;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod probe;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod socket_side;
#[cfg(target_arch = "bpf")]
mod sockets;

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` under clsact: go on with the next program. "OK" would end the chain and, under
/// clsact, erase `tc_index`.
pub(crate) const NEXT: i32 = -1;

/// `TCX_DROP` and `TC_ACT_SHOT`.
pub(crate) const SHOT: i32 = 2;

/// Towards the pod: tc egress of the host side of its interface.
#[cfg(target_arch = "bpf")]
#[aya_ebpf::macros::classifier]
#[inline(always)]
fn pod_in(context: aya_ebpf::programs::TcContext) -> i32 {
    hook::pod_in(skb::Skb::new(&context))
}

/// From the pod: tc ingress of the host side of its interface.
#[cfg(target_arch = "bpf")]
#[aya_ebpf::macros::classifier]
#[inline(always)]
fn pod_out(context: aya_ebpf::programs::TcContext) -> i32 {
    hook::pod_out(skb::Skb::new(&context))
}

/// Out of the node: tc egress of every device that is not a pod's.
#[cfg(target_arch = "bpf")]
#[aya_ebpf::macros::classifier]
#[inline(always)]
fn node_exit(context: aya_ebpf::programs::TcContext) -> i32 {
    exit::node_exit(skb::Skb::new(&context))
}

/// Towards a socket of a control group.
#[cfg(target_arch = "bpf")]
#[aya_ebpf::macros::cgroup_skb(ingress)]
#[inline(always)]
fn cgroup_in(context: aya_ebpf::programs::SkBuffContext) -> i32 {
    cgroup::cgroup_in(skb::Skb::of_socket(&context))
}

/// From a socket of a control group.
#[cfg(target_arch = "bpf")]
#[aya_ebpf::macros::cgroup_skb(egress)]
#[inline(always)]
fn cgroup_out(context: aya_ebpf::programs::SkBuffContext) -> i32 {
    cgroup::cgroup_out(skb::Skb::of_socket(&context))
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Helpers used here are open to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
