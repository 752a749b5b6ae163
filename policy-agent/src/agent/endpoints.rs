//! Endpoints in the kernel follow the table: made closed, hooked, unhooked, retired.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use policy_common::abi::{ROW_OPEN, meta_words};
use policy_engine::tables::Difference;

use super::background::Work;
use super::core::Core;
use super::hooking::Fault;
use super::settings::PICKUP;
use super::table::{Changes, Local};
use crate::cli::chain;
use crate::datapath::{self, Endpoint, HookState};

/// A link that has carried no more packets than this has carried only the chatter of coming up.
pub(super) const CHATTER: u64 = 16;
/// Endpoints that are made or hooked at the same time: each waits for grace periods of the kernel.
const AT_ONCE: usize = 8;

impl Core {
    /// Makes, moves and removes endpoints. Before the first plan nothing is hooked that was not: running pods are not
    /// closed while their policy is worked out. Later on new pods are hooked at once, closed.
    pub(super) fn follow(&mut self, first: bool, now: Instant) {
        let guarded = if self.guarding {
            let away = !self.source.error.is_empty();
            self.guards.update(&self.world, &self.interfaces, &self.places, (first, away), now)
        } else {
            Vec::new()
        };
        self.table.prefer(self.kernel.read().spare_slots());
        let room = self.room(first);
        let changes = self.table.follow(&self.world, &self.places, &guarded, room);
        if changes != Changes::default() {
            self.stale = true;
        }
        for pod in &changes.crowded {
            tracing::error!("pod {pod} is not enforced: all endpoint slots are taken");
        }
        for slot in &changes.readdressed {
            let Some(local) = self.table.get(*slot) else { continue };
            let done = self.kernel.read().set_addresses(*slot, &local.addresses);
            if let Err(error) = done {
                self.fail(format!("endpoint {}: {}", local.id, chain(&error)));
            }
        }
        if first {
            self.reconfigure();
        }
        self.create(&changes.created);
        if !first {
            self.hook(&changes.created);
        }
        self.remove(&changes.removed);
        if first {
            self.unhook_strays();
        }
    }

    /// Before the sources have told anything: what appears in place of an interface that an earlier agent isolated is
    /// closed until it is known whose it is. What that agent enforces stays as it is.
    pub(super) fn hold(&mut self, seen: bool, now: Instant) {
        if self.retry.due(now) {
            self.retry.failed(now);
        }
        if self.rehook.due(now) {
            self.rehook.failed(now);
            let failed = self.table.iter().filter(|local| local.failure.is_some() && !local.attaching);
            let slots: Vec<u16> = failed.map(|local| local.slot).collect();
            self.hook(&slots);
        }
        if !self.guarding || !seen || self.blind.is_some() {
            return;
        }
        let isolated = |slot| {
            let word = self.planner.tables.endpoint(slot).unwrap_or_default();
            word.ingress_row != ROW_OPEN || word.egress_row != ROW_OPEN
        };
        let gone = |local: &Local| !self.interfaces.links.contains_key(&local.ifindex);
        let lost =
            self.table.iter().any(|l| l.group.is_none() && l.pod.is_none() && gone(l) && isolated(l.slot));
        let held = self.guards.hold(&self.interfaces, lost, now);
        let created = self.table.hold(&held);
        for slot in &created {
            let name = self.table.get(*slot).map(|local| local.interface.as_str()).unwrap_or_default();
            tracing::warn!("interface {name} is closed: whose it is cannot be known before the sources tell");
        }
        self.create(&created);
        self.hook(&created);
    }

    /// Hooks what is not hooked yet; with `check` looks at every hook and mends it.
    pub(super) fn hook_all(&mut self, check: bool) {
        let waiting =
            |local: &&Local| !local.hooked && !local.attaching && (check || local.failure.is_none());
        let slots: Vec<u16> = self.table.iter().filter(waiting).map(|local| local.slot).collect();
        // What is being hooked is the thread's.
        let hooked = |local: &&Local| local.hooked && !local.attaching;
        let hooked: Vec<u16> = self.table.iter().filter(hooked).map(|local| local.slot).collect();
        self.hook(&slots);
        if check {
            self.mend(&hooked);
        }
    }

