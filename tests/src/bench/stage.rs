//! The product's own maps and programs, filled as a node with many peers has them.

use crate::{
    group::ControlGroup,
    net::{Family, Netns},
    pins::PinDir,
    programs::Programs,
};
use anyhow::{Context, Result};
use policy_agent::datapath::{Config, Datapath, Endpoint, OBJECT, load};
use policy_common::{
    abi::{
        Cgroup, EndpointWord, HostWord, Interval, Outcome, RuleSet, action, endpoint_config, host_flags,
        limits,
    },
    family::{Family as _, V4, V6},
};
use policy_engine::plan::{Op, Plan};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

/// The port that rules allow, in the middle of others.
pub(super) const ALLOWED_PORT: u16 = 5001;
/// A port that no rule allows.
pub(super) const DENIED_PORT: u16 = 9;

/// Where packets come from that no pod of the node sent.
pub(super) const UPLINK: u32 = 2;
/// Rows of every endpoint here: isolated both ways.
const INGRESS_ROW: u16 = 2;
const EGRESS_ROW: u16 = 3;
/// Allows some ports, and all.
const SOME_PORTS: u16 = 1;
const ALL_PORTS: u16 = 2;
/// Ten thousand pods make about a hundred classes; this is many.
const MOST_CLASSES: usize = 1000;

/// Maps under pins of their own, and programs; both go on drop.
pub(super) struct Stage {
    /// The datapath.
    pub(super) datapath: Datapath,
    /// All programs of the object, with the same maps: also those that are never attached.
    pub(super) programs: Programs,
    next_host: u32,
    plans: u64,
    _pins: PinDir,
}

impl Stage {
    /// Empty maps and verified programs, for hooks in this namespace.
    pub(super) fn new(ns: &Arc<Netns>) -> Result<Self> {
        let pins = PinDir::new(ns)?;
        let datapath = ns.run(|| load(&Config::new(pins.path()), OBJECT)).context("load the datapath")?;
        let programs = Programs::new(&datapath)?;
        // As on a node, whose devices are all known.
        datapath.executor.set_exit(UPLINK, 0)?;
        let mut stage = Self { datapath, programs, next_host: 1, plans: 0, _pins: pins };
        stage.apply(rules())?;
        Ok(stage)
    }

    /// A pod behind an interface, isolated both ways.
    pub(super) fn add_pod(&mut self, slot: u16, ifindex: u32, addresses: &[IpAddr]) -> Result<()> {
        let executor = &self.datapath.executor;
        executor.create_endpoint(&Endpoint {
            slot,
            id: slot.into(),
            ifindex,
            addresses: addresses.to_vec(),
            config: 0,
            pickup: Duration::ZERO,
        })?;
        executor.set_interface(ifindex, slot)?;
        let word = EndpointWord { epoch: 2, ingress_row: INGRESS_ROW, egress_row: EGRESS_ROW };
        self.apply(vec![Op::Endpoint { slot, word }])
    }

    /// A control group with these addresses, isolated both ways.
    pub(super) fn add_group(&mut self, slot: u16, group: &ControlGroup, addresses: &[IpAddr]) -> Result<()> {
        self.programs.add_sockets(&self.datapath)?;
        let executor = &self.datapath.executor;
        executor.create_endpoint(&Endpoint {
            slot,
            id: slot.into(),
            ifindex: 0,
            addresses: addresses.to_vec(),
            config: endpoint_config::SOCKETS,
            pickup: Duration::ZERO,
        })?;
        self.choose_group(slot, group)?;
        let word = EndpointWord { epoch: 2, ingress_row: INGRESS_ROW, egress_row: EGRESS_ROW };
        self.apply(vec![Op::Endpoint { slot, word }])
    }

    /// Makes this endpoint the group's.
    pub(super) fn choose_group(&self, slot: u16, group: &ControlGroup) -> Result<()> {
        let level = group.path().matches('/').count() as u32;
        let value = Cgroup { slot: slot.into(), level, identity: [0; 4] };
        Ok(self.datapath.executor.set_group(group.id()?, &value)?)
    }

    /// Peers that rules allow.
    pub(super) fn add_peers(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let mut ops = Vec::with_capacity(addresses.len() * 2);
        for (index, address) in addresses.iter().enumerate() {
            let slot = self.next_host;
            self.next_host += 1;
            let class = 1 + (index % MOST_CLASSES) as u16;
            let word = HostWord { check: check(*address), class, flags: host_flags::POD };
            ops.extend([Op::HostWord { slot, word }, Op::HostInsert { address: *address, slot }]);
        }
        self.apply(ops)
    }

    fn apply(&mut self, ops: Vec<Op>) -> Result<()> {
        self.plans += 1;
        Ok(self.datapath.executor.apply(&Plan { number: self.plans, ops })?)
    }
}

/// The peers of a size, without the addresses that are in use.
pub(super) fn peers(count: usize, family: Family) -> Vec<IpAddr> {
    (0..count as u32)
        .map(|number| match family {
            Family::V4 => Ipv4Addr::from(0x0a40_0000 + number).into(),
            Family::V6 => Ipv6Addr::from((0xfd00_0064_u128 << 96) + u128::from(number)).into(),
        })
        .collect()
}

/// Numbers of peers to measure with: the last is what the maps hold, when that is less than a hundred thousand.
pub(super) fn sizes() -> Vec<usize> {
    // Some entries stay free for the pods that traffic runs between.
    let room = limits::HOSTS as usize - 16;
    let mut sizes = [10, 1_000, 10_000, 100_000].map(|size: usize| size.min(room)).to_vec();
    sizes.dedup();
    sizes
}

/// Eight intervals for TCP and UDP each, as a policy with some ports has them, for peers of every class.
fn rules() -> Vec<Op> {
    let allow = |rule| Outcome::new(action::ALLOW, rule);
    let ports = [(22, 22), (80, 80), (443, 443), (ALLOWED_PORT, ALLOWED_PORT), (8000, 8099), (8443, 8443)];
    let one = |(low, high)| Interval { low, high, outcome: allow(1) };
    let mut values: Vec<Interval> = ports.into_iter().map(one).collect();
    values.extend([(9090, 9099), (30_000, 32_767)].map(one));
    let count = values.len() as u16;
    values.extend(values.clone());
    let some = RuleSet { base: 0, n_tcp: count, n_udp: count, ..RuleSet::default() };
    let all = RuleSet { other: allow(2), default: allow(2), ..RuleSet::default() };
    let row = |set| std::iter::once(0).chain(std::iter::repeat_n(set, MOST_CLASSES)).collect();
    vec![
        Op::Intervals { base: 0, values },
        Op::RuleSet { id: SOME_PORTS, value: some },
        Op::RuleSet { id: ALL_PORTS, value: all },
        Op::Row { row: INGRESS_ROW, cells: row(SOME_PORTS) },
        Op::Row { row: EGRESS_ROW, cells: row(ALL_PORTS) },
    ]
}

fn check(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(ip) => V4::check(&u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => V6::check(&bytes_to_words(ip.octets())),
    }
}

fn bytes_to_words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_distinct_and_as_many_as_asked() {
        for family in [Family::V4, Family::V6] {
            let peers: std::collections::BTreeSet<IpAddr> = peers(100_000, family).into_iter().collect();
            assert_eq!(peers.len(), 100_000);
        }
    }

    #[test]
    fn sizes_grow() {
        assert!(sizes().windows(2).all(|pair| pair[0] < pair[1]));
    }
}
