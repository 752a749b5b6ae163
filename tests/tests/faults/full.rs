//! Maps that somebody else has filled, and no memory or descriptors for new ones.

use super::setup::{actions, holds, is_clean, lab, streams, tells, until};
use policy_agent::datapath::spec::MapId;
use policy_tests::{
    lab::Lab,
    net::{Family, Topology},
    tamper::Tamper,
};

/// Elements of strangers until the map has no room; which error the kernel gives then.
fn fill(lab: &mut Lab, map: MapId) -> i32 {
    let held = Tamper::new(lab.agent().bpffs()).map(map).unwrap();
    let spec = map.spec();
    let key = |number: u32| match map {
        // A prefix that is inside nobody's network: 198.18.0.0/15, or below fd42::/16.
        MapId::Prefix4 => [&32u32.to_ne_bytes()[..], &(0xc612_0000 + number).to_be_bytes()].concat(),
        MapId::Prefix6 => {
            let mut key =
                [&128u32.to_ne_bytes()[..], &[0xfd, 0x42], &[0; 10], &number.to_be_bytes()].concat();
            key.truncate(spec.key as usize);
            key
        }
        MapId::Hosts6 => [&[0xfd, 0x42][..], &[0; 10], &number.to_be_bytes()].concat(),
        MapId::Hosts4 => (0xc612_0000 + number).to_be_bytes().to_vec(),
        MapId::IfaceX => (1_000_000 + number).to_ne_bytes().to_vec(),
        _ => [&(5000 + number).to_ne_bytes()[..], &4u32.to_ne_bytes(), &[0; 16]].concat(),
    };
    let value = vec![0; spec.value as usize];
    let full = (0..=spec.entries).map(|number| held.insert(&key(number), &value, 0)).find_map(Result::err);
    full.expect("it never gets full").raw_os_error().unwrap()
}

#[test]
fn tables_that_somebody_else_filled_are_cleared_and_meanwhile_nothing_opens() {
    let mut lab = lab(Topology::Ptp, &["--self-check", "off"]);
    let streams = streams(&lab);
    let (mut open, mut told) = (false, false);
    for map in [MapId::Hosts4, MapId::Hosts6, MapId::Prefix4, MapId::Prefix6] {
        let full = fill(&mut lab, map);
        assert!([libc::E2BIG, libc::ENOSPC, libc::ENOMEM].contains(&full), "{map:?}: {full}");
        open = !open;
        // Blocks need prefixes; the pod of the other label needs an address.
        let blocks = "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                      metadata: {namespace: x, name: blocks}, spec: {podSelector: {matchLabels: {app: a}}, \
                      policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/29}}, \
                      {ipBlock: {cidr: 'fd99::/29'}}]}]}}}]";
        lab.act_without_waiting(blocks).unwrap();
        lab.act_without_waiting(&actions(open)).unwrap();
        lab.agent().wait().unwrap();
        holds(&lab, open);
        // Only the end of the log is kept; and a prefix that was not collected yet needs no room.
        told |= lab.agent().log().contains("write to the kernel: ");
        // Elements that were in nobody's way are found by the check alone.
        lab.agent().ctl(["verify"]).unwrap();
        is_clean(&mut lab);
        lab.act("[{delete: {kind: NetworkPolicy, namespace: x, name: blocks}}]").unwrap();
    }
    assert!(told, "{}", lab.agent().log());
    streams.stop().unwrap().nothing_lost().unwrap();
}

#[test]
fn addresses_and_interfaces_that_somebody_else_filled_are_cleared_by_the_self_check() {
    let mut lab = lab(Topology::Ptp, &["--self-check", "off"]);
    let streams = streams(&lab);
    for (map, pod) in [(MapId::Locals, "x/one"), (MapId::IfaceX, "x/two")] {
        fill(&mut lab, map);
        let add = format!("[{{pod: {{add: {{{pod}: {{labels: {{app: a}}}}}}}}}}]");
        lab.act_without_waiting(&add).unwrap();
        lab.agent().wait().unwrap();
        // What stands in the way is cleared before the next try; the rest is found by the check.
        let verify = lab.agent().ctl(["verify"]).unwrap();
        match map {
            MapId::Locals => assert!(lab.agent().log().contains("insert into map LOCALS")),
            _ => assert!(!verify.status.success()),
        }
        lab.expect("x/c", pod, "TCP/80", false);
        lab.expect("x/b", pod, "TCP/80", true);
        is_clean(&mut lab);
    }
    streams.stop().unwrap().nothing_lost().unwrap();
}

/// There is enough again: the pods that had to wait are enforced, and everything else is as it should be.
fn are_enforced(lab: &mut Lab, pods: &[impl AsRef<str>]) {
    lab.agent().wait().unwrap();
    for pod in pods {
        lab.expect("x/c", pod.as_ref(), "TCP/80", false);
        lab.expect("x/b", pod.as_ref(), "TCP/80", true);
    }
    holds(lab, true);
    is_clean(lab);
}

