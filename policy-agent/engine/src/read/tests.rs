//! Every bad input that we know of: what it becomes, which field is named, and that it stays isolated.

use super::*;
use crate::model::{
    InterfaceHint, NAMESPACE_NAME_LABEL, NamespaceScope, Peer, Peers, Phase, Policy, PortMatch, Ports,
    Protocol, Requirement, Rule,
};

fn yaml(text: &str) -> Value {
    serde_norway::from_str(text).unwrap()
}

fn read_policy(spec: &str) -> (Policy, Read) {
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: x, name: p}}\nspec: {spec}"
    );
    let read = object(&yaml(&text));
    match read.delta.clone() {
        Some(Delta::Policy(policy)) => (policy, read),
        other => panic!("{spec}: {other:?}"),
    }
}

/// The rule of `spec: {ingress: [<rule>]}`, with `(field, message)` of its problems.
fn read_rule(rule: &str) -> (Rule, Vec<(String, String)>, bool) {
    let (policy, read) = read_policy(&format!("{{ingress: [{rule}]}}"));
    let mut rules = policy.ingress.unwrap();
    assert_eq!(rules.len(), 1, "{rule}");
    assert_eq!(policy.egress, None);
    let problems = read.problems.into_iter().map(|problem| (problem.field, problem.message)).collect();
    (rules.remove(0), problems, read.broken)
}

/// Asserts that the only problem is at `spec.ingress[0]<path>` and holds `words`.
fn assert_problem(input: &str, problems: &[(String, String)], path: &str, words: &str) {
    let field = format!("spec.ingress[0]{path}");
    assert!(
        problems.iter().any(|(at, message)| *at == field && message.contains(words)),
        "{input}: no problem at {field} with \"{words}\": {problems:?}"
    );
}

/// Edge cases 87, 88, 90, 96 and wrong types: the entry matches nothing, its neighbour still works.
#[test]
fn bad_ports_match_nothing() {
    let cases = [
        ("{port: 80, endPort: 79}", ".endPort", "smaller than port 80"),
        ("{port: http, endPort: 90}", ".endPort", "named port"),
        ("{endPort: 90}", ".endPort", "without port"),
        ("{port: 80, endPort: 65536}", ".endPort", "no port"),
        ("{port: 80, endPort: '90'}", ".endPort", "must be a whole number"),
        ("{port: '80'}", ".port", "without quotes"),
        ("{port: 0}", ".port", "no port"),
        ("{port: 65536}", ".port", "no port"),
        ("{port: -1}", ".port", "no port"),
        ("{port: 80.5}", ".port", "no port"),
        ("{port: true}", ".port", "must be a whole number, is a boolean"),
        ("{port: HTTP}", ".port", "no port name"),
        ("{port: ''}", ".port", "no port name"),
        ("{port: 80, protocol: tcp}", ".protocol", "unknown protocol"),
        ("{port: 80, protocol: ICMP}", ".protocol", "unknown protocol"),
        ("{protocol: 6}", ".protocol", "must be a string"),
        ("{port: 80, ports: 81}", ".ports", "unknown field"),
        ("[]", "", "must be an object, is a list"),
        ("null", "", "must be an object, is null"),
    ];
    for (entry, path, words) in cases {
        let (rule, problems, broken) =
            read_rule(&format!("{{ports: [{{port: 53, protocol: UDP}}, {entry}]}}"));
        let good = PortMatch::Range(Protocol::Udp, 53, 53);
        assert_eq!(
            rule,
            Rule { peers: Peers::All, ports: Ports::Any(vec![good, PortMatch::Nothing]) },
            "{entry}"
        );
        assert_problem(entry, &problems, &format!(".ports[1]{path}"), words);
        assert!(broken && problems.len() == 1, "{entry}: {problems:?}");
    }
    let (rule, problems, _) = read_rule("{ports: {port: 80}}");
    assert_eq!(rule.ports, Ports::Any(vec![PortMatch::Nothing]));
    assert_problem("ports", &problems, ".ports", "must be a list, is an object");
}

