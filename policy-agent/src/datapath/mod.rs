//! The kernel side of the agent: the object, its maps, its links.

mod object;

pub use object::OBJECT;
