//! What the engine answers, seen from outside: objects in, verdicts and words out.

mod addresses;
mod cases;
mod explain;
mod never_wider;
mod support;