    fn create(&mut self, slots: &[u16]) {
        if slots.is_empty() {
            return;
        }
        let next = u64::from(self.table.next_id());
        let done = self.kernel.read().set_meta(meta_words::NEXT_ENDPOINT, next);
        if let Err(error) = done {
            return self.fail(chain(&error));
        }
        let wanted: Vec<Endpoint> = slots
            .iter()
            .filter_map(|slot| self.table.get(*slot))
            .map(|local| Endpoint {
                slot: local.slot,
                id: local.id,
                ifindex: local.ifindex,
                addresses: local.addresses.clone(),
                config: self.bits_of(local),
                pickup: if local.unprotected > CHATTER { PICKUP } else { Duration::ZERO },
            })
            .collect();
        let results = {
            let executor = self.kernel.read();
            at_once(&wanted, |endpoint| executor.create_endpoint(endpoint))
        };
        for (endpoint, result) in wanted.iter().zip(results) {
            if let Err(error) = result {
                // Out of the table, it is tried again as a new one, in another slot.
                self.table.drop_slot(endpoint.slot);
                self.fail(format!("endpoint {}: {}", endpoint.id, chain(&error)));
            }
        }
    }

    /// Endpoints of an earlier agent get the settings of this one.
    fn reconfigure(&mut self) {
        let done = self.kernel.read().endpoints().and_then(|live| {
            live.iter().try_for_each(|endpoint| {
                let Some(local) = self.table.get(endpoint.slot) else { return Ok(()) };
                let bits = self.bits_of(local);
                if local.id != endpoint.id || bits == endpoint.config {
                    return Ok(());
                }
                tracing::info!(pod = ?local.pod, slot = endpoint.slot, "endpoint gets this agent's settings");
                self.kernel.read().set_config(endpoint.slot, bits)
            })
        });
        if let Err(error) = done {
            self.fail(format!("settings of endpoints: {}", chain(&error)));
        }
    }

    fn bits_of(&self, local: &Local) -> u16 {
        if local.group.is_none() {
            return self.bits;
        }
        let pod = local.pod.as_ref().and_then(|pod| self.world.pods.get(pod));
        self.workloads.bits(self.bits, pod.is_some_and(|pod| !pod.is_service()))
    }

    pub(super) fn not_hooked(&mut self, slot: u16, ifindex: u32, fault: Fault) {
        // The link may have gone since it was seen; then its event is on the way.
        self.rehook.failed(Instant::now());
        if let Some(local) = self.table.get_mut(slot) {
            let (name, error) = (&local.interface, &fault.text);
            if fault.gone {
                tracing::debug!(ifindex, "interface {name} is gone: {error}");
            } else if local.failure.as_ref() != Some(error) {
                tracing::error!(ifindex, "interface {name} can't be hooked: {error}");
            }
            local.hooked = false;
            local.failure = Some(fault.text);
        }
    }

    fn mend(&mut self, slots: &[u16]) {
        for slot in slots {
            let Some(local) = self.table.get(*slot) else { continue };
            if local.group.is_some() {
                self.mend_group(*slot);
                continue;
            }
            let ifindex = local.ifindex;
            let before = self.kernel.hooks.verify(ifindex).map_or_else(|_| Vec::new(), Vec::from);
            let as_it_should_be = !before.is_empty() && before.iter().all(HookState::is_right);
            // Each look asks the kernel a dozen questions, and changes of policy wait meanwhile.
            let looked = if as_it_should_be {
                Ok((false, before.clone()))
            } else {
                let repaired = self.kernel.hooks.repair(ifindex);
                repaired.and_then(|changed| Ok((changed, self.kernel.hooks.verify(ifindex)?.into())))
            };
            match looked {
                Ok((changed, states)) => {
                    if changed {
                        let name = self.table.get(*slot).map(|local| local.interface.clone());
                        self.hooks_drifted(&name.unwrap_or_default(), &before);
                    }
                    let Some(local) = self.table.get_mut(*slot) else { continue };
                    local.hooked = states.iter().all(|state| state.present);
                    local.behind_us = states.iter().flat_map(|state| state.behind.clone()).collect();
                    local.before_us = states.into_iter().flat_map(|state| state.before).collect();
                }
                Err(error) => self.not_hooked(*slot, ifindex, error.into()),
            }
        }
    }

