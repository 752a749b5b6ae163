//! Reading the counters: sums over all CPUs.

use policy_common::abi::{
    Counter, Direction, EndpointStat, counter_index, counter_unhooked, counter_untagged,
};
use policy_common::reason::Reason;

use super::error::{Error, Result};
use super::executor::Executor;
use super::map::bytes_of;
use super::map::from_bytes;
use super::spec::MapId;
use super::{bpf, spec};

/// What one endpoint counted since its slot was first used, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointTotals {
    /// Flows recorded.
    pub flows: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// Packets that the tables judged.
    pub judged: u64,
    /// Drop events held back by the rate limit.
    pub suppressed: u64,
    /// Drop events lost because the ring was full.
    pub ring_full: u64,
    /// Verdict events of allowed flows held back or lost.
    pub verdicts_lost: u64,
}

impl Executor {
    /// Packets and bytes by reason and direction. Exact at all times.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn counters(&self) -> Result<Vec<(Reason, Direction, Counter)>> {
        let mut found = Vec::with_capacity(Reason::ALL.len() * 2);
        for reason in Reason::ALL {
            for direction in [Direction::Ingress, Direction::Egress] {
                found.push((
                    reason,
                    direction,
                    self.counter(MapId::Counters, counter_index(reason, direction))?,
                ));
            }
        }
        Ok(found)
    }

    /// Packets that passed a hook whose interface belongs to no endpoint.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn unhooked(&self, direction: Direction) -> Result<Counter> {
        self.counter(MapId::Counters, counter_unhooked(direction))
    }

    /// Packets of hooked pods that had lost their tag: at exit devices (egress), at other pods (ingress).
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn untagged(&self, direction: Direction) -> Result<Counter> {
        self.counter(MapId::Counters, counter_untagged(direction))
    }

    /// What a rule decided.
    ///
    /// # Errors
    /// The kernel's answer. Rules beyond the table share number 0.
    pub fn rule_hits(&self, rule: u32) -> Result<Counter> {
        let index = if rule < MapId::RuleHits.spec().entries { rule } else { 0 };
        self.counter(MapId::RuleHits, index)
    }

    /// What an endpoint counted. Slot 0 is the ring's own.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn endpoint_totals(&self, slot: u16) -> Result<EndpointTotals> {
        let each = self.maps[MapId::EpStat].per_cpu::<EndpointStat>(u32::from(slot))?;
        Ok(each.iter().fold(EndpointTotals::default(), |sum, cpu| EndpointTotals {
            flows: sum.flows.wrapping_add(cpu.flows),
            dropped: sum.dropped.wrapping_add(cpu.dropped),
            judged: sum.judged.wrapping_add(cpu.judged),
            suppressed: sum.suppressed.wrapping_add(cpu.suppressed),
            ring_full: sum.ring_full.wrapping_add(cpu.ring_full),
            verdicts_lost: sum.verdicts_lost.wrapping_add(cpu.verdicts_lost),
        }))
    }

    /// Flows that an endpoint holds now: IPv4, IPv6. It walks them all: for status, not for a loop.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn flow_counts(&self, slot: u16) -> Result<(usize, usize)> {
        Ok((self.flow_count(MapId::Flows4, slot)?, self.flow_count(MapId::Flows6, slot)?))
    }

    fn flow_count(&self, id: MapId, slot: u16) -> Result<usize> {
        let outer = &self.maps[id];
        let inner = outer.get(bytes_of(&u32::from(slot))).map_err(outer.failed("read"))?;
        let (Some(inner), Some(shape)) = (inner.and_then(|v| from_bytes(&v)), id.inner()) else {
            return Ok(0);
        };
        let failed = |source| Error::Map { action: "open", map: shape.name, source };
        let fd = bpf::map_by_id(inner).map_err(failed)?;
        let map = super::map::Map::new(fd, spec::Spec { entries: self.flow_entries, ..shape })?;
        Ok(map.elements().map_err(map.failed("read"))?.len())
    }

    fn counter(&self, map: MapId, index: u32) -> Result<Counter> {
        let each = self.maps[map].per_cpu::<Counter>(index)?;
        Ok(each.iter().fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
        }))
    }
}
