//! Services on a node where another program takes the tags: told, and judged by all their backends where that is wanted.

use super::cluster::*;
use policy_tests::{
    nat::Front,
    net::{Family, Topology},
    probe::Link,
};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

/// Longest wait for the agent to notice what another program does: it looks every ten seconds.
const NOTICE: Duration = Duration::from_secs(60);

/// A Service of the API, with the EndpointSlices that its controller would write, and the translation of kube-proxy.
struct Service<'a> {
    n: u8,
    port: u16,
    node_port: Option<u16>,
    pods: &'a [&'a str],
    target: u16,
}

impl Service<'_> {
    fn put(&self, c: &mut Cluster) {
        let Self { n, port, node_port, pods, target } = *self;
        let name = format!("s{n}");
        let outer = |f| balancer(f, n);
        let mut ports = json!([{"name": "p", "port": port, "protocol": "TCP", "targetPort": target}]);
        if let Some(number) = node_port {
            ports[0]["nodePort"] = number.into();
        }
        let ips = |ip: &dyn Fn(Family) -> IpAddr| BOTH.map(|f| ip(f).to_string());
        let mut actions = vec![json!({"apply": {
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": name},
            "spec": {"clusterIPs": ips(&|f| cluster_ip(f, n)), "ports": ports, "type": "LoadBalancer"},
            "status": {"loadBalancer": {"ingress": ips(&outer).map(|ip| json!({"ip": ip}))}},
        }})];
        for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let endpoint = |pod: &&str| json!({"addresses": [c.lab.ip(pod, family).unwrap()]});
            let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
            let labels = json!({"kubernetes.io/service-name": name});
            actions.push(json!({"apply": {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
                "metadata": {"namespace": "x", "name": format!("{name}-{kind}"), "labels": labels},
                "ports": [{"name": "p", "port": target, "protocol": "TCP"}], "endpoints": endpoints,
            }}));
        }
        c.lab.act(&Value::from(actions).to_string()).unwrap();
        c.service(n, port, pods, target);
        c.forward(|f| Front::Address(SocketAddr::new(balancer(f, n), port)), pods, target);
        if let Some(number) = node_port {
            c.forward(|_| Front::NodePort(number), pods, target);
        }
    }
}

fn service<'a>(n: u8, pods: &'a [&'a str]) -> Service<'a> {
    Service { n, port: 80, node_port: None, pods, target: 8080 }
}

/// The node's own address.
fn node(c: &Cluster) -> impl Fn(Family) -> IpAddr + use<> {
    let own = BOTH.map(|f| c.lab.ip("node:node-1", f).unwrap());
    move |f| own[usize::from(f == Family::V6)]
}

/// Takes the tags of what these pods send.
fn take_tags(c: &Cluster, pods: &[&str]) {
    for pod in pods {
        accept_everything(c, &c.lab.host(pod).unwrap().host_link.clone());
    }
}

/// What `policyctl status` says of Services.
fn told(c: &mut Cluster) -> (Value, bool) {
    let output = c.lab.agent().ctl(["status", "--output", "json"]).unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    (status["services"].clone(), status["ready"].as_bool().unwrap())
}

fn wait_until(c: &mut Cluster, what: &str, holds: impl Fn(&Value, bool) -> bool) {
    let end = Instant::now() + NOTICE;
    let mut last = Value::Null;
    while Instant::now() < end {
        let (services, ready) = told(c);
        if holds(&services, ready) {
            return;
        }
        last = json!({"services": services, "ready": ready});
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("not told: {what}: {last}\n{}", c.lab.agent().log());
}

/// A pod that may open nothing, but answers.
const SILENT: &str = "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
    metadata: {namespace: x, name: good}, spec: {podSelector: {matchLabels: {app: good}}, \
    policyTypes: [Egress], egress: []}}}]";

