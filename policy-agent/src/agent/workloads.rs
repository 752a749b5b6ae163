//! Workloads that are control groups: found in the hierarchy, hooked at the outermost of them, followed when they go
//! and come back.
//!
//! The programs judge a socket by the nearest endpoint above it, and those of a group run for everything below it too.
//! So of groups inside each other only the outermost has programs: a second pair would judge each packet twice.

use std::collections::BTreeSet;
use std::path::PathBuf;

use policy_common::abi::{Cgroup, endpoint_config};
use policy_engine::address::{identity, words6};
use policy_engine::model::{GroupHint, InterfaceHint, Pod};
use policy_engine::world::Delta;
use std::net::IpAddr;

use super::core::Core;
use super::placement::{FoundGroups, group_hints, groups_of_unhookable};
use super::table::Local;
use crate::cgroup::{Group, Hierarchy, Watch};
use crate::cli::chain;

/// Control groups as they were seen last.
#[derive(Debug)]
pub(super) struct Workloads {
    wanted: Wanted,
    watch: Option<Watch>,
    /// Groups that pods name.
    pub(super) found: FoundGroups,
    /// What is wrong with the hierarchy, told once.
    told: Option<String>,
}

impl Workloads {
    /// Nothing found yet.
    #[must_use]
    pub(super) fn new(wanted: Wanted, watch: Option<Watch>) -> Self {
        Self { wanted, watch, found: FoundGroups::new(), told: None }
    }

    /// Configuration bits of a group, out of those of interfaces. `pod`: of a cluster's pod, which its own node always
    /// reaches.
    #[must_use]
    pub(super) fn bits(&self, interfaces: u16, pod: bool) -> u16 {
        let loopback = if self.wanted.judge_loopback { endpoint_config::JUDGE_LOOPBACK } else { 0 };
        let node = if pod { endpoint_config::NODE_PASSES } else { 0 };
        // The kernel gives a socket its addresses, and nothing on the way of its packets is ours to trust.
        let apart = endpoint_config::ANTI_SPOOF | endpoint_config::MASQUERADED_ALLOW;
        interfaces & !apart | endpoint_config::SOCKETS | loopback | node
    }

    /// What the world is told of a pod. One that shares its node's network becomes, if that is wanted, a pod whose
    /// sockets are judged: the node's addresses are not its own.
    #[must_use]
    pub(super) fn pass(&self, node: &str, delta: Delta) -> Delta {
        match delta {
            Delta::Pod(pod)
                if self.wanted.host_network && pod.host_network && pod.node.as_deref() == Some(node) =>
            {
                let interface = Some(InterfaceHint::Group(GroupHint::Pod(pod.runtime_uid().clone())));
                Delta::Pod(Pod { host_network: false, addresses: vec![identity(&pod.key)], interface, ..pod })
            }
            other => other,
        }
    }
}

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Where the hierarchy is said to be.
    pub root: Option<PathBuf>,
    /// Packets between loopback addresses are judged.
    pub judge_loopback: bool,
    /// Pods without an interface that can be hooked are judged at the sockets of their control groups.
    pub unhookable: bool,
    /// So are this node's pods that share its network.
    pub host_network: bool,
}

