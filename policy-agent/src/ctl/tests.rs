//! Whole commands against a server that answers what the test wants, and against manifests on disk.

use std::fs;
use std::path::Path;

use jiff::tz::TimeZone;
use prost_types::Timestamp;

use super::*;
use crate::api::fake::{Fake, Running, directory};
use crate::events::Bus;
use crate::proto::agent::{
    Count, Drift, Endpoint, EndpointState, EndpointSummary, ExitDevice, Feature, Loss, Policy, Problem,
    SelfCheck, Services, Source, StatusResponse, TableUsage, VerifyResponse, WaitResponse,
};

/// What a command wrote, and how it ended.
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) exit: u8,
}

/// Runs a command line, words separated by spaces.
pub(crate) async fn policyctl(socket: &Path, line: &str) -> Ran {
    let socket = format!("--socket={}", socket.display());
    let words = ["policyctl", &socket].into_iter().chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut screen =
        Screen { out: Box::new(&mut out), err: Box::new(&mut err), colour: false, zone: TimeZone::UTC };
    let result = run(&cli, &mut screen).await;
    drop(screen);
    let (out, mut err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
    let exit = match result {
        Ok(()) => 0,
        Err(failure) => {
            err.push_str(&failure.to_string());
            failure.exit
        }
    };
    Ran { out, err, exit }
}

fn fake() -> Fake {
    let wait = WaitResponse { done: true, enforcement: 12, missing: Vec::new() };
    Fake { status: status(), policies: policies(), endpoints: endpoints(), wait, verify: verify() }
}

fn verify() -> VerifyResponse {
    let drift = |repaired| Drift {
        place: "HINFO".into(),
        entry: "slot 5 of 10.0.0.7".into(),
        found: "class 9".into(),
        wanted: "class 2".into(),
        repaired,
        time: None,
    };
    let (entries, hooks, trials, took_us) = (120, 4, 256, 1_500);
    let drifts = vec![drift(true)];
    VerifyResponse {
        clean: false,
        found: 1,
        drifts,
        entries,
        hooks,
        trials,
        took_us,
        enforcement: 12,
        ..Default::default()
    }
}

fn exit(name: &str, hooked: bool, detail: &str) -> ExitDevice {
    ExitDevice { name: name.into(), ifindex: 2, hooked, detail: detail.into() }
}

fn status() -> StatusResponse {
    let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
    StatusResponse {
        self_check: Some(SelfCheck {
            interval_ms: 60_000,
            rounds: 3,
            last: time(1_790_000_050),
            drifts: 1,
            recent: verify().drifts,
            ..SelfCheck::default()
        }),
        version: "1.2.3".into(),
        node_name: "node-a".into(),
        started: time(1_790_000_000),
        kernel: "6.18.0".into(),
        enforcement: 12,
        ready: false,
        sources: vec![Source {
            kind: "files".into(),
            location: "/m".into(),
            synced: true,
            last_change: time(1_790_000_060),
            error: String::new(),
            missing: Vec::new(),
        }],
        problems: vec![Problem {
            object: "NetworkPolicy shop/db".into(),
            field: "spec.ingress[0].ports[1].endPort".into(),
            message: "less than port; this entry matches nothing".into(),
            location: "/m/db.yaml:3".into(),
        }],
        endpoints: Some(EndpointSummary { total: 3, enforced: 1, pending: 1, unenforced: 1 }),
        tables: vec![TableUsage { name: "rows".into(), used: 4, limit: 512 }],
        losses: vec![Loss { name: "ring_full".into(), count: 2, help: "events that did not fit".into() }],
        exits: vec![exit("eth0", true, ""), exit("wg0", false, "no such device")],
        services: Some(Services {
            setting: "auto".into(),
            judged_by: "backends".into(),
            tags_kept: 2,
            tags_lost: vec!["veth7 (other)".into()],
            tags_unknown: vec!["veth8: not probed yet".into()],
        }),
        features: vec![Feature { name: "tcx".into(), available: false, detail: "clsact instead".into() }],
        objects: vec![Count { name: "pods".into(), count: 3 }],
    }
}

fn policies() -> Vec<Policy> {
    vec![
        Policy {
            namespace: "shop".into(),
            name: "db-allow".into(),
            kind: "NetworkPolicy".into(),
            ingress: true,
            ingress_rules: 2,
            selected_pods: 3,
            local_pods: 1,
            selector: "app=db".into(),
            problems: 1,
            ..Policy::default()
        },
        Policy {
            namespace: "shop".into(),
            name: "deny".into(),
            ingress: true,
            egress: true,
            ..Policy::default()
        },
        Policy {
            name: "guardrails".into(),
            kind: "ClusterNetworkPolicy".into(),
            egress_rules: 1,
            selected_pods: 9,
            local_pods: 2,
            tier: "Admin".into(),
            priority: 10,
            ..Policy::default()
        },
    ]
}

fn endpoints() -> Vec<Endpoint> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    vec![
        Endpoint {
            namespace: "shop".into(),
            pod: "db-0".into(),
            addresses: names(&["10.0.0.12", "fd00::12"]),
            state: EndpointState::Enforced.into(),
            interface: "veth12".into(),
            ifindex: 7,
            ingress_isolated_by: names(&["shop/db-allow", "shop/deny"]),
            egress_isolated_by: names(&["shop/deny"]),
            dropped_packets: 42,
            started_unprotected: true,
            ..Endpoint::default()
        },
        Endpoint {
            namespace: "shop".into(),
            pod: "lost".into(),
            state: EndpointState::Unenforced.into(),
            detail: "no interface found".into(),
            ..Endpoint::default()
        },
    ]
}

