//! Which apps a round looks at.
//!
//! A change concerns few apps: those whose records changed, those of which a location says something else, those that
//! wait for a place or move, and those whose next step waits for what locations have carried out. To look at all of
//! them at each change would cost the square of their number. What concerns every app (a location that comes or goes, a
//! cordon, what nodes offer) has all looked at, and so has time that passes: in any case every few seconds.

use std::collections::BTreeSet;

use longshore_store::Revision;
use tokio::time::Instant;

use crate::catalog::{AppKey, Catalog};
use crate::reports::News;

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
    /// The revision of the catalog, and when every app was looked at last; nothing before that.
    last: Option<(Revision, Instant)>,
    /// Whether this round looks at every app.
    is_whole: bool,
    /// The apps whose next step waits for what locations have carried out.
    awaiting: BTreeSet<AppKey>,
}

impl Seen {
    /// Has the next round look at every app.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Whether the present round looks at every app.
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

    /// What a round has to look at, given what is new in the reports, and what waits for anything.
    pub fn due(&mut self, catalog: &Catalog, news: News, waiting: BTreeSet<AppKey>) -> Due {
        let before = self.last.filter(|(_, at)| !news.rest && at.elapsed() < super::INTERVAL);
        let before = before.filter(|(revision, _)| catalog.rest_changed <= *revision);
        let touched = before.and_then(|(revision, _)| catalog.touched_after(revision));
        let whole_at = before.map_or_else(Instant::now, |(_, at)| at);
        let Some(touched) = touched else {
            self.last = Some((catalog.revision, Instant::now()));
            self.is_whole = true;
            self.awaiting.retain(|key| catalog.apps.contains_key(key));
            return Due::All;
        };
        let mut keys: BTreeSet<_> = touched.cloned().collect();
        self.last = Some((catalog.revision, whole_at));
        self.is_whole = false;
        keys.extend(waiting);
        keys.extend(news.apps);
        if news.any {
            self.awaiting.retain(|key| catalog.apps.contains_key(key));
            keys.extend(self.awaiting.iter().cloned());
        }
        Due::Some(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> AppKey {
        (Default::default(), name.parse().unwrap())
    }

    #[test]
    fn only_what_a_change_concerns_is_looked_at() {
        let (catalog, mut seen) = (Catalog::default(), Seen::default());
        let of = |names: &[&str]| Due::Some(names.iter().map(|name| app(name)).collect());
        let waiting = || BTreeSet::from([app("waits")]);
        assert_eq!(
            seen.due(&catalog, News::default(), waiting()),
            Due::All,
            "nothing was seen yet"
        );
        assert!(seen.is_whole());
        assert_eq!(seen.due(&catalog, News::default(), waiting()), of(&["waits"]));
        let news = News { apps: [app("web")].into(), any: true, rest: false };
        assert_eq!(seen.due(&catalog, news.clone(), waiting()), of(&["waits", "web"]));
        let rest = News { rest: true, ..news };
        assert_eq!(seen.due(&catalog, rest, waiting()), Due::All, "every app may be concerned");
        seen.forget();
        assert_eq!(seen.due(&catalog, News::default(), waiting()), Due::All);
        let mut newer = catalog.clone();
        (newer.rest_changed, newer.revision) = (Revision(7), Revision(7));
        assert_eq!(seen.due(&newer, News::default(), waiting()), Due::All, "there is a cordon");
        assert_eq!(seen.due(&newer, News::default(), BTreeSet::new()), of(&[]));
    }
}
