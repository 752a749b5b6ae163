//! When to read the directory again: file events, gathered until whoever writes has finished.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Event, EventKind, INotifyWatcher, RecursiveMode, Watcher};

use super::text::Syntax;

/// Quiet time after the last event before the directory is read.
const QUIET: Duration = Duration::from_millis(8);
/// Quiet time after a write to a file that its writer has not closed.
const UNCLOSED: Duration = Duration::from_millis(60);
/// Longest that a stream of events can put off the reading of files that nobody is writing.
const LONGEST: Duration = Duration::from_millis(200);
/// The directory is read again after this time even without an event: network file systems send none.
const RESCAN: Duration = Duration::from_secs(15);
/// The same when the system refuses watches.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(2);

/// What the watching thread hears.
#[derive(Debug)]
pub(super) enum Message {
    /// A file event, or a failure of the watch itself.
    File(notify::Result<Event>),
    /// Read as soon as nobody is writing.
    Rescan,
    /// End.
    Stop,
}

/// Why the directory should be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Something changed or the time has come.
    Scan {
        /// Files that are being written: leave them as they are known.
        unsettled: HashSet<PathBuf>,
        /// How many requests this reading answers.
        asked: u64,
    },
    /// The thread ends.
    Stopped,
}

/// The watches and what has been heard since the last reading.
#[derive(Debug)]
pub(super) struct Watch {
    root: PathBuf,
    messages: Receiver<Message>,
    /// `None` when the system refuses a watch at all.
    watcher: Option<INotifyWatcher>,
    watched: BTreeSet<PathBuf>,
    refused: Option<String>,
    heard: Heard,
    asked: u64,
}

impl Watch {
    /// A watch without directories yet, and the way to talk to it.
    pub(super) fn new(root: &Path) -> (Self, Sender<Message>) {
        let (sender, messages) = channel();
        let events = sender.clone();
        // A failed send means that the thread has ended: nobody listens any more.
        let made =
            INotifyWatcher::new(move |e| drop(events.send(Message::File(e))), notify::Config::default());
        let refused = made.as_ref().err().map(ToString::to_string);
        let watch = Self {
            root: root.to_owned(),
            messages,
            watcher: made.ok(),
            watched: BTreeSet::new(),
            refused,
            heard: Heard::default(),
            asked: 0,
        };
        (watch, sender)
    }

    /// Why changes are noticed late, if they are.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Watches exactly these directories. True when one is new: what happened in it before now was not heard.
    pub(super) fn follow(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        for gone in self.watched.difference(directories) {
            // It may be gone from the disk, and with it the watch.
            drop(watcher.unwatch(gone));
        }
        self.watched.retain(|d| directories.contains(d));
        self.refused = None;
        let mut new = false;
        for directory in directories {
            if self.watched.contains(directory) {
                continue;
            }
            match watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory.clone());
                    new = true;
                }
                Err(e) if matches!(e.kind, notify::ErrorKind::PathNotFound) => {}
                Err(e) => self.refused = Some(format!("{}: {e}", directory.display())),
            }
        }
        new
    }

    /// Waits until the directory should be read.
    pub(super) fn wait(&mut self) -> Due {
        let period = if self.refused.is_some() { RESCAN_UNWATCHED } else { RESCAN };
        let periodic = Instant::now() + period;
        loop {
            let due = self.heard.due().unwrap_or(periodic);
            match self.messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    if self.hear(message, Instant::now()) {
                        return Due::Stopped;
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.heard.first.is_some() => {
                    let unsettled = self.heard.take(Instant::now());
                    // What is being written right now is part of the answer: it comes when it is at rest.
                    let asked = if unsettled.is_empty() { std::mem::take(&mut self.asked) } else { 0 };
                    return Due::Scan { unsettled, asked };
                }
                Err(RecvTimeoutError::Timeout) => {
                    // Watches are set again too: a directory may have been replaced without a word.
                    self.watched.clear();
                    return Due::Scan { unsettled: HashSet::new(), asked: std::mem::take(&mut self.asked) };
                }
                Err(RecvTimeoutError::Disconnected) => return Due::Stopped,
            }
        }
    }

    /// True when the thread should end.
    fn hear(&mut self, message: Message, now: Instant) -> bool {
        match message {
            Message::Stop => return true,
            Message::Rescan => {
                self.asked += 1;
                self.heard.something(now);
            }
            Message::File(Ok(event)) => {
                if event.need_rescan() {
                    self.watched.clear();
                    self.heard.something(now);
                } else if self.concerns(&event) {
                    self.forget_moved(&event);
                    self.heard.event(&event, now);
                }
            }
            Message::File(Err(_)) => {
                self.watched.clear();
                self.heard.something(now);
            }
        }
        false
    }

    /// The directory above the root is watched for the root alone.
    fn concerns(&self, event: &Event) -> bool {
        let above = self.root.parent();
        event
            .paths
            .iter()
            .any(|path| path.parent() != above || *path == self.root || path.starts_with(&self.root))
    }

    /// A watch goes with its directory, or away with it under its new name.
    fn forget_moved(&mut self, event: &Event) {
        if !matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) | EventKind::Create(_)
        ) {
            return;
        }
        for path in &event.paths {
            let below: Vec<_> = self.watched.iter().filter(|d| d.starts_with(path)).cloned().collect();
            for directory in below {
                self.watched.remove(&directory);
                if let Some(watcher) = &mut self.watcher {
                    drop(watcher.unwatch(&directory));
                }
            }
        }
    }
}

