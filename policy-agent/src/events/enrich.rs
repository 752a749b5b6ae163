//! From a record of the kernel to flow messages, explained by the world that judged the packet.
//!
//! A packet that policy denies is told twice, as Hubble's own agents do: as a policy verdict (event type 5) and as a drop
//! (type 1), so that queries for either find it. Other drops are told once, as drops; allowed flows once, as verdicts.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

use policy_common::abi::{Direction, EndpointWord};
use policy_common::event::{Event, event_flags};
use policy_common::reason::Reason;
use policy_engine::address::identity;
use policy_engine::model::{ObjectKey, Peers, Ports, Protocol};
use policy_engine::oracle;
use policy_engine::verdict::{Evaluation, Query, RuleRef, Side};
use policy_engine::world::{Entity, World};

use crate::events::bare::{bare, traffic_direction};
use crate::events::clock::{Clock, Now};
use crate::events::details::{Details, NearestText, RuleText};
use crate::events::history::{EndpointState, Found, Generation, History};
use crate::events::names::{Named, clean, name};
use crate::events::packet;
use crate::events::reasons::{drop_reason, is_policy_denial};
use crate::proto::flow;

/// Hubble's number of a drop event.
pub const TYPE_DROP: i32 = 1;
/// Hubble's number of a policy verdict.
pub const TYPE_VERDICT: i32 = 5;

/// How a denied packet is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Views {
    /// As policy verdict and as drop.
    #[default]
    Both,
    /// As drop only.
    DropOnly,
}

/// Makes flows out of records.
#[derive(Debug)]
pub struct Enricher {
    node: String,
    views: Views,
    clock: Clock,
    run: u64,
    made: u64,
}

impl Enricher {
    /// An enricher for the node of this name.
    #[must_use]
    pub fn new(node: &str, views: Views) -> Self {
        // Keys of the standard hasher are random: enough to tell the flows of two runs apart.
        let run = RandomState::new().build_hasher().finish();
        Self { node: clean(node), views, clock: Clock::default(), run, made: 0 }
    }

    /// The flows of a record: two for a packet that policy denies, else one. `now` is read when the record is.
    pub fn flows(&mut self, event: &Event, history: &History, now: Now) -> Vec<flow::Flow> {
        let epoch = EndpointWord::unpack(event.word).epoch;
        let found = history.find(event.slot, event.endpoint, epoch, event.time);
        let time = self.clock.wall(event.time, now);
        let mut flow = match &found {
            Some(found) => Subject::new(event, found).flow(),
            None => bare(event),
        };
        flow.time = Some(time);
        flow.node_name.clone_from(&self.node);
        flow.emitter =
            Some(flow::Emitter { name: "Policy-agent".into(), version: env!("CARGO_PKG_VERSION").into() });
        let reason = event.reason();
        if reason.passes() || event.flags & event_flags::VERDICT != 0 {
            return vec![self.seal(flow, TYPE_VERDICT, 0)];
        }
        let sub_type = drop_reason(reason) as i32;
        match self.views {
            Views::Both if is_policy_denial(reason) => {
                let verdict = self.seal(flow.clone(), TYPE_VERDICT, 0);
                vec![verdict, self.seal(flow, TYPE_DROP, sub_type)]
            }
            Views::Both | Views::DropOnly => vec![self.seal(flow, TYPE_DROP, sub_type)],
        }
    }

    /// How often the wall clock was set while records came.
    #[must_use]
    pub fn clock_steps(&self) -> u64 {
        self.clock.steps()
    }

    fn seal(&mut self, mut flow: flow::Flow, kind: i32, sub_type: i32) -> flow::Flow {
        self.made += 1;
        flow.event_type = Some(flow::CiliumEventType { r#type: kind, sub_type });
        flow.uuid = uuid(self.run, self.made);
        flow
    }
}

/// A record together with the world that judged it.
struct Subject<'a> {
    event: &'a Event,
    generation: &'a Arc<Generation>,
    as_of_now: bool,
    /// Direction of the policy that judged: that in which the flow opened, as far as known.
    judged: Direction,
}

impl<'a> Subject<'a> {
    fn new(event: &'a Event, found: &'a Found) -> Self {
        let hook = event.direction();
        let judged = if event.opener == hook.reverse() as u8 { hook.reverse() } else { hook };
        Self { event, generation: &found.generation, as_of_now: found.as_of_now, judged }
    }

