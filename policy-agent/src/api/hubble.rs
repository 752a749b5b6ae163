//! Hubble's own command line as judge: what our server answers to a set of flags must be what that program itself filters
//! out of the same flows in a file. Needs `hubble` on the path, so it runs only when asked for:
//! `cargo test -p policy-agent --lib hubble -- --ignored`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use policy_common::event::{Event, event_flags};
use policy_common::reason::Reason;

use crate::api::fake::{Fake, Running, directory};
use crate::api::json;
use crate::events::fixture::{dropped_syn, forged, history, words, world};
use crate::events::{Bus, Enricher, Now, Views};
use crate::proto::flow::Flow;
use crate::proto::observer::GetFlowsResponse;
use crate::proto::observer::get_flows_response::ResponseTypes;

/// Flows of every kind: drops by policy and by form, an allowed flow, a reply, UDP, ICMP, IPv6, node and world.
fn flows() -> Vec<Flow> {
    let syn = dropped_syn(9999);
    let allowed = Event { reason: Reason::Allowed as u8, flags: event_flags::VERDICT, ..dropped_syn(5432) };
    let reply = Event {
        direction: 2,
        source: words("10.0.0.12"),
        destination: words("10.0.0.13"),
        source_port: 80,
        destination_port: 40_003,
        tcp_flags: 0x12,
        reason: Reason::Revoked as u8,
        ..syn
    };
    let dns = Event { protocol: 17, destination_port: 53, source: words("10.0.0.1"), ..syn };
    let ping = Event { protocol: 1, tcp_flags: 8, source_port: 0, destination_port: 0, ..syn };
    let v6 = Event { family: 6, source: words("fd00::11"), destination: words("fd00::12"), ..syn };
    let (history, mut enricher) = (history(world()), Enricher::new("node-a", Views::Both));
    let events = [syn, allowed, forged(), reply, dns, ping, v6];
    let mut flows = Vec::new();
    for (second, event) in (1..).zip(events) {
        let wall = 1_790_000_000_000_000_000 + second * 1_000_000_000;
        flows.extend(enricher.flows(&event, &history, Now { monotonic: event.time, wall }));
    }
    flows
}

const FLAGS: [&str; 42] = [
    "",
    "--verdict DROPPED",
    "--verdict FORWARDED",
    "-t drop",
    "-t policy-verdict",
    "-t drop:132",
    "--drop-reason-desc POLICY_DENIED",
    "--drop-reason-desc INVALID_SOURCE_IP",
    "--traffic-direction egress",
    "--pod shop/db",
    "--pod db",
    "--pod shop/d --port 9999",
    "--from-pod shop/web",
    "--to-pod shop/web",
    "-n shop",
    "-n dev",
    "-A",
    "--ip 10.0.0.12",
    "--from-ip 10.0.0.0/28",
    "--to-ip 192.0.2.0/24",
    "--ip fd00::/64",
    "-4",
    "-6",
    "--port 53",
    "--to-port 40003",
    "--protocol tcp",
    "--protocol UDP",
    "--protocol icmp",
    "--protocol icmpv6",
    "--tcp-flags SYN",
    "--tcp-flags SYN,ACK",
    "--label app=db",
    "--from-label app!=web",
    "--label reserved:host",
    "--to-label reserved:world",
    "--identity 1",
    "--reply",
    "--not-reply",
    "--not --verdict FORWARDED",
    "--not --port 53 --not --protocol UDP",
    "--node-name node-*",
    "--to-fqdn *.example.com",
];

/// Standard output of `hubble observe`, as the sorted ids of the flows it shows.
async fn shown(arguments: Vec<String>) -> Vec<String> {
    let run =
        move || Command::new("hubble").arg("observe").args(&arguments).args(["-o", "json"]).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let uuid = |line: &str| match json::parse(line).unwrap().response_types {
        Some(ResponseTypes::Flow(flow)) => flow.uuid,
        other => panic!("{other:?}"),
    };
    let mut ids: Vec<String> = text.lines().map(uuid).collect();
    ids.sort();
    ids
}

fn write(path: &Path, flows: &[Flow]) {
    let mut file = fs::File::create(path).unwrap();
    for flow in flows {
        let response = GetFlowsResponse {
            node_name: flow.node_name.clone(),
            time: flow.time,
            response_types: Some(ResponseTypes::Flow(Box::new(flow.clone()))),
        };
        writeln!(file, "{}", json::line(&response).unwrap()).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Hubble's command line on the path"]
async fn our_filters_are_hubbles() {
    let dir = directory();
    let flows = flows();
    let file = dir.path().join("flows.json");
    write(&file, &flows);
    let running = Running::start(dir.path(), Fake::default(), Bus::new(64, 64));
    flows.into_iter().for_each(|flow| running.bus.publish(flow));
    let mut sizes = Vec::new();
    for flags in FLAGS {
        for last in ["--last=100", "--last=2", "--first=3", "--since=2026-09-21T14:13:23Z"] {
            let words = |first: String| -> Vec<String> {
                [first, last.to_owned()]
                    .into_iter()
                    .chain(flags.split_whitespace().map(str::to_owned))
                    .collect()
            };
            let server = shown(words(format!("--server=unix://{}", running.path.display()))).await;
            let oracle = shown(words(format!("--input-file={}", file.display()))).await;
            assert_eq!(server, oracle, "{flags} {last}");
            sizes.push(server.len());
        }
    }
    assert!(sizes.contains(&0) && sizes.contains(&1) && sizes.iter().max() > Some(&5), "{sizes:?}");
    running.stop().await;
}

#[tokio::test]
#[ignore = "needs Hubble's command line on the path"]
async fn hubble_shows_reason_policies_and_health() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), Bus::new(64, 64));
    flows().into_iter().for_each(|flow| running.bus.publish(flow));
    let server = format!("--server=unix://{}", running.path.display());
    for (arguments, wanted) in [
        ("status", "Healthcheck (via unix://"),
        ("list nodes", "node-a"),
        (
            "observe --last 100 -t drop --port 9999",
            "Policy denied DROPPED (TCP Flags: SYN; nearest shop/db-allow ingress[0]",
        ),
        ("observe --last 100 -t policy-verdict --print-policy-names", "DENIED BY db-allow (NetworkPolicy)"),
        ("observe --last 100 --http-method GET", "http_method is not supported"),
    ] {
        let words: Vec<String> =
            arguments.split_whitespace().map(str::to_owned).chain([server.clone()]).collect();
        let run = move || Command::new("hubble").args(&words).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains(wanted), "{arguments}: {text}");
    }
    running.stop().await;
}
