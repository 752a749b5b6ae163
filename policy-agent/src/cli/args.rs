//! Commands, flags and their environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const ABOUT: &str = "Enforces Kubernetes NetworkPolicy on this node, in the kernel.";

const AFTER: &str = "\
Exit codes:
  0  done            4  kernel lacks                 7  manifests cannot be read
  1  failed          5  bpffs missing                8  --once: not everything is enforced
  2  bad usage       6  another agent is running     9  no usable configuration of an API server
  3  no permission

Examples:
  policy-agent run                                   enforce what the API server of this pod's cluster holds
  policy-agent run --kubeconfig FILE                 the same, with the credentials of a file
  policy-agent run --manifests /etc/policy-agent     enforce the objects in a directory, and follow its changes
  policy-agent run --manifests ./m --once            apply once and end; the kernel goes on enforcing
  policy-agent cleanup                               stop enforcing and leave nothing behind
  policyctl monitor                                  see what is dropped, and why";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "policy-agent", version, about = ABOUT, after_help = AFTER, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce, until stopped. What is enforced stays in force when the agent ends, however it ends.
    #[command(after_help = AFTER)]
    Run(RunArgs),
    /// Remove every trace: hooks, maps, state. The agent must not be running.
    Cleanup(Paths),
    /// Chain the CNI plugin that lets pods start only once their policy is in force, or take it out.
    #[command(subcommand)]
    Cni(CniCommand),
    /// Print the version.
    Version,
}

/// Commands of `cni`.
#[derive(Clone, Debug, Subcommand)]
pub enum CniCommand {
    /// Copy the plugin to the node and chain it last in the network configuration that the runtime uses.
    Install(CniInstall),
    /// Take the plugin out of all configurations and remove it.
    Uninstall(CniDirs),
}

/// Where the node's container runtime looks.
#[derive(Clone, Debug, Args)]
pub struct CniDirs {
    /// Directory of CNI plugins.
    #[arg(long, value_name = "DIR", env = "POLICY_AGENT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Directory of CNI configurations.
    #[arg(long, value_name = "DIR", env = "POLICY_AGENT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

/// Flags of `cni install`.
#[derive(Clone, Debug, Args)]
pub struct CniInstall {
    /// Where the runtime looks.
    #[command(flatten)]
    pub dirs: CniDirs,
    /// The agent's socket, as the container runtime sees it.
    #[arg(
        long,
        value_name = "PATH",
        env = "POLICY_AGENT_CNI_SOCKET",
        default_value = "/run/policy-agent/agent.sock"
    )]
    pub socket: PathBuf,
    /// What happens to a pod whose policy is not in force in time, for example because no agent runs.
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        env = "POLICY_AGENT_CNI_ON_FAILURE",
        default_value = "fail"
    )]
    pub on_failure: CniFailure,
    /// Stay, and chain the plugin again when another program writes the configuration anew.
    #[arg(long, env = "POLICY_AGENT_CNI_FOLLOW")]
    pub follow: bool,
}

/// Values of `--on-failure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CniFailure {
    /// It is not started; the kubelet tries again.
    Fail,
    /// It starts without the guarantee.
    Allow,
}

