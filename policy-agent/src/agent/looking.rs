//! Interfaces are looked at on a thread of their own: the kernel answers no question about links while it hooks one, and a
//! change of policy needs no answer.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use policy_engine::world::Delta;

use super::core::Core;
use super::placement::{NetnsLinks, keep_from_ending, netns_paths, place};
use crate::netlink::{Discovery, Interfaces};

/// Network namespaces by path, whose links are to be found.
type Paths = BTreeSet<String>;

/// What one look has seen.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    /// Every question up to this number is answered.
    number: u64,
    seen: Result<(Interfaces, NetnsLinks), String>,
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Looking {
    questions: Sender<(u64, Paths)>,
    asked: u64,
    answered: u64,
    paths: Paths,
    /// The first look after the sources have told everything.
    first: Option<u64>,
}

impl Looking {
    /// Starts the thread. `done` returns false when nobody listens any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        discovery: Discovery,
        done: impl Fn(Looked) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (questions, inbox) = channel();
        thread::Builder::new().name("looks".to_owned()).spawn(move || run(&discovery, &inbox, &done))?;
        Ok(Self { questions, asked: 0, answered: 0, paths: Paths::new(), first: None })
    }

    /// The number of the newest question.
    #[must_use]
    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    /// Whether this question is answered.
    #[must_use]
    pub(super) fn is_answered(&self, number: u64) -> bool {
        self.answered >= number
    }

    fn ask(&mut self, paths: &Paths) {
        self.asked += 1;
        self.paths.clone_from(paths);
        // The thread ends only with the process or with whoever listens to it.
        drop(self.questions.send((self.asked, paths.clone())));
    }
}

fn run(discovery: &Discovery, inbox: &Receiver<(u64, Paths)>, done: &impl Fn(Looked) -> bool) {
    while let Ok(oldest) = inbox.recv() {
        // One look answers all that were asked before it.
        let (number, paths) = inbox.try_iter().last().unwrap_or(oldest);
        let seen = look(discovery, &paths).map_err(|error| error.to_string());
        if !done(Looked { number, seen }) {
            return;
        }
    }
}

fn look(discovery: &Discovery, paths: &Paths) -> io::Result<(Interfaces, NetnsLinks)> {
    let interfaces = discovery.snapshot()?;
    let links = |path: &String| {
        (path.clone(), discovery.links_of_netns(Path::new(path)).map_err(|error| error.to_string()))
    };
    Ok((interfaces, paths.iter().map(links).collect()))
}

impl Core {
    /// Takes in what was seen, and has a new look taken if something may have changed or could not be seen the last time.
    pub(super) fn look(&mut self, looked: Option<Looked>, network: bool, now: Instant) {
        let news = looked.is_some();
        if let Some(Looked { number, seen }) = looked {
            self.looking.answered = number;
            self.seen(seen, now);
        }
        let paths = netns_paths(&self.world);
        let missed = !news && self.blind.is_some() && self.rehook.due(now);
        if missed {
            self.rehook.failed(now);
        }
        let first = self.told && self.looking.first.is_none();
        if network || missed || first || paths != self.looking.paths {
            self.looking.ask(&paths);
        }
        if first {
            self.looking.first = Some(self.looking.asked);
        }
    }

    fn seen(&mut self, seen: Result<(Interfaces, NetnsLinks), String>, now: Instant) {
        let failure = match seen {
            Ok((interfaces, netns)) => {
                let addresses = Delta::HostAddresses(interfaces.host_addresses.clone());
                self.stale |= self.world.apply(addresses);
                (self.interfaces, self.netns) = (interfaces, netns);
                None
            }
            Err(error) => {
                self.rehook.failed(now);
                self.tally.failures += 1;
                tracing::error!("look at the interfaces: {error}: tried again");
                Some(format!("look at the interfaces: {error}"))
            }
        };
        self.blind = failure;
    }

    /// Whether the pods can be found: not before the first look that knows of all of them.
    #[must_use]
    pub(super) fn can_place(&self) -> bool {
        self.looking.first.is_some_and(|number| self.looking.is_answered(number))
    }

    /// Finds the places of the pods in what was seen last.
    pub(super) fn place(&mut self, first: bool) {
        self.look_at_groups();
        self.places = place(&self.world, &self.interfaces, &self.netns, &self.workloads.found);
        if !first {
            let has = |pod: &_| self.table.of_pod(pod).map(|local| local.ifindex);
            keep_from_ending(&mut self.places, &self.world, has);
        }
    }
}