impl Core {
    /// Looks for every group that a pod names.
    pub(super) fn look_at_groups(&mut self) {
        let mut hints = group_hints(&self.world);
        if self.workloads.wanted.unhookable {
            let has_group = |pod: &_| self.table.of_pod(pod).is_some_and(|local| local.group.is_some());
            hints.extend(groups_of_unhookable(&self.world, &self.interfaces, &self.netns, has_group));
        }
        if hints.is_empty() {
            self.workloads.found.clear();
            return;
        }
        let hierarchy = Hierarchy::find(self.workloads.wanted.root.as_deref());
        let told = match &hierarchy {
            Ok(_) => None,
            Err(missing) => Some(format!("{missing} (hint: {})", missing.hint())),
        };
        if let Some(told) = told.as_ref().filter(|told| self.workloads.told.as_ref() != Some(*told)) {
            tracing::error!("control groups are not enforced: {told}");
        }
        self.workloads.told.clone_from(&told);
        // What appears between the look and the watch is seen by the second look.
        for _ in 0..2 {
            self.workloads.found = match &hierarchy {
                Ok(hierarchy) => hierarchy.locate_all(&hints, &self.workloads.found),
                Err(_) => {
                    let why = told.clone().unwrap_or_default();
                    hints.iter().map(|hint| (hint.clone(), Err(why.clone()))).collect()
                }
            };
            let (Ok(hierarchy), Some(watch)) = (&hierarchy, &mut self.workloads.watch) else { return };
            let directories = hierarchy.watched_for(&hints);
            match watch.add(&directories) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!("control groups can't be watched: {error}");
                    return;
                }
            }
        }
    }

    /// Hooks those of the slots that are groups.
    pub(super) fn hook_groups(&mut self, slots: &[u16]) {
        for slot in slots {
            let Some(local) = self.table.get(*slot) else { continue };
            let (Some(group), Some(pod)) = (&local.group, &local.pod) else { continue };
            let IpAddr::V6(stands_for) = identity(pod) else { continue };
            let value = Cgroup { slot: u32::from(*slot), level: group.level, identity: words6(stands_for) };
            let inside = self.is_inside(group);
            let done = self.kernel.read().set_group(group.id, &value).and_then(|()| {
                if inside {
                    // Its own programs, if it had any, would judge a second time.
                    self.kernel.groups.detach(group.id).map(|()| None)
                } else {
                    self.kernel.groups.attach(group.id, &group.directory).map(Some)
                }
            });
            match done {
                Ok(attached) => self.group_hooked(*slot, attached.is_none_or(|done| done.fresh > 0)),
                Err(error) => {
                    // Half of it would be taken for the whole.
                    let cleared = self.kernel.read().clear_group(group.id);
                    let error = cleared.err().map_or_else(|| chain(&error), |more| chain(&more));
                    self.group_failed(*slot, &error);
                }
            }
        }
    }

    /// Looks at the programs of a group and attaches what is missing.
    pub(super) fn mend_group(&mut self, slot: u16) {
        let Some(group) = self.table.get(slot).and_then(|local| local.group.clone()) else { return };
        let wanted = !self.is_inside(&group);
        match self.kernel.groups.is_attached(group.id) {
            Ok(there) if there == wanted => {}
            Ok(_) => {
                tracing::warn!("the programs of control group {} had been changed: mended", group.path);
                self.hook_groups(&[slot]);
            }
            Err(error) => self.group_failed(slot, &chain(&error)),
        }
    }

    /// Takes the programs from groups that are no endpoints any more. Those inside them get their own first.
    pub(super) fn unhook_groups(&mut self, removed: &[Local]) {
        let gone: Vec<Group> = removed.iter().filter_map(|local| local.group.clone()).collect();
        if gone.is_empty() {
            return;
        }
        // Endpoints that are not in the tables yet are closed: their turn comes when their policy is there.
        let ready =
            |local: &&Local| local.group.is_some() && self.planner.tables.endpoint(local.slot).is_some();
        let inner: Vec<u16> = self.table.iter().filter(ready).map(|local| local.slot).collect();
        self.hook_groups(&inner);
        for group in gone {
            // The same group may be another pod's by now.
            let again = |local: &Local| local.group.as_ref().is_some_and(|there| there.id == group.id);
            if self.table.iter().any(again) {
                continue;
            }
            let done =
                self.kernel.groups.detach(group.id).and_then(|()| self.kernel.read().clear_group(group.id));
            if let Err(error) = done {
                self.fail(format!("unhook control group {}: {}", group.path, chain(&error)));
            }
        }
    }

    /// Programs and entries of groups that an earlier agent had and that are no pod's any more.
    pub(super) fn unhook_stray_groups(&mut self) {
        let entries = self.kernel.read().groups();
        let there = entries.and_then(|all| {
            let mut ids = self.kernel.groups.attached()?;
            ids.extend(all.iter().map(|(id, _)| *id));
            Ok(ids)
        });
        let ours: BTreeSet<u64> = self.table.iter().filter_map(|l| l.group.as_ref()).map(|g| g.id).collect();
        let done = there.and_then(|ids| {
            ids.difference(&ours).try_for_each(|id| {
                self.kernel.groups.detach(*id)?;
                self.kernel.read().clear_group(*id)
            })
        });
        if let Err(error) = done {
            self.fail(format!("unhook control groups: {}", chain(&error)));
        }
    }

    /// Whether the group is inside another one that has programs, or is to have them.
    fn is_inside(&self, group: &Group) -> bool {
        let outer = |local: &Local| {
            local.failure.is_none()
                && local.group.as_ref().is_some_and(|other| {
                    !other.path.is_empty()
                        && group.path.strip_prefix(&other.path).is_some_and(|rest| rest.starts_with('/'))
                })
        };
        self.table.iter().any(outer)
    }

    fn group_hooked(&mut self, slot: u16, fresh: bool) {
        let Some(local) = self.table.get_mut(slot) else { return };
        let before = std::mem::replace(&mut local.hooked, true);
        local.failure = None;
        if !fresh && !before {
            local.unprotected = 0;
        }
        if !before {
            let pod = local.pod.as_ref().map(ToString::to_string).unwrap_or_default();
            let (group, clean) = (&local.interface, local.unprotected == 0);
            let what = if fresh { "hooked" } else { "taken over" };
            tracing::info!(pod, group, slot, clean, "control group {what}");
        }
    }

    fn group_failed(&mut self, slot: u16, error: &str) {
        self.rehook.failed(std::time::Instant::now());
        let Some(local) = self.table.get_mut(slot) else { return };
        if local.failure.as_deref() != Some(error) {
            tracing::error!("control group {} can't be hooked: {error}", local.interface);
        }
        local.hooked = false;
        local.failure = Some(error.to_owned());
    }
}
