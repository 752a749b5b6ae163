//! A way out whose packets begin with the IP header, as those of WireGuard and of tunnels do: judged there all the same.

use super::cluster::*;
use policy_tests::net::{Family, Netns, Topology};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt as _},
    time::{Duration, Instant},
};

const NAME: &str = "tun0";
/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Request of the tun driver: make this device.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// A device without link layer, whose packets come as they are.
const FLAGS: libc::c_short = 0x1001;

/// What leaves by the device arrives here.
struct Tun(File);

impl Tun {
    /// Makes the device; `None` where the kernel has no such devices.
    fn open(ns: &Netns) -> Option<Self> {
        ns.run(|| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            let file = options.open("/dev/net/tun").ok()?;
            let mut request = [0u8; 40];
            request[..NAME.len()].copy_from_slice(NAME.as_bytes());
            request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
            // SAFETY: the request is as large as the driver's structure, and lives through the call.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
            (made == 0).then_some(Self(file))
        })
    }

    /// Whom TCP segments that have left so far were addressed to.
    fn targets(&mut self) -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        let mut packet = [0; 2048];
        while let Ok(length) = self.0.read(&mut packet) {
            found.extend(target(&packet[..length]));
        }
        found
    }

    fn wait_for(&mut self, wanted: SocketAddr) -> BTreeSet<SocketAddr> {
        let (mut seen, end) = (BTreeSet::new(), Instant::now() + PATIENCE);
        while !seen.contains(&wanted) {
            assert!(Instant::now() < end, "nothing towards {wanted} has left, only {seen:?}");
            seen.extend(self.targets());
            std::thread::sleep(Duration::from_millis(5));
        }
        seen
    }
}

fn target(packet: &[u8]) -> Option<SocketAddr> {
    let (ip, transport) = match packet.first()? >> 4 {
        4 if packet[9] == 6 => {
            (IpAddr::from(*packet[16..].first_chunk::<4>()?), usize::from(packet[0] & 15) * 4)
        }
        6 if packet[6] == 6 => (IpAddr::from(*packet[24..].first_chunk::<16>()?), 40),
        _ => return None,
    };
    let port = packet.get(transport + 2..)?.first_chunk::<2>()?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Sends at least one segment that opens.
fn knock(c: &Cluster, from: &str, to: SocketAddr) {
    let ns = c.lab.host(from).unwrap().ns.clone();
    ns.run(|| drop(TcpStream::connect_timeout(&to, Duration::from_millis(50))));
}

#[test]
fn devices_without_a_link_layer_are_exits_too() {
    let mut c = Cluster::new(Topology::Ptp, &[]);
    let Some(mut tun) = Tun::open(c.lab.node().ns()) else {
        println!("skipped: this kernel has no tun devices");
        return;
    };
    let rtnl = c.lab.node().rtnl();
    let (device, uplink) = (rtnl.link(NAME).unwrap().index, rtnl.link("uplink0").unwrap().index);
    rtnl.set_up(device).unwrap();
    for pod in ["x/far-good", "x/far-bad"] {
        for family in BOTH {
            let ip = c.lab.ip(pod, family).unwrap();
            rtnl.delete_route(ip.into(), uplink).unwrap();
            rtnl.add_route(ip.into(), device, None).unwrap();
        }
    }
    c.service(3, 80, &["x/far-good"], 8080);
    c.service(4, 80, &["x/far-bad"], 8080);
    c.lab.act(POLICIES).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let output = c.lab.agent().ctl(["status", "--output", "json"]).unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let exits = status["exits"].as_array().unwrap();
        if exits.iter().any(|exit| exit["name"] == NAME && exit["hooked"] == true) {
            break;
        }
        assert!(Instant::now() < end, "not hooked: {exits:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let vip = |family: Family, n| SocketAddr::new(cluster_ip(family, n), 80);
    for family in BOTH {
        let far = |pod: &str| SocketAddr::new(c.lab.ip(pod, family).unwrap(), 8080);
        let (good, bad) = (far("x/far-good"), far("x/far-bad"));
        // Who is not isolated goes anywhere, so a denial means something.
        knock(&c, "x/other", vip(family, 4));
        tun.wait_for(bad);
        tun.targets();
        knock(&c, "x/client", vip(family, 4));
        knock(&c, "x/client", vip(family, 3));
        let seen = tun.wait_for(good);
        assert!(!seen.contains(&bad), "{seen:?}");
    }
    c.lab.expect_drop("no_rule_matched");
}
