//! A policy with a part that cannot be read never allows what the intact one denies, and reading never panics.

use policy_engine::oracle;
use policy_engine::read::{self, Read};
use policy_engine::verdict::Query;
use policy_engine::world::{Delta, World};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::support::{cluster, cluster_policy, ip, policy};

/// Garbage that no place of a policy accepts, whatever the type it wants.
fn garbage() -> impl Strategy<Value = Value> {
    select(vec![
        json!(true),
        json!([1]),
        json!([null]),
        json!({"zzz": 1}),
        json!(3.5),
        json!({"": {}}),
        json!([[]]),
    ])
}

fn selector() -> impl Strategy<Value = Value> {
    let expression =
        (select(vec!["pod", "ns", "empty", "none"]), 0..4_usize, select(vec!["a", "b", "x", ""])).prop_map(
            |(key, operator, value)| match operator {
                0 => json!({"key": key, "operator": "In", "values": [value, "c"]}),
                1 => json!({"key": key, "operator": "NotIn", "values": [value]}),
                2 => json!({"key": key, "operator": "Exists"}),
                _ => json!({"key": key, "operator": "DoesNotExist"}),
            },
        );
    let labels = proptest::option::of((select(vec!["pod", "ns"]), select(vec!["a", "b", "x", "y"])));
    (labels, proptest::collection::vec(expression, 0..2)).prop_map(|(labels, expressions)| {
        let mut selector = json!({});
        if let Some((key, value)) = labels {
            selector["matchLabels"] = json!({key: value});
        }
        if !expressions.is_empty() {
            selector["matchExpressions"] = json!(expressions);
        }
        selector
    })
}