#[test]
fn all_backends_judge_where_tags_are_lost() {
    for topology in topologies() {
        let mut c = Cluster::new(topology, &["--attach", "clsact", "--services", "backends"]);
        c.listen(PODS, &[8080, 9090]);
        for service in [
            Service { node_port: Some(30_080), ..service(1, &["x/good"]) },
            Service { node_port: Some(30_081), ..service(2, &["x/bad"]) },
            service(3, &["x/good", "x/bad"]),
            service(4, &[]),
            service(5, &["x/far-good"]),
            Service { node_port: Some(30_083), ..service(6, &["x/far-bad"]) },
            Service { target: 9090, ..service(7, &["x/good"]) },
            service(8, &["x/shut"]),
        ] {
            service.put(&mut c);
        }
        let (vip, own) = (|n| move |f| cluster_ip(f, n), node(&c));
        for n in [1, 2, 3, 5, 6, 7, 8] {
            c.check("x/client", vip(n), "TCP/80", Pass);
        }
        c.check("x/client", vip(4), "TCP/80", BeRefused);
        c.lab.act(POLICIES).unwrap();
        c.lab.act(SILENT).unwrap();
        for lost in [false, true] {
            if lost {
                take_tags(&c, &["x/client", "x/other", "x/good", "x/bad", "x/shut"]);
            }
            for (n, should) in [
                (1, Pass),
                (2, Vanish),
                (3, Vanish),
                (4, Vanish),
                (5, Pass),
                (6, Vanish),
                (7, Vanish),
                (8, Pass),
            ] {
                c.check("x/client", vip(n), "TCP/80", should);
                c.check("x/client", move |f| balancer(f, n), "TCP/80", should);
            }
            // A port that is no Service's is judged by the address.
            c.check("x/client", vip(1), "TCP/81", Vanish);
            for (port, should) in [(30_080, Pass), (30_081, Vanish), (30_083, Vanish)] {
                c.check("x/client", &own, &format!("TCP/{port}"), should);
            }
            c.check("x/other", vip(2), "TCP/80", Pass);
            // Ingress is judged by who sends, and a masqueraded sender without a tag is nobody that a policy names.
            c.check("x/other", vip(8), "TCP/80", Vanish);
            c.check("ext:web", &own, "TCP/30080", Pass);
        }
        // A backend that comes, or loses its label.
        let mut link =
            Link::open(&c.probe("x/client", cluster_ip(Family::V4, 1), "TCP/80"), ALIVE).unwrap().unwrap();
        service(3, &["x/good"]).put(&mut c);
        c.check("x/client", vip(3), "TCP/80", Pass);
        assert!(link.is_alive(ALIVE).unwrap());
        c.lab.act("[{set-labels: {pod: x/good, labels: {app: gone}}}]").unwrap();
        c.check("x/client", vip(3), "TCP/80", Vanish);
        assert!(!link.is_alive(CUT).unwrap(), "{topology:?}: cut at once");
    }
}

#[test]
fn a_node_that_loses_tags_falls_back_by_itself_if_it_may() {
    for (topology, pods) in topologies().into_iter().zip([["x/client"], ["x/good"]]) {
        let mut c = Cluster::new(topology, &["--attach", "clsact", "--services", "auto"]);
        c.listen(PODS, &[8080]);
        service(1, &["x/good"]).put(&mut c);
        service(2, &["x/bad"]).put(&mut c);
        service(3, &["x/far-good", "x/far-bad"]).put(&mut c);
        // The translation chooses one of them for good: a tag shows which.
        c.service(3, 80, &["x/far-good"], 8080);
        c.lab.act(POLICIES).unwrap();
        c.lab.act(SILENT).unwrap();
        wait_until(&mut c, "tags survive", |services, ready| {
            services["judged_by"] == "tag" && services["tags_kept"] == 5 && ready
        });
        let vip = |n| move |f| cluster_ip(f, n);
        let truth = |c: &Cluster, mixed| {
            for (n, should) in [(1, Pass), (2, Vanish), (3, mixed)] {
                c.check("x/client", vip(n), "TCP/80", should);
            }
        };
        truth(&c, Pass);
        take_tags(&c, &pods);
        wait_until(&mut c, "fallback", |services, ready| services["judged_by"] == "backends" && ready);
        truth(&c, Vanish);
        // What one agent has found out the next one starts with.
        c.lab.agent().kill().unwrap();
        c.lab.agent().start().unwrap();
        c.lab.agent().wait().unwrap();
        truth(&c, Vanish);
        let link = c.lab.host(pods[0]).unwrap().host_link.clone();
        let mut command = Command::new("tc");
        command.args(["filter", "del", "dev", &link, "ingress", "prio", "9"]);
        c.lab.node().ns().enter_command(&mut command).unwrap();
        assert!(command.output().unwrap().status.success());
        wait_until(&mut c, "back", |services, ready| services["judged_by"] == "tag" && ready);
        truth(&c, Pass);
    }
}

/// By default the node stays with the tag: closed in doubt, and not ready. At a bridge it is lost on its way up.
#[test]
fn a_lost_tag_is_told() {
    for topology in topologies() {
        let mut c = Cluster::new(topology, &["--attach", "clsact"]);
        c.lab.act(POLICIES).unwrap();
        wait_until(&mut c, "tags survive", |services, ready| services["tags_kept"] == 5 && ready);
        let place = match topology {
            Topology::Ptp => c.lab.host("x/other").unwrap().host_link.clone(),
            Topology::Bridge => "cni0".to_owned(),
        };
        accept_everything(&c, &place);
        wait_until(&mut c, "lost", |services, ready| {
            services["tags_lost"].as_array().is_some_and(|lost| !lost.is_empty()) && !ready
        });
        let told = told(&mut c).0["tags_lost"].to_string();
        assert!(topology == Topology::Bridge || told.contains(&place), "{told}");
        let waited = c.lab.agent().ctl(["wait", "--timeout", "1s"]).unwrap();
        let text = String::from_utf8_lossy(&waited.stderr).into_owned();
        assert!(waited.status.code() == Some(2) && text.contains("--services auto"), "{text}");
        let text = c.lab.agent().ctl(["status"]).unwrap();
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains("LOST at"), "{text}");
    }
}