    fn flow(&self) -> flow::Flow {
        let mut flow = bare(self.event);
        flow.traffic_direction = traffic_direction(self.judged).into();
        let (source, destination) = self.ends();
        flow.source = Some(source.endpoint);
        flow.destination = Some(destination.endpoint);
        flow.source_service = source.service;
        flow.destination_service = destination.service;
        flow.source_names = source.node.into_iter().collect();
        flow.destination_names = destination.node.into_iter().collect();
        if let (Some(state), Some(interface)) = (self.state(), &mut flow.interface) {
            interface.name = clean(&state.interface);
        }
        let side = self.side();
        let details = self.details(side.as_ref());
        if let Some(side) = &side {
            self.name_policies(&mut flow, side);
        }
        if let Some(nearest) = &details.nearest_rule {
            flow.summary = format!("{}; nearest {nearest}", flow.summary);
            flow.policy_log.push(format!("nearest {nearest}"));
        }
        if let (Reason::SpoofedSource, Some(ip)) = (self.event.reason(), &flow.ip) {
            // The source is told as the pod that sent it, so the claim would be seen in the address alone.
            flow.summary = format!("{}; forged source {}", flow.summary, ip.source);
        }
        flow.extensions = Some(details.to_any());
        flow
    }

    fn world(&self) -> &World {
        &self.generation.world
    }

    /// The judged endpoint, if this world has it.
    fn state(&self) -> Option<&EndpointState> {
        self.generation.endpoints.get(&self.event.slot).filter(|state| state.id == self.event.endpoint)
    }

    /// The workload whose socket, on this host, is the other end.
    fn socket_peer(&self) -> Option<&ObjectKey> {
        let at_socket = self.event.flags & event_flags::SOCKET != 0;
        self.generation.endpoints.get(&self.event.tag).filter(|_| at_socket).map(|state| &state.pod)
    }

    /// What stands for a workload in the tables.
    fn stands_for(&self, pod: &ObjectKey) -> Option<std::net::IpAddr> {
        let address = identity(pod);
        self.world().pods.get(pod)?.addresses.contains(&address).then_some(address)
    }

    fn ends(&self) -> (Named, Named) {
        let (source, destination) = match packet::addresses(self.event) {
            Some((source, destination)) => (self.world().entity(source), self.world().entity(destination)),
            None => (Entity::World, Entity::World),
        };
        // Who shares the host's addresses is known by the socket.
        let (source, destination) = match (self.event.direction(), self.socket_peer()) {
            (_, None) => (source, destination),
            (Direction::Egress, Some(peer)) => (source, Entity::Pod(peer.clone())),
            (Direction::Ingress, Some(peer)) => (Entity::Pod(peer.clone()), destination),
        };
        // The interface proves who the local end is, even where the address in the packet is forged.
        let local = self.state().map(|state| Entity::Pod(state.pod.clone()));
        match (self.event.direction(), local) {
            (Direction::Egress, Some(pod)) => (self.name(&pod), self.name(&destination)),
            (Direction::Ingress, Some(pod)) => (self.name(&source), self.name(&pod)),
            (Direction::Egress | Direction::Ingress, None) => (self.name(&source), self.name(&destination)),
        }
    }

    fn name(&self, entity: &Entity) -> Named {
        let id = match entity {
            Entity::Pod(key) => {
                self.generation.endpoints.values().find(|state| state.pod == *key).map_or(0, |state| state.id)
            }
            Entity::OwnNode | Entity::Node(_) | Entity::Service(_) | Entity::World => 0,
        };
        name(self.world(), entity, id)
    }

    /// The evaluator's view of the judged side; `None` where policy was not what decided.
    fn side(&self) -> Option<Side> {
        match self.event.reason() {
            Reason::NotIsolated
            | Reason::Allowed
            | Reason::NoRuleMatched
            | Reason::DeniedByRule
            | Reason::Revoked
            // Lost only by isolated pods: which policies isolate is part of the answer.
            | Reason::NoFlow
            | Reason::IcmpNoFlow => {}
            Reason::Established
            | Reason::OwnNode
            | Reason::Neighbour
            | Reason::SpoofedSource
            | Reason::FragmentUnknown
            | Reason::FragmentTiny
            | Reason::Malformed
            | Reason::TooManyExtensionHeaders
            | Reason::UnknownEthertype
            | Reason::VlanTagged
            | Reason::PolicyPending
            | Reason::MappedAddress
            | Reason::RogueNeighbour
            | Reason::StaleTag
            | Reason::Deferred
            | Reason::Internal => return None,
        }
        let Evaluation { egress, ingress } = oracle::evaluate(self.world(), &self.query()?);
        Some(match self.judged {
            Direction::Egress => egress,
            Direction::Ingress => ingress,
        })
    }

