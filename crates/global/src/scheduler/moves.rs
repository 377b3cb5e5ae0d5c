//! Which instances move to be nearer to users.
//!
//! What would be better is the planner's word; here it is remembered for how long that has been so, and what moves. A
//! move begins when it was better elsewhere all the time that was waited, so users who come and go move nothing. Each
//! app has one instance on the way at most, and the world a few; after each the wait begins anew. One that is refused or
//! does not become healthy is given up, and for long nothing of the app moves.
//!
//! All of it is in memory. A control plane that was started again waits anew, and what it finds half moved it completes
//! or undoes (`longshore_planning::global`).

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_planning::global::{
    Better, LocationState, Moving, Shared, WantedApp, better, count_at,
};
use longshore_store::{Revision, Transaction};
use tokio::time::Instant;

use crate::catalog::{AppKey, Stored};
use crate::events::{Who, with_event};
use crate::records::AppRecord;

/// How many apps move at a time.
const MOST_AT_ONCE: usize = 8;
/// A move takes no longer than this, or is given up.
const WITHIN: Duration = Duration::from_secs(600);
/// How long nothing of an app moves after that.
const REST: Duration = Duration::from_secs(1800);
/// How often an app is looked at at most, beside how many times while it is waited.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOKS: u32 = 10;

/// What is remembered of all apps that say how near they should be.
pub struct Moves {
    /// How long it has to be better elsewhere.
    wait: Duration,
    apps: BTreeMap<AppKey, Known>,
}

enum Known {
    /// Since when it would be better elsewhere, if it would, and when that was looked at.
    Watched { since: Option<Instant>, looked: Instant },
    /// What moves, and as what it began.
    Moving { moving: Moving, began: Instant, revision: Revision, n_from: u32 },
    /// One was given up.
    Rests { until: Instant },
}

impl Moves {
    /// Nothing moves, and nothing will before this time.
    pub fn new(wait: Duration) -> Self {
        Self { wait, apps: BTreeMap::new() }
    }

    /// Forgets apps that are there no more.
    pub fn forget_gone(&mut self, exists: impl Fn(&AppKey) -> bool) {
        self.apps.retain(|key, _| exists(key));
    }

    /// When something may have been waited for long enough.
    pub fn next_deadline(&self, now: Instant) -> Option<Duration> {
        let waiting = self.apps.values().filter_map(|known| match known {
            // Before it may be looked at again it would not be.
            Known::Watched { since: Some(since), looked } => {
                Some((*since + self.wait).max(*looked + self.every()))
            }
            Known::Watched { since: None, .. } | Known::Moving { .. } | Known::Rests { .. } => None,
        });
        Some(waiting.min()?.saturating_duration_since(now))
    }

    /// How often an app is looked at at most.
    fn every(&self) -> Duration {
        LOOK_EVERY.min(self.wait / LOOKS)
    }

