//! What other locations serve, for the ingresses of this one.
//!
//! The global plane says it. It is kept in the store, so that a location that is started while it is cut off
//! still knows where its ingresses may pass requests on, and whom they may take requests from. It is knowledge
//! and no decision, so ingresses are told before it is stored, and on a full disk all the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::response::Response;
use futures_util::StreamExt as _;
use longshore_api::links::{AppRef, Elsewhere, ElsewhereChange, MeasuredWays, Peering, Places};
use longshore_link::{CallError, Followed, json_lines, watch_lines};
use longshore_store::{MAX_OPERATIONS, Page, Record, RecordError, Store, StoreError, Transaction};
use longshore_types::LocationName;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::LocationError;

/// Below this, one record per other location.
const PEERS: &str = "/elsewhere/peers/";
/// Below this, one record per app that is served elsewhere.
const APPS: &str = "/elsewhere/apps/";
/// How long what was measured counts. Ingresses say it every few seconds.
const MEASURED_FOR: Duration = Duration::from_secs(60);
/// The first and the longest wait before the global plane is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct PeerRecord(Peering);

impl Record for PeerRecord {
    const KIND: &'static str = "peer";
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct PlacesRecord(Places);

impl Record for PlacesRecord {
    const KIND: &'static str = "places";
}

/// Why what was told is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The store refuses or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be written as a record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What is known of other locations.
pub struct Others {
    store: Arc<dyn Store>,
    known: watch::Sender<Arc<Elsewhere>>,
    /// What an ingress said last of the ways to other locations, and when.
    measured: Mutex<Option<(MeasuredWays, Instant)>>,
}

impl Others {
    /// What is stored of it.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, LocationError> {
        let mut known = Elsewhere::default();
        for stored in store.list(PEERS, Page::default()).await?.items {
            if let Some(Ok(name)) = stored.key.strip_prefix(PEERS).map(str::parse) {
                known.peers.insert(name, stored.decode::<PeerRecord>()?.0);
            }
        }
        for stored in store.list(APPS, Page::default()).await?.items {
            if let Some(app) = stored.key.strip_prefix(APPS).and_then(parse_app) {
                known.apps.insert(app, stored.decode::<PlacesRecord>()?.0);
            }
        }
        let known = watch::Sender::new(Arc::new(known));
        Ok(Self { store, known, measured: Mutex::default() })
    }

    /// Follows what the global plane says, for ever.
    pub async fn follow(self: Arc<Self>, global: Followed, location: LocationName) {
        let path = format!("/link/locations/{location}/elsewhere");
        let mut wait = RETRY.0;
        loop {
            if let Err(error) = self.follow_until_broken(&global, &path, &mut wait).await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "nothing is heard of other locations for now");
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    async fn follow_until_broken(
        &self,
        global: &Followed,
        path: &str,
        wait: &mut Duration,
    ) -> Result<(), CallError> {
        let mut changes = global.watch::<ElsewhereChange>(path).await?;
        while let Some(change) = changes.next().await {
            *wait = RETRY.0;
            self.take(change?).await;
        }
        Ok(())
    }

    async fn take(&self, change: ElsewhereChange) {
        let before = self.known.borrow().clone();
        let mut now = Elsewhere::clone(&before);
        now.take(change);
        let news = now.since(&before);
        if news.is_empty() {
            return;
        }
        self.known.send_replace(Arc::new(now));
        if let Err(error) = self.keep(news).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what other locations serve is not kept");
        }
    }

    /// Stores what differs. Each record is right by itself, so it does not matter between which of them
    /// a crash comes.
    async fn keep(&self, news: ElsewhereChange) -> Result<(), KeepError> {
        let ElsewhereChange { whole: _, peers, peers_gone, apps, apps_gone } = news;
        let mut writes = Vec::new();
        for (name, peer) in peers {
            let value = longshore_store::record::encode(&PeerRecord(peer))?;
            writes.push((format!("{PEERS}{name}"), Some(value)));
        }
        for served in apps {
            let key = app_key(&AppRef { project: served.project, app: served.app });
            let value = longshore_store::record::encode(&PlacesRecord(served.places))?;
            writes.push((key, Some(value)));
        }
        writes.extend(peers_gone.iter().map(|name| (format!("{PEERS}{name}"), None)));
        writes.extend(apps_gone.iter().map(|app| (app_key(app), None)));
        // A record is at most a few KiB, so that their number is the limit that counts.
        for writes in writes.chunks(MAX_OPERATIONS) {
            let change =
                writes.iter().cloned().fold(Transaction::new(), |change, write| match write {
                    (key, Some(value)) => change.put(key, value),
                    (key, None) => change.delete(key),
                });
            self.store.commit(change).await?;
        }
        Ok(())
    }

    /// Takes over what an ingress measured.
    pub fn measured(&self, ways: MeasuredWays) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((ways, Instant::now()));
    }

    /// The round trips to other locations, in microseconds, and through which of them this one is reached, as far
    /// as an ingress said so lately.
    pub fn ways(&self) -> MeasuredWays {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = measured.as_ref().filter(|(_, at)| at.elapsed() < MEASURED_FOR);
        lately.map(|(ways, _)| ways.clone()).unwrap_or_default()
    }

    /// What an ingress is told: the whole, then what changes.
    pub fn lines(&self, shutdown: CancellationToken) -> Response {
        let mut told: Option<Arc<Elsewhere>> = None;
        let changes = watch_lines(self.known.subscribe()).map(move |now| {
            let change = match &told {
                Some(told) => now.since(told),
                None => now.whole(),
            };
            told = Some(now);
            change
        });
        json_lines(changes, shutdown)
    }
}

fn app_key(app: &AppRef) -> String {
    format!("{APPS}{}/{}", app.project, app.app)
}

fn parse_app(text: &str) -> Option<AppRef> {
    let (project, app) = text.split_once('/')?;
    Some(AppRef { project: project.parse().ok()?, app: app.parse().ok()? })
}
