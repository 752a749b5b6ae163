//! One kind, watched for ever: a full list, then every change, and again from where it broke off.
//!
//! A list comes as a stream where the server can do that ([streaming lists]), else in pages; both read the newest state.
//! `kube::runtime::watcher` does much the same, but it keeps bookmarks for itself, on which the answer to
//! `policyctl wait` depends, and begins its streaming lists with whatever a cache holds.
//!
//! [streaming lists]: https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists

use std::time::{Duration, Instant};

use futures::io::{AsyncBufRead, AsyncBufReadExt as _};
use kube::Client;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use super::backoff::{Again, Backoff, part};
use super::fault::{Class, Fault, Request};
use super::kind::Kind;
use super::line::Line;
use super::object::{Object, version};
use super::pages::{Content, Pages};
use super::served::served;
use super::store::{Event, Message};

/// The server ends a watch after this time, up to a minute earlier: not those of all nodes and kinds at once.
const LENGTH: Duration = Duration::from_secs(290);
/// Longest that the server may take to begin an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A server that sends bookmarks does so every minute. A connection without a word for so long may be dead, and a new one
/// costs little.
const IDLE: Duration = Duration::from_secs(130);
/// A watch that ends sooner than this, without a word, counts as a failure.
const SHORT: Duration = Duration::from_secs(1);
/// A kind that the server does not have is looked for again after this time, or up to twice as long: a CRD is rarely
/// installed, and all nodes ask.
const ABSENT: Duration = Duration::from_secs(15);
/// After this time it is asked once more whether a kind is gone.
const CONFIRM: Duration = Duration::from_secs(2);

/// The task of a kind.
pub(super) struct Watcher {
    client: Client,
    kind: Kind,
    out: Sender<Message>,
    /// Lists come as streams.
    streaming: bool,
    /// Version up to which everything was told; `None` = a list is needed.
    at: Option<String>,
    /// The fault that was logged last.
    logged: Option<Fault>,
    again: Again,
    /// Whether the server had the kind when it was last asked, if it may lack it.
    served: Option<bool>,
}

/// Why a turn ended before its time.
enum End {
    /// Nobody listens any more.
    Closed,
    /// A request failed.
    Failed(Fault),
    /// The server does not have the kind.
    Absent,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

impl Watcher {
    /// A watcher that tells `out`.
    pub(super) fn new(client: Client, kind: Kind, out: Sender<Message>, again: Again) -> Self {
        Self { client, kind, out, streaming: true, at: None, logged: None, again, served: None }
    }

