//! The kernel's hooks in memory: raw frames, judged by the code that the kernel object is made of.
//!
//! What it leaves out is what bounds the kernel and not the verdict: LRU maps never evict, buckets never hold an event
//! back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use policy_common::abi::{
    ANY_SLOT, Direction, EndpointWord, Flow, FlowKey4, FlowKey6, Fragment, FragmentKey, HostWord, LocalKey,
    ROW_OPEN, address_words, endpoint_words, meta_flags, meta_words, tag,
};
use policy_common::decide::decide;
use policy_common::event::{Event, event_flags};
use policy_common::exit::{Leaving, judge_exit, leaving};
use policy_common::family::{Family, V4, V6};
use policy_common::flow::{FlowMaps, Host};
use policy_common::judge::{Judge, Sides, look_up};
use policy_common::packet::{ETHERNET_HEADER, Link, Packet, Slice, link, parse4, parse6};
use policy_common::reason::Reason;
use policy_common::seen::Seen;
use policy_common::side::{Side, judge_side};
use policy_common::tagged;
use policy_common::verdict::Verdict;

use super::tables::MemTables;
use crate::address;

/// An endpoint as it is made: what stands in its words beside rows and epoch.
#[derive(Clone, Debug, Default)]
pub struct MemEndpoint {
    /// Id, in events.
    pub id: u32,
    /// Interface of the hook, in events.
    pub ifindex: u32,
    /// Bits of [`policy_common::abi::endpoint_config`].
    pub config: u16,
    /// Uses of the slot.
    pub generation: u16,
    /// Its addresses. The first of each family is the main one.
    pub addresses: Vec<IpAddr>,
    /// Tick at which its pick-up window ends, 0 = it has none.
    pub pickup_until: u32,
    /// Epoch from which on flows are kept, with the configuration bit that says so.
    pub keep_from: u32,
}

impl MemEndpoint {
    fn identity(&self) -> u64 {
        u64::from(self.id) | u64::from(self.config) << 32 | u64::from(self.generation) << 48
    }

    /// A word of the kernel's endpoint, other than word 0.
    fn word(&self, word: u32) -> u64 {
        let main4 =
            || self.addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
        let main6 =
            || self.addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
        match word {
            endpoint_words::KEEP => self.keep_from.into(),
            endpoint_words::IDENTITY => self.identity(),
            endpoint_words::ADDRESS4 => {
                u64::from(main4().map_or(0, address::word4)) | u64::from(self.pickup_until) << 32
            }
            endpoint_words::ADDRESS6_HIGH => main6().map_or(0, |a| address_words(a.octets()).0),
            endpoint_words::ADDRESS6_LOW => main6().map_or(0, |a| address_words(a.octets()).1),
            endpoint_words::INTERFACE => self.ifindex.into(),
            _ => 0,
        }
    }
}

/// How a packet came to the hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Interface on which it came in, 0 = made on the node.
    pub ingress_ifindex: u32,
    /// Whether a socket of the node owns it.
    pub socket: bool,
    /// Its tag.
    pub tag: u16,
    /// Whether a VLAN tag stands in its metadata.
    pub vlan: bool,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Whether it passed.
    pub passes: bool,
    /// The verdict; `None` for ARP and for frames that nobody judges.
    pub verdict: Option<Verdict>,
    /// Its tag behind the hook.
    pub tag: u16,
    /// What the kernel would report, without time and number.
    pub event: Option<Event>,
}

#[derive(Clone, Debug, Default)]
struct State {
    endpoint: MemEndpoint,
    flows4: HashMap<FlowKey4, Flow>,
    flows6: HashMap<FlowKey6, Flow>,
}

/// Endpoints, their flows and fragments, over the policy tables.
#[derive(Clone, Debug)]
pub struct MemDatapath {
    /// The tables: plans are applied here.
    pub tables: MemTables,
    /// Words of `META`.
    pub meta: [u64; meta_words::COUNT as usize],
    endpoints: BTreeMap<u16, State>,
    locals: HashMap<LocalKey, u32>,
    bridges: BTreeSet<u32>,
    fragments: HashMap<FragmentKey, Fragment>,
}

impl MemDatapath {
    /// A datapath without endpoints.
    #[must_use]
    pub fn new(tables: MemTables) -> Self {
        let meta = [0; meta_words::COUNT as usize];
        Self {
            tables,
            meta,
            endpoints: BTreeMap::new(),
            locals: HashMap::new(),
            bridges: BTreeSet::new(),
            fragments: HashMap::new(),
        }
    }

    /// Bridges with ports of pods.
    pub fn set_bridges(&mut self, bridges: BTreeSet<u32>) {
        self.bridges = bridges;
    }

