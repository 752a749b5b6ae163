//! Slots, ids and what becomes of them when pods and interfaces change.

use super::*;
use crate::agent::fixture::{link, pod};
use policy_common::abi::EndpointWord;
use policy_engine::world::Delta;

fn at(ifindex: u32) -> Place {
    Place::At(link(ifindex, &[]))
}

fn follow(table: &mut Table, pods: &[(Pod, u32)]) -> Changes {
    let mut world = World::new("n1");
    let mut places = BTreeMap::new();
    for (pod, ifindex) in pods {
        world.apply(Delta::Pod(pod.clone()));
        places.insert(pod.key.clone(), at(*ifindex));
    }
    table.follow(&world, &places, &[], usize::MAX)
}

#[test]
fn endpoints_stay_themselves_and_ids_are_never_used_again() {
    let mut table = Table::adopt(&[], 5);
    let a = pod("a", "u1", &["10.0.0.1"]);
    assert_eq!(follow(&mut table, &[(a.clone(), 7)]).created, [1]);
    assert_eq!(follow(&mut table, &[(a.clone(), 7)]), Changes::default());
    let more = pod("a", "u1", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(follow(&mut table, &[(more.clone(), 7)]).readdressed, [1]);
    let both = pod("a", "u1", &["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let changes = follow(&mut table, &[(both.clone(), 7)]);
    assert_eq!(
        (changes.created.as_slice(), changes.removed.len()),
        (&[2][..], 1),
        "another family: new flows"
    );
    let again = pod("a", "u2", &["10.0.0.1", "10.0.0.2", "fd00::1"]);
    assert_eq!(follow(&mut table, &[(again.clone(), 7)]).created, [3], "another pod of the same name");
    assert_eq!(follow(&mut table, &[(again.clone(), 8)]).created, [4], "another sandbox");
    table.freed(&[1, 2, 3]);
    assert_eq!(follow(&mut table, &[]).removed.len(), 1);
    assert_eq!(follow(&mut table, &[(a, 9)]).created, [1]);
    assert_eq!(table.get(1).map(|local| local.id), Some(9));
}

#[test]
fn what_there_is_no_room_for_waits() {
    let mut table = Table::adopt(&[], 1);
    let mut world = World::new("n1");
    let mut places = BTreeMap::new();
    for n in 1..=3 {
        let pod = pod(&format!("p{n}"), "u", &[&format!("10.0.0.{n}")]);
        places.insert(pod.key.clone(), at(n));
        world.apply(Delta::Pod(pod));
    }
    let mut made = |room| {
        let changes = table.follow(&world, &places, &[], room);
        assert!(changes.crowded.is_empty() && changes.removed.is_empty());
        (changes.created, table.waiting())
    };
    assert_eq!(made(2), (vec![1, 2], 1));
    assert_eq!(made(0), (vec![], 1));
    assert_eq!(made(5), (vec![3], 0));
    assert_eq!(made(0), (vec![], 0));
}

#[test]
fn held_interfaces_have_one_endpoint_each_until_their_pod_is_known() {
    let mut table = Table::adopt(&[], 1);
    let links = [link(7, &["10.0.0.1"]), link(8, &["10.0.0.2"])];
    assert_eq!(table.hold(&links[..1]), [1]);
    assert_eq!(table.hold(&links), [2]);
    assert_eq!(follow(&mut table, &[(pod("a", "u", &["10.0.0.1"]), 7)]).removed.len(), 1);
    assert_eq!(table.of_pod(&ObjectKey::new("x", "a")).map(|local| local.slot), Some(1));
}

#[test]
fn what_an_earlier_agent_left_is_recognised_by_interface_and_addresses() {
    let live = |slot, id, ifindex, address: &str| LiveEndpoint {
        slot,
        id,
        ifindex,
        group: None,
        addresses: vec![address.parse().unwrap()],
        config: 0,
        generation: 0,
        word: EndpointWord::default(),
    };
    let mut table = Table::adopt(&[live(3, 40, 7, "10.0.0.1"), live(4, 41, 8, "10.0.0.9")], 1);
    assert_eq!(table.desired(), []);
    let changes = follow(&mut table, &[(pod("a", "u", &["10.0.0.1"]), 7), (pod("b", "v", &["10.0.0.2"]), 8)]);
    assert_eq!((changes.created, changes.removed.len()), (vec![1], 1));
    assert_eq!(table.of_pod(&ObjectKey::new("x", "a")).map(|l| (l.slot, l.id)), Some((3, 40)));
    assert_eq!(table.of_pod(&ObjectKey::new("x", "b")).map(|l| (l.slot, l.id)), Some((1, 42)));
}
