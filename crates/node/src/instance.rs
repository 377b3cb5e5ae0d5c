//! The life of one instance: start, watch, restart, stop, remove.

mod coming;
mod health;
mod secrets;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use longshore_api::links::{Assignment, Intent, ObservedInstance, Stage, StartPath};
use longshore_image::store::HeldImage;
use longshore_link::now;
use longshore_planning::restart::{Restart, plan_restart};
use longshore_runtime::logs::{Follow, read_log};
use longshore_runtime::{Adopted, AdoptedState, ExitRecord, Running};
use longshore_types::{ExitReason, InstanceId, InstancePhase};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Node;
use crate::disk::History;
use crate::timeline::Timeline;
use health::{Pulse, Verdict};

/// What should become of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// What the assignment says.
    Carry(Box<Assignment>),
    /// All of it should be removed.
    Remove,
}

impl Wish {
    /// Becomes `wish`; true when that is a change of what is done. What an assignment keeps for the location is
    /// none: for that alone nothing that has ended is begun again.
    pub fn replace(&mut self, wish: Self) -> bool {
        let mut before = std::mem::replace(self, wish);
        if let (Self::Carry(before), Self::Carry(now)) = (&mut before, &*self) {
            before.origin.clone_from(&now.origin);
        }
        before != *self
    }
}

/// How long removal waits before it tries again what failed.
const REMOVE_RETRY: Duration = Duration::from_secs(1);

/// How much of a line of output a note quotes, in characters.
const MAX_LAST_WORDS: usize = 200;

/// Stages that are sums over layers, which a trace tells in another way.
const OF_A_PULL: [&str; 2] = ["pull", "unpack"];

/// Alone acts on one instance.
pub struct Actor {
    node: Arc<Node>,
    wishes: watch::Receiver<Wish>,
    /// The last assignment; kept while the instance is removed.
    assignment: Assignment,
    observed: ObservedInstance,
    history: History,
    adopted: Option<AdoptedState>,
    /// What the reason of the last end does not say: which check failed, and how.
    detail: Option<String>,
    /// Of the start that is under way.
    timeline: Option<Timeline>,
    /// The image that it uses, which stays meanwhile.
    held: Option<HeldImage>,
}

/// Why a container is no longer watched.
enum Ended {
    /// It ended by itself or by its health check.
    ByItself(ExitReason),
    /// The wish is no longer to run it; it was stopped.
    ByWish,
}

impl Actor {
    /// The actor of the instance that the wish names, with what an earlier agent left of it.
    pub fn new(
        node: Arc<Node>,
        mut wishes: watch::Receiver<Wish>,
        adopted: Option<Adopted>,
    ) -> Self {
        let Wish::Carry(assignment) = wishes.borrow_and_update().clone() else {
            unreachable!("an actor is made for an assignment");
        };
        let history = node.disk.history(&assignment.instance).unwrap_or_else(|error| {
            // The counts only pace restarts; without them they begin anew.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a history");
            History::default()
        });
        let mut observed =
            ObservedInstance::pending(assignment.instance.clone(), assignment.generation);
        observed.restarts = history.restarts;
        observed.last_exit.clone_from(&history.last_exit);
        let adopted = adopted.map(|adopted| adopted.state);
        let used = adopted.as_ref().map(|_| assignment.release.image_digest);
        let held = used.and_then(|image| node.images.hold(&image));
        Self {
            node,
            wishes,
            assignment: *assignment,
            observed,
            history,
            adopted,
            detail: None,
            timeline: None,
            held,
        }
    }