    /// Makes or changes an endpoint. Its flows stay if its id does.
    pub fn set_endpoint(&mut self, slot: u16, endpoint: MemEndpoint) {
        let state = self.endpoints.entry(slot).or_default();
        if state.endpoint.id != endpoint.id {
            *state = State::default();
        }
        self.forget_addresses(slot);
        let mut next = [2, 2];
        for (index, a) in endpoint.addresses.iter().enumerate() {
            if endpoint.addresses[..index].iter().any(|b| b.is_ipv4() == a.is_ipv4()) {
                let family = usize::from(a.is_ipv6());
                self.locals.insert(local_key(slot.into(), *a), next[family]);
                next[family] += 1;
            } else {
                self.locals.insert(local_key(ANY_SLOT, *a), slot.into());
            }
        }
        self.endpoints.entry(slot).or_default().endpoint = endpoint;
    }

    fn forget_addresses(&mut self, slot: u16) {
        let slot = u32::from(slot);
        self.locals.retain(|key, value| key.slot != slot && (key.slot != ANY_SLOT || *value != slot));
    }

    /// Forgets an endpoint and its flows.
    pub fn remove_endpoint(&mut self, slot: u16) {
        self.endpoints.remove(&slot);
        self.forget_addresses(slot);
        self.tables.forget_endpoint(slot);
    }

    /// Number of recorded flows of an endpoint.
    #[must_use]
    pub fn flows(&self, slot: u16) -> usize {
        self.endpoints.get(&slot).map_or(0, |s| s.flows4.len() + s.flows6.len())
    }

    /// Judges a frame at the endpoint's hook, at tick `now`. Towards the pod, what was left to be judged of the
    /// sender's egress comes first.
    pub fn judge_packet(
        &mut self,
        slot: u16,
        direction: Direction,
        way: &Way,
        frame: &[u8],
        now: u32,
    ) -> Judged {
        let Some(state) = self.endpoints.get(&slot) else {
            // From a pod nobody's tag counts.
            let tag = if direction == Direction::Egress { 0 } else { way.tag };
            return Judged { passes: true, verdict: None, tag, event: None };
        };
        let (mut tag, ifindex) = (tag::new(slot, state.endpoint.generation), state.endpoint.ifindex);
        if direction == Direction::Ingress {
            let left = self.judge_leaving(ifindex, way, frame, now);
            if !left.passes {
                return left;
            }
            tag = left.tag;
        }
        let way = Way { tag, ..*way };
        match self.view(slot, &way, now) {
            Some(view) => view.hook(direction, way.vlan, frame),
            None => Judged { passes: true, verdict: None, tag, event: None },
        }
    }

    /// Judges a frame that leaves the node by a device that is no pod's.
    pub fn judge_exit(&mut self, ifindex: u32, way: &Way, frame: &[u8], now: u32) -> Judged {
        self.judge_leaving(ifindex, way, frame, now)
    }

    fn judge_leaving(&mut self, ifindex: u32, way: &Way, frame: &[u8], now: u32) -> Judged {
        let mut judged = Judged { passes: true, verdict: None, tag: way.tag, event: None };
        let (slot, untagged) = match leaving(way.tag, way.ingress_ifindex != 0) {
            Leaving::Judged => return judged,
            Leaving::Deferred => (tag::slot(way.tag), false),
            Leaving::Untagged if self.meta[meta_words::FLAGS as usize] & meta_flags::BACKENDS != 0 => {
                return judged;
            }
            Leaving::Untagged => match self.sender(way.ingress_ifindex, frame) {
                Some(slot) => (slot, true),
                None => return judged,
            },
        };
        let identity = self.endpoints.get(&slot).map_or(0, |s| s.endpoint.identity());
        if !untagged && !tagged::names(way.tag, identity) {
            judged.passes = false;
            judged.verdict = Some(Verdict::plain(Reason::StaleTag));
            return judged;
        }
        let Some(view) = self.view(slot, way, now) else { return judged };
        let mut judged = view.exit(ifindex, untagged, frame);
        if judged.passes && !untagged {
            judged.tag &= !tag::DEFERRED;
        }
        judged
    }

    /// The hooked pod that a packet without tag comes from.
    fn sender(&self, ingress_ifindex: u32, frame: &[u8]) -> Option<u16> {
        if self.bridges.contains(&ingress_ifindex) {
            let bytes = Slice(frame);
            let source = match link(&bytes) {
                Ok(Link::Ip4) => (4, V4::wide(&parse4(&bytes, ETHERNET_HEADER).ok()?.source)),
                Ok(Link::Ip6) => (6, parse6(&bytes, ETHERNET_HEADER).ok()?.source),
                Ok(Link::Arp) | Err(_) => return None,
            };
            let key = LocalKey { slot: ANY_SLOT, family: source.0, address: source.1 };
            return self.locals.get(&key).map(|slot| *slot as u16);
        }
        let mut hooked = self.endpoints.iter();
        hooked.find(|(_, state)| state.endpoint.ifindex == ingress_ifindex).map(|(slot, _)| *slot)
    }

