//! Which apps a round looks at.
//!
//! A change concerns few apps: those whose records changed, those of which a location says something else, those that
//! wait for a place or move, and those whose next step waits for what locations have carried out. To look at all of
//! them at each change would cost the square of their number. What concerns every app (a location that comes or goes, a
//! cordon, what nodes offer) has all looked at. So has time that passes while a location is not heard of: some apps
//! are replaced then, and what matters most comes first. While all are heard, nothing falls due but what can wait
//! (what is to be forgotten) and what was overlooked, should anything be: each app is looked at seldom, and a part of
//! them at a time, so that nobody waits until a whole world was looked at.
//!
//! What the scheduler itself wrote is a change as well. Where it knows that nothing follows from that, which most of its
//! looks would find out otherwise, the app is not looked at for it ([`Seen::wrote`]); and an app that waits until a
//! location has heard of what it was given is looked at once that has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longshore_store::Revision;
use longshore_types::{Generation, LocationName};
use tokio::time::Instant;

use crate::catalog::{AppKey, Catalog};
use crate::reports::{ByLocation, News};

/// How often every app is looked at while a location is not heard of.
const WHOLE: Duration = Duration::from_secs(5);
/// How long all take in turn while every location is, and in how many parts.
const IN_TURN: Duration = Duration::from_secs(30);
const PARTS: u32 = 60;

/// The apps to look at.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Every one.
    All,
    /// Some.
    Some {
        /// These.
        keys: BTreeSet<AppKey>,
        /// Of these nothing changed but what the round before wrote, from which nothing follows; what the locations have
        /// been given by now does.
        written: BTreeSet<AppKey>,
    },
}

/// What an app waits for that locations carry out.
#[derive(Debug, PartialEq, Eq)]
pub enum Awaits {
    /// Nothing.
    Nothing,
    /// Whatever any does.
    Anything,
    /// That one of these has heard of what was given to it with that revision.
    Heard(Vec<(LocationName, Revision)>),
}

impl Awaits {
    /// Whether it may have come, as far as each location has heard by now.
    fn may_be_over(&self, heard: impl Fn(&LocationName) -> Generation) -> bool {
        match self {
            Self::Nothing => false,
            Self::Anything => true,
            Self::Heard(of) => of.iter().any(|(at, revision)| heard(at).0 >= revision.0),
        }
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// The revision of the catalog, and when every app was looked at last, or all were begun anew part by part;
    /// nothing before that.
    last: Option<(Revision, Instant)>,
    /// The last app of the last part, and when that was looked at.
    part: Option<(AppKey, Instant)>,
    /// Whether this round looks at every app, or at the last of them.
    is_whole: bool,
    /// The apps whose next step waits for what locations have carried out.
    awaiting: BTreeMap<AppKey, Awaits>,
    /// What the last round wrote from which nothing follows.
    written: BTreeMap<AppKey, Revision>,
}

impl Seen {
    /// Has the next round look at every app.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Whether every app was looked at with the present round.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Notes what an app that was looked at waits for.
    pub fn look_again(&mut self, key: &AppKey, awaits: Awaits) {
        match awaits {
            Awaits::Nothing => _ = self.awaiting.remove(key),
            awaits => _ = self.awaiting.insert(key.clone(), awaits),
        }
    }

    /// Notes a change of an app that the present round wrote, after which nothing is to be done before something else
    /// happens, or one of these locations has heard of it.
    pub fn wrote(&mut self, key: AppKey, revision: Revision, to: Vec<LocationName>) {
        if !to.is_empty() {
            let heard = to.into_iter().map(|location| (location, revision));
            self.awaiting.insert(key.clone(), Awaits::Heard(heard.collect()));
        }
        self.written.insert(key, revision);
    }

    /// Forgets apps that are there no more.
    pub fn forget_gone(&mut self, exists: impl Fn(&AppKey) -> bool) {
        self.awaiting.retain(|key, _| exists(key));
    }