/// Edge cases 70 to 72, 80, 89: what is left out, and the smallest range.
#[test]
fn good_ports() {
    let cases = [
        ("{}", PortMatch::Protocol(Protocol::Tcp)),
        ("{protocol: SCTP}", PortMatch::Protocol(Protocol::Sctp)),
        ("{port: 80}", PortMatch::Range(Protocol::Tcp, 80, 80)),
        ("{port: 80, endPort: 80}", PortMatch::Range(Protocol::Tcp, 80, 80)),
        ("{port: 1, endPort: 65535, protocol: UDP}", PortMatch::Range(Protocol::Udp, 1, 65535)),
        ("{port: dns}", PortMatch::Named(Protocol::Tcp, "dns".into())),
        ("{port: 80, endPort: null, protocol: null}", PortMatch::Range(Protocol::Tcp, 80, 80)),
    ];
    for (entry, expected) in cases {
        let (rule, problems, broken) = read_rule(&format!("{{ports: [{entry}]}}"));
        assert_eq!(rule.ports, Ports::Any(vec![expected]), "{entry}");
        assert!(!broken && problems.is_empty(), "{entry}: {problems:?}");
    }
}

/// Edge cases 33, 34, 50, 54, 59, 61, 146: the peer matches nothing, its neighbour still works.
#[test]
fn bad_peers_match_nothing() {
    let cases = [
        ("{}", "", "has no podSelector"),
        ("null", "", "must be an object, is null"),
        ("{podSelector: null}", "", "has no podSelector"),
        ("x", "", "must be an object, is a string"),
        ("{podSelector: {}, fqdns: [a]}", ".fqdns", "unknown field"),
        ("{serviceAccounts: {}}", ".serviceAccounts", "unknown field"),
        ("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}", "", "an ipBlock and a selector"),
        ("{ipBlock: {}}", ".ipBlock", "has no cidr"),
        ("{ipBlock: 10.0.0.0/8}", ".ipBlock", "must be an object"),
        ("{ipBlock: {cidr: 10}}", ".ipBlock.cidr", "must be a string"),
        ("{ipBlock: {cidr: 10.0.0.0}}", ".ipBlock.cidr", "no prefix length"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", ".ipBlock.cidr", "too large"),
        ("{ipBlock: {cidr: 'fe80::1%eth0/64'}}", ".ipBlock.cidr", "zone identifiers"),
        ("{ipBlock: {cidr: '::ffff:10.0.0.0/90'}}", ".ipBlock.cidr", "96 or more"),
        ("{ipBlock: {cidr: 10.0.0.0/8, excepts: []}}", ".ipBlock.excepts", "unknown field"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}", ".ipBlock.except[0]", "not strictly inside"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}", ".ipBlock.except[0]", "not strictly inside"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}", ".ipBlock.except[0]", "not strictly inside"),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: ['2001:db8::/32']}}",
            ".ipBlock.except[0]",
            "not strictly inside",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, no]}}",
            ".ipBlock.except[1]",
            "no prefix length",
        ),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}", ".ipBlock.except", "must be a list"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [null]}}", ".ipBlock.except[0]", "must be a string, is null"),
    ];
    for (peer, path, words) in cases {
        let (rule, problems, broken) =
            read_rule(&format!("{{from: [{peer}, {{ipBlock: {{cidr: '::/0'}}}}]}}"));
        let good = Peer::Block { cidr: "::/0".parse().unwrap(), except: Vec::new() };
        assert_eq!(rule.peers, Peers::Any(vec![Peer::Nothing, good]), "{peer}");
        assert_problem(peer, &problems, &format!(".from[0]{path}"), words);
        assert!(broken, "{peer}");
    }
}

