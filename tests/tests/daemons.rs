//! The shipped example with nginx and PostgreSQL themselves: real requests and real queries, allowed and denied, in both
//! directions, under policies that change and services that are restarted.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use policy_tests::agent::{Agent, program_path};
use policy_tests::daemon::{Daemon, http, knock, postgres, processes, query, run};
use policy_tests::group::ControlGroup;
use policy_tests::net::{Attach, Host, Netns, Node, Topology};

/// How long an answer that must come may take.
const LONG: Duration = Duration::from_secs(60);
/// How long one that must not come is waited for.
const SHORT: Duration = Duration::from_millis(600);
const OUTSIDE: &str = "198.51.100.7";
const HOST: &str = "192.0.2.1";
const HOST6: &str = "[fd00:192::1]";

/// What replaces the example's rules for the web server: it may ask one host outside.
const MORE: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 198.51.100.7/32}}]
    ports: [{port: 8000}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: http}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-outside, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 198.51.100.7/32}}]
    ports: [{port: sql}]
";

/// The two services under the agent. What is declared first goes first.
struct Setup {
    web: Option<Daemon>,
    db: Option<Daemon>,
    agent: Agent,
    web_group: ControlGroup,
    db_group: ControlGroup,
    other: ControlGroup,
    slice: ControlGroup,
    host: Arc<Netns>,
    outside: Arc<Host>,
    folder: tempfile::TempDir,
    _node: Node,
}

impl Setup {
    /// Agent and daemons run, the example's policies are in force.
    fn new(arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut node = Node::new(Topology::Ptp).unwrap();
        let outside = node.add("outside", Attach::Outside, &[OUTSIDE.parse().unwrap()]).unwrap();
        let slice = ControlGroup::slice().unwrap();
        let unit = |name: &str| format!("{name}-{}-{number}.service", std::process::id());
        let (web_unit, db_unit) = (unit("nginx"), unit("postgresql"));
        let agent = Agent::new(&node).unwrap().arguments(arguments);
        let replace = |text: String, old: &str, new: &str| {
            assert!(text.contains(old), "the example has no {old}");
            text.replace(old, new)
        };
        let services = replace(example("services.yaml"), "nginx.service", &web_unit);
        let services = replace(services, "postgresql@15-main.service", &db_unit);
        let services = replace(services, "nodeName: this-host", "nodeName: node-1");
        agent.write_manifest("services.yaml", &services).unwrap();
        agent.write_manifest("policies.yaml", &example("policies.yaml")).unwrap();
        let folder = tempfile::Builder::new().prefix("policy-test-daemons-").tempdir().unwrap();
        let mut setup = Self {
            web: None,
            db: None,
            agent,
            web_group: slice.inside(&web_unit).unwrap(),
            db_group: slice.inside(&db_unit).unwrap(),
            other: slice.inside("other.service").unwrap(),
            slice,
            host: node.ns().clone(),
            outside,
            folder,
            _node: node,
        };
        setup.prepare();
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        setup.start_web();
        setup.start_db();
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Folders and configurations of both.
    fn prepare(&self) {
        let log = self.path("nginx.log");
        let config = format!(
            "daemon off; worker_processes 1; user root; pid {pid}; error_log {log};\n\
             events {{ worker_connections 64; }}\n\
             http {{\n  access_log off; client_body_temp_path {t}; proxy_temp_path {t}; fastcgi_temp_path {t};\n  \
             uwsgi_temp_path {t}; scgi_temp_path {t};\n  \
             server {{\n    listen 80; listen [::]:80; listen 8080;\n    \
             location / {{ return 200 'nginx of the test'; }}\n    \
             location /outside {{ proxy_pass http://{OUTSIDE}:8000/; proxy_connect_timeout 1s; }}\n  }}\n}}\n",
            pid = self.path("nginx.pid").display(),
            log = log.display(),
            t = self.path("nginx.tmp").display(),
        );
        fs::write(self.path("nginx.conf"), config).unwrap();
        // The server's user must be able to come here.
        let open = |name: &str| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(self.path(name), mode).unwrap();
        };
        open("");
        fs::create_dir(self.path("data")).unwrap();
        open("data");
        let data = self.path("data").join("db");
        let mut init = postgres("initdb").unwrap();
        init.args(["--auth", "trust", "--no-sync", "--username", "postgres", "-D"]).arg(&data);
        let done = run(init, self.other.directory(), &self.host).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut rules = fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf")).unwrap();
        rules.write_all(b"host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n").unwrap();
    }

