//! Which interface belongs to which local pod: a pure function of the world and of what netlink shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_engine::model::{GroupHint, InterfaceHint, ObjectKey, Pod};
use policy_engine::world::World;

pub(super) use crate::cgroup::Found as FoundGroups;
use crate::cgroup::Group;
use crate::netlink::{HostLink, Interfaces};

/// Links whose other end is in a network namespace, by the path that an annotation gives; else why not.
pub(super) type NetnsLinks = BTreeMap<String, Result<Vec<HostLink>, String>>;

/// Where a pod's packets can be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At this interface.
    At(HostLink),
    /// At the sockets of this control group.
    Group(Group),
    /// Nowhere: why not.
    Nowhere(String),
}

impl Place {
    /// Index of the interface.
    #[must_use]
    pub(super) fn ifindex(&self) -> Option<u32> {
        match self {
            Self::At(link) => Some(link.ifindex),
            Self::Group(_) | Self::Nowhere(_) => None,
        }
    }
}

/// Paths that annotations of local pods name.
#[must_use]
pub(super) fn netns_paths(world: &World) -> BTreeSet<String> {
    let hints = world.local_pods().filter_map(|pod| match &pod.interface {
        Some(InterfaceHint::Netns(path)) => Some(path.clone()),
        Some(InterfaceHint::Name(_) | InterfaceHint::Group(_)) | None => None,
    });
    hints.collect()
}

/// Control groups that local pods name.
#[must_use]
pub(super) fn group_hints(world: &World) -> BTreeSet<GroupHint> {
    world.local_pods().filter_map(|pod| pod.group().cloned()).collect()
}

/// Control groups of pods whose packets pass no interface that could be hooked. `has_group` = whether a pod is judged by
/// its group already: a pod that is ending loses its interface before its object goes, and gets no group for that.
#[must_use]
pub(super) fn groups_of_unhookable(
    world: &World,
    interfaces: &Interfaces,
    netns: &NetnsLinks,
    has_group: impl Fn(&ObjectKey) -> bool,
) -> BTreeSet<GroupHint> {
    let unhookable = |pod: &&Arc<Pod>| {
        pod.interface.is_none()
            && (!pod.terminating || has_group(&pod.key))
            && candidate(pod, world, interfaces, netns).is_err_and(|miss| miss.unhookable)
    };
    world.local_pods().filter(unhookable).map(|pod| GroupHint::Pod(pod.runtime_uid().clone())).collect()
}

/// The place of every local pod that policy may select.
#[must_use]
pub(super) fn place(
    world: &World,
    interfaces: &Interfaces,
    netns: &NetnsLinks,
    groups: &FoundGroups,
) -> BTreeMap<ObjectKey, Place> {
    let mut places = BTreeMap::new();
    let mut taken: BTreeMap<u32, ObjectKey> = BTreeMap::new();
    // Pods that say where they are go first: nobody takes their interface from them.
    let (told, found): (Vec<_>, Vec<_>) = world.local_pods().partition(|pod| pod.interface.is_some());
    let mut grouped: BTreeMap<u64, ObjectKey> = BTreeMap::new();
    let mut in_group = |pod: &Pod, found: &Result<Group, String>| match found {
        Ok(_) if let Some(why) = mirrored(pod, world) => Place::Nowhere(why),
        Ok(group) => match grouped.get(&group.id) {
            Some(other) => Place::Nowhere(format!("control group {} is that of pod {other}", group.path)),
            None => {
                grouped.insert(group.id, pod.key.clone());
                Place::Group(group.clone())
            }
        },
        Err(reason) => Place::Nowhere(reason.clone()),
    };
    for pod in told.into_iter().chain(found) {
        if let Some(hint) = pod.group() {
            let place = match groups.get(hint) {
                Some(found) => in_group(pod, found),
                None => Place::Nowhere("its control group was not looked for yet".to_owned()),
            };
            places.insert(pod.key.clone(), place);
            continue;
        }
        let place = match candidate(pod, world, interfaces, netns) {
            Ok(link) => match taken.get(&link.ifindex) {
                Some(other) => Place::Nowhere(format!("interface {} is that of pod {other}", link.name)),
                None => {
                    taken.insert(link.ifindex, pod.key.clone());
                    Place::At(link)
                }
            },
            Err(Miss { why, unhookable }) => {
                match groups.get(&GroupHint::Pod(pod.runtime_uid().clone())).filter(|_| unhookable) {
                    Some(Err(reason)) => Place::Nowhere(format!("{why}; {reason}")),
                    Some(found) => in_group(pod, found),
                    None => Place::Nowhere(why),
                }
            }
        };
        places.insert(pod.key.clone(), place);
    }
    places
}

