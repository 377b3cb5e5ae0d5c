//! The embedded store does what every store must do.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use longshore_store::conformance::{self, Subject};
use longshore_store::{RedbStore, Store};

struct Embedded(tempfile::TempDir);

impl Subject for Embedded {
    fn open(&mut self) -> BoxFuture<'_, Arc<dyn Store>> {
        let store = RedbStore::open(&self.0.path().join("store.redb")).expect("a store opens");
        std::future::ready(Arc::new(store) as Arc<dyn Store>).boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_conforms() {
    conformance::check_all(|| Box::new(Embedded(tempfile::tempdir().unwrap()))).await;
}
