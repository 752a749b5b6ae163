//! Pods and links for the tests of what finds one by the other.

use std::net::IpAddr;

use policy_engine::model::{Labels, ObjectKey, Phase, Pod};

use crate::netlink::{HostLink, Interfaces};

/// A running pod of namespace `x` on node `n1`, without labels.
pub(super) fn pod(name: &str, uid: &str, addresses: &[&str]) -> Pod {
    Pod {
        key: ObjectKey::new("x", name),
        uid: uid.into(),
        mirror_of: None,
        labels: Labels::default(),
        node: Some("n1".into()),
        host_network: false,
        phase: Phase::Running,
        terminating: false,
        addresses: parsed(addresses),
        ports: Vec::new(),
        created: "".into(),
        interface: None,
    }
}

/// The node's end of a pair whose other end has these addresses.
pub(super) fn link(ifindex: u32, addresses: &[&str]) -> HostLink {
    HostLink {
        ifindex,
        name: format!("veth{ifindex}"),
        kind: "veth".to_owned(),
        peer_ifindex: 2,
        packets: 0,
        addresses: parsed(addresses).into_iter().collect(),
    }
}

/// What netlink would show of them.
pub(super) fn interfaces(links: &[HostLink]) -> Interfaces {
    let mut all = Interfaces::default();
    for link in links {
        for address in &link.addresses {
            if let Some(other) = all.by_address.remove(address) {
                all.ambiguous.insert(*address, vec![other, link.ifindex]);
            } else {
                all.by_address.insert(*address, link.ifindex);
            }
        }
        all.links.insert(link.ifindex, link.clone());
    }
    all
}

fn parsed(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}