/// Compares with a file under `testdata`; trailing spaces are not part of an answer.
fn snapshot(name: &str, written: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl/testdata").join(name);
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written.trim_end(), expected.trim_end(), "\n{name} differs from:\n{written}");
}

#[tokio::test]
async fn answers_of_the_agent_for_people() {
    let dir = directory();
    let running = Running::start(dir.path(), fake(), Bus::new(8, 8));
    for (line, file) in
        [("status", "status.txt"), ("get policies", "policies.txt"), ("get endpoints", "endpoints.txt")]
    {
        let ran = policyctl(&running.path, line).await;
        assert_eq!((ran.exit, ran.err.as_str()), (0, ""), "{line}");
        snapshot(file, &ran.out);
    }
    running.stop().await;
}

#[tokio::test]
async fn answers_of_the_agent_for_programs() {
    let dir = directory();
    let running = Running::start(dir.path(), fake(), Bus::new(8, 8));
    let json = async |line: &str| -> serde_json::Value {
        let ran = policyctl(&running.path, line).await;
        serde_json::from_str(&ran.out).unwrap()
    };
    let status = json("status --output json").await;
    assert_eq!((&status["enforcement"], &status["ready"]), (&12.into(), &false.into()));
    assert_eq!(status["endpoints"]["unenforced"], 1);
    let policies = json("get policies -o json").await;
    assert_eq!(
        (&policies["policies"][0]["name"], &policies["policies"][1]["egress_rules"]),
        (&"db-allow".into(), &0.into())
    );
    let endpoints = json("get endpoints -o json").await;
    assert_eq!(endpoints["endpoints"][0]["state"], "ENDPOINT_STATE_ENFORCED");
    assert_eq!(endpoints["endpoints"][1]["dropped_packets"], 0, "zeros are told to programs");
    let wait = json("wait -o json").await;
    assert_eq!((&wait["done"], &wait["missing"]), (&true.into(), &serde_json::json!([])));
    running.stop().await;
}

