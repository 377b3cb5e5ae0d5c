//! How a rollout goes, told from what the API's watch shows.
//!
//! [`Rollout`] is fed one view of the project after the other and says what is new in lines that
//! read well in a log; whether it is over follows from the last view alone, so a view that was
//! missed does no harm.

mod command_output;
mod wait;

use std::collections::BTreeMap;

use longshore_api::v1::{AppView, InstanceView, ProjectView};
use longshore_types::{AppName, Generation, InstanceId, InstancePhase, ReleaseNumber};

use crate::human;

pub use wait::wait;

/// The way of one app to one release.
#[derive(Debug)]
pub struct Rollout {
    app: AppName,
    release: ReleaseNumber,
    /// Of the app since it should run.
    generation: Generation,
    seen: BTreeMap<InstanceId, String>,
    app_note: Option<String>,
    /// How far the image of an instance is that waits for it.
    pulls: Option<String>,
    latest: Option<AppView>,
    /// The most instances that were to go.
    most_outdated: u32,
    /// True once a view had the app, so that its absence means that it was removed.
    was_there: bool,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Instances are still to come or to go.
    Underway,
    /// Every instance that should run is of the release and healthy, and no other is left.
    Done,
    /// Its canaries are healthy, and somebody has to promote it.
    Tried,
    /// Another release was deployed meanwhile, so this one will never be complete.
    Overtaken,
    /// It got no further for too long; the platform goes on trying, or went back to another.
    Failed {
        /// The release that should run now.
        now: ReleaseNumber,
    },
    /// The app was removed meanwhile.
    Removed,
}

impl Rollout {
    /// The rollout of `release`, which should run since the app has this generation.
    pub fn new(app: AppName, release: ReleaseNumber, generation: Generation) -> Self {
        Self {
            app,
            release,
            generation,
            seen: BTreeMap::new(),
            app_note: None,
            pulls: None,
            latest: None,
            most_outdated: 0,
            was_there: false,
        }
    }

    /// Takes the next view over and gives the lines that tell what is new.
    pub fn update(&mut self, view: &ProjectView) -> Vec<String> {
        let mut lines = Vec::new();
        self.latest = view.apps.iter().find(|app| app.app == self.app).cloned();
        self.was_there |= self.latest.is_some();
        let outdated = self.latest.as_ref().map_or(0, |app| app.outdated);
        self.most_outdated = self.most_outdated.max(outdated);
        let note = self.latest.as_ref().and_then(|app| app.note.clone());
        // What the app only passes on from one of its instances is told with that instance.
        let passed_on =
            |note: &String| view.instances.iter().any(|one| note.starts_with(one.id().as_str()));
        let note = note.filter(|note| !passed_on(note));
        if note != self.app_note {
            lines.extend(note.iter().map(|note| format!("{}: {note}", self.app)));
            self.app_note = note;
        }
        let mine = view.instances.iter().filter(|instance| instance.app == self.app);
        let mut present = BTreeMap::new();
        self.pulls = None;
        for instance in mine {
            let mut note = instance.observed.note.as_deref();
            if instance.observed.phase == InstancePhase::Pulling {
                // In a log, how far its image is would be a line for each part of it.
                let pulls = note.take().map(|note| format!("{}: {note}", instance.id()));
                self.pulls = self.pulls.take().or(pulls);
            }
            let text = describe(instance, note);
            if self.seen.get(instance.id()) != Some(&text) {
                lines.push(format!("{}  {text}", instance.id()));
            }
            present.insert(instance.id().clone(), text);
        }
        for gone in self.seen.keys().filter(|id| !present.contains_key(*id)) {
            lines.push(format!("{gone}  gone"));
        }
        self.seen = present;
        lines
    }

    /// Where the rollout stood in the last view.
    pub fn progress(&self) -> Progress {
        let Some(app) = &self.latest else {
            return match self.was_there {
                true => Progress::Removed,
                false => Progress::Underway,
            };
        };
        if app.generation < self.generation {
            Progress::Underway
        } else if app.failed == Some(self.release) {
            Progress::Failed { now: app.release }
        } else if app.release != self.release {
            Progress::Overtaken
        } else if let Some(canary) = &app.canary {
            let waits = canary.is_ready() && canary.wait.is_none();
            if waits { Progress::Tried } else { Progress::Underway }
        } else if app.is_complete() {
            Progress::Done
        } else {
            Progress::Underway
        }
    }

