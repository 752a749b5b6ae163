//! The task that writes Events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kube::Client;

use super::queue::{Count, Queue};
use super::{Notice, notices, rank};
use crate::agent::Published;
use crate::source::kube::write::{Written, write};

/// How often it is looked for something new.
const LOOK: Duration = Duration::from_millis(500);
/// When a failed request is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// The task.
pub struct Sender {
    /// The API server.
    pub client: Client,
    /// Name of this node.
    pub node: String,
    /// What is the case.
    pub published: Published,
    /// What became of notices.
    pub count: Arc<Count>,
}

impl Sender {
    /// Writes for ever.
    pub async fn run(self) {
        let mut queue = Queue::new(Instant::now());
        let mut ticks = tokio::time::interval(LOOK);
        let mut logged = String::new();
        loop {
            ticks.tick().await;
            let view = self.published.get();
            let nodes = &view.world.nodes;
            let wait = |notice: &Notice| rank::wait(notice, &self.node, nodes.keys().map(|name| &**name));
            let suppressed = queue.follow(Instant::now(), notices(&view), wait);
            self.count.suppressed.fetch_add(suppressed, Ordering::Relaxed);
            while let Some(notice) = queue.next(Instant::now()) {
                if let Some(fault) = self.send(&mut queue, &notice).await
                    && fault != logged
                {
                    tracing::warn!("a Kubernetes Event cannot be written: {fault}");
                    logged = fault;
                }
            }
        }
    }

    /// Writes one; the fault if that failed.
    async fn send(&self, queue: &mut Queue, notice: &Notice) -> Option<String> {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", notice.policy.namespace);
        let event = notice.event(&self.node, &time);
        let (count, fault) = match write(&self.client, &path, "events", "events.k8s.io", &event).await {
            Written::Created => (&self.count.written, None),
            Written::Present => (&self.count.present, None),
            Written::Refused(fault) => (&self.count.refused, Some(fault)),
            Written::Failed(fault) => {
                queue.again(notice, Instant::now() + AGAIN);
                return Some(fault);
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        fault
    }
}