#[test]
fn bad_rules_match_nothing() {
    let nothing =
        Rule { peers: Peers::Any(vec![Peer::Nothing]), ports: Ports::Any(vec![PortMatch::Nothing]) };
    for (rule, path, words) in [
        ("null", "", "must be an object, is null"),
        ("all", "", "must be an object, is a string"),
        ("{to: [{podSelector: {}}]}", ".to", "unknown field"),
        ("{from: [{podSelector: {}}], action: Deny}", ".action", "unknown field"),
    ] {
        let (read, problems, broken) = read_rule(rule);
        assert_eq!(read, nothing, "{rule}");
        assert_problem(rule, &problems, path, words);
        assert!(broken);
    }
    let (rule, problems, _) = read_rule("{from: {podSelector: {}}}");
    assert_eq!(rule, Rule { peers: Peers::Any(vec![Peer::Nothing]), ports: Ports::All });
    assert_problem("from", &problems, ".from", "must be a list");
    for spec in ["{ingress: {from: []}}", "{ingress: open}"] {
        let (policy, read) = read_policy(spec);
        assert_eq!(policy.ingress, Some(Vec::new()), "{spec}");
        assert!(read.broken && read.problems[0].field == "spec.ingress");
    }
}

/// Edge cases 31, 32: absent, null and empty lists are the same; null is told, as it may be a slip.
#[test]
fn absent_null_and_empty() {
    let everything = Rule { peers: Peers::All, ports: Ports::All };
    for (rule, notes) in [("{}", 0), ("{from: [], ports: []}", 0), ("{from: null, ports: null}", 2)] {
        let (read, problems, broken) = read_rule(rule);
        assert_eq!(read, everything, "{rule}");
        assert!(!broken && problems.len() == notes, "{rule}: {problems:?}");
    }
}

/// A selector, where its problem is, and what is said.
const BAD_SELECTORS: [(&str, &str, &str); 22] = [
    (
        "{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}",
        ".matchExpressions[0].operator",
        "\"Gt\"",
    ),
    ("{matchExpressions: [{key: a, operator: in, values: [b]}]}", ".matchExpressions[0].operator", "\"in\""),
    ("{matchExpressions: [{key: a, values: [b]}]}", ".matchExpressions[0]", "has no operator"),
    ("{matchExpressions: [{key: a, operator: null}]}", ".matchExpressions[0]", "has no operator"),
    ("{matchExpressions: [{key: a, operator: 1}]}", ".matchExpressions[0].operator", "must be a string"),
    ("{matchExpressions: [{key: a, operator: In}]}", ".matchExpressions[0]", "needs values"),
    ("{matchExpressions: [{key: a, operator: NotIn, values: []}]}", ".matchExpressions[0]", "needs values"),
    (
        "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        ".matchExpressions[0].values",
        "takes no",
    ),
    ("{matchExpressions: [{operator: DoesNotExist}]}", ".matchExpressions[0]", "has no key"),
    ("{matchExpressions: [{key: a b, operator: DoesNotExist}]}", ".matchExpressions[0].key", "no label key"),
    (
        "{matchExpressions: [{key: a, operator: NotIn, values: ['b c']}]}",
        ".matchExpressions[0].values[0]",
        "\"b c\"",
    ),
    (
        "{matchExpressions: [{key: a, operator: NotIn, values: b}]}",
        ".matchExpressions[0].values",
        "must be a list",
    ),
    (
        "{matchExpressions: [{key: a, operator: NotIn, values: [1]}]}",
        ".matchExpressions[0].values[0]",
        "a number",
    ),
    ("{matchExpressions: [{key: a, operator: Exists, x: 1}]}", ".matchExpressions[0].x", "unknown field"),
    ("{matchExpressions: [null]}", ".matchExpressions[0]", "is null"),
    ("{matchExpressions: {key: a}}", ".matchExpressions", "must be a list"),
    ("{matchLabels: [a]}", ".matchLabels", "must be an object"),
    ("{matchLabels: {a: 1}}", ".matchLabels[a]", "must be a string"),
    ("{matchLabels: {a b: c}}", ".matchLabels[a b]", "no label key"),
    ("{matchLabels: {a: b c}}", ".matchLabels[a]", "no label value"),
    ("{matchLabel: {a: b}}", ".matchLabel", "unknown field"),
    ("[]", "", "must be an object"),
];