    /// How many steps of how many were done: instances that became healthy, or were to go and are gone.
    pub fn steps(&self) -> Option<(u32, u32)> {
        let app = self.latest.as_ref().filter(|app| app.release == self.release)?;
        if let Some(canary) = &app.canary {
            return Some((canary.ready.min(canary.count), canary.count));
        }
        let gone = self.most_outdated.saturating_sub(app.outdated);
        Some((app.ready.min(app.count) + gone, app.count + self.most_outdated))
    }

    /// The instance that runs or ran the release's command, once it has begun.
    pub fn command<'a>(&self, view: &'a ProjectView) -> Option<&'a InstanceId> {
        let mut instances = view.instances.iter();
        let found = instances.find(|one| {
            one.app == self.app
                && one.release == self.release
                && one.is_command
                && one.observed.started_at.is_some()
        });
        found.map(InstanceView::id)
    }

    /// What became of the release's command, when it is why the release was given up.
    pub fn failed_command(&self) -> Option<&str> {
        let app = self.latest.as_ref().filter(|app| app.failed == Some(self.release))?;
        app.note.as_deref().filter(|note| note.starts_with("the release command"))
    }

    /// The state in a few words: `1 of 2 healthy, 1 old`.
    pub fn summary(&self) -> String {
        let Some(app) = &self.latest else {
            return "waiting for the platform".to_owned();
        };
        if let Some(canary) = &app.canary {
            return canary.note();
        }
        if app.state == "releasing" {
            return "the release command runs".to_owned();
        }
        let mut text = format!("{} of {} healthy", app.ready, app.count);
        if app.outdated > 0 {
            text.push_str(&format!(", {} to be replaced or ended", app.outdated));
        }
        text
    }

    /// The same with what is outdated at once: how far an image is that an instance waits for.
    pub fn status(&self) -> String {
        let summary = self.summary();
        match &self.pulls {
            Some(pulls) => format!("{summary}; {pulls}"),
            None => summary,
        }
    }

    /// Why the rollout is not over, one reason a line: what the app and its instances note.
    pub fn obstacles(&self, view: &ProjectView) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.app_note.iter().map(|note| format!("{}: {note}", self.app)));
        let canary = self.latest.as_ref().and_then(|app| app.canary.as_ref());
        let stays =
            |release| release == self.release || canary.is_some_and(|c| c.beside == release);
        let waiting = view.instances.iter().filter(|instance| {
            instance.app == self.app
                && (instance.observed.phase != InstancePhase::Healthy || !stays(instance.release))
        });
        lines.extend(waiting.map(|instance| {
            let text = describe(instance, instance.observed.note.as_deref());
            format!("{}  {text}", instance.id())
        }));
        lines
    }
}

/// An instance in one line, without its id, with what it notes.
fn describe(instance: &InstanceView, note: Option<&str>) -> String {
    let observed = &instance.observed;
    let what = if instance.is_command { " command" } else { "" };
    let mut text = format!(
        "{}{what} on {}/{}: {}",
        instance.release, instance.location, instance.node, observed.phase
    );
    if instance.draining {
        text.push_str(", draining");
    }
    if observed.restarts > 0 {
        text.push_str(&format!(
            ", started again {}",
            human::count(observed.restarts as usize, "time")
        ));
    }
    // A healthy instance's past exits are of no interest here.
    if !matches!(observed.phase, InstancePhase::Healthy) {
        let exit = observed.last_exit.as_ref().map(ToString::to_string);
        match (note, exit) {
            (Some(note), _) => text.push_str(&format!(" ({note})")),
            (None, Some(exit)) => text.push_str(&format!(" ({exit})")),
            (None, None) => {}
        }
    }
    text
}

#[cfg(test)]
mod tests;
