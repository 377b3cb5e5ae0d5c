//! Carries out what `longshore_planning::rollout` decides of each app.
//!
//! When a rollout last got on is kept in memory: a control plane that is started again gives every
//! rollout its whole time anew. Only locations that are heard of count: another is neither healthy nor
//! unhealthy, and stops nobody. While none is, the clock stands still.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_api::links::InstanceStatus;
use longshore_planning::rollout::{CommandOutcome, RolloutState, Verdict, judge};
use longshore_planning::waves::{Standing, standing};
use longshore_types::{
    ExitReason, Generation, InstancePhase, LocationName, Manifest, ReleaseNumber, RestartPolicy,
};
use tokio::time::Instant;

use crate::catalog::AppKey;
use crate::records::{AppRecord, RolloutStage};
use crate::reports::{ByLocation, of_app};
use crate::scheduler::{Found, Held};
use crate::{views, waves};

/// How far each rollout got, and when.
#[derive(Debug, Default)]
pub struct Rollouts {
    seen: BTreeMap<AppKey, Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    generation: Generation,
    /// The most that was ready and the least that was left at each location that was heard of. By location, so
    /// that one that comes and goes is no progress.
    by_location: BTreeMap<LocationName, (usize, usize)>,
    /// When the stage began.
    began: Instant,
    /// When it last got on.
    at: Instant,
    complete_since: Option<Instant>,
    /// When it may have failed, or its canaries take over, should nothing happen before.
    due: Option<Instant>,
}

impl Seen {
    /// One whose time begins now.
    fn new(generation: Generation, now: Instant) -> Self {
        let (by_location, complete_since, due) = Default::default();
        Self { generation, by_location, began: now, at: now, complete_since, due }
    }

    fn due(&self, record: &AppRecord, manifest: &Manifest) -> Option<Instant> {
        let rules = &manifest.rollout;
        if let (Some(command), RolloutStage::Command) = (&manifest.release, record.stage) {
            let is_judged = record.failed != Some(record.release);
            return self.began.checked_add(command.timeout.0).filter(|_| is_judged);
        }
        if let Some(since) = self.complete_since {
            return since.checked_add(rules.canary_wait?.0);
        }
        let is_judged = record.good != Some(record.release) && record.failed.is_none();
        self.at.checked_add(rules.deadline.0).filter(|_| is_judged)
    }
}

/// Whether there is anything to judge.
fn is_judged(record: &AppRecord, manifest: &Manifest) -> bool {
    // What should not run has nothing to show, and what may end by itself may have done so.
    let may_end = manifest.port.is_none() && manifest.restart != RestartPolicy::Always;
    let has_nothing_to_show = record.count == 0 || may_end;
    // Most of all apps are complete most of the time: nothing is counted for them.
    record.good != Some(record.release)
        && (!has_nothing_to_show || record.stage == RolloutStage::Command)
}

/// What came of a release's command, and in words.
fn outcome(
    key: &AppKey,
    release: ReleaseNumber,
    reports: &ByLocation,
    timeout: Duration,
) -> (CommandOutcome, String) {
    let ended = of_app(reports, key).find(|status| {
        let is_it = status.is_command && status.release == release && !status.draining;
        is_it && status.observed.phase == InstancePhase::Exited
    });
    let Some(InstanceStatus { observed, .. }) = ended else {
        let limit = longshore_types::Duration(timeout);
        return (CommandOutcome::Pending { timeout }, format!("did not end within {limit}"));
    };
    let outcome = match observed.last_exit {
        Some(ExitReason::Exited { code: 0 }) => CommandOutcome::Succeeded,
        _ => CommandOutcome::Failed,
    };
    (outcome, observed.note.clone().unwrap_or_else(|| "failed".to_owned()))
}

/// What a verdict makes of an app; `says` are the words on its release's command.
fn after(
    verdict: Verdict,
    record: &AppRecord,
    manifest: &Manifest,
    says: Option<&str>,
) -> Option<AppRecord> {
    let release = record.release;
    let failed = || {
        let why = match says {
            Some(says) => format!("the release command of {release} {says}"),
            None => format!("{release} got no further for {}", manifest.rollout.deadline),
        };
        AppRecord { failed: Some(release), why: Some(why), ..record.clone() }
    };
    Some(match verdict {
        Verdict::Nothing => return None,
        Verdict::Proceed => record.at(record.after_command(manifest)),
        Verdict::Complete => AppRecord {
            good: Some(release),
            failed: record.failed.filter(|failed| *failed != release),
            why: record.why.clone().filter(|_| record.failed != Some(release)),
            ..record.clone()
        },
        Verdict::Promote => record.at(RolloutStage::Whole),
        Verdict::Failed if record.failed == Some(release) => return None,
        Verdict::Failed => failed(),
        Verdict::Revert(good) => AppRecord { release: good, ..failed().at(RolloutStage::Whole) },
    })
}

