//! The thread that reads the manifests: at the start, at every change, and when somebody asks for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use super::files::{Files, Scan};
use super::objects::{Located, Objects, Update};
use super::watch::{Due, Message, Watch};
use super::{SourceState, Told};

/// The running thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct FilesSource {
    root: PathBuf,
    asked: u64,
    messages: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl FilesSource {
    /// Starts the thread. `tell` gets the first reading at once, then every one that changed something or answers a
    /// request; it returns false when nobody listens any more.
    ///
    /// # Errors
    /// When the directory cannot be read, or the thread not be started.
    pub fn start(root: &Path, tell: impl Fn(Told) -> bool + Send + 'static) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        super::files::read_dir(&root)?;
        let (watch, messages) = Watch::new(&root);
        let reader =
            Reader { files: Files::new(&root), objects: Objects::default(), watch, problems: Vec::new() };
        let thread = thread::Builder::new().name("files".to_owned()).spawn(move || reader.run(&tell))?;
        Ok(Self { root, asked: 0, messages, thread: Some(thread) })
    }

    /// The directory, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Asks for a reading. Returns the number of the request; a later [`Told::answered`] reaches it.
    pub fn read_again(&mut self) -> u64 {
        self.asked += 1;
        // The thread ends only with this value.
        drop(self.messages.send(Message::Rescan));
        self.asked
    }
}

impl Drop for FilesSource {
    fn drop(&mut self) {
        drop(self.messages.send(Message::Stop));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Reader {
    files: Files,
    objects: Objects,
    watch: Watch,
    problems: Vec<Located>,
}

impl Reader {
    fn run(mut self, tell: &impl Fn(Told) -> bool) {
        let mut due = Due::Scan { unsettled: std::collections::HashSet::new(), asked: 0 };
        let mut answered = 0;
        let mut first = true;
        while let Due::Scan { unsettled, asked } = due {
            let mut update = self.read(&unsettled);
            answered += asked;
            if let Some(refused) = self.watch.refused() {
                update.problems.push(Located {
                    location: refused.to_owned(),
                    object: String::new(),
                    field: String::new(),
                    message: "changes are noticed only every 2 seconds: the system refuses a watch \
                              (fs.inotify.max_user_watches and max_user_instances limit them)"
                        .to_owned(),
                    broken: false,
                    version: 0,
                });
            }
            let news = first || asked > 0 || !update.deltas.is_empty() || update.problems != self.problems;
            self.problems.clone_from(&update.problems);
            first = false;
            let state = SourceState { synced: true, ..SourceState::default() };
            if news && !tell(Told { update, answered, state }) {
                return;
            }
            due = self.watch.wait();
        }
    }

    /// Reads until every directory that counts was watched before it was read.
    fn read(&mut self, unsettled: &std::collections::HashSet<PathBuf>) -> Update {
        // Directories that change all the time must not keep us here.
        const ROUNDS: usize = 8;
        let mut scan = Scan::default();
        for _ in 0..ROUNDS {
            scan = self.files.scan(unsettled);
            if !self.watch.follow(&scan.directories) {
                break;
            }
        }
        self.objects.update(&scan.snapshot)
    }
}
