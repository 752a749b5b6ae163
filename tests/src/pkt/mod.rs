//! Packets made byte by byte, for everything that sockets cannot or will not send, and a way to send and see them.
//!
//! Built apart from the product's own parser, so that a mistake there cannot hide in here.

mod build;
mod checksum;
mod frame;
mod icmp;
mod link;
mod raw;
mod view;

pub use build::{Extension, Ip, Packet, Sctp, Tcp, flags, proto};
pub use checksum::{crc32c, internet};
pub use frame::{Frame, ethertype};
pub use icmp::{IcmpError, echo_identifier};
pub use link::LinkSocket;
pub use raw::RawSocket;
pub use view::View;
