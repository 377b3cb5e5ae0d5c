//! Which control plane plans, where several may share a store.
//!
//! One holds a key with a lease, and every write of its scheduler carries that key as a condition: so
//! one that was taken for dead and is not writes nothing any more. The others wait for the key to go, and
//! pass requests on to where it says ([`crate::front`]) meanwhile.
//! A control plane that is started again knows its own key, and does not wait for its lease to run out.
//! The embedded store needs none of this: its file is locked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_link::chain;
use longshore_store::{
    Compare, LeaseId, Record, Relation, Revision, Store, StoreError, Transaction,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::GlobalError;
use crate::records::{Key, encode};

/// How long a leader may be silent.
const TTL: Duration = Duration::from_secs(10);
/// How often it renews its lease, and how often one that waits looks again.
const RENEW: Duration = Duration::from_secs(3);

/// What the one that leads says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The id of the control plane, in every of its lives.
    pub id: String,
    /// Where the other control planes reach its API.
    pub api: String,
    /// Where locations and registries of its machine reach it.
    pub link: String,
    /// `host:port` where locations of other machines do, if any may.
    #[serde(default)]
    pub locations: Option<String>,
    /// What only control planes know: who shows it is believed whom a request that is passed on came
    /// from.
    pub passing_key: String,
}

impl Record for LeaderRecord {
    const KIND: &'static str = "leader";
}

/// The control plane that leads, as the others know it. Nothing while nobody does.
pub type KnownLeader = Option<Arc<LeaderRecord>>;

/// The lead, while it is held.
#[derive(Debug)]
pub struct Lead {
    lease: LeaseId,
    revision: Revision,
}

impl Lead {
    /// Waits until nobody else leads, and takes the lead for `own`; nothing when `shutdown` comes before.
    /// Who leads meanwhile is told to `known`. A store that is away is waited for.
    pub async fn take(
        store: &dyn Store,
        own: &LeaderRecord,
        known: &watch::Sender<KnownLeader>,
        shutdown: &CancellationToken,
    ) -> Option<Self> {
        let waiting = async {
            loop {
                match Self::try_take(store, own, known).await {
                    Ok(Some(lead)) => return lead,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!("cannot look who leads; trying again: {}", chain(&error));
                        tokio::time::sleep(RENEW).await;
                    }
                }
            }
        };
        shutdown.run_until_cancelled(waiting).await
    }

    /// Takes the lead where nobody has it, else waits for a change, and not for ever.
    async fn try_take(
        store: &dyn Store,
        own: &LeaderRecord,
        known: &watch::Sender<KnownLeader>,
    ) -> Result<Option<Self>, StoreError> {
        let key = Key::Leader.to_string();
        let Some(held) = store.get(&key).await? else {
            known.send_if_modified(|known| known.take().is_some());
            let lease = store.grant_lease(TTL).await?;
            let take = Transaction::new().when(Compare::absent(&key));
            let result = store.commit(take.put_leased(&key, encode(own), lease)).await?;
            if result.succeeded {
                return Ok(Some(Self { lease, revision: result.revision }));
            }
            store.revoke_lease(lease).await?;
            return Ok(None);
        };
        // One of an earlier release says where it is to nobody.
        let leader = held.decode::<LeaderRecord>().ok();
        let is_own = leader.as_ref().is_some_and(|leader| leader.id == own.id);
        if let Some(lease) = held.lease.filter(|_| is_own) {
            // Of an earlier life; it may be gone by now.
            return match store.revoke_lease(lease).await {
                Ok(()) | Err(StoreError::LeaseNotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        tell(known, leader);
        let gone = async {
            let mut changes = store.watch(&key, held.mod_revision.next()).await?;
            changes.next().await.transpose().map(drop)
        };
        // Not told of in time, it is looked for.
        tokio::time::timeout(RENEW, gone).await.unwrap_or(Ok(()))?;
        Ok(None)
    }

    /// Holds as long as this is the lead.
    pub fn condition(&self) -> Compare {
        Compare::create_revision(Key::Leader.to_string(), Relation::Equal, self.revision)
    }

    /// Keeps the lead until `shutdown`, and gives it away then; fails when it is lost.
    pub async fn keep(
        self,
        store: Arc<dyn Store>,
        shutdown: CancellationToken,
    ) -> Result<(), GlobalError> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    // Otherwise it runs out.
                    let _ = store.revoke_lease(self.lease).await;
                    return Ok(());
                }
                () = tokio::time::sleep(RENEW) => {}
            }
            match store.keep_alive(self.lease).await {
                Ok(()) => {}
                Err(StoreError::LeaseNotFound { .. }) => return Err(GlobalError::LeadLost),
                // A store that is away loses no lease meanwhile, and takes no writes either.
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the lead; trying again"
                ),
            }
        }
    }
}

