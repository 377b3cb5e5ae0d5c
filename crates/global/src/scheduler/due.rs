//! Which apps a round looks at.
//!
//! A change concerns few apps: those whose records changed, those of which a location says something else, those that
//! wait for a place or move, and those whose next step waits for what locations have carried out. To look at all of
//! them at each change would cost the square of their number. What concerns every app (a location that comes or goes, a
//! cordon, what nodes offer) has all looked at. So has time that passes while a location is not heard of: some apps
//! are replaced then, and what matters most comes first. While all are heard, nothing falls due but what can wait
//! (what is to be forgotten) and what was overlooked, should anything be: each app is looked at seldom, and a part of
//! them at a time, so that nobody waits until a whole world was looked at.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore_store::Revision;
use tokio::time::Instant;

use crate::catalog::{AppKey, Catalog};
use crate::reports::News;

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
    /// These.
    Some(BTreeSet<AppKey>),
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
    awaiting: BTreeSet<AppKey>,
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

    /// Notes whether an app that was looked at waits for what locations have carried out.
    pub fn look_again(&mut self, key: &AppKey, awaits: bool) {
        if awaits {
            self.awaiting.insert(key.clone());
        } else {
            self.awaiting.remove(key);
        }
    }

    /// What a round has to look at, given what is new in the reports, whether every location is heard, and what waits
    /// for anything.
    pub fn due(
        &mut self,
        catalog: &Catalog,
        (news, all_heard): (News, bool),
        waiting: BTreeSet<AppKey>,
    ) -> Due {
        let is_current = |at: &Instant| all_heard || at.elapsed() < WHOLE;
        let before = self.last.filter(|(_, at)| !news.rest && is_current(at));
        let before = before.filter(|(revision, _)| catalog.rest_changed <= *revision);
        let touched = before.and_then(|(revision, _)| catalog.touched_after(revision));
        let whole_at = before.map_or_else(Instant::now, |(_, at)| at);
        let Some(touched) = touched else {
            self.last = Some((catalog.revision, Instant::now()));
            self.part = None;
            self.is_whole = true;
            self.awaiting.retain(|key| catalog.apps.contains_key(key));
            return Due::All;
        };
        let mut keys: BTreeSet<_> = touched.cloned().collect();
        self.last = Some((catalog.revision, whole_at));
        self.is_whole = false;
        if all_heard {
            keys.extend(self.next_part(catalog));
        }
        keys.extend(waiting);
        keys.extend(news.apps);
        if news.any {
            self.awaiting.retain(|key| catalog.apps.contains_key(key));
            keys.extend(self.awaiting.iter().cloned());
        }
        Due::Some(keys)
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

    use super::*;

    fn app(name: &str) -> AppKey {
        (Default::default(), name.parse().unwrap())
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
        let due = |seen: &mut Seen, all_heard| {
            seen.due(&catalog, (News::default(), all_heard), BTreeSet::new())
        };
        assert_eq!(due(&mut seen, true), Due::All);
        for _ in 0..3 {
            let mut looked_at = Vec::new();
            for _ in 0..PARTS {
                assert_eq!(due(&mut seen, true), Due::Some(BTreeSet::new()), "it is not yet time");
                tokio::time::advance(IN_TURN / PARTS).await;
                let Due::Some(part) = due(&mut seen, true) else { panic!("not all at once") };
                assert!(part.len() <= 2, "{part:?}");
                looked_at.extend(part);
                if seen.is_whole() {
                    break;
                }
            }
            assert!(seen.is_whole());
            assert!(looked_at.iter().eq(catalog.apps.keys()), "{looked_at:?}");
        }
        // One is late, and what that comes to is for all together, what matters most first.
        assert_eq!(due(&mut seen, false), Due::Some(BTreeSet::new()));
        tokio::time::advance(WHOLE).await;
        assert_eq!(due(&mut seen, false), Due::All);
        assert_eq!(due(&mut seen, false), Due::Some(BTreeSet::new()));
    }

    #[test]
    fn only_what_a_change_concerns_is_looked_at() {
        let (catalog, mut seen) = (Catalog::default(), Seen::default());
        let of = |names: &[&str]| Due::Some(names.iter().map(|name| app(name)).collect());
        let waiting = || BTreeSet::from([app("waits")]);
        assert_eq!(
            seen.due(&catalog, (News::default(), true), waiting()),
            Due::All,
            "nothing was seen yet"
        );
        assert!(seen.is_whole());
        assert_eq!(seen.due(&catalog, (News::default(), true), waiting()), of(&["waits"]));
        let news = News { apps: [app("web")].into(), any: true, rest: false };
        assert_eq!(seen.due(&catalog, (news.clone(), true), waiting()), of(&["waits", "web"]));
        let rest = News { rest: true, ..news };
        assert_eq!(
            seen.due(&catalog, (rest, true), waiting()),
            Due::All,
            "every app may be concerned"
        );
        seen.forget();
        assert_eq!(seen.due(&catalog, (News::default(), true), waiting()), Due::All);
        let mut newer = catalog.clone();
        (newer.rest_changed, newer.revision) = (Revision(7), Revision(7));
        assert_eq!(
            seen.due(&newer, (News::default(), true), waiting()),
            Due::All,
            "there is a cordon"
        );
        assert_eq!(seen.due(&newer, (News::default(), true), BTreeSet::new()), of(&[]));
    }
}
