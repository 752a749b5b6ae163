//! How traffic to Services is judged on this node, and whether the tag survives by which it can be judged exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use policy_common::abi::{ROW_CLOSED, meta_flags, meta_words};
use policy_engine::model::ServiceMode;
use policy_engine::world::Delta;

use super::core::Core;
use super::table::Local;
use crate::cli::{ServicesArg, chain};
use crate::datapath::{Survival, TagProbe, probe_tags};

/// An interface at which probes go unanswered is left alone after so many, until it is hooked again.
const TRIES: u8 = 3;

/// What is known of the tags of this node.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    setting: ServicesArg,
    /// Switches of the kernel beside the one of this file.
    switches: u64,
    /// By endpoint.
    proofs: BTreeMap<u32, Proof>,
    /// Endpoints that are being probed.
    asked: BTreeSet<u32>,
}

/// What probes have shown, by endpoint.
pub(super) type Probed = Vec<(u32, TagProbe, Survival)>;

/// The way to the thread that probes: it waits for each datagram.
#[derive(Clone, Debug)]
pub(super) struct Prober {
    wanted: Sender<Vec<(u32, TagProbe)>>,
}

impl Prober {
    /// Starts the thread, in the network namespace of the caller. `done` returns false when nobody listens any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(done: impl Fn(Probed) -> bool + Send + 'static) -> io::Result<Self> {
        let (wanted, inbox) = channel::<Vec<(u32, TagProbe)>>();
        let run = move || {
            while let Ok(mut asked) = inbox.recv() {
                asked.extend(inbox.try_iter().flatten());
                let probes: Vec<TagProbe> = asked.iter().map(|(_, probe)| *probe).collect();
                let seen = probe_tags(&probes);
                if !done(asked.into_iter().zip(seen).map(|((id, probe), seen)| (id, probe, seen)).collect()) {
                    return;
                }
            }
        };
        thread::Builder::new().name("tags".to_owned()).spawn(run)?;
        Ok(Self { wanted })
    }
}

#[derive(Clone, Debug)]
struct Proof {
    survival: Survival,
    tries: u8,
}

/// What onlookers are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagsView {
    /// What was asked for.
    pub setting: &'static str,
    /// How traffic to Services is judged now.
    pub mode: ServiceMode,
    /// Interfaces at which a probe has shown that the tag survives.
    pub kept: usize,
    /// Interfaces at which it is lost, and what may take it.
    pub lost: Vec<String>,
    /// Interfaces of which nothing can be said, and why.
    pub unknown: Vec<String>,
}

impl TagsView {
    /// What keeps traffic to Services from being judged as it should.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let closed = self.mode == ServiceMode::Tag && !self.lost.is_empty();
        closed.then(|| {
            format!(
                "tags are lost at {}: traffic to Services is judged without them and dropped in doubt; take the \
                 other program away, or run with --services auto",
                self.lost.join(", ")
            )
        })
    }
}

impl Tags {
    /// Nothing is known yet. `switches`: those of the kernel as they are now.
    pub(super) fn new(setting: ServicesArg, switches: u64) -> Self {
        Self {
            setting,
            switches: switches & !meta_flags::BACKENDS,
            proofs: BTreeMap::new(),
            asked: BTreeSet::new(),
        }
    }

    /// How traffic to Services is judged at the start: as it was, if that may be.
    pub(super) fn first(setting: ServicesArg, switches: u64) -> ServiceMode {
        match setting {
            ServicesArg::Tag => ServiceMode::Tag,
            ServicesArg::Backends => ServiceMode::Backends,
            ServicesArg::Auto if switches & meta_flags::BACKENDS != 0 => ServiceMode::Backends,
            ServicesArg::Auto => ServiceMode::Tag,
        }
    }

