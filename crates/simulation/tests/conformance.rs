//! The store of the simulation does what every store must do.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use longshore_simulation::store::Memory;
use longshore_store::Store;
use longshore_store::conformance::{self, Subject};

#[derive(Default)]
struct InMemory(Memory);

impl Subject for InMemory {
    fn open(&mut self) -> BoxFuture<'_, Arc<dyn Store>> {
        self.0.restart();
        std::future::ready(Arc::new(self.0.clone()) as Arc<dyn Store>).boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_memory_conforms() {
    conformance::check_all(|| Box::new(InMemory::default())).await;
}
