//! The local API: Hubble's observer service and our own, over gRPC on a unix socket.

pub mod view;
