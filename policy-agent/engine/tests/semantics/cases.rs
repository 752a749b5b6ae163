//! What the API means, case by case: the evaluator against answers worked out by hand. The numbers are those of the
//! project's table of edge cases.

use crate::support::{apply, ask, cluster, expect, ip, pod, policy, with};
use policy_common::reason::Reason;
use policy_engine::world::Delta;

/// Selects pod a.
const A: &str = "podSelector: {matchLabels: {pod: a}}";

#[test]
fn case_001_to_003_who_is_selected() {
    expect(
        &cluster(),
        &["x/a -> x/b 80/TCP", "y/a -> x/a 1/UDP", "8.8.8.8 -> x/a ICMP", "x/a -> 8.8.8.8 443/TCP"],
        &[],
    );
    for selector in ["podSelector: {}", ""] {
        let mut world = with(&[("x/p", &format!("{{{selector}}}"))]);
        expect(
            &world,
            &["x/a -> y/a 80/TCP", "8.8.8.8 -> y/a 80/TCP"],
            &["y/a -> x/a 80/TCP", "x/b -> x/c 80/TCP"],
        );
        apply(&mut world, &pod("x", "later", 99, "n1"));
        expect(&world, &[], &["x/a -> x/later 80/TCP"]);
    }
}

#[test]
fn case_004_to_011_selector_operators() {
    let from = |selector: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{from: [{selector}]}}]}}"))]);
    let both = "{podSelector: {matchLabels: {pod: b}, matchExpressions: [{key: empty, operator: Exists}]}}";
    expect(&from(both), &["x/b -> x/a 1/TCP"], &["x/c -> x/a 1/TCP"]);
    let absent_in = "{podSelector: {matchExpressions: [{key: none, operator: In, values: [v]}]}}";
    expect(&from(absent_in), &[], &["x/b -> x/a 1/TCP"]);
    let absent_not_in = "{podSelector: {matchExpressions: [{key: none, operator: NotIn, values: [v]}]}}";
    expect(&from(absent_not_in), &["x/b -> x/a 1/TCP"], &["y/b -> x/a 1/TCP"]);
    let namespace_not_in =
        "{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}";
    // Namespace z has no label ns at all.
    expect(&from(namespace_not_in), &["y/a -> x/a 1/TCP", "z/a -> x/a 1/TCP"], &["x/b -> x/a 1/TCP"]);
    let exists = "{namespaceSelector: {matchExpressions: [{key: empty, operator: Exists}]}}";
    expect(&from(exists), &["y/a -> x/a 1/TCP"], &["x/b -> x/a 1/TCP"]);
    let not_exists = "{namespaceSelector: {matchExpressions: [{key: empty, operator: DoesNotExist}]}}";
    expect(&from(not_exists), &["x/b -> x/a 1/TCP", "z/a -> x/a 1/TCP"], &["y/a -> x/a 1/TCP"]);
    let empty_value = "{namespaceSelector: {matchLabels: {empty: ''}}}";
    expect(&from(empty_value), &["y/a -> x/a 1/TCP"], &["x/b -> x/a 1/TCP", "z/a -> x/a 1/TCP"]);
    let unsatisfiable = "{podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}, {key: pod, operator: Exists}]}}";
    expect(&from(unsatisfiable), &[], &["x/b -> x/a 1/TCP"]);
}

#[test]
fn case_013_to_017_labels_and_namespaces_change() {
    let mut world = with(&[(
        "x/p",
        &format!("{{{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}}}]}}]}}"),
    )]);
    expect(&world, &["y/a -> x/a 1/TCP"], &["z/a -> x/a 1/TCP"]);
    apply(&mut world, "{apiVersion: v1, kind: Namespace, metadata: {name: z, labels: {ns: y}}}");
    expect(&world, &["z/a -> x/a 1/TCP"], &[]);
    world.apply(Delta::NamespaceGone("z".into()));
    expect(&world, &[], &["z/a -> x/a 1/TCP"]);
    let relabelled = pod("x", "a", 11, "n1").replace("pod: a", "pod: other");
    apply(&mut world, &relabelled);
    expect(&world, &["z/a -> x/a 1/TCP"], &[]);
    // The label of the name needs no object.
    policy(
        &mut world,
        "y/p",
        "{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}",
    );
    expect(&world, &["z/a -> y/a 1/TCP"], &["x/a -> y/a 1/TCP"]);
    // 16: a policy of the same name elsewhere is another policy.
    policy(&mut world, "z/p", "{ingress: [{}]}");
    expect(&world, &["x/a -> z/a 1/TCP"], &["x/a -> y/a 1/TCP"]);
}

