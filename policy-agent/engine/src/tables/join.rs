//! Every key with the class it has and the class it shall have.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

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

    /// Whether at most its class can be another one than it has. So it is with nearly all keys at nearly all plans.
    fn is_settled(&self) -> bool {
        self.wanted && self.same_flags() && self.place.is_some_and(|place| place.wanted)
    }

    fn pair(&self) -> Pair {
        (self.class, self.target)
    }
}

/// {class it has, class it shall have}
pub(crate) type Pair = (u16, u32);

/// Keys of one family.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    /// While the plan is carried out.
    pub(crate) during: usize,
    /// In the desired world.
    pub(crate) after: usize,
    /// Not wanted by an earlier plan either.
    pub(crate) waiting: usize,
}

/// All keys, by what is to be done with them, and the distinct pairs of classes.
#[derive(Debug)]
pub(crate) struct Join<'a> {
    targets: Targets<'a>,
    /// Keys that come, go, or get other flags; addresses, then prefixes, sorted each. Of all others nothing is kept but
    /// their pairs: there are ten thousands of them.
    pub(crate) special: Vec<Joined>,
    /// How many keys have each pair. (0, 0) is always there: it stands for all addresses without a key.
    pub(crate) pairs: BTreeMap<Pair, usize>,
    /// Pairs of wanted keys.
    pub(crate) wanted: BTreeSet<Pair>,
    /// Pairs of prefixes that are not special.
    pub(crate) of_prefixes: BTreeSet<Pair>,
    of_hosts: BTreeSet<Pair>,
    /// Addresses by family.
    pub(crate) hosts: [Count; 2],
    /// Prefixes by family.
    pub(crate) prefixes: [Count; 2],
}

impl<'a> Join<'a> {
    /// Joins the tables with a desired world. `known`: what is known of the addresses since an earlier time.
    pub(crate) fn new(mirror: &Mirror, desired: &'a Desired, known: &mut Option<Settled>) -> Self {
        let targets = Targets::new(desired);
        let mut special = Vec::new();
        let (of_hosts, hosts) = match known.take_if(|known| known.is_of(mirror, desired)) {
            Some(settled) => {
                let found = (settled.pairs.clone(), settled.counts);
                *known = Some(settled);
                found
            }
            None => {
                let mut found = Found::default();
                targets.hosts(mirror, |key, raw| found.add(key, raw, key.key.is_six(), &mut special));
                let found = (found.tally.finish(), found.counts);
                *known = special.is_empty().then(|| Settled {
                    of: Arc::downgrade(&desired.hosts),
                    version: mirror.version,
                    pairs: found.0.clone(),
                    counts: found.1,
                });
                found
            }
        };
        let mut found = Found::default();
        targets.prefixes(mirror, |key, raw| found.add(key, raw, key.key.is_six(), &mut special));
        let (of_prefixes, prefixes) = (found.tally.finish(), found.counts);
        let [of_hosts, of_prefixes] = [of_hosts, of_prefixes].map(|of| targets.unite(of));
        let mut pairs = BTreeMap::from([((0, 0), 1)]);
        let settled = of_hosts.iter().chain(&of_prefixes).map(|(pair, count)| (*pair, *count));
        for (pair, count) in settled.chain(special.iter().map(|key| (key.pair(), 1))) {
            *pairs.entry(pair).or_default() += count;
        }
        let of_special = special.iter().filter(|key| key.wanted).map(Joined::pair);
        let wanted = of_hosts.keys().chain(of_prefixes.keys()).copied().chain(of_special).collect();
        let [of_hosts, of_prefixes] = [of_hosts, of_prefixes].map(|of| of.into_keys().collect());
        Self { targets, special, pairs, wanted, of_prefixes, of_hosts, hosts, prefixes }
    }

    /// Special keys and those of these pairs, in the same order.
    pub(crate) fn keys(&self, mirror: &Mirror, moved: impl Fn(Pair) -> bool) -> Cow<'_, [Joined]> {
        if !self.of_hosts.iter().chain(&self.of_prefixes).any(|pair| moved(*pair)) {
            return Cow::Borrowed(&self.special);
        }
        let mut keys = Vec::new();
        let mut each = |key: Joined, _| {
            if !key.is_settled() || moved(key.pair()) {
                keys.push(key);
            }
        };
        self.targets.hosts(mirror, &mut each);
        self.targets.prefixes(mirror, &mut each);
        Cow::Owned(keys)
    }

    /// New keys.
    pub(crate) fn new_keys(&self) -> usize {
        self.special.iter().filter(|key| key.wanted && key.place.is_none()).count()
    }
}

/// What a walk over all addresses has found when none was special: most changes of policy move no address, and need no
/// other walk.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    /// Identity of the desired addresses: whoever changes them puts them elsewhere as long as this is held.
    of: Weak<Vec<(IpAddr, HostTarget)>>,
    /// Version of the addresses in the tables.
    version: u64,
    /// Pairs with the desired class itself, whichever are alike.
    pairs: BTreeMap<Pair, usize>,
    counts: [Count; 2],
}