    /// Watches until nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let before = self.at.clone();
            let end = self.turn().await;
            if self.at.is_some() && self.at != before {
                backoff.reset();
            }
            let wait = match end {
                Err(End::Closed) => return,
                Ok(()) if self.at != before || begun.elapsed() > SHORT => Duration::ZERO,
                Ok(()) => backoff.next(),
                Err(End::Failed(fault))
                    if fault.class == Class::Unsupported && before.is_none() && self.streaming =>
                {
                    tracing::info!(kind = %self.kind, "the server streams no lists, they are read in pages: {}", fault.message);
                    self.streaming = false;
                    Duration::ZERO
                }
                Err(End::Absent) => {
                    backoff.reset();
                    ABSENT + part(ABSENT)
                }
                // The CRD has gone while its objects were watched.
                Err(End::Failed(fault)) if fault.class == Class::Absent && self.kind.is_optional() => {
                    self.at = None;
                    backoff.next()
                }
                Err(End::Failed(fault)) => {
                    if !matches!(fault.class, Class::Later | Class::Absent) {
                        self.at = None;
                    }
                    if self.failed(fault).await.is_err() {
                        return;
                    }
                    backoff.next()
                }
            };
            if self.again.wait(wait).await {
                backoff.reset();
            }
        }
    }

    async fn turn(&mut self) -> Result<(), End> {
        if self.at.is_none() && self.kind.is_optional() && !self.is_served().await? {
            self.works().await?;
            self.send(Event::Absent).await?;
            return Err(End::Absent);
        }
        match (&self.at, self.streaming) {
            (None, false) => self.list().await,
            (None, true) | (Some(_), _) => self.stream().await,
        }
    }

    /// Whether the API server has the kind. What was there is not taken for gone at the first word: a server that starts
    /// may not know its CRDs yet.
    async fn is_served(&mut self) -> Result<bool, End> {
        let mut served = served(&self.client, self.kind).await?;
        if !served && self.served == Some(true) {
            sleep(CONFIRM).await;
            served = super::served::served(&self.client, self.kind).await?;
        }
        if self.served.replace(served) != Some(served) && !served {
            let seconds = ABSENT.as_secs();
            tracing::info!(kind = %self.kind, "the API server does not have this kind; looked for again after {seconds} s");
        }
        Ok(served)
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        self.out.send(Message::Of(self.kind, event)).await.map_err(|_| End::Closed)
    }

    /// Logged once, not at each try.
    async fn failed(&mut self, fault: Fault) -> Result<(), End> {
        if self.logged.as_ref() != Some(&fault) {
            let hint = fault.hint.as_deref().unwrap_or_default();
            match fault.class {
                Class::Expired => tracing::info!(kind = %self.kind, "{}: a full list is read", fault.message),
                Class::Later | Class::Unsupported | Class::Exists | Class::Absent => {
                    tracing::warn!(kind = %self.kind, hint, "{}; tried again", fault.message);
                }
            }
            self.logged = Some(fault.clone());
        }
        self.send(Event::Failed(fault)).await
    }

    async fn works(&mut self) -> Result<(), End> {
        if self.logged.take().is_some() {
            tracing::info!(kind = %self.kind, "the API server answers again");
            self.again.tell();
        }
        self.send(Event::Connected).await
    }

    async fn list(&mut self) -> Result<(), End> {
        self.send(Event::Begin).await?;
        let mut pages = Pages::new(self.client.clone(), self.kind, Content::Objects);
        let mut at = String::new();
        while let Some(page) = pages.next().await? {
            at = page.version;
            for value in page.items {
                let Some(object) = Object::of(self.kind, value) else { continue };
                self.send(Event::Listed(object)).await?;
            }
        }
        self.complete(at).await
    }

    async fn complete(&mut self, at: String) -> Result<(), End> {
        self.works().await?;
        self.send(Event::Complete(version(&at))).await?;
        self.at = Some(at);
        Ok(())
    }

    /// Reads a stream to its end. An error in its middle is an end like any other: whether there is trouble shows when
    /// it is begun again.
    async fn stream(&mut self) -> Result<(), End> {
        let mut lines = self.connect().await?;
        let begun = Instant::now();
        if self.at.is_none() {
            self.send(Event::Begin).await?;
        } else {
            self.works().await?;
        }
        let mut text = Vec::new();
        loop {
            text.clear();
            match timeout(IDLE, lines.read_until(b'\n', &mut text)).await {
                Ok(Ok(1..)) if text.ends_with(b"\n") => self.line(&text).await?,
                Ok(Ok(_) | Err(_)) => return self.ended(begun),
                Err(_) => {
                    tracing::debug!(kind = %self.kind, "no word for {} s: a new connection", IDLE.as_secs());
                    return self.ended(begun);
                }
            }
        }
    }

    /// A list that a server does not bring to its end is read in pages.
    fn ended(&mut self, begun: Instant) -> Result<(), End> {
        if self.at.is_none() && begun.elapsed() > SHORT {
            self.streaming = false;
        }
        Ok(())
    }

    async fn connect(&self) -> Result<impl AsyncBufRead + Unpin + use<>, Fault> {
        let asked = Request::watch(self.kind);
        let seconds = (LENGTH - part(Duration::from_secs(60))).as_secs();
        let mut uri = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion=",
            self.kind.path()
        );
        match &self.at {
            Some(at) => uri.push_str(at),
            // Without a version: the newest state, not older than this moment.
            None => uri.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        }
        let request = http::Request::get(uri).body(Vec::new()).map_err(|e| Fault::later(e.to_string()))?;
        let answer = timeout(PATIENCE, self.client.request_stream(request)).await;
        let slow = || {
            Fault::later(format!(
                "the API server did not begin to watch {} within {} s",
                self.kind,
                PATIENCE.as_secs()
            ))
        };
        let lines = answer.map_err(|_| slow())?.map_err(|e| Fault::of(asked, &e))?;
        Ok(Box::pin(lines))
    }

    async fn line(&mut self, text: &[u8]) -> Result<(), End> {
        let line = Line::read(self.kind, text).map_err(|e| Fault {
            // From here on only a list tells what there is.
            class: Class::Expired,
            ..Fault::later(format!("the API server sent no event of a watch: {e}"))
        })?;
        match line {
            Line::Put(object) if self.at.is_none() => self.send(Event::Listed(object)).await,
            Line::Put(object) => {
                self.advance(&object);
                self.send(Event::Put(object)).await
            }
            // A list does not hold what is gone.
            Line::Gone(_) if self.at.is_none() => Ok(()),
            Line::Gone(object) => {
                self.advance(&object);
                self.send(Event::Gone(object)).await
            }
            Line::Bookmark { version, list_end } if self.at.is_none() => match list_end {
                true => self.complete(version).await,
                false => Ok(()),
            },
            Line::Bookmark { version: at, .. } => {
                let number = version(&at);
                self.at = Some(at);
                self.send(Event::Progress(number)).await
            }
            Line::Error(status) => {
                let mut fault = Fault::answered(Request::watch(self.kind), &status);
                // Such a list needs features of the server's data store that an old one lacks.
                if self.at.is_none() && self.streaming && status.code == 500 {
                    fault.class = Class::Unsupported;
                }
                Err(fault.into())
            }
        }
    }

    fn advance(&mut self, object: &Object) {
        if object.version > 0 {
            self.at = Some(object.version.to_string());
        }
    }
}

#[cfg(test)]
mod tests;