/// Where things are.
#[derive(Clone, Debug, Args)]
pub struct Paths {
    /// Directory for pinned maps and links, on a BPF file system.
    #[arg(long, value_name = "DIR", env = "POLICY_AGENT_BPFFS", default_value = crate::datapath::DEFAULT_ROOT)]
    pub bpffs: PathBuf,
    /// Directory for state that outlives the agent.
    #[arg(
        long,
        value_name = "DIR",
        env = "POLICY_AGENT_STATE_DIR",
        default_value = "/run/policy-agent/state"
    )]
    pub state_dir: PathBuf,
    /// Unix socket on which policyctl and Hubble's CLI find the agent.
    #[arg(
        long,
        value_name = "PATH",
        env = "POLICY_AGENT_SOCKET",
        default_value = "/run/policy-agent/agent.sock"
    )]
    pub socket: PathBuf,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directory of YAML and JSON objects (Namespace, Pod, Node, Service, EndpointSlice, NetworkPolicy) in place of a cluster's.
    /// Changes are followed.
    #[arg(
        long,
        value_name = "DIR",
        env = "POLICY_AGENT_MANIFESTS",
        conflicts_with_all = ["kubeconfig", "context"]
    )]
    pub manifests: Option<PathBuf>,
    /// Which API server, and as whom. Default: those of the pod this runs in, else KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE", env = "POLICY_AGENT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: its current one.
    #[arg(long, value_name = "NAME", env = "POLICY_AGENT_CONTEXT")]
    pub context: Option<String>,
    /// Name of this node: pods whose spec.nodeName equals it are local. Default: the host's name.
    #[arg(long, value_name = "NAME", env = "POLICY_AGENT_NODE_NAME")]
    pub node_name: Option<String>,
    /// Where things are.
    #[command(flatten)]
    pub paths: Paths,
    /// Apply the objects once, wait until they are enforced, and end.
    #[arg(long, env = "POLICY_AGENT_ONCE")]
    pub once: bool,
    /// How programs are attached to interfaces.
    #[arg(long, value_enum, value_name = "HOW", env = "POLICY_AGENT_ATTACH", default_value = "auto")]
    pub attach: AttachArg,
    /// What happens to running flows that a changed policy no longer allows.
    #[arg(long, value_enum, value_name = "WHAT", env = "POLICY_AGENT_EXISTING_FLOWS", default_value = "cut")]
    pub existing_flows: ExistingFlows,
    /// Packets with the node's own address that the node only forwarded (masquerading hides who sent them).
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        env = "POLICY_AGENT_MASQUERADED_INGRESS",
        default_value = "judge"
    )]
    pub masqueraded_ingress: MasqueradedIngress,
    /// What a new interface may do while a pod that policy isolates waits for its address, so that it may be that
    /// pod's.
    #[arg(long, value_enum, value_name = "WHAT", env = "POLICY_AGENT_UNKNOWN_PODS", default_value = "hold")]
    pub unknown_pods: UnknownPods,
    /// Where what an isolated pod sends to a Service is judged.
    #[arg(long, value_enum, value_name = "HOW", env = "POLICY_AGENT_SERVICES", default_value = "tag")]
    pub services: ServicesArg,
    /// Where the host's cgroup v2 hierarchy is mounted, for workloads that are control groups. Default: as
    /// /proc/self/mountinfo says.
    #[arg(long, value_name = "DIR", env = "POLICY_AGENT_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// What becomes of pods without an interface that can be hooked (macvlan, devices of the host): they are reported as
    /// not enforced, or judged at the sockets of their control groups.
    #[arg(long, value_enum, value_name = "HOW", env = "POLICY_AGENT_UNHOOKABLE", default_value = "report")]
    pub unhookable: Unhookable,
    /// What policies mean to this node's pods that share its network: nothing, or their sockets are judged by their
    /// control groups.
    #[arg(long, value_enum, value_name = "HOW", env = "POLICY_AGENT_HOST_NETWORK", default_value = "ignore")]
    pub host_network: HostNetwork,
    /// What the sockets of control groups say to each other between loopback addresses.
    #[arg(long, value_enum, value_name = "WHAT", env = "POLICY_AGENT_LOOPBACK", default_value = "exempt")]
    pub loopback: Loopback,
    /// Make an event of every new flow that is allowed, not only of drops.
    #[arg(long, env = "POLICY_AGENT_VERDICTS")]
    pub verdicts: bool,
    /// How often everything in the kernel is read back, compared, and put right if somebody else changed it: a time, or
    /// off.
    #[arg(long, value_name = "TIME|off", env = "POLICY_AGENT_SELF_CHECK", default_value = "60s", value_parser = every)]
    pub self_check: Every,
    /// Serve /metrics, /healthz and /readyz over HTTP here.
    #[arg(long, value_name = "ADDRESS", env = "POLICY_AGENT_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
    /// What to log: a level, or module=level,...
    #[arg(long, value_name = "FILTER", env = "POLICY_AGENT_LOG", default_value = "info")]
    pub log: String,
    /// Form of log lines.
    #[arg(long, value_enum, value_name = "FORM", env = "POLICY_AGENT_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Values of `--attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachArg {
    /// TCX where the kernel has it (Linux 6.6), else clsact.
    Auto,
    /// TCX only.
    Tcx,
    /// clsact, also where the kernel has TCX.
    Clsact,
}

