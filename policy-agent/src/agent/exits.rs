//! Devices by which packets leave the node: every device of the host that is no pod's. What pods send to Services is
//! judged there, behind the node's translation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use policy_common::abi::interface_flags;

use super::core::Core;
use super::endpoints::at_once;
use super::hooking::Fault;
use crate::cli::chain;
use crate::netlink::Device;

/// One end of a pair whose other end is in another namespace is most likely a pod's that nobody has told of yet: it gets
/// so long before it counts as a way out.
const MAYBE_POD: Duration = Duration::from_secs(2);

/// A device that packets leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Bits of [`interface_flags`].
    pub flags: u8,
    /// Since when it is no pod's.
    pub(super) since: Instant,
    /// Whether it is to be hooked now.
    pub(super) due: bool,
    /// Our program is there.
    pub hooked: bool,
    /// Why it is not.
    pub failure: Option<String>,
    /// Programs of others that run before ours.
    pub before_us: Vec<String>,
}

impl Exit {
    /// What is wrong with it.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let why = self.failure.as_deref().unwrap_or("not hooked yet");
        let told = || format!("device {}: {why}: pods' traffic to Services is not judged there", self.name);
        (self.due && !self.hooked).then(told)
    }
}

/// The devices, by index.
pub(super) type Exits = BTreeMap<u32, Exit>;

impl Core {
    /// Hooks every device that is no pod's, forgets those that went or became a pod's; with `check` looks at every hook
    /// and mends it. `first`: takes over what an earlier agent hooked.
    pub(super) fn follow_exits(&mut self, first: bool, check: bool) {
        let now = Instant::now();
        let gone = self.update_exits(first, now);
        for Exit { ifindex, due, .. } in gone {
            // Hooking a pod's interface takes the program for other devices away, and its word is the pod's by now.
            if !due || self.table.iter().any(|local| local.ifindex == ifindex) {
                continue;
            }
            let forgotten = self.kernel.read().clear_interface(ifindex);
            if let Err(error) = self.kernel.hooks.detach_exit(ifindex).and(forgotten) {
                self.fail(format!("unhook device {ifindex}: {}", chain(&error)));
            }
        }
        if first {
            self.unhook_stray_exits();
        }
        self.hook_exits(check);
        if check {
            self.mend_exits();
        }
    }

    /// When a device is to be hooked that is none yet.
    pub(super) fn next_exit(&self) -> Option<Instant> {
        self.exits.values().filter(|exit| !exit.due).map(|exit| exit.since + MAYBE_POD).min()
    }

    /// Brings the list up to date. Hands back what is no exit any more.
    fn update_exits(&mut self, first: bool, now: Instant) -> Vec<Exit> {
        let pods: BTreeMap<u32, Option<u32>> = self
            .table
            .iter()
            .map(|local| local.ifindex)
            .map(|index| (index, self.interfaces.devices.get(&index).and_then(|device| device.controller)))
            .collect();
        let wanted: BTreeMap<u32, &Device> = self
            .interfaces
            .devices
            .iter()
            .filter(|(index, _)| !pods.contains_key(index))
            .map(|(index, device)| (*index, device))
            .collect();
        let mut gone = Vec::new();
        self.exits.retain(|index, exit| {
            let stays = wanted.contains_key(index);
            gone.extend((!stays).then(|| exit.clone()));
            stays
        });
        for (ifindex, device) in wanted {
            let mut flags = if device.ethernet { 0 } else { interface_flags::NO_ETHERNET };
            if device.leads_away {
                flags |= interface_flags::LEADS_AWAY;
            }
            if pods.values().any(|controller| *controller == Some(ifindex)) {
                flags |= interface_flags::BRIDGE;
            }
            let exit = self.exits.entry(ifindex).or_insert_with(|| Exit {
                ifindex,
                name: device.name.clone(),
                flags,
                since: now,
                due: false,
                hooked: false,
                failure: None,
                before_us: Vec::new(),
            });
            exit.name.clone_from(&device.name);
            exit.due |= first || !device.leads_away || now >= exit.since + MAYBE_POD;
            // The programs must be told anew.
            exit.hooked &= exit.flags == flags;
            exit.flags = flags;
        }
        gone
    }

    fn hook_exits(&mut self, check: bool) {
        let waiting = |exit: &&Exit| exit.due && !exit.hooked && (check || exit.failure.is_none());
        let wanted: Vec<(u32, u8)> =
            self.exits.values().filter(waiting).map(|exit| (exit.ifindex, exit.flags)).collect();
        let kernel = self.kernel.clone();
        let results = at_once(&wanted, |(ifindex, flags)| {
            kernel.read().set_exit(*ifindex, *flags)?;
            kernel.hooks.attach_exit(*ifindex)
        });
        for ((ifindex, _), result) in wanted.iter().zip(results) {
            let Some(exit) = self.exits.get_mut(ifindex) else { continue };
            let fault = result.err().map(Fault::from);
            exit.hooked = fault.is_none();
            if let Some(Fault { text, gone }) = &fault
                && exit.failure.as_ref() != Some(text)
            {
                match gone {
                    true => tracing::debug!(ifindex, "device {} is gone: {text}", exit.name),
                    false => tracing::error!(ifindex, "device {} can't be hooked: {text}", exit.name),
                }
            }
            if exit.hooked {
                tracing::info!(device = exit.name, ifindex, "device hooked");
            }
            exit.failure = fault.map(|fault| fault.text);
            if !exit.hooked {
                self.rehook.failed(Instant::now());
            }
        }
    }

    pub(super) fn mend_exits(&mut self) {
        let mut drifted = Vec::new();
        for exit in self.exits.values_mut().filter(|exit| exit.hooked) {
            let hooks = &self.kernel.hooks;
            let before = hooks.verify_exit(exit.ifindex).ok();
            let looked = match &before {
                Some(state) if state.is_right() => Ok((false, state.clone())),
                Some(_) | None => hooks
                    .repair_exit(exit.ifindex)
                    .and_then(|changed| Ok((changed, hooks.verify_exit(exit.ifindex)?))),
            };
            match looked {
                Ok((changed, state)) => {
                    if changed {
                        drifted.push((exit.name.clone(), before));
                    }
                    exit.hooked = state.present;
                    exit.before_us = state.before;
                }
                Err(error) => {
                    exit.hooked = false;
                    exit.failure = Some(chain(&error));
                }
            }
        }
        for (name, before) in drifted {
            self.hooks_drifted(&name, &before.into_iter().collect::<Vec<_>>());
        }
    }

    /// Hooks of devices that an earlier agent had and that are none any more.
    fn unhook_stray_exits(&mut self) {
        let attached = match self.kernel.hooks.attached_exits() {
            Ok(attached) => attached,
            Err(error) => return self.fail(format!("list the hooks: {}", chain(&error))),
        };
        let strays: Vec<u32> = attached.into_iter().filter(|index| !self.exits.contains_key(index)).collect();
        for ifindex in strays {
            if let Err(error) = self.kernel.hooks.detach_exit(ifindex) {
                self.fail(format!("unhook device {ifindex}: {}", chain(&error)));
            }
        }
    }
}