#[test]
fn case_019_to_028_directions() {
    let reply = ["y/a -> x/a 1/TCP", "x/a -> y/a 1/TCP"];
    for (spec, ingress, egress) in [
        ("{}", false, true),
        ("{egress: [{}]}", false, true),
        ("{egress: [{ports: [{port: 9}]}]}", false, false),
        ("{egress: []}", false, true),
        ("{policyTypes: [Egress], ingress: [{}]}", true, false),
        ("{policyTypes: [Ingress], egress: [{ports: [{port: 9}]}]}", false, true),
        ("{policyTypes: [Egress]}", true, false),
        ("{policyTypes: [], egress: [{ports: [{port: 9}]}]}", false, false),
        ("{policyTypes: [Ingress, Ingress]}", false, true),
        ("{policyTypes: [Ingress, Egress]}", false, false),
        ("{ingress: []}", false, true),
        ("{ingress: [{}]}", true, true),
    ] {
        let world = with(&[("x/p", spec)]);
        assert_eq!(ask(&world, reply[0]).allows(), ingress, "ingress of {spec}");
        assert_eq!(ask(&world, reply[1]).allows(), egress, "egress of {spec}");
    }
    expect(&with(&[("x/p", "{ingress: [{}]}")]), &["8.8.8.8 -> x/a ICMP", "192.0.2.2 -> x/a 9/SCTP"], &[]);
}

#[test]
fn case_029_to_034_lists_left_out() {
    let from_anywhere = with(&[("x/p", "{ingress: [{ports: [{port: 80}], from: []}]}")]);
    expect(
        &from_anywhere,
        &["8.8.8.8 -> x/a 80/TCP", "z/a -> x/a 80/TCP"],
        &["z/a -> x/a 81/TCP", "z/a -> x/a 80/UDP"],
    );
    let all_ports = with(&[("x/p", "{ingress: [{ports: [], from: [{podSelector: {}}]}]}")]);
    expect(
        &all_ports,
        &["x/b -> x/a 80/TCP", "x/b -> x/a 5/SCTP", "x/b -> x/a ICMP", "x/b -> x/a 47"],
        &["y/b -> x/a 80/TCP"],
    );
    for rule in ["{from: [{}]}", "null", "{ports: [null]}", "{from: [null]}"] {
        expect(
            &with(&[("x/p", &format!("{{ingress: [{rule}]}}"))]),
            &[],
            &["x/b -> x/a 80/TCP", "8.8.8.8 -> x/a ICMP"],
        );
    }
}

#[test]
fn case_035_to_041_and_or_and_union() {
    let b80 = "{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}";
    let c81 = "{from: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 81}]}";
    let allowed = ["x/b -> x/a 80/TCP", "x/c -> x/a 81/TCP"];
    let denied = ["x/b -> x/a 81/TCP", "x/c -> x/a 80/TCP"];
    // 37: no cross product, whether the two rules are in one policy or in two; 41: duplicates do nothing.
    expect(&with(&[("x/p", &format!("{{{A}, ingress: [{b80}, {c81}, {b80}]}}"))]), &allowed, &denied);
    let one = format!("{{{A}, ingress: [{b80}]}}");
    let two = format!("{{{A}, ingress: [{c81}]}}");
    expect(&with(&[("x/p", &one), ("x/q", &two)]), &allowed, &denied);
    expect(&with(&[("x/q", &one), ("x/p", &two), ("x/deny", "{}")]), &allowed, &denied);
    // 39: both sides must allow. 40: only one direction is isolated.
    let world = with(&[
        ("x/p", "{policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}"),
        ("y/p", &format!("{{{A}}}")),
    ]);
    expect(&world, &["x/a -> y/b 80/TCP", "y/a -> x/a 80/TCP"], &["x/a -> y/a 80/TCP", "x/a -> x/b 80/TCP"]);
    let evaluation = ask(&world, "x/a -> y/a 80/TCP");
    assert_eq!(
        (evaluation.egress.reason, evaluation.ingress.reason),
        (Reason::Allowed, Reason::NoRuleMatched)
    );
}