#[tokio::test]
async fn wait_says_what_is_missing_and_exits_2() {
    let dir = directory();
    let missing = vec!["pod shop/db-0: no interface found".to_owned()];
    let wait = WaitResponse { done: false, enforcement: 3, missing };
    let running = Running::start(dir.path(), Fake { wait, ..Fake::default() }, Bus::new(8, 8));
    let ran = policyctl(&running.path, "wait --timeout 50ms").await;
    assert_eq!((ran.exit, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("after 50ms\n  pod shop/db-0: no interface found\nhint: "), "{}", ran.err);
    running.stop().await;
    let ran = policyctl(&dir.path().join("agent.sock"), "wait --timeout 1ms").await;
    assert_eq!(ran.exit, 2);
    assert!(ran.err.contains("cannot reach the agent"), "{}", ran.err);
}

#[tokio::test]
async fn without_agent_there_is_a_hint() {
    let dir = directory();
    let path = dir.path().join("agent.sock");
    for line in ["status", "get policies", "monitor", "monitor --last 1"] {
        let ran = policyctl(&path, line).await;
        assert_eq!((ran.exit, ran.out.as_str()), (1, ""), "{line}");
        assert!(
            ran.err.contains("cannot reach the agent") && ran.err.contains("hint: start policy-agent"),
            "{}",
            ran.err
        );
    }
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let ran = policyctl(&path, "status").await;
    assert!(ran.err.contains("hint: is policy-agent running?"), "{}", ran.err);
}

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: n}
status: {podIP: 10.0.0.11}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n}
status: {podIP: 10.0.0.12}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-allow, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 5432}]
"#;

async fn offline(line: &str) -> Ran {
    let dir = directory();
    fs::write(dir.path().join("all.yaml"), MANIFESTS).unwrap();
    let line = line.replace("DIR", &dir.path().display().to_string());
    policyctl(Path::new("/nonexistent"), &line).await
}

#[tokio::test]
async fn the_matrix_has_a_row_for_each_pair_and_port() {
    let ran = offline("matrix --manifests DIR --port 5432/TCP --port 80 --output json").await;
    assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
    let matrix: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(matrix["rows"].as_array().unwrap().len(), 8);
    let expected = serde_json::json!({
        "from": "shop/client", "to": "shop/db", "port": 80, "protocol": "TCP",
        "verdict": "deny", "ingress": "deny", "egress": "allow",
    });
    assert!(matrix["rows"].as_array().unwrap().contains(&expected), "{matrix}");
    let table = offline("matrix --manifests DIR --port 80").await;
    snapshot("matrix.txt", &table.out);
}

#[tokio::test]
async fn an_explanation_names_the_nearest_rule() {
    let ran = offline("explain --manifests DIR --from shop/client --to shop/db --port 9999/TCP").await;
    assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
    snapshot("explain.txt", &ran.out);
    let ran = offline("explain --manifests DIR --from 192.0.2.7 --to shop/db --port 5432 -o json").await;
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&answer["verdict"], &answer["flows"][0]["egress"]["pod"]),
        (&"deny".into(), &serde_json::Value::Null)
    );
    let nearest = &answer["flows"][0]["ingress"]["nearest_rule"];
    assert_eq!((&nearest["policy"], &nearest["field"]), (&"shop/db-allow".into(), &"address".into()));
}

