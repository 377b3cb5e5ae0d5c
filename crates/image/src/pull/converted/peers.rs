//! Frames of neighbours and of the source at once: carries out what the race decides.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt as _};
use longshore_types::{Digest, chain};
use tokio::time::Instant;

use super::super::fetch::Fetcher;
use super::buffers::Buffers;
use super::file::Missing;
use super::frames::{Cutting, Job, Verdict, Workers};
use super::race::{Ask, GivenUp, Giver, PEER_AT_ONCE, RUN, RUNS_AT_ONCE, Race, Racer, Wish};
use crate::converted::{FRAME, Table};
use crate::manifest::Descriptor;
use crate::source::{Answer, Known, SourceError};
use crate::store::Inner;

/// How long a neighbour may take to give a frame.
const FRAME_WITHIN: Duration = Duration::from_secs(10);
/// Who says sooner than this that a frame is on its way did not wait for it, and is not to be asked without end.
const WAITED: Duration = Duration::from_secs(1);
/// The most neighbours of one race.
const MOST: usize = 12;
/// Frames that came and wait for a thread, before no more are waited for.
const READY: usize = 8;

/// Frames that are held in memory of a layer on its way, beside those of its threads: what came, what each
/// neighbour gives, and the next of each run.
const HELD: usize = READY + MOST * PEER_AT_ONCE + RUNS_AT_ONCE;
const _: () =
    assert!(HELD * FRAME <= 40 << 20, "with those of its threads SPECIFICATION.md says so");

/// What was had of whom.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Bytes that the source gave, as they are stored.
    pub of_source: u64,
    /// Bytes of contents that neighbours gave and that were right.
    pub of_neighbours: u64,
    /// Which neighbours were given up, and why.
    pub given_up: Vec<String>,
}

/// What happened to something that was asked for.
enum Event {
    Came { by: Giver, nth: usize, bytes: Bytes },
    Absent { peer: usize, nth: usize },
    ComesLater { peer: usize, nth: usize },
    Failed { peer: usize, why: String },
    RunEnded,
    SourceFailed(SourceError),
}

/// The neighbours that may be asked now.
pub(super) fn usable<'a>(store: &Inner, fetcher: &'a Fetcher<'_>) -> Vec<&'a Known> {
    let now = Instant::now();
    let others = fetcher.neighbours.others.iter();
    others.filter(|known| store.standings.may_be_asked(&known.name, now)).take(MOST).collect()
}

/// Fetches frames and deals them out, until all are or a thread wants no more.
pub(super) async fn race_for(
    (store, fetcher, others): (&Inner, &Fetcher<'_>, Vec<&Known>),
    frames: &Descriptor,
    table: &Table,
    (missing, workers): (&[Missing], Workers),
    told: &(dyn Fn(u64) + Send + Sync),
) -> Result<Sent, SourceError> {
    let starts = starts(table, missing);
    let racer = |known: &&Known| Racer { name: known.name.clone(), has_all: known.has_all };
    let racers = others.iter().map(racer).collect();
    let wishes = wishes(table, missing, &starts);
    let own = fetcher.neighbours.own.clone();
    let (frames, buffers, paused) = (frames.digest, Buffers::default(), Paused::default());
    let asker = Asker { fetcher, others, frames, table, missing, starts, buffers, paused };
    let runner = Runner {
        store,
        asker: &asker,
        race: Race::new((table.diff_id, own), RUN, wishes, racers),
        asked: SelectAll::new(),
        ready: VecDeque::with_capacity(READY),
        why: vec![None; asker.others.len()],
        sent: Sent::default(),
        n_right: 0,
        told,
    };
    runner.run(workers).await
}

/// Where what is stored of each frame begins.
fn starts(table: &Table, missing: &[Missing]) -> Vec<u64> {
    let (mut idx, mut start) = (0, 0);
    let start_of = |one: &Missing| {
        start += (idx..one.idx).map(|idx| table.stored_bytes(idx)).sum::<u64>();
        idx = one.idx;
        start
    };
    missing.iter().map(start_of).collect()
}

fn wishes(table: &Table, missing: &[Missing], starts: &[u64]) -> Vec<Wish> {
    let mut end = None;
    let wish = |(one, start): (&Missing, &u64)| {
        let follows = end == Some(*start);
        end = Some(start + table.stored_bytes(one.idx));
        Wish { idx: one.idx, follows }
    };
    missing.iter().zip(starts).map(wish).collect()
}

/// Asks those whom the race names.
struct Asker<'a> {
    fetcher: &'a Fetcher<'a>,
    others: Vec<&'a Known>,
    /// The blob with the frames.
    frames: Digest,
    table: &'a Table,
    missing: &'a [Missing],
    starts: Vec<u64>,
    buffers: Buffers,
    paused: Paused,
}

