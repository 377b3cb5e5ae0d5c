//! Finds out how far other locations are, and which of them take connections.
//!
//! A probe is a request over the connection that users' requests share, so it waits where they would wait. The
//! locations that apps name first are probed all the time, for 351 locations that probe each other would have
//! 123,000 connections; and each that takes no connection is, until it does. So no user's request has to find out
//! that it is back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use longshore_api::links::MeasuredWays;
use longshore_link::Client;
use longshore_types::LocationName;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Location, Others, lock};
use crate::proxy::Proxy;

/// How many locations are probed that take connections.
const MOST_PROBED: usize = 16;
/// How often each of them is.
const EVERY: Duration = Duration::from_secs(5);
/// The first and the longest wait after a probe that found nobody; doubled at each in a row.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the location may take to hear what was measured, before the next probes.
const TELL_WITHIN: Duration = Duration::from_secs(1);
/// How often to look which are due.
const TICK: Duration = Duration::from_millis(250);

/// When a location is to be probed next, and how many times in a row nobody answered.
#[derive(Debug, Clone, Copy)]
struct Next {
    at: Instant,
    failures: u32,
}

impl Next {
    fn after(before: Option<Self>, answered: bool, now: Instant) -> Self {
        if answered {
            return Self { at: now + EVERY, failures: 0 };
        }
        let failures = before.map_or(0, |before| before.failures);
        let wait = (AGAIN.0 * 2_u32.pow(failures.min(8))).min(AGAIN.1);
        Self { at: now + wait, failures: failures.saturating_add(1) }
    }
}

/// Probes for ever.
pub(crate) async fn probe(proxy: Arc<Proxy>, others: Arc<Others>, client: Client) {
    let mut next: BTreeMap<LocationName, Next> = BTreeMap::new();
    let mut relays = others.relays.subscribe();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        let all = others.locations();
        next.retain(|name, _| all.iter().any(|location| location.way.location == *name));
        let (first, rest) = all.split_at(all.len().min(MOST_PROBED));
        let failing = rest.iter().filter(|location| location.upstream.takes_no_connection());
        let is_due = |location: &&Arc<Location>| {
            next.get(&location.way.location).is_none_or(|next| next.at <= now)
        };
        let due: Vec<_> = first.iter().chain(failing).filter(is_due).collect();
        let answered = join_all(due.iter().map(|location| location.probe(&proxy))).await;
        for (location, answered) in due.iter().zip(answered) {
            let name = &location.way.location;
            let after = Next::after(next.get(name).copied(), answered, Instant::now());
            next.insert(name.clone(), after);
        }
        // The sender lives as long as the others.
        if !due.is_empty() || relays.has_changed().unwrap_or(false) {
            let relays = relays.borrow_and_update().clone();
            tell(&others, relays, &client).await;
        }
    }
}

/// Tells the location what was measured, and its relays. It is told again after the next probe, whatever came of it.
async fn tell(others: &Others, relays: Vec<LocationName>, client: &Client) {
    let measured = others.census().into_iter().filter_map(|one| Some((one.to, one.round_trip?)));
    let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let round_trip_micros = measured.map(|(to, took)| (to, micros(took))).collect();
    let ways = MeasuredWays { round_trip_micros, relays };
    let told = client.call::<_, ()>(Method::POST, "/link/elsewhere/measured", Some(&ways));
    match tokio::time::timeout(TELL_WITHIN, told).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the location does not hear what was measured"),
        Err(_) => tracing::debug!("the location does not hear in time what was measured"),
    }
}

impl Location {
    /// True when it answered.
    async fn probe(&self, proxy: &Proxy) -> bool {
        let own = self.upstream.outstanding();
        match tokio::join!(proxy.probe(&self.upstream), proxy.look_directly(self)).0 {
            Some((took, told)) => {
                lock(&self.measure).note(took, told, own);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_who_does_not_answer_become_rare_and_end_with_an_answer() {
        let now = Instant::now();
        let mut next = None;
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let after = Next::after(next, false, now);
            assert_eq!(after.at, now + Duration::from_secs(seconds));
            next = Some(after);
        }
        let after = Next::after(next, true, now);
        assert_eq!((after.at, after.failures), (now + EVERY, 0));
    }
}
