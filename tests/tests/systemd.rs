//! The shipped units under a real systemd, by the words of `deploy/systemd/example/README.md`: services whose control
//! groups systemd makes, which it starts and restarts; and the agent as one of its services.
//!
//! The services have names of their own in each test: all systemds of a machine share one hierarchy, and a unit that is
//! there twice is nobody's.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use policy_tests::daemon::{http, knock, query};
use policy_tests::net::{Attach, Host, Netns, Node, Topology};
use policy_tests::systemd::Systemd;

/// How long an answer that must come may take.
const LONG: Duration = Duration::from_secs(60);
/// How long one that must not come is waited for.
const SHORT: Duration = Duration::from_millis(600);
const OUTSIDE: &str = "198.51.100.7";
const HOST: &str = "192.0.2.1";

/// nginx says who it is, and asks others: a peer that is not reached in time is another failure than one that does not
/// talk HTTP.
const NGINX: &str = "\
worker_processes 1; user root; pid /run/nginx.pid; error_log /run/nginx.log;
events { worker_connections 64; }
http {
  access_log off; proxy_connect_timeout 1s;
  server {
    listen 80; listen 8080;
    location / { return 200 'nginx of the test'; }
    location /db { proxy_pass http://192.0.2.1:5432/; }
    location /outside { proxy_pass http://198.51.100.7:8000/; }
  }
}
";

/// A host on which the example was installed. What is declared first goes first.
struct Setup {
    systemd: Systemd,
    web: String,
    db: String,
    ns: Arc<Netns>,
    outside: Arc<Host>,
    _node: Node,
}

fn shipped(name: &str) -> String {
    let path = policy_tests::scenario::root().join("deploy/systemd").join(name);
    fs::read_to_string(path).unwrap()
}

impl Setup {
    /// Nothing runs yet.
    fn new() -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let outside = node.add("outside", Attach::Outside, &[OUTSIDE.parse().unwrap()]).unwrap();
        let ns = node.ns().clone();
        let systemd = Systemd::start(&ns).unwrap();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (version, test) = (version_of_postgresql(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("t{}x{test}", std::process::id());
        let (web, db) = (format!("nginx-{name}.service"), format!("postgresql@{version}-{name}.service"));
        let setup = Self { systemd, web, db, ns, outside, _node: node };
        setup.install(&version, &name);
        setup
    }

    fn install(&self, version: &str, name: &str) {
        let Self { systemd, web, db, .. } = self;
        for name in ["services.yaml", "policies.yaml"] {
            let text = shipped(&format!("example/{name}")).replace("nginx.service", web);
            let text = text.replace("postgresql@15-main.service", db);
            systemd.write(&format!("/etc/policy-agent/manifests/{name}"), &text).unwrap();
        }
        let units = "/etc/systemd/system";
        systemd.write(&format!("{units}/policy-agent.service"), &shipped("policy-agent.service")).unwrap();
        let log = "[Service]\nStandardError=append:/run/policy-agent.log\n";
        systemd.write(&format!("{units}/policy-agent.service.d/log.conf"), log).unwrap();
        let wait = shipped("example/wait-for-policy.conf");
        systemd.write(&format!("{units}/{web}.d/policy.conf"), &wait).unwrap();
        let wait = wait.replace("shop/web", "shop/db");
        systemd.write(&format!("{units}/{db}.d/policy.conf"), &wait).unwrap();
        for (unit, here) in [("nginx.service", web.as_str()), ("postgresql@.service", "postgresql@.service")]
        {
            let text = fs::read_to_string(format!("/lib/systemd/system/{unit}")).unwrap();
            systemd.write(&format!("{units}/{here}"), &text).unwrap();
        }
        systemd.write("/etc/nginx/nginx.conf", NGINX).unwrap();
        let script = format!(
            "set -e; mkdir -p /run/postgresql /var/log/postgresql; \
             chown postgres /run/postgresql /var/log/postgresql; \
             pg_createcluster --locale C --port 5432 {version} {name} -- --auth trust --no-sync; \
             cd /etc/postgresql/{version}/{name}; echo 'host all all 0.0.0.0/0 trust' >> pg_hba.conf; \
             printf \"listen_addresses = '*'\\nfsync = off\\nssl = off\\n\" >> postgresql.conf"
        );
        let made = systemd.command(["sh", "-c", &script]).unwrap().output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        systemd.must(["daemon-reload"]).unwrap();
    }

    /// Runs `systemctl`; the agent's log is told if it fails.
    fn must(&self, arguments: &[&str]) {
        if let Err(error) = self.systemd.must(arguments) {
            let log = fs::read_to_string(self.systemd.path("/run/policy-agent.log")).unwrap_or_default();
            let state = self.systemd.must(["status", &self.web, &self.db]).unwrap_or_default();
            panic!("{arguments:?}: {error:#}\n{state}\n{log}");
        }
    }

    fn policyctl(&self, arguments: &[&str]) -> String {
        let mut command = self.systemd.command(["/usr/local/bin/policyctl"]).unwrap();
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn group(&self, unit: &str) -> PathBuf {
        self.systemd.group(unit).unwrap().unwrap_or_else(|| panic!("{unit} has no group"))
    }

    /// A query from a process in the group of a unit.
    fn asks_db(&self, unit: &str, limit: Duration) -> bool {
        let answer = query(&self.group(unit), &self.ns, HOST, "select 6 * 7", limit).unwrap();
        assert!(answer.is_none() || answer.as_deref() == Some("42"), "{answer:?}");
        answer.is_some()
    }

    fn web(&self, ns: &Netns, port: u16, path: &str, limit: Duration) -> Option<String> {
        http(ns, &format!("{HOST}:{port}"), path, limit).unwrap()
    }

    /// What the example says.
    fn holds(&self) {
        let outside = &self.outside.ns;
        assert!(self.web(outside, 80, "/", LONG).unwrap().ends_with("nginx of the test"), "from outside");
        assert!(self.web(&self.ns, 80, "/", LONG).unwrap().ends_with("nginx of the test"), "from the host");
        assert_eq!(self.web(outside, 8080, "/", SHORT), None, "another port");
        let through = self.web(outside, 80, "/db", LONG).unwrap();
        assert!(through.contains("502 Bad Gateway"), "the database does not talk HTTP: {through}");
        let through = self.web(outside, 80, "/outside", LONG).unwrap();
        assert!(through.contains("504 Gateway"), "nginx asks nobody outside: {through}");
        assert!(self.asks_db(&self.web, LONG), "nginx asks the database");
        let strangers = query(&self.group("init.scope"), &self.ns, HOST, "select 1", SHORT).unwrap();
        assert_eq!(strangers, None, "systemd itself asks the database");
        assert!(!outside.reaches(&format!("{HOST}:5432"), SHORT), "from outside");
    }

    fn state_of_agent(&self) -> String {
        self.systemd.must(["show", "--property=ActiveState", "--value", "policy-agent"]).unwrap()
    }
}

fn version_of_postgresql() -> String {
    let all = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = all.map(|entry| entry.file_name().into_string().unwrap()).max();
    newest.expect("PostgreSQL is installed: cargo xtask setup")
}

/// The port of the database, which nobody but nginx may reach.
fn database() -> SocketAddr {
    format!("{HOST}:5432").parse().unwrap()
}

#[test]
fn the_shipped_units_isolate_services_from_their_first_packet() {
    let setup = Setup::new();
    // As at a boot: all in one transaction, and nobody is ready yet.
    let (outside, host) = (&setup.outside.ns, &setup.ns);
    let ((), knocks) = knock(&[outside, host], database(), || {
        setup.must(&["enable", "policy-agent"]);
        setup.must(&["start", "policy-agent", &setup.web, &setup.db]);
        setup.holds();
    });
    assert_eq!(knocks.open, 0, "connections at the first start");
    let told = setup.policyctl(&["get", "endpoints"]);
    assert!(told.contains(&setup.web) && told.contains(&setup.db), "{told}");

    // Restarts: each makes the unit's group anew.
    let before = fs::metadata(setup.group(&setup.db)).unwrap();
    let ((), knocks) = knock(&[outside, host], database(), || {
        for _ in 0..3 {
            setup.must(&["restart", &setup.db]);
            assert!(setup.asks_db(&setup.web, LONG), "after a restart");
        }
    });
    assert_eq!(knocks.open, 0, "connections at a restart, of {}", knocks.tried);
    assert!(knocks.tried > 50);
    let after = fs::metadata(setup.group(&setup.db)).unwrap();
    assert_ne!(
        std::os::unix::fs::MetadataExt::ino(&before),
        std::os::unix::fs::MetadataExt::ino(&after),
        "the group is the same one"
    );
    setup.must(&["restart", &setup.web]);
    setup.holds();
}

#[test]
fn a_restart_of_the_agents_unit_loses_nothing() {
    let setup = Setup::new();
    setup.must(&["enable", "--now", "policy-agent"]);
    setup.must(&["start", &setup.web, &setup.db]);
    setup.holds();
    // A connection that is open, and one that must never be.
    let mut open = setup.outside.ns.run(|| TcpStream::connect(format!("{HOST}:80"))).unwrap();
    open.set_read_timeout(Some(LONG)).unwrap();
    let (outside, host) = (&setup.outside.ns, &setup.ns);
    let ((), knocks) = knock(&[outside, host], database(), || {
        for _ in 0..3 {
            setup.must(&["restart", "policy-agent"]);
            write!(open, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"nginx of the test") {
                let mut bytes = [0; 512];
                let count = open.read(&mut bytes).unwrap();
                assert_ne!(count, 0, "the connection ended: {}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&bytes[..count]);
            }
            setup.policyctl(&["wait", "--timeout", "60s"]);
            setup.holds();
        }
    });
    assert_eq!(knocks.open, 0, "connections at a restart of the agent, of {}", knocks.tried);

    // Stopping it leaves enforcement as it is; what it needs is left to the next one.
    setup.must(&["stop", "policy-agent"]);
    assert_eq!(setup.state_of_agent().trim(), "inactive");
    setup.holds();
    // A service that asks for its policy does not start without an agent: systemd starts one.
    setup.must(&["restart", &setup.db]);
    assert_eq!(setup.state_of_agent().trim(), "active");
    setup.holds();

    setup.must(&["stop", "policy-agent"]);
    let mut cleanup = setup.systemd.command(["/usr/local/bin/policy-agent", "cleanup"]).unwrap();
    let output = cleanup.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(setup.outside.ns.reaches(&database().to_string(), LONG), "after cleanup");
}
