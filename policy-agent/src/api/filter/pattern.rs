//! The small patterns of filter values: addresses, pods, names, nodes, protocols and ports.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::proto::flow::Flow;
use crate::proto::flow::layer4::Protocol;

/// Cluster of a node name that has none.
const DEFAULT_CLUSTER: &str = "default";

/// An address or a block of addresses.
#[derive(Debug)]
pub(super) enum AddressPattern {
    Address(IpAddr),
    Block(IpNet),
}

impl AddressPattern {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        text.parse().map(Self::Block).map_err(|_| "neither an address nor a CIDR")
    }

    pub(super) fn matches(&self, address: &str) -> bool {
        let Ok(address) = address.parse::<IpAddr>() else { return false };
        match self {
            Self::Address(wanted) => *wanted == address,
            Self::Block(block) => block.contains(&address),
        }
    }
}

/// `namespace/prefix`, `namespace/`, `/prefix`; without a slash the namespace is `default`.
#[derive(Debug)]
pub(super) struct PodPattern {
    namespace: String,
    prefix: String,
}

impl PodPattern {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (namespace, prefix) = text.split_once('/').unwrap_or(("default", text));
        if prefix.contains('/') {
            return Err("more than one slash");
        }
        Ok(Self { namespace: namespace.to_owned(), prefix: prefix.to_owned() })
    }

    /// An end with neither namespace nor name never matches.
    pub(super) fn matches(&self, namespace: &str, name: &str) -> bool {
        (!namespace.is_empty() || !name.is_empty())
            && (self.namespace.is_empty() || self.namespace == namespace)
            && name.starts_with(&self.prefix)
    }
}

/// A DNS name in which `*` stands for any characters.
#[derive(Debug)]
pub(super) struct NamePattern(String);

impl NamePattern {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let text = normal_name(text);
        if text.is_empty() {
            return Err("empty name");
        }
        Ok(Self(text))
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        glob(&self.0, &normal_name(name))
    }
}

/// `node`, `cluster/node`, `cluster/`, with `*` for any characters but the slash.
#[derive(Debug)]
pub(super) struct NodePattern {
    /// `None` = any.
    cluster: Option<String>,
    node: String,
}

impl NodePattern {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("empty name");
        }
        match text.split_once('/') {
            None => Ok(Self { cluster: None, node: normal_name(text) }),
            Some((_, rest)) if rest.contains('/') => Err("more than one slash"),
            Some((cluster, rest)) => {
                let any = |part: &str| if part.is_empty() { "*".to_owned() } else { normal_name(part) };
                Ok(Self { cluster: Some(any(cluster)), node: any(rest) })
            }
        }
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let (cluster, node) = name.split_once('/').unwrap_or((DEFAULT_CLUSTER, name));
        self.cluster.as_ref().is_none_or(|wanted| glob(wanted, cluster)) && glob(&self.node, node)
    }
}

/// A protocol by name.
#[derive(Clone, Copy, Debug)]
pub(super) enum IpProtocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    IcmpV4,
    IcmpV6,
    /// Hubble knows it, our flows never have it.
    Foreign,
}

impl IpProtocol {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            "icmp" => Ok(Self::Icmp),
            "icmpv4" => Ok(Self::IcmpV4),
            "icmpv6" => Ok(Self::IcmpV6),
            "vrrp" | "igmp" | "dns" | "http" => Ok(Self::Foreign),
            _ => Err("unknown protocol"),
        }
    }

    pub(super) fn matches(self, flow: &Flow) -> bool {
        let Some(protocol) = flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) else { return false };
        match self {
            Self::Tcp => matches!(protocol, Protocol::Tcp(_)),
            Self::Udp => matches!(protocol, Protocol::Udp(_)),
            Self::Sctp => matches!(protocol, Protocol::Sctp(_)),
            Self::Icmp => matches!(protocol, Protocol::IcmPv4(_) | Protocol::IcmPv6(_)),
            Self::IcmpV4 => matches!(protocol, Protocol::IcmPv4(_)),
            Self::IcmpV6 => matches!(protocol, Protocol::IcmPv6(_)),
            Self::Foreign => false,
        }
    }
}

/// A decimal port.
pub(super) fn port(text: &str) -> Result<u32, &'static str> {
    text.parse::<u16>().map(u32::from).map_err(|_| "not a port number")
}

fn normal_name(text: &str) -> String {
    text.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether `text` has the form of `pattern`, in which `*` stands for any characters, also none.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        // The leftmost place is as good as any: what follows may skip.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, hit) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "", true),
            ("a*c", "ac", true),
            ("a*c", "abcbc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "example.com", false),
        ] {
            assert_eq!(glob(pattern, text), hit, "{pattern} {text}");
        }
    }

    #[test]
    fn nodes_have_a_cluster() {
        let hit = |pattern: &str, name: &str| NodePattern::parse(pattern).unwrap().matches(name);
        assert!(hit("node-*", "node-a") && hit("default/node-a", "node-a") && hit("default/", "node-a"));
        assert!(
            hit("node-a", "other/node-a") && hit("*/node-a", "other/node-a") && hit("/node-a", "x/node-a")
        );
        assert!(!hit("other/node-a", "node-a") && !hit("node", "node-a"));
        assert!(NodePattern::parse("a/b/c").is_err());
    }
}
