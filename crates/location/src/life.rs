//! Which life of its location a store is of, and how the next one begins.
//!
//! A store that is empty is either the first or one that was lost, and which of the two the global plane knows: it
//! counts the lives. In a later one nothing is planned, routed or reported until the nodes have handed over what they
//! carry out, for what is not known yet would look as if it were not there. A location without a store waits for the
//! global plane before it says a word; its nodes and ingresses go on meanwhile with what they were told.
//!
//! Rejected: a flag by which an operator says that the store is lost. With it each restart would have to be told from
//! the first start by a person, while requests fail.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use longshore_api::ProblemCode;
use longshore_link::{CallError, Followed, Service};
use longshore_store::{MAX_OPERATIONS, Page, Record, Store, StoreError, Transaction};
use longshore_trust::{BeginRequest, Begun, Seal};
use longshore_types::{LocationEpoch, LocationName, NodeName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::LocationError;
use crate::trust::{NODES, node_records};

/// Which life the store is of.
const LIFE: &str = "/life";
/// Why the store is of no use any more.
const RECOVERED: &str = "/recovered";
/// The first and the longest wait before the global plane is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The life of a location.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// As it is stored; of the first one nothing where the global plane does not count them yet.
    record: LifeRecord,
    /// Marks what the location gives its nodes.
    pub seal: Option<Seal>,
}

/// A life as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeRecord {
    /// Which it is.
    epoch: LocationEpoch,
    /// The secret of the seal.
    seal: String,
    /// True when the store of an earlier life was lost.
    is_recovered: bool,
    /// Whom the location waits for, from its beginning until they have come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    awaited: Option<Awaited>,
}

impl Record for LifeRecord {
    const KIND: &'static str = "life";
}

/// Whom a location that lost its store waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// The nodes that are known to be there.
    pub nodes: BTreeSet<NodeName>,
    /// True when there are no others.
    pub all_known: bool,
}

/// Why the store is of no use, as the global plane said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct RecoveredRecord(String);

impl Record for RecoveredRecord {
    const KIND: &'static str = "recovered";
}

impl Life {
    fn of(record: LifeRecord) -> Self {
        let seal = Some(Seal::new(&record.seal));
        Self { record, seal }
    }

    /// Which it is.
    pub fn epoch(&self) -> LocationEpoch {
        self.record.epoch
    }

    /// True when the store of an earlier life was lost, so that nodes know more than the location.
    pub fn is_recovered(&self) -> bool {
        self.record.is_recovered
    }

    /// Whom the location waits for before it decides anything.
    pub fn awaited(&self) -> Option<&Awaited> {
        self.record.awaited.as_ref()
    }

    /// Waits for nobody any more; gives what has to be stored.
    pub fn end_wait(&mut self) -> Result<(String, bytes::Bytes), longshore_store::RecordError> {
        self.record.awaited = None;
        Ok((LIFE.to_owned(), longshore_store::record::encode(&self.record)?))
    }

    /// A life after the first, for tests.
    #[cfg(test)]
    pub fn recovered(epoch: u64, awaited: Awaited) -> Self {
        Self::of(LifeRecord {
            epoch: LocationEpoch(epoch),
            seal: "secret".to_owned(),
            is_recovered: true,
            awaited: Some(awaited),
        })
    }
}

/// Who counts the lives of a location.
#[derive(Clone)]
pub struct Counter {
    pub global: Followed,
    pub location: LocationName,
}

/// What the global plane says of a store.
enum Answer {
    Begun(Begun),
    /// It is of an earlier life.
    Recovered(String),
    /// The global plane is older than lives.
    NotCounted,
}

