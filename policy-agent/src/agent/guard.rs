//! Interfaces that must not carry packets before it is known whose they are.
//!
//! A pod's interface has its address before the API says so. While some pod of this node that policy concerns waits for
//! its address, an interface that appears and belongs to nobody may be that pod's: it gets an endpoint at once, closed
//! in both directions, which becomes the pod's own as soon as the pod's address is known. The same holds for an agent that
//! has just started and cannot ask the API yet, once an interface that an earlier agent isolated is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use policy_engine::model::{ObjectKey, Pod};
use policy_engine::world::World;

use super::placement::Place;
use crate::netlink::{HostLink, Interfaces};

/// A runtime that has not told the API of its pod by then is not about to.
pub(super) const AT_MOST: Duration = Duration::from_secs(30);

/// A pair of ends; an index alone may be another link's by now.
type Pair = (u32, u32);

/// The interfaces that are guarded, and those that need not be.
#[derive(Clone, Debug, Default)]
pub(super) struct Guards {
    /// Links that belonged to nobody when there was nothing to wait for; they never become suspicious.
    foreign: BTreeSet<Pair>,
    guarded: BTreeMap<Pair, Instant>,
    /// Pods that had an interface: one that has none now may be getting a new one, under an address not yet told.
    seen: BTreeSet<ObjectKey>,
    /// Links of the first look of all.
    before: Option<BTreeSet<Pair>>,
}

impl Guards {
    /// Looks while no source has told anything. `lost`: a pod that an earlier agent isolated has no interface any more, so
    /// what appears from now on may be its new one. Hands back what is to be guarded.
    pub(super) fn hold(&mut self, interfaces: &Interfaces, lost: bool, now: Instant) -> Vec<HostLink> {
        let there: BTreeSet<Pair> = interfaces.links.values().map(pair).collect();
        let before = self.before.get_or_insert(there);
        let new = |link: &&HostLink| {
            !before.contains(&pair(link))
                && is_addressed(interfaces, link)
                && (lost || self.guarded.contains_key(&pair(link)))
        };
        let held: Vec<HostLink> = interfaces.links.values().filter(new).cloned().collect();
        self.guarded = held.iter().map(|link| (pair(link), now)).collect();
        held
    }

    /// Looks again. `first`: what is there now was there before us, and is left alone unless it is guarded already.
    /// `away`: the source does not deliver, so nobody can tell whose a guarded interface is.
    pub(super) fn update(
        &mut self,
        world: &World,
        interfaces: &Interfaces,
        places: &BTreeMap<ObjectKey, Place>,
        (first, away): (bool, bool),
        now: Instant,
    ) -> Vec<HostLink> {
        let placed: BTreeSet<u32> = places.values().filter_map(Place::ifindex).collect();
        let there: BTreeSet<Pair> = interfaces.links.values().map(pair).collect();
        self.foreign.retain(|link| there.contains(link));
        self.guarded.retain(|link, _| there.contains(link) && !placed.contains(&link.0));
        self.seen.retain(|pod| world.pods.contains_key(pod));
        if first && !self.guarded.is_empty() {
            // Before this agent saw it a pod may have lost the interface that an earlier one had isolated.
            self.seen.extend(places.keys().cloned());
        }
        let waiting = self.waits(world, places);
        self.seen.extend(places.iter().filter(|(_, p)| p.ifindex().is_some()).map(|(pod, _)| pod.clone()));
        let mut links = Vec::new();
        for link in interfaces.links.values().filter(|link| is_addressed(interfaces, link)) {
            let id = pair(link);
            if placed.contains(&link.ifindex) || self.foreign.contains(&id) {
                continue;
            }
            let is_new = !self.guarded.contains_key(&id);
            let since = self.guarded.entry(id).or_insert(now);
            if away {
                *since = now;
            }
            if first && is_new || !waiting || now.saturating_duration_since(*since) >= AT_MOST {
                self.guarded.remove(&id);
                self.foreign.insert(id);
                continue;
            }
            links.push(link.clone());
        }
        links
    }

    /// Whether a pod of this node that some policy concerns waits for its address, or lost its interface.
    fn waits(&self, world: &World, places: &BTreeMap<ObjectKey, Place>) -> bool {
        let lost = |pod: &Pod| {
            self.seen.contains(&pod.key) && places.get(&pod.key).is_some_and(|p| p.ifindex().is_none())
        };
        let waiting = |pod: &Pod| !pod.terminating && (pod.addresses.is_empty() || lost(pod));
        world.local_pods().any(|pod| waiting(pod) && world.is_concerned(pod))
    }

    /// When the next guard is given up.
    #[must_use]
    pub(super) fn next(&self) -> Option<Instant> {
        self.guarded.values().min().map(|since| *since + AT_MOST)
    }
}

fn pair(link: &HostLink) -> Pair {
    (link.ifindex, link.peer_ifindex)
}

/// Without an address of its own nothing can be sent that a pod would answer.
fn is_addressed(interfaces: &Interfaces, link: &HostLink) -> bool {
    link.addresses.iter().any(|address| interfaces.by_address.get(address) == Some(&link.ifindex))
}

