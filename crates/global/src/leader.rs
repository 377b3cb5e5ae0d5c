//! Which control plane plans, where several may share a store.
//!
//! One holds a key with a lease, and every write of its scheduler carries that key as a condition: so
//! one that was taken for dead and is not writes nothing any more. The others wait for the key to go.
//! A control plane that is started again knows its own key, and does not wait for its lease to run out.
//! The embedded store needs none of this: its file is locked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_store::{
    Compare, LeaseId, OpResponse, Relation, Revision, Store, StoreError, Transaction,
};
use tokio_util::sync::CancellationToken;

use crate::GlobalError;
use crate::records::Key;

/// How long a leader may be silent.
const TTL: Duration = Duration::from_secs(10);
/// How often it renews its lease, and how often one that waits looks again.
const RENEW: Duration = Duration::from_secs(3);

/// The lead, while it is held.
#[derive(Debug)]
pub struct Lead {
    lease: LeaseId,
    revision: Revision,
}

impl Lead {
    /// Waits until nobody else leads, and takes the lead; nothing when `shutdown` comes before. `id`
    /// is that of this control plane, in every of its lives.
    pub async fn take(
        store: &dyn Store,
        id: &str,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, StoreError> {
        let key = Key::Leader.to_string();
        let mut told = false;
        loop {
            let lease = store.grant_lease(TTL).await?;
            let take = Transaction::new()
                .when(Compare::absent(&key))
                .put_leased(&key, id.to_owned(), lease)
                .otherwise_get(&key);
            let result = store.commit(take).await?;
            if result.succeeded {
                return Ok(Some(Self { lease, revision: result.revision }));
            }
            store.revoke_lease(lease).await?;
            let Some(OpResponse::Got(Some(held))) = result.responses.into_iter().next() else {
                continue;
            };
            if let Some(lease) = held.lease.filter(|_| held.value == id.as_bytes()) {
                // Of an earlier life; it may be gone by now.
                match store.revoke_lease(lease).await {
                    Ok(()) | Err(StoreError::LeaseNotFound { .. }) => continue,
                    Err(error) => return Err(error),
                }
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!("another control plane leads; waiting for its end");
            }
            let gone = async {
                let mut changes = store.watch(&key, held.mod_revision.next()).await?;
                changes.next().await.transpose().map(drop)
            };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(None),
                outcome = tokio::time::timeout(RENEW, gone) => {
                    if let Ok(outcome) = outcome {
                        outcome?;
                    }
                }
            }
        }
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

    async fn take(store: &Arc<dyn Store>, id: &str) -> Lead {
        Lead::take(store.as_ref(), id, &CancellationToken::new()).await.unwrap().unwrap()
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
        let waiting = tokio::spawn(async move { take(&other, "b").await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        let write = |condition: Compare| Transaction::new().when(condition).put("/x", "1");
        assert!(store.commit(write(condition.clone())).await.unwrap().succeeded);
        ended.cancel();
        keeping.await.unwrap().unwrap();
        let second = waiting.await.unwrap();
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
