//! Which frames of a layer are asked of whom: of neighbours first, with the source always in the race.
//!
//! Nodes that begin together share the work without speaking of it. Each run of frames has one of them that takes
//! it from further up, by a number that all of them compute alike; the others ask that one and are answered once it
//! has come. So what they take of the source together is about one copy. Where a neighbour has all, further up is
//! that one, and of the source a small part is taken, to know how fast it is.
//!
//! A pull with neighbours must not be slower than one without. The source rests only while at least as much has
//! come, in all, as it would have brought alone, less a run; otherwise it takes as many frames as are lacking
//! ([`Race::n_lacking`]) from the ends of the neighbours' queues, and then those that neighbours were asked for. At
//! the end, when nothing else is to be done, it also takes those of a neighbour that has given nothing for a while.
//! How fast it would be alone is known of what it gives this node while others may ask it, too; so it is asked for as
//! many runs at a time as without neighbours, shorter ones where there is little to ask for.
//!
//! A neighbour that pulls, too, cannot give a frame before the source gave it that. So none is late that is silent
//! for less time than the source takes ([`Race::is_late`]), and one that says of a frame that it is on its way is
//! asked again, however often. Else all would take all of the source as soon as that is slow for all of them.
//!
//! Nothing in here waits, sends or looks at a clock. Rejected: lists of what each node has, told round all the
//! time; and a limit for each frame, by which a neighbour that is slow at every frame would look fine.

mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use longshore_types::Digest;

use super::super::fetch::PART;
use crate::converted::FRAME;
use source::Source;

/// Frames that have one owner, and that the source is asked for at once: a part of a blob.
pub(super) const RUN: usize = (PART / FRAME as u64) as usize;
/// How many frames a neighbour is asked for at the same time.
pub(super) const PEER_AT_ONCE: usize = 2;
/// How many runs the source is asked for at the same time, as without neighbours.
pub(super) const RUNS_AT_ONCE: usize = super::super::fetch::PARTS_AT_ONCE;
/// The part of the frames that the source gives in any case where a neighbour has all, as many as it is asked for at
/// a time at most: by that it is known how fast it is.
const TRIAL_PART: usize = 8;
/// The same of a node that pulls with others and has nothing to take of the source for them, one for each run at
/// most, and once the pull goes on for the shortest hedge. Most have more to take, and all of these add up.
const SHARED_TRIAL_PART: usize = 32;
/// How long a neighbour may give nothing at the end of a pull before the source is asked too: as long as 95 of a
/// hundred frames took, within these bounds, and as long as the source takes.
const HEDGE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// How many frames are remembered by how long they took.
const REMEMBERED: usize = 64;
/// After so many frames in a row that the source had to be asked for too and gave first, a neighbour is given up.
const MOST_LOST: u32 = 2;
/// After so many answers in a row that a frame has not come there yet, likewise.
const MOST_ABSENT: u32 = 3;

/// A neighbour, as the race sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Racer {
    pub name: String,
    /// Whether it has all frames.
    pub has_all: bool,
}

/// Who gives a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Giver {
    Source,
    Peer(usize),
}

/// What to ask for now. Frames are told by their place among those that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Peer { peer: usize, frame: usize },
    Source { frames: Range<usize> },
}

/// Why a neighbour is asked for nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It gave wrong bytes.
    Lied,
    /// It cannot be asked.
    Failed,
    /// The source was faster, more than once.
    Slow,
    /// It has not what it was said to have, which is nobody's fault.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Wanted,
    Asked {
        peer: Option<(usize, Duration)>,
        source: bool,
    },
    /// It came, and is looked at.
    Checking,
    Done,
}

#[derive(Debug)]
struct Peer {
    racer: Racer,
    queue: BTreeSet<usize>,
    n_asked: usize,
    n_lost: u32,
    n_absent: u32,
    /// When it gave something last.
    gave_at: Duration,
    is_given_up: bool,
}

/// A frame that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Which of the layer it is.
    pub idx: usize,
    /// Whether what is stored of it follows what is stored of the one before it in the list.
    pub follows: bool,
}

/// The state of a race for the frames of one layer.
#[derive(Debug)]
pub(super) struct Race {
    layer: Digest,
    own: String,
    /// How many frames have one owner, and are asked of the source at once at most. By as many a pull may be behind
    /// what the source alone would have brought.
    run: usize,
    wishes: Vec<Wish>,
    states: Vec<State>,
    /// The frames of which a neighbour alone was asked.
    asked: BTreeSet<usize>,
    peers: Vec<Peer>,
    source: Source,
    n_came: u128,
    n_done: usize,
    latencies: VecDeque<Duration>,
    given_up: Vec<(usize, GivenUp)>,
}