/// Addresses of a guarded link as an endpoint has them: those that are its alone.
#[must_use]
pub(super) fn addresses(link: &HostLink) -> Vec<IpAddr> {
    let own = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    };
    link.addresses.iter().filter(own).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::{self, interfaces, link};
    use crate::agent::placement::{FoundGroups, NetnsLinks, place};
    use policy_engine::model::{Phase, Policy, Selector};
    use policy_engine::world::Delta;

    fn pod(name: &str, addresses: &[&str]) -> Pod {
        Pod { phase: Phase::Pending, ..fixture::pod(name, "", addresses) }
    }

    struct Case {
        world: World,
        guards: Guards,
        start: Instant,
        away: bool,
    }

    impl Case {
        fn new(isolated: bool) -> Self {
            let mut world = World::new("n1");
            if isolated {
                world.apply(Delta::Policy(Policy {
                    key: ObjectKey::new("x", "deny"),
                    uid: "".into(),
                    pod_selector: Selector::default(),
                    ingress: Some(Vec::new()),
                    egress: None,
                }));
            }
            Self { world, guards: Guards::default(), start: Instant::now(), away: false }
        }

        fn look(&mut self, links: &[HostLink], first: bool, after: u64) -> Vec<u32> {
            let interfaces = interfaces(links);
            let places = place(&self.world, &interfaces, &NetnsLinks::new(), &FoundGroups::new());
            let now = self.start + Duration::from_secs(after);
            let guarded = self.guards.update(&self.world, &interfaces, &places, (first, self.away), now);
            guarded.into_iter().map(|link| link.ifindex).collect()
        }
    }

    #[test]
    fn a_new_interface_is_guarded_while_an_isolated_pod_waits_for_its_address() {
        let mut case = Case::new(true);
        let old = link(5, &["10.0.0.5"]);
        assert_eq!(case.look(std::slice::from_ref(&old), true, 0), [] as [u32; 0]);
        case.world.apply(Delta::Pod(pod("a", &[])));
        assert_eq!(case.look(std::slice::from_ref(&old), false, 1), [] as [u32; 0], "it was there before");
        let both = [old.clone(), link(6, &["10.0.0.6"])];
        assert_eq!(case.look(&both, false, 2), [6]);
        assert_eq!(case.guards.next(), Some(case.start + Duration::from_secs(2) + AT_MOST));
        case.world.apply(Delta::Pod(pod("a", &["10.0.0.6"])));
        assert_eq!(case.look(&both, false, 3), [] as [u32; 0], "it has its pod");
        assert_eq!(case.guards.next(), None);
        // The runtime makes its sandbox anew; the API still names the old address.
        assert_eq!(case.look(std::slice::from_ref(&old), false, 4), [] as [u32; 0]);
        assert_eq!(case.look(&[old, link(7, &["10.0.0.7"])], false, 5), [7]);
    }

    #[test]
    fn nobody_is_held_up_for_nothing() {
        let new = [link(6, &["10.0.0.6"])];
        let mut open = Case::new(false);
        open.look(&[], true, 0);
        open.world.apply(Delta::Pod(pod("a", &[])));
        assert_eq!(open.look(&new, false, 1), [] as [u32; 0], "no policy isolates the pod that waits");
        let mut nobody = Case::new(true);
        nobody.look(&[], true, 0);
        assert_eq!(nobody.look(&new, false, 1), [] as [u32; 0], "no pod waits");
        nobody.world.apply(Delta::Pod(pod("a", &[])));
        assert_eq!(nobody.look(&new, false, 2), [] as [u32; 0], "it was there before the pod was");
        let mut late = Case::new(true);
        late.look(&[], true, 0);
        late.world.apply(Delta::Pod(pod("a", &[])));
        assert_eq!(late.look(&new, false, 0), [6]);
        assert_eq!(late.look(&new, false, 30), [] as [u32; 0], "given up");
        assert_eq!(late.look(&[link(6, &[])], false, 31), [] as [u32; 0], "no address");
    }

    #[test]
    fn an_interface_is_guarded_for_as_long_as_nobody_can_tell_whose_it_is() {
        let mut case = Case::new(true);
        case.look(&[], true, 0);
        case.world.apply(Delta::Pod(pod("a", &[])));
        case.away = true;
        let new = [link(6, &["10.0.0.6"])];
        assert_eq!(case.look(&new, false, 1), [6]);
        assert_eq!(case.look(&new, false, 300), [6], "the API is away");
        case.away = false;
        assert_eq!(case.look(&new, false, 320), [6]);
        assert_eq!(case.look(&new, false, 331), [] as [u32; 0], "it is back, and knows of nobody");
    }

    #[test]
    fn before_anything_is_known_what_appears_in_place_of_an_isolated_interface_is_guarded() {
        let mut case = Case::new(true);
        let old = link(5, &["10.0.0.5"]);
        let hold = |guards: &mut Guards, links: &[HostLink], lost| {
            let held = guards.hold(&interfaces(links), lost, case.start);
            held.into_iter().map(|link| link.ifindex).collect::<Vec<_>>()
        };
        assert_eq!(hold(&mut case.guards, std::slice::from_ref(&old), true), [] as [u32; 0], "it was there");
        let both = [old, link(6, &["10.0.0.6"])];
        assert_eq!(hold(&mut case.guards, &both, false), [] as [u32; 0], "nobody lost one");
        assert_eq!(hold(&mut case.guards, &both, true), [6]);
        assert_eq!(hold(&mut case.guards, &both, false), [6], "once guarded, until the sources tell");
        // The API has the pod's former address still.
        case.world.apply(Delta::Pod(pod("a", &["10.0.0.4"])));
        assert_eq!(case.look(&both, true, 1), [6]);
        assert_eq!(case.look(&both, false, 1), [6]);
        case.world.apply(Delta::Pod(pod("a", &["10.0.0.6"])));
        assert_eq!(case.look(&both, false, 2), [] as [u32; 0], "it has its pod");
    }
}