    fn start_web(&mut self) {
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(self.folder.path()).arg("-c").arg(self.path("nginx.conf"));
        let log = self.path("nginx.log");
        let daemon = self.web.insert(Daemon::start(nginx, &self.web_group, &self.host, &log).unwrap());
        daemon.listens(&self.host, 80).unwrap();
    }

    fn start_db(&mut self) {
        let mut server = postgres("postgres").unwrap();
        server.arg("-D").arg(self.path("data").join("db"));
        server.args(["-c", "listen_addresses=*", "-c", "fsync=off", "-c", "unix_socket_directories="]);
        let log = self.path("postgres.log");
        let daemon = self.db.insert(Daemon::start(server, &self.db_group, &self.host, &log).unwrap());
        daemon.listens(&self.host, 5432).unwrap();
        // It listens before it has read its own files.
        let end = Instant::now() + LONG;
        while !self.asks_db(&self.web_group, "127.0.0.1", LONG) {
            assert!(
                Instant::now() < end,
                "no answer: {}",
                fs::read_to_string(self.path("postgres.log")).unwrap()
            );
        }
    }

    /// Whether a process of the group gets an answer to a query.
    fn asks_db(&self, group: &ControlGroup, host: &str, limit: Duration) -> bool {
        let answer = query(group.directory(), &self.host, host, "select 6 * 7", limit).unwrap();
        assert!(answer.is_none() || answer.as_deref() == Some("42"), "{answer:?}");
        answer.is_some()
    }

    /// Whether the database's own processes get an answer of the web server.
    fn db_asks_web(&self, limit: Duration) -> bool {
        let fetch = format!(
            "timeout {} bash -c 'exec 3<>/dev/tcp/{HOST}/80; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3' | tail -n 1",
            limit.as_secs_f32()
        );
        let sql = format!(
            "create temp table told(line text); copy told from program $${fetch}$$; select line from told"
        );
        let answer = query(self.web_group.directory(), &self.host, HOST, &sql, LONG * 2).unwrap();
        answer.expect("the web server may ask the database").contains("nginx of the test")
    }
}

fn example(name: &str) -> String {
    let path = policy_tests::scenario::root().join("deploy/systemd/example").join(name);
    fs::read_to_string(path).unwrap()
}

fn is_nginx(ns: &Netns, at: &str, limit: Duration) -> bool {
    let answer = http(ns, at, "/", limit).unwrap();
    let genuine = answer.as_deref().is_none_or(|text| text.ends_with("nginx of the test"));
    assert!(genuine, "{answer:?}");
    answer.is_some()
}

/// A server outside that answers every request alike.
fn serve(ns: &Netns) {
    let listener = ns.run(|| TcpListener::bind("0.0.0.0:8000").unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.read(&mut [0; 1024]));
            drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\noutside of the test"));
        }
    });
}

/// Everything that the example says, at one address of the host.
fn holds_at(setup: &Setup, address: &str) {
    let Setup { web_group, db_group, other, host, .. } = setup;
    assert!(is_nginx(host, &format!("{address}:80"), LONG), "everybody asks nginx at {address}");
    assert!(setup.asks_db(web_group, address, LONG), "nginx asks the database at {address}");
    assert!(!setup.asks_db(other, address, SHORT), "another service at {address}");
    if !address.starts_with('[') {
        assert!(!is_nginx(host, &format!("{address}:8080"), SHORT), "another port at {address}");
    }
    let nothing =
        run_bash(setup, db_group, &format!("exec 3<>/dev/tcp/{}/80", address.trim_matches(['[', ']'])));
    assert!(!nothing, "the database's group asks nobody at {address}");
}

/// What somebody without a policy of its own is told by the database.
fn ask(setup: &Setup, ns: &Netns, limit: Duration) -> Option<String> {
    query(setup.slice.directory(), ns, HOST, "select 1", limit).unwrap()
}