#[test]
fn case_042_to_049_peers() {
    let from = |peers: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{from: [{peers}]}}]}}"))]);
    expect(&from("{podSelector: {matchLabels: {pod: b}}}"), &["x/b -> x/a 1/TCP"], &["y/b -> x/a 1/TCP"]);
    expect(
        &from("{namespaceSelector: {matchLabels: {ns: y}}}"),
        &["y/a -> x/a 1/TCP", "y/b -> x/a 1/TCP"],
        &["x/b -> x/a 1/TCP"],
    );
    let all = from("{namespaceSelector: {}}");
    expect(
        &all,
        &["x/b -> x/a 1/TCP", "z/b -> x/a ICMP"],
        &["8.8.8.8 -> x/a 1/TCP", "192.0.2.2 -> x/a 1/TCP", "10.0.0.77 -> x/a 1/TCP"],
    );
    let and = "{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}";
    expect(&from(and), &["y/b -> x/a 1/TCP"], &["y/a -> x/a 1/TCP", "x/b -> x/a 1/TCP"]);
    let or = "{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}";
    expect(&from(or), &["y/a -> x/a 1/TCP", "x/b -> x/a 1/TCP"], &["x/c -> x/a 1/TCP", "z/b -> x/a 1/TCP"]);
    // 47, 49: nobody matches yet; the rule works as soon as somebody does.
    let mut later = from("{podSelector: {matchLabels: {pod: later}}}");
    expect(&later, &[], &["x/b -> x/a 1/TCP", "10.0.0.99 -> x/a 1/TCP"]);
    apply(&mut later, &pod("x", "later", 99, "n2"));
    expect(&later, &["10.0.0.99 -> x/a 1/TCP"], &[]);
}

#[test]
fn case_051_to_053_blocks() {
    let from = |blocks: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{from: [{blocks}]}}]}}"))]);
    // 51, 65: pods and nodes inside the block.
    let pods = from("{ipBlock: {cidr: 10.0.0.0/24}}, {ipBlock: {cidr: 192.0.2.0/24}}");
    expect(
        &pods,
        &["x/b -> x/a 1/TCP", "192.0.2.2 -> x/a 1/TCP", "192.0.2.1 -> x/a 1/TCP"],
        &["10.0.1.1 -> x/a 1/TCP"],
    );
    // 52, 55: an except counts for its own peer only.
    let except = "{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.9.0/24, 10.0.0.0/24, 10.0.0.16/28]}}";
    expect(
        &from(except),
        &["10.1.0.1 -> x/a 1/TCP"],
        &["x/b -> x/a 1/TCP", "10.9.9.9 -> x/a 1/TCP", "11.0.0.1 -> x/a 1/TCP"],
    );
    let again = format!("{except}, {{ipBlock: {{cidr: 10.0.0.12/32}}}}");
    expect(&from(&again), &["x/b -> x/a 1/TCP"], &["x/c -> x/a 1/TCP"]);
    // 53: another policy allows again, whatever the order of names.
    for (first, second) in [("x/p", "x/q"), ("x/q", "x/p")] {
        let wide = format!("{{{A}, ingress: [{{from: [{except}]}}]}}");
        let narrow = format!("{{{A}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.12/32}}}}]}}]}}");
        expect(&with(&[(first, &wide), (second, &narrow)]), &["x/b -> x/a 1/TCP"], &["x/c -> x/a 1/TCP"]);
    }
}

