//! The DaemonSet's own life: a second agent, and a new version while traffic flows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use policy_tests::cluster::nodes::{node_name, until};
use policy_tests::cluster::{Cluster, deploy};
use policy_tests::probe::{Outcome, Probe, Responder, ask_all};
use policy_tests::scenario::{Port, Transport};
use serde_json::json;

/// A second agent in the same node says so and ends with its exit code, and the first one goes on.
pub(crate) fn second_agent(cluster: &Cluster) -> Result<()> {
    let mut kubectl = cluster.kubectl_command()?;
    kubectl.args(["--namespace", deploy::NAMESPACE, "exec", "daemonset/policy-agent", "--"]);
    let output = kubectl.args(["/bin/policy-agent", "run"]).output().context("run kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("another policy-agent is running") && said.contains("hint:"), "it says: {said}");
    ensure!(output.status.code() == Some(6), "exit code {:?}", output.status.code());
    deploy::ready(cluster)
}

/// While every agent is replaced: an open connection lives, allowed openings pass, denied ones do not, each of them.
pub(crate) fn rolled(cluster: &Cluster) -> Result<()> {
    cluster.namespaces(&[("rolled", json!({}))])?;
    let pods = cluster.pods(&[
        ("rolled", "server", &node_name(1), json!({"app": "server"})),
        ("rolled", "near", &node_name(1), json!({"app": "client"})),
        ("rolled", "far", &node_name(2), json!({"app": "client"})),
    ])?;
    let (server, clients) = (&pods[0], &pods[1..]);
    let [open, closed]: [Port; 2] =
        [Port { transport: Transport::Tcp, number: 7000 }, Port { transport: Transport::Tcp, number: 7001 }];
    let responder = Responder::start();
    responder.listen_at("server", &server.ns, &server.ips, &[open, closed])?;
    cluster.admin().apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "rolled", "name": "one-port"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 7000}, {"port": 8080}]}]}}))?;
    let probes: Vec<Probe> = clients
        .iter()
        .flat_map(|client| [open, closed].map(|port| (client, port)))
        .map(|(client, port)| Probe {
            ns: client.ns.clone(),
            from: client.ips[0],
            to: server.ips[0],
            port,
            size: 8,
            unconnected: false,
        })
        .collect();
    let right = |outcomes: &[Outcome]| {
        outcomes
            .iter()
            .zip(&probes)
            .all(|(o, probe)| matches!(o, Outcome::Answered(_)) == (probe.port == open))
    };
    let patience = Duration::from_millis(300);
    until("the policy is in force", || Ok(right(&ask_all(&probes, patience)?)))?;
    let stop = Arc::new(AtomicBool::new(false));
    let talks: Vec<_> = clients
        .iter()
        .map(|client| {
            let target = SocketAddr::new(server.ips[0], 8080);
            let stream = client.ns.run(|| TcpStream::connect(target)).context("open a connection")?;
            let ending = stop.clone();
            Ok(thread::spawn(move || talk(stream, &ending)))
        })
        .collect::<Result<_>>()?;
    cluster.kubectl(&["--namespace", deploy::NAMESPACE, "rollout", "restart", "daemonset/policy-agent"])?;
    let (start, mut rounds) = (Instant::now(), 0);
    let rolling = thread::scope(|scope| -> Result<()> {
        let done = scope.spawn(|| deploy::ready(cluster));
        while !done.is_finished() {
            let outcomes = ask_all(&probes, patience)?;
            ensure!(right(&outcomes), "while the agents were replaced: {outcomes:?}");
            rounds += 1;
        }
        done.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))?
    });
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let talks: Vec<u64> = talks
        .into_iter()
        .map(|talk| talk.join().map_err(|_| anyhow::anyhow!("a talking thread panicked"))?)
        .collect::<Result<_>>()?;
    rolling?;
    ensure!(talks.iter().all(|n| *n > 0), "a connection did not talk: {talks:?}");
    println!(
        "rolled in {:.1} s: {} openings judged rightly, {} requests over connections that lived on",
        took.as_secs_f32(),
        rounds * probes.len(),
        talks.iter().sum::<u64>()
    );
    Ok(())
}

/// One request after the other on one connection; how many were answered.
fn talk(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answered = 0;
    let mut bytes = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        stream
            .write_all(b"GET /hostname HTTP/1.1\r\nHost: server\r\n\r\n")
            .context("an open connection broke")?;
        let length = stream.read(&mut bytes).context("an open connection fell silent")?;
        ensure!(bytes[..length].starts_with(b"HTTP/1.1 200"), "an open connection ended");
        answered += 1;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(answered)
}
