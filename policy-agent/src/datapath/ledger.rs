//! What this agent wrote into the maps that no plan covers: which interface is whose, and what an endpoint is made of.
//!
//! Programs only read these maps, so whatever differs from the ledger was written by somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use policy_common::abi::{ANY_SLOT, Cgroup, EndpointWord, LocalKey, endpoint_words, limits, meta_words};
use policy_engine::tables::{Difference, epoch_after};

use super::endpoint::{address_of, gone};
use super::error::Result;
use super::executor::Executor;
use super::map::{Map, NO_EXIST, bytes_of, from_bytes};
use super::spec::MapId;

/// Both arrays of flow maps.
pub(super) const FLOWS: [MapId; 2] = [MapId::Flows4, MapId::Flows6];

/// The ledger. Words of arrays that are 0 are left out.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    iface: BTreeMap<u32, u64>,
    iface_x: BTreeMap<u32, u64>,
    /// By slot and word.
    ep: BTreeMap<(u32, u32), u64>,
    meta: BTreeMap<u32, u64>,
    /// By the kernel's id.
    cgroups: BTreeMap<u64, Cgroup>,
    locals: BTreeMap<LocalKey, u32>,
    /// Kernel's ids of the flow maps, by slot.
    flows: BTreeMap<(MapId, u32), u32>,
    /// Places of flow maps that are being filled or emptied: the kernel waits for a grace period with each.
    moving: BTreeSet<(MapId, u32)>,
}

impl Ledger {
    /// An endpoint's place for flows is about to be filled or emptied.
    pub(super) fn begin_flows(&mut self, map: MapId, slot: u32) {
        self.flows.remove(&(map, slot));
        self.moving.insert((map, slot));
    }

    /// It holds this map now, or none.
    pub(super) fn end_flows(&mut self, map: MapId, slot: u32, id: Option<u32>) {
        self.moving.remove(&(map, slot));
        self.flows.extend(id.map(|id| ((map, slot), id)));
    }

    /// Flow maps by slot, without those whose place is changing.
    fn flows_of(&self, map: MapId) -> BTreeMap<u32, u32> {
        let of_map = self.flows.iter().filter(|((id, _), _)| *id == map);
        of_map.map(|((_, slot), held)| (*slot, *held)).collect()
    }

    fn moving_of(&self, map: MapId) -> BTreeSet<u32> {
        self.moving.iter().filter(|(id, _)| *id == map).map(|(_, slot)| *slot).collect()
    }

    /// A local address is gone.
    pub(super) fn drop_local(&mut self, key: &LocalKey) {
        self.locals.remove(key);
    }

    /// A word of an endpoint.
    pub(super) fn note_ep(&mut self, slot: u32, word: u32, value: u64) {
        put(&mut self.ep, (slot, word), value);
    }
}

fn put<K: Ord>(words: &mut BTreeMap<K, u64>, key: K, value: u64) {
    if value == 0 {
        words.remove(&key);
    } else {
        words.insert(key, value);
    }
}

