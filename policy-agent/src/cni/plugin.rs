//! The plugin's commands. Results and errors go to standard output as JSON, as the specification says.

use std::env;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::config::{Config, OnFailure, VERSIONS};
use super::invocation::{Command, PodName};
use crate::ctl::client;
use crate::proto::agent::{ClaimRequest, StatusRequest, WaitResponse};

/// Error codes: below 100 they are the specification's.
mod code {
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIG: u32 = 7;
    pub(super) const NOT_AVAILABLE: u32 = 50;
    /// The policy was not in force in time.
    pub(super) const NOT_ENFORCED: u32 = 100;
}

/// How long STATUS waits for an answer: a node that is busy for a moment is not one without a network.
const ANSWER: Duration = Duration::from_secs(5);
/// Beyond the time that the agent was given: what it says of the reason is worth more than that there is none.
const GRACE: Duration = Duration::from_secs(5);
/// Pause between two tries to reach the agent.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a command fails.
#[derive(Debug)]
struct Refusal {
    code: u32,
    message: String,
    details: String,
}

impl Refusal {
    fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }
}

/// Runs the command that the environment names.
#[must_use]
pub fn main() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    let answer = match read {
        Ok(_) => run(&text, |name| env::var(name).unwrap_or_default()),
        Err(error) => {
            Err((String::new(), Refusal::new(code::IO, "standard input cannot be read", error.to_string())))
        }
    };
    let (value, exit) = match answer {
        Ok(value) => (value, ExitCode::SUCCESS),
        Err((version, Refusal { code, message, details })) => {
            let version = if version.is_empty() { VERSIONS[VERSIONS.len() - 1] } else { &version };
            (
                Some(json!({"cniVersion": version, "code": code, "msg": message, "details": details})),
                ExitCode::FAILURE,
            )
        }
    };
    match value.map(|value| writeln!(std::io::stdout(), "{value}")) {
        Some(Err(_)) => ExitCode::FAILURE,
        Some(Ok(())) | None => exit,
    }
}

/// Runs a command; the version in an error is that of the configuration, once it is known.
fn run(input: &str, variable: impl Fn(&str) -> String) -> Result<Option<Value>, (String, Refusal)> {
    let name = variable("CNI_COMMAND");
    let Some(command) = Command::of(&name) else {
        let message = format!("CNI_COMMAND is \"{name}\"");
        let details = "this program is run by a container runtime, as a plugin of a CNI configuration";
        return Err((String::new(), Refusal::new(code::ENVIRONMENT, message, details)));
    };
    if command == Command::Version {
        let version = VERSIONS[VERSIONS.len() - 1];
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
    }
    let config = Config::read(input).map_err(|error| {
        let text = "the configuration on standard input cannot be read";
        (String::new(), Refusal::new(code::DECODE, text, error.to_string()))
    })?;
    let pod = PodName::of(&variable("CNI_ARGS"));
    let result = match (command, pod) {
        (Command::Add, pod) => add(&config, pod.as_ref()).map(Some),
        (Command::Check, Some(pod)) => check(&config, &pod).map(|()| None),
        (Command::Status, _) => status(&config).map(|()| None),
        // A pod's endpoint goes with its interface: there is nothing of ours to remove.
        (Command::Check, None) | (Command::Del | Command::Gc | Command::Version, _) => Ok(None),
    };
    result.map_err(|refusal| (config.cni_version.clone(), refusal))
}

fn add(config: &Config, pod: Option<&PodName>) -> Result<Value, Refusal> {
    let Some(result) = config.prev_result.clone() else {
        let details = "it stands behind the plugin that makes the interface, in the same list of plugins";
        return Err(Refusal::new(code::CONFIG, "no prevResult: the plugin only works chained", details));
    };
    // Another caller than a Kubernetes runtime: there is no pod for which a policy could be known.
    let Some(pod) = pod else { return Ok(result) };
    match enforced(config, pod, config.timeout()) {
        Ok(()) => Ok(result),
        Err(refusal) if config.on_failure == OnFailure::Allow => {
            eprintln!(
                "policy-agent-cni: pod {}/{} starts without the guarantee: {}: {}",
                pod.namespace, pod.name, refusal.message, refusal.details
            );
            Ok(result)
        }
        Err(refusal) => Err(refusal),
    }
}

fn check(config: &Config, pod: &PodName) -> Result<(), Refusal> {
    enforced(config, pod, config.timeout())
}

