//! Pods that come, change and go under load: every packet gets the verdict of a world that may be in force.

use std::time::Duration;

use policy_tests::churn::{self, Amount, Pace};

use crate::setup::Setup;

fn churn(pods: usize, at_once: usize) {
    let mut setup = Setup::new();
    setup.agent.start().unwrap();
    let Setup { node, agent, api, .. } = &mut setup;
    let amount = Amount { pods, at_once, stay: Duration::from_millis(250), pace: Pace::default() };
    let report = churn::alone(node, api.admin(), agent, amount);
    let report = report.unwrap_or_else(|error| panic!("{error:?}; log:\n{}", agent.log()));
    println!("{pods} pods: {report}");
    assert_eq!(report.wrong, [""; 0], "log:\n{}", agent.log());
    // Of each pod some packets must have told something.
    assert!(report.passed > pods && report.dropped > pods, "{report}");
    assert!(report.windows.len() > pods / 2 && report.open.len() == pods / 2, "{report}");
    // A judge that excuses most packets would see nothing.
    assert!(report.judged() > 0.25, "{report}");
}

#[test]
fn pods_that_come_and_go_under_load_are_never_judged_wrongly() {
    churn(40, 4);
}

/// A minute of work; the always-run test above does the same with fewer pods.
#[test]
#[ignore = "takes a minute: cargo test -p policy-tests --test kube_api -- --ignored two_hundred --nocapture"]
fn two_hundred_pods() {
    churn(200, 8);
}