    /// Tells what was wrong with hooks that were mended.
    pub(super) fn hooks_drifted(&mut self, interface: &str, before: &[HookState]) {
        for state in before {
            let found = match (state.present, state.lasting, state.before.as_slice()) {
                (false, ..) => "our program was not there".to_owned(),
                (true, false, _) => "its pin was not there".to_owned(),
                (true, true, []) => continue,
                (true, true, others) => format!("{} ran first", others.join(", ")),
            };
            let key = format!("{} of interface {interface}", state.hook.name());
            let what = Difference { map: "hook", key, found, wanted: "our program first, pinned".to_owned() };
            self.drifted("hook", what, true);
        }
    }

    fn remove(&mut self, removed: &[Local]) {
        if removed.is_empty() {
            return;
        }
        self.unhook_groups(removed);
        for local in removed.iter().filter(|local| local.group.is_none()) {
            // The interface may have a new endpoint by now.
            if !self.table.iter().any(|other| other.ifindex == local.ifindex) {
                self.hooking.unhook(local.ifindex);
            }
            if let Some(pod) = &local.pod {
                tracing::info!(%pod, interface = %local.interface, "endpoint removed");
            }
        }
        let slots: Vec<u16> = removed.iter().map(|local| local.slot).collect();
        let retirement = self.kernel.read().remove_endpoints(&slots);
        let upto = slots.iter().map(|slot| self.planner.tables.forget_endpoint(*slot)).max().unwrap_or(0);
        match retirement {
            Ok(retirement) => self.background.send(Work { upto, retirements: vec![retirement] }),
            Err(error) => self.fail(format!("remove endpoints: {}", chain(&error))),
        }
    }

    /// Hooks of interfaces that an earlier agent had and that belong to no pod any more.
    fn unhook_strays(&mut self) {
        self.unhook_stray_groups();
        let attached = match self.kernel.hooks.attached() {
            Ok(attached) => attached,
            Err(error) => return self.fail(format!("list the hooks: {}", chain(&error))),
        };
        for ifindex in attached {
            if self.table.iter().any(|local| local.ifindex == ifindex) {
                continue;
            }
            let done =
                self.kernel.hooks.detach(ifindex).and_then(|()| self.kernel.read().clear_interface(ifindex));
            if let Err(error) = done {
                self.fail(format!("unhook interface {ifindex}: {}", chain(&error)));
            }
        }
    }
}

pub(super) fn tell_hooked(local: &Local, fresh: bool) {
    let pod = local.pod.as_ref().map(ToString::to_string).unwrap_or_default();
    let interface = &local.interface;
    if !fresh {
        tracing::info!(pod, interface, slot = local.slot, "endpoint taken over");
    } else if local.unprotected > CHATTER {
        let packets = local.unprotected;
        tracing::info!(
            pod,
            interface,
            slot = local.slot,
            packets,
            "endpoint hooked; it had been running without"
        );
    } else {
        tracing::info!(pod, interface, slot = local.slot, "endpoint hooked");
    }
}

/// Runs the work for all items, several at a time; results in the order of the items.
pub(super) fn at_once<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> datapath::Result<R> + Sync,
) -> Vec<datapath::Result<R>> {
    if let [item] = items {
        return vec![work(item)];
    }
    let queue = Mutex::new(items.iter().enumerate());
    let results: Mutex<Vec<(usize, datapath::Result<R>)>> = Mutex::default();
    let lock = std::sync::PoisonError::into_inner;
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(lock).next();
                    let Some((index, item)) = next else { return };
                    let result = work(item);
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u32> = (0..50).collect();
        let results = at_once(&items, |i| Ok(i * 2));
        let values: Vec<u32> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(values, items.iter().map(|i| i * 2).collect::<Vec<_>>());
    }
}