impl Counter {
    /// Asks until there is an answer.
    async fn ask(&self, epoch: Option<LocationEpoch>) -> Answer {
        let path = format!("/link/locations/{}/begin", self.location);
        let (mut wait, mut told) = (RETRY.0, false);
        loop {
            let request = BeginRequest { epoch };
            match self.global.call(Method::POST, &path, Some(&request)).await {
                Ok(begun) => return Answer::Begun(begun),
                Err(CallError::Refused(problem)) if problem.code == ProblemCode::Recovered => {
                    return Answer::Recovered(problem.detail);
                }
                Err(CallError::Status { status: 404, .. }) => return Answer::NotCounted,
                Err(error) => {
                    if !told && wait == RETRY.1 {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "waiting for the global plane to begin");
                        told = true;
                    }
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}

/// Begins with a store, and ends the service once the location is recovered without it. Gives the life, and where
/// the uplink says that the global plane told it so; nothing when the service ends before it has begun.
pub async fn begin(
    service: &Service,
    store: &Arc<dyn Store>,
    counter: Counter,
    own_node: Option<&NodeName>,
) -> Result<Option<(Life, watch::Sender<Option<String>>)>, LocationError> {
    let shutdown = service.shutdown();
    let begun = shutdown.run_until_cancelled(open(store, &counter, own_node)).await;
    let Some(life) = begun.transpose()? else { return Ok(None) };
    let (recovered, told) = watch::channel(None);
    let ends = stay(Arc::clone(store), counter, life.epoch(), told, shutdown);
    service.spawn("life", ends);
    Ok(Some((life, recovered)))
}

/// The life that a store is of, or the next one where it is empty; `own_node` is the only node that did not join
/// from another machine, where that is known.
async fn open(
    store: &Arc<dyn Store>,
    counter: &Counter,
    own_node: Option<&NodeName>,
) -> Result<Life, LocationError> {
    if let Some(stored) = store.get(RECOVERED).await? {
        return Err(LocationError::Recovered(stored.decode::<RecoveredRecord>()?.0));
    }
    if let Some(stored) = store.get(LIFE).await? {
        return Ok(Life::of(stored.decode()?));
    }
    // The keys of nodes come first, so that a beginning that was cut short is begun anew.
    let all = store.list("/", Page::default()).await?.items;
    let is_empty = all.iter().all(|stored| stored.key.starts_with(NODES));
    let epoch = (!is_empty).then_some(LocationEpoch::FIRST);
    match counter.ask(epoch).await {
        Answer::NotCounted => Ok(Life::default()),
        Answer::Recovered(why) => Err(end(store, why).await),
        Answer::Begun(begun) => {
            let is_recovered = is_empty && begun.epoch > LocationEpoch::FIRST;
            let nodes = begun.node_keys.keys().chain(own_node).cloned().collect();
            let awaited = Awaited { nodes, all_known: own_node.is_some() };
            if is_recovered {
                let (epoch, nodes) = (begun.epoch, &awaited.nodes);
                tracing::warn!(%epoch, ?nodes, "the store is empty: recovering from what nodes have");
            }
            let record = LifeRecord {
                epoch: begun.epoch,
                seal: begun.seal.to_string(),
                is_recovered,
                awaited: is_recovered.then_some(awaited),
            };
            let mut writes = if is_empty { node_records(&begun.node_keys)? } else { Vec::new() };
            writes.push((LIFE.to_owned(), longshore_store::record::encode(&record)?));
            for some in writes.chunks(MAX_OPERATIONS) {
                let put = |change: Transaction, (key, value): &(String, bytes::Bytes)| {
                    change.put(key, value.clone())
                };
                store.commit(some.iter().fold(Transaction::new(), put)).await?;
            }
            Ok(Life::of(record))
        }
    }
}

/// Ends the service once the global plane says that the location was recovered since: when it is asked at the
/// start, or by what it answers to reports, which is `told`.
async fn stay(
    store: Arc<dyn Store>,
    counter: Counter,
    epoch: LocationEpoch,
    mut told: watch::Receiver<Option<String>>,
    shutdown: CancellationToken,
) -> Result<(), LocationError> {
    let asked = async {
        match counter.ask(Some(epoch)).await {
            Answer::Recovered(why) => why,
            Answer::Begun(_) | Answer::NotCounted => std::future::pending().await,
        }
    };
    let told = async {
        match told.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(Some(why)) => why,
            // Whoever would say so ended, and the service with it.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        why = asked => why,
        why = told => why,
        () = shutdown.cancelled() => return Ok(()),
    };
    Err(end(&store, why).await)
}

/// Keeps in mind that a store is of an earlier life, so that it is of no use while the global plane is away either.
async fn end(store: &Arc<dyn Store>, why: String) -> LocationError {
    let keep = async {
        let record = longshore_store::record::encode(&RecoveredRecord(why.clone()))
            .expect("our records have no failing serializers");
        store.commit(Transaction::new().put(RECOVERED, record)).await.map(drop)
    };
    let kept: Result<(), StoreError> = keep.await;
    if let Err(error) = kept {
        tracing::warn!(error = &error as &dyn std::error::Error, "the next start is told again");
    }
    LocationError::Recovered(why)
}
