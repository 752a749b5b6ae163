//! Objects from the API server of a cluster: a task watches each kind, and one store tells what is news.
//!
//! ```text
//! Watcher (each kind) ─┐
//!                      ├─> Store ─> Told ─> writer
//! ask (policyctl wait) ┘
//! ```

mod ask;
mod backoff;
pub mod connect;
mod fault;
mod intern;
pub mod kind;
mod line;
mod object;
mod pages;
mod point;
mod served;
mod shape;
mod store;
mod watch;
pub mod write;

use tokio::sync::mpsc::{self, Receiver, UnboundedSender};
use tokio::task::JoinSet;

use self::backoff::Again;
use self::connect::Connection;
use self::kind::Kind;
use self::store::{Message, Store};
use self::watch::Watcher;
use super::Told;

/// Messages between the watches and the store: when it is full the watches wait, and with them the server. An object in it
/// takes some kilobytes, ten times as much as what is kept of it.
const QUEUE: usize = 256;

/// The running tasks. Dropping it ends them.
#[derive(Debug)]
pub struct KubeSource {
    asked: u64,
    asks: UnboundedSender<u64>,
    _tasks: JoinSet<()>,
}

impl KubeSource {
    /// Starts the tasks, on the runtime of the caller. `tell` gets the state of the source at once, the objects as soon
    /// as every kind is complete, and then every change; it returns false when nobody listens any more.
    #[must_use]
    pub fn start(
        connection: &Connection,
        node: &str,
        kinds: &[Kind],
        tell: impl Fn(Told) -> bool + Send + 'static,
    ) -> Self {
        let (out, messages) = mpsc::channel(QUEUE);
        let (asks, asked) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let again = Again::new();
        for kind in kinds {
            let client = connection.client.clone();
            tasks.spawn(Watcher::new(client, *kind, out.clone(), again.clone()).run());
        }
        tasks.spawn(ask::run(connection.client.clone(), kinds.to_vec(), asked, out, again));
        tasks.spawn(tell_all(Store::new(node, kinds), messages, tell));
        Self { asked: 0, asks, _tasks: tasks }
    }

    /// Asks that everything the API server holds now be told. Returns the number of the request; a later
    /// [`Told::answered`] reaches it.
    pub fn read_again(&mut self) -> u64 {
        self.asked += 1;
        // The task ends only with this value.
        let _: Result<(), _> = self.asks.send(self.asked);
        self.asked
    }
}

/// Everything that has arrived is told at once: it becomes one plan.
async fn tell_all(mut store: Store, mut messages: Receiver<Message>, tell: impl Fn(Told) -> bool) {
    let mut unknown = None;
    loop {
        if let Some(told) = store.told()
            && !tell(told)
        {
            return;
        }
        if unknown != store.unknown_node() {
            unknown = store.unknown_node();
            match &unknown {
                Some(why) => tracing::error!("{why}"),
                None => tracing::info!("the Node of this agent is there"),
            }
        }
        let Some(message) = messages.recv().await else { return };
        store.take(message);
        // No more than fits in the queue: a server that never pauses must not keep us from telling.
        for _ in 0..QUEUE {
            match messages.try_recv() {
                Ok(message) => store.take(message),
                Err(_) => break,
            }
        }
    }
}
