//! Generates the code that the agent is compiled with.

#[path = "build/proto.rs"]
mod proto;

fn main() -> anyhow::Result<()> {
    proto::compile()
}
