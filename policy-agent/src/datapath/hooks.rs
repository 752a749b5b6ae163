//! Our hooks at interfaces of pods and at other devices: attached first in order, taken over without a gap, checked, removed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{Error, Result};
use super::hook::{self, Hook};
use super::load::{Program, Programs};
use super::pins::Pins;
use super::{clsact, groups, tcx};
use crate::netlink::Tc;

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// TCX where the kernel has it (Linux 6.6), else clsact.
    #[default]
    Auto,
    /// TCX or nothing.
    Tcx,
    /// clsact, also where the kernel has TCX.
    Clsact,
}

/// What programs are attached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// An ordered chain of links.
    Tcx,
    /// A filter of a clsact qdisc.
    Clsact,
}

/// What attaching did at each hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Hooks where a program of an earlier agent was replaced in place.
    pub taken_over: u8,
    /// Hooks that are new.
    pub fresh: u8,
}

/// One hook, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Which.
    pub hook: Hook,
    /// Whether our program is there.
    pub present: bool,
    /// Whether it stays when this agent goes.
    pub lasting: bool,
    /// Programs of others that run before ours, or instead of it: they can pass a packet on without us.
    pub before: Vec<String>,
    /// Programs of others that run after ours, from a pod: one that ends the chain takes the packet's tag.
    pub behind: Vec<String>,
}

impl HookState {
    /// Whether nothing is to be done: our program is there to stay, and runs first.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.present && self.lasting && self.before.is_empty()
    }
}

/// All that is attached. Interfaces are named by index, in the namespace of the calling thread, so a name that is
/// given to another link can't mislead it.
pub struct Hooks {
    pins: Pins,
    /// The same programs, loaded more than once where a hook needed a second copy.
    copies: Mutex<Vec<Arc<Programs>>>,
    load_copy: Box<dyn Fn() -> Result<Programs> + Send + Sync>,
    mechanism: Mechanism,
    tc: Tc,
    /// Every link that is ours. While the agent runs no hook depends on a pin: pins are files that anybody may remove,
    /// and their file system can be unmounted.
    links: Mutex<BTreeMap<(u32, Hook), OwnedFd>>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("pins", &self.pins)
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}

impl Hooks {
    /// Attaches these programs. `load_copy` loads it once more: one program can't be twice at one TCX hook, which going
    /// first again without a gap needs.
    ///
    /// # Errors
    /// TCX is wanted and the kernel has none; netlink can't be used.
    pub fn new(
        pins: Pins,
        programs: Programs,
        load_copy: Box<dyn Fn() -> Result<Programs> + Send + Sync>,
        attach: Attach,
    ) -> Result<Self> {
        let mechanism = match (attach, tcx::supported()) {
            (Attach::Auto | Attach::Tcx, true) => Mechanism::Tcx,
            (Attach::Tcx, false) => return Err(Error::NoTcx),
            (Attach::Auto, false) | (Attach::Clsact, _) => Mechanism::Clsact,
        };
        let tc = Tc::open().map_err(Error::netlink("open a socket"))?;
        Ok(Self {
            pins,
            copies: Mutex::new(vec![Arc::new(programs)]),
            load_copy,
            mechanism,
            tc,
            links: Mutex::default(),
        })
    }

