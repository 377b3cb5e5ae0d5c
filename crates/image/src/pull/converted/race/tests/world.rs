//! A world of events: nodes that race for a layer, others of every kind, and one source for all.

use std::collections::BTreeMap;

use super::super::*;
use super::supply::{Line, Supply};

/// What a neighbour does that is asked for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It pulls the same layer, and gives what it has once it has it.
    Races,
    Gives(u64),
    Lies(u64),
    Fails(u64),
    Lacks(u64),
    /// It says each time that it waits for it itself, and never has it.
    Waits,
    /// It takes the question and says nothing.
    Silent,
}

/// How long a node that pulls keeps others waiting for what it does not have.
const HOLD: Duration = Duration::from_secs(2);
/// From one node to another, at least and at most.
const NEAR: (u64, u64) = (2, 8);
/// Within which time all begin.
const TOGETHER: u64 = 40;

/// What is raced for, and over which line.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub seed: u8,
    /// How many frames a run has.
    pub run: usize,
    pub n_frames: usize,
    /// How many milliseconds a frame takes the source.
    pub per_frame: u64,
    pub line: Line,
    /// Whether those that do not race are known as nodes that have all, or as ones that pull, too.
    pub have_all: bool,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Begins(usize),
    /// To whom; who gave it, and whether it is right.
    Came(usize, Giver, usize, bool),
    Failed(usize, usize),
    Absent(usize, usize, usize),
    ComesLater(usize, usize, usize),
    /// What was waited for did not come there in time.
    HeldLong(usize, usize, usize),
}

pub struct Member {
    manner: Manner,
    race: Option<Race>,
    began_at: Option<Duration>,
    /// Who else there is, in the order of its race.
    peers: Vec<usize>,
    pub has: Vec<bool>,
    /// Who waits, by which number it knows this one, and for what.
    waiting: Vec<(usize, usize, usize)>,
    pub given_up: Vec<(usize, GivenUp)>,
    /// How long its pull took.
    pub took: Option<Duration>,
}

pub struct World {
    pub members: Vec<Member>,
    events: BTreeMap<(Duration, usize), Event>,
    n_events: usize,
    supply: Supply,
    chance: fastrand::Rng,
    pub n_of_source: usize,
    now: Duration,
}

impl World {
    /// What became of members that do so.
    pub fn run(setup: Setup, manners: &[Manner]) -> Self {
        Self::of(setup, manners, true).go()
    }

    /// How long each takes that knows of no other.
    pub fn alone(setup: Setup, manners: &[Manner]) -> Vec<Option<Duration>> {
        let world = Self::of(setup, manners, false).go();
        world.members.iter().map(|member| member.took).collect()
    }

    fn of(setup: Setup, manners: &[Manner], know_others: bool) -> Self {
        let wish = |idx| Wish { idx, follows: idx > 0 };
        let member = |(me, manner): (usize, &Manner)| {
            let others = (0..manners.len()).filter(|other| know_others && *other != me);
            let peers: Vec<_> = others.collect();
            let racer = |other: &usize| Racer {
                name: format!("n{other}"),
                has_all: setup.have_all && manners[*other] != Manner::Races,
            };
            let racers = peers.iter().map(racer).collect();
            let wishes = (0..setup.n_frames).map(wish).collect();
            let own = (Digest::from_sha256([setup.seed; 32]), format!("n{me}"));
            let race = || Race::new(own, setup.run, wishes, racers);
            Member {
                manner: *manner,
                race: (*manner == Manner::Races).then(race),
                began_at: None,
                peers,
                has: vec![false; setup.n_frames],
                waiting: Vec::new(),
                given_up: Vec::new(),
                took: None,
            }
        };
        let mut world = Self {
            members: manners.iter().enumerate().map(member).collect(),
            events: BTreeMap::new(),
            n_events: 0,
            supply: Supply::new(setup.line, Duration::from_millis(setup.per_frame)),
            chance: fastrand::Rng::with_seed(setup.seed.into()),
            n_of_source: 0,
            now: Duration::ZERO,
        };
        for me in 0..manners.len() {
            let began = Duration::from_millis(world.chance.u64(..TOGETHER));
            world.at(began, Event::Begins(me));
        }
        world
    }

    fn at(&mut self, when: Duration, event: Event) {
        self.n_events += 1;
        self.events.insert((when, self.n_events), event);
    }

    /// When what is sent now by a node is at another.
    fn near(&mut self) -> Duration {
        self.now + Duration::from_millis(self.chance.u64(NEAR.0..NEAR.1))
    }

    /// Runs until all that race are done.
    fn go(mut self) -> Self {
        loop {
            (0..self.members.len()).for_each(|me| self.ask(me));
            let racing = |member: &Member| member.race.is_some() && member.took.is_none();
            if !self.members.iter().any(racing) {
                return self;
            }
            let looks = self.members.iter().filter_map(|member| {
                let race = member.race.as_ref().filter(|_| member.took.is_none())?;
                let began = member.began_at?;
                Some(self.now + race.look_again(self.now - began)?)
            });
            let look = looks.min();
            let next = self.events.first_key_value().map(|(key, _)| *key);
            let given = self.supply.next();
            let times = [look, next.map(|(at, _)| at), given.map(|(at, _)| at)];
            let soonest = times.into_iter().flatten().min().expect("something happens");
            assert!(soonest < Duration::from_secs(36_000), "it goes on for ever");
            self.now = soonest;
            if let Some((_, run)) = given.filter(|(at, _)| *at == soonest) {
                self.give(run);
            } else if let Some(key) = next.filter(|(at, _)| *at == soonest) {
                let event = self.events.remove(&key).unwrap();
                self.happen(event);
            }
        }
    }

