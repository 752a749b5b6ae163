//! The cells of rows: for each class, the rules that match it, flattened to a rule set.

use std::collections::HashMap;
use std::sync::Arc;

use super::atoms::Target;
use super::hosts::{Classes, Signature};
use super::policies::Row;
use super::sets::{Match, flatten};
use super::tiers;
use crate::desired::SetContent;
use crate::model::ContainerPort;

/// Distinct rule sets; 0 is the empty one.
#[derive(Clone, Debug)]
pub(crate) struct Sets {
    /// By number.
    pub(crate) list: Vec<Arc<SetContent>>,
    ids: HashMap<Arc<SetContent>, u32>,
}

impl Default for Sets {
    fn default() -> Self {
        let none = Arc::new(SetContent::default());
        Self { list: vec![none.clone()], ids: HashMap::from([(none, 0)]) }
    }
}

impl Sets {
    fn id(&mut self, set: SetContent) -> u32 {
        if set.is_empty() {
            return 0;
        }
        if let Some(id) = self.ids.get(&set) {
            return *id;
        }
        let id = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let set = Arc::new(set);
        self.list.push(set.clone());
        self.ids.insert(set, id);
        id
    }
}

/// Cells of one row, and what gave them: the rules that match a class decide its cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cells {
    /// Rule set by class.
    pub(crate) cells: Vec<u32>,
    /// Intervals that the largest rule set would need, if that is too many.
    pub(crate) oversized: Option<u32>,
    by_rules: HashMap<(Vec<u32>, Vec<ContainerPort>), u32>,
}

impl Cells {
    /// Fills the cells of classes that are new.
    pub(crate) fn extend(&mut self, row: &Row, classes: &Classes, sets: &mut Sets, intervals_per_set: u32) {
        for signature in &classes.list[self.cells.len()..] {
            let itself = self.cell(row, signature, sets, intervals_per_set);
            let cell = match &signature.front {
                // Where a packet comes from, nothing is translated.
                Some(front) if row.names_of_class() => {
                    // Classes of backends have lower numbers.
                    let of = |class: u32| -> &SetContent {
                        let cell = self.cells.get(class as usize).copied().unwrap_or(0);
                        &sets.list[cell as usize]
                    };
                    let set = front.set(&sets.list[itself as usize], of);
                    self.set(set, sets, intervals_per_set)
                }
                Some(_) | None => itself,
            };
            self.cells.push(cell);
        }
    }

    fn cell(&mut self, row: &Row, signature: &Signature, sets: &mut Sets, limit: u32) -> u32 {
        let matching = |target| match target {
            Target::All => true,
            Target::Atom(id) => signature.atoms.binary_search(&id).is_ok(),
            Target::Nothing => false,
        };
        let rules: Vec<u32> =
            (0..).zip(&row.rules).filter(|(_, r)| matching(r.target)).map(|(i, _)| i).collect();
        if rules.is_empty() && !row.spec.policies.is_empty() {
            return 0;
        }
        // The destination gives port names their numbers: the row's own pod for ingress, the class for egress.
        let names = if row.names_of_class() { &signature.names } else { &row.spec.ports };
        let key = (rules, if row.names_of_class() { names.clone() } else { Vec::new() });
        if let Some(cell) = self.by_rules.get(&key) {
            return *cell;
        }
        let matches = key.0.iter().map(|i| &row.rules[*i as usize]);
        let set = if row.spec.cluster.is_empty() {
            flatten(matches.map(|r| Match { ports: row.ports(r), outcome: r.outcome }), names)
        } else {
            tiers::set(row, &matches.collect::<Vec<_>>(), names)
        };
        let cell = self.set(set, sets, limit);
        self.by_rules.insert(key, cell);
        cell
    }

    /// The number of a rule set; 0 for one that is too large.
    fn set(&mut self, set: SetContent, sets: &mut Sets, limit: u32) -> u32 {
        let longest = set.intervals.iter().map(Vec::len).max().unwrap_or(0);
        let longest = u32::try_from(longest).unwrap_or(u32::MAX);
        if longest > limit {
            // Whoever installs this all the same lets nothing pass here.
            self.oversized = Some(self.oversized.unwrap_or(0).max(longest));
            return 0;
        }
        sets.id(set)
    }
}
