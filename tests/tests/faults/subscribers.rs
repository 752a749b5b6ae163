//! Readers of events that are slow, stopped or gone, and a ring that nobody empties.

use super::setup::{actions, holds, lab, status, streams, until};
use policy_tests::net::Topology;

/// Stops or continues a process.
fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: takes numbers only; the process is a child of ours that was not waited for.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, signal) }, 0);
}

fn loss(status: &serde_json::Value, name: &str) -> u64 {
    let losses = status["losses"].as_array().unwrap();
    losses.iter().find(|loss| loss["name"] == name).and_then(|loss| loss["count"].as_u64()).unwrap()
}

#[test]
fn a_ring_that_nobody_empties_costs_events_which_are_counted_and_no_packet() {
    let mut lab = lab(Topology::Ptp, &["--verdicts"]);
    let streams = streams(&lab);
    signal(lab.agent().pid().unwrap(), libc::SIGSTOP);
    // Enough of every kind to fill the ring, from many endpoints: each has a bucket of its own.
    let frames: Vec<_> = ["x/b", "x/c", "x/d", "x/e"].map(|pod| (pod, lab.frames(pod).unwrap())).into();
    for number in 0..4_000u32 {
        for (pod, socket) in &frames {
            let (from, to) =
                (lab.ip(pod, policy_tests::net::Family::V4), lab.ip("x/a", policy_tests::net::Family::V4));
            let (source, port) = (10_000 + (number % 50_000) as u16, 8000 + (number % 97) as u16);
            let packet = policy_tests::pkt::Ip::new(from.unwrap(), to.unwrap()).udp(source, port, b"events");
            socket.send(&lab.frame(pod, "x/a", &packet).unwrap().bytes).unwrap();
        }
    }
    signal(lab.agent().pid().unwrap(), libc::SIGCONT);
    lab.agent().wait().unwrap();
    let after = status(&mut lab);
    let lost = ["events_suppressed", "events_ring_full", "verdicts_lost"].map(|name| loss(&after, name));
    assert!(lost.iter().sum::<u64>() > 0, "{after:#}");
    streams.stop().unwrap().nothing_lost().unwrap();
    lab.act(&actions(true)).unwrap();
    holds(&lab, true);
}

#[test]
fn subscribers_that_do_not_read_or_are_gone_hold_nobody_up() {
    let mut lab = lab(Topology::Ptp, &["--verdicts"]);
    let streams = streams(&lab);
    // Their output is a pipe that nobody reads; one is stopped on top of it, one is killed without a word.
    let mut slow: Vec<_> =
        (0..6).map(|_| lab.agent().ctl_child(["monitor", "--type", "drop,verdict"]).unwrap()).collect();
    signal(slow[0].id(), libc::SIGSTOP);
    slow[1].kill().unwrap();
    slow[1].wait().unwrap();
    for open in [true, false, true, false] {
        lab.act(&actions(open)).unwrap();
        holds(&lab, open);
    }
    let ready = until(&mut lab, "readiness", |status| status["ready"] == true);
    assert_eq!(ready["endpoints"]["enforced"], 5, "{ready:#}");
    streams.stop().unwrap().nothing_lost().unwrap();
    for mut reader in slow {
        drop(reader.kill());
        reader.wait().unwrap();
    }
}