#[test]
fn case_054_to_069_blocks() {
    let from = |blocks: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{from: [{blocks}]}}]}}"))]);
    // 54: a bad except voids the peer.
    expect(
        &from("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}"),
        &[],
        &["10.1.1.1 -> x/a 1/TCP", "11.0.0.1 -> x/a 1/TCP"],
    );
    // 56: families are apart.
    expect(&from("{ipBlock: {cidr: 0.0.0.0/0}}"), &["x/b -> x/a 1/TCP"], &["6:x/b -> 6:x/a 1/TCP"]);
    expect(&from("{ipBlock: {cidr: '::/0'}}"), &["6:x/b -> 6:x/a 1/TCP"], &["x/b -> x/a 1/TCP"]);
    // 57 to 60: spellings.
    for block in ["10.0.0.5/24", "010.0.0.0/24", "'::ffff:10.0.0.0/120'"] {
        expect(
            &from(&format!("{{ipBlock: {{cidr: {block}}}}}")),
            &["x/b -> x/a 1/TCP"],
            &["10.0.1.1 -> x/a 1/TCP"],
        );
    }
    expect(
        &from("{ipBlock: {cidr: 'FD00:0::/64'}}"),
        &["6:x/b -> 6:x/a 1/TCP"],
        &["2001:db8::1 -> 6:x/a 1/TCP"],
    );
    // 62: /0 with a one-bit except, /31, /32.
    let half = from("{ipBlock: {cidr: 0.0.0.0/0, except: [128.0.0.0/1]}}");
    expect(&half, &["127.255.255.255 -> x/a 1/TCP"], &["128.0.0.0 -> x/a 1/TCP"]);
    let pair = from("{ipBlock: {cidr: 203.0.113.2/31}}");
    expect(
        &pair,
        &["203.0.113.2 -> x/a 1/TCP", "203.0.113.3 -> x/a 1/TCP"],
        &["203.0.113.1 -> x/a 1/TCP", "203.0.113.4 -> x/a 1/TCP"],
    );
    // 68, 69: link-local and multicast addresses are ordinary.
    let closed = with(&[("x/p", "{policyTypes: [Egress]}")]);
    expect(&closed, &[], &["x/a -> 169.254.169.254 80/TCP", "x/a -> 224.0.0.251 5353/UDP"]);
}

#[test]
fn case_063_064_blocks_and_ports() {
    // 63: the longer prefix adds to the shorter one's rule, it does not replace it.
    let spec = "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 3306}]}, {to: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/24]}}]}]}";
    expect(
        &with(&[("x/p", spec)]),
        &["x/a -> 203.0.113.9 3306/TCP", "x/a -> 8.8.8.8 1/UDP"],
        &["x/a -> 203.0.113.9 1/TCP"],
    );
    // 64: by selector on one port, by block on another.
    let spec = format!(
        "{{{A}, ingress: [{{from: [{{podSelector: {{}}}}], ports: [{{port: 1}}]}}, {{from: [{{ipBlock: {{cidr: 10.0.0.12/32}}}}], ports: [{{port: 2}}]}}]}}"
    );
    expect(
        &with(&[("x/p", &spec)]),
        &["x/b -> x/a 1/TCP", "x/b -> x/a 2/TCP"],
        &["x/c -> x/a 2/TCP", "x/b -> x/a 3/TCP"],
    );
}

#[test]
fn case_070_to_074_ports() {
    let ports = |ports: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{ports: [{ports}]}}]}}"))]);
    expect(
        &ports("{port: 80}"),
        &["x/b -> x/a 80/TCP"],
        &["x/b -> x/a 80/UDP", "x/b -> x/a 81/TCP", "x/b -> x/a ICMP"],
    );
    expect(&ports("{protocol: UDP}"), &["x/b -> x/a 7/UDP"], &["x/b -> x/a 7/TCP", "x/b -> x/a 7/SCTP"]);
    expect(&ports("{}"), &["x/b -> x/a 7/TCP"], &["x/b -> x/a 7/UDP", "x/b -> x/a ICMP", "x/b -> x/a 47"]);
    expect(
        &ports("{port: 7}, {port: 7, protocol: UDP}"),
        &["x/b -> x/a 7/TCP", "x/b -> x/a 7/UDP"],
        &["x/b -> x/a 7/SCTP"],
    );
    expect(
        &ports("{port: 7, protocol: SCTP}"),
        &["x/b -> x/a 7/SCTP"],
        &["x/b -> x/a 7/TCP", "x/b -> x/a 7/UDP"],
    );
}