    /// Runs until the instance is removed.
    #[tracing::instrument(name = "instance", skip_all, fields(id = %self.assignment.instance))]
    pub async fn run(mut self) {
        let mut restart_at = None;
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            match wish {
                Wish::Remove => break,
                Wish::Carry(assignment) => self.assignment = *assignment,
            }
            self.observed.generation = self.assignment.generation;
            if self.assignment.intent == Intent::Stop {
                self.stop_adopted().await;
                self.clean_up().await;
                self.show(InstancePhase::Exited, None);
                self.wish_changed().await;
                continue;
            }
            if let Some(at) = restart_at.take() {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = wish_changed(&mut self.wishes) => continue,
                }
            }
            match self.run_once().await {
                Ended::ByWish => {}
                Ended::ByItself(reason) => {
                    self.clean_up().await;
                    restart_at = self.after_end(reason).await;
                    if restart_at.is_none() {
                        self.wish_changed().await;
                    }
                }
            }
        }
        self.remove().await;
    }

    async fn wish_changed(&mut self) {
        wish_changed(&mut self.wishes).await;
    }

    /// Changes the phase on the board.
    fn show(&mut self, phase: InstancePhase, note: Option<String>) {
        self.observed.phase = phase;
        self.observed.note = note;
        self.node.board.put(&self.observed);
    }

    fn stage(&mut self, name: &'static str, took: Duration) {
        if let Some(timeline) = self.timeline.as_mut().filter(|_| !OF_A_PULL.contains(&name)) {
            timeline.ended(name, took);
        }
        self.node.metrics.note_stage(name, took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.observed.stages.push(Stage { name: name.to_owned(), micros, notes: Vec::new() });
    }

    /// Says more of the stage that ended last.
    fn note_stage(&mut self, notes: Vec<String>) {
        if let Some(stage) = self.observed.stages.last_mut() {
            stage.notes = notes;
        }
    }

    /// The start that is under way is over, if there is one.
    fn tell_of_start(&mut self, failure: Option<String>) {
        let Some(timeline) = self.timeline.take() else { return };
        let path = match self.observed.path {
            Some(StartPath::Cached) => "cached",
            Some(StartPath::Pulled) => "pulled",
            None => "none",
        };
        let attributes = vec![
            ("longshore.instance", self.assignment.instance.to_string()),
            ("longshore.app", self.assignment.release.manifest.app.to_string()),
            ("longshore.node", self.node.name.to_string()),
            ("longshore.path", path.to_owned()),
        ];
        timeline.tell(&self.node.tracer, self.assignment.instance.as_str(), attributes, failure);
    }

    /// One container from its start, or its adoption, to its end.
    async fn run_once(&mut self) -> Ended {
        let (running, adopted) = match self.adopted.take() {
            Some(AdoptedState::Running(running)) => (running, true),
            Some(AdoptedState::Ended(record)) => return self.ended(record),
            None => match self.start().await {
                Ok(Some(running)) => (running, false),
                Ok(None) => return Ended::ByWish,
                Err(message) => {
                    tracing::warn!(message, "cannot start");
                    self.tell_of_start(Some(message.clone()));
                    return Ended::ByItself(ExitReason::StartFailed { message });
                }
            },
        };
        self.observed.started_at = Some(running.started_at());
        if adopted && let Err(message) = self.find_network().await {
            tracing::error!(message, "an adopted container has no network; restarting it");
            return self.end(&running, ExitReason::StartFailed { message }).await;
        }
        self.watch(&running, adopted).await
    }

    fn ended(&mut self, record: ExitRecord) -> Ended {
        self.observed.started_at = record.started_at.or(self.observed.started_at);
        Ended::ByItself(record.reason)
    }

    /// Watches a running container until it ends or the wish changes.
    async fn watch(&mut self, running: &Running, adopted: bool) -> Ended {
        let began = Instant::now();
        let health = self.assignment.release.manifest.health.clone();
        let mut pulse = Pulse::new(health, self.observed.address, adopted);
        if adopted {
            pulse.look_now().await;
        }
        self.show_pulse(&pulse, began);
        loop {
            tokio::select! {
                exit = running.wait() => {
                    return match exit {
                        Ok(record) => self.ended(record),
                        Err(error) => {
                            tracing::warn!(error = &error as &dyn std::error::Error, "lost a shim");
                            Ended::ByItself(ExitReason::ShimDied)
                        }
                    };
                }
                () = wish_changed(&mut self.wishes) => {
                    if let Some(ended) = self.follow_wish(running).await {
                        return ended;
                    }
                }
                verdict = pulse.next() => {
                    self.show_pulse(&pulse, began);
                    if let Verdict::GiveUp(why) = verdict {
                        tracing::warn!(why, "ending an unhealthy container");
                        self.detail = Some(why);
                        return self.end(running, ExitReason::Unhealthy).await;
                    }
                }
            }
        }
    }

    /// Takes a changed wish over; stops the container when it should no longer run.
    async fn follow_wish(&mut self, running: &Running) -> Option<Ended> {
        if let Wish::Carry(assignment) = self.wishes.borrow().clone() {
            let goes_on = assignment.intent == Intent::Run;
            self.assignment = *assignment;
            self.observed.generation = self.assignment.generation;
            self.node.board.put(&self.observed);
            if goes_on {
                return None;
            }
        }
        self.show(InstancePhase::Stopping, None);
        let grace = self.assignment.release.manifest.process.stop_grace.0;
        if let Err(error) = running.stop(grace).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot stop; killing");
            self.kill(running).await;
        }
        self.node.metrics.note_end(&ExitReason::Stopped);
        self.observed.last_exit = Some(ExitReason::Stopped);
        // Leave the wish marked as changed: the loop of `run` acts on it.
        self.wishes.mark_changed();
        Some(Ended::ByWish)
    }

    async fn kill(&self, running: &Running) {
        if let Err(error) = running.kill().await {
            // Cleaning up kills what is left, by its cgroup.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot kill through the shim"
            );
        }
    }

    async fn end(&mut self, running: &Running, reason: ExitReason) -> Ended {
        let grace = self.assignment.release.manifest.process.stop_grace.0;
        if running.stop(grace).await.is_err() {
            self.kill(running).await;
        }
        Ended::ByItself(reason)
    }

    /// An adopted container of an instance that should no longer run.
    async fn stop_adopted(&mut self) {
        if let Some(AdoptedState::Running(running)) = self.adopted.take() {
            self.show(InstancePhase::Stopping, None);
            let grace = self.assignment.release.manifest.process.stop_grace.0;
            if running.stop(grace).await.is_err() {
                self.kill(&running).await;
            }
        }
    }

    fn show_pulse(&mut self, pulse: &Pulse, began: Instant) {
        let phase = pulse.phase();
        if phase == InstancePhase::Healthy && self.observed.ready_at.is_none() {
            self.stage("ready", began.elapsed());
            let took = self.observed.stages.iter().map(|stage| stage.micros).sum();
            self.node.metrics.note_start(self.observed.path, Duration::from_micros(took));
            self.tell_of_start(None);
            // Last: by this the whole start ends, and in its trace no part may end later.
            self.observed.ready_at = Some(now());
        }
        self.show(phase, pulse.note());
    }

    /// Records an end and decides when to start again; `None` for never.
    async fn after_end(&mut self, reason: ExitReason) -> Option<Instant> {
        let ran = match self.observed.started_at {
            Some(started_at) => now().since(started_at),
            None => Default::default(),
        };
        self.node.metrics.note_end(&reason);
        // Only where it ended before it was ready.
        self.tell_of_start(Some(reason.to_string()));
        let manifest = &self.assignment.release.manifest;
        let planned = plan_restart(manifest.restart, &reason, ran, self.history.quick_ends);
        // Whoever was attached to what ended is gone.
        let restart = if manifest.attached.is_some() { Restart::Never } else { planned.0 };
        self.history.quick_ends = planned.1;
        self.history.last_exit = Some(reason.clone());
        self.observed.last_exit = Some(reason.clone());
        self.observed.ready_at = None;
        let said = match self.detail.take() {
            Some(detail) => format!("{reason}: {detail}"),
            None => reason.to_string(),
        };
        let again = match restart {
            Restart::Never => {
                let last_words = match reason {
                    ExitReason::Exited { code: 0 } => None,
                    _ => self.last_words().await,
                };
                let said = last_words.map_or(said.clone(), |last| format!("{said}: {last}"));
                self.show(InstancePhase::Exited, Some(said));
                None
            }
            Restart::After(wait) => {
                self.node.metrics.note_restart();
                self.history.restarts += 1;
                self.observed.restarts = self.history.restarts;
                let note = format!("{said}; starting again in {wait}");
                self.show(InstancePhase::Backoff, Some(note));
                Some(Instant::now() + wait.0)
            }
        };
        self.save_history();
        again
    }

    /// The last line of the output: mostly it says why.
    async fn last_words(&self) -> Option<String> {
        let path = log_path(&self.node, &self.assignment.instance);
        let mut lines = std::pin::pin!(read_log(&path, Some(1), Follow::No));
        // Without a log there are none.
        let line = lines.next().await?.ok()?;
        let text: String = line.text.trim().chars().take(MAX_LAST_WORDS).collect();
        (!text.is_empty()).then_some(text)
    }

    fn save_history(&self) {
        let saved = self.node.disk.save_history(&self.assignment.instance, &self.history);
        if let Err(error) = saved {
            // The history only paces restarts and is shown to people.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot save a history");
        }
    }

    /// Removes the container and its file system; the network stays for the next start.
    async fn clean_up(&mut self) {
        while let Err(message) = self.try_clean_up().await {
            tracing::warn!(message, "cannot clean up; trying again");
            tokio::time::sleep(REMOVE_RETRY).await;
        }
    }

    /// Removes everything that the instance used, then the memory of it.
    async fn remove(mut self) {
        self.stop_adopted().await;
        while let Err(message) = self.try_remove().await {
            tracing::warn!(message, "cannot remove; trying again");
            tokio::time::sleep(REMOVE_RETRY).await;
        }
        self.node.board.remove(&self.assignment.instance);
    }
}

async fn wish_changed(wishes: &mut watch::Receiver<Wish>) {
    if wishes.changed().await.is_err() {
        // The agent ends and drops its actors with the runtime; until then nothing changes.
        std::future::pending::<()>().await;
    }
}

/// Where the output of an instance goes: beside its exit record, by which a reader that follows
/// the log knows when to end.
pub fn log_path(node: &Node, instance: &InstanceId) -> PathBuf {
    node.shims.state_dir(instance).join("output.log")
}
