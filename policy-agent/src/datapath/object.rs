//! The kernel object, embedded at build time.

/// ELF file with every program and map. Empty when the build was told to skip it (`AYA_BUILD_SKIP=1`).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/policy-bpf"));
