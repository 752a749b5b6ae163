//! Packets made byte by byte, for everything that sockets cannot or will not send, and read again.
//!
//! Built apart from the product's own parser, so that a mistake there cannot hide in here. A crate of its own because
//! it is built with optimisation: the suites make packets by the million, on emulated machines too.

mod build;
mod checksum;
mod frame;
mod icmp;
mod view;

pub use build::{Extension, Ip, Packet, Sctp, Tcp, flags, proto};
pub use checksum::{crc32c, internet};
pub use frame::{Frame, ethertype};
pub use icmp::{IcmpError, echo_identifier};
pub use view::View;
