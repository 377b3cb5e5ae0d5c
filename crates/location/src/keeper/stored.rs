//! What the keeper reads of its store when it begins, and how it writes.

use std::collections::BTreeMap;

use longshore_store::{MAX_OPERATIONS, Page, Revision, Store, Transaction};

use crate::LocationError;
use crate::records::{CONFIRMED, ConfirmedRecord, INSTANCES, InstanceRecord, confirmed_key};

/// The instances that are stored, and the revision of that.
#[derive(Debug)]
pub(super) struct StoredInstances {
    /// With what their nodes said of them.
    pub instances: Vec<InstanceRecord>,
    /// The keys of what was said of instances that are gone: a release that knew nothing of these ended them.
    pub orphans: Vec<String>,
    pub revision: Revision,
}

/// Reads the instances.
pub(super) async fn stored_instances(store: &dyn Store) -> Result<StoredInstances, LocationError> {
    let mut confirmed = BTreeMap::new();
    for stored in store.list(CONFIRMED, Page::default()).await?.items {
        let ConfirmedRecord(generation) = stored.decode()?;
        confirmed.insert(stored.key, generation);
    }
    let listing = store.list(INSTANCES, Page::default()).await?;
    let mut instances = Vec::new();
    for stored in &listing.items {
        let mut record: InstanceRecord = stored.decode()?;
        let said_since = confirmed.remove(&confirmed_key(&record.instance));
        record.confirmed = record.confirmed.max(said_since);
        instances.push(record);
    }
    let orphans = confirmed.into_keys().collect();
    Ok(StoredInstances { instances, orphans, revision: listing.revision })
}

/// A key and its value from now on, if it is to have one.
pub(super) type Write = (String, Option<bytes::Bytes>);

/// As few transactions as the limits of the store allow, in the order of the writes.
pub(super) fn transactions(writes: Vec<Write>) -> Vec<Transaction> {
    const SAFE_BYTES: usize = 1 << 20;
    let mut all = Vec::new();
    let mut transaction = Transaction::new();
    let (mut n_writes, mut n_bytes) = (0, 0);
    for (key, value) in writes {
        let size = key.len() + value.as_ref().map_or(0, |value| value.len());
        if n_writes == MAX_OPERATIONS || (n_writes > 0 && n_bytes + size > SAFE_BYTES) {
            all.push(std::mem::take(&mut transaction));
            (n_writes, n_bytes) = (0, 0);
        }
        transaction = match value {
            Some(value) => transaction.put(key, value),
            None => transaction.delete(key),
        };
        n_writes += 1;
        n_bytes += size;
    }
    if n_writes > 0 {
        all.push(transaction);
    }
    all
}

#[cfg(test)]
mod tests {
    use longshore_store::RedbStore;
    use longshore_types::{Generation, Manifest};
    use serde_json::json;

    use super::*;

    fn record(id: &str, confirmed: Option<u64>) -> serde_json::Value {
        let manifest = json!({"app": "web", "image": "web"});
        let manifest = Manifest::from_document(&manifest).unwrap();
        json!({"v": 1, "data": {
            "instance": id, "node": "n1", "intent": "run", "generation": 2, "draining": null,
            "created_at": 1, "confirmed": confirmed,
            "decision": {"at": 1, "chosen": "n1", "why": "the only node", "candidates": []},
            "release": {
                "number": 1, "manifest": manifest, "secrets": {}, "created_at": 1,
                "image_digest": format!("sha256:{}", "a".repeat(64)),
            },
        }})
    }

    #[tokio::test]
    async fn the_newest_that_a_node_said_of_an_instance_counts() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
        let written = [
            // As the release before wrote it, and what was said of it since.
            ("web-aaaaaaaa", Some(1), Some(2), Some(2)),
            // What is written of the instance may be newer.
            ("web-bbbbbbbb", Some(2), Some(1), Some(2)),
            ("web-cccccccc", None, Some(2), Some(2)),
            ("web-dddddddd", None, None, None),
        ];
        let mut change = Transaction::new();
        for (id, in_record, said, _) in written {
            change = change.put(format!("{INSTANCES}{id}"), record(id, in_record).to_string());
            if let Some(generation) = said {
                let said = json!({"v": 1, "data": generation}).to_string();
                change = change.put(format!("{CONFIRMED}{id}"), said);
            }
        }
        // One that an earlier release forgot leaves this behind.
        let orphan = format!("{CONFIRMED}web-eeeeeeee");
        change = change.put(orphan.clone(), r#"{"v":1,"data":1}"#);
        let revision = store.commit(change).await.unwrap().revision;
        let stored = stored_instances(&store).await.unwrap();
        let read: Vec<_> =
            stored.instances.iter().map(|one| (one.instance.as_str(), one.confirmed)).collect();
        let expected = written.map(|(id, .., expected)| (id, expected.map(Generation)));
        assert_eq!((read, stored.revision), (expected.to_vec(), revision));
        assert_eq!(stored.orphans, [orphan]);
    }
}
