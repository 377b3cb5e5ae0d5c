//! The link to the global plane: allotments down, reports up. Both go on for ever; while the
//! global plane is away the location works with what it has.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use futures_util::StreamExt;
use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{
    AllotmentSet, LocationReport, MeasuredWays, Peering, ReportChanges, ReportTaken, Said,
};
use longshore_link::{CallError, Followed, Pace};
use longshore_trust::{Name, Peer};
use longshore_types::{Coordinates, Epoch, LocationName};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::demand::Demand;
use crate::elsewhere::Others;
use crate::keeper::{Event, Handle};
use crate::secrets::{Needing, Secrets};
use crate::state::Reported;
use crate::trust::Trust;

/// A report goes out at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A report may hold all instances: between two there is a rest this many times as long as the first
/// took.
const REST: u32 = 9;
/// The first and the longest wait before trying again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Receives allotments.
pub async fn receive(
    global: Followed,
    location: LocationName,
    handle: Handle,
    secrets: Arc<Secrets>,
) {
    let path = format!("/link/locations/{location}/allotments?changes=true");
    let (mut wait, mut passed_over) = (RETRY.0, Epoch::default());
    loop {
        let (here, told) = ((&handle, &*secrets), (&mut wait, &mut passed_over));
        let outcome = receive_until_broken(&global, &path, here, told).await;
        if let Err(error) = outcome {
            tracing::debug!(error = &error as &dyn std::error::Error, "no allotments for now");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

async fn receive_until_broken(
    global: &Followed,
    path: &str,
    (handle, secrets): (&Handle, &Secrets),
    (wait, passed_over): (&mut Duration, &mut Epoch),
) -> Result<(), CallError> {
    let mut sets = global.watch::<AllotmentSet>(path).await?;
    let mut needing = Needing::default();
    loop {
        let set = tokio::select! {
            set = sets.next() => set,
            // The next connection begins with the whole.
            () = handle.missed.notified() => return Ok(()),
        };
        let Some(set) = set else { return Ok(()) };
        *wait = RETRY.0;
        let set = set?;
        let known = handle.report.borrow().as_ref().as_ref().map(|told| told.report.epoch);
        if known.is_some_and(|known| set.epoch < known) {
            // Of a store that was restored or moved since; perhaps another control plane has that.
            if std::mem::replace(passed_over, set.epoch) != set.epoch {
                let (epoch, endpoint) = (set.epoch, global.endpoint());
                tracing::warn!(%epoch, %endpoint, "refusing a control plane of an earlier store");
            }
            global.pass_over();
            let (endpoint, detail) = (global.endpoint(), "an earlier life of the store");
            return Err(CallError::Malformed { endpoint, detail: detail.to_owned() });
        }
        if needing.take(&set) {
            secrets.prepare(&needing, || handle.releases_with_secrets()).await;
        }
        if handle.events.send(Event::Allotments(set)).await.is_err() {
            return Ok(()); // The keeper ended, and the service with it.
        }
    }
}

/// What the location says of itself in every report.
pub struct Place {
    pub location: LocationName,
    pub coordinates: Option<Coordinates>,
    /// `host:port` where nodes of other machines join, if they may.
    pub joining: Option<String>,
    /// `host:port` where its ingresses take requests from other locations, if they do.
    pub peers_advertised: Option<String>,
    pub trust: Arc<Trust>,
    pub others: Arc<Others>,
    /// Told why, when the location was recovered since this process began.
    pub recovered: watch::Sender<Option<String>>,
    pub demand: Arc<Demand>,
}

impl Place {
    /// How its ingresses are known; nothing before they can show who they are.
    fn peering(&self, relays: Vec<LocationName>) -> Option<Peering> {
        let authority = self.trust.authority_key()?.to_string();
        Some(Peering { address: self.peers_advertised.clone(), authority, relays })
    }
}

/// Sends reports.
pub async fn report(global: Followed, place: Place, handle: Handle) {
    let path = format!("/link/locations/{}/report", place.location);
    let mut reports = handle.report;
    let mut wait = RETRY.0;
    let mut pace = Pace::new(REST);
    let mut changes = ReportChanges::new(longshore_link::now());
    loop {
        pace.rest().await;
        let began = Instant::now();
        // Cloned out at once: the borrow must not be held while sending.
        let told = reports.borrow_and_update().as_ref().clone();
        let outcome = match told {
            Some(Reported { report, instances }) => {
                let Said { number, since, instances, gone } = changes.of(&instances);
                let mut report = LocationReport { number, since, instances, gone, ..report };
                report.at = longshore_link::now();
                report.coordinates = place.coordinates;
                report.joining.clone_from(&place.joining);
                let MeasuredWays { round_trip_micros, relays } = place.others.ways();
                report.peering = place.peering(relays);
                report.round_trip_micros = round_trip_micros;
                report.node_keys = Some(place.trust.node_keys());
                report.demand = place.demand.per_hour(began.into_std());
                // One of the release before, which may lead by now, knows no such way: it must not take a change for
                // the whole.
                let to = match report.since {
                    Some(_) => format!("{path}/changes"),
                    None => path.clone(),
                };
                let answer = global.call(Method::POST, &to, Some(&report)).await;
                answer.map(|answer: Option<ReportTaken>| changes.taken(answer))
            }
            None => Ok(true),
        };
        pace.worked_since(began);
        match outcome {
            Ok(false) => tracing::debug!("the global plane asks for a whole report"),
            Ok(true) => {
                wait = RETRY.0;
                // An error means that the keeper ended, and the service with it.
                let _ = tokio::time::timeout(HEARTBEAT, reports.changed()).await;
            }
            Err(error) => {
                if let CallError::Refused(problem) = &error
                    && problem.code == ProblemCode::Recovered
                {
                    place.recovered.send_replace(Some(problem.detail.clone()));
                }
                match &error {
                    CallError::Refused(problem) if problem.code == ProblemCode::InvalidRequest => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "a report is refused"
                        );
                    }
                    _ => {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "a report failed"
                        );
                    }
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

/// Keeps connections open over which the global plane calls this location, wherever its machine is.
pub async fn be_called(
    global: Followed,
    location: LocationName,
    router: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let open = move || {
        let (global, path) = (global.clone(), format!("/link/locations/{location}/reverse"));
        async move { global.tunnel(&path).await }
    };
    let caller = Extension(Peer::Dialled(Name::Global));
    longshore_link::be_called(open, router.layer(caller), shutdown).await
}
