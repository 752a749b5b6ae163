//! Every key with the class it has and the class it shall have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::abi::host_flags;

use super::mirror::{Key, Mirror, Place, longest};
use crate::desired::{Desired, HostTarget};

/// A key of the tables, of the desired world, or of both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined {
    /// The key.
    pub(crate) key: Key,
    /// Where it is in the tables.
    pub(crate) place: Option<Place>,
    /// Class that judges it now.
    pub(crate) class: u16,
    /// Desired class: a representative of those with equal columns.
    pub(crate) target: u32,
    /// Desired flags.
    pub(crate) flags: u16,
    /// Whether the desired world has this key.
    pub(crate) wanted: bool,
}

impl Joined {
    /// Whether the flags in place are those wanted.
    pub(crate) fn same_flags(&self) -> bool {
        self.place.is_some_and(|p| p.flags == self.flags)
    }
}

/// All keys, and the distinct pairs of classes.
#[derive(Debug)]
pub(crate) struct Join {
    /// Keys: addresses, then prefixes, sorted each.
    pub(crate) keys: Vec<Joined>,
    /// How many keys have each (class, target). (0, 0) is always there: it stands for all addresses without a key.
    pub(crate) pairs: BTreeMap<(u16, u32), usize>,
}

impl Join {
    /// Joins the tables with a desired world.
    pub(crate) fn new(mirror: &Mirror, desired: &Desired) -> Self {
        let targets = Targets::new(desired);
        let mut keys = Vec::with_capacity(mirror.hosts.len() + mirror.prefixes.len());
        merge(
            mirror.hosts.iter().map(|(a, p)| (*a, *p)),
            desired.hosts.iter().copied(),
            |address, place, target: Option<HostTarget>| {
                keys.push(Joined {
                    key: Key::Host(address),
                    place,
                    class: class_of(place.as_ref(), || mirror.prefix_class(address)),
                    target: targets.same(target.map_or_else(|| targets.host(address), |t| t.class)),
                    flags: target.map_or(kept_flags(place.as_ref()), |t| t.flags),
                    wanted: target.is_some(),
                });
            },
        );
        merge(
            mirror.prefixes.iter().map(|(p, place)| (*p, *place)),
            desired.prefixes.iter().copied(),
            |prefix, place, target: Option<u32>| {
                keys.push(Joined {
                    key: Key::Prefix(prefix),
                    place,
                    class: place.map_or_else(|| mirror.parent_class(prefix), |p| p.class),
                    target: targets.same(target.unwrap_or_else(|| targets.parent(prefix))),
                    flags: 0,
                    wanted: target.is_some(),
                });
            },
        );
        let mut pairs = BTreeMap::from([((0, 0), 1)]);
        // Neighbours tend to be alike.
        for alike in keys.chunk_by(|a, b| (a.class, a.target) == (b.class, b.target)) {
            *pairs.entry((alike[0].class, alike[0].target)).or_default() += alike.len();
        }
        Self { keys, pairs }
    }
}

/// Class of an address.
fn class_of(place: Option<&Place>, by_prefix: impl Fn() -> u16) -> u16 {
    place.map_or_else(by_prefix, |place| place.class)
}

/// Flags of an entry that is not wanted: facts that change no verdict stay until it is removed. What is deferred to the
/// exit is judged there by the same row.
fn kept_flags(place: Option<&Place>) -> u16 {
    place.map_or(0, |p| p.flags & (host_flags::POD | host_flags::FRONTEND))
}

/// Calls `each` for every key of two sorted lists.
fn merge<K: Ord + Copy, A, B>(
    left: impl Iterator<Item = (K, A)>,
    right: impl Iterator<Item = (K, B)>,
    mut each: impl FnMut(K, Option<A>, Option<B>),
) {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return,
        };
        let from_left = if order.is_le() { left.next() } else { None };
        let from_right = if order.is_ge() { right.next() } else { None };
        let Some(key) = from_left.as_ref().map(|l| l.0).or_else(|| from_right.as_ref().map(|r| r.0)) else {
            return;
        };
        each(key, from_left.map(|l| l.1), from_right.map(|r| r.1));
    }
}

/// Desired classes by address, and which of them no row tells apart.
struct Targets<'a> {
    desired: &'a Desired,
    lengths: [BTreeSet<u8>; 2],
    same: Vec<u32>,
}

impl<'a> Targets<'a> {
    fn new(desired: &'a Desired) -> Self {
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        for (prefix, _) in &desired.prefixes {
            lengths[usize::from(prefix.addr().is_ipv6())].insert(prefix.prefix_len());
        }
        let mut first: HashMap<Vec<u32>, u32> = HashMap::new();
        let same = (0..desired.classes)
            .map(|class| {
                let column = desired.rows.iter().map(|r| r.cells[class as usize]).collect();
                *first.entry(column).or_insert(class)
            })
            .collect();
        Self { desired, lengths, same }
    }

    /// The first class that every row treats like this one.
    fn same(&self, class: u32) -> u32 {
        self.same.get(class as usize).copied().unwrap_or(0)
    }

    fn get(&self, prefix: &IpNet) -> Option<u32> {
        let prefixes = &self.desired.prefixes;
        prefixes.binary_search_by_key(prefix, |p| p.0).ok().map(|i| prefixes[i].1)
    }

    fn host(&self, address: IpAddr) -> u32 {
        let lengths = self.lengths[usize::from(address.is_ipv6())].iter().rev().copied();
        longest(address, lengths, |p| self.get(p)).unwrap_or(0)
    }

    fn parent(&self, prefix: IpNet) -> u32 {
        let lengths = &self.lengths[usize::from(prefix.addr().is_ipv6())];
        let shorter = lengths.range(..prefix.prefix_len()).rev().copied();
        longest(prefix.addr(), shorter, |p| self.get(p)).unwrap_or(0)
    }
}