    /// The apps that move, or may begin to.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = &AppKey> {
        let is_due = move |known: &Known| match known {
            Known::Watched { since, .. } => {
                since.is_some_and(|since| now.saturating_duration_since(since) >= self.wait)
            }
            Known::Moving { .. } => true,
            Known::Rests { .. } => false,
        };
        self.apps.iter().filter(move |(_, known)| is_due(known)).map(|(key, _)| key)
    }

    /// What of an app moves now: nothing while a release is on its way.
    pub fn of(
        &mut self,
        key: &AppKey,
        Stored { record, revision }: &Stored<AppRecord>,
        wanted: &WantedApp,
        locations: &[LocationState],
    ) -> Option<Moving> {
        if record.good == Some(record.release) && record.beside.is_none() {
            return self.next((key, *revision), wanted, locations, Instant::now());
        }
        self.apps.remove(key);
        None
    }

    /// The same of one whose record is of this revision and calm.
    fn next(
        &mut self,
        (key, revision): (&AppKey, Revision),
        wanted: &WantedApp,
        locations: &[LocationState],
        now: Instant,
    ) -> Option<Moving> {
        if wanted.placement.goal().is_none() {
            self.apps.remove(key);
            return None;
        }
        let mut since_when = None;
        let every = self.every();
        match self.apps.get(key) {
            Some(Known::Moving { moving, began, revision: of, n_from }) => {
                let is_over = *of != revision || count_at(&wanted.shares, &moving.from) < *n_from;
                let is_late = now.saturating_duration_since(*began) >= WITHIN;
                if !is_over && !is_late && !wanted.refusals.contains_key(&moving.to) {
                    return Some(moving.clone());
                }
                if !is_over {
                    tracing::warn!(app = %key.1, to = %moving.to, "gave up a move to be nearer to users");
                    self.apps.insert(key.clone(), Known::Rests { until: now + REST });
                    return None;
                }
            }
            Some(Known::Rests { until }) if now < *until => return None,
            Some(Known::Watched { looked, since }) => {
                if now.saturating_duration_since(*looked) < every {
                    return None;
                }
                since_when = *since;
            }
            Some(Known::Rests { .. }) | None => {}
        }
        let found = better(wanted, locations);
        let since = found.as_ref().map(|_| since_when.unwrap_or(now));
        let is_waited =
            since.is_some_and(|since| now.saturating_duration_since(since) >= self.wait);
        let n_moving = self.apps.values().filter(|one| matches!(one, Known::Moving { .. })).count();
        let begins = found.filter(|_| is_waited && n_moving < MOST_AT_ONCE);
        let known = match &begins {
            None => Known::Watched { since, looked: now },
            Some(Better { moving, before, after }) => {
                let (from, to) = (&moving.from, &moving.to);
                tracing::info!(app = %key.1, %from, %to, before, after, "moves to be nearer to users");
                let n_from = count_at(&wanted.shares, from);
                Known::Moving { moving: moving.clone(), began: now, revision, n_from }
            }
        };
        self.apps.insert(key.clone(), known);
        begins.map(|better| better.moving)
    }
}

/// The change with an event, when it begins a move.
pub fn with_told(change: Transaction, wanted: &WantedApp, shared: &Shared) -> Transaction {
    let Some(Moving { from, to }) = &wanted.demand.moving else { return change };
    let begun = shared.shares.iter().find(|share| share.location == *to);
    let Some(share) = begun.filter(|share| share.count > count_at(&wanted.shares, to)) else {
        return change;
    };
    let subject = format!("{} from {from} to {to}: {}", wanted.app, share.decision.why);
    with_event(change, &Who::PLATFORM, Some(&wanted.project), "move", subject)
}

#[cfg(test)]
mod tests {
    use longshore_planning::global::{Demand, NodeKind, plan_shares};
    use longshore_types::{ByteCount, Capacity, MilliCpu, Placement, Timestamp};

    use super::*;

    const WAIT: Duration = Duration::from_secs(180);

    fn location(name: &str, away: u64) -> LocationState {
        let free =
            Capacity { cpu: MilliCpu(1000), memory: ByteCount::gib(1), disk: ByteCount::gib(1) };
        let kind = NodeKind {
            traits: Default::default(),
            reached: Vec::new(),
            open: true,
            n_nodes: 1,
            free,
            largest: free,
            gpus: Default::default(),
            freed: Vec::new(),
        };
        let other = if name == "ams" { "sin" } else { "ams" };
        let away = longshore_types::Duration::from_millis(away);
        LocationState {
            name: name.parse().unwrap(),
            reachable: true,
            late: false,
            cordon: None,
            free,
            without: Vec::new(),
            coordinates: None,
            traits: Default::default(),
            kinds: vec![kind],
            unheard: false,
            round_trips: BTreeMap::from([(other.parse().unwrap(), away)]),
        }
    }

