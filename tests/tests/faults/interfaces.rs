//! Interfaces and namespaces that go in the middle of something, and addresses that move.

use super::setup::{holds, is_clean, lab, status, streams};
use policy_engine::testing::rng::Rng;
use policy_tests::net::Topology;
use std::time::Duration;

#[test]
fn interfaces_that_are_deleted_while_they_are_hooked() {
    let mut rng = Rng::new(11);
    let mut lab = lab(Topology::Ptp, &["--self-check", "off"]);
    let streams = streams(&lab);
    for _ in 0..super::setup::rounds(20) {
        lab.act_without_waiting("[{pod: {add: {x/short: {labels: {app: a}}}}}]").unwrap();
        std::thread::sleep(Duration::from_millis(rng.below(60) as u64));
        lab.act_without_waiting("[{pod: {remove: x/short}}]").unwrap();
        if rng.percent(30) {
            lab.agent().wait().unwrap();
        }
    }
    lab.agent().wait().unwrap();
    streams.stop().unwrap().nothing_lost().unwrap();
    is_clean(&mut lab);
    assert_eq!(status(&mut lab)["endpoints"]["total"], 5);
    holds(&lab, false);
}

#[test]
fn a_pod_whose_namespace_is_removed_is_told_and_others_do_not_notice() {
    let mut lab = lab(Topology::Bridge, &[]);
    lab.act("[{pod: {add: {x/gone: {labels: {app: a}}}}}]").unwrap();
    let streams = streams(&lab);
    // The API still has the pod.
    let link = lab.host("x/gone").unwrap().host_link.clone();
    let index = lab.node().rtnl().link(&link).unwrap().index;
    lab.node().rtnl().delete_link(index).unwrap();
    let status = super::setup::until(&mut lab, "the missing pod", |status| status["ready"] == false);
    assert_eq!((&status["endpoints"]["total"], &status["endpoints"]["unenforced"]), (&6.into(), &1.into()));
    streams.stop().unwrap().nothing_lost().unwrap();
    holds(&lab, false);
}

#[test]
fn an_address_that_moves_to_a_pod_with_other_rights() {
    let mut lab = lab(Topology::Ptp, &[]);
    let streams = streams(&lab);
    let ip = "10.244.0.77";
    for (name, app, allow) in
        [("x/n1", "b", true), ("x/n2", "c", false), ("x/n3", "e", false), ("x/n4", "d", true)]
    {
        lab.act(&format!(
            "[{{pod: {{add: {{{name}: {{labels: {{app: {app}}}, ips: [{ip}, 'fd00:10:244::77']}}}}}}}}]"
        ))
        .unwrap();
        lab.expect(name, "x/a", "TCP/80", allow);
        lab.act(&format!("[{{pod: {{remove: {name}}}}}]")).unwrap();
    }
    streams.stop().unwrap().nothing_lost().unwrap();
    is_clean(&mut lab);
}