impl Executor {
    /// Takes over what the maps hold: an earlier agent wrote it.
    pub(super) fn open_ledger(&self) -> Result<()> {
        let mut ledger = self.ledger();
        for place in 0..limits::INTERFACES {
            put(&mut ledger.iface, place, self.iface.load(place, 0)?);
        }
        for slot in 0..limits::ENDPOINTS {
            for word in 0..endpoint_words::COUNT {
                put(&mut ledger.ep, (slot, word), self.ep.load(slot, word)?);
            }
        }
        for word in 0..meta_words::COUNT {
            put(&mut ledger.meta, word, self.meta(word)?);
        }
        ledger.iface_x = read(&self.maps[MapId::IfaceX], from_bytes)?;
        ledger.locals = read(&self.maps[MapId::Locals], from_bytes)?;
        ledger.cgroups = read(&self.maps[MapId::Cgroups], from_bytes)?;
        for map in FLOWS {
            let held: BTreeMap<u32, u32> = read(&self.maps[map], from_bytes)?;
            ledger.flows.extend(held.into_iter().map(|(slot, id)| ((map, slot), id)));
        }
        Ok(())
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each change is one call, so a panic elsewhere leaves nothing half done.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn store_ep(&self, slot: u32, word: u32, value: u64) -> Result<()> {
        self.ledger().note_ep(slot, word, value);
        self.ep.store(slot, word, value)
    }

    pub(super) fn store_iface(&self, place: u32, value: u64) -> Result<()> {
        put(&mut self.ledger().iface, place, value);
        self.iface.store(place, 0, value)
    }

    pub(super) fn note_meta(&self, word: u32, value: u64) {
        put(&mut self.ledger().meta, word, value);
    }

    /// The word of an interface beside the array; `None` removes it.
    pub(super) fn store_iface_x(&self, ifindex: u32, word: Option<u64>) -> Result<()> {
        let map = &self.maps[MapId::IfaceX];
        let mut ledger = self.ledger();
        let Some(word) = word else {
            ledger.iface_x.remove(&ifindex);
            return gone(map, bytes_of(&ifindex));
        };
        map.insert(bytes_of(&ifindex), bytes_of(&word), super::map::ANY)
            .map_err(map.failed("insert into"))?;
        ledger.iface_x.insert(ifindex, word);
        Ok(())
    }

    /// The value of a local address; `None` removes it.
    pub(super) fn store_local(&self, key: &LocalKey, value: Option<u32>) -> Result<()> {
        let map = &self.maps[MapId::Locals];
        let mut ledger = self.ledger();
        let Some(value) = value else {
            ledger.locals.remove(key);
            return gone(map, bytes_of(key));
        };
        map.insert(bytes_of(key), bytes_of(&value), super::map::ANY).map_err(map.failed("insert into"))?;
        ledger.locals.insert(*key, value);
        Ok(())
    }

    /// The endpoint that a control group is; `None` removes it.
    pub(super) fn store_group(&self, id: u64, value: Option<Cgroup>) -> Result<()> {
        let map = &self.maps[MapId::Cgroups];
        let mut ledger = self.ledger();
        let Some(value) = value else {
            ledger.cgroups.remove(&id);
            return gone(map, bytes_of(&id));
        };
        map.insert(bytes_of(&id), bytes_of(&value), super::map::ANY).map_err(map.failed("insert into"))?;
        ledger.cgroups.insert(id, value);
        Ok(())
    }

    /// Compares the maps with the ledger and puts back what differs; hands back what that was. `planned`: slots whose
    /// word 0 is the plans'.
    ///
    /// Flow maps that were exchanged are replaced by empty ones: nobody knows what the others held.
    ///
    /// # Errors
    /// The kernel's answer; what was put back before stays so.
    pub fn mend_ledger(&self, planned: &BTreeSet<u16>) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        self.mend_endpoints(planned, &mut found)?;
        self.mend_locals(&mut found)?;
        self.mend_flows(&mut found)?;
        self.mend_interfaces(&mut found)?;
        self.mend_groups(&mut found)?;
        for word in 0..meta_words::COUNT {
            let wanted = self.ledger().meta.get(&word).copied().unwrap_or(0);
            let held = self.meta(word)?;
            if held != wanted {
                found.push(differs(MapId::Meta, format!("word {word}"), hex(held), hex(wanted)));
                self.set_meta(word, wanted)?;
            }
        }
        Ok(found)
    }

    fn mend_endpoints(&self, planned: &BTreeSet<u16>, found: &mut Vec<Difference>) -> Result<()> {
        let mut ledger = self.ledger();
        for slot in 0..limits::ENDPOINTS {
            let is_planned = u16::try_from(slot).is_ok_and(|slot| planned.contains(&slot));
            for word in 0..endpoint_words::COUNT {
                if word == endpoint_words::POLICY && is_planned {
                    continue;
                }
                let mut wanted = ledger.ep.get(&(slot, word)).copied().unwrap_or(0);
                let held = self.ep.load(slot, word)?;
                if held == wanted {
                    continue;
                }
                found.push(differs(MapId::Ep, format!("slot {slot} word {word}"), hex(held), hex(wanted)));
                if word == endpoint_words::POLICY {
                    // What was judged meanwhile must not be current again.
                    let (ours, seen) = (EndpointWord::unpack(wanted), EndpointWord::unpack(held));
                    let epoch = epoch_after(ours.epoch, seen.epoch).wrapping_add(1);
                    wanted = EndpointWord { epoch, ..ours }.pack();
                    ledger.note_ep(slot, word, wanted);
                }
                self.ep.store(slot, word, wanted)?;
            }
        }
        Ok(())
    }

    fn mend_locals(&self, found: &mut Vec<Difference>) -> Result<()> {
        let map = &self.maps[MapId::Locals];
        let ledger = self.ledger();
        let held: BTreeMap<LocalKey, u32> = read(map, from_bytes)?;
        mend_hash(map, MapId::Locals, &held, &ledger.locals, local_name, found)
    }

