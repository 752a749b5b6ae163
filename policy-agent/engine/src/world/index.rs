//! Look-ups by address and by node, kept in step with the objects.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::model::{ObjectKey, Pod};

/// Who claims which address, and which pods are on which node.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Live pods that claim an address, the one that has it first; never empty.
    pub(super) pods: OrdMap<IpAddr, Arc<[Arc<Pod>]>>,
    /// Addresses with more than one claimant.
    pub(super) conflicts: OrdSet<IpAddr>,
    /// Pods by node.
    pub(super) by_node: OrdMap<(Arc<str>, ObjectKey), Arc<Pod>>,
    pub(super) nodes: OrdSet<(IpAddr, Arc<str>)>,
    pub(super) services: OrdSet<(IpAddr, ObjectKey)>,
    /// EndpointSlices of each Service.
    pub(super) slices: OrdSet<(ObjectKey, ObjectKey)>,
    /// EndpointSlices that hold an address.
    pub(super) backends: OrdSet<(IpAddr, ObjectKey)>,
}

impl Index {
    pub(super) fn insert_pod(&mut self, pod: &Arc<Pod>) {
        if let Some(node) = &pod.node {
            self.by_node.insert((node.clone(), pod.key.clone()), pod.clone());
        }
        if !pod.is_subject() {
            return;
        }
        for address in &pod.addresses {
            self.change_claims(*address, |claims| {
                // An object may list an address twice.
                claims.retain(|other| other.key != pod.key);
                claims.push(pod.clone());
                claims.sort_by(|a, b| precedence(b).cmp(&precedence(a)));
            });
        }
    }

    pub(super) fn remove_pod(&mut self, pod: &Pod) {
        if let Some(node) = &pod.node {
            self.by_node.remove(&(node.clone(), pod.key.clone()));
        }
        for address in &pod.addresses {
            self.change_claims(*address, |claims| claims.retain(|other| other.key != pod.key));
        }
    }

    fn change_claims(&mut self, address: IpAddr, change: impl FnOnce(&mut Vec<Arc<Pod>>)) {
        let mut claims = self.pods.get(&address).map_or_else(Vec::new, |claims| claims.to_vec());
        change(&mut claims);
        if claims.len() > 1 {
            self.conflicts.insert(address);
        } else {
            self.conflicts.remove(&address);
        }
        if claims.is_empty() {
            self.pods.remove(&address);
        } else {
            self.pods.insert(address, claims.into());
        }
    }
}

/// The greatest has the address.
fn precedence(pod: &Pod) -> (&str, bool, &str, &ObjectKey) {
    (&pod.created, !pod.terminating, &pod.uid, &pod.key)
}

/// The first owner of an address.
pub(super) fn first_at<T: Ord + Clone + Default>(index: &OrdSet<(IpAddr, T)>, address: IpAddr) -> Option<T> {
    index
        .range((address, T::default())..)
        .next()
        .filter(|(found, _)| *found == address)
        .map(|(_, owner)| owner.clone())
}