    fn view(&mut self, slot: u16, way: &Way, now: u32) -> Option<View<'_>> {
        let tagged = self.endpoints.get(&tag::slot(way.tag)).map(|state| state.endpoint.clone());
        let state = self.endpoints.get_mut(&slot)?;
        Some(View {
            tables: &self.tables,
            meta: &self.meta,
            slot,
            tag: way.tag,
            tagged,
            process: way.ingress_ifindex == 0 && way.socket,
            now,
            word: self.tables.endpoint(slot).unwrap_or_default().pack(),
            state: RefCell::new(state),
            locals: &self.locals,
            fragments: RefCell::new(&mut self.fragments),
        })
    }
}

fn local_key(slot: u32, a: IpAddr) -> LocalKey {
    let (family, address) = match a {
        IpAddr::V4(a) => (4, V4::wide(&address::word4(a))),
        IpAddr::V6(a) => (6, address::words6(a)),
    };
    LocalKey { slot, family, address }
}

/// One packet at one endpoint.
struct View<'a> {
    tables: &'a MemTables,
    meta: &'a [u64; meta_words::COUNT as usize],
    slot: u16,
    tag: u16,
    /// The endpoint that the tag names.
    tagged: Option<MemEndpoint>,
    process: bool,
    now: u32,
    word: u64,
    state: RefCell<&'a mut State>,
    locals: &'a HashMap<LocalKey, u32>,
    fragments: RefCell<&'a mut HashMap<FragmentKey, Fragment>>,
}

impl View<'_> {
    fn hook(&self, direction: Direction, vlan: bool, frame: &[u8]) -> Judged {
        let bytes = Slice(frame);
        let reason = match link(&bytes) {
            _ if vlan => Reason::VlanTagged,
            Ok(Link::Arp) => return self.passed(None),
            Ok(Link::Ip4) => match parse4(&bytes, ETHERNET_HEADER) {
                Ok(packet) => return self.judge::<V4>(direction, packet, frame.len()),
                Err(reason) => reason,
            },
            Ok(Link::Ip6) => match parse6(&bytes, ETHERNET_HEADER) {
                Ok(packet) => return self.judge::<V6>(direction, packet, frame.len()),
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        let verdict = Verdict::plain(reason);
        if EndpointWord::unpack(self.word).row(direction) == ROW_OPEN {
            return self.passed(None);
        }
        let event = self.event(direction, verdict, frame.len(), &Seen::frame(&bytes));
        Judged { passes: false, verdict: Some(verdict), tag: self.tag, event: Some(event) }
    }

    /// What the sender's egress policy says to a packet that the node sends on.
    fn exit(&self, ifindex: u32, untagged: bool, frame: &[u8]) -> Judged {
        if EndpointWord::unpack(self.word).egress_row == ROW_OPEN {
            return self.passed(None);
        }
        let bytes = Slice(frame);
        let (verdict, seen) = match link(&bytes) {
            Ok(Link::Arp) => return self.passed(None),
            Ok(Link::Ip4) => self.leave::<V4>(untagged, parse4(&bytes, ETHERNET_HEADER), &bytes),
            Ok(Link::Ip6) => self.leave::<V6>(untagged, parse6(&bytes, ETHERNET_HEADER), &bytes),
            Err(reason) => (Verdict::plain(reason), Seen::frame(&bytes)),
        };
        let mut judged = self.passed(Some(verdict));
        if !verdict.passes() {
            let event = self.event(Direction::Egress, verdict, frame.len(), &seen);
            judged.event = Some(Event { ifindex, flags: event.flags | event_flags::EXIT, ..event });
            judged.passes = false;
        }
        judged
    }

    fn leave<F: Family>(
        &self,
        untagged: bool,
        packet: Result<Packet<F::Address>, Reason>,
        bytes: &Slice<'_>,
    ) -> (Verdict, Seen)
    where
        Self: Judge<F> + FlowMaps<F>,
    {
        match packet {
            Ok(mut packet) => {
                let verdict = judge_exit::<F, Self>(self, self.word, untagged, &mut packet);
                (verdict, Seen::packet::<F>(&packet))
            }
            Err(reason) => (Verdict::plain(reason), Seen::frame(bytes)),
        }
    }

    fn passed(&self, verdict: Option<Verdict>) -> Judged {
        Judged { passes: true, verdict, tag: self.tag, event: None }
    }

    fn judge<F: Family>(&self, direction: Direction, packet: Packet<F::Address>, length: usize) -> Judged
    where
        Self: Judge<F> + FlowMaps<F>,
    {
        let mut packet = packet;
        let verdict = decide::<F, Self>(self, self.word, direction, &mut packet);
        let mut judged = self.passed(Some(verdict));
        judged.passes = verdict.passes();
        if verdict.passes() && verdict.is_deferred() && direction == Direction::Egress {
            judged.tag |= tag::DEFERRED;
        }
        let wanted = self.meta[meta_words::FLAGS as usize] & meta_flags::VERDICTS != 0;
        if !verdict.passes() || wanted && verdict.is_recorded() {
            judged.event = Some(self.event(direction, verdict, length, &Seen::packet::<F>(&packet)));
        }
        judged
    }

    fn event(&self, direction: Direction, verdict: Verdict, length: usize, seen: &Seen) -> Event {
        let state = self.state.borrow();
        Event {
            word: self.word,
            endpoint: state.endpoint.id,
            ifindex: state.endpoint.ifindex,
            rule: verdict.rule(),
            length: u32::try_from(length).unwrap_or(u32::MAX),
            slot: self.slot,
            class: verdict.class(),
            rule_set: verdict.rule_set(),
            tag: self.tag,
            direction: direction as u8,
            reason: verdict.reason_number(),
            opener: verdict.opener(),
            source: seen.source,
            destination: seen.destination,
            source_port: seen.source_port,
            destination_port: seen.destination_port,
            family: seen.family,
            protocol: seen.protocol,
            tcp_flags: seen.tcp_flags,
            icmp_code: seen.icmp_code,
            flags: seen.flags | if verdict.passes() { event_flags::VERDICT } else { 0 },
            ..Event::default()
        }
    }
}

impl Host for View<'_> {
    fn slot(&self) -> u16 {
        self.slot
    }
    fn endpoint(&self, word: u32) -> u64 {
        if word == endpoint_words::POLICY { self.word } else { self.state.borrow().endpoint.word(word) }
    }
    fn tagged(&self, word: u32) -> u64 {
        self.tagged.as_ref().map_or(0, |endpoint| endpoint.word(word))
    }
    fn meta(&self, word: u32) -> u64 {
        self.meta.get(word as usize).copied().unwrap_or(0)
    }
    fn now(&self) -> u32 {
        self.now
    }
    fn tag(&self) -> u16 {
        self.tag
    }
}

