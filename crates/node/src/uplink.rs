//! The link to the location: reports up. (Assignments come down in `agent`, which acts on them.)

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use longshore_api::links::{NodeReport, ReportChanges, ReportTaken, Said};
use longshore_link::{Client, Pace};
use longshore_types::{Capacity, Gpu, RuntimeOffer, Traits};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Node;
use crate::agent::Carried;

/// A report goes out at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A report may hold all instances: between two there is a rest this many times as long as the first took.
const REST: u32 = 4;
/// The first and the longest wait before a report is tried again.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How often the network is looked after: another program may have flushed the firewall.
const NETWORK_INTERVAL: Duration = Duration::from_secs(5);

/// What an agent says of itself in every report.
pub struct Identity {
    /// Where the location asks for logs and exec.
    pub gate: String,
    /// What the machine offers; its disk fills and empties.
    pub capacity: watch::Receiver<Capacity>,
    /// The GPUs that it has.
    pub gpus: Vec<Gpu>,
    /// Names the kernel and network namespace.
    pub network: String,
    /// What makes containers there.
    pub runtimes: Vec<RuntimeOffer>,
    /// What is said of it.
    pub traits: Traits,
}

/// Reports what is observed, whenever it changes.
pub async fn report(
    node: Arc<Node>,
    location: Client,
    mut identity: Identity,
    mut carried: watch::Receiver<Carried>,
) {
    let whole = format!("/link/nodes/{}/report", node.name);
    // One of the release before knows no such way: it must not take a change for the whole.
    let change = format!("{whole}/changes");
    let (mut board, mut reached) = (node.board.subscribe(), node.reach.tries());
    let mut stock = node.stock.changes();
    let mut wait = RETRY.0;
    let mut pace = Pace::new(REST);
    let mut changes = ReportChanges::new(longshore_link::now());
    loop {
        pace.rest().await;
        let began = Instant::now();
        stock.mark_unchanged();
        let observed = board.borrow_and_update().clone();
        let Carried { location_epoch, acknowledged, handed_over } =
            carried.borrow_and_update().clone();
        if handed_over.is_some() {
            // What was said of it before, the location did not know as its own.
            changes.begin_anew();
        }
        let Said { number, since, instances, gone } = changes.of(&observed);
        let images: BTreeSet<_> =
            node.images.list_images().iter().map(|image| image.digest).collect();
        let pulling = node.stock.pulling().difference(&images).copied().collect();
        let report = NodeReport {
            node: node.name.clone(),
            number,
            since,
            gate: identity.gate.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: *identity.capacity.borrow_and_update(),
            gpus: identity.gpus.clone(),
            acknowledged,
            images: images.into_iter().collect(),
            pulling,
            instances,
            gone,
            network: identity.network.clone(),
            runtimes: identity.runtimes.clone(),
            image_mount: Some(node.images.kernel_path().into()),
            traits: identity.traits.clone(),
            location_epoch,
            handed_over,
            reached: reached.borrow_and_update().clone(),
        };
        let path = if since.is_some() { &change } else { &whole };
        let answer = location.call(Method::POST, path, Some(&report)).await;
        pace.worked_since(began);
        match answer.map(|answer: Option<ReportTaken>| changes.taken(answer)) {
            Ok(false) => tracing::debug!("the location asks for a whole report"),
            Ok(true) => {
                wait = RETRY.0;
                tokio::select! {
                    // The senders live as long as the agent, so these errors cannot come.
                    _ = board.changed() => {}
                    _ = reached.changed() => {}
                    _ = stock.changed() => {}
                    _ = carried.changed() => {}
                    _ = identity.capacity.changed() => {}
                    () = tokio::time::sleep(HEARTBEAT) => {}
                }
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a report failed");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

/// Restores what others may have taken away from the network.
pub async fn keep_network(node: Arc<Node>) {
    loop {
        tokio::time::sleep(NETWORK_INTERVAL).await;
        if let Err(error) = node.network.reconcile().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot restore the network");
        }
    }
}