/// Values of `--existing-flows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExistingFlows {
    /// They are cut with their next packet.
    Cut,
    /// They go on until they end.
    Keep,
}

/// Values of `--masqueraded-ingress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MasqueradedIngress {
    /// Judged: only ipBlocks with the node's address match.
    Judge,
    /// Allowed, like traffic of the node itself.
    Allow,
}

/// Values of `--unknown-pods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownPods {
    /// Nothing passes until its pod is known, 30 seconds at most.
    Hold,
    /// Everything passes.
    Pass,
}

/// Values of `--services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServicesArg {
    /// Behind the node's translation, by the backend that it chose.
    Tag,
    /// Before it, by all backends that it may choose.
    Backends,
    /// By the tag, but by the backends while another program takes tags on this node.
    Auto,
}

impl ServicesArg {
    /// Name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Backends => "backends",
            Self::Auto => "auto",
        }
    }
}

/// Values of `--loopback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loopback {
    /// It passes.
    Exempt,
    /// It is judged like everything else.
    Judge,
}

/// Values of `--unhookable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unhookable {
    /// They are not enforced, and reported.
    Report,
    /// Their sockets are judged.
    Cgroup,
}

/// Values of `--host-network`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostNetwork {
    /// They are the node, to which no policy applies.
    Ignore,
    /// Their sockets are judged.
    Cgroup,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Value of `--self-check`: `None` = never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every(pub Option<Duration>);

fn every(text: &str) -> Result<Every, String> {
    if text == "off" {
        return Ok(Every(None));
    }
    let parsed = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    let time = Duration::try_from(parsed).map_err(|_| "a time cannot be negative".to_owned())?;
    if time < Duration::from_millis(100) { Err("less than 100ms".to_owned()) } else { Ok(Every(Some(time))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn objects_come_from_one_place() {
        let run = |more: &[&str]| {
            Cli::try_parse_from(["policy-agent", "run"].iter().chain(more)).map_err(|e| e.exit_code())
        };
        assert!(run(&["--manifests", "m"]).is_ok() && run(&["--kubeconfig", "k", "--context", "c"]).is_ok());
        assert!(run(&[]).is_ok(), "in a pod");
        assert_eq!(run(&["--manifests", "m", "--kubeconfig", "k"]).err(), Some(2));
        assert_eq!(run(&["--manifests", "m", "--context", "c"]).err(), Some(2));
    }

    #[test]
    fn a_self_check_has_a_sensible_interval_or_none() {
        assert_eq!(every("off"), Ok(Every(None)));
        assert_eq!(every("90s"), Ok(Every(Some(Duration::from_secs(90)))));
        for bad in ["", "0s", "-5s", "often", "5"] {
            assert!(every(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_sound_and_every_flag_has_its_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        let run = command.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|a| a.get_long().is_some_and(|l| l != "help")) {
            let wanted = format!("POLICY_AGENT_{}", arg.get_long().unwrap().to_uppercase().replace('-', "_"));
            assert_eq!(
                arg.get_env().and_then(|e| e.to_str()),
                Some(&*wanted),
                "--{}",
                arg.get_long().unwrap()
            );
        }
    }
}