    /// The flow's opening packet.
    fn query(&self) -> Option<Query> {
        let (mut source, mut destination) = packet::addresses(self.event)?;
        let event = self.event;
        if event.flags & event_flags::EXIT != 0 {
            // The node may have put its own address there.
            let pod = self.state().and_then(|state| self.world().pods.get(&state.pod));
            let same = |ip: &&std::net::IpAddr| ip.is_ipv4() == destination.is_ipv4();
            source = pod.and_then(|pod| pod.addresses.iter().find(same)).copied().unwrap_or(source);
        }
        if event.flags & event_flags::SOCKET != 0 {
            let own = self.state().and_then(|state| self.stands_for(&state.pod));
            let peer = self.socket_peer().and_then(|pod| self.stands_for(pod));
            let (from, to) = match event.direction() {
                Direction::Egress => (own, peer),
                Direction::Ingress => (peer, own),
            };
            (source, destination) = (from.unwrap_or(source), to.unwrap_or(destination));
        }
        let reply = self.judged != event.direction();
        let (source, destination, port) = if reply {
            (destination, source, event.source_port)
        } else {
            (source, destination, event.destination_port)
        };
        let port = if Protocol::from_number(event.protocol).is_some() { port } else { 0 };
        Some(Query { source, destination, protocol: event.protocol, port, from_node_process: false })
    }

    fn details(&self, side: Option<&Side>) -> Details {
        let reason = self.event.reason();
        let mut details = Details {
            reason: reason.name().to_owned(),
            suppressed: self.event.suppressed,
            as_of_now: self.as_of_now,
            enforcement: self.generation.plan,
            length: self.event.length,
            ..Details::default()
        };
        let Some(side) = side else { return details };
        details.isolated_by = side.isolated_by.iter().map(|key| clean(&key.to_string())).collect();
        if reason.passes() {
            details.allowed_by = side.allowed_by.as_ref().map(|rule| RuleText::new(self.world(), rule));
        }
        if is_policy_denial(reason) {
            details.denied_by = side.denied_by.as_ref().map(|rule| RuleText::new(self.world(), rule));
            details.nearest_rule = side.nearest.as_ref().map(|rule| NearestText::new(self.world(), rule));
        }
        if (is_policy_denial(reason) || reason.passes()) && side.allows() != reason.passes() {
            details.evaluator = Some(if side.allows() { "allow" } else { "deny" }.to_owned());
        }
        details
    }

    fn name_policies(&self, flow: &mut flow::Flow, side: &Side) {
        let reason = self.event.reason();
        let told = if reason.passes() {
            flow.policy_match_type = side.allowed_by.as_ref().map_or(0, |rule| self.match_type(rule));
            side.allowed_by.iter().map(|rule| policy(&rule.policy)).collect()
        } else if let Some(rule) = &side.denied_by {
            vec![policy(&rule.policy)]
        } else {
            side.isolated_by.iter().map(policy).collect()
        };
        let list = match (self.judged, reason.passes()) {
            (Direction::Ingress, true) => &mut flow.ingress_allowed_by,
            (Direction::Egress, true) => &mut flow.egress_allowed_by,
            (Direction::Ingress, false) => &mut flow.ingress_denied_by,
            (Direction::Egress, false) => &mut flow.egress_denied_by,
        };
        *list = told;
    }