    /// What a round has to look at, given what is new in the reports, whether every location is heard, and what waits
    /// for anything.
    pub fn due(
        &mut self,
        (catalog, reports): (&Catalog, &ByLocation),
        (news, all_heard): (News, bool),
        waiting: BTreeSet<AppKey>,
    ) -> Due {
        let is_current = |at: &Instant| all_heard || at.elapsed() < WHOLE;
        let before = self.last.filter(|(_, at)| !news.rest && is_current(at));
        let before = before.filter(|(revision, _)| catalog.rest_changed <= *revision);
        let touched = before.and_then(|(revision, _)| catalog.touched_after(revision));
        let whole_at = before.map_or_else(Instant::now, |(_, at)| at);
        let own = std::mem::take(&mut self.written);
        let Some(touched) = touched else {
            self.last = Some((catalog.revision, Instant::now()));
            self.part = None;
            self.is_whole = true;
            return Due::All;
        };
        let (mut keys, mut written) = (waiting, BTreeSet::new());
        for (revision, key) in touched {
            let is_own = own.get(key) == Some(&revision);
            let known = if is_own { &mut written } else { &mut keys };
            known.insert(key.clone());
        }
        self.last = Some((catalog.revision, whole_at));
        self.is_whole = false;
        if all_heard {
            keys.extend(self.next_part(catalog));
        }
        keys.extend(news.apps);
        if news.any {
            let said = |at: &LocationName| reports.get(at).map(|one| one.report.acknowledged);
            let heard = |at: &LocationName| said(at).unwrap_or_default();
            let awaiting = self.awaiting.iter().filter(|(_, awaits)| awaits.may_be_over(heard));
            keys.extend(awaiting.map(|(key, _)| key.clone()));
        }
        written.retain(|key| !keys.contains(key));
        Due::Some { keys, written }
    }