    /// How it should be judged, by what is known.
    fn wanted(&self, now: ServiceMode) -> ServiceMode {
        let lost = self.proofs.values().any(|proof| proof.survival == Survival::Lost);
        match self.setting {
            ServicesArg::Tag => ServiceMode::Tag,
            ServicesArg::Backends => ServiceMode::Backends,
            ServicesArg::Auto if lost => ServiceMode::Backends,
            // Back when somebody has shown that it survives, not for want of anybody to ask.
            ServicesArg::Auto if self.proofs.values().any(|proof| proof.survival == Survival::Kept) => {
                ServiceMode::Tag
            }
            ServicesArg::Auto => now,
        }
    }

    fn is_due(&self, local: &Local, again: bool) -> bool {
        let Some(proof) = self.proofs.get(&local.id) else { return true };
        match proof.survival {
            // Another program may have come since, or changed its mind.
            Survival::Kept => again && !local.behind_us.is_empty(),
            Survival::Lost => again,
            Survival::Unknown(_) => again && proof.tries < TRIES,
        }
    }
}

impl Core {
    /// Has the tag probed at interfaces that are new; with `again` where it may have changed. The node judges traffic to
    /// Services as the setting wants it for what is known.
    pub(super) fn follow_tags(&mut self, again: bool) {
        if self.degraded.is_some() {
            return;
        }
        self.probe_tags(again);
        self.switch_mode();
    }

    fn probe_tags(&mut self, again: bool) {
        let live: BTreeSet<u32> = self.table.iter().map(|local| local.id).collect();
        self.tags.proofs.retain(|id, _| live.contains(id));
        self.tags.asked.retain(|id| live.contains(id));
        // What somebody does at a bridge shows at any of its ports.
        let mut bridges = BTreeSet::new();
        let mut first_port = |local: &Local| {
            let controller = self.interfaces.devices.get(&local.ifindex).and_then(|device| device.controller);
            let kept = self.tags.proofs.get(&local.id).is_some_and(|proof| proof.survival == Survival::Kept);
            again && kept && controller.is_some_and(|index| bridges.insert(index))
        };
        let due: Vec<(u32, TagProbe)> = self
            .table
            .iter()
            .filter(|local| local.hooked && !self.tags.asked.contains(&local.id))
            .filter(|local| self.tags.is_due(local, again) || first_port(local))
            .filter_map(|local| Some((local.id, self.tag_probe(local)?)))
            .collect();
        if due.is_empty() {
            return;
        }
        self.tags.asked.extend(due.iter().map(|(id, _)| *id));
        // The thread ends only with the process or with whoever listens to it.
        drop(self.prober.wanted.send(due));
    }

    /// Takes in what probes have shown.
    pub(super) fn probed(&mut self, probed: Probed) {
        for (id, probe, survival) in probed {
            self.tags.asked.remove(&id);
            if !self.table.iter().any(|local| local.id == id) {
                continue;
            }
            let before = self.tags.proofs.get(&id);
            if survival == Survival::Lost && before.is_none_or(|proof| proof.survival != Survival::Lost) {
                tracing::error!(
                    ifindex = probe.ifindex,
                    "another program takes the tags of what the pod sends"
                );
            }
            let tries = before.map_or(0, |proof| proof.tries) + 1;
            self.tags.proofs.insert(id, Proof { survival, tries: tries.min(TRIES) });
        }
    }

    /// What to probe an interface with; nothing yet where nothing of its pod passes.
    fn tag_probe(&self, local: &Local) -> Option<TagProbe> {
        local.pod.as_ref()?;
        let word = self.planner.tables.endpoint(local.slot)?;
        if word.egress_row == ROW_CLOSED {
            return None;
        }
        let devices = &self.interfaces.devices;
        let device = devices.get(&local.ifindex)?;
        let taker = device.controller.and_then(|index| devices.get(&index)).unwrap_or(device);
        let usable = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        let (pod, node) = local.addresses.iter().find_map(|pod| {
            let mut own = self.interfaces.host_addresses.iter();
            Some((*pod, *own.find(|ip| usable(ip) && ip.is_ipv4() == pod.is_ipv4())?))
        })?;
        Some(TagProbe { ifindex: local.ifindex, mac: taker.mac, slot: local.slot, pod, node })
    }