/// Edge cases 10, 146.
#[test]
fn bad_selectors_match_nothing() {
    for (selector, path, words) in BAD_SELECTORS {
        for peer in ["podSelector", "namespaceSelector"] {
            let (rule, problems, broken) = read_rule(&format!("{{from: [{{{peer}: {selector}}}]}}"));
            let Peers::Any(peers) = rule.peers else { panic!("{selector}") };
            let Peer::Pods { namespaces, pods } = &peers[0] else { panic!("{selector}") };
            let read = match namespaces {
                NamespaceScope::Selector(namespaces) => namespaces,
                NamespaceScope::Own => pods,
            };
            assert!(read.requirements.contains(&Requirement::Never), "{selector}: {read:?}");
            assert_problem(selector, &problems, &format!(".from[0].{peer}{path}"), words);
            assert!(broken && problems.len() == 1, "{selector}: {problems:?}");
        }
        // As the target: more is selected, nothing is allowed.
        let spec = format!("{{podSelector: {selector}, ingress: [{{}}]}}");
        let (policy, read) = read_policy(&spec);
        assert!(policy.pod_selector.requirements.is_empty(), "{spec}");
        assert_eq!((policy.ingress, policy.egress), (Some(Vec::new()), None), "{spec}");
        assert_eq!(read.problems[0].field, format!("spec.podSelector{path}"));
    }
    let (policy, _) = read_policy("{podSelector: {matchLabels: {a: b, c: 1}}, ingress: [{}]}");
    assert_eq!(policy.pod_selector.requirements, [Requirement::In("a".into(), vec!["b".into()])]);
}

/// Edge case 9: a key without a value is the empty string.
#[test]
fn good_selectors() {
    let (policy, read) = read_policy(
        "{podSelector: {matchLabels: {a: ''}, matchExpressions: [{key: b, operator: Exists, values: []}]}}",
    );
    let expected = [Requirement::In("a".into(), vec![String::new()]), Requirement::Exists("b".into())];
    assert_eq!(policy.pod_selector.requirements, expected);
    assert!(read.problems.is_empty());
    let (policy, _) = read_policy("{podSelector: {matchLabels: {a: null}}}");
    assert_eq!(policy.pod_selector.requirements, expected[..1]);
}

/// Edge cases 19 to 28: who isolates. `None` = not isolated, else the number of rules.
#[test]
fn policy_types() {
    let cases = [
        ("{}", (Some(0), None), false),
        ("{egress: [{}]}", (Some(0), Some(1)), false),
        ("{egress: []}", (Some(0), None), false),
        ("{policyTypes: [], ingress: [{}]}", (Some(1), None), false),
        ("{policyTypes: [Egress], ingress: [{}]}", (None, Some(0)), false),
        ("{policyTypes: [Ingress], egress: [{}]}", (Some(0), None), false),
        ("{policyTypes: [Ingress, Ingress]}", (Some(0), None), false),
        ("{policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}, {}]}", (Some(1), Some(2)), false),
        ("{policyTypes: [Egres], ingress: [{}], egress: [{}]}", (Some(0), Some(0)), true),
        ("{policyTypes: [Ingress, Foo], ingress: [{}], egress: [{}]}", (Some(1), Some(0)), true),
        ("{policyTypes: Ingress, ingress: [{}]}", (Some(0), Some(0)), true),
        ("{policyTypes: [null]}", (Some(0), Some(0)), true),
        ("{policytypes: [Egress], egress: [{}]}", (Some(0), Some(0)), true),
        ("{policyTypes: [Egress], egres: [{}]}", (None, Some(0)), true),
        ("{egress: {}}", (Some(0), Some(0)), true),
        ("[]", (Some(0), Some(0)), true),
    ];
    for (spec, (ingress, egress), broken) in cases {
        let (policy, read) = read_policy(spec);
        let count = |rules: &Option<Vec<Rule>>| rules.as_ref().map(Vec::len);
        assert_eq!((count(&policy.ingress), count(&policy.egress)), (ingress, egress), "{spec}");
        assert_eq!(read.broken, broken, "{spec}: {:?}", read.problems);
    }
    let (_, read) = read_policy("{policyTypes: [Egress], ingress: [{}]}");
    assert_eq!(
        read.problems[0].to_string(),
        "NetworkPolicy x/p: spec.ingress: has no effect: policyTypes does not name Ingress"
    );
}

