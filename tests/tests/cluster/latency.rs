//! How fast the kernel follows the API server: measured on packets, told as numbers, never judged by the clock.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use policy_tests::cluster::nodes::{Pod, node_name, until};
use policy_tests::cluster::{Cluster, deploy};
use serde_json::{Value, json};

const ROUNDS: usize = 20;
/// Time between two packets.
const PACE: Duration = Duration::from_micros(250);

/// A stream of numbered packets from one pod to another, each with the time of its sending and whether it came.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<Vec<AtomicU64>>,
    came: Arc<Vec<AtomicBool>>,
    next: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    const LONGEST: usize = 2_000_000;

    fn start(from: &Pod, to: &Pod) -> Result<Self> {
        let target = SocketAddr::new(to.ips[0], 9000);
        let receiver = to.ns.run(|| UdpSocket::bind(target)).context("bind in a pod")?;
        receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
        let sender = from.ns.run(|| UdpSocket::bind((from.ips[0], 0))).context("bind in a pod")?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent: Arc<Vec<AtomicU64>> = Arc::new((0..Self::LONGEST).map(|_| AtomicU64::new(0)).collect());
        let came: Arc<Vec<AtomicBool>> =
            Arc::new((0..Self::LONGEST).map(|_| AtomicBool::new(false)).collect());
        let next = Arc::new(AtomicU64::new(0));
        let (ending, times, counter) = (stop.clone(), sent.clone(), next.clone());
        let send = thread::spawn(move || {
            for number in 0..Self::LONGEST as u64 {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                times[number as usize].store(now(), Ordering::Relaxed);
                // A packet that policy drops is not an error here; a full queue only makes a gap in time.
                drop(sender.send_to(&number.to_le_bytes(), target));
                counter.store(number + 1, Ordering::Release);
                thread::sleep(PACE);
            }
        });
        let (ending, marks) = (stop.clone(), came.clone());
        let receive = thread::spawn(move || {
            let mut bytes = [0; 8];
            while !ending.load(Ordering::Relaxed) {
                if receiver.recv(&mut bytes).is_ok() {
                    marks[u64::from_le_bytes(bytes) as usize].store(true, Ordering::Release);
                }
            }
        });
        Ok(Self { stop, sent, came, next, threads: vec![send, receive] })
    }

    /// Returns once the last packets came, or did not, for some time.
    fn settles(&self, flowing: bool) -> Result<()> {
        until("the stream follows", || {
            thread::sleep(Duration::from_millis(60));
            let end = (self.next.load(Ordering::Acquire) as usize).saturating_sub(40);
            Ok((end.saturating_sub(100)..end).all(|n| self.came[n].load(Ordering::Acquire) == flowing))
        })
    }

    /// Time of sending of the first packet from number `from` on that came, or did not.
    fn first(&self, from: usize, came: bool) -> Option<u64> {
        let end = self.next.load(Ordering::Acquire) as usize;
        let number = (from..end).find(|n| self.came[*n].load(Ordering::Acquire) == came)?;
        Some(self.sent[number].load(Ordering::Relaxed))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// From the API server's answer to the first packet that is dropped, and to the first that passes again.
pub(crate) fn policies(cluster: &Cluster) -> Result<()> {
    cluster.namespaces(&[("latency", json!({}))])?;
    let node = node_name(1);
    let pods = cluster.pods(&[("latency", "from", &node, json!({})), ("latency", "to", &node, json!({}))])?;
    let stream = Stream::start(&pods[0], &pods[1])?;
    let deny = default_deny("latency");
    let admin = cluster.admin();
    let (mut drops, mut passes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        stream.settles(true)?;
        let start = stream.next.load(Ordering::Acquire) as usize;
        let answered = nanos(admin.apply_timed(&deny)?);
        stream.settles(false)?;
        drops.push(milliseconds(answered, stream.first(start, false).context("nothing was dropped")?));
        let start = stream.next.load(Ordering::Acquire) as usize;
        let answered = nanos(admin.delete_timed(&deny)?);
        stream.settles(true)?;
        passes.push(milliseconds(answered, stream.first(start, true).context("nothing passed")?));
    }
    tell("apply answered -> first dropped packet", &mut drops);
    tell("delete answered -> first passed packet", &mut passes);
    Ok(())
}

/// New pods under a default deny that is there already: whether their servers answer, and how long packets reach them.
pub(crate) fn new_pods(cluster: &Cluster) -> Result<()> {
    let answers = start_pods(cluster, "fresh")?;
    ensure!(answers == 0, "servers that nobody may reach gave {answers} answers");
    Ok(())
}

/// The same with the chained CNI plugin.
pub(crate) fn new_pods_with_cni(cluster: &Cluster) -> Result<()> {
    deploy::apply_folder(cluster, "overlays/cni")?;
    let answers = start_pods(cluster, "fresh-cni")?;
    ensure!(answers == 0, "servers that nobody may reach gave {answers} answers");
    Ok(())
}

/// Starts pods one after the other; returns how many answers their servers gave.
fn start_pods(cluster: &Cluster, namespace: &str) -> Result<usize> {
    let asking = format!("{namespace}-asking");
    cluster.namespaces(&[(&asking, json!({})), (namespace, json!({}))])?;
    let node = node_name(1);
    let asker = cluster.pods(&[(&asking, "asker", &node, json!({}))])?.remove(0);
    let admin = cluster.admin();
    admin.apply(&default_deny(namespace))?;
    let (mut last, mut open, mut answered) = (asker.ips[0], Vec::new(), 0);
    for round in 0..ROUNDS {
        let name = format!("pod{round}");
        let asking = Asking::start(&asker, last)?;
        admin.create(&Cluster::pod_object(namespace, &name, &node, &json!({})))?;
        let pod = cluster.running(namespace, &name)?;
        // Its server runs; what it does not answer now, policy holds back.
        thread::sleep(Duration::from_millis(200));
        last = pod.ips[0];
        let (answers, period) = asking.end(last)?;
        answered += answers;
        open.push(reached(&pod)? as f64 * period.as_secs_f64() * 1e3);
        admin.delete(&Cluster::pod_object(namespace, &name, &node, &json!({})))?;
    }
    let touched = open.iter().filter(|time| **time > 0.0).count();
    println!(
        "new pods under a default deny: {answered} answers of servers; packets reached {touched} of {ROUNDS}"
    );
    tell("packets reach a new pod for", &mut open);
    Ok(answered)
}

/// Datagrams that the pod's kernel has seen, to an open port or none.
fn reached(pod: &Pod) -> Result<u64> {
    let text =
        pod.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).context("read counters")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no counters of UDP")?;
    let count = |wanted: &str| -> Result<u64> {
        let place = names.split(' ').position(|name| name == wanted).context("a counter is missing")?;
        values.split(' ').nth(place).and_then(|value| value.parse().ok()).context("a counter has no value")
    };
    Ok(count("InDatagrams")? + count("NoPorts")?)
}

