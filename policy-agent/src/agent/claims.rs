//! Addresses that a container runtime gave to pods before the API tells of them.
//!
//! A claim completes the pod's object until the API's own version names the same address. It never makes a pod: one that
//! the API does not know is not enforced, and whoever claims waits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy_engine::model::{ObjectKey, Pod};
use policy_engine::world::Delta;

/// A runtime whose pod the API has not confirmed by then has given up on it.
const AT_MOST: Duration = Duration::from_secs(60);

/// What a runtime says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The pod.
    pub pod: ObjectKey,
    /// Its UID, empty = not known.
    pub uid: Arc<str>,
    /// Addresses that it was given; never empty.
    pub addresses: Vec<IpAddr>,
}

/// A claim in force.
#[derive(Clone, Debug)]
struct Held {
    claim: Claim,
    until: Instant,
    /// The pod as the API told of it last.
    told: Option<Pod>,
}

/// Claims in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<ObjectKey, Held>,
}

impl Claims {
    /// Takes a claim. `told`: the pod as the world has it. Returns what the world must be told.
    pub(super) fn put(&mut self, claim: Claim, told: Option<&Pod>, now: Instant) -> Option<Delta> {
        let key = claim.pod.clone();
        // What the world has may be completed by an earlier claim.
        let earlier = self.held.remove(&key).and_then(|held| held.told);
        let told = earlier.or_else(|| told.cloned());
        let held = Held { claim, until: now + AT_MOST, told };
        let delta = held.told.clone().map(|pod| Delta::Pod(held.complete(pod)));
        self.held.insert(key, held);
        delta
    }

    /// A change that the source tells, as the world must be told of it.
    pub(super) fn pass(&mut self, delta: Delta) -> Delta {
        match delta {
            Delta::Pod(pod) => {
                let Some(held) = self.held.get_mut(&pod.key) else { return Delta::Pod(pod) };
                if held.is_confirmed_by(&pod) {
                    self.held.remove(&pod.key);
                    return Delta::Pod(pod);
                }
                held.told = Some(pod.clone());
                Delta::Pod(held.complete(pod))
            }
            Delta::PodGone { key, uid } => {
                if let Some(held) = self.held.get_mut(&key) {
                    held.told = None;
                    if held.claim.uid == uid {
                        self.held.remove(&key);
                    }
                }
                Delta::PodGone { key, uid }
            }
            other @ (Delta::Namespace(_)
            | Delta::NamespaceGone(_)
            | Delta::Node(_)
            | Delta::NodeGone(_)
            | Delta::Service(_)
            | Delta::ServiceGone(_)
            | Delta::EndpointSlice(_)
            | Delta::EndpointSliceGone(_)
            | Delta::ServiceMode(_)
            | Delta::Policy(_)
            | Delta::PolicyGone(_)
            | Delta::ClusterPolicy(_)
            | Delta::ClusterPolicyGone(_)
            | Delta::HostAddresses(_)) => other,
        }
    }

    /// Gives up claims that are too old. Returns what the world must be told.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Delta> {
        let old: Vec<ObjectKey> =
            self.held.iter().filter(|(_, held)| held.until <= now).map(|(key, _)| key.clone()).collect();
        old.iter().filter_map(|key| self.held.remove(key)?.told).map(Delta::Pod).collect()
    }

    /// When the next claim is given up.
    #[must_use]
    pub(super) fn next(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }
}

impl Held {
    /// The API has caught up.
    fn is_confirmed_by(&self, pod: &Pod) -> bool {
        pod.addresses.contains(&self.claim.addresses[0])
    }

    /// The runtime knows a static pod by its kubelet's UID. The object that mirrors it is there first.
    fn is_of(&self, pod: &Pod) -> bool {
        let same = self.claim.uid.is_empty() || self.claim.uid == *pod.runtime_uid();
        pod.is_subject() && same
    }

    fn complete(&self, mut pod: Pod) -> Pod {
        if self.is_of(&pod) {
            pod.addresses.clone_from(&self.claim.addresses);
        }
        pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture;
    use policy_engine::model::Phase;

    fn pod(uid: &str, addresses: &[&str]) -> Pod {
        Pod { phase: Phase::Pending, ..fixture::pod("a", uid, addresses) }
    }

    fn claim(uid: &str) -> Claim {
        Claim { pod: ObjectKey::new("x", "a"), uid: uid.into(), addresses: vec!["10.0.0.7".parse().unwrap()] }
    }

    fn address(delta: &Delta) -> String {
        match delta {
            Delta::Pod(pod) => pod.addresses.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_completes_the_pod_until_the_api_confirms_it() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        let told = claims.put(claim("u"), Some(&pod("u", &[])), now).unwrap();
        assert_eq!(address(&told), "10.0.0.7");
        assert_eq!(address(&claims.pass(Delta::Pod(pod("u", &[])))), "10.0.0.7", "a label changed, say");
        // The sandbox before this one had another address.
        assert_eq!(address(&claims.pass(Delta::Pod(pod("u", &["10.0.0.3"])))), "10.0.0.7");
        assert_eq!(address(&claims.pass(Delta::Pod(pod("u", &["10.0.0.7"])))), "10.0.0.7");
        assert_eq!(claims.next(), None, "confirmed");
        assert_eq!(address(&claims.pass(Delta::Pod(pod("u", &["10.0.0.3"])))), "10.0.0.3");
    }

    #[test]
    fn a_claim_may_come_before_the_object_and_is_for_one_pod_only() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        assert!(claims.put(claim("new"), None, now).is_none());
        let old = Pod { terminating: true, ..pod("old", &["10.0.0.3"]) };
        assert_eq!(address(&claims.pass(Delta::Pod(old))), "10.0.0.3", "the pod of that name before it");
        let gone = Delta::PodGone { key: ObjectKey::new("x", "a"), uid: "old".into() };
        drop(claims.pass(gone));
        assert_eq!(address(&claims.pass(Delta::Pod(pod("new", &[])))), "10.0.0.7");
    }

    #[test]
    fn a_claim_for_a_static_pod_is_for_the_object_that_mirrors_it() {
        let now = Instant::now();
        let mirror = |of: &str| Pod { mirror_of: Some(of.into()), ..pod("u", &[]) };
        let told = |pod: &Pod| address(&Claims::default().put(claim("hash"), Some(pod), now).unwrap());
        assert_eq!(told(&mirror("hash")), "10.0.0.7");
        assert_eq!(told(&mirror("earlier-hash")), "", "the file before this one made other labels, say");
        assert_eq!(told(&pod("u", &[])), "", "not a static pod's");
        assert_eq!(told(&pod("hash", &[])), "10.0.0.7");
    }

    #[test]
    fn a_claim_that_nobody_confirms_is_given_up() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        claims.put(claim("u"), Some(&pod("u", &["10.0.0.3"])), now);
        assert!(claims.expire(now + AT_MOST / 2).is_empty());
        let told = claims.expire(now + AT_MOST);
        assert_eq!(told.iter().map(address).collect::<Vec<_>>(), ["10.0.0.3"], "as the API says");
        assert_eq!(claims.next(), None);
    }
}