/// Events since the last reading.
#[derive(Debug, Default)]
struct Heard {
    first: Option<Instant>,
    last: Option<Instant>,
    /// Files with a write after which they were not closed.
    writing: HashMap<PathBuf, Instant>,
}

impl Heard {
    fn something(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn event(&mut self, event: &Event, now: Instant) {
        let is_manifest =
            |p: &PathBuf| p.file_name().is_some_and(|n| Syntax::of(&n.to_string_lossy()).is_some());
        let manifests = event.paths.iter().filter(|p| is_manifest(p));
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in manifests {
                    self.writing.remove(path);
                    self.something(now);
                }
            }
            EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File) => {
                for path in manifests {
                    self.writing.insert(path.clone(), now);
                    self.something(now);
                }
            }
            EventKind::Access(_) => {}
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => {
                for path in &event.paths {
                    self.writing.remove(path);
                }
                self.something(now);
            }
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => {
                self.something(now);
            }
        }
    }

    /// When to read; `None` = nothing was heard.
    fn due(&self) -> Option<Instant> {
        let (first, last) = (self.first?, self.last?);
        let written = self.writing.values().max().map(|at| *at + UNCLOSED);
        Some((last + QUIET).max(written.unwrap_or(last)).min(first + LONGEST))
    }

    /// Starts anew and tells which files are being written; those stay heard.
    fn take(&mut self, now: Instant) -> HashSet<PathBuf> {
        self.writing.retain(|_, at| *at + UNCLOSED > now);
        let still = (!self.writing.is_empty()).then_some(now);
        (self.first, self.last) = (still, still);
        self.writing.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, RemoveKind, RenameMode};

    fn event(kind: EventKind, path: &str) -> Event {
        Event::new(kind).add_path(PathBuf::from(path))
    }

    const WRITE: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

    #[test]
    fn a_closed_file_is_read_soon_and_an_open_one_when_it_rests() {
        let (mut heard, now) = (Heard::default(), Instant::now());
        heard.event(&event(WRITE, "/m/a.yaml"), now);
        assert_eq!(heard.due(), Some(now + UNCLOSED));
        heard.event(&event(CLOSE, "/m/a.yaml"), now);
        assert_eq!(heard.due(), Some(now + QUIET));
        assert_eq!(heard.take(now + QUIET), HashSet::new());
        assert_eq!(heard.due(), None);
    }

    #[test]
    fn a_file_that_is_written_for_long_does_not_hold_up_the_others() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        let mut now = start;
        heard.event(&event(CLOSE, "/m/b.yaml"), now);
        while now < start + LONGEST {
            heard.event(&event(WRITE, "/m/a.yaml"), now);
            now += Duration::from_millis(10);
        }
        assert_eq!(heard.due(), Some(start + LONGEST));
        assert_eq!(heard.take(now), HashSet::from([PathBuf::from("/m/a.yaml")]));
        assert!(heard.due().is_some(), "its own turn comes");
        assert_eq!(heard.take(now + UNCLOSED), HashSet::new());
    }

    #[test]
    fn other_files_and_reading_are_not_heard_but_renames_and_removals_are() {
        let now = Instant::now();
        let hears = |kind, path| {
            let mut heard = Heard::default();
            heard.event(&event(kind, path), now);
            heard.due().is_some()
        };
        assert!(!hears(WRITE, "/m/.a.yaml.swp"));
        assert!(!hears(CLOSE, "/m/notes.txt"));
        assert!(!hears(EventKind::Access(AccessKind::Open(AccessMode::Any)), "/m/a.yaml"));
        assert!(!hears(EventKind::Access(AccessKind::Close(AccessMode::Read)), "/m/a.yaml"));
        assert!(hears(EventKind::Modify(ModifyKind::Name(RenameMode::Both)), "/m/..data"));
        assert!(hears(EventKind::Remove(RemoveKind::File), "/m/a.yaml"));
        assert!(hears(EventKind::Create(CreateKind::Folder), "/m/sub"));
    }
}