fn run_bash(setup: &Setup, group: &ControlGroup, script: &str) -> bool {
    let mut command = Command::new("timeout");
    command.arg(SHORT.as_secs_f32().to_string()).args(["bash", "-c", script]);
    run(command, group.directory(), &setup.host).unwrap().status.success()
}

#[test]
fn nginx_and_postgresql_are_isolated_from_each_other_and_the_world() {
    let setup = Setup::new(&["--loopback", "judge"]);
    serve(&setup.outside.ns);
    for address in [HOST, HOST6, "127.0.0.1", "[::1]"] {
        holds_at(&setup, address);
    }
    let outside = &setup.outside.ns;
    assert!(is_nginx(outside, &format!("{HOST}:80"), LONG), "from outside");
    assert!(!is_nginx(outside, &format!("{HOST}:8080"), SHORT), "another port from outside");
    assert!(ask(&setup, outside, SHORT).is_none(), "the database from outside");
    let through = http(&setup.host, "127.0.0.1:80", "/outside", LONG).unwrap().unwrap();
    assert!(through.contains(" 50"), "nginx asked somebody outside: {through}");
    assert!(!setup.db_asks_web(SHORT), "PostgreSQL asked nginx");

    // What was denied is allowed, to those who are named and nobody else.
    setup.agent.write_manifest("more.yaml", MORE).unwrap();
    let mut setup = setup;
    setup.agent.wait().unwrap();
    let through = http(&setup.host, "127.0.0.1:80", "/outside", LONG).unwrap().unwrap();
    assert!(through.ends_with("outside of the test"), "{through}");
    assert!(setup.db_asks_web(LONG), "PostgreSQL may ask nginx now");
    let outside = setup.outside.ns.clone();
    let answer = ask(&setup, &outside, LONG);
    assert_eq!(answer.as_deref(), Some("1"), "the database from outside");
    assert!(!setup.asks_db(&setup.other, HOST, SHORT), "another service");

    // And taken back.
    setup.agent.remove_manifest("more.yaml").unwrap();
    setup.agent.wait().unwrap();
    assert!(http(&setup.host, "127.0.0.1:80", "/outside", LONG).unwrap().unwrap().contains(" 50"));
    assert!(!setup.db_asks_web(SHORT));
    assert!(ask(&setup, &outside, SHORT).is_none());

    setup.agent.kill().unwrap();
    holds_at(&setup, HOST);
    setup.agent.cleanup().unwrap();
    assert!(setup.asks_db(&setup.other, HOST, LONG), "after cleanup");
}

#[test]
fn a_restarted_database_is_protected_from_its_first_packet() {
    let mut setup = Setup::new(&[]);
    assert!(setup.asks_db(&setup.web_group, HOST, LONG));
    let (outside, host) = (setup.outside.ns.clone(), setup.host.clone());
    let ((), knocks) = knock(&[&outside, &host], format!("{HOST}:5432").parse().unwrap(), || {
        for _ in 0..3 {
            setup.db.take().unwrap().stop().unwrap();
            // As systemd does: the unit's group goes, and a new one comes with the start.
            setup.db_group.make_again().unwrap();
            let mut wait = Command::new(program_path("policyctl").unwrap());
            wait.arg("--socket").arg(setup.agent.socket());
            wait.args(["wait", "--pod", "shop/db", "--timeout", "60s"]);
            let waited = run(wait, setup.db_group.directory(), &setup.host).unwrap();
            assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
            setup.start_db();
            assert!(setup.asks_db(&setup.web_group, HOST, LONG), "after a restart");
        }
    });
    assert_eq!(knocks.open, 0, "connections that no policy allows");
    assert!(knocks.tried > 50);
}

#[test]
fn a_test_that_fails_leaves_nothing() {
    let mut left = Vec::new();
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let setup = Setup::new(&[]);
        let groups =
            [&setup.slice, &setup.web_group, &setup.db_group].map(|group| group.directory().to_owned());
        assert!(!processes(&groups[1]).is_empty() && !processes(&groups[2]).is_empty());
        left.extend(groups);
        left.extend([setup.agent.bpffs().to_owned(), setup.folder.path().to_owned()]);
        panic!("on purpose");
    }));
    assert!(failed.is_err());
    assert_eq!(left.len(), 5, "failed too early: {failed:?}");
    for path in left {
        assert!(!path.exists(), "{} is left", path.display());
    }
}
