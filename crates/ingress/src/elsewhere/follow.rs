//! Where the table of other locations comes from, and where it is kept.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_api::links::ElsewhereChange;
use longshore_link::{CallError, Client};
use tokio::sync::watch;

use super::Others;
use crate::location_link::Retry;
use crate::router::Router;
use crate::state_file::StateFile;

/// Changes that come within this time are written together.
const GATHER: Duration = Duration::from_millis(500);

/// Follows what the location says of others, for ever, and keeps it in a file.
pub(crate) async fn follow(
    client: Client,
    (others, router): (Arc<Others>, Arc<Router>),
    file: StateFile<ElsewhereChange>,
) {
    let (news, told) = watch::channel(());
    let following = async {
        let mut retry = Retry::default();
        loop {
            match follow_stream(&client, (&others, &router), &news, &mut retry).await {
                Ok(()) => retry.failed("lost the location", &"it ended the stream of others"),
                Err(error) => retry.failed("cannot follow what other locations serve", &error),
            }
            tokio::time::sleep(retry.next_wait()).await;
        }
    };
    tokio::join!(following, keep(&others, &file, told));
}

async fn follow_stream(
    client: &Client,
    (others, router): (&Others, &Router),
    news: &watch::Sender<()>,
    retry: &mut Retry,
) -> Result<(), CallError> {
    let mut changes = client.watch::<ElsewhereChange>("/link/elsewhere").await?;
    while let Some(change) = changes.next().await {
        retry.reset();
        router.forget_others(&others.take(change?));
        news.send_replace(());
    }
    Ok(())
}

async fn keep(others: &Others, file: &StateFile<ElsewhereChange>, mut told: watch::Receiver<()>) {
    let mut kept = None;
    while told.changed().await.is_ok() {
        tokio::time::sleep(GATHER).await;
        told.mark_unchanged();
        let whole = Arc::new(others.whole());
        if kept.as_ref() == Some(&whole) {
            continue;
        }
        let (file, saved) = (file.clone(), Arc::clone(&whole));
        match tokio::task::spawn_blocking(move || file.save(&saved)).await {
            Ok(Ok(())) => kept = Some(whole),
            // It holds all the same, until this ingress is started again while its location is away.
            Ok(Err(error)) => tracing::error!(%error, "cannot store what other locations serve"),
            Err(error) => tracing::error!(%error, "storing did not end"),
        }
    }
}
