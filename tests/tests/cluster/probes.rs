//! The kubelet asks the pods of its node, whatever policy says.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use policy_tests::cluster::Cluster;
use policy_tests::cluster::nodes::{PORT, node_name};
use serde_json::{Value, json};

/// A pod that nothing may reach stays Ready: the kubelet's probes come from the node itself.
pub(crate) fn kubelet_probes(cluster: &Cluster) -> Result<()> {
    cluster.namespaces(&[("probes", json!({}))])?;
    let mut object = Cluster::pod_object("probes", "probed", &node_name(2), &json!({}));
    let ask = json!({"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 1,
        "failureThreshold": 2});
    object["spec"]["containers"][0]["readinessProbe"] = ask.clone();
    object["spec"]["containers"][0]["livenessProbe"] = ask;
    object["spec"]["restartPolicy"] = "Always".into();
    let admin = cluster.admin();
    admin.apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "probes", "name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}))?;
    admin.create(&object)?;
    let probed = cluster.running("probes", "probed")?;
    let others = cluster.pods(&[("probes", "other", &node_name(2), json!({}))])?;
    let path = "/api/v1/namespaces/probes/pods/probed";
    let state = || -> Result<(Value, Value)> {
        let pod = admin.get(path)?;
        let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?.clone();
        Ok((ready, pod["status"]["containerStatuses"][0]["restartCount"].clone()))
    };
    let before = state()?;
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(500));
        for ip in &probed.ips {
            ensure!(!others[0].opens(SocketAddr::new(*ip, PORT)), "an isolated pod can be reached");
        }
        let after = state()?;
        ensure!(after == before && after.0["status"] == "True", "{before:?} became {after:?}");
    }
    Ok(())
}
