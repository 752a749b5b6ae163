//! The nearest rule, and the prose.

use policy_engine::explain;
use policy_engine::verdict::{Evaluation, Side};

use crate::support::{ask, cluster_policy, query, with};

fn nearest(policies: &[(&str, &str)], question: &str) -> String {
    let Evaluation { egress, ingress } = ask(&with(policies), question);
    let denied: Vec<Side> = [egress, ingress].into_iter().filter(|side| !side.allows()).collect();
    assert_eq!(denied.len(), 1, "{question}");
    denied[0].nearest.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
}

/// The nearest rule of one policy `x/p` of which all pods of x are the target.
fn nearest_of(rules: &str, question: &str) -> String {
    nearest(&[("x/p", &format!("{{ingress: [{rules}]}}"))], question)
}

#[test]
fn the_field_that_differs() {
    let b80 = "{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}";
    for (rules, question, expected) in [
        (b80, "x/b -> x/a 9999/TCP", "x/p ingress[0]: port 80/TCP, got 9999/TCP"),
        (b80, "x/b -> x/a 80/UDP", "x/p ingress[0]: protocol 80/TCP, got 80/UDP"),
        (b80, "x/b -> x/a ICMP", "x/p ingress[0]: protocol 80/TCP, got ICMP"),
        (b80, "x/b -> x/a 53/UDP", "x/p ingress[0]: port 80/TCP, got 53/UDP"),
        (b80, "x/c -> x/a 80/TCP", "x/p ingress[0]: pod label pod=b, got pod=c"),
        (b80, "x/c -> x/a 81/TCP", "x/p ingress[0]: pod label pod=b, got pod=c"),
        (
            b80,
            "y/b -> x/a 80/TCP",
            "x/p ingress[0]: namespace label kubernetes.io/metadata.name=x, got kubernetes.io/metadata.name=y",
        ),
        (
            b80,
            "192.0.2.77 -> x/a 80/TCP",
            "x/p ingress[0]: address pods pod=b of the policy's namespace, got 192.0.2.77",
        ),
        (
            b80,
            "192.0.2.1 -> x/a 80/TCP",
            "x/p ingress[0]: address pods pod=b of the policy's namespace, got 192.0.2.1 (this node)",
        ),
        (
            "{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, w]}]}}]}",
            "z/a -> x/a 80/TCP",
            "x/p ingress[0]: namespace label ns in (y, w), got (no ns)",
        ),
        (
            "{from: [{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}, {key: team, operator: Exists}]}}]}",
            "x/c -> x/a 80/TCP",
            "x/p ingress[0]: pod label any team, got (no team)",
        ),
        (
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/24]}}]}",
            "x/b -> x/a 80/TCP",
            "x/p ingress[0]: address 10.0.0.0/8 except 10.0.0.0/24, got 10.0.0.12",
        ),
        ("{ports: [{port: web}]}", "y/a -> x/b 80/TCP", "x/p ingress[0]: port web/TCP (= 8080), got 80/TCP"),
        (
            "{ports: [{port: nope}, {port: 1, endPort: 9}]}",
            "y/a -> x/b 80/TCP",
            "x/p ingress[0]: port nope/TCP (the destination has no port of this name), 1-9/TCP, got 80/TCP",
        ),
        ("{from: [{}]}", "x/b -> x/a 80/TCP", "x/p ingress[0]: address (unreadable peer), got 10.0.0.12"),
        ("", "x/b -> x/a 80/TCP", "none"),
    ] {
        assert_eq!(nearest_of(rules, question), expected, "{rules} {question}");
    }
}

#[test]
fn fewer_failing_fields_then_the_right_peer_then_order() {
    let right_peer = "{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}";
    let right_port = "{from: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 81}]}";
    let nothing_right = "{from: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 82}]}";
    let question = "x/b -> x/a 81/TCP";
    let rules = format!("{nothing_right}, {right_port}, {right_peer}");
    assert_eq!(nearest_of(&rules, question), "x/p ingress[2]: port 80/TCP, got 81/TCP");
    let rules = format!("{nothing_right}, {right_port}");
    assert_eq!(nearest_of(&rules, question), "x/p ingress[1]: pod label pod=c, got pod=b");
    assert_eq!(
        nearest_of(&format!("{right_peer}, {right_peer}"), question),
        "x/p ingress[0]: port 80/TCP, got 81/TCP"
    );
    let spec = format!("{{ingress: [{right_peer}]}}");
    assert_eq!(
        nearest(&[("x/q", &spec), ("x/p", &spec)], question),
        "x/p ingress[0]: port 80/TCP, got 81/TCP"
    );
    let deny = nearest(&[("x/a-deny", "{}"), ("x/q", &spec)], question);
    assert_eq!(deny, "x/q ingress[0]: port 80/TCP, got 81/TCP");
}

/// Of the peers of a rule, the one with fewer wrong labels is named.
#[test]
fn nearest_peer_of_a_rule() {
    let rules = "{from: [{namespaceSelector: {matchLabels: {ns: w}}, podSelector: {matchLabels: {pod: c}}}, {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}";
    assert_eq!(nearest_of(rules, "y/a -> x/a 1/TCP"), "x/p ingress[0]: pod label pod=b, got pod=a");
}