#[tokio::test]
async fn a_service_is_judged_for_each_of_its_pods() {
    let more = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: data, namespace: shop}\n\
        spec: {clusterIP: 10.96.0.9, selector: {tier: data}, ports: [{port: 80, targetPort: sql}]}\n";
    let pod = |name: &str, app: &str, ip: u8, port: u16| {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, \
             labels: {{app: {app}, tier: data}}}}\nspec: {{nodeName: n, containers: [{{name: c, ports: \
             [{{name: sql, containerPort: {port}}}]}}]}}\nstatus: {{podIP: 10.0.0.{ip}}}\n"
        )
    };
    let dir = directory();
    let all = format!("{MANIFESTS}{more}{}{}", pod("db-0", "db", 20, 5432), pod("db-1", "db", 21, 5433));
    fs::write(dir.path().join("all.yaml"), all).unwrap();
    let ask = |rest: &str| {
        format!("explain --manifests {} --from shop/client --to svc/shop/{rest}", dir.path().display())
    };
    let nowhere = Path::new("/nonexistent");
    let ran = policyctl(nowhere, &ask("data --port 80 -o json")).await;
    assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let verdicts: Vec<_> =
        answer["flows"].as_array().unwrap().iter().map(|f| (&f["backend"]["port"], &f["verdict"])).collect();
    assert_eq!(answer["verdict"], "mixed");
    assert_eq!(verdicts, [(&5432.into(), &"allow".into()), (&5433.into(), &"deny".into())]);
    let ran = policyctl(nowhere, &ask("data --port 80")).await;
    assert!(ran.out.starts_with("svc/shop/data port 80/TCP leads to 2 pods"), "{}", ran.out);
    for (rest, message) in
        [("none --port 80", "no Service shop/none"), ("data --port 81", "has no port 81/TCP")]
    {
        let ran = policyctl(nowhere, &ask(rest)).await;
        assert!(ran.exit != 0 && ran.err.contains(message) && ran.err.contains("hint: "), "{}", ran.err);
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_manifests_is_told_beside_the_answer() {
    let dir = directory();
    fs::write(dir.path().join("all.yaml"), MANIFESTS.replace("port: 5432", "port: 5432, endPort: 1"))
        .unwrap();
    fs::write(dir.path().join("torn.yaml"), "{").unwrap();
    let line =
        format!("explain --manifests {} --from shop/client --to shop/db --port 5432", dir.path().display());
    let ran = policyctl(Path::new("/nonexistent"), &line).await;
    assert_eq!(ran.exit, 0);
    assert!(ran.out.contains("denied"), "{}", ran.out);
    assert!(
        ran.err.contains("spec.ingress[0].ports[0].endPort") && ran.err.contains("torn.yaml:"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn bad_questions_get_hints() {
    for (line, message, hint) in [
        ("matrix --manifests DIR/none --port 80", "cannot read", "takes a directory"),
        (
            "explain --manifests DIR --from db --to shop/db --port 80",
            "neither a pod nor an address",
            "shop/db",
        ),
        ("explain --manifests DIR --from shop/web --to shop/db --port 80", "no pod shop/web", "client, db"),
        ("explain --manifests DIR --from dev/web --to shop/db --port 80", "no pod dev/web", "in: shop"),
        ("explain --manifests DIR --from ::1 --to shop/db --port 80", "no address family in common", ""),
    ] {
        let ran = offline(line).await;
        assert_eq!((ran.exit, ran.out.as_str()), (1, ""), "{line}");
        assert!(ran.err.contains(message) && ran.err.contains(hint), "{line}: {}", ran.err);
    }
}

#[tokio::test]
async fn verify_tells_what_had_changed_by_its_exit_code() {
    let directory = directory();
    let server = Running::start(directory.path(), fake(), Bus::new(8, 8));
    let ran = policyctl(&server.path, "verify").await;
    assert_eq!(ran.exit, 3, "{}", ran.err);
    assert!(
        ran.out.contains("NOT as it should be (120 entries and 4 hooks compared, 256 packets tried, 1.5ms)")
    );
    assert!(ran.out.contains("slot 5 of 10.0.0.7"), "{}", ran.out);
    assert!(ran.err.contains("hint: "), "{}", ran.err);
    server.stop().await;
    let left = VerifyResponse { failures: vec!["pins cannot be put back".into()], ..verify() };
    let server = Running::start(directory.path(), Fake { verify: left, ..fake() }, Bus::new(8, 8));
    assert_eq!(policyctl(&server.path, "verify -o json").await.exit, 1);
    server.stop().await;
    let clean = VerifyResponse { clean: true, drifts: Vec::new(), ..verify() };
    let server = Running::start(directory.path(), Fake { verify: clean, ..fake() }, Bus::new(8, 8));
    let ran = policyctl(&server.path, "verify").await;
    assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
    server.stop().await;
}