/// Why the group of a static pod is not the one of this object, which says that it mirrors it: nobody keeps others from
/// making such an object, before its kubelet removes it. What the API itself calls by that UID goes first, then the
/// oldest object. Those on the host's network count, though they may have no place.
fn mirrored(pod: &Pod, world: &World) -> Option<String> {
    let uid = pod.mirror_of.as_ref()?;
    let claims = world.node_pods().filter(|other| {
        !other.phase.is_finished() && (other.uid == *uid || other.mirror_of.as_ref() == Some(uid))
    });
    let owner = claims.min_by_key(|other| (other.uid != *uid, &other.created, &other.key))?;
    (owner.key != pod.key)
        .then(|| format!("the control group of UID {uid}, which it names, is that of pod {}", owner.key))
}

/// Why a pod has no interface at which its packets could be judged.
#[derive(Debug)]
struct Miss {
    why: String,
    /// Its packets pass none: it will not get one by waiting.
    unhookable: bool,
}

impl Miss {
    const fn for_now(why: String) -> Self {
        Self { why, unhookable: false }
    }

    const fn for_good(why: String) -> Self {
        Self { why, unhookable: true }
    }
}

/// A pod that is ending gets no other interface than it has: its address may be the next pod's already, whose policy is
/// another one, before its own object is gone.
/// `has` = index of the interface that a pod has.
pub(super) fn keep_from_ending(
    places: &mut BTreeMap<ObjectKey, Place>,
    world: &World,
    has: impl Fn(&ObjectKey) -> Option<u32>,
) {
    for (key, place) in places {
        let Place::At(link) = place else { continue };
        let ending = world.pods.get(key).is_some_and(|pod| pod.terminating);
        if ending && has(key) != Some(link.ifindex) {
            *place = Place::Nowhere(format!(
                "the pod is ending, and interface {}, which has its address, is not its own",
                link.name
            ));
        }
    }
}

fn candidate(
    pod: &Arc<Pod>,
    world: &World,
    interfaces: &Interfaces,
    netns: &NetnsLinks,
) -> Result<HostLink, Miss> {
    match &pod.interface {
        Some(InterfaceHint::Name(name)) => {
            let link = interfaces.of_name(name);
            link.cloned().ok_or_else(|| {
                Miss::for_now(format!("no interface {name}, which its annotation names, leads to a pod"))
            })
        }
        Some(InterfaceHint::Netns(path)) => match netns.get(path) {
            Some(Ok(links)) => of_netns(pod, path, links).map_err(Miss::for_now),
            Some(Err(reason)) => Err(Miss::for_now(format!("network namespace {path}: {reason}"))),
            None => Err(Miss::for_now(format!("network namespace {path} was not looked at yet"))),
        },
        Some(InterfaceHint::Group(_)) => {
            Err(Miss::for_now("its sockets are judged, at no interface".to_owned()))
        }
        None => by_address(pod, world, interfaces),
    }
}

fn of_netns(pod: &Pod, path: &str, links: &[HostLink]) -> Result<HostLink, String> {
    let holders: Vec<_> =
        links.iter().filter(|link| link.addresses.iter().any(|ip| pod.addresses.contains(ip))).collect();
    match (holders.as_slice(), links) {
        ([link], _) => Ok((*link).clone()),
        ([], [link]) => Ok(link.clone()),
        ([], []) => Err(format!("no interface of the node leads to network namespace {path}")),
        ([], several) | (_, several) => Err(format!("network namespace {path} has {}", list(several.iter()))),
    }
}