/// Tells who leads, where that is news.
fn tell(known: &watch::Sender<KnownLeader>, leader: Option<LeaderRecord>) {
    known.send_if_modified(|known| {
        let news = known.as_deref() != leader.as_ref();
        if news {
            let (id, api) = leader.as_ref().map(|leader| (&leader.id, &leader.api)).unzip();
            tracing::info!(id, api, "another control plane leads; passing requests on to it");
            *known = leader.map(Arc::new);
        }
        news
    });
}

/// The id of the control plane that keeps its things in a directory.
pub fn own_id(data_dir: &Path) -> std::io::Result<String> {
    let path = data_dir.join("server-id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => {
            let id = uuid::Uuid::new_v4().simple().to_string();
            std::fs::write(&path, format!("{id}\n"))?;
            Ok(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_store::RedbStore;

    use super::*;

    fn store(dir: &Path) -> Arc<dyn Store> {
        Arc::new(RedbStore::open(&dir.join("store.redb")).unwrap())
    }

    fn own(id: &str) -> LeaderRecord {
        let api = format!("http://{id}:1");
        let (link, passing_key) = (String::new(), String::new());
        LeaderRecord { id: id.into(), api, link, locations: None, passing_key }
    }

    async fn take(store: &Arc<dyn Store>, id: &str) -> Lead {
        let known = watch::Sender::default();
        Lead::take(store.as_ref(), &own(id), &known, &CancellationToken::new()).await.unwrap()
    }

    #[tokio::test]
    async fn one_leads_and_the_next_takes_over_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let first = take(&store, "a").await;
        let condition = first.condition();
        let ended = CancellationToken::new();
        let keeping = tokio::spawn(first.keep(Arc::clone(&store), ended.clone()));
        let other = Arc::clone(&store);
        let (known, mut told) = watch::channel(None);
        let waiting = tokio::spawn(async move {
            Lead::take(other.as_ref(), &own("b"), &known, &CancellationToken::new()).await
        });
        // It knows who leads, and not any more once that one ended.
        let leads = |leader: &KnownLeader| leader.as_deref() == Some(&own("a"));
        told.wait_for(leads).await.unwrap();
        assert!(!waiting.is_finished());
        let write = |condition: Compare| Transaction::new().when(condition).put("/x", "1");
        assert!(store.commit(write(condition.clone())).await.unwrap().succeeded);
        ended.cancel();
        keeping.await.unwrap().unwrap();
        let second = waiting.await.unwrap().unwrap();
        assert_eq!(*told.borrow(), None);
        // What the first still wanted to write is too late.
        assert!(!store.commit(write(condition)).await.unwrap().succeeded);
        assert!(store.commit(write(second.condition())).await.unwrap().succeeded);
    }

    #[tokio::test]
    async fn who_was_killed_takes_its_own_lead_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let before = take(&store, "a").await.condition();
        let again = tokio::time::timeout(TTL / 4, take(&store, "a")).await.expect("at once");
        assert_ne!(again.condition(), before);
        let id = own_id(dir.path()).unwrap();
        assert_eq!(own_id(dir.path()).unwrap(), id);
    }

    #[tokio::test]
    async fn a_lead_that_was_taken_away_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let lead = take(&store, "a").await;
        store.revoke_lease(lead.lease).await.unwrap();
        let lost = lead.keep(store, CancellationToken::new()).await;
        assert!(matches!(lost, Err(GlobalError::LeadLost)), "{lost:?}");
    }
}
