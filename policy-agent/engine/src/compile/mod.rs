//! Compiles the world to tables: atoms, classes, rows, rule sets.
//!
//! ```text
//! policies, local pods -> Selection (rows, atoms) -> Blocks (atoms of each prefix; nodes that rules name)
//! pods, namespaces     -> Groups (atoms of each label set)  -> Classes of addresses -> cells of each row
//! ```
//! Nothing here knows what the kernel holds; every stage is kept as long as its inputs are the same objects.

mod atoms;
mod blocks;
mod fronts;
mod groups;
mod hosts;
mod policies;
mod rows;
mod sets;
mod share;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use self::atoms::{AtomId, Atoms};
use self::blocks::Blocks;
use self::groups::Groups;
use self::hosts::{Classes, Memo, Walk};
use self::policies::{Apart, Policies, Selection};
use self::rows::{Cells, Sets};
pub use self::share::Share;
use crate::desired::{Desired, DesiredRow, Endpoint, HostTarget, RowChoice};
use crate::limits::Limits;
use crate::model::{ClusterPolicy, Namespace, Node, ObjectKey, Pod, Policy};
use crate::rule_ids::RuleIds;
use crate::world::World;

/// Atoms that nothing names any more may be this many, and half of all, before everything is evaluated afresh.
const DEAD_ATOMS: usize = 1024;
/// The same of classes and rule sets.
const LITTER: usize = 1024;

/// The compiler with what it remembers of the last world.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    limits: Limits,
    inputs: Option<Inputs>,
    atoms: Atoms,
    policies: Policies,
    groups: Groups,
    selection: Arc<Selection>,
    blocks: Blocks,
    /// Nodes whose addresses are among the blocks.
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    classes: Classes,
    memo: Memo,
    sets: Sets,
    cells: Vec<Cells>,
    /// Classes and rule sets when they were last those of one world.
    clean: [usize; 2],
    closed: BTreeSet<Arc<str>>,
    hosts: Arc<Vec<(IpAddr, HostTarget)>>,
    /// Whether addresses of Services are among them.
    deferring: bool,
    /// World whose addresses `hosts` are, under the classes of now.
    walked: Option<World>,
}

/// What the selection was made from.
#[derive(Clone, Debug)]
struct Inputs {
    policies: OrdMap<ObjectKey, Arc<Policy>>,
    cluster_policies: OrdMap<Arc<str>, Arc<ClusterPolicy>>,
    /// Where policies of the cluster select by their labels.
    namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    endpoints: Vec<Endpoint>,
    closed: BTreeSet<Arc<str>>,
    pods: Vec<Option<Arc<Pod>>>,
}

impl Compiler {
    /// A compiler for tables of these sizes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Namespaces whose endpoints are closed in the directions that policies judge; the empty one stands for all pods that
    /// policies of the cluster are about.
    pub fn close(&mut self, owners: BTreeSet<Arc<str>>) {
        self.closed = owners;
    }

    /// Compiles the world for these endpoints. Equal worlds give equal tables, whatever was compiled before, up to the
    /// numbers of classes and rule sets.
    pub fn compile(&mut self, world: &World, endpoints: &[Endpoint], ids: &mut RuleIds) -> Desired {
        let regrouped = self.groups.refresh(world) | self.groups.trim(world.pods.len());
        if self.atoms.len() > DEAD_ATOMS + 2 * self.selection.live.len() {
            *self = Self { closed: std::mem::take(&mut self.closed), ..Self::new(self.limits) };
        }
        let apart = self.select(world, endpoints, ids);
        let mut afresh = regrouped || self.is_littered();
        if apart == Apart::Anyhow || self.names_other_nodes(world) {
            self.nodes = world.nodes.clone();
            self.blocks = Blocks::new(&self.atoms, &self.selection.live, &self.nodes);
            afresh = true;
        }
        if afresh {
            self.restart_classes();
        }
        let moved = match &apart {
            Apart::ByPods(atoms) if !afresh => self.rename(world, atoms),
            Apart::ByPods(_) | Apart::AsBefore | Apart::Anyhow => Vec::new(),
        };
        let deferring = self.selection.endpoints.iter().any(|e| e.egress != RowChoice::Open);
        if std::mem::replace(&mut self.deferring, deferring) != deferring {
            self.walked = None;
        }
        if self.walked.as_ref().is_some_and(|earlier| earlier.service_mode != world.service_mode) {
            self.walked = None;
        }
        let walk = Walk {
            world,
            deferring,
            atoms: &self.atoms,
            selection: &self.selection,
            blocks: &self.blocks,
            groups: &mut self.groups,
            classes: &mut self.classes,
            memo: &mut self.memo,
            judge_themselves: hosts::judge_themselves(world, &self.selection),
        };
        match &self.walked {
            Some(earlier) => hosts::update(&mut self.hosts, walk.changed(earlier, moved)),
            None => self.hosts = Arc::new(walk.all().into_iter().collect()),
        }
        self.walked = Some(world.clone());
        // Else it would keep the pods of an earlier world alive.
        self.groups.roster(world);
        let desired = self.desired();
        if afresh {
            self.clean = [self.classes.list.len(), self.sets.list.len()];
        }
        desired
    }