    /// Hubble's number for what a rule names: 1 peers, 2 peers and ports, 3 ports, 4 neither.
    fn match_type(&self, rule: &RuleRef) -> u32 {
        let index = rule.index as usize;
        let found = if rule.is_of_cluster() {
            let policy = self.world().cluster_policies.get(&rule.policy.name);
            policy.and_then(|policy| policy.rules(rule.direction).get(index)).map(|r| (&r.peers, &r.ports))
        } else {
            let rules = self.world().policies.get(&rule.policy).and_then(|policy| match rule.direction {
                Direction::Ingress => policy.ingress.as_ref(),
                Direction::Egress => policy.egress.as_ref(),
            });
            rules.and_then(|rules| rules.get(index)).map(|r| (&r.peers, &r.ports))
        };
        let Some(found) = found else { return 0 };
        match found {
            (Peers::Any(_), Ports::All) => 1,
            (Peers::Any(_), Ports::Any(_)) => 2,
            (Peers::All, Ports::Any(_)) => 3,
            (Peers::All, Ports::All) => 4,
        }
    }
}

fn policy(key: &ObjectKey) -> flow::Policy {
    flow::Policy {
        name: clean(&key.name),
        namespace: clean(&key.namespace),
        kind: if key.namespace.is_empty() { "ClusterNetworkPolicy" } else { "NetworkPolicy" }.to_owned(),
        ..flow::Policy::default()
    }
}

/// A UUID of version 8: numbers of our own choice.
fn uuid(run: u64, count: u64) -> String {
    let bits = u128::from(run) << 64 | u128::from(count);
    let versioned = bits & !(0xf000 << 64 | 0xc000 << 48) | 0x8000 << 64 | 0x8000 << 48;
    let hex = format!("{versioned:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::fixture::{dropped_syn, forged, history, words, world};
    use policy_engine::model::{Action, ClusterPolicy, Selector, Tier, TierRule};
    use policy_engine::world::Delta;

    const NOW: Now = Now { monotonic: 2_000, wall: 1_790_000_000_000_002_000 };

    fn flows(event: &Event) -> Vec<flow::Flow> {
        Enricher::new("node-a", Views::Both).flows(event, &history(world()), NOW)
    }

    fn details(flow: &flow::Flow) -> Details {
        Details::from_any(flow.extensions.as_ref().unwrap()).unwrap()
    }

    fn pod_names(flow: &flow::Flow) -> (String, String) {
        (flow.source.clone().unwrap().pod_name, flow.destination.clone().unwrap().pod_name)
    }

    #[test]
    fn a_drop_by_a_rule_of_a_tier_names_it() {
        let deny =
            TierRule { name: "no web".into(), action: Action::Deny, peers: Peers::All, ports: Ports::All };
        let mut world = world();
        world.apply(Delta::ClusterPolicy(ClusterPolicy {
            name: "guard".into(),
            uid: "".into(),
            tier: Tier::Admin,
            priority: 7,
            namespaces: Selector::default(),
            pods: Selector::default(),
            ingress: vec![deny],
            egress: Vec::new(),
        }));
        let event = Event { reason: Reason::DeniedByRule as u8, ..dropped_syn(5432) };
        let told = Enricher::new("n", Views::DropOnly).flows(&event, &history(world), NOW);
        let denied = &told[0].ingress_denied_by;
        assert_eq!((denied.len(), &*denied[0].name, &*denied[0].kind), (1, "guard", "ClusterNetworkPolicy"));
        let details = details(&told[0]);
        assert_eq!((&*details.reason, &details.nearest_rule), ("denied_by_rule", &None));
        let rule = details.denied_by.unwrap().to_string();
        assert_eq!(rule, "guard ingress[0] \"no web\" (Admin tier, priority 7)");
    }

    #[test]
    fn a_denied_packet_is_told_as_verdict_and_as_drop() {
        let flows = flows(&dropped_syn(9999));
        let kinds: Vec<_> = flows.iter().map(|flow| flow.event_type.unwrap()).collect();
        assert_eq!((kinds[0].r#type, kinds[0].sub_type), (TYPE_VERDICT, 0));
        assert_eq!((kinds[1].r#type, kinds[1].sub_type), (TYPE_DROP, 133));
        assert_eq!(flows.len(), 2);
        assert_ne!(flows[0].uuid, flows[1].uuid);
        let drop = &flows[1];
        assert_eq!(
            drop.summary,
            "TCP Flags: SYN; nearest shop/db-allow ingress[0]: port 5432/TCP, got 9999/TCP"
        );
        assert_eq!(drop.time, Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 1_000 }));
        assert_eq!((drop.verdict(), drop.drop_reason), (flow::Verdict::Dropped, 133));
        assert_eq!(drop.traffic_direction(), flow::TrafficDirection::Ingress);
        assert_eq!(drop.is_reply, Some(false));
        let isolating: Vec<_> = drop.ingress_denied_by.iter().map(|policy| &*policy.name).collect();
        assert_eq!(isolating, ["db-allow", "default-deny"]);
        assert_eq!(pod_names(drop), ("web".to_owned(), "db".to_owned()));
        let (source, destination) = (drop.source.as_ref().unwrap(), drop.destination.as_ref().unwrap());
        assert_eq!((source.id, destination.id), (0, 12));
        assert_eq!(source.labels, ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]);
        assert!(source.identity >= 256 && source.identity != destination.identity);
        assert_eq!(drop.interface.as_ref().unwrap().name, "veth-db");
        let details = details(drop);
        assert_eq!(details.isolated_by, ["shop/db-allow", "shop/default-deny"]);
        assert_eq!(details.nearest_rule.unwrap().got, "9999/TCP");
        assert_eq!(
            (details.reason.as_str(), details.enforcement, details.as_of_now),
            ("no_rule_matched", 3, false)
        );
        assert_eq!(details.evaluator, None);
    }

    #[test]
    fn one_view_where_policy_was_not_asked_or_when_switched_off() {
        let told = flows(&forged());
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].event_type.unwrap().sub_type, 132);
        assert_eq!(pod_names(&told[0]).0, "client", "the interface tells who sent it, not the address");
        assert_eq!(told[0].ip.as_ref().unwrap().source, "10.0.0.13");
        assert_eq!(told[0].summary, "TCP Flags: SYN; forged source 10.0.0.13");
        assert_eq!(told[0].destination.as_ref().unwrap().labels, ["reserved:world"]);
        assert_eq!(told[0].is_reply, None);
        let one = Enricher::new("n", Views::DropOnly).flows(&dropped_syn(1), &history(world()), NOW);
        assert_eq!(one.iter().map(|flow| flow.event_type.unwrap().r#type).collect::<Vec<_>>(), [TYPE_DROP]);
    }

    #[test]
    fn an_allowed_flow_names_its_rule() {
        let allowed =
            Event { reason: Reason::Allowed as u8, flags: event_flags::VERDICT, ..dropped_syn(5432) };
        let told = flows(&allowed);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].verdict(), told[0].policy_match_type), (flow::Verdict::Forwarded, 2));
        assert_eq!(told[0].ingress_allowed_by[0].name, "db-allow");
        assert_eq!(told[0].drop_reason, 0);
        assert_eq!(details(&told[0]).allowed_by.unwrap().to_string(), "shop/db-allow ingress[0]");
    }

