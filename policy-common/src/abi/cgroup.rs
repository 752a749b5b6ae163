//! Control groups whose sockets are an endpoint's.

/// Levels of the hierarchy that are searched for an endpoint, from a socket's own group upwards; the root is level 0
/// and never one.
pub const CGROUP_LEVELS: u32 = 16;

/// Value of `CGROUPS`, by the group's id (of version 2; never used again by the kernel).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cgroup {
    /// Endpoint slot.
    pub slot: u32,
    /// Level below the root.
    pub level: u32,
    /// The address that stands for the endpoint in the tables, network order: it is on no wire. Sockets of one host
    /// share addresses, so their peers on the host are told apart by it.
    pub identity: [u32; 4],
}