    /// The apps after those that were looked at last, when it is time for them.
    fn next_part(&mut self, catalog: &Catalog) -> Vec<AppKey> {
        let (from, at) = match &self.part {
            Some((last, at)) => (Some(last), *at),
            None => (None, self.last.map_or_else(Instant::now, |(_, at)| at)),
        };
        if at.elapsed() < IN_TURN / PARTS {
            return Vec::new();
        }
        let n = catalog.apps.len().div_ceil(PARTS as usize);
        let mut next = catalog.apps.iter_from(|key| from.is_some_and(|last| key <= last));
        let keys: Vec<_> = next.by_ref().take(n).map(|(key, _)| key.clone()).collect();
        let is_end = next.next().is_none();
        self.is_whole = is_end;
        self.part = keys.last().filter(|_| !is_end).map(|last| (last.clone(), Instant::now()));
        if let Some((_, whole_at)) = self.last.as_mut().filter(|_| is_end) {
            *whole_at = Instant::now();
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use crate::catalog::Stored;
    use crate::records::AppRecord;
    use crate::reports::Received;

    use super::*;

    fn app(name: &str) -> AppKey {
        (Default::default(), name.parse().unwrap())
    }

    fn some(keys: &[&str]) -> Due {
        let keys = keys.iter().map(|name| app(name)).collect();
        Due::Some { keys, written: BTreeSet::new() }
    }

    fn with_apps(n: usize) -> Catalog {
        let record = serde_json::json!({
            "release": 1, "stage": "whole", "count": 1, "generation": 1, "removing": false,
        });
        let record: AppRecord = serde_json::from_value(record).unwrap();
        let mut catalog = Catalog::default();
        for idx in 0..n {
            let stored = Stored { record: record.clone(), revision: Revision(0) };
            catalog.apps.insert(app(&format!("a{idx:02}")), stored);
        }
        catalog
    }

    #[tokio::test(start_paused = true)]
    async fn while_every_location_is_heard_all_are_looked_at_in_turn() {
        let (catalog, mut seen) = (with_apps(75), Seen::default());
        let reports = ByLocation::default();
        let due = |seen: &mut Seen, all_heard| {
            seen.due((&catalog, &reports), (News::default(), all_heard), BTreeSet::new())
        };
        assert_eq!(due(&mut seen, true), Due::All);
        for _ in 0..3 {
            let mut looked_at = Vec::new();
            for _ in 0..PARTS {
                assert_eq!(due(&mut seen, true), some(&[]), "it is not yet time");
                tokio::time::advance(IN_TURN / PARTS).await;
                let Due::Some { keys, .. } = due(&mut seen, true) else {
                    panic!("not all at once")
                };
                assert!(keys.len() <= 2, "{keys:?}");
                looked_at.extend(keys);
                if seen.is_whole() {
                    break;
                }
            }
            assert!(seen.is_whole());
            assert!(looked_at.iter().eq(catalog.apps.keys()), "{looked_at:?}");
        }
        // One is late, and what that comes to is for all together, what matters most first.
        assert_eq!(due(&mut seen, false), some(&[]));
        tokio::time::advance(WHOLE).await;
        assert_eq!(due(&mut seen, false), Due::All);
        assert_eq!(due(&mut seen, false), some(&[]));
    }

    #[test]
    fn only_what_a_change_concerns_is_looked_at() {
        let (catalog, mut seen) = (Catalog::default(), Seen::default());
        let reports = ByLocation::default();
        let due = |seen: &mut Seen, catalog: &Catalog, news: &News, waiting: &[&str]| {
            let waiting = waiting.iter().map(|name| app(name)).collect();
            seen.due((catalog, &reports), (news.clone(), true), waiting)
        };
        let none = News::default();
        assert_eq!(due(&mut seen, &catalog, &none, &["waits"]), Due::All, "nothing was seen yet");
        assert!(seen.is_whole());
        assert_eq!(due(&mut seen, &catalog, &none, &["waits"]), some(&["waits"]));
        let news = News { apps: [app("web")].into(), any: true, rest: false };
        assert_eq!(due(&mut seen, &catalog, &news, &["waits"]), some(&["waits", "web"]));
        let rest = News { rest: true, ..news };
        assert_eq!(due(&mut seen, &catalog, &rest, &[]), Due::All, "every app may be concerned");
        seen.forget();
        assert_eq!(due(&mut seen, &catalog, &none, &[]), Due::All);
        let mut newer = catalog.clone();
        (newer.rest_changed, newer.revision) = (Revision(7), Revision(7));
        assert_eq!(due(&mut seen, &newer, &none, &[]), Due::All, "there is a cordon");
        assert_eq!(due(&mut seen, &newer, &none, &[]), some(&[]));
    }

    /// A report of one location that has carried out so much.
    fn heard(acknowledged: u64) -> ByLocation {
        let document = serde_json::json!({
            "location": "ams", "gate": null, "acknowledged": acknowledged, "at": 1, "instances": [],
            "shortfalls": [], "nodes": [],
        });
        let report = serde_json::from_value(document).unwrap();
        let mut reports = ByLocation::default();
        let received = Received::new(report, Default::default(), None).0;
        reports.insert("ams".parse().unwrap(), received);
        reports
    }

    #[test]
    fn what_the_scheduler_wrote_itself_is_looked_at_when_something_else_happens() {
        let mut catalog = with_apps(0);
        let mut seen = Seen::default();
        let any = || (News { any: true, ..News::default() }, true);
        let due = |seen: &mut Seen, catalog: &Catalog, acknowledged| {
            seen.due((catalog, &heard(acknowledged)), any(), BTreeSet::new())
        };
        assert_eq!(due(&mut seen, &catalog, 0), Due::All);
        let ams = || vec!["ams".parse().unwrap()];
        for (key, revision) in [("alone", 3), ("again", 4), ("other", 5)] {
            seen.wrote(app(key), Revision(revision), ams());
        }
        for (key, revision) in [("alone", 3), ("again", 4), ("other", 6), ("again", 7)] {
            catalog.touch(app(key), Revision(revision));
        }
        catalog.revision = Revision(7);
        // One was changed by somebody else as well, and of one what was written is not there yet.
        let written = BTreeSet::from([app("alone")]);
        let keys = BTreeSet::from([app("again"), app("other")]);
        assert_eq!(due(&mut seen, &catalog, 2), Due::Some { keys, written });
        assert_eq!(due(&mut seen, &catalog, 2), some(&[]), "no location has heard of any");
        assert_eq!(due(&mut seen, &catalog, 4), some(&["again", "alone"]));
        seen.look_again(&app("alone"), Awaits::Nothing);
        seen.look_again(&app("again"), Awaits::Anything);
        assert_eq!(due(&mut seen, &catalog, 4), some(&["again"]));
        seen.forget_gone(|key| *key != app("again"));
        assert_eq!(due(&mut seen, &catalog, 5), some(&["other"]));
        assert_eq!(
            seen.due((&catalog, &heard(5)), (News::default(), true), BTreeSet::new()),
            some(&[])
        );
    }
}
