//! What lies in `deploy` beside the cluster: what Terraform's example makes is enforced as the seed's manifest is.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use policy_engine::{oracle, read, verdict::Query, world::World};
use policy_tests::scenario;
use serde::Deserialize;
use serde_json::{Value, json};

const PODS: &[(&str, &str, &str)] = &[
    ("production", "frontend", "10.244.0.1"),
    ("production", "backend", "10.244.0.2"),
    ("production", "database", "10.244.0.3"),
    ("production", "other", "10.244.0.4"),
    ("staging", "frontend", "10.244.0.5"),
    ("staging", "backend", "10.244.0.6"),
    ("staging", "database", "10.244.0.7"),
];
const PORTS: &[(u8, u16)] = &[(6, 8080), (17, 8080), (6, 5432), (17, 5432), (6, 80)];

fn world(policies: &[Value]) -> World {
    let mut world = World::new("node");
    let mut objects: Vec<Value> = ["production", "staging"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .to_vec();
    for (namespace, app, ip) in PODS {
        let metadata = json!({"namespace": namespace, "name": app, "uid": ip, "labels": {"app": app}});
        objects.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}));
    }
    for object in objects.iter().chain(policies) {
        for part in read::objects(object) {
            assert!(part.problems.is_empty(), "{object}: {:?}", part.problems);
            world.apply(part.delta.expect("an object of a known kind"));
        }
    }
    world
}

/// Every verdict between two pods, in one order.
fn verdicts(world: &World) -> Vec<bool> {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let mut verdicts = Vec::new();
    for (_, _, source) in PODS {
        for (_, _, destination) in PODS.iter().filter(|(_, _, ip)| ip != source) {
            for (protocol, port) in PORTS {
                let (source, destination) = (address(source), address(destination));
                let query =
                    Query { source, destination, protocol: *protocol, port: *port, from_node_process: false };
                verdicts.push(oracle::verdicts(world, &query).allows());
            }
        }
    }
    verdicts
}

#[test]
fn terraforms_objects_are_enforced_as_the_seed_is() {
    let deploy = scenario::root().join("deploy");
    let made: Value =
        serde_json::from_str(&fs::read_to_string(deploy.join("terraform/objects.json")).unwrap()).unwrap();
    let seed = fs::read_to_string(deploy.join("examples/seeds/terraform-pair.yaml")).unwrap();
    let seed: Vec<Value> = serde_norway::Deserializer::from_str(&seed)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect();
    let (made, seed, none) = (verdicts(&world(&[made])), verdicts(&world(&seed)), verdicts(&world(&[])));
    assert_eq!(made, seed);
    let denied = |verdicts: &[bool]| verdicts.iter().filter(|allow| !**allow).count();
    assert!(denied(&none) == 0 && denied(&made) > 0 && denied(&made) < made.len(), "{made:?}");
}

/// The example's text and its objects name the same policies, labels and ports.
#[test]
fn terraforms_example_has_what_its_objects_have() {
    let folder = scenario::root().join("deploy/terraform");
    let text = fs::read_to_string(folder.join("main.tf")).unwrap();
    let objects: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("objects.json")).unwrap()).unwrap();
    let items = objects["items"].as_array().unwrap();
    assert_eq!(text.matches("resource \"kubernetes_network_policy_v1\"").count(), items.len());
    for item in items {
        let name = item["metadata"]["name"].as_str().unwrap();
        let block = text.split("\nresource ").find(|block| block.contains(&format!("\"{name}\""))).unwrap();
        let words = |pointer: &str, key: &str| -> usize {
            let rules = item.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
            assert_eq!(block.matches(&format!("    {key} {{")).count(), rules, "{name} {key}");
            rules
        };
        let rules = words("/spec/ingress", "ingress") + words("/spec/egress", "egress");
        let ports = block.matches("port     = ").count();
        assert_eq!(ports, rules, "{name}: one port for each rule");
        for port in ["8080", "5432"] {
            let wanted = item.to_string().contains(&format!("\"port\":{port}"));
            assert_eq!(block.contains(&format!("\"{port}\"")), wanted, "{name} {port}");
        }
    }
}

/// The units as systemd reads them, with programs that are there.
#[test]
fn systemd_reads_the_units_as_they_are_meant() {
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if analyze.is_err() {
        println!("skipped: systemd-analyze is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let units = scenario::root().join("deploy/systemd");
    let read = |name: &str| {
        let text = fs::read_to_string(units.join(name)).unwrap();
        ["policy-agent", "policyctl"]
            .iter()
            .fold(text, |text, program| text.replace(&format!("/usr/local/bin/{program}"), "/bin/true"))
    };
    let verify = |agent: &str| {
        fs::write(folder.path().join("policy-agent.service"), agent).unwrap();
        let nginx = "[Unit]\nDescription=nginx\n[Service]\nExecStart=/bin/true\n";
        fs::write(folder.path().join("nginx.service"), nginx).unwrap();
        fs::create_dir_all(folder.path().join("nginx.service.d")).unwrap();
        let wait = read("example/wait-for-policy.conf");
        fs::write(folder.path().join("nginx.service.d/policy.conf"), wait).unwrap();
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no", "policy-agent.service", "nginx.service"]);
        command.current_dir(folder.path()).env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let ours = said.lines().filter(|line| line.contains("policy-agent") || line.contains("nginx"));
        (output.status.success(), ours.map(str::to_owned).collect::<Vec<_>>())
    };
    let agent = read("policy-agent.service");
    assert_eq!(verify(&agent), (true, Vec::new()));
    let wrong = agent.replace("ReadWritePaths=", "ReadWritePath=");
    assert_ne!(verify(&wrong), (true, Vec::new()), "what is wrong is not told");
}