    /// What programs are attached by.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Another descriptor of a hook's program, to run it on packets of one's own.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn program(&self, hook: Hook) -> Result<OwnedFd> {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| Error::Map { action: "duplicate program", map: "hooks", source };
        let program = copies.first().map(|programs| programs.of(hook).as_fd().try_clone_to_owned());
        program.unwrap_or_else(|| Err(std::io::Error::from(std::io::ErrorKind::NotFound))).map_err(failed)
    }

    /// Attaches both programs of a pod's interface, or takes over what an earlier agent attached, without a packet in
    /// between that is not judged. Doing it again changes nothing. A program for other devices that is there goes.
    ///
    /// # Errors
    /// The kernel's answer. A hook that was attached before stays.
    pub fn attach(&self, ifindex: u32) -> Result<Attached> {
        let done = self.attach_all(ifindex, hook::POD)?;
        self.remove_programs(ifindex, hook::EXIT)?;
        Ok(done)
    }

    /// Has both programs judge at a pod's interface at once, by filters, until [`Hooks::attach`] puts links in their place:
    /// each link waits for a grace period of the kernel, under its one lock for all interfaces. False = that cannot be
    /// done here, and nothing was changed. The qdisc costs packets that leave by the interface at that moment, so this is
    /// for interfaces that carry none yet; it stays until the interface is unhooked.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn bridge(&self, ifindex: u32) -> Result<bool> {
        if self.mechanism == Mechanism::Clsact {
            return Ok(false);
        }
        for hook in hook::POD {
            // Filters run behind all links, which could keep packets from them.
            if self.link(ifindex, *hook)?.is_some() || !tcx::programs(ifindex, *hook)?.is_empty() {
                return Ok(false);
            }
        }
        let programs = self.copies.lock().unwrap_or_else(PoisonError::into_inner).first().cloned();
        let Some(programs) = programs else { return Ok(false) };
        clsact::bridge(&self.tc, &self.pins, ifindex, |hook| programs.of(hook))
    }

    /// The same for a device that is not a pod's. Our program is the first here too: the node translates packets before
    /// any program of the device sees them, and one that ends the chain must not end it before us.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn attach_exit(&self, ifindex: u32) -> Result<Attached> {
        self.attach_all(ifindex, hook::EXIT)
    }

    fn attach_all(&self, ifindex: u32, hooks: &[Hook]) -> Result<Attached> {
        let mut done = Attached::default();
        for hook in hooks {
            let taken_over = match self.mechanism {
                Mechanism::Tcx => self.attach_tcx(ifindex, *hook)?,
                Mechanism::Clsact => self.with_copy(ifindex, *hook, |program| {
                    clsact::attach(&self.tc, &self.pins, ifindex, *hook, program)
                })?,
            };
            *(if taken_over { &mut done.taken_over } else { &mut done.fresh }) += 1;
        }
        // What a bridge or an agent with the other setting left would judge every packet a second time. The qdisc stays:
        // taking it away costs packets.
        match self.mechanism {
            Mechanism::Tcx => {
                if clsact::remove(&self.tc, ifindex, hooks)? {
                    done = Attached { fresh: 0, taken_over: done.fresh + done.taken_over };
                }
            }
            Mechanism::Clsact => {
                for hook in hooks {
                    self.let_go(ifindex, *hook)?;
                    tcx::detach(&self.pins, ifindex, *hook)?;
                }
            }
        }
        Ok(done)
    }

    /// Looks at both hooks of a pod's interface.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn verify(&self, ifindex: u32) -> Result<[HookState; 2]> {
        Ok([self.state(ifindex, Hook::Out)?, self.state(ifindex, Hook::In)?])
    }

    /// Looks at the hook of another device.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn verify_exit(&self, ifindex: u32) -> Result<HookState> {
        self.state(ifindex, Hook::Exit)
    }

    /// Attaches what is missing at a pod's interface and moves our program before all others where the mechanism allows
    /// it. True if anything was changed; foreign programs stay where they are.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn repair(&self, ifindex: u32) -> Result<bool> {
        self.repair_all(ifindex, hook::POD)
    }

    /// The same for another device.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn repair_exit(&self, ifindex: u32) -> Result<bool> {
        self.repair_all(ifindex, hook::EXIT)
    }

    fn repair_all(&self, ifindex: u32, hooks: &[Hook]) -> Result<bool> {
        let look = || hooks.iter().map(|hook| self.state(ifindex, *hook)).collect::<Result<Vec<_>>>();
        let states = look()?;
        if states.iter().all(HookState::is_right) {
            return Ok(false);
        }
        for state in states.iter().filter(|state| state.present && !state.lasting) {
            self.pin_again(ifindex, state.hook);
        }
        if states.iter().all(|state| state.present && state.before.is_empty()) {
            return Ok(look()?.iter().all(|state| state.lasting));
        }
        self.attach_all(ifindex, hooks)?;
        for state in look()? {
            if state.before.is_empty() {
                continue;
            }
            let hook = state.hook;
            self.with_copy(ifindex, hook, |program| match self.mechanism {
                Mechanism::Tcx => {
                    let link = tcx::attach(&self.pins, ifindex, hook, program)?;
                    // The one that was behind goes, also where no pin named it.
                    self.let_go(ifindex, hook)?;
                    self.hold(ifindex, hook, link);
                    Ok(())
                }
                Mechanism::Clsact => clsact::go_first(&self.tc, ifindex, hook, program),
            })?;
        }
        Ok(true)
    }

    /// Detaches both programs of a pod's interface, whatever they were attached by, and forgets the interface. It may be
    /// gone already.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        self.detach_all(ifindex, hook::POD)
    }

    /// The same for another device.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn detach_exit(&self, ifindex: u32) -> Result<()> {
        self.detach_all(ifindex, hook::EXIT)
    }

    /// Interfaces at which this or an earlier agent has attached something as to a pod's, those that are gone too.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn attached(&self) -> Result<BTreeSet<u32>> {
        attached(&self.tc, &self.pins, hook::POD)
    }

    /// The same for other devices.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn attached_exits(&self) -> Result<BTreeSet<u32>> {
        attached(&self.tc, &self.pins, hook::EXIT)
    }

    /// True = an earlier program was replaced, or ours was there.
    fn attach_tcx(&self, ifindex: u32, hook: Hook) -> Result<bool> {
        if let Some((link, program)) = self.link(ifindex, hook)? {
            if !self.is_ours(hook, program) {
                self.with_copy(ifindex, hook, |program| tcx::replace(&link, ifindex, program))?;
            }
            self.hold(ifindex, hook, link);
            return Ok(true);
        }
        let link =
            self.with_copy(ifindex, hook, |program| tcx::attach(&self.pins, ifindex, hook, program))?;
        self.hold(ifindex, hook, link);
        Ok(false)
    }

    /// Our link at a hook with the program behind it: the one that we hold, else the one that is pinned.
    fn link(&self, ifindex: u32, hook: Hook) -> Result<Option<(OwnedFd, u32)>> {
        let held = self.links().get(&(ifindex, hook)).map(OwnedFd::try_clone);
        if let Some(Ok(held)) = held
            && let Some(link) = tcx::alive(&held, ifindex, hook)
        {
            return Ok(Some((held, link.program)));
        }
        Ok(tcx::pinned(&self.pins, ifindex, hook)?.map(|(link, told)| (link, told.program)))
    }

    fn is_ours(&self, hook: Hook, program: u32) -> bool {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.iter().any(|programs| programs.of(hook).id == program)
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<(u32, Hook), OwnedFd>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, ifindex: u32, hook: Hook, link: OwnedFd) {
        self.links().insert((ifindex, hook), link);
    }

    /// Detaches the link that we hold, if any.
    fn let_go(&self, ifindex: u32, hook: Hook) -> Result<()> {
        let held = self.links().remove(&(ifindex, hook));
        held.map_or(Ok(()), |link| tcx::detach_open(&link, ifindex))
    }

    fn pin_again(&self, ifindex: u32, hook: Hook) {
        let held = self.links().get(&(ifindex, hook)).and_then(|link| link.try_clone().ok());
        if let Some(Err(error)) = held.map(|link| tcx::pin(&self.pins, ifindex, hook, &link)) {
            tracing::debug!("interface {ifindex}: {}", crate::cli::chain(&error));
        }
    }

    fn remove_programs(&self, ifindex: u32, hooks: &[Hook]) -> Result<()> {
        for hook in hooks {
            self.let_go(ifindex, *hook)?;
            tcx::detach(&self.pins, ifindex, *hook)?;
        }
        clsact::remove(&self.tc, ifindex, hooks).map(drop)
    }

    fn detach_all(&self, ifindex: u32, hooks: &[Hook]) -> Result<()> {
        self.remove_programs(ifindex, hooks)?;
        clsact::leave(&self.tc, &self.pins, ifindex)
    }

    /// Hands over a copy of the direction's program that is not at the hook.
    fn with_copy<T>(&self, ifindex: u32, hook: Hook, work: impl FnOnce(&Program) -> Result<T>) -> Result<T> {
        let there = tcx::programs(ifindex, hook)?;
        let free = |programs: &Arc<Programs>| !there.iter().any(|p| p.id == programs.of(hook).id);
        let copy = {
            let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
            if !copies.iter().any(free) {
                copies.push(Arc::new((self.load_copy)()?));
            }
            copies.iter().find(|programs| free(programs)).cloned()
        };
        // The kernel takes its time to attach: nobody else waits for it.
        match copy {
            Some(programs) => work(programs.of(hook)),
            None => {
                Err(Error::HookTaken { ifindex, holder: "every copy of our program is there".to_owned() })
            }
        }
    }

    fn state(&self, ifindex: u32, hook: Hook) -> Result<HookState> {
        let label = |id: u32, name: &str| format!("{name} (program {id})");
        let chain = tcx::programs(ifindex, hook)?;
        // The whole TCX chain runs before any filter.
        let mut order: Vec<String> = chain.iter().map(|p| label(p.id, &p.name)).collect();
        let first = order.len();
        let (filters, filter) = clsact::filters(&self.tc, ifindex, hook)?;
        order.extend(
            filters.iter().map(|f| label(f.program, if f.name.is_empty() { &f.kind } else { &f.name })),
        );
        let (ours, lasting) = match self.mechanism {
            Mechanism::Tcx => {
                let link = self.link(ifindex, hook)?;
                // Somebody else may have put another program behind our link.
                let program = link.as_ref().map(|(_, id)| *id).filter(|id| self.is_ours(hook, *id));
                let told = link.and_then(|(fd, _)| tcx::alive(&fd, ifindex, hook));
                let lasting = told.is_some_and(|link| tcx::is_pinned(&self.pins, ifindex, hook, &link));
                (chain.iter().position(|p| Some(p.id) == program), lasting)
            }
            Mechanism::Clsact => {
                let is_ours = |at: &usize| filters.get(*at).is_some_and(|f| self.is_ours(hook, f.program));
                (filter.filter(is_ours).map(|position| first + position), true)
            }
        };
        let mut behind = match ours {
            Some(position) => order.split_off(position + 1),
            None => Vec::new(),
        };
        if ours.is_some() {
            order.pop();
        } else if self.mechanism == Mechanism::Tcx {
            // Filters run after the chain, where ours would be.
            order.truncate(first);
        }
        if hook != Hook::Out {
            behind.clear();
        }
        Ok(HookState { hook, present: ours.is_some(), lasting, before: order, behind })
    }
}

