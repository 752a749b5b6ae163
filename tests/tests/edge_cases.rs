//! Answers to questions about the API that no truth table can express, on real packets.

use policy_tests::{
    lab::Lab,
    net::{Family, Topology},
};
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}}}";
const CLOSED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

/// A byte there and back.
fn exchange(address: IpAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
    let timeout = Some(Duration::from_secs(60));
    let mut client = TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(60))?;
    let (mut server, _) = listener.accept()?;
    let mut byte = [0];
    client.set_read_timeout(timeout)?;
    server.set_read_timeout(timeout)?;
    client.write_all(b"?")?;
    server.read_exact(&mut byte)?;
    server.write_all(b"!")?;
    client.read_exact(&mut byte)
}

#[test]
fn a_pod_reaches_itself_whatever_its_policy() {
    for topology in [Topology::Ptp, Topology::Bridge] {
        let mut lab = Lab::new(topology, CLUSTER).unwrap();
        lab.policy(CLOSED).unwrap();
        lab.expect("x/b", "x/a", "TCP/80", false);
        let own = [Family::V4, Family::V6].map(|family| lab.ip("x/a", family).unwrap());
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let host = lab.host("x/a").unwrap();
        for address in loopback.into_iter().chain(own) {
            host.ns
                .run(|| exchange(address))
                .unwrap_or_else(|error| panic!("{topology:?} {address}: {error}"));
        }
    }
}

fn sctp_modules() -> Vec<String> {
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let names = modules.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| name.contains("sctp")).map(str::to_owned).collect()
}

/// The kernel loads a protocol's module when somebody makes a socket of it: the agent has none.
#[test]
fn an_sctp_policy_loads_no_kernel_module() {
    let before = sctp_modules();
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy("{podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 5000}]}]}").unwrap();
    lab.expect("x/b", "x/a", "SCTP/5000", true);
    lab.expect("x/b", "x/a", "SCTP/5001", false);
    assert_eq!(sctp_modules(), before);
}