impl Race {
    /// A race of the node `own` for these frames, in runs of so many.
    pub fn new(
        (layer, own): (Digest, String),
        run: usize,
        wishes: Vec<Wish>,
        racers: Vec<Racer>,
    ) -> Self {
        let peer = |racer| Peer {
            racer,
            queue: BTreeSet::new(),
            n_asked: 0,
            n_lost: 0,
            n_absent: 0,
            gave_at: Duration::ZERO,
            is_given_up: false,
        };
        let states = vec![State::Wanted; wishes.len()];
        let mut race = Self {
            layer,
            own,
            run,
            states,
            asked: BTreeSet::new(),
            peers: racers.into_iter().map(peer).collect(),
            source: Source::default(),
            n_came: 0,
            n_done: 0,
            latencies: VecDeque::with_capacity(REMEMBERED),
            given_up: Vec::new(),
            wishes,
        };
        (0..race.wishes.len()).for_each(|frame| race.queue(frame));
        race
    }

    /// Whether all frames came and were right.
    pub fn is_done(&self) -> bool {
        self.n_done == self.states.len()
    }

    /// The neighbours that were given up since this was asked last, and why.
    pub fn take_given_up(&mut self) -> Vec<(usize, GivenUp)> {
        std::mem::take(&mut self.given_up)
    }

    /// What to ask for next; to be asked again until it is nothing.
    pub fn next(&mut self, now: Duration) -> Option<Ask> {
        if let Some((peer, frame)) = self.next_of_peers() {
            self.unqueue(frame);
            self.states[frame] = State::Asked { peer: Some((peer, now)), source: false };
            self.asked.insert(frame);
            self.peers[peer].n_asked += 1;
            return Some(Ask::Peer { peer, frame });
        }
        let frames = self.next_of_source(now)?;
        for frame in frames.clone() {
            self.unqueue(frame);
            let peer = match self.states[frame] {
                State::Asked { peer, .. } => peer,
                _ => None,
            };
            self.states[frame] = State::Asked { peer, source: true };
            self.asked.remove(&frame);
        }
        self.source.ask(frames.clone(), now);
        Some(Ask::Source { frames })
    }

    /// After how long [`Self::next`] may have something to say though nothing happened.
    pub fn look_again(&self, now: Duration) -> Option<Duration> {
        let is_open = self.longest_queue().is_some() || !self.asked.is_empty();
        if self.source.n_runs >= RUNS_AT_ONCE || !is_open {
            return None;
        }
        let silent_since = self.oldest_asked().filter(|_| self.source.n_owed() == 0);
        let late = silent_since.map(|(_, silent_since)| silent_since + self.hedge());
        let trial = (self.source.n_asked == 0).then_some(HEDGE.0);
        let at = [self.behind_at(now), late, trial].into_iter().flatten();
        let at = at.filter(|at| *at >= now).min();
        // A little later: at that very moment it may not be so yet.
        at.map(|at| at - now + Duration::from_millis(1))
    }

    /// A frame came; whether it is to be looked at.
    pub fn came(&mut self, by: Giver, frame: usize, now: Duration) -> bool {
        match by {
            Giver::Source => self.source.gave(frame, now),
            Giver::Peer(peer) => self.gave(peer, frame, now),
        }
        let asked = match self.states[frame] {
            State::Asked { peer, .. } => peer,
            State::Wanted => None,
            State::Checking | State::Done => return false,
        };
        match by {
            Giver::Peer(peer) if self.peers[peer].is_given_up => return false,
            Giver::Peer(_) => {}
            Giver::Source => {
                if let Some((peer, since)) = asked {
                    self.lost(peer, since, now);
                }
            }
        }
        self.unqueue(frame);
        self.asked.remove(&frame);
        self.states[frame] = State::Checking;
        self.n_came += 1;
        true
    }

    /// What came was looked at.
    pub fn checked(&mut self, by: Giver, frame: usize, is_right: bool) {
        if is_right {
            self.states[frame] = State::Done;
            self.n_done += 1;
            return;
        }
        self.n_came -= 1;
        if let Giver::Peer(peer) = by {
            self.give_up(peer, GivenUp::Lied);
        }
        self.states[frame] = State::Wanted;
        self.source.queue.insert(frame);
    }

    /// A neighbour could not be asked.
    pub fn failed(&mut self, peer: usize) {
        self.peers[peer].n_asked -= 1;
        self.give_up(peer, GivenUp::Failed);
    }

    /// A neighbour does not have a frame, and nothing is known of when it will.
    pub fn absent(&mut self, peer: usize, frame: usize) {
        let asked = &mut self.peers[peer];
        asked.n_absent += 1;
        let is_hopeless = asked.racer.has_all || asked.n_absent >= MOST_ABSENT;
        self.requeue(peer, frame);
        if is_hopeless {
            self.give_up(peer, GivenUp::Absent);
        }
    }

