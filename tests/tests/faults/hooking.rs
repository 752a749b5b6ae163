//! Many pods that start at once: an agent that dies while it hooks them, and changes that do not wait for them.

use std::time::{Duration, Instant};

use super::setup::{PATIENCE, actions, holds, is_clean, lab, rounds, status, streams, until};
use aya::programs::{SchedClassifier, tc::TcAttachType};
use policy_engine::testing::rng::Rng;
use policy_tests::{
    lab::Lab,
    net::{Family, Topology},
    probe::{Outcome, Want},
};

/// Pods with few rights: they are hooked one after the other.
const MANY: usize = 40;
const USUAL: usize = 5;

fn change(what: &str, count: usize) -> String {
    let one = |n| match what {
        "add" => format!("{{pod: {{add: {{x/n{n}: {{labels: {{app: c}}}}}}}}}}"),
        other => format!("{{pod: {{{other}: x/n{n}}}}}"),
    };
    format!("[{}]", (0..count).map(one).collect::<Vec<_>>().join(", "))
}

/// New pods whose packets are judged by filters still, or not at all.
fn without_links(lab: &Lab) -> usize {
    let links = |n: &usize| {
        let host = lab.node().host(&format!("x/n{n}")).unwrap();
        let count = |side| SchedClassifier::query_tcx(&host.host_link, side).unwrap().1.len();
        lab.node().ns().run(|| count(TcAttachType::Ingress) + count(TcAttachType::Egress))
    };
    (0..MANY).filter(|n| links(n) < 2).count()
}

#[test]
fn killed_while_interfaces_are_hooked_the_next_agent_goes_on() {
    let mut rng = Rng::new(23);
    let mut lab = lab(Topology::Ptp, &["--self-check", "off"]);
    let streams = streams(&lab);
    for round in 0..rounds(10) {
        lab.act_without_waiting(&change("add", 3)).unwrap();
        std::thread::sleep(Duration::from_millis(rng.below(120) as u64));
        lab.agent().kill().unwrap();
        lab.agent().start().unwrap();
        lab.agent().wait().unwrap();
        for n in 0..3 {
            lab.expect(&format!("x/n{n}"), "x/a", "TCP/80", false);
        }
        assert_eq!(status(&mut lab)["endpoints"]["enforced"], USUAL + 3, "round {round}");
        if rng.percent(50) {
            is_clean(&mut lab);
        }
        lab.act(&change("remove", 3)).unwrap();
    }
    streams.stop().unwrap().nothing_lost().unwrap();
    is_clean(&mut lab);
    holds(&lab, false);
}

#[test]
fn a_change_of_policy_does_not_wait_for_pods_that_are_hooked() {
    let mut lab = lab(Topology::Ptp, &["--self-check", "off"]);
    lab.agent().kill().unwrap();
    lab.agent().ask_for_maps(false);
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    let hold = |lab: &mut Lab, holds| lab.agent().shortage().unwrap().hold_links(holds);
    // The kernel takes its time for links, and as long as this test wants.
    hold(&mut lab, true);
    lab.act_without_waiting(&change("add", MANY)).unwrap();
    until(&mut lab, "the new pods", |status| status["endpoints"]["total"] == USUAL + MANY);
    lab.act_without_waiting(&actions(true)).unwrap();
    let end = Instant::now() + PATIENCE;
    while !matches!(lab.ask("x/e", "x/a", "UDP/80", Family::V4, Want::Silence), Ok(Outcome::Answered(_))) {
        assert!(Instant::now() < end, "the change does not come:\n{}", lab.agent().log());
    }
    let left = without_links(&lab);
    assert_eq!(left, MANY, "pods had their links before the change came:\n{}", lab.agent().log());
    hold(&mut lab, false);
    lab.agent().wait().unwrap();
    let end = Instant::now() + PATIENCE;
    // Filters judge until then.
    while without_links(&lab) > 0 {
        assert!(Instant::now() < end, "links do not come:\n{}", lab.agent().log());
        std::thread::sleep(Duration::from_millis(20));
    }
    for n in [0, MANY / 2, MANY - 1] {
        lab.expect(&format!("x/n{n}"), "x/a", "TCP/80", false);
    }
    is_clean(&mut lab);
}
