//! Selectors, peers and ports in words, as `explain` and drop lines show them.

use std::fmt::{self, Display};

use crate::model::{NamespaceScope, Peer, PortMatch, Protocol, Requirement, Selector};

/// Entries of a list that are written out; the rest is counted.
const SHOWN: usize = 6;

/// Writes `a, b, c`, or the first six and how many more there are.
pub(crate) fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.len() <= SHOWN {
        return items.join(", ");
    }
    format!("{} and {} more", items[..SHOWN].join(", "), items.len() - SHOWN)
}

/// Name of an IP protocol.
pub(crate) fn protocol(number: u8) -> String {
    match (Protocol::from_number(number), number) {
        (Some(protocol), _) => protocol.name().to_owned(),
        (None, 1) => "ICMP".to_owned(),
        (None, 58) => "ICMPv6".to_owned(),
        (None, _) => format!("protocol {number}"),
    }
}

/// `80/TCP`, or the protocol alone where there are no ports.
pub(crate) fn port(number: u8, port: u16) -> String {
    match Protocol::from_number(number) {
        Some(protocol) => format!("{port}/{protocol}"),
        None => protocol(number),
    }
}

impl Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Self::In(key, values) => write!(f, "{key} in ({})", list(values)),
            Self::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Self::NotIn(key, values) => write!(f, "{key} not in ({})", list(values)),
            Self::Exists(key) => write!(f, "any {key}"),
            Self::DoesNotExist(key) => write!(f, "no {key}"),
            Self::Never => f.write_str("(unreadable requirement)"),
        }
    }
}

impl Requirement {
    /// The label that it looks at.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key) => Some(key),
            Self::Never => None,
        }
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("all");
        }
        f.write_str(&list(&self.requirements))
    }
}

impl Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => write!(f, "any/{protocol}"),
            Self::Range(protocol, low, high) if low == high => write!(f, "{low}/{protocol}"),
            Self::Range(protocol, low, high) => write!(f, "{low}-{high}/{protocol}"),
            Self::Named(protocol, name) => write!(f, "{name}/{protocol}"),
            Self::Nothing => f.write_str("(unreadable port)"),
        }
    }
}

impl Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { cidr, except } if except.is_empty() => write!(f, "{cidr}"),
            Self::Block { cidr, except } => write!(f, "{cidr} except {}", list(except)),
            Self::Pods { namespaces, pods } => {
                match pods.requirements.is_empty() {
                    true => f.write_str("all pods")?,
                    false => write!(f, "pods {pods}")?,
                }
                match namespaces {
                    NamespaceScope::Own => f.write_str(" of the policy's namespace"),
                    NamespaceScope::Selector(all) if all.requirements.is_empty() => {
                        f.write_str(" of all namespaces")
                    }
                    NamespaceScope::Selector(selector) => write!(f, " of namespaces {selector}"),
                }
            }
            Self::Nodes(selector) if selector.requirements.is_empty() => f.write_str("all nodes"),
            Self::Nodes(selector) => write!(f, "nodes {selector}"),
            Self::Nothing => f.write_str("(unreadable peer)"),
        }
    }
}
