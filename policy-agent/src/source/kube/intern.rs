//! Equal texts and label sets of many objects, stored once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use policy_engine::model::Labels;
use policy_engine::world::Delta;

/// What is shared.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Pool<str>,
    labels: Pool<std::collections::BTreeMap<String, String>>,
}

impl Interner {
    /// Makes a change share its texts with those before it.
    pub(super) fn share(&mut self, delta: &mut Delta) {
        match delta {
            Delta::Pod(pod) => {
                self.text(&mut pod.key.namespace);
                pod.node.iter_mut().for_each(|node| self.text(node));
                pod.ports.iter_mut().for_each(|port| self.text(&mut port.name));
                self.set(&mut pod.labels);
            }
            Delta::Namespace(namespace) => self.text(&mut namespace.name),
            Delta::Service(service) => {
                self.text(&mut service.key.namespace);
                service.ports.iter_mut().for_each(|port| self.text(&mut port.name));
            }
            Delta::EndpointSlice(slice) => {
                self.text(&mut slice.key.namespace);
                self.text(&mut slice.service);
                slice.ports.iter_mut().for_each(|port| self.text(&mut port.name));
            }
            Delta::Policy(policy) => self.text(&mut policy.key.namespace),
            Delta::Node(node) => self.text(&mut node.name),
            Delta::NamespaceGone(_)
            | Delta::PodGone { .. }
            | Delta::NodeGone(_)
            | Delta::ServiceGone(_)
            | Delta::EndpointSliceGone(_)
            | Delta::ServiceMode(_)
            | Delta::PolicyGone(_)
            | Delta::ClusterPolicy(_)
            | Delta::ClusterPolicyGone(_)
            | Delta::HostAddresses(_) => {}
        }
    }

    fn text(&mut self, text: &mut Arc<str>) {
        *text = self.texts.one(text);
    }

    fn set(&mut self, labels: &mut Labels) {
        *labels = self.labels.one(labels);
    }
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// At this size it is looked for what nobody uses any more.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: 1024 }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn one(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(value) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        self.known.insert(value.clone());
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_go() {
        let mut pool = Pool::<str>::default();
        let first = pool.one(&"a".into());
        assert!(Arc::ptr_eq(&first, &pool.one(&"a".into())));
        for n in 0..5000 {
            pool.one(&n.to_string().into());
        }
        assert!(pool.known.len() <= 1024, "{}", pool.known.len());
        assert!(Arc::ptr_eq(&first, &pool.one(&"a".into())), "what is in use stays");
    }
}