    fn switch_mode(&mut self) {
        let now = self.world.service_mode;
        let wanted = self.tags.wanted(now);
        if wanted != now {
            tracing::warn!("traffic to Services is judged by {} from now on", wanted.name());
            if wanted == ServiceMode::Tag {
                // First what has no tag is judged again where it goes, then the pods' hooks leave it to be judged there.
                self.set_switches(0);
            }
            self.stale |= self.world.apply(Delta::ServiceMode(wanted));
            self.enforce();
        }
        // The other way round only once the pods' hooks judge.
        if wanted == ServiceMode::Backends && !self.stale {
            self.set_switches(meta_flags::BACKENDS);
        }
    }

    fn set_switches(&mut self, more: u64) {
        let (value, kernel) = (self.tags.switches | more, self.kernel.clone());
        let kernel = kernel.read();
        if kernel.meta(meta_words::FLAGS).is_ok_and(|old| old == value) {
            return;
        }
        if let Err(error) = kernel.set_meta(meta_words::FLAGS, value) {
            drop(kernel);
            self.fail(format!("switch how Services are judged: {}", chain(&error)));
        }
    }

    /// What is known of tags.
    pub(super) fn tags_view(&self) -> TagsView {
        let mut view = TagsView {
            setting: self.tags.setting.name(),
            mode: self.world.service_mode,
            ..TagsView::default()
        };
        for local in self.table.iter().filter(|local| local.pod.is_some()) {
            match self.tags.proofs.get(&local.id).map(|proof| &proof.survival) {
                Some(Survival::Kept) => view.kept += 1,
                Some(Survival::Lost) if local.behind_us.is_empty() => view.lost.push(local.interface.clone()),
                Some(Survival::Lost) => {
                    view.lost.push(format!("{} ({})", local.interface, local.behind_us.join(", ")));
                }
                Some(Survival::Unknown(why)) => view.unknown.push(format!("{}: {why}", local.interface)),
                None => view.unknown.push(format!("{}: not probed yet", local.interface)),
            }
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(setting: ServicesArg, seen: &[Survival]) -> Tags {
        let mut tags = Tags::new(setting, meta_flags::VERDICTS | meta_flags::BACKENDS);
        assert_eq!(tags.switches, meta_flags::VERDICTS);
        let proofs = seen.iter().map(|survival| Proof { survival: survival.clone(), tries: 1 });
        tags.proofs = (1..).zip(proofs).collect();
        tags
    }

    #[test]
    fn the_setting_and_the_probes_say_how_services_are_judged() {
        use ServiceMode::{Backends, Tag};
        let (kept, lost, unknown) = (Survival::Kept, Survival::Lost, Survival::Unknown(String::new()));
        let wanted = |setting, seen: &[Survival], now| tags(setting, seen).wanted(now);
        for now in [Tag, Backends] {
            assert_eq!(wanted(ServicesArg::Tag, std::slice::from_ref(&lost), now), Tag);
            assert_eq!(wanted(ServicesArg::Backends, std::slice::from_ref(&kept), now), Backends);
            assert_eq!(wanted(ServicesArg::Auto, &[kept.clone(), lost.clone()], now), Backends);
            assert_eq!(wanted(ServicesArg::Auto, &[kept.clone(), unknown.clone()], now), Tag);
            assert_eq!(wanted(ServicesArg::Auto, std::slice::from_ref(&unknown), now), now);
        }
        assert_eq!(Tags::first(ServicesArg::Auto, meta_flags::BACKENDS), Backends);
        assert_eq!(Tags::first(ServicesArg::Auto, 0), Tag);
        assert_eq!(Tags::first(ServicesArg::Tag, meta_flags::BACKENDS), Tag);
    }
}
