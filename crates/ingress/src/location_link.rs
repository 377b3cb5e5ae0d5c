//! The link to the location: tables come down, acknowledgements go up.
//!
//! Two tasks. `follow` puts each table in force the moment it comes. `confirm` does what may take
//! time, for the newest table only: it stores it and acknowledges, with the instances that left the
//! table and have requests under way, and does so again when one of these has no more. So a slow disk
//! never delays a table, and a burst of tables costs one write.
//!
//! The location is the only author of tables, and a stream is in order. What a new stream begins
//! with is therefore taken whatever its revision: a location that came back with its clock set
//! back must not be ignored for ever. Within a stream an older table is refused, and one of an
//! earlier life of the location always: a store that was lost and is found again knows nothing of
//! what its location did since.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::select_all;
use http::Method;
use longshore_api::links::{RouteAck, RoutingTable};
use longshore_link::{CallError, Client, Service};
use tokio::sync::watch;

use crate::gate::Gates;
use crate::router::Router;
use crate::state_file::StateFile;
use crate::upstream::Upstream;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(3);

/// The link to the location.
#[derive(Debug)]
pub(crate) struct LocationLink {
    client: Client,
    router: Arc<Router>,
    gates: Arc<Gates>,
    state_file: StateFile<RoutingTable>,
    stored: Option<RoutingTable>,
}

impl LocationLink {
    /// A link that keeps `router` up to date, and in `gates` which nodes there are; `stored` is the table that
    /// `state_file` holds.
    pub fn new(
        client: Client,
        (router, gates): (Arc<Router>, Arc<Gates>),
        state_file: StateFile<RoutingTable>,
        stored: Option<RoutingTable>,
    ) -> Self {
        Self { client, router, gates, state_file, stored }
    }

    /// Starts the tasks of the link.
    pub fn start(self, service: &Service) {
        let (in_force, confirmed) = watch::channel(None);
        let (client, follows) =
            (self.client.clone(), (Arc::clone(&self.router), Arc::clone(&self.gates)));
        service.spawn_until_shutdown("follow routes", follow(client, follows, in_force));
        service.spawn_until_shutdown("confirm routes", self.confirm(confirmed));
    }

    async fn confirm(mut self, mut in_force: watch::Receiver<Option<Arc<RoutingTable>>>) {
        // An ingress that was restarted is another one to its location: it may have acknowledged
        // a table that it no longer routes by.
        let ingress = uuid::Uuid::new_v4().simple().to_string();
        let mut retry = Retry::default();
        let mut busy = Vec::new();
        loop {
            tokio::select! {
                changed = in_force.changed() => if changed.is_err() { return },
                () = any_quiet(&busy) => {}
            }
            let newest = in_force.borrow_and_update().clone();
            let Some(table) = newest else { continue };
            self.store(&table).await;
            busy = self.router.departed();
            let instances: BTreeSet<_> = busy.iter().filter_map(|one| one.instance()).collect();
            let ack = RouteAck {
                ingress: ingress.clone(),
                revision: table.revision,
                busy: instances.into_iter().cloned().collect(),
            };
            let call = self.client.call(Method::POST, "/link/routes/ack", Some(&ack));
            let outcome: Result<(), CallError> = call.await;
            match outcome {
                Ok(()) => retry.reset(),
                Err(error) => {
                    retry.failed("cannot acknowledge routes", &error);
                    // A newer table ends the wait early; whichever is newest then is confirmed.
                    let _ = tokio::time::timeout(retry.next_wait(), in_force.changed()).await;
                    in_force.mark_changed();
                }
            }
        }
    }

    async fn store(&mut self, table: &Arc<RoutingTable>) {
        if self.stored.as_ref() == Some(&**table) {
            return;
        }
        let (file, saved) = (self.state_file.clone(), Arc::clone(table));
        match tokio::task::spawn_blocking(move || file.save(&saved)).await {
            Ok(Ok(())) => self.stored = Some((**table).clone()),
            // The table is in force all the same. Should this ingress be restarted before its
            // location answers, it begins with an older one and finds departed endpoints refusing.
            Ok(Err(error)) => tracing::error!(%error, "cannot store the routes"),
            Err(error) => tracing::error!(%error, "storing the routes did not end"),
        }
    }
}

/// Waits until one of these has no request in flight; for ever when there are none.
async fn any_quiet(upstreams: &[Arc<Upstream>]) {
    if upstreams.is_empty() {
        return std::future::pending().await;
    }
    select_all(upstreams.iter().map(|upstream| Box::pin(upstream.quiet()))).await;
}

async fn follow(
    client: Client,
    (router, gates): (Arc<Router>, Arc<Gates>),
    in_force: watch::Sender<Option<Arc<RoutingTable>>>,
) {
    let mut retry = Retry::default();
    loop {
        match follow_stream(&client, (&router, &gates), &in_force, &mut retry).await {
            Ok(()) => retry.failed("lost the location", &"it ended the stream of routes"),
            Err(error) => retry.failed("cannot follow the location's routes", &error),
        }
        tokio::time::sleep(retry.next_wait()).await;
    }
}

async fn follow_stream(
    client: &Client,
    (router, gates): (&Router, &Gates),
    in_force: &watch::Sender<Option<Arc<RoutingTable>>>,
    retry: &mut Retry,
) -> Result<(), CallError> {
    let mut tables = client.watch::<RoutingTable>("/link/routes").await?;
    let mut newest = 0;
    let epoch = router.location_epoch();
    while let Some(table) = tables.next().await {
        let table = table?;
        if table.location_epoch < epoch {
            let theirs = table.location_epoch;
            tracing::warn!(%epoch, %theirs, "refused a table of an earlier life of the location");
            continue;
        }
        retry.reset();
        if table.revision < newest {
            tracing::warn!(revision = table.revision, newest, "refused an older routing table");
            continue;
        }
        newest = table.revision;
        router.replace(&table);
        gates.opened().know(&table.nodes);
        // Sent also when nothing changed: a restarted location has forgotten the acknowledgement.
        in_force.send_replace(Some(Arc::new(table)));
    }
    Ok(())
}

/// Waits that double, with jitter so that many ingresses do not come back at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    failures: u32,
}

impl Retry {
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Logs the first of a row of failures for the operator, the others only on request.
    pub fn failed(&mut self, what: &'static str, error: &dyn Display) {
        match self.failures {
            0 => tracing::warn!(%error, "{what}; going on with what was last known"),
            _ => tracing::debug!(%error, "{what}"),
        }
        self.failures = self.failures.saturating_add(1);
    }

    pub fn next_wait(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(10);
        let longest = (FIRST_RETRY * 2_u32.pow(doublings)).min(LAST_RETRY);
        longest.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_bounds_and_begin_anew() {
        let mut retry = Retry::default();
        for longest in [100, 200, 400, 800, 1600, 3000, 3000, 3000] {
            retry.failed("test", &"on purpose");
            let wait = retry.next_wait().as_millis();
            assert!((longest / 2..=longest).contains(&wait), "{wait} of {longest}");
        }
        retry.reset();
        retry.failed("test", &"on purpose");
        assert!(retry.next_wait() <= FIRST_RETRY);
    }
}