fn peer() -> impl Strategy<Value = Value> {
    let blocks = select(vec![
        json!({"cidr": "10.0.0.0/24", "except": ["10.0.0.16/28", "10.0.0.12/32"]}),
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "::/0", "except": ["fd00::/64"]}),
        json!({"cidr": "192.0.2.1/32"}),
    ]);
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector()).prop_map(|(a, b)| json!({"podSelector": a, "namespaceSelector": b})),
        blocks.prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    let port = select(vec![
        json!({}),
        json!({"port": 80}),
        json!({"port": 79, "endPort": 81, "protocol": "TCP"}),
        json!({"port": "web"}),
        json!({"port": "dns", "protocol": "UDP"}),
        json!({"protocol": "SCTP"}),
    ]);
    let lists = (
        proptest::option::of(proptest::collection::vec(peer(), 0..3)),
        proptest::option::of(proptest::collection::vec(port, 0..3)),
    );
    lists.prop_map(move |(from, ports)| {
        let mut rule = json!({});
        if let Some(from) = from {
            rule[peers] = json!(from);
        }
        if let Some(ports) = ports {
            rule["ports"] = json!(ports);
        }
        rule
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let types =
        select(vec![None, Some(vec!["Ingress"]), Some(vec!["Egress"]), Some(vec!["Ingress", "Egress"])]);
    let rules = |peers| proptest::option::of(proptest::collection::vec(rule(peers), 0..3));
    (proptest::option::of(selector()), types, rules("from"), rules("to")).prop_map(
        |(target, types, ingress, egress)| {
            let mut spec = json!({});
            let fields = [
                ("podSelector", target),
                ("policyTypes", types.map(|types| json!(types))),
                ("ingress", ingress.map(|rules| json!(rules))),
                ("egress", egress.map(|rules| json!(rules))),
            ];
            for (name, value) in fields {
                if let Some(value) = value {
                    spec[name] = value;
                }
            }
            spec
        },
    )
}

/// Peers, protocols and actions of a rule of the cluster.
fn tier_rule(peers: &'static str) -> impl Strategy<Value = Value> {
    let pods = (selector(), selector());
    let mut kinds = vec![
        selector().prop_map(|namespaces| json!({"namespaces": namespaces})).boxed(),
        pods.prop_map(|(a, b)| json!({"pods": {"namespaceSelector": a, "podSelector": b}})).boxed(),
    ];
    if peers == "to" {
        let networks =
            vec![json!(["10.0.0.0/28"]), json!(["0.0.0.0/0", "fd00::/64"]), json!(["192.0.2.1/32"])];
        kinds.push(select(networks).prop_map(|networks| json!({"networks": networks})).boxed());
        kinds.push(selector().prop_map(|nodes| json!({"nodes": nodes})).boxed());
    }
    let port = select(vec![
        json!({"tcp": {"destinationPort": {"number": 80}}}),
        json!({"tcp": {"destinationPort": {"range": {"start": 7, "end": 81}}}}),
        json!({"udp": {"destinationPort": {"number": 53}}}),
        json!({"sctp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}),
    ]);
    let lists = (
        select(vec!["Accept", "Deny", "Pass"]),
        proptest::collection::vec(proptest::strategy::Union::new(kinds), 1..3),
        proptest::option::of(proptest::collection::vec(port, 1..3)),
    );
    lists.prop_map(move |(action, of, ports)| {
        let mut rule = json!({"name": "n", "action": action, peers: of});
        if let Some(ports) = ports {
            rule["protocols"] = json!(ports);
        }
        rule
    })
}

fn tier_spec() -> impl Strategy<Value = Value> {
    let subject = prop_oneof![
        selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        (selector(), selector())
            .prop_map(|(a, b)| json!({"pods": {"namespaceSelector": a, "podSelector": b}})),
    ];
    let rules = |peers| proptest::option::of(proptest::collection::vec(tier_rule(peers), 1..3));
    let head = (select(vec!["Admin", "Baseline"]), select(vec![0, 5, 1000]), subject);
    (head, rules("from"), rules("to")).prop_map(|((tier, priority, subject), ingress, egress)| {
        let mut spec = json!({"tier": tier, "priority": priority, "subject": subject});
        for (name, rules) in [("ingress", ingress), ("egress", egress)] {
            if let Some(rules) = rules {
                spec[name] = json!(rules);
            }
        }
        spec
    })
}

/// How a place is broken. Removing a field is no breakage: that is another valid policy.
#[derive(Clone, Debug)]
enum Break {
    Replace(Value),
    Misspell,
    AddField,
    AddItem(Value),
}

fn breaks(bad: &Value) -> [Break; 5] {
    let (replace, add) = (Break::Replace(bad.clone()), Break::AddItem(bad.clone()));
    [replace, Break::Misspell, Break::AddField, add, Break::AddItem(Value::Null)]
}

/// Paths of all places below `spec`, the root included.
fn places(value: &Value, path: &str, all: &mut Vec<String>) {
    all.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| places(value, &format!("{path}/{key}"), all));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| places(value, &format!("{path}/{i}"), all));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Breaks one place of an object; `None` where this breakage would give another valid policy.
fn broken(object: &Value, place: &str, how: &Break) -> Option<Value> {
    let mut object = object.clone();
    let (parent, last) = place.rsplit_once('/')?;
    let free_keys = parent.ends_with("/matchLabels");
    match how {
        Break::Replace(value) => *object.pointer_mut(place)? = value.clone(),
        Break::Misspell if free_keys => return None,
        Break::Misspell => {
            let fields = object.pointer_mut(parent)?.as_object_mut()?;
            let value = fields.remove(last)?;
            fields.insert(format!("{last}x"), value);
        }
        Break::AddField => {
            let fields = object.pointer_mut(place)?.as_object_mut()?;
            fields.insert("x y".to_owned(), json!("z"));
        }
        Break::AddItem(value) => object.pointer_mut(place)?.as_array_mut()?.push(value.clone()),
    }
    Some(object)
}

fn read_into(world: &World, object: &Value) -> (World, Read) {
    let read = read::object(object);
    let mut world = world.clone();
    let delta = read.delta.clone().expect("a policy with a name is never lost");
    assert!(matches!(delta, Delta::Policy(_) | Delta::ClusterPolicy(_)));
    world.apply(delta);
    (world, read)
}

/// Flows between pods of x and everyone else, both ways.
fn questions() -> Vec<Query> {
    let v4 = ["10.0.0.12", "10.0.0.21", "10.0.0.31", "10.0.0.17", "8.8.8.8", "192.0.2.1"];
    let v6 = ["fd00::12", "fd00::21", "2001:db8::1"];
    let v4 = v4.iter().map(|other| ("10.0.0.11", *other));
    let pairs = v4.chain(v6.iter().map(|other| ("fd00::11", *other)));
    let ports = [(6, 80), (6, 7), (17, 53), (132, 9), (1, 0)];
    let both_ways = pairs.flat_map(|(a, b)| [(a, b), (b, a)]);
    let all = both_ways.flat_map(|(a, b)| ports.map(|(protocol, port)| (ip(a), ip(b), protocol, port)));
    let query = |(source, destination, protocol, port)| Query {
        source,
        destination,
        protocol,
        port,
        from_node_process: false,
    };
    all.map(query).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Each place of the policy is broken in turn, in all ways that it can be.
    #[test]
    fn a_broken_policy_allows_no_more(
        spec in spec(),
        bad in proptest::collection::vec(garbage(), 8),
        closed in any::<bool>(),
    ) {
        let metadata = json!({"namespace": "x", "name": "p"});
        let intact = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec
        });
        let mut world = cluster();
        if closed {
            // Others isolate already, so that a rule which reaches too many pods shows.
            policy(&mut world, "x/closed", "{policyTypes: [Ingress, Egress]}");
        }
        let (before, read) = read_into(&world, &intact);
        prop_assert!(!read.broken, "{:?}", read.problems);
        let mut denied = questions();
        denied.retain(|query| !oracle::verdicts(&before, query).allows());

        let mut all = Vec::new();
        places(&intact["spec"], "/spec", &mut all);
        let bad = all.iter().zip(bad.iter().cycle());
        for (place, how) in bad.flat_map(|(place, bad)| breaks(bad).map(|how| (place, how))) {
            let Some(broken) = broken(&intact, place, &how) else { continue };
            let (after, read) = read_into(&world, &broken);
            prop_assert!(!read.problems.is_empty(), "nothing said about {broken}");
            for query in &denied {
                prop_assert!(!oracle::verdicts(&after, query).allows(), "{query:?} opened by {broken}");
            }
        }
    }

    /// The same for policies of the cluster, among others of every tier.
    #[test]
    fn a_broken_policy_of_the_cluster_allows_no_more(
        spec in tier_spec(),
        bad in proptest::collection::vec(garbage(), 8),
        closed in any::<bool>(),
    ) {
        let intact = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "m"}, "spec": spec
        });
        let mut world = cluster();
        let rule = |action| format!("{{action: {action}, from: [{{pods: {{podSelector: {{matchLabels: {{pod: b}}}}}}}}]}}");
        let head = "subject: {namespaces: {}}, priority: 5";
        cluster_policy(&mut world, "n", &format!("{{tier: Admin, {head}, ingress: [{}]}}", rule("Accept")));
        cluster_policy(&mut world, "o", &format!("{{tier: Baseline, {head}, ingress: [{}]}}", rule("Deny")));
        if closed {
            policy(&mut world, "x/closed", "{policyTypes: [Ingress, Egress]}");
        }
        let (before, read) = read_into(&world, &intact);
        prop_assert!(!read.broken, "{:?}", read.problems);
        let mut denied = questions();
        denied.retain(|query| !oracle::verdicts(&before, query).allows());
        let mut all = Vec::new();
        places(&intact["spec"], "/spec", &mut all);
        let bad = all.iter().zip(bad.iter().cycle());
        for (place, how) in bad.flat_map(|(place, bad)| breaks(bad).map(|how| (place, how))) {
            let Some(broken) = broken(&intact, place, &how) else { continue };
            let (after, read) = read_into(&world, &broken);
            prop_assert!(!read.problems.is_empty(), "nothing said about {broken}");
            for query in &denied {
                prop_assert!(!oracle::verdicts(&after, query).allows(), "{query:?} opened by {broken}");
            }
        }
    }

    #[test]
    fn reading_never_panics(value in any_json()) {
        for kind in ["NetworkPolicy", "Pod", "Namespace", "Node", "Service", "PodList", "List", "EndpointSlice", "ClusterNetworkPolicy", "Other"] {
            let mut object = json!({"kind": kind, "metadata": {"name": "p"}, "spec": value, "items": [value]});
            object["status"] = value.clone();
            let _ = read::objects(&object);
            object["metadata"] = value.clone();
            let _ = read::objects(&object);
        }
        let _ = read::objects(&value);
    }
}

/// JSON out of the words that the readers look for.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        select(vec![
            "",
            "a",
            "10.0.0.0/8",
            "::ffff:1.2.3.4/99",
            "80",
            "In",
            "TCP",
            "Egress",
            "Admin",
            "Pass",
            "é%/"
        ])
        .prop_map(Value::from),
    ];
    let key = select(vec![
        "name",
        "namespace",
        "labels",
        "annotations",
        "podSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "ingress",
        "egress",
        "from",
        "to",
        "ports",
        "port",
        "endPort",
        "protocol",
        "ipBlock",
        "cidr",
        "except",
        "policyTypes",
        "podIPs",
        "podIP",
        "ip",
        "phase",
        "containers",
        "containerPort",
        "hostNetwork",
        "tier",
        "priority",
        "subject",
        "namespaces",
        "pods",
        "networks",
        "protocols",
        "tcp",
        "destinationPort",
        "action",
        "addresses",
        "address",
        "clusterIP",
        "clusterIPs",
        "kind",
        "items",
        "spec",
        "status",
        "creationTimestamp",
        "policy-agent.io/netns",
        "policy-agent.io/interface",
        "policy-agent.io/cgroup",
        "policy-agent.io/unit",
    ]);
    leaf.prop_recursive(6, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}