    /// What each namespace's policies take of the shared tables in the world last compiled.
    #[must_use]
    pub fn shares(&self, desired: &Desired) -> BTreeMap<Arc<str>, Share> {
        share::shares(desired, &self.selection, &self.classes)
    }

    /// Selects anew what something changed for. Hands back in what rules tell addresses apart otherwise than before.
    fn select(&mut self, world: &World, endpoints: &[Endpoint], ids: &mut RuleIds) -> Apart {
        let inputs = Inputs::of(world, endpoints, &self.closed);
        if self.inputs.as_ref() == Some(&inputs) {
            return Apart::AsBefore;
        }
        let (atoms, closed) = (&mut self.atoms, &self.closed);
        let selection = self.policies.select(world, &inputs.endpoints, closed, atoms, ids);
        let first = self.inputs.replace(inputs).is_none();
        // The old selection keeps its policies alive, so an equal pointer is the same policy.
        if !first && self.selection.is_same(&selection) {
            return Apart::AsBefore;
        }
        let apart = if first { Apart::Anyhow } else { self.selection.apart(&selection, &self.atoms) };
        self.cells = self.selection.carry(std::mem::take(&mut self.cells), &selection);
        self.selection = Arc::new(selection);
        apart
    }

    /// Pods that these atoms name are told apart otherwise now. Hands back their addresses.
    fn rename(&mut self, world: &World, changed: &BTreeSet<AtomId>) -> Vec<IpAddr> {
        let roster = self.groups.roster(world);
        let named = self.groups.named(changed, &self.atoms, world);
        self.memo.rename(&self.selection, self.atoms.len(), &named);
        let is_named = |group: usize| named.get(group).copied().unwrap_or(true);
        roster.iter().filter(|(_, group, _)| is_named(*group)).map(|entry| entry.0).collect()
    }

    /// Whether most classes or rule sets are those of earlier worlds.
    fn is_littered(&self) -> bool {
        let now = [self.classes.list.len(), self.sets.list.len()];
        now.iter().zip(&self.clean).any(|(now, clean)| *now > 2 * clean + LITTER)
    }

    /// Whether rules name nodes, and those are others by now.
    fn names_other_nodes(&self, world: &World) -> bool {
        let named = || self.selection.live.iter().any(|id| !self.atoms.get(*id).nodes.is_empty());
        !self.nodes.ptr_eq(&world.nodes) && named()
    }

    fn restart_classes(&mut self) {
        self.walked = None;
        self.classes = Classes::default();
        self.memo = Memo::new(&self.selection, &self.blocks, &self.atoms, &mut self.classes);
        self.sets = Sets::default();
        self.cells = vec![Cells::default(); self.selection.rows.len()];
    }

