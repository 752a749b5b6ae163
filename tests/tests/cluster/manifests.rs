//! The seeds' manifests by `kubectl apply`, each pair of real pods asked on every port, beside the evaluator.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use policy_engine::{oracle, read, verdict::Query, world::World};
use policy_tests::cluster::nodes::{Pod, lan, node_name};
use policy_tests::cluster::{Client, Cluster};
use policy_tests::net::{Family, Netns};
use policy_tests::probe::{Outcome, Probe, Responder, Want, verdicts};
use policy_tests::scenario::{self, Port};
use serde_json::{Value, json};

/// Longest time for the agents to follow.
const PATIENCE: Duration = Duration::from_secs(20);
/// Every port that a seed names, and one that none does.
const PORTS: &[&str] =
    &["TCP/80", "TCP/443", "TCP/8080", "TCP/5432", "TCP/9090", "TCP/6379", "TCP/5978", "UDP/53", "TCP/7777"];
/// Hosts outside the cluster: the address blocks of the seeds, and what they leave out.
const OUTSIDE: &[&str] = &["54.187.174.169", "172.17.0.9", "172.17.1.9", "10.0.0.5", "203.0.113.9"];

/// Somebody who asks and answers.
struct End {
    name: String,
    ns: Arc<Netns>,
    ips: Vec<IpAddr>,
    outside: bool,
}

/// Applies each seed by itself.
pub(crate) fn seeds(cluster: &Cluster) -> Result<()> {
    let ends = ends(cluster)?;
    let responder = Responder::start();
    let ports: Vec<Port> =
        PORTS.iter().map(|port| port.parse().map_err(anyhow::Error::msg)).collect::<Result<_>>()?;
    for end in &ends {
        responder.listen_at(&end.name, &end.ns, &end.ips, &ports)?;
    }
    let questions = questions(&ends, &ports);
    let folder = scenario::root().join("deploy/examples/seeds");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    // A kind of another product, which this API server does not know.
    files.retain(|path| !path.ends_with("cilium-l7-policy.yaml"));
    files.sort();
    let mut asked = agree(cluster, &ends, &questions, "no policy")?;
    for file in &files {
        let path = file.display().to_string();
        cluster.kubectl(&["apply", "--filename", &path])?;
        asked += agree(cluster, &ends, &questions, &path)?;
        cluster.kubectl(&["delete", "--filename", &path])?;
    }
    asked += agree(cluster, &ends, &questions, "no policy again")?;
    println!("{} manifests, {asked} pairs asked on the wire, none differs from the evaluator", files.len());
    Ok(())
}

fn ends(cluster: &Cluster) -> Result<Vec<End>> {
    let labels = |text: &str| -> Value {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), json!(v)))
            .collect()
    };
    cluster.namespaces(&[
        ("production", json!({})),
        ("monitoring", json!({"name": "monitoring"})),
        ("alice", json!({"user": "alice"})),
        ("project", json!({"project": "myproject"})),
        ("kube-system", json!({})),
        ("default", json!({})),
    ])?;
    let wanted = [
        ("production", "frontend", 1, "app=frontend"),
        ("production", "backend", 2, "app=backend"),
        ("production", "database", 1, "app=database"),
        ("production", "payment", 2, "app=payment"),
        ("monitoring", "prometheus", 1, "app=prometheus"),
        ("monitoring", "grafana", 2, "app=grafana"),
        ("alice", "client", 2, "role=client"),
        ("alice", "plain", 1, ""),
        ("project", "worker", 2, ""),
        ("kube-system", "dns", 2, "k8s-app=kube-dns"),
        ("default", "db", 1, "role=db"),
        ("default", "frontend", 2, "role=frontend"),
        ("default", "client", 1, "role=client"),
    ];
    let wanted = wanted.map(|(ns, name, node, text)| (ns, name, node_name(node), labels(text)));
    let wanted: Vec<_> =
        wanted.iter().map(|(ns, name, node, l)| (*ns, *name, node.as_str(), l.clone())).collect();
    let pods = cluster.idle_pods(&wanted)?;
    let end = |Pod { namespace, name, ips, ns }| End {
        name: format!("{namespace}/{name}"),
        ns,
        ips,
        outside: false,
    };
    let mut ends: Vec<End> = pods.into_iter().map(end).collect();
    let outside: Vec<IpAddr> =
        OUTSIDE.iter().map(|ip| ip.parse().context("an address")).collect::<Result<_>>()?;
    let ns = Arc::new(lan::outside(&outside)?);
    ends.extend(outside.iter().map(|ip| End {
        name: ip.to_string(),
        ns: ns.clone(),
        ips: vec![*ip],
        outside: true,
    }));
    Ok(ends)
}

