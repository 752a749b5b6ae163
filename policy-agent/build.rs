//! Generates the code that the agent is compiled with, and builds the kernel object that it embeds.

#[path = "build/ebpf.rs"]
mod ebpf;
#[path = "build/proto.rs"]
mod proto;

fn main() -> anyhow::Result<()> {
    proto::compile()?;
    ebpf::build()
}