/// Removes every trace of this and earlier agents from the calling thread's network namespace and from the pin
/// directory: links, filters, qdiscs that an agent added, maps. Needs nothing but the pins and the filters' names.
///
/// Hands back how many interfaces and how many control groups were unhooked.
///
/// # Errors
/// The kernel's answer; what was removed before stays removed.
pub fn remove_all(pins: &Pins) -> Result<(usize, usize)> {
    let tc = Tc::open().map_err(Error::netlink("open a socket"))?;
    let all = attached(&tc, pins, &Hook::ALL)?;
    for ifindex in &all {
        detach(&tc, pins, *ifindex, &Hook::ALL)?;
    }
    let groups = groups::detach_all(pins)?;
    pins.remove()?;
    Ok((all.len(), groups))
}

fn detach(tc: &Tc, pins: &Pins, ifindex: u32, hooks: &[Hook]) -> Result<()> {
    for hook in hooks {
        tcx::detach(pins, ifindex, *hook)?;
    }
    clsact::remove(tc, ifindex, hooks)?;
    clsact::leave(tc, pins, ifindex)
}

fn attached(tc: &Tc, pins: &Pins, hooks: &[Hook]) -> Result<BTreeSet<u32>> {
    let mut found = pins.linked_interfaces(hooks)?;
    found.extend(pins.noted_qdiscs()?);
    for ifindex in tc.interfaces().map_err(Error::netlink("list the interfaces"))? {
        for hook in hooks {
            if clsact::filters(tc, ifindex, *hook)?.1.is_some() {
                found.insert(ifindex);
            }
        }
    }
    Ok(found)
}