    /// The source gives a frame of a run.
    fn give(&mut self, run: usize) {
        let (me, frame, is_through) = self.supply.give(self.now, run);
        self.happen(Event::Came(me, Giver::Source, frame, true));
        if is_through {
            let (race, now) = self.race(me);
            race.run_ended(now);
        }
    }

    /// A race, and what its clock shows.
    fn race(&mut self, me: usize) -> (&mut Race, Duration) {
        let member = &mut self.members[me];
        (member.race.as_mut().unwrap(), self.now - member.began_at.unwrap())
    }

    fn ask(&mut self, me: usize) {
        if self.members[me].race.is_none() || self.members[me].began_at.is_none() {
            return;
        }
        let mut n_asks = 0;
        loop {
            let (race, now) = self.race(me);
            let Some(ask) = race.next(now) else { break };
            n_asks += 1;
            match ask {
                Ask::Source { frames } => {
                    assert!(!frames.is_empty());
                    self.n_of_source += frames.len();
                    self.supply.ask(self.now, me, frames);
                }
                Ask::Peer { peer, frame } => self.ask_peer(me, peer, frame),
            }
        }
        let (race, now) = self.race(me);
        if n_asks > 0 {
            check(race);
        }
        let (given_up, is_done) = (race.take_given_up(), race.is_done());
        let member = &mut self.members[me];
        member.given_up.extend(given_up);
        if is_done {
            member.took.get_or_insert(now);
        }
    }

    fn ask_peer(&mut self, me: usize, peer: usize, frame: usize) {
        let other = self.members[me].peers[peer];
        let after = |millis| self.now + Duration::from_millis(millis);
        let came = |is_right| Event::Came(me, Giver::Peer(peer), frame, is_right);
        let (when, event) = match self.members[other].manner {
            Manner::Races if self.members[other].has[frame] => (self.near(), came(true)),
            Manner::Races => {
                self.members[other].waiting.push((me, peer, frame));
                (self.now + HOLD, Event::HeldLong(me, peer, frame))
            }
            Manner::Gives(millis) => (after(millis), came(true)),
            Manner::Lies(millis) => (after(millis), came(false)),
            Manner::Fails(millis) => (after(millis), Event::Failed(me, peer)),
            Manner::Lacks(millis) => (after(millis), Event::Absent(me, peer, frame)),
            Manner::Waits => (self.now + HOLD, Event::ComesLater(me, peer, frame)),
            Manner::Silent => return,
        };
        self.at(when, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Begins(me) => self.members[me].began_at = Some(self.now),
            Event::Came(me, by, frame, is_right) => self.came(me, by, frame, is_right),
            Event::Failed(me, peer) => self.race(me).0.failed(peer),
            Event::Absent(me, peer, frame) => self.race(me).0.absent(peer, frame),
            Event::ComesLater(me, peer, frame) => self.race(me).0.comes_later(peer, frame),
            Event::HeldLong(me, peer, frame) => {
                let other = self.members[me].peers[peer];
                let other = &mut self.members[other];
                let before = other.waiting.len();
                other.waiting.retain(|one| *one != (me, peer, frame));
                if other.waiting.len() < before {
                    self.race(me).0.comes_later(peer, frame);
                }
            }
        }
    }

    fn came(&mut self, me: usize, by: Giver, frame: usize, is_right: bool) {
        let (race, now) = self.race(me);
        if !race.came(by, frame, now) {
            return;
        }
        race.checked(by, frame, is_right);
        if !is_right {
            return;
        }
        let member = &mut self.members[me];
        assert!(!member.has[frame], "it was looked at twice");
        member.has[frame] = true;
        let waiting = std::mem::take(&mut member.waiting);
        let (served, waiting) = waiting.into_iter().partition(|(_, _, wanted)| *wanted == frame);
        member.waiting = waiting;
        for (asker, peer, frame) in served {
            let near = self.near();
            self.at(near, Event::Came(asker, Giver::Peer(peer), frame, true));
        }
    }
}

/// What holds at every moment.
fn check(race: &Race) {
    assert!(race.source.n_runs <= RUNS_AT_ONCE);
    for (idx, peer) in race.peers.iter().enumerate() {
        assert!(peer.n_asked <= PEER_AT_ONCE);
        assert!(!peer.is_given_up || peer.queue.is_empty(), "nothing waits for it");
        let is_asked = |state: &&State| matches!(state, State::Asked { peer: Some((asked, _)), .. } if *asked == idx);
        assert!(race.states.iter().filter(is_asked).count() <= peer.n_asked);
    }
    for (frame, state) in race.states.iter().enumerate() {
        let queues = race.peers.iter().map(|peer| &peer.queue).chain([&race.source.queue]);
        let n_queues = queues.filter(|queue| queue.contains(&frame)).count();
        assert_eq!(n_queues, usize::from(*state == State::Wanted), "{frame} {state:?}");
        let is_asked = matches!(state, State::Asked { source: false, .. });
        assert_eq!(race.asked.contains(&frame), is_asked, "{frame} {state:?}");
    }
}