/// Every pair of ends with every port and family: (from, to, from address, to address, port).
fn questions(ends: &[End], ports: &[Port]) -> Vec<(usize, usize, IpAddr, IpAddr, Port)> {
    let mut questions = Vec::new();
    for (a, from) in ends.iter().enumerate() {
        for (b, to) in ends.iter().enumerate().filter(|(b, to)| *b != a && !(from.outside && to.outside)) {
            for source in &from.ips {
                for target in to.ips.iter().filter(|ip| ip.is_ipv4() == source.is_ipv4()) {
                    questions.extend(ports.iter().map(|port| (a, b, *source, *target, *port)));
                }
            }
        }
    }
    questions
}

/// Returns how many pairs agreed, once all do twice in a row.
fn agree(
    cluster: &Cluster,
    ends: &[End],
    questions: &[(usize, usize, IpAddr, IpAddr, Port)],
    what: &str,
) -> Result<usize> {
    let world = world(&cluster.admin())?;
    let allowed: Vec<bool> = questions
        .iter()
        .map(|(_, _, source, destination, port)| {
            let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
            let protocol = port.transport.number(family);
            let (source, destination, port) = (*source, *destination, port.number);
            oracle::verdicts(&world, &Query { source, destination, protocol, port, from_node_process: false })
                .allows()
        })
        .collect();
    let probes: Vec<Probe> = questions
        .iter()
        .map(|(a, _, from, to, port)| Probe {
            ns: ends[*a].ns.clone(),
            from: *from,
            to: *to,
            port: *port,
            size: 8,
            unconnected: false,
        })
        .collect();
    let wants: Vec<Want> =
        allowed.iter().map(|allow| if *allow { Want::Answer } else { Want::Silence }).collect();
    let (start, mut good) = (Instant::now(), 0);
    loop {
        let outcomes = verdicts(&probes, &wants)?;
        let mut wrong =
            outcomes.iter().zip(&allowed).enumerate().filter(|(_, (outcome, allow))| match outcome {
                Outcome::Answered(_) => !**allow,
                Outcome::Silent => **allow,
                Outcome::Refused(_) => true,
            });
        let Some((n, (outcome, allow))) = wrong.next() else {
            good += 1;
            if good == 2 {
                return Ok(questions.len());
            }
            continue;
        };
        ensure!(good == 0, "{what}: a verdict changed by itself");
        let (a, b, from, to, port) = &questions[n];
        ensure!(
            start.elapsed() < PATIENCE,
            "{what}: {} ({from}) -> {} ({to}) {port:?}: allow={allow} expected, {outcome:?} seen; {} more differ",
            ends[*a].name,
            ends[*b].name,
            wrong.count()
        );
    }
}

/// The evaluator's world, from what the API server holds now.
pub(crate) fn world(admin: &Client) -> Result<World> {
    let mut world = World::new("node1");
    for (path, version, kind) in [
        ("/api/v1/namespaces", "v1", "Namespace"),
        ("/api/v1/nodes", "v1", "Node"),
        ("/api/v1/pods", "v1", "Pod"),
        ("/apis/networking.k8s.io/v1/networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    ] {
        for item in admin.get(path)?["items"].as_array().into_iter().flatten() {
            let mut object = item.clone();
            // Objects in a list do not say what they are.
            object["apiVersion"] = version.into();
            object["kind"] = kind.into();
            let read = read::object(&object);
            world.apply(read.delta.with_context(|| format!("{kind} cannot be read: {object}"))?);
        }
    }
    Ok(world)
}