#[test]
fn case_075_to_086_named_ports() {
    // Ingress: the selected pod's own name. 77: another number on another pod.
    let ingress = with(&[("x/p", "{ingress: [{ports: [{port: web}]}]}")]);
    expect(
        &ingress,
        &["y/a -> x/a 80/TCP", "y/a -> x/b 8080/TCP"],
        &["y/a -> x/a 8080/TCP", "y/a -> x/b 80/TCP", "y/a -> x/a 80/UDP"],
    );
    // Egress: the peer's, not the source's.
    let egress = with(&[("x/p", "{policyTypes: [Egress], egress: [{ports: [{port: web}]}]}")]);
    expect(
        &egress,
        &["x/b -> y/a 80/TCP", "x/a -> y/b 8080/TCP"],
        &["x/b -> y/a 8080/TCP", "x/a -> y/b 80/TCP"],
    );
    // 85: who is no pod has no names; a block with a pod inside resolves on the pod.
    expect(&egress, &[], &["x/a -> 8.8.8.8 80/TCP", "x/a -> 192.0.2.2 80/TCP"]);
    let block = with(&[(
        "x/p",
        "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: web}]}]}",
    )]);
    expect(&block, &["x/a -> y/a 80/TCP"], &["x/a -> 8.8.8.8 80/TCP", "x/a -> y/b 80/TCP"]);
    let ports = |ports: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{ports: [{ports}]}}]}}"))]);
    // 78, 80, 81: the protocol of the rule picks. 79: an unknown name is no port.
    expect(&ports("{port: dns}"), &["x/b -> x/a 53/TCP"], &["x/b -> x/a 53/UDP"]);
    expect(&ports("{port: dns, protocol: UDP}"), &["x/b -> x/a 53/UDP"], &["x/b -> x/a 53/TCP"]);
    expect(&ports("{port: web, protocol: UDP}"), &[], &["x/b -> x/a 80/UDP", "x/b -> x/a 80/TCP"]);
    expect(&ports("{port: nowhere}"), &[], &["x/b -> x/a 80/TCP", "x/b -> x/a 0/TCP"]);
    // 82: both numbers. 83, 84: init containers count.
    expect(&ports("{port: twice}"), &["x/b -> x/a 1/TCP", "x/b -> x/a 2/TCP"], &["x/b -> x/a 3/TCP"]);
    expect(&ports("{port: side}"), &["x/b -> x/a 9090/TCP"], &["x/b -> x/a 9091/TCP"]);
    // 86: the pod changes its number.
    let mut world = ports("{port: web}");
    apply(&mut world, &pod("x", "a", 11, "n1").replace("containerPort: 80}", "containerPort: 8000}"));
    expect(&world, &["x/b -> x/a 8000/TCP"], &["x/b -> x/a 80/TCP"]);
}

#[test]
fn case_087_to_097_ranges_and_bad_ports() {
    let ports = |ports: &str| with(&[("x/p", &format!("{{{A}, ingress: [{{ports: [{ports}]}}]}}"))]);
    let range = ports("{port: 79, endPort: 81}");
    expect(
        &range,
        &["x/b -> x/a 79/TCP", "x/b -> x/a 80/TCP", "x/b -> x/a 81/TCP"],
        &["x/b -> x/a 78/TCP", "x/b -> x/a 82/TCP", "x/b -> x/a 80/UDP"],
    );
    expect(&ports("{port: 80, endPort: 80}"), &["x/b -> x/a 80/TCP"], &["x/b -> x/a 81/TCP"]);
    let all = ports("{port: 1, endPort: 65535, protocol: SCTP}");
    expect(&all, &["x/b -> x/a 1/SCTP", "x/b -> x/a 65535/SCTP"], &["x/b -> x/a 80/TCP", "x/b -> x/a ICMP"]);
    let odd = ports("{port: 1000, endPort: 2999}, {port: 2500, endPort: 3001}, {port: 3000}");
    expect(
        &odd,
        &["x/b -> x/a 1000/TCP", "x/b -> x/a 3001/TCP"],
        &["x/b -> x/a 999/TCP", "x/b -> x/a 3002/TCP"],
    );
    for bad in [
        "{port: '80'}",
        "{port: 0}",
        "{port: 80, endPort: 79}",
        "{endPort: 80}",
        "{port: web, endPort: 90}",
        "{port: 80, protocol: DCCP}",
    ] {
        let world = ports(&format!("{bad}, {{port: 9}}"));
        expect(
            &world,
            &["x/b -> x/a 9/TCP"],
            &["x/b -> x/a 80/TCP", "x/b -> x/a 79/TCP", "x/b -> x/a 90/TCP"],
        );
    }
}

