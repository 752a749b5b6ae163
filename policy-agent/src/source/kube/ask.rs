//! Answers "is everything here?": reads points of the API server's data while somebody waits.

use std::collections::BTreeMap;

use kube::Client;
use tokio::sync::mpsc::{Sender, UnboundedReceiver};

use super::backoff::{Again, Backoff};
use super::fault::Fault;
use super::kind::Kind;
use super::object::{Object, version};
use super::pages::{Content, Pages};
use super::point::{Point, Versions};
use super::served::served;
use super::store::Message;

/// The task: requests come in by number, points go out. Requests that come while one is worked on share the next point.
pub(super) async fn run(
    client: Client,
    kinds: Vec<Kind>,
    mut asked: UnboundedReceiver<u64>,
    out: Sender<Message>,
    mut again: Again,
) {
    while let Some(mut number) = asked.recv().await {
        let mut backoff = Backoff::default();
        let kinds = loop {
            while let Ok(later) = asked.try_recv() {
                number = later;
            }
            match point(&client, &kinds).await {
                Ok(kinds) => break kinds,
                // The watches tell what is wrong.
                Err(fault) => tracing::debug!("no point of the API server's data: {fault}"),
            }
            if again.wait(backoff.next()).await {
                backoff.reset();
            }
        };
        if out.send(Message::Point(Point { number, kinds })).await.is_err() {
            return;
        }
    }
}

async fn point(client: &Client, kinds: &[Kind]) -> Result<BTreeMap<Kind, Versions>, Fault> {
    let all = kinds.iter().map(|kind| async move { Ok((*kind, versions(client.clone(), *kind).await?)) });
    futures::future::try_join_all(all).await.map(BTreeMap::from_iter)
}

async fn versions(client: Client, kind: Kind) -> Result<Versions, Fault> {
    if kind.is_optional() && !served(&client, kind).await? {
        return Ok(Versions::default());
    }
    let mut pages = Pages::new(client, kind, Content::Versions);
    let mut found = Versions::default();
    while let Some(page) = pages.next().await? {
        found.version = version(&page.version);
        let objects = page.items.into_iter().filter_map(|value| Object::of(kind, value));
        found.objects.extend(objects.map(|object| (object.key, object.version)));
    }
    Ok(found)
}
