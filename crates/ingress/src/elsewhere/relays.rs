//! The relays of this location: the ingresses of others to which this one keeps connections open, so that whoever
//! cannot dial it reaches it through those.
//!
//! They are the nearest that this one dials, by the round trips that are measured, and they are kept whether or not
//! somebody needs them: two idle connections cost less than finding out, and they are a second path also where only
//! the way between two locations is broken.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_api::links::Peering;
use longshore_link::{Tunnel, be_reached};
use longshore_types::LocationName;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Others, Way, lock};
use crate::gate::Gates;
use crate::relay;

/// How often to look which are the nearest.
const TICK: Duration = Duration::from_secs(1);
/// How long a relay may take to let a connection be opened, before another one is looked for.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long opening one may take.
const DIAL_WITHIN: Duration = Duration::from_secs(3);
/// For how long one that never did is no relay: it may be of a release that cannot be one.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// A location that may be a relay of this one.
#[derive(Debug, Clone)]
struct Candidate {
    location: LocationName,
    round_trip: Duration,
    is_relay: bool,
}

impl Candidate {
    /// What is a relay counts as half as far, so that two that are about as far do not take turns.
    fn cost(&self) -> Duration {
        if self.is_relay { self.round_trip / 2 } else { self.round_trip }
    }
}

/// Chooses the nearest.
fn choose(mut candidates: Vec<Candidate>) -> Vec<LocationName> {
    candidates.sort_by(|a, b| a.cost().cmp(&b.cost()).then_with(|| a.location.cmp(&b.location)));
    candidates.truncate(Peering::MOST_RELAYS);
    candidates.into_iter().map(|candidate| candidate.location).collect()
}

/// A relay to which connections are kept open.
struct Kept {
    way: Way,
    since: Instant,
    opened: Arc<Opened>,
    /// Closes those that nobody has taken.
    _end: DropGuard,
}

/// What came of opening connections.
#[derive(Debug, Default)]
struct Opened {
    /// The last one could be.
    last: AtomicBool,
    /// One could be.
    ever: AtomicBool,
}

/// Keeps connections open to relays, for ever; what comes over them is for `serve`.
pub(crate) async fn keep<S>(
    others: Arc<Others>,
    own: Arc<Gates>,
    serve: impl Fn(Tunnel) -> S + Clone + Send + 'static,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let (mut kept, mut tasks) = (BTreeMap::<LocationName, Kept>::new(), JoinSet::new());
    let mut refused = BTreeMap::<LocationName, Instant>::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        while tasks.try_join_next().is_some() {}
        refused.retain(|_, until| now < *until);
        for (name, relay) in &kept {
            let never = !relay.opened.ever.load(Ordering::Acquire);
            if never && now > relay.since + OPEN_WITHIN {
                refused.insert(name.clone(), now + REFUSED_FOR);
            }
        }
        let ways = others.may_be_relays();
        let candidates = ways.iter().filter(|(way, _)| !refused.contains_key(&way.location));
        let candidates = candidates.map(|(way, round_trip)| Candidate {
            location: way.location.clone(),
            round_trip: *round_trip,
            is_relay: kept.contains_key(&way.location),
        });
        let chosen = choose(candidates.collect());
        let way_of =
            |name: &LocationName| ways.iter().map(|(way, _)| way).find(|way| way.location == *name);
        kept.retain(|name, relay| chosen.contains(name) && way_of(name) == Some(&relay.way));
        for name in &chosen {
            let Some(way) = way_of(name).filter(|_| !kept.contains_key(name)) else { continue };
            let (end, opened) = (CancellationToken::new(), Arc::<Opened>::default());
            let open = opening(way.clone(), Arc::clone(&own), Arc::clone(&opened));
            tasks.spawn(be_reached(open, serve.clone(), end.clone()));
            tracing::info!(location = %name, "keeping connections open to a relay");
            let (way, since, _end) = (way.clone(), now, end.drop_guard());
            kept.insert(name.clone(), Kept { way, since, opened, _end });
        }
        let open = kept.iter().filter(|(_, relay)| relay.opened.last.load(Ordering::Acquire));
        others.have_relays(open.map(|(name, _)| name.clone()).collect());
    }
}

/// Opens a connection to a relay, and notes whether that worked.
fn opening(
    way: Way,
    own: Arc<Gates>,
    outcome: Arc<Opened>,
) -> impl Fn() -> futures_util::future::BoxFuture<'static, io::Result<Tunnel>> + Send + 'static {
    move || {
        let (way, own, outcome) = (way.clone(), Arc::clone(&own), Arc::clone(&outcome));
        Box::pin(async move {
            let opening = async { relay::opened(way.dial(&own).await?).await };
            let opened = tokio::time::timeout(DIAL_WITHIN, opening).await;
            let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            outcome.last.store(opened.is_ok(), Ordering::Release);
            outcome.ever.fetch_or(opened.is_ok(), Ordering::AcqRel);
            opened
        })
    }
}

impl Others {
    /// Locations that this one dials, and how far they are.
    fn may_be_relays(&self) -> Vec<(Way, Duration)> {
        let all = self.locations().into_iter();
        let dialled = all.filter(|at| at.is_direct() && !at.upstream.takes_no_connection());
        dialled.filter_map(|at| Some((at.way.clone(), lock(&at.measure).round_trip()?))).collect()
    }

    /// To these connections are open.
    fn have_relays(&self, relays: Vec<LocationName>) {
        let differs = |known: &mut Vec<LocationName>| {
            let differs = *known != relays;
            *known = relays;
            differs
        };
        self.relays.send_if_modified(differs);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate((name, millis, is_relay): (u8, u64, bool)) -> Candidate {
        Candidate {
            location: format!("l{name}").parse().unwrap(),
            round_trip: Duration::from_millis(millis),
            is_relay,
        }
    }

    fn chosen(candidates: &[(u8, u64, bool)]) -> Vec<String> {
        let all = candidates.iter().copied().map(candidate).collect();
        choose(all).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_two_nearest_are_chosen_and_stay_until_another_is_half_as_far() {
        assert_eq!(chosen(&[(1, 80, false), (2, 20, false), (3, 50, false)]), ["l2", "l3"]);
        assert_eq!(chosen(&[(1, 80, true), (2, 20, true), (3, 50, false)]), ["l2", "l1"]);
        assert_eq!(chosen(&[(1, 110, true), (2, 20, true), (3, 50, false)]), ["l2", "l3"]);
        assert_eq!(chosen(&[(1, 10, false)]), ["l1"]);
        assert!(chosen(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn what_was_chosen_is_chosen_again(
            far in proptest::collection::btree_map(0..20_u8, 0..400_u64, 0..10),
        ) {
            let all = |relays: &[String]| -> Vec<(u8, u64, bool)> {
                far.iter().map(|(name, millis)| {
                    (*name, *millis, relays.contains(&format!("l{name}")))
                }).collect()
            };
            let first = chosen(&all(&[]));
            prop_assert_eq!(first.len(), far.len().min(Peering::MOST_RELAYS));
            prop_assert_eq!(chosen(&all(&first)), first);
        }
    }
}