    /// A neighbour waits for a frame itself.
    pub fn comes_later(&mut self, peer: usize, frame: usize) {
        if self.peers[peer].racer.has_all {
            return self.absent(peer, frame); // It has not, for whatever reason.
        }
        self.peers[peer].n_absent = 0;
        self.requeue(peer, frame);
    }

    /// It is still the one that will have it first.
    fn requeue(&mut self, peer: usize, frame: usize) {
        self.peers[peer].n_asked -= 1;
        if self.unask(frame, peer) && !self.peers[peer].is_given_up {
            self.source.queue.remove(&frame);
            self.peers[peer].queue.insert(frame);
        }
    }

    /// A run that the source was asked for is through.
    pub fn run_ended(&mut self, now: Duration) {
        self.source.run_ended(now);
    }

    fn gave(&mut self, peer: usize, frame: usize, now: Duration) {
        let giver = &mut self.peers[peer];
        giver.n_asked -= 1;
        giver.n_absent = 0;
        giver.gave_at = now;
        if let State::Asked { peer: Some((asked, since)), .. } = self.states[frame]
            && asked == peer
        {
            giver.n_lost = 0;
            if self.latencies.len() == REMEMBERED {
                self.latencies.pop_front();
            }
            self.latencies.push_back(now.saturating_sub(since));
        }
    }

    /// The source gave first what a neighbour was asked for.
    fn lost(&mut self, peer: usize, since: Duration, now: Duration) {
        if !self.is_late(self.peers[peer].gave_at.max(since), now) {
            return; // The source was in the race for other reasons.
        }
        self.peers[peer].n_lost += 1;
        if self.peers[peer].n_lost >= MOST_LOST {
            self.give_up(peer, GivenUp::Slow);
        }
    }

    fn give_up(&mut self, peer: usize, why: GivenUp) {
        if self.peers[peer].is_given_up {
            return;
        }
        self.peers[peer].is_given_up = true;
        self.given_up.push((peer, why));
        for frame in std::mem::take(&mut self.peers[peer].queue) {
            self.queue(frame);
        }
        for frame in 0..self.states.len() {
            self.unask(frame, peer);
        }
    }

    /// A neighbour that was asked for a frame will not give it: the source is asked next, and no other, so that no
    /// number of neighbours makes it late. Whether nobody is asked for it now.
    fn unask(&mut self, frame: usize, by: usize) -> bool {
        match &mut self.states[frame] {
            State::Asked { peer, source } if peer.is_some_and(|(peer, _)| peer == by) => {
                *peer = None;
                if !*source {
                    self.states[frame] = State::Wanted;
                    self.asked.remove(&frame);
                    self.source.queue.insert(frame);
                    return true;
                }
                false
            }
            _ => false,
        }
    }

    fn queue(&mut self, frame: usize) {
        match self.giver_of(self.wishes[frame].idx / self.run) {
            Giver::Source => self.source.queue.insert(frame),
            Giver::Peer(peer) => self.peers[peer].queue.insert(frame),
        };
    }

    fn unqueue(&mut self, frame: usize) {
        self.source.queue.remove(&frame);
        for peer in &mut self.peers {
            peer.queue.remove(&frame);
        }
    }

    /// Of whom the frames of a run are to be had: of who owns it, and those of the own node further up.
    fn giver_of(&self, run: usize) -> Giver {
        let best = |has_all: bool| {
            let peers = self.peers.iter().enumerate();
            let peers =
                peers.filter(|(_, peer)| !peer.is_given_up && peer.racer.has_all == has_all);
            let ranked = peers.map(|(idx, peer)| (self.rank(run, &peer.racer.name), idx));
            ranked.max()
        };
        match best(false).filter(|(rank, _)| *rank > self.rank(run, &self.own)) {
            Some((_, peer)) => Giver::Peer(peer),
            None => best(true).map_or(Giver::Source, |(_, peer)| Giver::Peer(peer)),
        }
    }