    fn desired(&mut self) -> Desired {
        let mut desired = Desired { hosts: self.hosts.clone(), ..Desired::default() };
        let limit = self.limits.intervals_per_set;
        desired.intervals_per_set = limit;
        for (row, cells) in self.selection.rows.iter().zip(&mut self.cells) {
            cells.extend(row, &self.classes, &mut self.sets, limit);
            if let Some(needed) = cells.oversized {
                // Where tenants have a part in it they answer for it: one of them must not close the others.
                let owner = row.spec.owners().next().unwrap_or_else(|| "".into());
                desired.oversized.push((owner, needed));
            }
            desired.rows.push(DesiredRow { spec: row.spec.clone(), cells: cells.cells.clone() });
        }
        desired.prefixes =
            self.blocks.prefixes.iter().map(|(prefix, s)| (*prefix, self.memo.of_block(*s))).collect();
        desired.sets.clone_from(&self.sets.list);
        desired.endpoints.clone_from(&self.selection.endpoints);
        desired.classes = u32::try_from(self.classes.list.len()).unwrap_or(u32::MAX);
        desired
    }
}

impl Inputs {
    fn of(world: &World, endpoints: &[Endpoint], closed: &BTreeSet<Arc<str>>) -> Self {
        Self {
            policies: world.policies.clone(),
            cluster_policies: world.cluster_policies.clone(),
            namespaces: world.namespaces.clone(),
            endpoints: endpoints.to_vec(),
            closed: closed.clone(),
            pods: endpoints.iter().map(|e| world.pods.get(&e.pod).cloned()).collect(),
        }
    }
}

impl PartialEq for Inputs {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<Pod>>, b: &Option<Arc<Pod>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let same_namespaces = || self.namespaces.ptr_eq(&other.namespaces);
        self.policies.ptr_eq(&other.policies)
            && self.cluster_policies.ptr_eq(&other.cluster_policies)
            && (self.cluster_policies.is_empty() || same_namespaces())
            && self.endpoints == other.endpoints
            && self.closed == other.closed
            && self.pods.iter().zip(&other.pods).all(|(a, b)| same(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::SetContent;
    use crate::testing::{rng::Rng, worlds};

    /// What every row says of every address and prefix that has an entry.
    fn says(desired: &Desired) -> Vec<(String, u16, Vec<Arc<SetContent>>)> {
        let column = |class: u32| {
            let cells = desired.rows.iter().map(|row| row.cells[class as usize]);
            cells.map(|set| desired.sets[set as usize].clone()).collect()
        };
        let hosts =
            desired.hosts.iter().map(|(a, target)| (a.to_string(), target.flags, column(target.class)));
        let prefixes = desired.prefixes.iter().map(|(prefix, class)| (prefix.to_string(), 0, column(*class)));
        hosts.chain(prefixes).collect()
    }

    #[test]
    fn what_was_compiled_before_changes_nothing() {
        let (mut kept, mut by_pods) = (0, 0);
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut world, mut ids) = (worlds::world(&mut rng), RuleIds::default());
            let mut compiler = Compiler::new(Limits::default());
            for step in 0..12 {
                let endpoints: Vec<Endpoint> = (1..)
                    .zip(world.local_pods())
                    .map(|(slot, pod)| Endpoint { slot, id: slot.into(), pod: pod.key.clone() })
                    .collect();
                let before = compiler.selection.clone();
                let desired = compiler.compile(&world, &endpoints, &mut ids);
                if !Arc::ptr_eq(&before, &compiler.selection) && step > 0 {
                    match before.apart(&compiler.selection, &compiler.atoms) {
                        Apart::AsBefore => kept += 1,
                        Apart::ByPods(_) => by_pods += 1,
                        Apart::Anyhow => {}
                    }
                }
                let afresh = Compiler::new(Limits::default()).compile(&world, &endpoints, &mut ids.clone());
                assert_eq!(says(&desired), says(&afresh), "seed {seed}, step {step}");
                assert_eq!(desired.endpoints, afresh.endpoints, "seed {seed}, step {step}");
                // Each change alone, and several at once.
                for _ in 0..=step / 8 {
                    world.apply(worlds::delta(&mut rng, &world));
                }
            }
        }
        assert!(kept > 20 && by_pods > 20, "hardly tried: {kept} and {by_pods} times");
    }
}
