//! What changes in a project, worked out once for all who watch it.
//!
//! A feed holds the state and the newest changes that led there. A watcher keeps its own place and reads on
//! from it: one that falls behind what is kept, or comes back too late, gets the state anew. So there is no
//! queue for a slow one to fill, and two hundred watchers cost one look at the project for each change.
//! Rejected: the state for each watcher at each change, whose cost is the product of both.

mod changes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use longshore_api::v1::{ProjectChange, ProjectView};
use longshore_link::{Pace, event_frame};
use longshore_types::{AppName, ProjectName};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Plane, views};
use changes::change_between;

/// The most bytes of changes that a feed keeps for those who come back.
const KEPT_BYTES: usize = 4 << 20;
/// How long a feed goes on without a watcher, so that one who lost the connection can resume.
const LINGERS: Duration = Duration::from_secs(60);
/// How often it looks for watchers.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
/// How long to rest after a look at the project, in looks.
const REST: u32 = 4;

/// What part of a project is watched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    /// Which project.
    pub project: ProjectName,
    /// Only this app and its instances.
    pub app: Option<AppName>,
    /// Whether instances are shown, of which there may be thousands.
    pub instances: bool,
}

impl Scope {
    /// That part as it is.
    pub fn view(&self, plane: &Plane) -> ProjectView {
        let (catalog, reports) = (plane.catalog(), plane.reports.now());
        let is_shown = |name: &AppName| self.app.as_ref().is_none_or(|app| app == name);
        let apps = views::apps(&catalog, &reports, &self.project, &plane.public, is_shown);
        let statuses = views::statuses(&reports, &self.project);
        let shown = statuses.filter(|(_, status)| self.instances && is_shown(&status.app));
        let instances = shown.map(|(location, status)| views::instance(location, status)).collect();
        ProjectView { apps, instances }
    }
}

/// All feeds that are watched, or were lately.
#[derive(Debug, Default)]
pub struct Feeds(Mutex<BTreeMap<Scope, Arc<Feed>>>);

/// A part of a project as it is, and what changed lately.
#[derive(Debug)]
pub struct Feed {
    /// Tells apart what was numbered by another process, or by an earlier feed of the same part.
    run: String,
    log: Mutex<Log>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Log {
    view: Arc<ProjectView>,
    /// The number of the newest change; that of the first state is 0.
    number: u64,
    /// The newest changes, the last with `number`.
    changes: VecDeque<Bytes>,
    kept_bytes: usize,
    /// The state as an event, once somebody asked for it.
    state: Option<Bytes>,
}

/// How far a watcher has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(Option<u64>);

impl Feeds {
    /// The feed of a part of a project, which begins when it is first asked for.
    pub fn join(plane: &Arc<Plane>, scope: Scope) -> Arc<Feed> {
        let mut feeds = plane.feeds.lock();
        if let Some(feed) = feeds.get(&scope) {
            return Arc::clone(feed);
        }
        let feed = Arc::new(Feed::new(scope.view(plane)));
        feeds.insert(scope.clone(), Arc::clone(&feed));
        let follow = follow(Arc::clone(plane), scope, Arc::clone(&feed));
        plane.service.spawn_until_shutdown("feed", follow);
        feed
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Scope, Arc<Feed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a feed that only its own task and the table hold; true when it did.
    fn leave(&self, scope: &Scope, feed: &Arc<Feed>) -> bool {
        let mut feeds = self.lock();
        // Whoever joins holds the lock, so nobody can come in between.
        let alone = Arc::strong_count(feed) <= 2;
        if alone {
            feeds.remove(scope);
        }
        alone
    }
}

/// Keeps a feed up to date until nobody has watched it for a while.
async fn follow(plane: Arc<Plane>, scope: Scope, feed: Arc<Feed>) {
    let mut catalog = plane.catalog.subscribe();
    let mut reports = plane.reports.subscribe();
    let mut pace = Pace::new(REST);
    let mut watched = Instant::now();
    loop {
        let began = Instant::now();
        catalog.mark_unchanged();
        reports.mark_unchanged();
        feed.update(scope.view(&plane));
        pace.worked_since(began);
        if feed.newest.receiver_count() > 0 {
            watched = Instant::now();
        } else if watched.elapsed() >= LINGERS && plane.feeds.leave(&scope, &feed) {
            return;
        }
        pace.rest().await;
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            changed = reports.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

impl Feed {
    fn new(view: ProjectView) -> Self {
        let log = Log {
            view: Arc::new(view),
            number: 0,
            changes: VecDeque::new(),
            kept_bytes: 0,
            state: None,
        };
        let run = uuid::Uuid::new_v4().simple().to_string();
        Self { run, log: Mutex::new(log), newest: watch::channel(0).0 }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.run)
    }

    /// Takes over what is now so.
    fn update(&self, view: ProjectView) {
        let mut log = self.log();
        let change = change_between(&log.view, &view);
        if change == ProjectChange::default() {
            return;
        }
        log.number += 1;
        let frame = event_frame("change", &self.id(log.number), &change);
        log.kept_bytes += frame.len();
        log.changes.push_back(frame);
        while log.kept_bytes > KEPT_BYTES {
            let Some(oldest) = log.changes.pop_front() else { break };
            log.kept_bytes -= oldest.len();
        }
        log.view = Arc::new(view);
        log.state = None;
        self.newest.send_replace(log.number);
    }

    /// Tells when there is more. Whoever has one counts as a watcher.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The place of who saw the event with that id last, or saw none.
    pub fn place(&self, last_event: Option<&str>) -> Place {
        let number = last_event.and_then(|id| id.strip_prefix(&self.run)?.strip_prefix('-'));
        Place(number.and_then(|number| number.parse().ok()))
    }

    /// The state as it is.
    pub fn view(&self) -> Arc<ProjectView> {
        Arc::clone(&self.log().view)
    }

    /// What is new for a watcher at `place`: the changes since, or the state when those are not kept.
    /// Moves the place to the newest.
    pub fn news(&self, place: &mut Place) -> Vec<Bytes> {
        let mut log = self.log();
        let log = &mut *log;
        let newest = log.number;
        let missing = place.0.and_then(|seen| newest.checked_sub(seen));
        let missing = missing.and_then(|missing| usize::try_from(missing).ok());
        *place = Place(Some(newest));
        match missing.filter(|missing| *missing <= log.changes.len()) {
            Some(missing) => log.changes.range(log.changes.len() - missing..).cloned().collect(),
            None => {
                let state = || event_frame("state", &self.id(newest), log.view.as_ref());
                vec![log.state.get_or_insert_with(state).clone()]
            }
        }
    }
}

#[cfg(test)]
mod tests;