fn by_address(pod: &Pod, world: &World, interfaces: &Interfaces) -> Result<HostLink, Miss> {
    if pod.addresses.is_empty() {
        return Err(Miss::for_now("the pod has no address yet".to_owned()));
    }
    let mut found: BTreeMap<u32, &HostLink> = BTreeMap::new();
    let (mut why, mut taken) = (None, false);
    for address in &pod.addresses {
        if let Some(owner) = world.pod_at(*address)
            && owner.key != pod.key
        {
            why = Some(format!("its address {address} is that of pod {}", owner.key));
            taken = true;
        } else if let Some(link) = interfaces.of_address(*address) {
            if matches!(&*link.kind, "veth" | "netkit") {
                found.insert(link.ifindex, link);
            } else {
                why = Some(format!("its interface {} is a {}, which can't be hooked", link.name, link.kind));
            }
        } else if let Some(several) = interfaces.ambiguous.get(address) {
            let links = several.iter().filter_map(|index| interfaces.links.get(index));
            why = Some(format!("its address {address} is behind several interfaces: {}", list(links)));
        } else if interfaces.host_addresses.contains(address) {
            why.get_or_insert(format!("its address {address} is one of the node's own"));
        }
    }
    let mut links = found.into_values();
    match (links.next(), links.next()) {
        (Some(link), None) => Ok(link.clone()),
        (Some(one), Some(two)) => Err(Miss::for_good(format!(
            "its addresses are behind several interfaces: {}",
            list([one, two].into_iter().chain(links))
        ))),
        (None, _) => {
            let why = why.unwrap_or_else(|| {
                let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
                format!("no interface of this node leads to {}", addresses.join(", "))
            });
            Err(if taken { Miss::for_now(why) } else { Miss::for_good(why) })
        }
    }
}

