//! The tokens that the registry accepts and the images that must stay, as the global control plane
//! tells them.
//!
//! The last table is kept in a file: a node must be able to pull while the global plane is away,
//! also after a restart of the registry. What is kept of tokens are hashes and rights.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use longshore_api::links;
use longshore_link::{CallError, Followed, chain};
use longshore_registry::{PinTable, TokenTable};
use longshore_types::Epoch;
use longshore_types::token::Rights;
use tokio::sync::watch;

use crate::state_file;

/// The time between tries to reach the global plane.
const RETRY: Duration = Duration::from_millis(500);

/// Why the kept table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FollowTableError {
    /// It cannot be read.
    #[error("cannot read what the registry was last told in {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The present table, and the file that keeps it.
#[derive(Debug)]
pub struct FollowedTable {
    file: PathBuf,
    /// Of which life of the global store the table is.
    epoch: Epoch,
    tokens: watch::Sender<Arc<BTreeMap<String, Rights>>>,
    pins: watch::Sender<Arc<PinTable>>,
    /// Whether the table is the newest: the one who tells it would tell another.
    is_told: watch::Sender<bool>,
}

impl FollowedTable {
    /// Begins with the table that `file` keeps, or with none: then nobody is let in yet.
    pub fn open(file: PathBuf) -> Result<Self, FollowTableError> {
        let kept = match std::fs::read(&file) {
            Ok(json) => serde_json::from_slice(&json).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(links::RegistryTable::default())
            }
            Err(error) => Err(error),
        };
        let path = file.clone();
        let kept = kept.map_err(|source| FollowTableError::Read { path, source })?;
        let pins = watch::Sender::new(Arc::new(pin_table(kept.pins)));
        Ok(Self {
            file,
            epoch: kept.epoch,
            tokens: watch::Sender::new(Arc::new(kept.tokens)),
            pins,
            is_told: watch::Sender::new(false),
        })
    }

    /// Who may do what.
    pub fn tokens(&self) -> TokenTable {
        TokenTable::new(self.tokens.subscribe())
    }

    /// What must stay.
    pub fn pins(&self) -> watch::Receiver<Arc<PinTable>> {
        self.pins.subscribe()
    }

    /// Whether what must stay is known as it is now.
    pub fn is_told(&self) -> watch::Receiver<bool> {
        self.is_told.subscribe()
    }

    /// Takes each table over that the global plane tells. Never ends.
    pub async fn follow(mut self, global: Followed) {
        loop {
            match global.watch::<links::RegistryTable>("/link/registry/table").await {
                Ok(tables) => {
                    if self.take_all(tables).await.is_break() {
                        global.pass_over();
                    }
                    self.is_told.send_replace(false);
                }
                Err(error) => tracing::debug!("cannot follow the table: {}", chain(&error)),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until they break off, or are of an earlier life of the global store.
    async fn take_all(
        &mut self,
        mut tables: impl futures_util::Stream<Item = Result<links::RegistryTable, CallError>> + Unpin,
    ) -> ControlFlow<()> {
        while let Some(table) = tables.next().await {
            match table {
                // Who was let in before a restore may be let out since.
                Ok(table) if table.epoch < self.epoch => return ControlFlow::Break(()),
                Ok(table) => self.take(table),
                Err(error) => {
                    tracing::debug!("the table broke off: {}", chain(&error));
                    break;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn take(&mut self, table: links::RegistryTable) {
        let json = serde_json::to_vec(&table).expect("a table of texts can be written as JSON");
        // Kept first: a right that was taken away must not come back with a restart. If that
        // fails, what holds now still counts more than the file.
        if let Err(error) = state_file::replace(&self.file, &json) {
            tracing::error!(path = %self.file.display(), %error, "cannot keep the table");
        }
        self.epoch = table.epoch;
        self.tokens.send_replace(Arc::new(table.tokens));
        self.pins.send_replace(Arc::new(pin_table(table.pins)));
        self.is_told.send_replace(true);
    }
}

fn pin_table(pins: Vec<links::Pin>) -> PinTable {
    pins.into_iter().map(|pin| ((pin.repository, pin.digest), pin.release)).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use longshore_registry::Authorizer;

    use super::*;

    /// Of the token `t`.
    const HASH: &str = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";

    fn admin() -> Rights {
        Rights { admin: true, ..Rights::default() }
    }

    #[tokio::test]
    async fn the_last_table_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.json");
        let mut followed = FollowedTable::open(file.clone()).unwrap();
        let (tokens, pins) = (followed.tokens(), followed.pins());
        assert_eq!(tokens.authorize("t"), None);
        let pin = links::Pin {
            repository: "default/web".parse().unwrap(),
            digest: longshore_types::Digest::from_sha256([7; 32]),
            release: "web r1".to_owned(),
        };
        let tokens_told = [(HASH.to_owned(), admin())].into();
        let told = links::RegistryTable { epoch: Epoch(0), tokens: tokens_told, pins: vec![pin] };
        assert!(followed.take_all(stream::iter([Ok(told)])).await.is_continue());
        assert_eq!((tokens.authorize("t"), pins.borrow().len()), (Some(admin()), 1));
        assert!(*followed.is_told().borrow());

        let mut again = FollowedTable::open(file.clone()).unwrap();
        assert_eq!(again.tokens().authorize("t"), Some(admin()));
        assert!(!*again.is_told().borrow(), "it may have changed since");
        assert_eq!(again.pins().borrow().values().collect::<Vec<_>>(), ["web r1"]);
        let restored = links::RegistryTable { epoch: Epoch(7), ..Default::default() };
        assert!(again.take_all(stream::iter([Ok(restored)])).await.is_continue());
        let mut last = FollowedTable::open(file).unwrap();
        assert_eq!((last.tokens().authorize("t"), last.pins().borrow().len()), (None, 0));

        // A control plane that still runs on the store before lets nobody in.
        let tokens_told = [(HASH.to_owned(), admin())].into();
        let old = links::RegistryTable { tokens: tokens_told, ..Default::default() };
        assert!(last.take_all(stream::iter([Ok(old)])).await.is_break());
        assert_eq!(last.tokens().authorize("t"), None);
    }
}