#[test]
fn misspelt_spec_isolates_both_directions() {
    let read = object(&yaml(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, sepc: {}}",
    ));
    let Some(Delta::Policy(policy)) = read.delta else { panic!() };
    assert_eq!((policy.ingress, policy.egress), (Some(Vec::new()), Some(Vec::new())));
    assert_eq!(policy.key.to_string(), "default/p");
    assert_eq!(read.problems[0].field, "sepc");
}

#[test]
fn objects_without_identity_are_told_and_ignored() {
    for (text, object_name, field) in [
        ("{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1}", "NetworkPolicy (no name)", ""),
        ("{kind: Pod, apiVersion: v1, metadata: {}}", "Pod (no name)", "metadata"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: ''}}", "Pod (no name)", "metadata"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: 5}}", "Pod (no name)", "metadata.name"),
        (
            "{kind: Pod, apiVersion: v1, metadata: {name: a, namespace: 5}}",
            "Pod default/a",
            "metadata.namespace",
        ),
        ("{kind: Node, apiVersion: v1, metadata: []}", "Node (no name)", "metadata"),
        ("{metadata: {name: a}}", "object without kind default/a", ""),
        ("hello", "object without kind (no name)", ""),
    ] {
        let read = object(&yaml(text));
        assert!(read.delta.is_none() && read.broken, "{text}");
        assert_eq!(read.problems.len(), 1, "{text}: {:?}", read.problems);
        assert_eq!(
            (read.problems[0].object.as_str(), read.problems[0].field.as_str()),
            (object_name, field),
            "{text}"
        );
    }
}

#[test]
fn other_kinds() {
    let told = |text: &str| {
        let read = object(&yaml(text));
        assert!(read.delta.is_none() && !read.broken, "{text}");
        read.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        told("{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a, namespace: x}}"),
        [
            "CiliumNetworkPolicy x/a: kind CiliumNetworkPolicy of cilium.io/v2 is not enforced: only NetworkPolicy of networking.k8s.io/v1 and ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2 are"
        ]
    );
    let calico = told("{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a}}");
    assert!(calico[0].contains("not enforced"), "{calico:?}");
    let older = told(
        "{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy, metadata: {name: a}}",
    );
    assert!(older[0].contains("not enforced"), "{older:?}");
    let config = told("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}");
    assert!(config[0].contains("not used"), "{config:?}");
    let old = object(&yaml("{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}"));
    assert!(old.delta.is_some() && !old.broken && old.problems.len() == 1);
}

#[test]
fn lists() {
    let text = "
kind: List
apiVersion: v1
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: x}}
- kind: NetworkPolicyList
  apiVersion: networking.k8s.io/v1
  items: [{metadata: {name: p, namespace: x}}, null]
- {apiVersion: v1, kind: PodList, items: null}
- {apiVersion: v1, kind: PodList, items: 5}
- {apiVersion: example.org/v1, kind: AllowList, metadata: {name: z}}
";
    let reads = objects(&yaml(text));
    assert_eq!(reads.len(), 5);
    assert!(matches!(&reads[0].delta, Some(Delta::Namespace(namespace)) if &*namespace.name == "x"));
    assert!(matches!(&reads[1].delta, Some(Delta::Policy(policy)) if policy.key.to_string() == "x/p"));
    assert!(reads[1].problems.is_empty());
    assert!(reads[2].delta.is_none() && reads[2].broken);
    assert_eq!(reads[3].problems[0].field, "items");
    assert!(reads[4].problems[0].message.contains("AllowList"));
    assert!(objects(&Value::Null).is_empty());
}

/// Edge cases 83, 84, 128, 129, 133, 134.
#[test]
fn pods() {
    let text = "
apiVersion: v1
kind: Pod
metadata:
  name: a
  namespace: x
  uid: u1
  labels: {app: web, tier: 1, empty: null}
  creationTimestamp: 2024-01-31T00:00:00Z
  deletionTimestamp: 2024-02-01T00:00:00Z
  annotations: {policy-agent.io/netns: /run/netns/a, kubernetes.io/config.mirror: f00}
spec:
  nodeName: n1
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}, {containerPort: 9}, {name: dns, containerPort: 53, protocol: UDP}]}
  initContainers:
  - {name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
  - {name: init, ports: [{name: http, containerPort: 8081}, {name: bad, containerPort: 0}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'FD00::1'}, {ip: nonsense}]}
