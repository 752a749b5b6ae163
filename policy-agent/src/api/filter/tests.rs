//! Each filter field against flows written by hand: what Hubble's filters answer, by field.

use super::*;
use crate::proto::flow::{
    CiliumEventType, DropReason, Endpoint, Ip, IpVersion, Layer4, Service, Tcp, TrafficDirection, Workload,
    flow_filter::Experimental,
};

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// `shop/client-7d9c` -> `shop/db-0`, TCP SYN 40003 -> 9999, dropped at ingress on `node-a`.
fn drop() -> Flow {
    Flow {
        uuid: "u-1".into(),
        verdict: Verdict::Dropped.into(),
        drop_reason_desc: DropReason::PolicyDenied.into(),
        ip: Some(Ip {
            source: "10.0.0.11".into(),
            destination: "10.0.0.12".into(),
            ip_version: IpVersion::IPv4.into(),
            ..Ip::default()
        }),
        l4: Some(Layer4 {
            protocol: Some(Protocol::Tcp(Tcp {
                source_port: 40_003,
                destination_port: 9999,
                flags: Some(TcpFlags { syn: true, ..TcpFlags::default() }),
            })),
        }),
        source: Some(Endpoint {
            identity: 16_001,
            namespace: "shop".into(),
            labels: strings(&["k8s:app=client"]),
            pod_name: "client-7d9c".into(),
            workloads: vec![Workload { name: "client".into(), kind: "Deployment".into() }],
            ..Endpoint::default()
        }),
        destination: Some(Endpoint {
            identity: 16_002,
            namespace: "shop".into(),
            labels: strings(&["k8s:app=db"]),
            pod_name: "db-0".into(),
            ..Endpoint::default()
        }),
        event_type: Some(CiliumEventType { r#type: 1, sub_type: 133 }),
        traffic_direction: TrafficDirection::Ingress.into(),
        interface: Some(NetworkInterface { index: 7, name: "veth-db".into() }),
        node_name: "node-a".into(),
        ..Flow::default()
    }
}

/// An allowed verdict towards a Service outside: no destination pod, a node as source.
fn allowed() -> Flow {
    Flow {
        verdict: Verdict::Forwarded.into(),
        source: Some(Endpoint { identity: 1, labels: strings(&["reserved:host"]), ..Endpoint::default() }),
        source_names: strings(&["node-a.example.com"]),
        destination_service: Some(Service { name: "api".into(), namespace: "default".into() }),
        event_type: Some(CiliumEventType { r#type: 5, sub_type: 0 }),
        ..Flow::default()
    }
}

type Set = fn(&mut FlowFilter);

fn matches(flow: &Flow, set: Set) -> bool {
    let mut filter = FlowFilter::default();
    set(&mut filter);
    Filters::parse(vec![filter], Vec::new()).unwrap().matches(flow)
}

fn check(flow: &Flow, table: &[(&str, Set, bool)]) {
    for (name, set, hit) in table {
        assert_eq!(matches(flow, *set), *hit, "{name}");
    }
}

#[test]
fn fields_of_the_ends() {
    check(
        &drop(),
        &[
            ("exact address", |f| f.source_ip = strings(&["10.0.0.11"]), true),
            ("other address", |f| f.source_ip = strings(&["10.0.0.1"]), false),
            ("any of two", |f| f.source_ip = strings(&["10.0.0.1", "10.0.0.11"]), true),
            ("block", |f| f.destination_ip = strings(&["10.0.0.0/24"]), true),
            ("block of v6", |f| f.destination_ip = strings(&["::/0"]), false),
            ("pod prefix", |f| f.source_pod = strings(&["shop/client"]), true),
            ("whole namespace", |f| f.source_pod = strings(&["shop/"]), true),
            ("any namespace", |f| f.source_pod = strings(&["/cli"]), true),
            ("any pod", |f| f.source_pod = strings(&["/"]), true),
            ("prefix of a namespace", |f| f.source_pod = strings(&["sho/"]), false),
            ("no slash: default", |f| f.source_pod = strings(&["client"]), false),
            ("label", |f| f.source_label = strings(&["app in (client)"]), true),
            ("label of the other end", |f| f.destination_label = strings(&["app=client"]), false),
            ("port", |f| f.destination_port = strings(&["9999"]), true),
            ("port of the other end", |f| f.source_port = strings(&["9999"]), false),
            ("identity", |f| f.destination_identity = vec![16_002], true),
            (
                "workload",
                |f| f.source_workload = vec![Workload { name: "client".into(), ..Workload::default() }],
                true,
            ),
            (
                "workload kind",
                |f| f.source_workload = vec![Workload { kind: "Job".into(), ..Workload::default() }],
                false,
            ),
            ("no workload", |f| f.destination_workload = vec![Workload::default()], false),
            ("no service", |f| f.destination_service = strings(&["/"]), false),
            ("no name", |f| f.source_fqdn = strings(&["*"]), false),
            (
                "both ends",
                |f| {
                    f.source_pod = strings(&["shop/client"]);
                    f.destination_port = strings(&["80"]);
                },
                false,
            ),
        ],
    );
}

#[test]
fn fields_of_the_flow() {
    check(
        &drop(),
        &[
            ("nothing set", |_| {}, true),
            ("verdict", |f| f.verdict = vec![Verdict::Dropped.into()], true),
            ("other verdict", |f| f.verdict = vec![Verdict::Forwarded.into()], false),
            (
                "type",
                |f| f.event_type = vec![EventTypeFilter { r#type: 1, ..EventTypeFilter::default() }],
                true,
            ),
            ("any type", |f| f.event_type = vec![EventTypeFilter::default()], true),
            (
                "sub-type",
                |f| f.event_type = vec![EventTypeFilter { r#type: 1, match_sub_type: true, sub_type: 133 }],
                true,
            ),
            (
                "other sub-type",
                |f| f.event_type = vec![EventTypeFilter { r#type: 1, match_sub_type: true, sub_type: 181 }],
                false,
            ),
            (
                "other type",
                |f| f.event_type = vec![EventTypeFilter { r#type: 5, ..EventTypeFilter::default() }],
                false,
            ),
            ("protocol", |f| f.protocol = strings(&["TCP"]), true),
            ("other protocol", |f| f.protocol = strings(&["udp", "icmp", "http"]), false),
            ("reply", |f| f.reply = vec![true], false),
            ("unmarked drop is no reply", |f| f.reply = vec![false], true),
            ("flags", |f| f.tcp_flags = vec![TcpFlags { syn: true, ..TcpFlags::default() }], true),
            (
                "all flags",
                |f| f.tcp_flags = vec![TcpFlags { syn: true, ack: true, ..TcpFlags::default() }],
                false,
            ),
            ("node", |f| f.node_name = strings(&["node-*"]), true),
            ("other node", |f| f.node_name = strings(&["node-b"]), false),
            ("version", |f| f.ip_version = vec![IpVersion::IPv6.into()], false),
            ("uuid", |f| f.uuid = strings(&["u-1"]), true),
            ("direction", |f| f.traffic_direction = vec![TrafficDirection::Egress.into()], false),
            ("reason", |f| f.drop_reason_desc = vec![DropReason::PolicyDenied.into()], true),
            (
                "interface",
                |f| f.interface = vec![NetworkInterface { index: 0, name: "veth-db".into() }],
                true,
            ),
        ],
    );
}

#[test]
fn fields_that_a_flow_lacks() {
    check(
        &allowed(),
        &[
            ("unmarked pass is neither", |f| f.reply = vec![false], false),
            ("unmarked pass is neither", |f| f.reply = vec![true], false),
            ("a reason needs a drop", |f| f.drop_reason_desc = vec![0], false),
            ("an end without pod", |f| f.source_pod = strings(&["/"]), false),
            ("reserved label", |f| f.source_label = strings(&["reserved:host"]), true),
            ("service", |f| f.destination_service = strings(&["api"]), true),
            ("name", |f| f.source_fqdn = strings(&["*.Example.com."]), true),
            ("no ports", |f| f.source_port = strings(&["0"]), false),
            ("no addresses", |f| f.source_ip = strings(&["0.0.0.0/0"]), false),
        ],
    );
}

#[test]
fn lists_are_or_and_the_blacklist_takes_away() {
    let pod = |name: &str| FlowFilter { source_pod: strings(&[name]), ..FlowFilter::default() };
    let dropped = FlowFilter { verdict: vec![Verdict::Dropped.into()], ..FlowFilter::default() };
    let check = |white: &[FlowFilter], black: &[FlowFilter]| {
        Filters::parse(white.to_vec(), black.to_vec()).unwrap().matches(&drop())
    };
    assert!(check(&[pod("other/"), pod("shop/")], &[]));
    assert!(!check(&[pod("other/")], &[]));
    assert!(check(&[], &[pod("other/")]));
    assert!(!check(&[pod("shop/")], std::slice::from_ref(&dropped)));
    let both = FlowFilter { source_pod: strings(&["other/"]), ..dropped };
    assert!(check(&[], &[both]), "a blacklist filter takes away only what matches all of it");
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let refused: &[(&str, Set)] = &[
        ("http_status_code", |f| f.http_status_code = strings(&["404"])),
        ("dns_query", |f| f.dns_query = strings(&["x"])),
        ("http_method", |f| f.http_method = strings(&["GET"])),
        ("http_path", |f| f.http_path = strings(&["/"])),
        ("http_url", |f| f.http_url = strings(&["x"])),
        ("http_header", |f| f.http_header = vec![crate::proto::flow::HttpHeader::default()]),
        ("trace_id", |f| f.trace_id = strings(&["x"])),
        ("source_ip_xlated", |f| f.source_ip_xlated = strings(&["10.0.0.1"])),
        ("node_labels", |f| f.node_labels = strings(&["a=b"])),
        ("source_cluster_name", |f| f.source_cluster_name = strings(&["c"])),
        ("destination_cluster_name", |f| f.destination_cluster_name = strings(&["c"])),
        ("ip_trace_id", |f| f.ip_trace_id = vec![1]),
        ("encrypted", |f| f.encrypted = vec![true]),
        ("experimental", |f| f.experimental = Some(Experimental { cel_expression: strings(&["true"]) })),
        ("tcp_flags.NS", |f| f.tcp_flags = vec![TcpFlags { ns: true, ..TcpFlags::default() }]),
        ("source_port", |f| f.source_port = strings(&["http"])),
        ("destination_port", |f| f.destination_port = strings(&["65536"])),
        ("source_ip", |f| f.source_ip = strings(&["10.0.0.0/33"])),
        ("source_label", |f| f.source_label = strings(&["a in b"])),
        ("protocol", |f| f.protocol = strings(&["quic"])),
        ("node_name", |f| f.node_name = strings(&[""])),
        ("interface", |f| f.interface = vec![NetworkInterface { index: 1, name: "a".into() }]),
    ];
    for (field, set) in refused {
        let mut filter = FlowFilter::default();
        set(&mut filter);
        for (white, black) in [(vec![filter.clone()], vec![]), (vec![], vec![filter.clone()])] {
            let error = Filters::parse(white, black).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
