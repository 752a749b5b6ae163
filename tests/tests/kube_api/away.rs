//! An agent that starts while the API server is away: what an earlier one enforced stays in force, and what comes in the
//! place of an isolated pod's interface is not open.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use policy_tests::cluster::ApiServer;
use policy_tests::net::{Attach, Host, answers, is_answered};
use serde_json::json;

use crate::setup::{PATIENCE, PORT, Setup, from, ip};

const C: &str = "10.244.0.12";
const AGAIN: &str = "10.244.0.31";

/// Answers every datagram until told to stop.
fn answer(host: &Host, address: &str, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let socket = host.ns.run(|| UdpSocket::bind((address, PORT)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let stop = stop.clone();
    thread::spawn(move || {
        let mut bytes = [0; 16];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                drop(socket.send_to(&bytes[..n], from));
            }
        }
    })
}

/// Whether one of three datagrams is answered.
fn reaches(setup: &Setup, from: &str, to: &str) -> bool {
    let host = setup.node.host(from).unwrap();
    answers(&host.ns, host.ips[0], SocketAddr::new(ip(to), PORT)).unwrap()
}

/// Datagrams that are sent now are answered, however long it takes.
fn must_reach(setup: &Setup, from: &str, to: &str, why: &str) {
    let host = setup.node.host(from).unwrap();
    let answered = is_answered(&host.ns, host.ips[0], SocketAddr::new(ip(to), PORT)).unwrap();
    assert!(answered, "{why}; log:\n{}", setup.agent.log());
}

fn until(setup: &Setup, what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}; log:\n{}", setup.agent.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_agent_that_starts_without_api_server_keeps_the_last_policies_and_opens_nothing() {
    let mut setup = Setup::started();
    let stop = Arc::new(AtomicBool::new(false));
    let c = setup.node.add("c", Attach::Pod, &[ip(C)]).unwrap();
    let mut answering = vec![answer(&c, C, &stop)];
    setup.pod("c", C);
    setup.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "c"}}})));
    setup.expect(false, "only c may");
    must_reach(&setup, "c", crate::setup::B, "c may");

    setup.agent.kill().unwrap();
    setup.server(ApiServer::stop);
    setup.agent.start().unwrap();
    setup.until_status(|s| s["sources"][0]["error"] != "", "the outage is told");
    assert_eq!(setup.status()["ready"], false);
    assert!(!setup.reaches(), "the last policy; log:\n{}", setup.agent.log());
    must_reach(&setup, "c", crate::setup::B, "the last policy");

    // A runtime makes the sandbox of b anew: another interface, another address, and nobody to tell of it.
    setup.node.remove("b").unwrap();
    let again = setup.node.add("b", Attach::Pod, &[ip(AGAIN)]).unwrap();
    answering.push(answer(&again, AGAIN, &stop));
    until(&setup, "the new interface is closed", || !reaches(&setup, "c", AGAIN));
    assert!(!reaches(&setup, "a", AGAIN) && !reaches(&setup, "c", AGAIN));
    must_reach(&setup, "a", C, "others are as they were");

    // The server is back, but what it has of b is its former address.
    setup.server(ApiServer::restart).unwrap();
    setup.until_status(|s| s["sources"][0]["synced"] == true, "it is asked");
    assert!(!reaches(&setup, "a", AGAIN) && !reaches(&setup, "c", AGAIN), "log:\n{}", setup.agent.log());
    let told = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "b"},
        "status": {"phase": "Running", "podIP": AGAIN, "podIPs": [{"ip": AGAIN}]}});
    setup.admin(|admin| admin.merge_status(&told)).unwrap();
    setup.agent.wait().unwrap();
    must_reach(&setup, "c", AGAIN, "c may, by the new address too");
    assert!(!reaches(&setup, "a", AGAIN), "log:\n{}", setup.agent.log());
    stop.store(true, Ordering::Relaxed);
    answering.into_iter().for_each(|thread| thread.join().unwrap());
}
