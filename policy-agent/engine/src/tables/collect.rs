//! Cleaning up behind plans: merges classes, removes keys, frees numbers, raises epochs once more. No verdict changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::mirror::{Key, Mirror};
use crate::plan::Op;

/// Plans and applies to the mirror. `grace`: plans up to this number are out of every program's sight.
pub(crate) fn write(mirror: &mut Mirror, grace: u64, number: u64) -> Vec<Op> {
    let mut ops = Vec::new();
    let rows: Vec<u16> = {
        let in_flight = mirror.row_ids.in_flight(grace).filter_map(|r| u16::try_from(r).ok());
        mirror.live_rows().map(|r| r.0).chain(in_flight).collect()
    };
    let kinds = kinds(mirror, &rows);
    remove_keys(mirror, &kinds, number, &mut ops);
    merge_classes(mirror, &kinds, &mut ops);
    free(mirror, grace, &mut ops);
    // A program in flight may have cached a verdict of the old world under the new epoch's predecessor.
    let touched: Vec<u16> =
        mirror.touched.iter().filter(|(_, plan)| **plan <= grace).map(|(slot, _)| *slot).collect();
    for slot in touched {
        mirror.touched.remove(&slot);
        let Some(mut word) = mirror.endpoints.get(&slot).copied() else { continue };
        word.epoch = word.epoch.wrapping_add(1);
        mirror.hold_endpoint(slot, word);
        ops.push(Op::Endpoint { slot, word });
    }
    ops
}

/// Whether classes in use have equal columns in all rows in use.
pub(crate) fn mergeable(mirror: &Mirror) -> bool {
    let rows: Vec<u16> = mirror.live_rows().map(|r| r.0).collect();
    let mut columns = HashSet::new();
    mirror.classes().any(|class| !columns.insert(column(mirror, &rows, class)))
}

fn column(mirror: &Mirror, rows: &[u16], class: u16) -> Vec<u16> {
    rows.iter().map(|r| mirror.rows.get(r).map_or(0, |r| r.cell(class))).collect()
}

/// Classes in use and the first class with an equal column: what every row treats alike.
fn kinds(mirror: &Mirror, rows: &[u16]) -> HashMap<u16, u16> {
    let mut first: HashMap<Vec<u16>, u16> = HashMap::new();
    mirror
        .classes()
        .map(|class| (class, *first.entry(column(mirror, rows, class)).or_insert(class)))
        .collect()
}

/// Removes keys that are not wanted where the next longer match says the same. Longest prefixes go first.
fn remove_keys(mirror: &mut Mirror, kinds: &HashMap<u16, u16>, number: u64, ops: &mut Vec<Op>) {
    let same = |a: u16, b: u16| a == b || kinds.get(&a) == kinds.get(&b);
    let hosts: Vec<_> = mirror.hosts.iter().filter(|(_, p)| !p.wanted).map(|(a, p)| (*a, *p)).collect();
    for (address, place) in hosts {
        if same(place.class, mirror.prefix_class(address)) {
            mirror.remove(Key::Host(address), number, ops);
        }
    }
    let prefixes: Vec<_> =
        mirror.prefixes.iter().rev().filter(|(_, p)| !p.wanted).map(|(a, p)| (*a, *p)).collect();
    for (prefix, place) in prefixes {
        if same(place.class, mirror.parent_class(prefix)) {
            mirror.remove(Key::Prefix(prefix), number, ops);
        }
    }
}

/// Moves the keys of classes with equal columns to one of them: class 0 if it is among them, else the largest.
fn merge_classes(mirror: &mut Mirror, kinds: &HashMap<u16, u16>, ops: &mut Vec<Op>) {
    let mut groups: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
    for class in mirror.classes() {
        groups.entry(kinds.get(&class).copied().unwrap_or(class)).or_default().push(class);
    }
    let mut renamed: HashMap<u16, u16> = HashMap::new();
    for group in groups.values().filter(|g| g.len() > 1) {
        let largest = group.iter().copied().max_by_key(|c| (*c == 0, mirror.members(*c), Reverse(*c)));
        let Some(largest) = largest else { continue };
        renamed.extend(group.iter().filter(|c| **c != largest).map(|c| (*c, largest)));
    }
    if renamed.is_empty() {
        return;
    }
    let hosts = mirror.hosts.iter().map(|(a, p)| (Key::Host(*a), *p));
    let prefixes = mirror.prefixes.iter().map(|(a, p)| (Key::Prefix(*a), *p));
    let moves: Vec<_> = hosts
        .chain(prefixes)
        .filter_map(|(key, place)| renamed.get(&place.class).map(|to| (key, *to, place.flags)))
        .collect();
    for (key, class, flags) in moves {
        mirror.move_key(key, class, flags, ops);
    }
}

/// Frees numbers whose quarantine is over. Columns of freed classes become 0, so that their rule sets are free as well.
fn free(mirror: &mut Mirror, grace: u64, ops: &mut Vec<Op>) {
    for row in mirror.row_ids.release(grace) {
        if let Ok(row) = u16::try_from(row) {
            mirror.rows.remove(&row);
        }
    }
    let rows: Vec<u16> = mirror.live_rows().map(|r| r.0).collect();
    for class in mirror.class_ids.release(grace) {
        let Ok(class) = u16::try_from(class) else { continue };
        for row in &rows {
            mirror.set_cell(*row, class, 0, ops);
        }
    }
    mirror.slot_ids.release(grace);
    mirror.sets.release(grace);
}