/// Datagrams to the addresses that the next pod may get, until it is there.
struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<IpAddr>, Duration)>,
}

impl Asking {
    fn start(from: &Pod, last: IpAddr) -> Result<Self> {
        let IpAddr::V4(last) = last else { anyhow::bail!("IPv4 is asked") };
        // The plugin hands out one address after the other.
        let next: Vec<IpAddr> =
            (1..=3).map(|n| std::net::Ipv4Addr::from(u32::from(last) + n).into()).collect();
        let open = || -> std::io::Result<Vec<UdpSocket>> {
            next.iter()
                .map(|ip| {
                    let socket = UdpSocket::bind((from.ips[0], 0))?;
                    socket.connect((*ip, 8081))?;
                    socket.set_nonblocking(true).map(|()| socket)
                })
                .collect()
        };
        let sockets = from.ns.run(open).context("open sockets in a pod")?;
        let stop = Arc::new(AtomicBool::new(false));
        let ending = stop.clone();
        let thread = thread::spawn(move || {
            let (start, mut rounds, mut answers, mut bytes) = (Instant::now(), 0, Vec::new(), [0; 256]);
            while !ending.load(Ordering::Relaxed) {
                for (socket, ip) in sockets.iter().zip(&next) {
                    // A pending refusal is told in place of sending.
                    if socket.send(b"hostname").is_err() {
                        drop(socket.send(b"hostname"));
                    }
                    if socket.recv(&mut bytes).is_ok() {
                        answers.push(*ip);
                    }
                }
                rounds += 1;
                thread::sleep(Duration::from_micros(500));
            }
            (answers, start.elapsed() / rounds.max(1))
        });
        Ok(Self { stop, thread })
    }

    /// How many answers the address gave, and the time between two questions.
    fn end(self, address: IpAddr) -> Result<(usize, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        let (answers, period) = joined.map_err(|_| anyhow::anyhow!("the asking thread panicked"))?;
        Ok((answers.into_iter().filter(|ip| *ip == address).count(), period))
    }
}

fn default_deny(namespace: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})
}

fn tell(what: &str, times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: median {median:.1} ms, maximum {most:.1} ms, of {}", times.len());
}

/// From one moment to the other; nothing when the kernel was faster than the answer.
fn milliseconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

fn now() -> u64 {
    nanos(SystemTime::now())
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}