impl Sides for View<'_> {
    fn side(&self, side: Side) -> Verdict {
        let rules = |s: &Side| look_up::<V4, _>(self.tables, s.row, s.class, s.protocol, s.port);
        judge_side(side, || self.process, rules)
    }
}

macro_rules! family {
    ($family:ty, $key:ty, $flows:ident) => {
        impl Judge<$family> for View<'_> {
            fn classify(&self, address: &<$family as Family>::Address) -> HostWord {
                Judge::<$family>::classify(self.tables, address)
            }
        }

        impl FlowMaps<$family> for View<'_> {
            type Handle = $key;
            fn find(&self, key: &$key) -> Option<$key> {
                self.state.borrow().$flows.contains_key(key).then_some(*key)
            }
            fn word(&self, entry: $key) -> u64 {
                self.state.borrow().$flows[&entry].word
            }
            fn state(&self, entry: $key) -> u64 {
                let flow = self.state.borrow().$flows[&entry];
                u64::from(flow.seen)
                    | u64::from(flow.tcp) << 32
                    | u64::from(flow.fins) << 40
                    | u64::from(flow.proxy_port) << 48
            }
            fn origin(&self, entry: $key) -> u64 {
                let flow = self.state.borrow().$flows[&entry];
                u64::from(flow.rule) | u64::from(flow.opened) << 32
            }
            fn judged(&self, entry: $key) -> u64 {
                let flow = self.state.borrow().$flows[&entry];
                u64::from(flow.class) | u64::from(flow.rule_set) << 16
            }
            fn touch(&self, entry: $key, state: u64) {
                if let Some(flow) = self.state.borrow_mut().$flows.get_mut(&entry) {
                    flow.seen = state as u32;
                    flow.tcp = (state >> 32) as u8;
                    flow.fins = (state >> 40) as u8;
                    flow.proxy_port = (state >> 48) as u16;
                }
            }
            fn put(&self, key: &$key, flow: &Flow) {
                self.state.borrow_mut().$flows.insert(*key, *flow);
            }
            fn local(&self, key: &LocalKey) -> u32 {
                self.locals.get(key).copied().unwrap_or(0)
            }
            fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
                self.fragments.borrow().get(key).copied()
            }
            fn put_fragment(&self, key: &FragmentKey, value: &Fragment) {
                self.fragments.borrow_mut().insert(*key, *value);
            }
        }
    };
}

family!(V4, FlowKey4, flows4);
family!(V6, FlowKey6, flows6);
