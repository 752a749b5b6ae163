//! Through Services: by their own addresses and by node ports, to backends on this node and on the other.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use policy_tests::cluster::Cluster;
use policy_tests::cluster::nodes::{PORT, lan, node_name, until};
use serde_json::{Value, json};

/// A client that may open connections to some backends only, through every kind of Service address.
pub(crate) fn judged(cluster: &Cluster) -> Result<()> {
    cluster.namespaces(&[("services", json!({}))])?;
    let (node1, node2) = (node_name(1), node_name(2));
    let app = |name: &str| json!({"app": name});
    let pods = cluster.pods(&[
        ("services", "client", &node1, app("client")),
        ("services", "stranger", &node1, app("stranger")),
        ("services", "good-near", &node1, app("good")),
        ("services", "good-far", &node2, app("good")),
        ("services", "bad-near", &node1, app("bad")),
        ("services", "bad-far", &node2, app("bad")),
    ])?;
    let (client, stranger) = (&pods[0], &pods[1]);
    let mut addresses = Vec::new();
    for name in ["good", "bad"] {
        addresses.push(service(cluster, name)?);
    }
    // kube-proxy learns of the endpoints by a watch of its own.
    until("all Services work", || {
        Ok(addresses.iter().flatten().all(|to| (0..8).all(|_| client.opens(*to))))
    })?;
    apply_policy(
        cluster,
        "client-egress",
        &json!({"podSelector": {"matchLabels": app("client")},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": app("good")}}], "ports": [{"port": PORT}]}]}),
    )?;
    apply_policy(
        cluster,
        "good-ingress",
        &json!({"podSelector": {"matchLabels": app("good")},
        "ingress": [{"from": [{"podSelector": {"matchLabels": app("client")}}]}]}),
    )?;
    let (good, bad) = (&addresses[0], &addresses[1]);
    // A node port of another node is that node's address, and one of this node may lead to a pod that sees the node
    // as the source: what they must not do is let anybody through whom policy holds back.
    let inside = good.iter().copied().filter(|to| to.port() == 80).collect::<Vec<_>>();
    let allowed = [(client, &inside)];
    let denied = [(client, bad), (stranger, good)];
    until("policy follows", || Ok(denied.iter().all(|(from, to)| to.iter().all(|to| !from.opens(*to)))))?;
    for (from, targets) in allowed {
        for to in targets {
            for n in 0..20 {
                ensure!(from.opens(*to), "{} -> {to}: connection {n} of 20 is not let through", from.name);
            }
        }
    }
    for (from, targets) in denied {
        for to in targets {
            for n in 0..6 {
                ensure!(!from.opens(*to), "{} -> {to}: connection {n} of 6 is let through", from.name);
            }
        }
    }
    for to in bad {
        ensure!((0..8).all(|_| stranger.opens(*to)), "stranger -> {to}: nothing forbids it");
    }
    Ok(())
}

/// A Service of type NodePort in front of the pods with this label; its addresses inside and on both nodes.
fn service(cluster: &Cluster, name: &str) -> Result<Vec<SocketAddr>> {
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "services", "name": name},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": 80, "targetPort": PORT}]}});
    let made = cluster.admin().create(&object)?;
    let node_port = made["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?;
    let node_port = u16::try_from(node_port)?;
    let mut addresses = Vec::new();
    for ip in made["spec"]["clusterIPs"].as_array().context("no addresses")? {
        let ip: IpAddr = ip.as_str().context("an address")?.parse()?;
        addresses.push(SocketAddr::new(ip, 80));
        for node in 1..=2 {
            let wanted = lan::node_ips(node).into_iter().find(|node| node.is_ipv4() == ip.is_ipv4());
            addresses.push(SocketAddr::new(wanted.context("a node's address")?, node_port));
        }
    }
    Ok(addresses)
}

fn apply_policy(cluster: &Cluster, name: &str, spec: &Value) -> Result<()> {
    let metadata = json!({"namespace": "services", "name": name});
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": metadata, "spec": spec});
    cluster.admin().apply(&policy).map(drop)
}