    fn mend_interfaces(&self, found: &mut Vec<Difference>) -> Result<()> {
        let ledger = self.ledger();
        for place in 0..limits::INTERFACES {
            let held = self.iface.load(place, 0)?;
            let wanted = ledger.iface.get(&place).copied().unwrap_or(0);
            if held != wanted {
                found.push(differs(MapId::Iface, format!("interface {place}"), hex(held), hex(wanted)));
                self.iface.store(place, 0, wanted)?;
            }
        }
        let map = &self.maps[MapId::IfaceX];
        let held: BTreeMap<u32, u64> = read(map, from_bytes)?;
        let name = |ifindex: &u32| format!("interface {ifindex}");
        mend_hash(map, MapId::IfaceX, &held, &ledger.iface_x, name, found)
    }

    fn mend_groups(&self, found: &mut Vec<Difference>) -> Result<()> {
        let map = &self.maps[MapId::Cgroups];
        let ledger = self.ledger();
        let held: BTreeMap<u64, Cgroup> = read(map, from_bytes)?;
        mend_hash(map, MapId::Cgroups, &held, &ledger.cgroups, |id| format!("control group {id}"), found)
    }

    fn mend_flows(&self, found: &mut Vec<Difference>) -> Result<()> {
        for id in FLOWS {
            let map = &self.maps[id];
            // Spare maps come and go on another thread: what changes while we read is left for the next time.
            let (before, mut moving) = {
                let ledger = self.ledger();
                (ledger.flows_of(id), ledger.moving_of(id))
            };
            let held: BTreeMap<u32, u32> = read(map, from_bytes)?;
            let wanted = {
                let ledger = self.ledger();
                moving.extend(ledger.moving_of(id));
                ledger.flows_of(id)
            };
            let slots: BTreeSet<u32> = held.keys().chain(wanted.keys()).copied().collect();
            let settled = |slot: &u32| !moving.contains(slot) && before.get(slot) == wanted.get(slot);
            for slot in slots.into_iter().filter(settled) {
                let (there, ours) = (held.get(&slot), wanted.get(&slot));
                if there == ours {
                    continue;
                }
                let name =
                    |map: Option<&u32>| map.map_or_else(|| "none".to_owned(), |id| format!("map {id}"));
                found.push(differs(id, format!("slot {slot}"), name(there), name(ours)));
                match (ours, u16::try_from(slot)) {
                    (Some(_), Ok(slot)) => self.install_flows(slot, [id].into_iter())?,
                    (None, _) | (Some(_), Err(_)) => gone(map, bytes_of(&slot))?,
                }
            }
        }
        Ok(())
    }
}

/// Takes out what is not in the ledger and puts in what is missing. A live element is never updated: a reader could see
/// halves of both.
fn mend_hash<K: super::map::Plain + Ord, V: super::map::Plain + PartialEq + Debug>(
    map: &Map,
    id: MapId,
    held: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    name: impl Fn(&K) -> String,
    found: &mut Vec<Difference>,
) -> Result<()> {
    let value = |value: Option<&V>| value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"));
    for (key, there) in held.iter().filter(|(key, there)| wanted.get(key) != Some(there)) {
        found.push(differs(id, name(key), value(Some(there)), value(wanted.get(key))));
        gone(map, bytes_of(key))?;
    }
    for (key, ours) in wanted.iter().filter(|(key, ours)| held.get(key) != Some(ours)) {
        if !held.contains_key(key) {
            found.push(differs(id, name(key), value(None), value(Some(ours))));
        }
        map.insert(bytes_of(key), bytes_of(ours), NO_EXIST).map_err(map.failed("insert into"))?;
    }
    Ok(())
}

fn read<K: Ord, V>(map: &Map, key: impl Fn(&[u8]) -> Option<K>) -> Result<BTreeMap<K, V>>
where
    V: super::map::Plain,
{
    let elements = map.elements().map_err(map.failed("read"))?;
    Ok(elements.iter().filter_map(|(k, v)| Some((key(k)?, from_bytes(v)?))).collect())
}

fn differs(map: MapId, key: String, found: String, wanted: String) -> Difference {
    Difference { map: map.spec().name, key, found, wanted }
}

fn hex(word: u64) -> String {
    format!("{word:#x}")
}

fn local_name(key: &LocalKey) -> String {
    let address: IpAddr = address_of(key);
    match key.slot {
        ANY_SLOT => format!("owner of {address}"),
        slot => format!("{address} of slot {slot}"),
    }
}
