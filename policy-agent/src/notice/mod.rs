//! Tells the owners of policies what is wrong with them, as Kubernetes Events (`kubectl events --for
//! networkpolicy/NAME`).
//!
//! An event's name is made of what it says, so all agents of a cluster write the same object, and only the first one
//! makes it. Few of them try, see [`rank`]. What is wrong is in the status, the log and the metrics of each agent in
//! any case; Events are a courtesy, and what the rate limit holds back is counted.

mod event;
mod queue;
mod rank;
mod send;

pub use self::queue::Count;
pub use self::send::Sender;

use std::collections::BTreeSet;
use std::sync::Arc;

use policy_engine::model::{ObjectKey, Pod};

use crate::agent::{View, refusal_text};
use crate::source::objects::{Located, policy_of};

/// Policies of a namespace, or of the cluster, that do not fit of which it is told.
const TOLD_PER_NAMESPACE: usize = 10;

/// Something to tell about a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Notice {
    /// The policy.
    pub policy: ObjectKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// Its version; 0 when this is not about one version.
    pub version: u64,
    /// What sort of thing it is.
    pub reason: Reason,
    /// Field path; empty = the whole policy.
    pub field: String,
    /// What is wrong, and what happens instead.
    pub message: String,
}

/// Sorts of notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// A part is not honoured.
    NotHonoured,
    /// A part is understood in a way that its author may not expect.
    Advice,
    /// The policy does not fit into the tables of a node.
    DoesNotFit,
}

/// Everything that there is to tell now.
fn notices(view: &View) -> BTreeSet<Notice> {
    let of_problem = |problem: &Located| {
        let policy = policy_of(problem)?;
        let uid = match &*policy.namespace {
            "" => view.world.cluster_policies.get(&policy.name)?.uid.clone(),
            _ => view.world.policies.get(&policy)?.uid.clone(),
        };
        let reason = if problem.broken { Reason::NotHonoured } else { Reason::Advice };
        let Located { version, field, message, .. } = problem.clone();
        Some(Notice { policy, uid, version, reason, field, message })
    };
    let mut all: BTreeSet<Notice> = view.problems.iter().filter_map(of_problem).collect();
    for refusal in &view.refused {
        let pods: Vec<&Arc<Pod>> =
            refusal.endpoints.iter().filter_map(|key| view.world.pods.get(key)).collect();
        let policies = view.world.policies_of(&refusal.namespace);
        let concerned =
            policies.filter(|policy| pods.iter().any(|pod| policy.pod_selector.matches(&pod.labels)));
        let concerned = concerned.map(|policy| (policy.key.clone(), policy.uid.clone()));
        let of_cluster = view.world.cluster_policies.values().filter(|_| refusal.namespace.is_empty());
        let of_cluster = of_cluster.map(|policy| (policy.key(), policy.uid.clone()));
        all.extend(concerned.chain(of_cluster).take(TOLD_PER_NAMESPACE).map(|(policy, uid)| Notice {
            policy,
            uid,
            version: 0,
            reason: Reason::DoesNotFit,
            field: String::new(),
            message: refusal_text(refusal),
        }));
    }
    all
}