fn status(config: &Config) -> Result<(), Refusal> {
    if config.on_failure == OnFailure::Allow {
        return Ok(());
    }
    let asked = async {
        let mut client = client::agent(&config.socket).await.map_err(|failure| failure.message)?;
        client.status(StatusRequest {}).await.map(drop).map_err(|status| status.message().to_owned())
    };
    let text = "pods cannot be started: the agent does not answer";
    let late = |_| Err("no answer in time".to_owned());
    block_on(async { tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(late) })
        .and_then(|answer| answer)
        .map_err(|details| Refusal::new(code::NOT_AVAILABLE, text, details))
}

/// Returns once the kernel enforces the pod's policy.
fn enforced(config: &Config, pod: &PodName, timeout: Duration) -> Result<(), Refusal> {
    let addresses = config
        .addresses()
        .map_err(|error| Refusal::new(code::DECODE, "prevResult cannot be read", error.to_string()))?;
    if addresses.is_empty() {
        return Err(Refusal::new(
            code::CONFIG,
            "prevResult holds no address of the pod",
            "the plugins before this one must give it one",
        ));
    }
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let text = format!("the policy of pod {}/{} is not in force after {timeout:?}", pod.namespace, pod.name);
    let answer = block_on(claim(config, pod, &addresses, timeout))
        .and_then(|answer| answer)
        .map_err(|details| Refusal::new(code::NOT_ENFORCED, &text, details))?;
    if answer.done {
        return Ok(());
    }
    Err(Refusal::new(code::NOT_ENFORCED, text, answer.missing.join("; ")))
}

/// Asks until the deadline; an agent that is not there yet, or restarts, is tried again.
async fn claim(
    config: &Config,
    pod: &PodName,
    addresses: &[String],
    timeout: Duration,
) -> Result<WaitResponse, String> {
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let request = ClaimRequest {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            addresses: addresses.to_vec(),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let asked = async {
            let mut client = client::agent(&config.socket).await.map_err(|failure| failure.message)?;
            client.claim(request).await.map_err(|status| status.message().to_owned())
        };
        let why = match tokio::time::timeout_at(deadline + GRACE, asked).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(why)) => why,
            Err(_) => "the agent does not answer".to_owned(),
        };
        if tokio::time::Instant::now() + PAUSE >= deadline {
            return Err(why);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| error.to_string())?.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(command: &'static str, arguments: &'static str) -> impl Fn(&str) -> String {
        move |name| match name {
            "CNI_COMMAND" => command.to_owned(),
            "CNI_ARGS" => arguments.to_owned(),
            _ => String::new(),
        }
    }

    const POD: &str = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a";

    fn config(more: &str) -> String {
        format!(
            r#"{{"cniVersion": "1.1.0", "name": "n", "type": "policy-agent-cni", "timeoutSeconds": 0,
                "socket": "/nonexistent/agent.sock"{more}}}"#
        )
    }

    const RESULT: &str = r#", "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/24"}]}"#;

    #[test]
    fn versions_are_told_without_a_configuration() {
        let told = run("", with("VERSION", "")).unwrap().unwrap();
        assert_eq!(told["supportedVersions"][4], "1.1.0");
    }

    #[test]
    fn a_pod_whose_policy_nobody_can_confirm_does_not_start() {
        let (version, refusal) = run(&config(RESULT), with("ADD", POD)).unwrap_err();
        assert_eq!((&*version, refusal.code), ("1.1.0", code::NOT_ENFORCED));
        assert!(
            refusal.message.contains("shop/a") && refusal.details.contains("/nonexistent"),
            "{refusal:?}"
        );
        let allowed = config(&format!(r#", "onFailure": "allow"{RESULT}"#));
        let result = run(&allowed, with("ADD", POD)).unwrap().unwrap();
        assert_eq!(result["ips"][0]["address"], "10.0.0.1/24");
        assert_eq!(run(&config(""), with("STATUS", "")).unwrap_err().1.code, code::NOT_AVAILABLE);
    }

    #[test]
    fn wrong_use_is_named() {
        let code = |input: &str, command, arguments| run(input, with(command, arguments)).unwrap_err().1.code;
        assert_eq!(code("", "", ""), code::ENVIRONMENT);
        assert_eq!(code("{", "ADD", POD), code::DECODE);
        assert_eq!(code(&config(""), "ADD", POD), code::CONFIG);
        assert_eq!(code(&config(r#", "prevResult": {"ips": []}"#), "ADD", POD), code::CONFIG);
    }

    #[test]
    fn what_concerns_no_pod_passes_through() {
        assert!(run(&config(RESULT), with("ADD", "")).unwrap().is_some());
        for command in ["DEL", "GC"] {
            assert_eq!(run(&config(""), with(command, POD)).unwrap(), None, "{command}");
        }
    }
}
