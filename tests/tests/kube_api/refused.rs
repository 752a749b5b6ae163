//! Permissions that are missing, credentials and configurations that are wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use policy_tests::agent::Agent;
use serde_json::Value;

use crate::setup::{A, B, Setup, USER, deny};

#[test]
fn a_missing_permission_is_named_until_it_is_there() {
    let mut setup = Setup::new();
    setup.pod("a", A);
    setup.pod("b", B);
    setup.apply(&deny());
    let without_watch = |rule: &mut Value| {
        if rule["resources"].to_string().contains("networkpolicies") {
            rule["verbs"].as_array_mut().unwrap().retain(|verb| verb != "watch");
        }
    };
    setup.role(without_watch);
    let file = setup.kubeconfig("user", &format!("{USER}-token"));
    setup.agent = Agent::new(&setup.node).unwrap().kubeconfig(&file);
    setup.agent.start().unwrap();
    let rule =
        r#"{apiGroups: [\"networking.k8s.io\"], resources: [\"networkpolicies\"], verbs: [\"watch\"]}"#;
    let named = |s: &Value| {
        let missing = s["sources"][0]["missing"].to_string();
        // The others are read meanwhile.
        let one = s["sources"][0]["missing"].as_array().map(Vec::len) == Some(1);
        one && missing.contains("forbids to watch networkpolicies (403)") && missing.contains(rule)
    };
    setup.until_status(named, "the missing verb");
    setup.must_reach("nothing is enforced without policies");
    assert_eq!(setup.status()["ready"], false);
    assert!(setup.agent.log().contains("forbids to watch networkpolicies"), "{}", setup.agent.log());
    setup.role(|_| ());
    setup.until_status(|s| s["ready"] == true, "ready with the shipped role");
    setup.expect(false, "and nothing more than the shipped role");
}

#[test]
fn credentials_and_configurations_that_are_wrong_are_told() {
    let setup = Setup::new();
    let wrong = setup.kubeconfig("wrong", "no-such-token");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = setup.run(&["--kubeconfig", &text(&wrong)], |_| {});
    assert_eq!(output.status.code(), Some(8), "--once: {}", told(&output));
    assert!(
        told(&output).contains("credentials (401)") && told(&output).contains("has expired"),
        "{}",
        told(&output)
    );

    let foreign = setup.kubeconfig("foreign", &setup.api.token);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&foreign).unwrap()).unwrap();
    config["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority");
    fs::write(&foreign, config.to_string()).unwrap();
    let output = setup.run(&["--kubeconfig", &text(&foreign)], |_| {});
    assert_eq!(output.status.code(), Some(8), "{}", told(&output));
    assert!(told(&output).contains("certificate-authority"), "{}", told(&output));

    let broken = setup.kubeconfig("broken", "x");
    fs::write(&broken, "clusters: {").unwrap();
    let good = text(&setup.api.kubeconfig);
    let cases: [&[&str]; 3] = [
        &["--kubeconfig", "/nonexistent/kubeconfig"],
        &["--kubeconfig", &text(&broken)],
        &["--kubeconfig", &good, "--context", "elsewhere"],
    ];
    for case in cases {
        let output = setup.run(case, |_| {});
        assert_eq!(output.status.code(), Some(9), "{case:?}: {}", told(&output));
        assert!(told(&output).contains("hint: give --kubeconfig"), "{case:?}: {}", told(&output));
    }
    let homeless = |command: &mut Command| {
        command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    };
    let output = setup.run(&[], homeless);
    assert_eq!(output.status.code(), Some(9), "{}", told(&output));
    assert!(told(&output).contains("--manifests DIR"), "{}", told(&output));
    let output = setup.run(&["--kubeconfig", &good, "--context", "test"], |_| {});
    assert!(output.status.success(), "{}", told(&output));
}
