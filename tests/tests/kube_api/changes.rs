//! What changes at the API server, and what does not while it is away.

use policy_tests::cluster::ApiServer;
use serde_json::{Value, json};

use crate::setup::{A, B, Setup, deny, from};

#[test]
fn what_the_api_server_holds_is_enforced_and_every_change_of_it() {
    let mut setup = Setup::new();
    setup.apply(&deny());
    setup.pod("a", A);
    setup.pod("b", B);
    setup.agent.start().unwrap();
    setup.expect(false, "the policy was there before the agent");
    assert_eq!(setup.source()["kind"], "kubernetes");

    setup.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "a"}}})));
    setup.expect(true, "the policy changed");
    setup.label("Pod", "a", &json!({"app": "other"}));
    setup.expect(false, "the pod has another label");
    setup.label("Pod", "a", &json!({"app": "a"}));
    setup.expect(true, "and its own again");
    setup.apply(&from(&json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})));
    setup.expect(false, "the namespace has another label");
    setup.label("Namespace", "shop", &json!({"team": "b"}));
    setup.expect(true, "the namespace's label changed");

    // The client finishes, and a pod with another label gets its address at once.
    setup.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "a"}}})));
    setup.expect(true, "the client may");
    let done = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "a"},
        "status": {"phase": "Succeeded"}});
    setup.admin(|admin| admin.merge_status(&done)).unwrap();
    setup.pod("next", A);
    setup.expect(false, "the address is another pod's now");
    setup.delete("Pod", "a");
    setup.expect(false, "the first pod's end changes nothing");
    setup.delete("Pod", "next");
    setup.pod("a", A);
    setup.expect(true, "a pod of the same name and address, made again");
    let claim = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "b",
        "annotations": {"policy-agent.io/interface": "lo"}}});
    setup.admin(|admin| admin.merge(&claim)).unwrap();
    setup.apply(&deny());
    setup.expect(false, "a tenant's annotation does not move the hook");
    setup.delete("NetworkPolicy", "p");
    setup.expect(true, "no policy any more");
}

#[test]
fn an_outage_and_a_lost_history_change_nothing_but_what_changed() {
    let mut setup = Setup::started();
    setup.apply(&deny());
    setup.expect(false, "denied");
    let plan = setup.plan();
    setup.server(ApiServer::stop);
    setup.until_status(
        |s| s["sources"][0]["error"].as_str().is_some_and(|e| e.contains("cannot be reached")),
        "told",
    );
    assert!(!setup.reaches(), "still denied");
    let output = setup.agent.ctl(["wait", "--timeout", "300ms"]).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "what the server holds is not known: {told}");
    assert!(told.contains("cannot be reached") && told.contains("has arrived"), "{told}");
    assert_eq!((setup.status()["ready"].clone(), setup.plan()), (true.into(), plan.clone()));
    setup.server(ApiServer::restart).unwrap();
    setup.expect(false, "and the same when the server is back");
    assert_eq!(setup.plan(), plan, "nothing was written");
    setup.apply(&from(&json!({"podSelector": {}})));
    setup.expect(true, "changes arrive again");

    // While the agent sleeps the policy goes and comes under another name, and all history is lost.
    let pid = setup.agent.pid().unwrap().cast_signed();
    // SAFETY: a signal to a child that runs.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    setup.delete("NetworkPolicy", "p");
    let mut other = deny();
    other["metadata"]["name"] = "q".into();
    setup.apply(&other);
    setup.server(|api| {
        api.stop();
        api.compact().unwrap();
        api.restart().unwrap();
    });
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    setup.expect(false, "the difference of the new list is in force");
    let policies = setup.agent.ctl(["get", "policies", "--output", "json"]).unwrap();
    let policies = String::from_utf8_lossy(&policies.stdout).into_owned();
    assert!(policies.contains("\"q\"") && !policies.contains("\"p\""), "{policies}");
    let endpoints = setup.status()["endpoints"].clone();
    assert_eq!(endpoints["enforced"], 2, "{endpoints}");
}

#[test]
fn a_server_that_comes_late_is_waited_for_and_nothing_is_enforced_before() {
    let mut setup = Setup::new();
    setup.pod("a", A);
    setup.pod("b", B);
    setup.apply(&deny());
    setup.server(ApiServer::stop);
    setup.agent.start().unwrap();
    setup.until_status(|s| s["sources"][0]["missing"].to_string().contains("cannot be reached"), "told");
    assert_eq!(setup.source()["missing"].as_array().map(Vec::len), Some(6), "{}", setup.source());
    setup.must_reach("nobody knows any policy yet");
    setup.server(ApiServer::restart).unwrap();
    setup.expect(false, "the server came");
    // The next agent finds no server: what the first one left stays.
    setup.agent.kill().unwrap();
    setup.server(ApiServer::stop);
    setup.agent.start().unwrap();
    setup.until_status(|s| s["sources"][0]["missing"].to_string().contains("cannot be reached"), "told");
    assert!(!setup.reaches(), "an agent that knows nothing opens nothing");
    setup.server(ApiServer::restart).unwrap();
    setup.expect(false, "and knows it again");
}

#[test]
fn an_agent_whose_node_does_not_exist_is_not_ready_and_undoes_nothing() {
    let mut setup = Setup::started();
    setup.apply(&deny());
    setup.expect(false, "denied");
    setup.agent.kill().unwrap();
    setup.agent.set_arguments(&["--node-name", "node-2"]);
    setup.agent.start().unwrap();
    let why = |s: &Value| s["sources"][0]["missing"].to_string();
    setup.until_status(|s| why(s).contains("there is no Node \\\"node-2\\\""), "told");
    let status = setup.status();
    assert_eq!(
        (&status["ready"], &status["sources"][0]["synced"]),
        (&json!(false), &json!(false)),
        "{status}"
    );
    assert!(why(&status).contains("the Nodes are node-1") && why(&status).contains("hint: --node-name"));
    assert!(setup.agent.log().contains("there is no Node"), "{}", setup.agent.log());
    assert!(!setup.reaches(), "what the agent of the right name enforced stays");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}});
    setup.admin(|admin| admin.create(&node)).unwrap();
    setup.until_status(|s| s["ready"] == true, "the Node appeared");
    setup.expect(true, "it has none of these pods");
    setup.admin(|admin| admin.delete(&node)).unwrap();
    setup.until_status(|s| s["ready"] == false && why(s).contains("--node-name"), "the Node went");
}
