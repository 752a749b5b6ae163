//! Messages and services generated from `proto/`, and their descriptors.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal $(, $lint:path)*) => {
        $(#[$doc])*
        pub mod $name {
            #![expect(missing_docs, $($lint,)* reason = "generated; the protocol files hold the documentation")]
            tonic::include_proto!($package);
        }
    };
}

generated!(
    /// Hubble's flow messages (`proto/flow/flow.proto`).
    flow, "flow");
generated!(
    /// Hubble's observer service (`proto/observer/observer.proto`).
    observer, "observer", clippy::allow_attributes, clippy::allow_attributes_without_reason);
generated!(
    /// Node states of Hubble's observer messages (`proto/relay/relay.proto`).
    relay, "relay");
generated!(
    /// Our own service (`proto/policyagent/v1/agent.proto`).
    agent, "policyagent.v1", clippy::allow_attributes, clippy::allow_attributes_without_reason);

/// Descriptors of every message here and of those that they import.
///
/// # Panics
/// Never in a build that has run once: the bytes are made by the build script from the files compiled above.
pub static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_slice())
        .unwrap_or_else(|error| unreachable!("the build script wrote valid descriptors: {error}"))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn struct_is_known_to_the_json_form() {
        assert!(DESCRIPTORS.get_message_by_name("google.protobuf.Struct").is_some());
        assert!(DESCRIPTORS.get_message_by_name("observer.GetFlowsResponse").is_some());
    }
}
