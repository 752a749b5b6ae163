//! Packets larger than a link carries: the kernel cuts them up only where it must, so the programs see them whole, up to
//! the sizes for which the IP header has no number (BIG TCP).
#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use policy_tests::{
    lab::Lab,
    net::{Family, LinkSocket, Node, Rtnl, Topology},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 8080;
const BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(90);
/// How long each end waits for the other one before it looks up.
const TURN: Duration = Duration::from_millis(100);

/// Lets the kernel hand over packets of this size, on both ends of a pod's link.
fn resize(lab: &Lab, name: &str, size: u32) {
    let host = lab.host(name).unwrap();
    let set = |link: &str| {
        let rtnl = Rtnl::open().unwrap();
        rtnl.set_segmentation(rtnl.link(link).unwrap().index, size).unwrap();
    };
    host.ns.run(|| set(Node::POD_LINK));
    lab.node().ns().run(|| set(&host.host_link));
}

/// What the receiving end has read, and how often there was nothing to read for a whole turn.
#[derive(Default)]
struct Came {
    bytes: AtomicU64,
    turns: AtomicU64,
}

impl Came {
    /// Waits until so many bytes came; hands back how many did.
    fn until(&self, bytes: u64) -> u64 {
        let end = Instant::now() + PATIENCE;
        while self.bytes.load(Relaxed) < bytes && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        self.bytes.load(Relaxed)
    }

    /// Waits until there was nothing to read so many times more; hands back the bytes that came until then.
    fn after_turns(&self, turns: u64) -> u64 {
        let (wanted, end) = (self.turns.load(Relaxed) + turns, Instant::now() + PATIENCE);
        while self.turns.load(Relaxed) < wanted {
            assert!(Instant::now() < end, "bytes come and come");
            thread::sleep(Duration::from_millis(1));
        }
        self.bytes.load(Relaxed)
    }
}

/// A connection from `x/b` to `x/a` that is always full.
struct Bulk {
    client: TcpStream,
    server: TcpStream,
    frames: LinkSocket,
}

impl Bulk {
    fn new(lab: &Lab, family: Family) -> Self {
        let (from, to) = (lab.host("x/b").unwrap(), lab.host("x/a").unwrap());
        let at = SocketAddr::new(lab.ip("x/a", family).unwrap(), PORT);
        let listener = to.ns.run(|| TcpListener::bind(at)).unwrap();
        let client = from.ns.run(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap();
        let server = listener.accept().unwrap().0;
        // Nobody waits longer than this for the other end.
        client.set_write_timeout(Some(TURN)).unwrap();
        server.set_read_timeout(Some(TURN)).unwrap();
        Self { client, server, frames: LinkSocket::open(&to.ns, Node::POD_LINK).unwrap() }
    }

    /// Sends for as long as `watch` looks at what came. Whether a frame was larger than this.
    fn run<T>(mut self, larger_than: usize, watch: impl FnOnce(&Came) -> T) -> (T, bool) {
        let (came, ended) = (Came::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Relaxed) {
                    // What does not fit yet is tried again.
                    drop(self.client.write(&[7; 1 << 18]));
                }
            });
            scope.spawn(|| {
                let mut bytes = vec![0; 1 << 18];
                while !ended.load(Relaxed) {
                    match self.server.read(&mut bytes) {
                        Ok(count) => came.bytes.fetch_add(count as u64, Relaxed),
                        Err(_) => came.turns.fetch_add(1, Relaxed),
                    };
                }
            });
            let frames = &self.frames;
            let seen = scope.spawn(move || frames.find(PATIENCE, |frame| frame.len() > larger_than));
            let watched = watch(&came);
            let seen = seen.join().unwrap().unwrap();
            ended.store(true, Relaxed);
            (watched, seen.is_some())
        })
    }
}

fn ingress(rules: &str) -> String {
    format!("{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Ingress], ingress: {rules}}}")
}

#[test]
fn segments_that_travel_as_one_packet_are_judged_like_any_other() {
    const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}}}";
    // Behind a bridge: routed, no IPv6 packet of more than 64 KiB arrives, also without any program (Linux 6.18).
    let mut lab = Lab::new(Topology::Bridge, CLUSTER).unwrap();
    let allowed = ingress("[{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 8080}]}]");
    for (size, larger_than) in [(65_536, 20_000), (180_000, 70_000)] {
        for name in ["x/a", "x/b"] {
            resize(&lab, name, size);
        }
        for family in [Family::V4, Family::V6] {
            lab.policy(&allowed).unwrap();
            let (came, seen) = Bulk::new(&lab, family).run(larger_than, |came| came.until(BYTES));
            assert!(came >= BYTES, "{size} {family:?}: only {came} bytes came");
            assert!(seen, "{size} {family:?}: no frame was larger than {larger_than}");
            assert_eq!(lab.drop_reasons().unwrap(), Vec::<String>::new(), "{size} {family:?}");
        }
    }
    // A connection that is full of them ends with the policy that allowed it.
    for family in [Family::V4, Family::V6] {
        lab.policy(&allowed).unwrap();
        let bulk = Bulk::new(&lab, family);
        let (counts, seen) = bulk.run(70_000, |came| {
            let first = came.until(BYTES);
            lab.policy(&ingress("[]")).unwrap();
            // What has arrived is still read.
            let then = came.after_turns(2);
            (first, then, came.after_turns(10))
        });
        let (first, then, last) = counts;
        assert!(first >= BYTES && seen, "{family:?}: {first} bytes came");
        assert_eq!(then, last, "{family:?}: bytes came after the policy had gone");
    }
    lab.expect_drop("revoked");
}
