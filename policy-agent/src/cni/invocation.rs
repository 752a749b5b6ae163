//! What the runtime says in the environment: the command, and which pod it is about.

/// A command of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod gets its network.
    Add,
    /// A pod loses its network.
    Del,
    /// Whether a pod's network is as ADD left it.
    Check,
    /// Which versions of the specification we speak.
    Version,
    /// Whether ADD would work now.
    Status,
    /// Leftovers of pods that are gone may be removed.
    Gc,
}

/// A pod as the runtime names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, empty when the runtime does not say.
    pub uid: String,
}

impl Command {
    /// The command of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "VERSION" => Self::Version,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            _ => return None,
        })
    }
}

impl PodName {
    /// The pod that `CNI_ARGS` names; `None` when the caller is no Kubernetes runtime.
    #[must_use]
    pub fn of(arguments: &str) -> Option<Self> {
        let mut pod = Self::default();
        for (key, value) in arguments.split(';').filter_map(|pair| pair.split_once('=')) {
            let field = match key {
                "K8S_POD_NAMESPACE" => &mut pod.namespace,
                "K8S_POD_NAME" => &mut pod.name,
                "K8S_POD_UID" => &mut pod.uid,
                _ => continue,
            };
            value.clone_into(field);
        }
        (!pod.namespace.is_empty() && !pod.name.is_empty()).then_some(pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_read_from_the_arguments_of_a_kubernetes_runtime() {
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a-1;K8S_POD_INFRA_CONTAINER_ID=9f;\
                         K8S_POD_UID=4711-x";
        let pod = PodName { namespace: "shop".into(), name: "a-1".into(), uid: "4711-x".into() };
        assert_eq!(PodName::of(arguments), Some(pod));
        assert_eq!(PodName::of("IgnoreUnknown=1"), None);
        assert_eq!(PodName::of(""), None);
    }
}
