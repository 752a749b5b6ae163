//! A wall clock that jumps: verdicts, waits and checks go by clocks that do not, and what is shown goes by the new time.

use crate::setup::{PATIENCE, actions, holds, is_clean, lab, streams};
use policy_tests::{lab::Lab, net::Topology};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const DAY: i64 = 86_400;

/// What makes a process believe in the offset that a file holds, in seconds; its steady clocks are left alone.
fn disbelief(file: &Path) -> Vec<(String, String)> {
    // The wrapper knows where its library is.
    let shown = Command::new("faketime").args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap();
    let library = String::from_utf8(shown.stdout).unwrap().trim().to_owned();
    assert!(library.contains("libfaketime"), "{library:?}");
    [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// When the last drop was, by the agent's clock, as seconds from now.
fn last_drop(lab: &mut Lab) -> i64 {
    let end = Instant::now() + PATIENCE;
    loop {
        lab.expect("x/c", "x/a", "TCP/80", false);
        let said = lab.agent().ctl(["monitor", "--last", "1", "--type", "drop", "--output", "json"]).unwrap();
        let flow = String::from_utf8_lossy(&said.stdout).lines().last().map(str::to_owned);
        let flow: Option<Value> = flow.and_then(|line| serde_json::from_str(&line).ok());
        if let Some(time) = flow.as_ref().and_then(|flow| flow["flow"]["time"].as_str()) {
            let shown = Command::new("date").args(["-d", time, "+%s"]).output().unwrap();
            return String::from_utf8_lossy(&shown.stdout).trim().parse::<i64>().unwrap() - now();
        }
        assert!(Instant::now() < end, "no drop is told: {said:?}");
    }
}

#[test]
fn a_clock_that_jumps_changes_only_the_dates_that_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let offset = folder.path().join("offset");
    let jump = |days: i64| {
        let staged = folder.path().join("next");
        fs::write(&staged, format!("{:+}\n", days * DAY)).unwrap();
        fs::rename(&staged, &offset).unwrap();
    };
    jump(0);
    let mut lab = lab(Topology::Ptp, &["--self-check", "500ms"]);
    lab.agent().kill().unwrap();
    lab.agent().set_environment(disbelief(&offset));
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    let streams = streams(&lab);
    for (round, days) in [0, 30, -4_000, 10_000, -1].into_iter().enumerate() {
        jump(days);
        let open = round % 2 == 0;
        lab.act(&actions(open)).unwrap();
        holds(&lab, open);
        let off = last_drop(&mut lab) - days * DAY;
        assert!(off.abs() < 120, "after a jump by {days} days drops are dated {off} s off");
        is_clean(&mut lab);
        std::thread::sleep(Duration::from_millis(600));
        assert!(lab.agent().is_running().unwrap(), "{}", lab.agent().log());
    }
    streams.stop().unwrap().nothing_lost().unwrap();
}