    #[test]
    fn a_revoked_reply_is_judged_in_the_opening_direction() {
        // `db` answers from 9999; the opener was the other side.
        let reply = Event {
            direction: 2,
            opener: 1,
            source: words("10.0.0.12"),
            destination: words("10.0.0.13"),
            source_port: 9999,
            destination_port: 40_003,
            tcp_flags: 0x10,
            reason: Reason::Revoked as u8,
            ..dropped_syn(0)
        };
        let drop = flows(&reply).remove(1);
        assert_eq!(drop.is_reply, Some(true));
        assert_eq!(drop.traffic_direction(), flow::TrafficDirection::Ingress);
        assert_eq!(pod_names(&drop), ("db".to_owned(), "web".to_owned()));
        assert_eq!(drop.ingress_denied_by.len(), 2);
        assert_eq!(details(&drop).nearest_rule.unwrap().got, "9999/TCP");
    }

    #[test]
    fn an_old_epoch_is_explained_as_of_now_and_a_disagreement_is_shown() {
        let old = Event { word: 4, ..dropped_syn(5432) };
        let details = details(&flows(&old)[0]);
        assert!(details.as_of_now);
        assert_eq!(details.evaluator.as_deref(), Some("allow"));
        let none = Enricher::new("n", Views::Both).flows(&old, &History::default(), NOW);
        assert_eq!(none[1].summary, "TCP Flags: SYN");
        assert_eq!(none[1].source, None);
    }

    #[test]
    fn uuids_have_version_and_variant() {
        assert_eq!(uuid(u64::MAX, u64::MAX), "ffffffff-ffff-8fff-bfff-ffffffffffff");
        assert_eq!(uuid(0, 10), "00000000-0000-8000-8000-00000000000a");
    }
}
