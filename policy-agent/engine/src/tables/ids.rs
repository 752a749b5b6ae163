//! Numbers of table entries, reused only when no program in flight and no event can still mean their former owner.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers from `first` to `limit - 1`, lowest first.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    first: u32,
    limit: u32,
    next: u32,
    free: BTreeSet<u32>,
    /// Number -> plan that took away its last reference.
    retired: BTreeMap<u32, u64>,
}

impl Ids {
    /// All numbers free.
    pub(crate) fn new(first: u32, limit: u32) -> Self {
        Self { first, limit, next: first, free: BTreeSet::new(), retired: BTreeMap::new() }
    }

    /// Takes this many numbers, or none at all.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if self.available() < count {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.free.pop_first().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            }));
        }
        Some(taken)
    }

    /// Gives back numbers that were taken but never written.
    pub(crate) fn give_back(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.free.extend(ids);
    }

    /// Marks a number that was found in use.
    pub(crate) fn occupy(&mut self, id: u32) {
        while self.next <= id && self.next < self.limit {
            self.free.insert(self.next);
            self.next += 1;
        }
        self.free.remove(&id);
        self.retired.remove(&id);
    }

    /// Whether a number can ever be taken.
    pub(crate) fn holds(&self, id: u32) -> bool {
        (self.first..self.limit).contains(&id)
    }

    /// Puts a number in quarantine.
    pub(crate) fn retire(&mut self, id: u32, plan: u64) {
        self.retired.insert(id, plan);
    }

    /// Takes a number out of quarantine: its content is wanted again.
    pub(crate) fn revive(&mut self, id: u32) {
        self.retired.remove(&id);
    }

    /// Frees the numbers whose quarantine is over.
    pub(crate) fn release(&mut self, grace: u64) -> Vec<u32> {
        let over: Vec<u32> =
            self.retired.iter().filter(|(_, plan)| **plan <= grace).map(|(id, _)| *id).collect();
        for id in &over {
            self.retired.remove(id);
            // Somebody else may have written a number that there is not.
            if self.holds(*id) {
                self.free.insert(*id);
            }
        }
        over
    }

    /// Numbers in quarantine that programs in flight may still use: retired after `grace`.
    pub(crate) fn in_flight(&self, grace: u64) -> impl Iterator<Item = u32> {
        self.retired.iter().filter(move |(_, plan)| **plan > grace).map(|(id, _)| *id)
    }

    /// Numbers that can be taken.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.limit.saturating_sub(self.next) as usize
    }

    /// Numbers in quarantine.
    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Whether a number is in quarantine.
    pub(crate) fn is_retired(&self, id: u32) -> bool {
        self.retired.contains_key(&id)
    }
}

/// Stretches of an array.
#[derive(Clone, Debug)]
pub(crate) struct Stretches {
    free: BTreeMap<u32, u32>,
}

impl Stretches {
    /// All of `size` free.
    pub(crate) fn new(size: u32) -> Self {
        Self { free: BTreeMap::from([(0, size)]) }
    }

    /// Takes the first stretch that is long enough. Nothing is taken for length 0.
    pub(crate) fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (base, size) = self.free.iter().find(|(_, size)| **size >= length).map(|(b, s)| (*b, *s))?;
        self.free.remove(&base);
        if size > length {
            self.free.insert(base + length, size - length);
        }
        Some(base)
    }

    /// Marks a stretch that was found in use. Returns false if a part of it is not free.
    pub(crate) fn occupy(&mut self, base: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((start, size)) = self.free.range(..=base).next_back().map(|(b, s)| (*b, *s)) else {
            return false;
        };
        let (end, free_end) = (u64::from(base) + u64::from(length), u64::from(start) + u64::from(size));
        if end > free_end {
            return false;
        }
        self.free.remove(&start);
        if base > start {
            self.free.insert(start, base - start);
        }
        if free_end > end {
            self.free.insert(base + length, start + size - base - length);
        }
        true
    }

    /// Frees a stretch.
    pub(crate) fn put(&mut self, mut base: u32, mut length: u32) {
        if length == 0 {
            return;
        }
        if let Some((before, size)) = self.free.range(..base).next_back().map(|(b, s)| (*b, *s))
            && before + size == base
        {
            self.free.remove(&before);
            base = before;
            length += size;
        }
        if let Some(size) = self.free.remove(&(base + length)) {
            length += size;
        }
        self.free.insert(base, length);
    }

    /// Free places.
    pub(crate) fn available(&self) -> u32 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wait_for_their_grace_period() {
        let mut ids = Ids::new(2, 5);
        assert_eq!(ids.take(2), Some(vec![2, 3]));
        assert_eq!(ids.take(2), None);
        ids.retire(2, 7);
        assert_eq!(ids.take(1), Some(vec![4]));
        assert_eq!((ids.available(), ids.retired()), (0, 1));
        assert!(ids.release(6).is_empty());
        assert_eq!(ids.in_flight(6).collect::<Vec<_>>(), [2]);
        assert_eq!(ids.release(7), [2]);
        assert_eq!(ids.take(1), Some(vec![2]));
        let mut ids = Ids::new(1, 10);
        ids.occupy(4);
        assert_eq!(ids.take(4), Some(vec![1, 2, 3, 5]));
        ids.occupy(70);
        ids.retire(70, 1);
        ids.release(1);
        assert_eq!(ids.take(5), None, "number 70 does not exist");
    }

    #[test]
    fn stretches_grow_together() {
        let mut stretches = Stretches::new(10);
        let (a, b) = (stretches.take(3).unwrap(), stretches.take(4).unwrap());
        assert_eq!((a, b), (0, 3));
        assert_eq!(stretches.take(4), None);
        stretches.put(a, 3);
        assert_eq!(stretches.take(4), None);
        stretches.put(b, 4);
        assert_eq!(stretches.available(), 10);
        assert!(stretches.occupy(4, 3));
        assert!(!stretches.occupy(6, 2));
        assert_eq!(stretches.take(4), Some(0));
        assert_eq!(stretches.take(3), Some(7));
        assert_eq!(stretches.available(), 0);
    }
}
