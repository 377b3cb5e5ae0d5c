//! How a round writes what it planned: all at the same time, so that it waits for the disk once.

use futures_util::{FutureExt as _, StreamExt as _};
use longshore_store::{Revision, StoreError, Transaction};
use longshore_types::LocationName;

use super::change::Then;
use crate::catalog::AppKey;
use crate::{GlobalError, Plane};

/// How many changes wait for the disk together.
const COMMITS_AT_ONCE: usize = 256;

/// A change, and of which app it is, if of one, with what comes after it.
pub type Write = (Transaction, Option<(AppKey, Then)>);

/// What became of changes.
pub struct Written {
    /// Some were tried.
    pub any: bool,
    /// The disk had no room for some.
    pub refused: bool,
    /// Those from which nothing follows before something else happens, with who has to hear of them before.
    pub last: Vec<(AppKey, Revision, Vec<LocationName>)>,
}

/// Commits all at the same time, and waits until the catalog shows them.
pub async fn commit(plane: &Plane, changes: Vec<Write>) -> Result<Written, GlobalError> {
    let mut written = Written { any: !changes.is_empty(), refused: false, last: Vec::new() };
    let led = changes.into_iter().map(|(change, of)| {
        let change = plane.lead.iter().cloned().fold(change, Transaction::when);
        plane.store.commit(change).map(move |outcome| (outcome, of))
    });
    let mut done = futures_util::stream::iter(led).buffer_unordered(COMMITS_AT_ONCE);
    let mut newest = None;
    while let Some((outcome, of)) = done.next().await {
        match outcome {
            Ok(result) => {
                if !result.succeeded {
                    still_leads(plane).await?;
                } else if let Some((key, Then::Wait(to))) = of {
                    written.last.push((key, result.revision, to));
                }
                newest = newest.max(Some(result.revision));
            }
            Err(error @ StoreError::DiskFull { .. }) => {
                tracing::warn!("what was planned waits: {error}");
                written.refused = true;
            }
            Err(error) => return Err(GlobalError::Store(error)),
        }
    }
    if let Some(revision) = newest {
        plane.catalog.reached(revision).await;
    }
    Ok(written)
}

/// Fails when another control plane leads by now.
async fn still_leads(plane: &Plane) -> Result<(), GlobalError> {
    let Some(lead) = &plane.lead else { return Ok(()) };
    let look = Transaction::new().when(lead.clone());
    let held = plane.store.commit(look).await.map_err(GlobalError::Store)?;
    if held.succeeded { Ok(()) } else { Err(GlobalError::LeadLost) }
}
