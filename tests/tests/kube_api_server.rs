//! The harness of the API server itself: what the suites on top of it rely on.

use std::path::PathBuf;

use policy_tests::cluster::{ApiServer, Options, version};
use serde_json::json;

#[test]
fn objects_users_restart_compaction_and_the_end() {
    let users = vec!["agent".to_owned()];
    let mut api = ApiServer::start_with(Options { users, ..Options::default() }).unwrap();
    let admin = api.admin();
    assert_eq!(admin.get("/version").unwrap()["gitVersion"], format!("v{}", version()));

    // what it admits, defaults and refuses
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    let made = admin.create(&namespace).unwrap();
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {}}});
    assert_eq!(admin.apply(&policy).unwrap()["spec"]["policyTypes"], json!(["Ingress"]));
    let mut bad = policy.clone();
    bad["spec"]["ingress"] = json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]);
    assert!(admin.apply(&bad).unwrap_err().to_string().contains("422"));

    // a pod as a kubelet would tell of it
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "a"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    admin.create(&pod).unwrap();
    let status = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "a"},
        "status": {"phase": "Running", "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}]}});
    assert_eq!(admin.merge_status(&status).unwrap()["status"]["podIP"], "10.244.0.5");

    // permissions
    let agent = api.client("agent-token");
    let list = "/api/v1/pods";
    assert_eq!(agent.request("GET", list, None).unwrap().status, 403);
    assert_eq!(api.client("nobody").request("GET", list, None).unwrap().status, 401);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    admin.apply(&role).unwrap();
    api.bind("agent", "reader").unwrap();
    let token = api.service_account("x", "robot").unwrap();
    api.bind_service_account("x", "robot", "reader").unwrap();
    for client in [agent, api.client(&token)] {
        // The authorizer learns of bindings by a watch of its own.
        let seen = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            client.request("GET", list, None).is_ok_and(|answer| answer.status == 200)
        });
        assert!(seen, "the binding has no effect");
    }

    // away, back, and without its past
    let before = admin.get(list).unwrap()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    admin.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y"}})).unwrap();
    api.stop();
    assert_eq!(admin.request("GET", "/readyz", None).unwrap().status, 0);
    api.compact().unwrap();
    api.restart().unwrap();
    assert_eq!(admin.get(list).unwrap()["items"][0]["metadata"]["name"], "a");
    let watch = format!("{list}?watch=1&timeoutSeconds=5&resourceVersion={before}");
    let answer = admin.request("GET", &watch, None).unwrap();
    assert!(answer.text.contains("\"code\":410"), "{}", answer.text);

    let processes: Vec<PathBuf> =
        api.processes().iter().map(|id| PathBuf::from(format!("/proc/{id}"))).collect();
    let folder = api.kubeconfig.parent().unwrap().to_path_buf();
    assert!(processes.len() == 2 && processes.iter().all(|path| path.exists()) && folder.exists());
    drop(api);
    assert!(!processes.iter().any(|path| path.exists()) && !folder.exists());
}