#[test]
fn without_descriptors_for_new_maps_the_pod_is_told_as_missing_and_hooked_as_soon_as_there_are_some() {
    let mut lab = lab(Topology::Ptp, &["--self-check", "200ms"]);
    let streams = streams(&lab);
    let limit = |lab: &mut Lab, soft: u64| {
        let pid = lab.agent().pid().unwrap() as libc::pid_t;
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: 4096 };
        // SAFETY: pointers to live structures.
        let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    };
    // No descriptor above the highest in use: every new one fails.
    limit(&mut lab, 3);
    lab.act_without_waiting("[{pod: {add: {x/new: {labels: {app: a}}, x/newer: {labels: {app: a}}}}}]")
        .unwrap();
    lab.act_without_waiting(&actions(true)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(lab.agent().is_running().unwrap(), "{}", lab.agent().log());
    limit(&mut lab, 4096);
    are_enforced(&mut lab, &["x/new", "x/newer"]);
    streams.stop().unwrap().nothing_lost().unwrap();
}

#[test]
fn without_memory_for_new_maps_pods_are_told_as_missing_and_hooked_as_soon_as_there_is_some() {
    let mut lab = lab(Topology::Ptp, &["--self-check", "200ms"]);
    let streams = streams(&lab);
    lab.agent().kill().unwrap();
    lab.agent().ask_for_maps(false);
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    lab.agent().shortage().unwrap().set(true);
    let new: Vec<String> = (0..8).map(|number| format!("x/new-{number}")).collect();
    let added: Vec<String> = new.iter().map(|pod| format!("{pod}: {{labels: {{app: a}}}}")).collect();
    lab.act_without_waiting(&format!("[{{pod: {{add: {{{}}}}}}}]", added.join(", "))).unwrap();
    lab.act_without_waiting(&actions(true)).unwrap();
    // More pods than have maps in store: the others are named, with the kernel's answer.
    let status = until(&mut lab, "a pod without maps", |status| tells(status, "Cannot allocate memory"));
    assert!(!status["ready"].as_bool().unwrap(), "{status:#}");
    assert!(lab.agent().shortage().unwrap().refused() > 0);
    // Those that have all follow the policies meanwhile.
    lab.expect("x/e", "x/a", "TCP/80", true);
    lab.expect("x/c", "x/a", "TCP/80", false);
    lab.agent().shortage().unwrap().set(false);
    are_enforced(&mut lab, &new);
    streams.stop().unwrap().nothing_lost().unwrap();
}

#[test]
fn without_memory_at_the_start_nothing_is_changed_and_the_reason_is_told() {
    let mut lab = lab(Topology::Ptp, &[]);
    let (maps, links) = (lab.pins().join("maps"), lab.pins().join("links"));
    let names = |folder: &std::path::Path| std::fs::read_dir(folder).map_or(0, Iterator::count);
    lab.agent().kill().unwrap();
    // All is there but one map.
    std::fs::remove_file(policy_tests::tamper::Tamper::new(&lab.pins()).map_pin(MapId::IfaceX)).unwrap();
    let there = (names(&maps), names(&links));
    lab.agent().ask_for_maps(true);
    let started = lab.agent().start().and_then(|()| lab.agent().wait());
    assert!(started.is_err(), "{}", lab.agent().log());
    assert!(lab.agent().log().contains("Cannot allocate memory"), "{}", lab.agent().log());
    assert_eq!((names(&maps), names(&links)), there);
    // What an earlier agent left goes on.
    holds(&lab, false);
    lab.agent().forget();
    lab.agent().ask_for_maps(false);
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    holds(&lab, false);
    is_clean(&mut lab);
}

#[test]
fn flows_and_fragments_that_overflow_open_nothing() {
    use policy_tests::pkt::Ip;
    let lab = lab(Topology::Ptp, &[]);
    let streams = streams(&lab);
    let (b, c, a) = (lab.ip("x/b", Family::V4), lab.ip("x/c", Family::V4), lab.ip("x/a", Family::V4));
    let (b, c, a) = (b.unwrap(), c.unwrap(), a.unwrap());
    let (friend, stranger) = (lab.frames("x/b").unwrap(), lab.frames("x/c").unwrap());
    for number in 0..30_000u32 {
        let port = 1024 + (number % 60_000) as u16;
        let flow = |source| Ip::new(source, a).udp(port, 9_999, b"overflow");
        friend.send(&lab.frame("x/b", "x/a", &flow(b)).unwrap().bytes).unwrap();
        stranger.send(&lab.frame("x/c", "x/a", &flow(c)).unwrap().bytes).unwrap();
    }
    streams.stop().unwrap().nothing_leaked().unwrap();
    holds(&lab, false);
}