impl Settled {
    fn is_of(&self, mirror: &Mirror, desired: &Desired) -> bool {
        self.version == mirror.version && std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(&desired.hosts))
    }
}

/// Keys of one kind, while they are walked over.
#[derive(Debug, Default)]
struct Found {
    tally: Tally,
    counts: [Count; 2],
}

impl Found {
    fn add(&mut self, key: Joined, raw: u32, six: bool, special: &mut Vec<Joined>) {
        let count = &mut self.counts[usize::from(six)];
        count.during += 1;
        count.after += usize::from(key.wanted);
        if key.is_settled() {
            self.tally.add((key.class, raw));
            return;
        }
        count.waiting += usize::from(!key.wanted && key.place.is_some_and(|place| !place.wanted));
        special.push(key);
    }
}

/// Counts pairs: nearly always, a class has one target.
#[derive(Debug, Default)]
struct Tally {
    /// By class: the target that it had last, and how often in a row.
    last: Vec<(u32, usize)>,
    pairs: BTreeMap<Pair, usize>,
}

impl Tally {
    fn add(&mut self, (class, target): Pair) {
        let at = usize::from(class);
        if self.last.len() <= at {
            self.last.resize(at + 1, (0, 0));
        }
        if self.last[at].0 != target {
            let (before, count) = std::mem::replace(&mut self.last[at], (target, 0));
            self.put((class, before), count);
        }
        self.last[at].1 += 1;
    }

    fn put(&mut self, pair: Pair, count: usize) {
        if count > 0 {
            *self.pairs.entry(pair).or_default() += count;
        }
    }

    fn finish(&mut self) -> BTreeMap<Pair, usize> {
        for (class, (target, count)) in (0..).zip(std::mem::take(&mut self.last)) {
            self.put((class, target), count);
        }
        std::mem::take(&mut self.pairs)
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
#[derive(Debug)]
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
        Self { desired, lengths, same: alike(desired) }
    }

    /// Calls `each` for every address of the tables or of the desired world, in order, also with its class there.
    fn hosts(&self, mirror: &Mirror, mut each: impl FnMut(Joined, u32)) {
        merge(
            mirror.hosts.iter().map(|(a, p)| (*a, *p)),
            self.desired.hosts.iter().copied(),
            |address, place, target: Option<HostTarget>| {
                let raw = target.map_or_else(|| self.host(address), |t| t.class);
                let key = Joined {
                    key: Key::Host(address),
                    place,
                    class: class_of(place.as_ref(), || mirror.prefix_class(address)),
                    target: self.same(raw),
                    flags: target.map_or(kept_flags(place.as_ref()), |t| t.flags),
                    wanted: target.is_some(),
                };
                each(key, raw);
            },
        );
    }

    /// The same for prefixes.
    fn prefixes(&self, mirror: &Mirror, mut each: impl FnMut(Joined, u32)) {
        merge(
            mirror.prefixes.iter().map(|(p, place)| (*p, *place)),
            self.desired.prefixes.iter().copied(),
            |prefix, place, target: Option<u32>| {
                let raw = target.unwrap_or_else(|| self.parent(prefix));
                let key = Joined {
                    key: Key::Prefix(prefix),
                    place,
                    class: place.map_or_else(|| mirror.parent_class(prefix), |p| p.class),
                    target: self.same(raw),
                    flags: 0,
                    wanted: target.is_some(),
                };
                each(key, raw);
            },
        );
    }

    /// The pairs with one target for all that are alike.
    fn unite(&self, pairs: BTreeMap<Pair, usize>) -> BTreeMap<Pair, usize> {
        let mut united = BTreeMap::new();
        for ((class, raw), count) in pairs {
            *united.entry((class, self.same(raw))).or_default() += count;
        }
        united
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

/// For each class the first one with an equal column.
fn alike(desired: &Desired) -> Vec<u32> {
    let mut hashes = vec![0_u64; desired.classes as usize];
    for row in &desired.rows {
        for (hash, cell) in hashes.iter_mut().zip(&row.cells) {
            *hash = (*hash ^ u64::from(*cell)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
    let equal = |a: u32, b: u32| desired.rows.iter().all(|r| r.cells[a as usize] == r.cells[b as usize]);
    let mut first: HashMap<u64, u32> = HashMap::with_capacity(hashes.len());
    // First ones whose hash another one had before.
    let mut others: Vec<u32> = Vec::new();
    let of = |(class, hash): (u32, u64)| {
        let found = *first.entry(hash).or_insert(class);
        if equal(found, class) {
            return found;
        }
        let found = others.iter().copied().find(|other| equal(*other, class));
        found.unwrap_or_else(|| {
            others.push(class);
            class
        })
    };
    (0..).zip(hashes).map(of).collect()
}