#[test]
fn case_102_and_113_to_123_kinds_of_traffic() {
    let closed = with(&[("x/p", "{policyTypes: [Ingress, Egress]}")]);
    // 102: ICMP needs a rule without ports. 114: a pod reaches itself. 121, 122: no exemptions.
    expect(
        &closed,
        &["x/a -> x/a 80/TCP", "6:x/a -> 6:x/a 80/TCP"],
        &["x/b -> x/a ICMP", "x/a -> 8.8.8.8 53/UDP", "x/a -> 192.0.2.2 6443/TCP"],
    );
    // 117: processes of the own node, from any of its addresses; not what it forwards, nor another node.
    expect(
        &closed,
        &["process:192.0.2.1 -> x/a 80/TCP", "process:169.254.1.1 -> x/a ICMP"],
        &[
            "192.0.2.1 -> x/a 80/TCP",
            "169.254.1.1 -> x/a 80/TCP",
            "192.0.2.2 -> x/a 80/TCP",
            "process:192.0.2.2 -> x/a 80/TCP",
        ],
    );
    // 119: a pod reaches its own node.
    expect(&closed, &["x/a -> 192.0.2.1 10250/TCP", "x/a -> 169.254.1.1 53/UDP"], &[]);
    assert_eq!(ask(&closed, "x/a -> 192.0.2.1 1/TCP").egress.reason, Reason::OwnNode);
    // 118, 123: of pods elsewhere, their own node counts.
    let far = with(&[("z/p", "{policyTypes: [Ingress, Egress]}")]);
    expect(
        &far,
        &["process:192.0.2.2 -> z/a 80/TCP", "z/a -> 192.0.2.2 80/TCP"],
        &["process:192.0.2.1 -> z/a 80/TCP", "z/a -> 192.0.2.1 80/TCP"],
    );
    // What the node forwards under its own address matches blocks only.
    let all_pods = with(&[("x/p", "{ingress: [{from: [{namespaceSelector: {}}]}]}")]);
    expect(&all_pods, &[], &["192.0.2.1 -> x/a 80/TCP"]);
    let block = with(&[("x/p", "{ingress: [{from: [{ipBlock: {cidr: 192.0.2.1/32}}]}]}")]);
    expect(&block, &["192.0.2.1 -> x/a 80/TCP"], &["192.0.2.2 -> x/a 80/TCP"]);
}

#[test]
fn case_124_125_host_network_pods() {
    let mut world = with(&[("x/p", "{ingress: [{from: [{podSelector: {}}]}]}")]);
    let host =
        |number, node| pod("x", "host", number, node).replace("nodeName", "hostNetwork: true, nodeName");
    // Written in block style, the field goes on a line of its own.
    let text = host(98, "n2")
        .replace("hostNetwork: true, nodeName", "hostNetwork: true\n  nodeName")
        .replace("10.0.0.98", "192.0.2.2");
    apply(&mut world, &text);
    expect(&world, &["8.8.8.8 -> 192.0.2.2 80/TCP", "x/b -> x/a 1/TCP"], &["192.0.2.2 -> x/a 1/TCP"]);
    assert_eq!(ask(&world, "8.8.8.8 -> 192.0.2.2 80/TCP").ingress.pod, None);
}

