//! The ABI between kernel and user space, and the code that both sides run.
#![cfg_attr(not(test), no_std)]
