//! The stream on the screen, and what happens to it when the agent goes and comes back.

use std::cell::RefCell;
use std::rc::Rc;

use clap::Parser as _;
use jiff::tz::TimeZone;

use super::*;
use crate::api::fake::{Fake, Running, denied, directory};
use crate::ctl::args::{Cli, Command};
use crate::ctl::tests::policyctl;
use crate::events::{Bus, KernelLosses};

fn bus() -> Bus {
    let bus = Bus::new(64, 64);
    for port in [9999, 80] {
        denied(port, i64::from(port % 60)).into_iter().for_each(|flow| bus.publish(flow));
    }
    bus
}

const LINE: &str = "14:13:59.000 DROP ingress shop/web:40003 -> shop/db:9999 TCP SYN | no rule matched; isolated by \
                    shop/db-allow, shop/default-deny | nearest shop/db-allow ingress[0]: port 5432/TCP, got 9999/TCP";

#[tokio::test]
async fn one_line_a_drop() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), bus());
    let ran = policyctl(&running.path, "monitor --last 10").await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((lines.len(), lines[0], ran.err.as_str()), (2, LINE, ""));
    let ran = policyctl(&running.path, "monitor --last 10 --type verdict").await;
    assert!(ran.out.starts_with("14:13:59.000 DENY ingress shop/web:40003"), "{}", ran.out);
    for (flags, count) in [
        ("--pod shop/d --port 80", 1),
        ("--pod web --port 40003", 2),
        ("-n dev", 0),
        ("--ip 10.0.0.12/31 --label app=web", 2),
        ("--protocol udp", 0),
        ("--type drop,verdict", 2),
    ] {
        let ran = policyctl(&running.path, &format!("monitor --last 10 {flags}")).await;
        assert_eq!(ran.out.lines().count(), count, "{flags}: {}{}", ran.out, ran.err);
    }
    let ran = policyctl(&running.path, "monitor --last 1 --protocol quic").await;
    assert_eq!(ran.exit, 1);
    assert!(ran.err.contains("unknown protocol"), "{}", ran.err);
    running.stop().await;
}

#[tokio::test]
async fn other_forms() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), bus());
    let wide = policyctl(&running.path, "monitor --last 1 -o wide").await.out;
    assert!(
        wide.starts_with("2026-09-21T14:13:40.000000+00:00 node-a DROP ingress shop/web:40003(10.0.0.13) ->"),
        "{wide}"
    );
    assert!(wide.trim_end().ends_with("veth-db(7); 74 bytes; plan 3"), "{wide}");
    let dict = policyctl(&running.path, "monitor --last 1 -o dict").await.out;
    assert!(dict.contains("    nearest rule: shop/db-allow ingress[0]\n"), "{dict}");
    assert!(dict.contains("          wanted: 5432/TCP\n             got: 80/TCP\n"), "{dict}");
    let json = policyctl(&running.path, "monitor --last 1 -o json").await.out;
    let response = json::parse(json.trim_end()).unwrap();
    let Some(ResponseTypes::Flow(flow)) = response.response_types else { panic!("{json}") };
    assert_eq!(flow.ingress_denied_by.len(), 2);
    running.stop().await;
}

/// A writer that a test can read while a command writes.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }

    /// Waits for a text to appear. A text that never comes fails the test by its own time limit.
    async fn wait_for(&self, wanted: &str) {
        while !self.text().contains(wanted) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn following_outlives_the_agent_and_shows_losses() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), Bus::new(64, 64));
    let (out, err) = (Shared::default(), Shared::default());
    let mut screen =
        Screen { out: Box::new(out.clone()), err: Box::new(err.clone()), colour: false, zone: TimeZone::UTC };
    let Command::Monitor(args) = Cli::parse_from(["policyctl", "monitor"]).command else { unreachable!() };
    let path = running.path.clone();
    // Later than the start of the command, by the clock of this machine: what a new stream begins with.
    let soon = Now::read().unwrap().wall / 1_000_000_000 - 1_790_000_000 + 10;
    let test = async {
        while running.bus.stats().readers == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        denied(1, soon).into_iter().for_each(|flow| running.bus.publish(flow));
        out.wait_for("shop/db:1 ").await;
        running.bus.report_losses([].into());
        running.bus.report_losses([(7, KernelLosses { ring_full: 7, suppressed: 0 })].into());
        out.wait_for("LOST 7 events: the kernel's ring was full").await;
        running.stop().await;
        err.wait_for("waiting for it at").await;
        // The new agent sees packets before the client is back.
        let bus = Bus::new(64, 64);
        denied(2, soon + 1).into_iter().for_each(|flow| bus.publish(flow));
        let running = Running::start(dir.path(), Fake::default(), bus);
        out.wait_for("shop/db:2 ").await;
        denied(3, soon + 2).into_iter().for_each(|flow| running.bus.publish(flow));
        out.wait_for("shop/db:3 ").await;
        running
    };
    let running = tokio::select! {
        running = test => running,
        ended = run(&path, &args, &mut screen) => panic!("the command ended: {:?}", ended.err()),
        () = sleep(Duration::from_secs(60)) => panic!("nothing came: {}{}", out.text(), err.text()),
    };
    let text = out.text();
    for port in 1..=3 {
        assert_eq!(text.matches(&format!("shop/db:{port} ")).count(), 1, "{text}");
    }
    assert!(err.text().contains("the agent is back"), "{}", err.text());
    drop(screen);
    running.stop().await;
}

#[test]
fn a_forged_source_is_told_with_its_sender() {
    let forged = crate::events::fixture::forged();
    let flow = crate::api::fake::told(&forged, 0).remove(0);
    let response = GetFlowsResponse {
        response_types: Some(ResponseTypes::Flow(Box::new(flow))),
        ..GetFlowsResponse::default()
    };
    let line = line::line(&response, false, &TimeZone::UTC).unwrap();
    assert_eq!(line, "- DROP egress shop/client:40003 -> 192.0.2.7:9999 TCP SYN | spoofed source 10.0.0.13");
    let coloured = line::line(&response, true, &TimeZone::UTC).unwrap();
    assert!(coloured.starts_with("- \u{1b}[31mDROP\u{1b}[0m egress"), "{coloured}");
}

#[test]
fn nothing_is_shown_twice() {
    let response = |second: i64, uuid: &str| GetFlowsResponse {
        time: Some(Timestamp { seconds: second, nanos: 0 }),
        response_types: Some(ResponseTypes::Flow(Box::new(crate::proto::flow::Flow {
            uuid: uuid.to_owned(),
            ..Default::default()
        }))),
        ..GetFlowsResponse::default()
    };
    let mut seen = Seen { time: timestamp(0), uuids: HashSet::new() };
    assert!(seen.is_new(&response(5, "a")) && seen.is_new(&response(5, "b")));
    assert!(!seen.is_new(&response(5, "a")), "the new stream begins with the last moment of the old one");
    assert!(seen.is_new(&response(4, "c")), "order is not promised");
    assert!(seen.is_new(&response(6, "a")) && !seen.is_new(&response(6, "a")));
}
