//! The agent: everything with I/O.