/// For how many nanoseconds threads of this machine were what was waited for, of which nobody else is to blame.
#[derive(Default)]
struct Paused(AtomicU64);

impl Paused {
    fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// What is waited for; nothing when that takes longer, without the time that does not count.
    async fn within<T>(&self, limit: Duration, awaited: impl Future<Output = T>) -> Option<T> {
        let (since, before) = (Instant::now(), self.total());
        let mut awaited = pin!(awaited);
        loop {
            let paused = self.total();
            let until = since + limit + paused.saturating_sub(before);
            if let Ok(came) = tokio::time::timeout_at(until, &mut awaited).await {
                return Some(came);
            }
            // Meanwhile nobody may have looked whether it came.
            if self.total() == paused {
                return None;
            }
        }
    }
}

impl Asker<'_> {
    fn ask(&self, ask: Ask) -> BoxStream<'_, Event> {
        match ask {
            Ask::Peer { peer, frame } => stream::once(self.ask_peer(peer, frame)).boxed(),
            Ask::Source { frames } => self.ask_source(frames),
        }
    }

    async fn ask_peer(&self, peer: usize, nth: usize) -> Event {
        let asked = self.others[peer].asked.frame(&self.table.diff_id, self.missing[nth].idx);
        let (since, paused) = (Instant::now(), self.paused.total());
        match self.paused.within(FRAME_WITHIN, asked).await {
            Some(Ok(Answer::Given(bytes))) => Event::Came { by: Giver::Peer(peer), nth, bytes },
            Some(Ok(Answer::OnItsWay)) if since.elapsed() >= WAITED => {
                Event::ComesLater { peer, nth }
            }
            Some(Ok(Answer::OnItsWay | Answer::Absent)) => Event::Absent { peer, nth },
            // It may have waited too long for this node.
            Some(Err(_)) if self.paused.total() > paused => Event::Absent { peer, nth },
            Some(Err(error)) => Event::Failed { peer, why: chain(&error) },
            None => {
                let why = format!("nothing came for {} seconds", FRAME_WITHIN.as_secs());
                Event::Failed { peer, why }
            }
        }
    }

    fn ask_source(&self, frames: Range<usize>) -> BoxStream<'_, Event> {
        let last = frames.end - 1;
        let end = self.starts[last] + self.table.stored_bytes(self.missing[last].idx);
        let window = self.fetcher.range(self.frames, self.starts[frames.start]..end);
        let state = Some((Cutting::new(window, &self.buffers), frames));
        let runs = stream::unfold(state, move |state| async move {
            let (mut cutting, mut frames) = state?;
            let Some(nth) = frames.next() else { return Some((Event::RunEnded, None)) };
            let n_stored = self.table.stored_bytes(self.missing[nth].idx);
            match cutting.next(n_stored).await {
                Ok(bytes) => {
                    let came = Event::Came { by: Giver::Source, nth, bytes };
                    Some((came, Some((cutting, frames))))
                }
                Err(error) => Some((Event::SourceFailed(error), None)),
            }
        });
        runs.boxed()
    }
}

/// A race under way.
struct Runner<'a> {
    store: &'a Inner,
    asker: &'a Asker<'a>,
    race: Race,
    asked: SelectAll<BoxStream<'a, Event>>,
    /// Frames that came and that no thread has yet.
    ready: VecDeque<Job>,
    /// Why each neighbour failed that did.
    why: Vec<Option<String>>,
    sent: Sent,
    /// Bytes that are stored of the frames that were right.
    n_right: u64,
    told: &'a (dyn Fn(u64) + Send + Sync),
}