#[test]
fn case_128_to_139_life_cycle() {
    let spec = format!("{{{A}, ingress: [{{from: [{{podSelector: {{matchLabels: {{pod: b}}}}}}]}}]}}");
    let mut world = with(&[("x/p", &spec)]);
    // 128: a pod without address is nobody.
    apply(
        &mut world,
        "{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: new, labels: {pod: b}}, status: {phase: Pending}}",
    );
    expect(&world, &["x/b -> x/a 1/TCP"], &["10.0.0.99 -> x/a 1/TCP", "8.8.8.8 -> x/a 1/TCP"]);
    // 133: terminating pods keep both roles.
    apply(
        &mut world,
        &pod("x", "b", 12, "n1").replace("uid:", "deletionTimestamp: 2024-01-01T00:00:00Z, uid:"),
    );
    expect(&world, &["x/b -> x/a 1/TCP"], &[]);
    // 134: every address.
    expect(&world, &["6:x/b -> 6:x/a 1/TCP"], &["6:x/c -> 6:x/a 1/TCP"]);
    // 129, 130: finished, its address grants nothing, and belongs to whoever gets it.
    let finished = pod("x", "b", 12, "n1").replace("Running", "Succeeded");
    apply(&mut world, &finished);
    expect(&world, &[], &["10.0.0.12 -> x/a 1/TCP"]);
    apply(&mut world, &pod("x", "intruder", 12, "n1"));
    apply(&mut world, &finished);
    expect(&world, &[], &["10.0.0.12 -> x/a 1/TCP"]);
    assert_eq!(
        ask(&world, "10.0.0.12 -> x/a 1/TCP").egress.pod.map(|key| key.to_string()).as_deref(),
        Some("x/intruder")
    );
    // A finished pod is no target either.
    apply(&mut world, &pod("x", "a", 11, "n1").replace("Running", "Failed"));
    expect(&world, &["8.8.8.8 -> 10.0.0.11 1/TCP"], &[]);
}

#[test]
fn case_131_132_139_140_changes() {
    let mut world = with(&[("x/p", &format!("{{{A}}}")), ("x/q", "{}")]);
    // 131: a new sandbox.
    apply(&mut world, &pod("x", "a", 50, "n1"));
    expect(&world, &["y/a -> 10.0.0.11 1/TCP"], &["y/a -> 10.0.0.50 1/TCP"]);
    // 139: the last selecting policy counts.
    world.apply(Delta::PolicyGone(policy_engine::model::ObjectKey::new("x", "q")));
    expect(&world, &["y/a -> x/b 1/TCP"], &["y/a -> x/a 1/TCP"]);
    // 141: the selector is edited: one leaves, one enters.
    policy(&mut world, "x/p", "{podSelector: {matchLabels: {pod: b}}}");
    expect(&world, &["y/a -> x/a 1/TCP"], &["y/a -> x/b 1/TCP"]);
    assert!(world.apply(Delta::PolicyGone(policy_engine::model::ObjectKey::new("x", "p"))));
    expect(&world, &["y/a -> x/b 1/TCP"], &[]);
}

#[test]
fn sides_name_policies_and_the_first_allowing_rule() {
    let world = with(&[
        ("x/deny", "{}"),
        ("x/z", "{ingress: [{}]}"),
        ("x/m", &format!("{{{A}, ingress: [{{ports: [{{port: 9}}]}}, {{ports: [{{port: 80}}]}}]}}")),
    ]);
    let side = ask(&world, "y/a -> x/a 80/TCP").ingress;
    let names: Vec<String> = side.isolated_by.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["x/deny", "x/m", "x/z"]);
    assert_eq!(side.allowed_by.map(|rule| rule.to_string()).as_deref(), Some("x/m ingress[1]"));
    let open = ask(&world, "x/a -> y/a 80/TCP");
    assert_eq!((open.egress.reason, open.egress.isolated_by.len()), (Reason::NotIsolated, 0));
    let outside = crate::support::query(&world, "8.8.8.8 -> 1.1.1.1 80/TCP");
    assert_eq!(outside.destination, ip("1.1.1.1"));
    assert!(ask(&world, "8.8.8.8 -> 1.1.1.1 80/TCP").ingress.pod.is_none());
}