#[test]
fn egress_names_the_destination() {
    let spec = "{policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}]}]}";
    let policies = [("x/p", spec)];
    assert_eq!(nearest(&policies, "x/a -> x/b 80/TCP"), "x/p egress[0]: port web/TCP (= 8080), got 80/TCP");
    assert_eq!(nearest(&policies, "x/a -> x/c 80/TCP"), "x/p egress[0]: pod label pod=b, got pod=c");
}

#[test]
fn long_lists_are_cut_and_counted() {
    let ports: Vec<String> = (1..=20).map(|port| format!("{{port: {port}}}")).collect();
    let rules = format!("{{ports: [{}]}}", ports.join(", "));
    let expected = "x/p ingress[0]: port 1/TCP, 2/TCP, 3/TCP, 4/TCP, 5/TCP, 6/TCP and 14 more, got 80/TCP";
    assert_eq!(nearest_of(&rules, "y/a -> x/a 80/TCP"), expected);
}

#[test]
fn prose() {
    let world = with(&[
        ("x/deny", "{podSelector: {matchLabels: {pod: a}}}"),
        ("x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}"),
    ]);
    let text = |question: &str| {
        let query = query(&world, question);
        let mut out = String::new();
        explain::text(&mut out, &world, &query, &ask(&world, question)).unwrap();
        out
    };
    let expected = "\
y/a (10.0.0.21) -> x/a (10.0.0.11) 9999/TCP: denied
  egress of y/a (10.0.0.21): allowed, no policy isolates the pod in this direction
  ingress of x/a (10.0.0.11): denied, the pod is isolated and no rule matches
    isolated by: x/deny, x/p
    nearest rule: x/p ingress[0]
      port wanted: 80/TCP
      port got: 9999/TCP
";
    assert_eq!(text("y/a -> x/a 9999/TCP"), expected);
    let allowed = text("8.8.8.8 -> x/a 80/TCP");
    assert!(allowed.starts_with("8.8.8.8 -> x/a (10.0.0.11) 80/TCP: allowed\n"), "{allowed}");
    assert!(allowed.contains("policy judges pods only, and this is none"), "{allowed}");
    assert!(allowed.ends_with("    isolated by: x/deny, x/p\n    allowed by: x/p ingress[0]\n"), "{allowed}");
    assert!(text("x/a -> x/a 9/TCP").contains("never leaves the pod"));
    assert!(text("process:192.0.2.1 -> x/a 9/TCP").contains("node's own processes"));
    let world = with(&[("x/deny", "{}")]);
    let query = query(&world, "y/a -> x/a 1/TCP");
    let mut out = String::new();
    explain::text(&mut out, &world, &query, &ask(&world, "y/a -> x/a 1/TCP")).unwrap();
    assert!(out.contains("nearest rule: none, these policies have no ingress rules"), "{out}");
}

#[test]
fn prose_about_tiers() {
    let mut world =
        with(&[("x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}")]);
    let subject = "subject: {namespaces: {matchLabels: {ns: x}}}";
    let pods = |name: &str| format!("from: [{{pods: {{podSelector: {{matchLabels: {{pod: {name}}}}}}}}}]");
    let rules = format!("[{{action: Pass, {}}}, {{name: not c, action: Deny, {}}}]", pods("a"), pods("c"));
    cluster_policy(
        &mut world,
        "guard",
        &format!("{{tier: Admin, priority: 7, {subject}, ingress: {rules}}}"),
    );
    let rules = format!("[{{action: Accept, {}}}]", pods("b"));
    cluster_policy(
        &mut world,
        "base",
        &format!("{{tier: Baseline, priority: 0, {subject}, ingress: {rules}}}"),
    );
    let text = |question: &str| {
        let query = query(&world, question);
        let mut out = String::new();
        explain::text(&mut out, &world, &query, &ask(&world, question)).unwrap();
        out.split_once("  ingress of ").expect("two sides").1.to_owned()
    };
    let cluster =
        "    policies of the cluster: guard (Admin tier, priority 7), base (Baseline tier, priority 0)\n";
    let expected = format!(
        "x/a (10.0.0.11): denied, a rule denies it\n    isolated by: x/p\n{cluster}\
         \x20   denied by: guard ingress[1] \"not c\" (Admin tier, priority 7)\n"
    );
    assert_eq!(text("x/c -> x/a 80/TCP"), expected);
    let expected = format!(
        "x/a (10.0.0.11): denied, the pod is isolated and no rule matches\n    isolated by: x/p\n{cluster}\
         \x20   passed on by: guard ingress[0] (Admin tier, priority 7)\n\
         \x20   nearest rule: x/p ingress[0]\n      port wanted: 80/TCP\n      port got: 81/TCP\n"
    );
    assert_eq!(text("y/a -> x/a 81/TCP"), expected);
    let allowed = text("y/b -> x/b 9/TCP");
    assert!(allowed.ends_with("allowed by: base ingress[0] (Baseline tier, priority 0)\n"), "{allowed}");
    let left = text("8.8.8.8 -> x/b 9/TCP");
    assert!(left.contains("allowed, no rule decides it, and no NetworkPolicy isolates"), "{left}");
}
