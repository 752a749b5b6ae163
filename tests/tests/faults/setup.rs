//! The cluster of these tests, its streams, and what status says.

use policy_tests::{
    lab::Lab,
    net::Topology,
    stream::{
        Rule::{Always, Either, Never},
        Streams,
    },
};
use serde_json::Value;
use std::time::{Duration, Instant};

const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}, x/c: {labels: {app: c}}, \
                       x/d: {labels: {app: d}}, x/e: {labels: {app: e}}}}";
/// Longest wait for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `x/a` lets in `x/b` and `x/d`, and `x/e` if it is `open`.
pub(crate) fn policy(open: bool) -> String {
    let also = if open { ", {podSelector: {matchLabels: {app: e}}}" } else { "" };
    format!(
        "{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Ingress], ingress: [{{from: [\
          {{podSelector: {{matchLabels: {{app: b}}}}}}, {{podSelector: {{matchLabels: {{app: d}}}}}}{also}]}}]}}"
    )
}

/// The policy as actions of a scenario.
pub(crate) fn actions(open: bool) -> String {
    format!(
        "[{{apply: {{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: x, name: p}}, \
          spec: {}}}}}]",
        policy(open)
    )
}

/// A lab with both policies in force: `x/d` sends to `x/a` only.
pub(crate) fn lab(topology: Topology, arguments: &[&str]) -> Lab {
    let mut lab = Lab::with_arguments(topology, CLUSTER, arguments).unwrap();
    lab.act(
        "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: q}, \
          spec: {podSelector: {matchLabels: {app: d}}, policyTypes: [Egress], \
                 egress: [{to: [{podSelector: {matchLabels: {app: a}}}]}]}}}]",
    )
    .unwrap();
    lab.act(&actions(false)).unwrap();
    lab.expect("x/b", "x/a", "TCP/80", true);
    lab.expect("x/c", "x/a", "TCP/80", false);
    lab
}

/// Traffic on every pair that these policies treat differently.
pub(crate) fn streams(lab: &Lab) -> Streams {
    let pairs = [
        ("x/b", "x/a", Always),
        ("x/d", "x/a", Always),
        ("x/a", "x/b", Always),
        ("x/e", "x/b", Always),
        ("x/e", "x/a", Either),
        ("x/c", "x/a", Never),
        ("x/d", "x/b", Never),
    ];
    Streams::start(lab, &pairs).unwrap()
}

/// The agent's status.
pub(crate) fn status(lab: &mut Lab) -> Value {
    let output = lab.agent().ctl(["status", "--output", "json"]).unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Waits until the status is as wanted.
pub(crate) fn until(lab: &mut Lab, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = status(lab);
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{what} does not come: {status:#}\n{}", lab.agent().log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether some problem of a status says this.
pub(crate) fn tells(status: &Value, text: &str) -> bool {
    let problems = status["problems"].as_array().into_iter().flatten();
    problems.filter_map(|problem| problem["message"].as_str()).any(|message| message.contains(text))
}

/// Everything in the kernel is as it should be.
pub(crate) fn is_clean(lab: &mut Lab) {
    let output = lab.agent().ctl(["verify", "--output", "json"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        lab.agent().log()
    );
}

/// The policies are in force for new connections.
pub(crate) fn holds(lab: &Lab, open: bool) {
    lab.expect("x/b", "x/a", "TCP/80", true);
    lab.expect("x/c", "x/a", "TCP/80", false);
    lab.expect("x/e", "x/a", "TCP/80", open);
    lab.expect("x/d", "x/b", "TCP/80", false);
}

/// How often something is done: in a usual run, or as `POLICY_FAULTS_ROUNDS` says.
pub(crate) fn rounds(usual: usize) -> usize {
    std::env::var("POLICY_FAULTS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
