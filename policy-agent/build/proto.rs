//! Compiles the protocol files without a `protoc` binary: Rust types and services, and the descriptors for the JSON form.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::Context as _;
use prost::Message as _;

const FILES: [&str; 4] =
    ["flow/flow.proto", "observer/observer.proto", "relay/relay.proto", "policyagent/v1/agent.proto"];

/// Writes the generated modules and `descriptors.bin` into `OUT_DIR`.
pub(crate) fn compile() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"]).context("compiling proto/")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())
        .context("writing the descriptor set")?;
    tonic_prost_build::configure()
        .build_transport(true)
        // A generated doc comment would be parsed as Rust code where the protocol's comment shows an example.
        .disable_comments(["."])
        .boxed(".observer.GetFlowsResponse.response_types.flow")
        .compile_fds(descriptors)
        .context("generating code from proto/")
}