fn list<'a>(links: impl Iterator<Item = &'a HostLink>) -> String {
    links.map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::{self, interfaces, link};
    use policy_engine::model::Phase;
    use policy_engine::world::Delta;

    fn pod(name: &str, addresses: &[&str]) -> Pod {
        fixture::pod(name, "", addresses)
    }

    fn places(pods: &[Pod], links: &[HostLink], netns: &NetnsLinks) -> Vec<String> {
        let mut world = World::new("n1");
        pods.iter().for_each(|pod| assert!(world.apply(Delta::Pod(pod.clone()))));
        let told = |place| match place {
            Place::At(link) => link.name,
            Place::Group(group) => group.path,
            Place::Nowhere(reason) => reason,
        };
        place(&world, &interfaces(links), netns, &FoundGroups::new()).into_values().map(told).collect()
    }

    #[test]
    fn a_pod_that_is_ending_keeps_its_interface_and_gets_no_other() {
        let mut world = World::new("n1");
        world.apply(Delta::Pod(Pod { terminating: true, ..pod("old", &["10.0.0.1"]) }));
        world.apply(Delta::Pod(pod("other", &["10.0.0.2"])));
        let all = interfaces(&[link(5, &["10.0.0.1"]), link(6, &["10.0.0.2"])]);
        let kept = |has: Option<u32>| {
            let mut places = place(&world, &all, &NetnsLinks::new(), &FoundGroups::new());
            keep_from_ending(&mut places, &world, |_| has);
            places.values().map(Place::ifindex).collect::<Vec<_>>()
        };
        assert_eq!(kept(Some(5)), [Some(5), Some(6)], "its own");
        assert_eq!(kept(Some(4)), [None, Some(6)], "the address moved to another pod's interface");
        assert_eq!(kept(None), [None, Some(6)]);
    }

    #[test]
    fn by_address_with_a_reason_where_it_fails() {
        let links = [link(5, &["10.0.0.1", "fd00::1"]), link(6, &["10.0.0.2"]), link(7, &["10.0.0.3"])];
        let both = interfaces(&links);
        assert_eq!(both.links.len(), 3);
        let none = NetnsLinks::new();
        assert_eq!(places(&[pod("a", &["10.0.0.1", "fd00::1"])], &links, &none), ["veth5"]);
        assert_eq!(
            places(&[pod("a", &["10.0.0.1", "fd00::9"])], &links, &none),
            ["veth5"],
            "one family is late"
        );
        let told = |addresses: &[&str]| places(&[pod("a", addresses)], &links, &none).remove(0);
        assert!(told(&["10.9.9.9"]).contains("no interface of this node leads to 10.9.9.9"));
        assert!(told(&[]).contains("no address"));
        assert!(told(&["10.0.0.1", "10.0.0.2"]).contains("several interfaces: veth5, veth6"));
        let twice = [link(5, &["10.0.0.1"]), link(6, &["10.0.0.1"])];
        assert!(
            places(&[pod("a", &["10.0.0.1"])], &twice, &none)[0].contains("several interfaces: veth5, veth6")
        );
        let claimed = places(&[pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.1"])], &links, &none);
        assert_eq!(claimed.iter().filter(|p| *p == "veth5").count(), 1, "{claimed:?}");
        assert!(claimed.iter().any(|p| p.contains("is that of pod")), "{claimed:?}");
    }

    #[test]
    fn the_group_of_a_static_pod_is_that_of_the_oldest_object_that_mirrors_it() {
        let hint = GroupHint::Pod("hash".into());
        let found =
            FoundGroups::from([(hint.clone(), Ok(Group { id: 7, path: "/g".into(), ..Group::default() }))]);
        let mirror = |name: &str, created: &str| Pod {
            mirror_of: Some("hash".into()),
            created: created.into(),
            ..fixture::pod(name, name, &[])
        };
        let on_host = |pod| Pod { host_network: true, ..pod };
        let judged = |pod| Pod { interface: Some(InterfaceHint::Group(hint.clone())), ..pod };
        let told = |pods: Vec<Pod>| {
            let mut world = World::new("n1");
            pods.into_iter().for_each(|pod| assert!(world.apply(Delta::Pod(pod))));
            let placed = place(&world, &interfaces(&[]), &NetnsLinks::new(), &found);
            let in_group = |(key, place): (ObjectKey, Place)| {
                matches!(place, Place::Group(_)).then(|| key.name.to_string())
            };
            placed.into_iter().filter_map(in_group).collect::<Vec<_>>()
        };
        let (first, later) =
            (mirror("static", "2024-01-01T00:00:00Z"), mirror("a-liar", "2024-01-02T00:00:00Z"));
        assert_eq!(told(vec![judged(first.clone())]), ["static"]);
        assert_eq!(told(vec![judged(first.clone()), judged(later.clone())]), ["static"]);
        assert!(
            told(vec![on_host(first.clone()), judged(later.clone())]).is_empty(),
            "of one that is not judged"
        );
        let ended = Pod { phase: Phase::Failed, ..first };
        assert_eq!(told(vec![ended, judged(later.clone())]), ["a-liar"]);
        let real = judged(fixture::pod("real", "hash", &[]));
        assert_eq!(told(vec![real.clone(), judged(later)]), ["real"], "what the API calls so goes first");
        assert_eq!(told(vec![real]), ["real"]);
    }

    #[test]
    fn annotations_go_before_addresses() {
        let links = [link(5, &["10.0.0.1"]), link(6, &["10.0.0.2"])];
        let hinted = |hint| Pod { interface: Some(hint), ..pod("z", &["10.0.0.9"]) };
        let netns = NetnsLinks::from([
            ("/n/one".to_owned(), Ok(vec![links[1].clone()])),
            ("/n/two".to_owned(), Ok(links.to_vec())),
            ("/n/bad".to_owned(), Err("no such file".to_owned())),
        ]);
        let told = |pod: Pod| places(&[pod], &links, &netns).remove(0);
        assert_eq!(told(hinted(InterfaceHint::Name("veth6".into()))), "veth6");
        assert!(told(hinted(InterfaceHint::Name("gone".into()))).contains("no interface gone"));
        assert_eq!(told(hinted(InterfaceHint::Netns("/n/one".into()))), "veth6");
        assert!(told(hinted(InterfaceHint::Netns("/n/two".into()))).contains("has veth5, veth6"));
        assert!(told(hinted(InterfaceHint::Netns("/n/bad".into()))).contains("no such file"));
        let both =
            places(&[hinted(InterfaceHint::Name("veth5".into())), pod("a", &["10.0.0.1"])], &links, &netns);
        assert!(both[0].contains("interface veth5 is that of pod x/z"), "{both:?}");
    }
}
