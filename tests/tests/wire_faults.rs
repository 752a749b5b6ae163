//! What somebody else does to the kernel's tables while the agent runs: told, mended, and never an open pod.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use policy_agent::datapath::{Map, Pins, bpf, spec::MapId};
use policy_tests::{lab::Lab, net::Topology};
use std::net::Ipv4Addr;

const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}, x/c: {labels: {app: c}}}}";

fn from(app: &str) -> String {
    format!(
        "{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Ingress], \
          ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}]}}"
    )
}

fn open(lab: &mut Lab, map: MapId) -> Map {
    let path = Pins::new(lab.agent().bpffs()).map(map);
    Map::new(bpf::open_pin(&path).unwrap(), map.spec()).unwrap()
}

#[test]
fn a_table_that_somebody_else_filled_is_mended_and_meanwhile_nothing_opens() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(&from("nobody")).unwrap();
    lab.expect("x/b", "x/a", "TCP/80", false);
    let hosts = open(&mut lab, MapId::Hosts4);
    let before = hosts.elements().unwrap();
    // Until the kernel has no element left, so that the agent's next insertion fails.
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    let full = (0..)
        .map(|n| hosts.insert(&(first + n).to_be_bytes(), &0u32.to_ne_bytes(), 0))
        .find_map(Result::err)
        .unwrap();
    assert_eq!(full.raw_os_error(), Some(libc::E2BIG), "{full}");
    lab.act_without_waiting(&format!(
        "[{{apply: {{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: x, name: p}}, \
          spec: {}}}}}]",
        from("b")
    ))
    .unwrap();
    lab.agent().wait().unwrap();
    let log = lab.agent().log();
    assert!(log.contains("write to the kernel: "), "the failed write is told:\n{log}");
    lab.expect("x/b", "x/a", "TCP/80", true);
    lab.expect("x/c", "x/a", "TCP/80", false);
    let after = hosts.elements().unwrap();
    let strangers = after.keys().filter(|key| key[..2] == [198, 18]).count();
    assert_eq!(strangers, 0, "of {} before and {} after", before.len(), after.len());
}

#[test]
fn an_element_that_somebody_else_took_away_is_put_back_by_the_next_agent() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(&from("b")).unwrap();
    lab.expect("x/b", "x/a", "TCP/80", true);
    lab.agent().kill().unwrap();
    let hosts = open(&mut lab, MapId::Hosts4);
    for key in hosts.elements().unwrap().keys() {
        hosts.remove(key).unwrap();
    }
    lab.expect("x/c", "x/a", "TCP/80", false);
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    lab.expect("x/b", "x/a", "TCP/80", true);
    lab.expect("x/c", "x/a", "TCP/80", false);
}
