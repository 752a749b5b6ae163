//! The command line: commands, flags, environment and help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use policy_engine::model::{ObjectKey, Protocol};

use crate::ctl::monitor::request::Since;

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/policy-agent/agent.sock";

const ABOUT: &str = "Asks a policy-agent what it enforces and shows, live, what it drops and why";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: the agent cannot be reached, a file cannot be read, an answer is missing
  2  bad command line; wait: not everything is enforced in time
  3  verify: the kernel held something else than the agent had written";

// One paragraph a line: the text is wrapped to the terminal's width.
const MONITOR_HELP: &str = "\
Without --last and --since the stream begins now and goes on until interrupted. With one of them the past is \
shown, and the command ends unless --follow is given. While following, an agent that restarts is waited for.

Values of one flag are alternatives; flags are combined. --pod, --namespace, --label, --ip and --port each match \
either end of a packet on their own.

--type verdict shows allowed new flows only if the agent runs with --verdicts.

Examples:
  policyctl monitor                                  every drop, as it happens
  policyctl monitor --pod shop/db --last 20          the last 20 drops from or to shop/db*
  policyctl monitor --type drop,verdict --port 443   decisions too, for port 443
  policyctl monitor --since 5m -f -o json            Hubble's JSON, one flow a line";

const WAIT_HELP: &str = "\
Exit code 0: the kernel enforces everything that the sources held when the command was called;
             with --pod, the policy of that pod.
Exit code 2: it does not; what is missing is on standard error.";

const VERIFY_HELP: &str = "\
Exit code 0: the kernel holds what the agent wrote, our programs are first at every hook, and packets are judged as \
the evaluator says.
Exit code 3: something was different. It has been put right, unless the answer says otherwise: run it again.
Exit code 1: something could not be checked, or not be put right.";

const MATRIX_HELP: &str = "\
Needs no agent and no privileges: the manifests are judged by the same evaluator that explains drops.

Example:
  policyctl matrix --manifests ./manifests --port 80/TCP --port 53/UDP";

const EXPLAIN_HELP: &str = "\
Needs no agent and no privileges: the manifests are judged by the same evaluator that explains drops.

Examples:
  policyctl explain --manifests ./manifests --from shop/client --to shop/db --port 5432/TCP
  policyctl explain --manifests ./manifests --from shop/client --to 192.0.2.7 --port 443
  policyctl explain --manifests ./manifests --from shop/client --to svc/shop/db --port 80";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "policyctl", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// Unix socket of the agent
    #[arg(long, global = true, value_name = "PATH", env = "POLICY_AGENT_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stream drops and verdicts, each with its reason and the rule that came nearest
    #[command(after_help = MONITOR_HELP)]
    Monitor(MonitorArgs),
    /// List what the agent holds
    #[command(subcommand)]
    Get(Get),
    /// Show how the agent is doing: sources, problems, endpoints, tables, losses
    Status(AgentOutput),
    /// Wait until the kernel enforces what the sources hold
    #[command(after_help = WAIT_HELP)]
    Wait(WaitArgs),
    /// Check everything in the kernel now, and put right what somebody else changed
    #[command(after_help = VERIFY_HELP)]
    Verify(AgentOutput),
    /// Judge every pair of pods of a directory of manifests
    #[command(after_help = MATRIX_HELP)]
    Matrix(MatrixArgs),
    /// Tell why a flow between two ends is allowed or denied by a directory of manifests
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
}

/// What can be listed.
#[derive(Debug, Subcommand)]
pub enum Get {
    /// Policies, and how many pods each selects
    Policies(AgentOutput),
    /// Local pods, and how each is enforced
    Endpoints(AgentOutput),
}

/// Form of an answer of the agent.
#[derive(Debug, Args)]
pub struct AgentOutput {
    /// Form of the answer
    #[arg(long, short, value_enum, value_name = "FORM", default_value = "table")]
    pub output: TableForm,
}