    /// The same on every node: who has the highest number owns a run.
    fn rank(&self, run: usize, name: &str) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.layer.as_bytes());
        hasher.update(&(run as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        let hash = hasher.finalize();
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// A neighbour with nothing better to do, and a frame for it.
    fn next_of_peers(&self) -> Option<(usize, usize)> {
        let free = || {
            let peers = self.peers.iter().enumerate();
            peers.filter(|(_, peer)| !peer.is_given_up && peer.n_asked < PEER_AT_ONCE)
        };
        let own = free().find_map(|(idx, peer)| Some((idx, *peer.queue.first()?)));
        own.or_else(|| {
            // One that has all helps those that have more to do.
            let (idx, _) = free().find(|(_, peer)| peer.racer.has_all)?;
            Some((idx, *self.longest_queue()?.last()?))
        })
    }

    /// That of the neighbours which have all of what they are to give.
    fn longest_queue(&self) -> Option<&BTreeSet<usize>> {
        let queues = self.peers.iter().map(|peer| &peer.queue).filter(|queue| !queue.is_empty());
        queues.max_by_key(|queue| queue.len())
    }

    fn next_of_source(&self, now: Duration) -> Option<Range<usize>> {
        if self.source.n_runs >= RUNS_AT_ONCE {
            return None;
        }
        if let Some(first) = self.source.queue.first() {
            return Some(self.run_from(*first, self.spread(self.source.queue.len())));
        }
        let n_lacking = self.n_lacking(now);
        if let Some(queue) = self.longest_queue() {
            let n_most = self.spread(n_lacking.unwrap_or_else(|| self.trial(now)));
            let last = queue.last().filter(|_| n_most > 0)?;
            return Some(self.run_to(*last, n_most, queue));
        }
        let (frame, silent_since) = self.oldest_asked()?;
        // One after the other: what the source takes for one tells whether another is late.
        let is_late = self.source.n_owed() == 0 && self.is_late(silent_since, now);
        (n_lacking.is_some() || is_late).then_some(frame..frame + 1)
    }

    /// At most so many frames of the source's queue that follow one another.
    fn run_from(&self, first: usize, n_most: usize) -> Range<usize> {
        let goes_on =
            |frame: &usize| self.source.queue.contains(frame) && self.wishes[*frame].follows;
        let end = (first + 1..first + n_most).take_while(goes_on).last();
        first..end.unwrap_or(first) + 1
    }

    /// How many frames the source is still to give, so that it is known how fast it is.
    fn trial(&self, now: Duration) -> usize {
        let mut known = self.peers.iter().filter(|peer| !peer.is_given_up);
        let n_frames = if known.any(|peer| peer.racer.has_all) {
            (self.wishes.len() / TRIAL_PART).clamp(1, self.run * RUNS_AT_ONCE)
        } else if now >= HEDGE.0 {
            (self.wishes.len() / SHARED_TRIAL_PART).clamp(1, RUNS_AT_ONCE)
        } else {
            0
        };
        n_frames.saturating_sub(self.source.n_asked)
    }

    /// At most so many of a neighbour's queue, from its end.
    fn run_to(&self, last: usize, n_most: usize, queue: &BTreeSet<usize>) -> Range<usize> {
        let mut first = last;
        while last - first + 1 < n_most
            && self.wishes[first].follows
            && queue.contains(&(first - 1))
        {
            first -= 1;
        }
        first..last + 1
    }

    /// The frame of which a neighbour alone was asked that is silent for the longest time, and since when.
    fn oldest_asked(&self) -> Option<(usize, Duration)> {
        let silent = self.asked.iter().filter_map(|frame| match self.states[*frame] {
            State::Asked { peer: Some((peer, since)), .. } => {
                Some((*frame, self.peers[peer].gave_at.max(since)))
            }
            _ => None,
        });
        silent.min_by_key(|(frame, since)| (*since, *frame))
    }

    /// Whether a neighbour that is silent since then should have given something.
    fn is_late(&self, silent_since: Duration, now: Duration) -> bool {
        !self.source.owes_since(silent_since) && now.saturating_sub(silent_since) >= self.hedge()
    }

    fn hedge(&self) -> Duration {
        let mut sorted: Vec<_> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let nth = (sorted.len() * 95).div_ceil(100).saturating_sub(1);
        let hedge = sorted.get(nth).map_or(HEDGE.0, |took| (*took).clamp(HEDGE.0, HEDGE.1));
        hedge.max(self.source.took())
    }

    /// How many frames more the source alone would have brought by now, where that is more than a run, and it is not
    /// asked for them already. Without anything of it nothing is known, and it has been asked.
    fn n_lacking(&self, now: Duration) -> Option<usize> {
        let alone = self.source.brings(now, now)?;
        let behind = alone.checked_sub(self.n_came).filter(|behind| *behind > self.run as u128)?;
        let behind = usize::try_from(behind).unwrap_or(usize::MAX);
        behind.checked_sub(self.source.n_owed()).filter(|n_lacking| *n_lacking > 0)
    }

    /// When that is so, if nothing comes and the source rests.
    fn behind_at(&self, now: Duration) -> Option<Duration> {
        self.source.takes(self.n_came + self.run as u128 + 1, now)
    }

    /// How many frames each of the runs has that the source is asked for at a time, of so many.
    fn spread(&self, n_frames: usize) -> usize {
        n_frames.div_ceil(RUNS_AT_ONCE).min(self.run)
    }
}