/// False while the location is not heard of that runs the release's command.
fn command_is_heard(reports: &ByLocation, held: &Held<'_>) -> bool {
    let mut running = held.iter().filter(|(_, stored)| stored.record.command.is_some());
    running.all(|(location, _)| reports.is_heard(location))
}

/// How many instances of a release are ready at each location that is heard of, and how many of others are left.
fn by_location(
    reports: &ByLocation,
    key: &AppKey,
    release: ReleaseNumber,
) -> BTreeMap<LocationName, (usize, usize)> {
    let heard = reports.iter().filter(|(_, received)| received.reachable());
    let counted = heard.map(|(location, received)| {
        let (mut ready, mut left) = (0, 0);
        for status in received.of_app(key) {
            if status.release != release || status.is_command || status.draining {
                left += 1;
            } else if views::is_ready(status) {
                ready += 1;
            }
        }
        (location.clone(), (ready, left))
    });
    counted.collect()
}

impl Rollouts {
    /// Begins the time of a rollout that nothing is said of yet.
    pub fn begin(&mut self, key: &AppKey, record: &AppRecord, manifest: &Manifest) {
        if is_judged(record, manifest) {
            let new = || Seen::new(record.generation, Instant::now());
            let seen = self.seen.entry(key.clone()).or_insert_with(new);
            seen.due = seen.due(record, manifest);
        }
    }

    /// Forgets that of an app, which is over.
    pub fn end(&mut self, key: &AppKey) {
        self.seen.remove(key);
    }

    /// What has to be written of an app now, if anything.
    pub fn next_record(
        &mut self,
        Found { key, stored, release, held }: &Found<'_>,
        reports: &ByLocation,
    ) -> Option<AppRecord> {
        let (record, manifest) = (&stored.record, &(*release)?.manifest);
        if !is_judged(record, manifest) {
            self.seen.remove(*key);
            return None;
        }
        let parts = waves::parts(reports, key, record, held);
        let standing = standing(&parts);
        let placed: u32 = held.values().map(|stored| stored.record.count).sum();
        let is_placed = placed >= record.count;
        let standing = Standing {
            is_heard: standing.is_heard && command_is_heard(reports, held),
            is_served: standing.is_served && is_placed,
            is_complete: standing.is_complete && is_placed,
        };
        let now = by_location(reports, key, record.release);
        let seen = self.look(key, record.generation, now, standing);
        seen.due = seen.due(record, manifest);
        let of_command =
            manifest.release.as_ref().filter(|_| record.stage == RolloutStage::Command);
        let command =
            of_command.map(|command| outcome(key, record.release, reports, command.timeout.0));
        let state = RolloutState {
            release: record.release,
            good: record.good,
            command: command.as_ref().map(|(outcome, _)| (*outcome, seen.began.elapsed())),
            is_canary: record.stage == RolloutStage::Canary,
            is_complete: standing.is_complete,
            complete_for: seen.complete_since.map_or(Duration::ZERO, |since| since.elapsed()),
            is_served: standing.is_served && record.stage == RolloutStage::Whole,
            since_progress: seen.at.elapsed(),
            rules: manifest.rollout,
        };
        let says = command.as_ref().map(|(_, says)| says.as_str());
        after(judge(&state), record, manifest, says).filter(|next| next != record)
    }

    fn look(
        &mut self,
        key: &AppKey,
        generation: Generation,
        by_location: BTreeMap<LocationName, (usize, usize)>,
        standing: Standing,
    ) -> &mut Seen {
        let at = Instant::now();
        let new = || Seen::new(generation, at);
        let seen = self.seen.entry(key.clone()).or_insert_with(new);
        if seen.generation != generation || !standing.is_heard {
            *seen = new();
        }
        for (location, (ready, left)) in by_location {
            match seen.by_location.get_mut(&location) {
                Some(before) => {
                    if ready > before.0 || left < before.1 {
                        seen.at = at;
                    }
                    *before = (ready.max(before.0), left.min(before.1));
                }
                None => _ = seen.by_location.insert(location, (ready, left)),
            }
        }
        seen.complete_since = standing.is_complete.then(|| seen.complete_since.unwrap_or(at));
        seen
    }

    /// How long until the first rollout may have failed or canary take over, when any is under way.
    pub fn next_deadline(&self, now: Instant) -> Option<Duration> {
        let due = self.seen.values().filter_map(|seen| seen.due);
        Some(due.min()?.saturating_duration_since(now))
    }

    /// The apps whose rollouts are not over.
    pub fn under_way(&self) -> impl Iterator<Item = &AppKey> {
        self.seen.keys()
    }

    /// Whether that of an app is not.
    pub fn is_under_way(&self, key: &AppKey) -> bool {
        self.seen.contains_key(key)
    }

    /// Forgets apps that are gone.
    pub fn forget_gone(&mut self, exists: impl Fn(&AppKey) -> bool) {
        self.seen.retain(|key, _| exists(key));
    }
}
