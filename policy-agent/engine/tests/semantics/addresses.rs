//! Who has an address: after any sequence of events the index says what a look at all objects would say.

use std::net::IpAddr;

use policy_engine::model::{Labels, ObjectKey, Phase, Pod};
use policy_engine::world::{Delta, World};
use proptest::prelude::*;
use proptest::sample::select;

fn any_pod() -> impl Strategy<Value = Pod> {
    let addresses = proptest::collection::vec(0..4_u8, 0..3);
    let phase = select(vec![Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed]);
    let created = select(vec!["", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]);
    let life = (phase, any::<bool>(), prop::bool::weighted(0.1), created);
    (0..5_u8, 0..2_u8, addresses, life, select(vec![None, Some("n1"), Some("n2")])).prop_map(
        |(name, uid, addresses, (phase, terminating, host_network, created), node)| Pod {
            key: ObjectKey::new("x", &name.to_string()),
            uid: format!("{name}-{uid}").into(),
            mirror_of: None,
            labels: Labels::default(),
            node: node.map(Into::into),
            host_network,
            phase,
            terminating,
            addresses: addresses.into_iter().map(address).collect(),
            ports: Vec::new(),
            created: created.into(),
            interface: None,
        },
    )
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn event() -> impl Strategy<Value = Delta> {
    prop_oneof![
        3 => any_pod().prop_map(Delta::Pod),
        1 => any_pod().prop_map(|pod| Delta::PodGone { key: pod.key, uid: pod.uid }),
        1 => any_pod().prop_map(|pod| Delta::PodGone { key: pod.key, uid: "".into() }),
    ]
}

/// Live pods that claim an address, the one that has it last.
fn claimants(world: &World, address: IpAddr) -> Vec<ObjectKey> {
    let live = |pod: &&std::sync::Arc<Pod>| {
        !pod.host_network
            && !matches!(pod.phase, Phase::Succeeded | Phase::Failed)
            && pod.addresses.contains(&address)
    };
    let mut pods: Vec<_> = world.pods.values().filter(live).collect();
    pods.sort_by_key(|pod| (pod.created.clone(), !pod.terminating, pod.uid.clone(), pod.key.clone()));
    pods.into_iter().map(|pod| pod.key.clone()).collect()
}

proptest! {
    #[test]
    fn the_index_follows_every_event(events in proptest::collection::vec(event(), 1..40)) {
        let mut world = World::new("n1");
        for event in events {
            world.apply(event);
            for number in 0..4 {
                let claimants = claimants(&world, address(number));
                let found = world.pod_at(address(number)).map(|pod| pod.key.clone());
                prop_assert_eq!(&found, &claimants.last().cloned());
                let conflict = world.conflicts().find(|(at, _)| *at == address(number));
                let listed = conflict.map(|(_, pods)| pods.iter().rev().map(|pod| pod.key.clone()).collect::<Vec<_>>());
                prop_assert_eq!(listed, (claimants.len() > 1).then_some(claimants));
            }
            let local: Vec<_> = world.local_pods().map(|pod| pod.key.clone()).collect();
            let on_node = |pod: &&std::sync::Arc<Pod>| pod.node.as_deref() == Some("n1") && pod.is_subject();
            let expected: Vec<_> = world.pods.values().filter(on_node).map(|pod| pod.key.clone()).collect();
            prop_assert_eq!(local, expected);
        }
    }
}
