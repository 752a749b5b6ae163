//! Events: what the owner of a policy is told.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use policy_tests::agent::Agent;
use serde_json::{Value, json};

use crate::setup::{PATIENCE, Setup, USER, from, policy};

#[test]
fn the_owner_of_a_policy_is_told_once_what_is_wrong_with_it() {
    // Older API servers let such blocks in, and policies outlive their servers.
    let mut setup = Setup::with(&["--feature-gates=StrictIPCIDRValidation=false"]);
    setup.role(|_| ());
    let file = setup.kubeconfig("user", &format!("{USER}-token"));
    setup.agent = Agent::new(&setup.node)
        .unwrap()
        .kubeconfig(&file)
        .arguments(&["--metrics-address", "127.0.0.1:9640"]);
    setup.apply(&policy(&json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]})));
    let mut odd = from(&json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/80"}}));
    odd["metadata"]["name"] = "odd".into();
    setup.apply(&odd);
    setup.agent.start().unwrap();
    let told = |setup: &Setup| -> Vec<[String; 4]> {
        let list = setup.admin(|admin| admin.get("/apis/events.k8s.io/v1/namespaces/shop/events")).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let event = |event: &Value| {
            ["type", "note"]
                .map(|field| text(&event[field]))
                .into_iter()
                .chain(["name", "resourceVersion"].map(|field| text(&event["regarding"][field])))
        };
        let events = list["items"].as_array().unwrap().iter();
        let mut all: Vec<[String; 4]> =
            events.map(|e| event(e).collect::<Vec<_>>().try_into().unwrap()).collect();
        all.sort();
        all
    };
    let until = |setup: &Setup, count: usize| {
        let end = Instant::now() + PATIENCE;
        while told(setup).len() < count {
            assert!(Instant::now() < end, "{:?}; log:\n{}", told(setup), setup.agent.log());
            thread::sleep(Duration::from_millis(50));
        }
        told(setup)
    };
    let first = until(&setup, 2);
    let [[kind, note, name, version], [odd_kind, odd_note, ..]] = &first[..] else { panic!("{first:?}") };
    assert_eq!((kind.as_str(), name.as_str()), ("Normal", "p"));
    assert!(note.contains("spec.egress: has no effect") && !version.is_empty(), "{first:?}");
    assert_eq!(odd_kind, "Warning");
    assert!(odd_note.contains("spec.ingress[0].from[0].ipBlock.cidr"), "{first:?}");

    // The next agent, or that of another node, finds them there.
    setup.agent.kill().unwrap();
    setup.agent.start().unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let mut curl = Command::new("curl");
        setup.node.ns().enter_command(&mut curl).unwrap();
        let output = curl.args(["--silent", "http://127.0.0.1:9640/metrics"]).output().unwrap();
        let metrics = String::from_utf8_lossy(&output.stdout).into_owned();
        if metrics.contains("kubernetes_events_total{outcome=\"present\"} 2") {
            assert!(metrics.contains("kubernetes_events_total{outcome=\"written\"} 0"), "{metrics}");
            break;
        }
        assert!(Instant::now() < end, "{metrics}\nlog:\n{}", setup.agent.log());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(told(&setup), first);
    // A new version that is still wrong is told again.
    odd["spec"]["policyTypes"] = json!(["Ingress"]);
    odd["spec"]["podSelector"] = json!({});
    setup.apply(&odd);
    assert_eq!(until(&setup, 3).len(), 3);
}
