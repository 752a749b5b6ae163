//! Settings of the running agent, out of its flags.

use std::collections::BTreeMap;
use std::time::Duration;

use policy_common::abi::{endpoint_config, meta_flags};

use crate::cli::{AttachArg, ExistingFlows, Failure, MasqueradedIngress, RunArgs, ServicesArg};
use crate::datapath::{Attach, Config};

/// Connections that were running before a pod's first hook are taken up for so long.
pub(super) const PICKUP: Duration = Duration::from_secs(60);

/// Name of this node.
pub(super) fn node_name(args: &RunArgs) -> Result<String, Failure> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_err(|e| {
                Failure::text(crate::cli::Exit::Usage, format!("the host's name: {e}"))
                    .hint("give --node-name")
            })?
            .trim()
            .to_lowercase(),
    };
    if name.is_empty() {
        return Err(Failure::text(crate::cli::Exit::Usage, "the node has no name").hint("give --node-name"));
    }
    Ok(name)
}

/// Settings of the datapath.
pub(super) fn datapath(args: &RunArgs) -> Config {
    Config {
        bpffs: args.paths.bpffs.clone(),
        attach: match args.attach {
            AttachArg::Auto => Attach::Auto,
            AttachArg::Tcx => Attach::Tcx,
            AttachArg::Clsact => Attach::Clsact,
        },
        constants: BTreeMap::new(),
    }
}

/// Switches for all endpoints. `old`: those of an earlier agent, whose way to judge Services stays until it is known that
/// another one is wanted.
pub(super) fn flags(args: &RunArgs, old: u64) -> u64 {
    let verdicts = if args.verdicts { meta_flags::VERDICTS } else { 0 };
    let services = match args.services {
        ServicesArg::Tag => 0,
        ServicesArg::Backends | ServicesArg::Auto => old & meta_flags::BACKENDS,
    };
    verdicts | services
}

/// Configuration bits of every endpoint.
pub(super) fn endpoint_bits(args: &RunArgs) -> u16 {
    // A closed row means that the policy is not known or could not be installed: packets are told so.
    let mut bits = endpoint_config::ANTI_SPOOF | endpoint_config::PENDING;
    match args.existing_flows {
        ExistingFlows::Cut => {}
        ExistingFlows::Keep => bits |= endpoint_config::KEEP,
    }
    match args.masqueraded_ingress {
        MasqueradedIngress::Judge => {}
        MasqueradedIngress::Allow => bits |= endpoint_config::MASQUERADED_ALLOW,
    }
    bits
}
