//! The tokens that the registry accepts, as the global control plane tells them.
//!
//! The last table is kept in a file: a node must be able to pull while the global plane is away,
//! also after a restart of the registry. What is kept are hashes and rights, no token.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use longshore_api::links;
use longshore_link::{CallError, Client, chain};
use longshore_registry::TokenTable;
use longshore_types::token::Rights;
use tokio::sync::watch;

use crate::state_file;

/// The time between tries to reach the global plane.
const RETRY: Duration = Duration::from_millis(500);

/// Why the kept table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FollowTokensError {
    /// It cannot be read.
    #[error("cannot read the tokens in {}", path.display())]
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
pub struct FollowedTokens {
    file: PathBuf,
    tokens: watch::Sender<Arc<BTreeMap<String, Rights>>>,
}

impl FollowedTokens {
    /// Begins with the table that `file` keeps, or with none: then nobody is let in yet.
    pub fn open(file: PathBuf) -> Result<Self, FollowTokensError> {
        let kept = match std::fs::read(&file) {
            Ok(json) => serde_json::from_slice(&json).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(links::TokenTable::default())
            }
            Err(error) => Err(error),
        };
        let path = file.clone();
        let kept = kept.map_err(|source| FollowTokensError::Read { path, source })?;
        Ok(Self { file, tokens: watch::Sender::new(Arc::new(kept.tokens)) })
    }

    /// What the registry asks.
    pub fn table(&self) -> TokenTable {
        TokenTable::new(self.tokens.subscribe())
    }

    /// Takes each table over that the global plane tells. Never ends.
    pub async fn follow(self, global: Client) {
        loop {
            match global.watch::<links::TokenTable>("/link/registry/tokens").await {
                Ok(tables) => self.take_all(tables).await,
                Err(error) => tracing::debug!("cannot follow the tokens: {}", chain(&error)),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn take_all(
        &self,
        mut tables: impl futures_util::Stream<Item = Result<links::TokenTable, CallError>> + Unpin,
    ) {
        while let Some(table) = tables.next().await {
            match table {
                Ok(table) => self.take(table),
                Err(error) => {
                    tracing::debug!("the tokens broke off: {}", chain(&error));
                    return;
                }
            }
        }
    }

    fn take(&self, table: links::TokenTable) {
        let json = serde_json::to_vec(&table).expect("a table of texts can be written as JSON");
        // Kept first: a right that was taken away must not come back with a restart. If that
        // fails, what holds now still counts more than the file.
        if let Err(error) = state_file::replace(&self.file, &json) {
            tracing::error!(path = %self.file.display(), %error, "cannot keep the tokens");
        }
        self.tokens.send_replace(Arc::new(table.tokens));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use longshore_registry::Authorizer;

    use super::*;

    /// Of the token `t`.
    const HASH: &str = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";

    fn admin() -> Rights {
        Rights { admin: true, registry: Vec::new() }
    }

    #[tokio::test]
    async fn the_last_table_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.json");
        let tokens = FollowedTokens::open(file.clone()).unwrap();
        let table = tokens.table();
        assert_eq!(table.authorize("t"), None);
        let told = links::TokenTable { tokens: [(HASH.to_owned(), admin())].into() };
        tokens.take_all(stream::iter([Ok(told)])).await;
        assert_eq!(table.authorize("t"), Some(admin()));

        let again = FollowedTokens::open(file.clone()).unwrap();
        assert_eq!(again.table().authorize("t"), Some(admin()));
        again.take_all(stream::iter([Ok(links::TokenTable::default())])).await;
        assert_eq!(FollowedTokens::open(file).unwrap().table().authorize("t"), None);
    }
}