";
    let read = object(&yaml(text));
    let Some(Delta::Pod(pod)) = read.delta else { panic!() };
    assert_eq!(pod.labels["tier"], "1");
    assert_eq!(pod.labels["empty"], "");
    assert!(pod.terminating && !pod.host_network && pod.phase == Phase::Running);
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    let ports: Vec<String> =
        pod.ports.iter().map(|port| format!("{}={}/{}", port.name, port.port, port.protocol)).collect();
    assert_eq!(ports, ["dns=53/UDP", "http=8080/TCP", "http=8081/TCP", "metrics=9090/TCP"]);
    assert_eq!(pod.interface, Some(InterfaceHint::Netns("/run/netns/a".into())));
    assert_eq!((&*pod.created, &*pod.uid, &**pod.runtime_uid()), ("2024-01-31T00:00:00Z", "u1", "f00"));
    let fields: Vec<&str> = read.problems.iter().map(|problem| problem.field.as_str()).collect();
    let bad_port = "spec.initContainers[1].ports[1].containerPort";
    assert_eq!(fields, ["status.podIPs[2].ip", "metadata.labels[tier]", bad_port]);
}

#[test]
fn bare_and_odd_pods() {
    let read = |rest: &str| match object(&yaml(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, {rest}}}"
    ))) {
        Read { delta: Some(Delta::Pod(pod)), problems, .. } => (pod, problems),
        other => panic!("{other:?}"),
    };
    let (pod, problems) = read("spec: {}");
    assert!(pod.addresses.is_empty() && problems.is_empty() && pod.is_subject());
    let (pod, problems) = read("status: {podIP: '', phase: Succeeded}");
    assert!(pod.addresses.is_empty() && problems.is_empty() && !pod.is_subject());
    let (pod, problems) = read("spec: {hostNetwork: 'true'}, status: {podIP: 10.0.0.1}");
    assert!(pod.addresses.is_empty() && problems.len() == 1);
    let (pod, _) = read("spec: {hostNetwork: true}, status: {podIP: 10.0.0.1}");
    assert!(pod.host_network);
    let (pod, problems) = read("status: {podIP: '::ffff:10.0.0.1', phase: Odd}");
    assert_eq!(pod.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(pod.is_subject() && problems.len() == 1);
    let (_, problems) = read("spec: 5, status: []");
    assert_eq!(problems.len(), 2);
}

/// Edge case 15.
#[test]
fn namespaces_nodes_services() {
    let read = object(&yaml(
        "{apiVersion: v1, kind: Namespace, metadata: {name: x, namespace: y, labels: {a: b, kubernetes.io/metadata.name: z}}}",
    ));
    let Some(Delta::Namespace(namespace)) = read.delta else { panic!() };
    assert_eq!(namespace.labels[NAMESPACE_NAME_LABEL], "x");
    assert_eq!((namespace.labels["a"].as_str(), read.problems.len()), ("b", 1));
    let read = object(&yaml(
        "{apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n}]}}",
    ));
    let Some(Delta::Node(node)) = read.delta else { panic!() };
    assert_eq!((node.addresses.len(), read.problems.len()), (1, 0));
    let read = object(&yaml(
        "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: db}, ports: [{port: 80, targetPort: http}, {port: 53, protocol: UDP}], clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [192.0.2.9, x]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.8}, {hostname: h}]}}}",
    ));
    let Some(Delta::Service(service)) = read.delta else { panic!() };
    assert_eq!(service.selector.get("app").map(String::as_str), Some("db"));
    let targets: Vec<_> = service.ports.iter().map(|p| (p.protocol, p.port, p.target.clone())).collect();
    let named = (Protocol::Tcp, 80, crate::model::TargetPort::Name("http".into()));
    assert_eq!(targets, [named, (Protocol::Udp, 53, crate::model::TargetPort::Number(53))]);
    assert_eq!((service.addresses.len(), read.problems.len()), (4, 1));
    let read = object(&yaml("{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: None}}"));
    assert!(matches!(read.delta, Some(Delta::Service(service)) if service.addresses.is_empty()));
}