    /// With one healthy instance in Amsterdam.
    fn wanted(app: &str) -> WantedApp {
        let each =
            Capacity { cpu: MilliCpu(1), memory: ByteCount::mib(1), disk: ByteCount::mib(1) };
        let placement: Placement = serde_json::from_str(r#"{"latency":"50ms"}"#).unwrap();
        let wanted = WantedApp {
            project: Default::default(),
            app: app.parse().unwrap(),
            count: 1,
            max: 2,
            each,
            gpus: None,
            placement,
            tried: None,
            refusals: BTreeMap::new(),
            may_make_room: Default::default(),
            priority: Default::default(),
            pinned: None,
            demand: Demand::default(),
            shares: Vec::new(),
        };
        let mut shares = plan_shares(Timestamp(0), &wanted, &[location("ams", 200)]).shares;
        shares[0].ready = 1;
        let demand = Demand::of([("sin".parse().unwrap(), 1000)]);
        WantedApp { shares, demand, ..wanted }
    }

    #[test]
    fn a_move_begins_when_it_was_better_all_the_time_and_is_given_up_once() {
        let locations = [location("ams", 200), location("sin", 200)];
        let key = |app: &str| (Default::default(), app.parse().unwrap());
        let (web, began) = (key("web"), Instant::now());
        let mut moves = Moves::new(WAIT);
        let mut at = |seconds: u64, revision: u64, wanted: &WantedApp| {
            let now = began + Duration::from_secs(seconds);
            moves.next((&web, Revision(revision)), wanted, &locations, now)
        };
        let far = wanted("web");
        let near = WantedApp { demand: Demand::of([("ams".parse().unwrap(), 1)]), ..far.clone() };
        assert_eq!(at(0, 1, &far), None);
        assert_eq!(at(170, 1, &far), None);
        // Users were there again meanwhile.
        assert_eq!(at(190, 1, &near), None);
        assert_eq!(at(220, 1, &far), None);
        assert_eq!(at(390, 1, &far), None);
        let moving = at(410, 1, &far).unwrap();
        assert_eq!((moving.from.as_str(), moving.to.as_str()), ("ams", "sin"));
        assert_eq!(at(411, 1, &near), Some(moving.clone()), "what has begun goes on");
        // A deploy comes first, and then the wait begins anew.
        assert_eq!(at(420, 2, &far), None);
        assert_eq!(at(590, 2, &far), None);
        assert_eq!(at(610, 2, &far), Some(moving.clone()));
        assert_eq!(at(1209, 2, &far), Some(moving));
        for seconds in [1210, 2000, 3009] {
            assert_eq!(at(seconds, 2, &far), None, "it never got healthy");
        }
        assert_eq!(at(3010, 2, &far), None);
        assert!(at(3200, 2, &far).is_some());
    }

    #[test]
    fn few_apps_move_at_a_time() {
        let locations = [location("ams", 200), location("sin", 200)];
        let mut moves = Moves::new(WAIT);
        let began = Instant::now();
        let mut n_moving = |seconds: u64| {
            let each = (0..MOST_AT_ONCE + 3).filter(|idx| {
                let wanted = wanted(&format!("app-{idx}"));
                let key = (Default::default(), wanted.app.clone());
                let now = began + Duration::from_secs(seconds);
                moves.next((&key, Revision(1)), &wanted, &locations, now).is_some()
            });
            each.count()
        };
        assert_eq!([0, 200, 400].map(&mut n_moving), [0, MOST_AT_ONCE, MOST_AT_ONCE]);
        moves.forget_gone(|(_, app)| app.as_str() != "app-0");
        assert_eq!(moves.apps.len(), MOST_AT_ONCE + 2);
        assert_eq!(moves.due(began + Duration::from_secs(400)).count(), MOST_AT_ONCE + 2);
        assert_eq!(moves.due(began).count(), MOST_AT_ONCE - 1, "the others wait");
    }
}
