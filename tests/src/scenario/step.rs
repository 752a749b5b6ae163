//! The steps of a scenario: changes of the cluster, connections with a history, truth tables.

use super::{Port, schema::PodSpec};
use crate::net::Family;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// One step: changes, then connections, then the truth.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Name for messages.
    #[serde(default)]
    pub name: String,
    /// Changes, in order.
    #[serde(default)]
    pub actions: Vec<Action>,
    /// Connections with a history, used after the changes.
    #[serde(default)]
    pub sessions: Vec<Session>,
    /// The truth about new connections.
    #[serde(default)]
    pub expect: Option<Expect>,
}

/// A change of the cluster; exactly one field is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Creates or replaces a Kubernetes object.
    #[serde(default)]
    pub apply: Option<Value>,
    /// Applies all objects of a file below `deploy/examples`.
    #[serde(default)]
    pub file: Option<String>,
    /// Deletes an object.
    #[serde(default)]
    pub delete: Option<ObjectRef>,
    /// Replaces the labels of a namespace or a pod.
    #[serde(default, rename = "set-labels")]
    pub set_labels: Option<SetLabels>,
    /// Adds, removes or changes a pod.
    #[serde(default)]
    pub pod: Option<PodAction>,
    /// Does something to the agent.
    #[serde(default)]
    pub agent: Option<AgentAction>,
    /// Moves the processes of a workload into the control group of another one; their sockets stay where they were made.
    #[serde(default)]
    pub regroup: Option<Regroup>,
}

impl Action {
    pub(super) fn count(&self) -> usize {
        [
            self.apply.is_some(),
            self.file.is_some(),
            self.delete.is_some(),
            self.set_labels.is_some(),
            self.pod.is_some(),
            self.agent.is_some(),
            self.regroup.is_some(),
        ]
        .into_iter()
        .filter(|set| *set)
        .count()
    }
}

/// Processes that move.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regroup {
    /// Workload whose processes they are, as `namespace/name`.
    pub pod: String,
    /// Workload into whose group they go.
    pub into: String,
}

/// Names an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    /// Kind.
    pub kind: String,
    /// Namespace; absent for objects of the whole cluster.
    #[serde(default)]
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// New labels of a namespace or a pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLabels {
    /// Namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Pod as `namespace/name`.
    #[serde(default)]
    pub pod: Option<String>,
    /// All labels from now on.
    pub labels: BTreeMap<String, String>,
}

/// A change of pods; the fields that are set happen in this order.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodAction {
    /// Removes the pod.
    #[serde(default)]
    pub remove: Option<String>,
    /// Sets a phase; a finished pod loses its network.
    #[serde(default)]
    pub phase: Option<PodPhase>,
    /// Marks the pod as being deleted; it keeps running.
    #[serde(default)]
    pub terminate: Option<String>,
    /// Makes the sandbox anew: same object, other addresses (automatic if none are given).
    #[serde(default)]
    pub restart: Option<PodRestart>,
    /// Adds pods.
    #[serde(default)]
    pub add: BTreeMap<String, PodSpec>,
}

/// A pod's new phase.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodPhase {
    pub pod: String,
    pub to: String,
}

/// A pod's new sandbox.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodRestart {
    pub pod: String,
    #[serde(default)]
    pub ips: Option<Vec<String>>,
}

/// What happens to the agent; back ends without a process skip it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentAction {
    /// Killed, and started again before the step goes on.
    Restart,
    /// Killed.
    Stop,
    /// Started.
    Start,
}

/// Truth about new connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// How binding it is.
    #[serde(default)]
    pub level: Level,
    /// Other answers that implementations may give, for [`Level::Choice`].
    #[serde(default)]
    pub alternatives: Vec<String>,
    /// Verdict of pairs that no rule names.
    #[serde(default)]
    pub default: Option<Side>,
    /// Protocols and ports that the table covers.
    pub ports: Vec<Port>,
    /// Who answers an opening.
    #[serde(default)]
    pub answer: Answer,
    /// Datagrams go out by sockets that are not connected.
    #[serde(default)]
    pub unconnected: bool,
    /// Bytes of payload per probe; more than a link carries makes fragments. Small if absent.
    #[serde(default)]
    pub size: Option<usize>,
    /// Exceptions; a later one wins.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// The same as blocks of text: `.` allow, `X` deny, `-` skip.
    #[serde(default)]
    pub matrix: BTreeMap<String, String>,
}

/// Who answers an opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Somebody who listens.
    #[default]
    Service,
    /// Nobody listens: what passes is refused by the kernel of the other end.
    Refusal,
}

/// How binding an expectation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The API says so.
    #[default]
    Must,
    /// Recommended, or follows from what the API says.
    Should,
    /// Left open by the API: our choice.
    Choice,
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Passes.
    Allow,
    /// Does not pass.
    Deny,
    /// Not looked at.
    Skip,
}

/// An exception in a truth table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Sources.
    pub from: OneOrMany,
    /// Destinations.
    pub to: OneOrMany,
    /// Ports it is about; all of the table's if absent.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Family it is about; both if absent.
    #[serde(default)]
    pub family: Option<Family>,
    /// Verdict of the pair.
    pub verdict: Side,
    /// Verdict of the destination's ingress alone.
    #[serde(default)]
    pub ingress: Option<Side>,
    /// Verdict of the source's egress alone.
    #[serde(default)]
    pub egress: Option<Side>,
    /// Whether the sender is told of the denial by an error.
    #[serde(default)]
    pub told: Option<bool>,
}

/// A pattern or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// All patterns.
    pub fn patterns(&self) -> &[String] {
        match self {
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Many(patterns) => patterns,
        }
    }
}

/// Something done to, or expected of, a connection with a history; exactly one field is set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Opens it, which must work.
    #[serde(default)]
    pub open: Option<SessionOpen>,
    /// Sends through it.
    #[serde(default)]
    pub send: Option<SessionSend>,
    /// What must be true of it.
    #[serde(default)]
    pub expect: Option<SessionExpect>,
}

/// Data through a connection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SessionSend {
    pub id: String,
    pub dir: Dir,
}

/// Expected state of a connection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SessionExpect {
    pub id: String,
    pub state: SessionState,
}

/// A connection to open.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SessionOpen {
    pub id: String,
    pub from: String,
    pub to: String,
    pub port: Port,
    #[serde(default)]
    pub family: Option<Family>,
}

/// Direction of a session's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Dir {
    Client,
    Server,
    Both,
}

/// State of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum SessionState {
    Alive,
    Broken,
    Either,
}