impl Runner<'_> {
    async fn run(mut self, workers: Workers) -> Result<Sent, SourceError> {
        let Workers { jobs, mut verdicts } = workers;
        let began = Instant::now();
        let asker = self.asker;
        let paused = &asker.paused;
        loop {
            let now = began.elapsed().saturating_sub(paused.total());
            // While threads are what is waited for, nobody is slow but this machine: time stands still.
            let is_full = self.ready.len() >= READY;
            let waits_since = Instant::now();
            while !is_full && let Some(ask) = self.race.next(now) {
                self.asked.push(self.asker.ask(ask));
            }
            self.note_given_up();
            if self.race.is_done() {
                return Ok(self.sent);
            }
            let again = self.race.look_again(now).filter(|_| !is_full);
            tokio::select! {
                verdict = verdicts.recv() => match verdict {
                    Some(Verdict::Of { nth, by, is_right }) => self.judge(nth, by, is_right),
                    Some(Verdict::Stopped) | None => return Ok(self.sent),
                },
                permit = jobs.reserve(), if !self.ready.is_empty() => {
                    let (Ok(permit), Some(job)) = (permit, self.ready.pop_front()) else {
                        return Ok(self.sent);
                    };
                    permit.send(job);
                }
                Some(event) = self.asked.next(), if !is_full => {
                    self.take(event, began.elapsed().saturating_sub(paused.total()))?;
                }
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
            if is_full {
                paused.add(waits_since.elapsed());
            }
        }
    }

    fn take(&mut self, event: Event, now: Duration) -> Result<(), SourceError> {
        match event {
            Event::Came { by, nth, bytes } => {
                let missing = self.asker.missing[nth];
                if by == Giver::Source {
                    self.sent.of_source += bytes.len() as u64;
                }
                if self.race.came(by, nth, now) {
                    self.ready.push_back(Job { nth, missing, by, bytes });
                }
            }
            Event::Absent { peer, nth } => self.race.absent(peer, nth),
            Event::ComesLater { peer, nth } => self.race.comes_later(peer, nth),
            Event::Failed { peer, why } => {
                self.why[peer] = Some(why);
                self.race.failed(peer);
            }
            Event::RunEnded => self.race.run_ended(now),
            Event::SourceFailed(error) => return Err(error),
        }
        Ok(())
    }

    fn judge(&mut self, nth: usize, by: Giver, is_right: bool) {
        self.race.checked(by, nth, is_right);
        if !is_right {
            return;
        }
        let idx = self.asker.missing[nth].idx;
        if let Giver::Peer(_) = by {
            self.sent.of_neighbours += self.asker.table.frame_bytes(idx) as u64;
        }
        self.n_right += self.asker.table.stored_bytes(idx);
        (self.told)(self.n_right);
    }

    fn note_given_up(&mut self) {
        for (peer, given_up) in self.race.take_given_up() {
            let name = &self.asker.others[peer].name;
            let why = match given_up {
                GivenUp::Absent => {
                    tracing::debug!(neighbour = name, "it does not have what it was said to have");
                    continue;
                }
                GivenUp::Lied => "what it gave does not match".to_owned(),
                GivenUp::Slow => "it is slower than the registry".to_owned(),
                GivenUp::Failed => self.why[peer].take().unwrap_or_default(),
            };
            tracing::warn!(neighbour = name, why, "a neighbour is asked for nothing for a minute");
            self.store.standings.penalise(name, Instant::now());
            self.sent.given_up.push(format!("{name}: {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_is_late_while_this_machine_is_what_is_waited_for() {
        let (paused, limit) = (Paused::default(), Duration::from_secs(10));
        let takes = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        let waits = || async {
            takes(4).await;
            paused.add(Duration::from_secs(3));
        };
        for (seconds, is_in_time) in [(9, true), (11, false)] {
            let came = paused.within(limit, takes(seconds)).await;
            assert_eq!(came.is_some(), is_in_time, "{seconds}");
        }
        for (seconds, is_in_time) in [(12, true), (14, false)] {
            let (came, ()) = tokio::join!(paused.within(limit, takes(seconds)), waits());
            assert_eq!(came.is_some(), is_in_time, "{seconds}");
        }
    }
}