/// Flags of `monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Show only these events; default: drop
    #[arg(long = "type", value_enum, value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<EventType>,
    /// Pod at either end: namespace/name, or name in any namespace; the beginning of the name is enough
    #[arg(long, value_name = "[NS/]NAME", value_delimiter = ',')]
    pub pod: Vec<String>,
    /// Namespace of either end
    #[arg(long, short, value_name = "NS", value_delimiter = ',')]
    pub namespace: Vec<String>,
    /// Label selector that the labels of either end match, for example app=web
    #[arg(long, short, value_name = "SELECTOR")]
    pub label: Vec<String>,
    /// Address or CIDR of either end
    #[arg(long, value_name = "IP|CIDR", value_delimiter = ',')]
    pub ip: Vec<String>,
    /// Port of either end
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub port: Vec<u16>,
    /// Protocol: tcp, udp, sctp, icmp, icmpv4, icmpv6
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub protocol: Vec<String>,
    /// Begin at a time: how long ago (5m, 1h30m) or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = Since::parse)]
    pub since: Option<Since>,
    /// Begin with the last N events that match
    #[arg(long, value_name = "N", conflicts_with = "since")]
    pub last: Option<u64>,
    /// Go on with new events after --last or --since
    #[arg(long, short)]
    pub follow: bool,
    /// Form of the events
    #[arg(long, short, value_enum, value_name = "FORM", default_value = "line")]
    pub output: EventForm,
}

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// How long to wait, also for the agent to appear: 10s, 500ms, 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Wait for this pod of the node alone
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod)]
    pub pod: Option<ObjectKey>,
    /// Form of the answer
    #[arg(long, short, value_enum, value_name = "FORM", default_value = "text")]
    pub output: TextForm,
}

/// Flags of `matrix`.
#[derive(Debug, Args)]
pub struct MatrixArgs {
    /// Directory (or file) of YAML and JSON objects
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Port of the destination, with its protocol (TCP if left out); may be repeated
    #[arg(long, value_name = "PORT[/PROTOCOL]", required = true, value_delimiter = ',', value_parser = port)]
    pub port: Vec<(Protocol, u16)>,
    /// Form of the matrix
    #[arg(long, short, value_enum, value_name = "FORM", default_value = "table")]
    pub output: TableForm,
}

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Directory (or file) of YAML and JSON objects
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Who opens the flow: a pod as namespace/name, or an address
    #[arg(long, value_name = "NS/POD|ADDRESS")]
    pub from: String,
    /// Towards whom: a pod as namespace/name, an address, or a Service as svc/namespace/name
    #[arg(long, value_name = "NS/POD|ADDRESS|svc/NS/NAME")]
    pub to: String,
    /// Port of the destination, with its protocol (TCP if left out)
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port)]
    pub port: (Protocol, u16),
    /// Form of the answer
    #[arg(long, short, value_enum, value_name = "FORM", default_value = "text")]
    pub output: TextForm,
}

/// Values of `--type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventType {
    /// Packets that were dropped, for whatever reason
    Drop,
    /// Decisions of policy on new flows
    Verdict,
}

/// Forms of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventForm {
    /// One line an event
    Line,
    /// One longer line: date, addresses, interface, identities
    Wide,
    /// One field a line
    Dict,
    /// Hubble's JSON, one object a line
    Json,
}

/// Forms of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableForm {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Forms of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextForm {
    /// For people
    Text,
    /// For programs
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    Duration::try_from(parsed).map_err(|_| "a time cannot be negative".to_owned())
}

fn pod(text: &str) -> Result<ObjectKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectKey::new(namespace, name))
        }
        Some(_) | None => Err("a pod is named NAMESPACE/NAME".to_owned()),
    }
}

fn port(text: &str) -> Result<(Protocol, u16), String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let number = number.parse::<u16>().map_err(|_| format!("{number:?} is no port number"))?;
    let known = Protocol::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(protocol));
    let protocol = known.ok_or_else(|| format!("{protocol:?} is none of TCP, UDP, SCTP"))?;
    if number == 0 { Err("port 0 does not exist".to_owned()) } else { Ok((protocol, number)) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn pods() {
        assert_eq!(pod("shop/a"), Ok(ObjectKey::new("shop", "a")));
        for bad in ["a", "/a", "shop/", "a/b/c"] {
            assert!(pod(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_and_times() {
        assert_eq!(port("80"), Ok((Protocol::Tcp, 80)));
        assert_eq!(port("53/udp"), Ok((Protocol::Udp, 53)));
        for bad in ["", "http", "0", "65536", "80/ICMP", "80/", "/TCP"] {
            assert!(port(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1s").is_err() && duration("10").is_err());
    }
}
