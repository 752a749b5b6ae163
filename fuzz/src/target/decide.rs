//! The decision, as a story: policy changes, time passes, frames come. A drop leaves no flow and is told in a record
//! that reads back; an open pod without checks loses nothing but what is forged; a closed one that opened
//! nothing hears nothing.

use super::packet;
use policy_common::{
    abi::{
        Direction, EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, ROW_OPEN, RuleSet, action,
        endpoint_config, host_flags, tag,
    },
    event::Event,
    reason::Reason,
};
use policy_engine::{
    address,
    limits::Limits,
    mem::{
        datapath::{Judged, MemDatapath, MemEndpoint, Way},
        tables::MemTables,
    },
    plan::Op,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SLOT: u16 = 5;
/// Row 2 allows class 1 port 80 and whatever has no ports.
const ROWS: [u16; 3] = [ROW_OPEN, ROW_CLOSED, 2];
/// Frames of one story.
const LONGEST: usize = 64;
const LIMITS: Limits = Limits {
    endpoints: 8,
    rows: 8,
    classes: 32,
    hosts: 16,
    prefixes: 16,
    host_info: 64,
    rule_sets: 16,
    intervals: 16,
    intervals_per_set: 8,
};

struct Story {
    datapath: MemDatapath,
    config: u16,
    rows: (u16, u16),
    epoch: u32,
    now: u32,
}

pub(super) fn run(input: &[u8]) {
    let mut story = Story::new();
    let mut rest = input;
    for _ in 0..LONGEST {
        let Some((kind, after)) = rest.split_first() else { break };
        rest = after;
        match kind % 8 {
            0 => {
                let Some((choice, after)) = rest.split_first() else { break };
                rest = after;
                let row = |n: u8| ROWS[usize::from(n % 3)];
                story.set_rows(row(*choice), row(choice / 3));
            }
            1 => {
                let Some((choice, after)) = rest.split_first() else { break };
                rest = after;
                story.configure(u16::from(*choice));
            }
            2 => story.now = story.now.wrapping_add(u32::from(*kind) << 8),
            _ => {
                let Some((length, after)) = rest.split_first() else { break };
                let length = usize::from(*length).min(after.len());
                let (frame, after) = after.split_at(length);
                rest = after;
                story.judge(*kind, frame);
            }
        }
    }
}

impl Story {
    fn new() -> Self {
        let mut datapath = MemDatapath::new(MemTables::new(LIMITS));
        for op in tables() {
            datapath.tables.apply(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
        let mut story = Self { datapath, config: 0, rows: (0, 0), epoch: 1, now: 1 };
        story.configure(endpoint_config::ANTI_SPOOF);
        story.set_rows(ROW_CLOSED, ROWS[2]);
        story
    }

    fn set_rows(&mut self, ingress_row: u16, egress_row: u16) {
        self.epoch += 1;
        self.rows = (ingress_row, egress_row);
        let word = EndpointWord { epoch: self.epoch, ingress_row, egress_row };
        let op = Op::Endpoint { slot: SLOT, word };
        self.datapath.tables.apply(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }

    fn configure(&mut self, config: u16) {
        self.config = config;
        let addresses = vec![
            IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)),
            IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2)),
        ];
        let endpoint =
            MemEndpoint { id: 77, ifindex: 3, config, generation: 1, addresses, ..MemEndpoint::default() };
        self.datapath.set_endpoint(SLOT, endpoint);
    }

    fn judge(&mut self, kind: u8, frame: &[u8]) {
        let direction = if kind & 8 == 0 { Direction::Ingress } else { Direction::Egress };
        let way = Way {
            ingress_ifindex: if kind & 16 == 0 { 7 } else { 0 },
            socket: true,
            tag: [0, tag::new(SLOT, 1), tag::new(SLOT, 1) | tag::DEFERRED, 0x1234]
                [usize::from(kind >> 5) % 4],
            vlan: kind & 128 != 0 && kind & 64 == 0,
        };
        let before = self.datapath.flows(SLOT);
        let judged = if kind % 8 == 7 {
            self.datapath.judge_exit(3, &way, frame, self.now)
        } else {
            self.datapath.judge_packet(SLOT, direction, &way, frame, self.now)
        };
        self.check(&judged, &way, before);
    }

    fn check(&self, judged: &Judged, way: &Way, before: usize) {
        let flows = self.datapath.flows(SLOT);
        assert!(judged.passes || flows == before, "a drop makes no flow: {judged:?}");
        assert!(flows <= before + 1, "a packet makes one flow at most");
        let Some(verdict) = judged.verdict else {
            assert!(judged.passes && judged.event.is_none(), "nobody judged it: {judged:?}");
            return;
        };
        assert_eq!(verdict.passes(), judged.passes, "{judged:?}");
        if !judged.passes && verdict.reason() != Reason::StaleTag {
            assert!(judged.event.is_some(), "a drop is told: {judged:?}");
        }
        if let Some(event) = &judged.event {
            assert_eq!(Event::decode(&event.encode()).as_ref(), Some(event), "the record reads back");
            assert_eq!(event.reason(), verdict.reason());
        }
        let open = self.rows == (ROW_OPEN, ROW_OPEN) && self.config == 0 && way.tag == 0;
        // Whatever the policy: what comes from outside under the pod's own address is forged, and no pod is a router.
        let never = matches!(verdict.reason(), Reason::SpoofedSource | Reason::RogueNeighbour);
        assert!(judged.passes || !open || never, "an open pod loses nothing else: {judged:?}");
    }
}

fn tables() -> Vec<Op> {
    let allow = Outcome::new(action::ALLOW, 5);
    let one = Interval { low: 80, high: 80, outcome: allow };
    let some = RuleSet { base: 0, n_tcp: 1, n_udp: 1, other: allow, ..RuleSet::default() };
    let mut ops = vec![
        Op::Intervals { base: 0, values: vec![one, one] },
        Op::RuleSet { id: 1, value: some },
        Op::Row { row: ROWS[2], cells: vec![0, 1] },
    ];
    let hosts = [
        (IpAddr::V4(Ipv4Addr::new(10, 9, 1, 1)), 1, host_flags::POD),
        (IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 1, 0, 0, 0, 0, 1)), 1, host_flags::POD),
        (IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), 0, host_flags::OWN_NODE),
        (IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 0, host_flags::FRONTEND),
    ];
    for (slot, (address, class, flags)) in (1..).zip(hosts) {
        let word = HostWord { check: address::check(address), class, flags };
        ops.extend([Op::HostWord { slot, word }, Op::HostInsert { address, slot }]);
    }
    ops
}

/// Each frame of the parser's seeds towards the pod and from it, then under another policy.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let frames = packet::seeds();
    let mut stories: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let mut story = Vec::new();
            for kind in [3, 11, 19] {
                story.extend([kind, frame.len() as u8]);
                story.extend(frame);
            }
            story.extend([0, 8]);
            story
        })
        .collect();
    stories.push(stories.concat());
    stories
}
