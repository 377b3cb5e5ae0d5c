//! Races in a world of events, with neighbours of every kind and one source for all.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a neighbour does that is asked for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It pulls the same layer, and gives what it has once it has it.
    Races,
    Gives(u64),
    Lies(u64),
    Fails(u64),
    Lacks(u64),
    /// It takes the question and says nothing.
    Silent,
}

/// How long a node that pulls keeps others waiting for what it does not have.
const HOLD: Duration = Duration::from_secs(2);
/// From one node to another.
const NEAR: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy)]
enum Event {
    /// To whom; who gave it, and whether it is right.
    Came(usize, Giver, usize, bool),
    RunEnded(usize),
    Failed(usize, usize),
    Absent(usize, usize, usize),
    /// What was waited for did not come there in time.
    HeldLong(usize, usize, usize),
}

struct Member {
    manner: Manner,
    race: Option<Race>,
    /// Who else there is, in the order of its race.
    peers: Vec<usize>,
    has: Vec<bool>,
    /// Who waits, by which number it knows this one, and for what.
    waiting: Vec<(usize, usize, usize)>,
    given_up: Vec<(usize, GivenUp)>,
    done_at: Option<Duration>,
}

struct World {
    members: Vec<Member>,
    events: BTreeMap<(Duration, usize), Event>,
    n_events: usize,
    per_frame: Duration,
    /// When the source has given all that it was asked for.
    source_free: Duration,
    n_of_source: usize,
    now: Duration,
}

fn layer(seed: u8) -> Digest {
    Digest::from_sha256([seed; 32])
}

impl World {
    /// Members that do so; those that race want `n_frames`, each of which takes the source so many milliseconds.
    fn new(seed: u8, n_frames: usize, per_frame: u64, manners: &[Manner]) -> Self {
        let wish = |idx| Wish { idx, follows: idx > 0 };
        let member = |(me, manner): (usize, &Manner)| {
            let peers: Vec<_> = (0..manners.len()).filter(|other| *other != me).collect();
            let racer = |other: &usize| Racer {
                name: format!("n{other}"),
                has_all: manners[*other] != Manner::Races,
            };
            let racers = peers.iter().map(racer).collect();
            let wishes = (0..n_frames).map(wish).collect();
            let race = || Race::new(layer(seed), format!("n{me}"), wishes, racers);
            Member {
                manner: *manner,
                race: (*manner == Manner::Races).then(race),
                peers,
                has: vec![false; n_frames],
                waiting: Vec::new(),
                given_up: Vec::new(),
                done_at: None,
            }
        };
        Self {
            members: manners.iter().enumerate().map(member).collect(),
            events: BTreeMap::new(),
            n_events: 0,
            per_frame: Duration::from_millis(per_frame),
            source_free: Duration::ZERO,
            n_of_source: 0,
            now: Duration::ZERO,
        }
    }

    fn at(&mut self, when: Duration, event: Event) {
        self.n_events += 1;
        self.events.insert((when, self.n_events), event);
    }

    /// Runs until all that race are done.
    fn run(mut self) -> Self {
        loop {
            for me in 0..self.members.len() {
                self.ask(me);
            }
            let racing = |member: &Member| member.race.is_some() && member.done_at.is_none();
            if !self.members.iter().any(racing) {
                return self;
            }
            let looks = self.members.iter().filter_map(|member| {
                let race = member.race.as_ref().filter(|_| member.done_at.is_none())?;
                Some(self.now + race.look_again(self.now)?)
            });
            let look = looks.min();
            let next = self.events.first_key_value().map(|(key, _)| *key);
            match (next, look) {
                (Some(key), look) if look.is_none_or(|look| key.0 <= look) => {
                    self.now = key.0;
                    let event = self.events.remove(&key).unwrap();
                    self.happen(event);
                }
                (_, Some(look)) => self.now = look,
                (_, None) => panic!("nothing happens any more"),
            }
            assert!(self.now < Duration::from_secs(3600), "it goes on for ever");
        }
    }

    fn ask(&mut self, me: usize) {
        let now = self.now;
        while let Some(ask) = self.members[me].race.as_mut().and_then(|race| race.next(now)) {
            check(self.members[me].race.as_ref().unwrap());
            match ask {
                Ask::Source { frames } => {
                    assert!(!frames.is_empty() && frames.len() <= RUN);
                    for frame in frames {
                        self.n_of_source += 1;
                        self.source_free = self.source_free.max(self.now) + self.per_frame;
                        let came = Event::Came(me, Giver::Source, frame, true);
                        self.at(self.source_free, came);
                    }
                    self.at(self.source_free, Event::RunEnded(me));
                }
                Ask::Peer { peer, frame } => self.ask_peer(me, peer, frame),
            }
        }
        let member = &mut self.members[me];
        let Some(race) = &mut member.race else { return };
        member.given_up.extend(race.take_given_up());
        if race.is_done() {
            member.done_at.get_or_insert(self.now);
        }
    }

    fn ask_peer(&mut self, me: usize, peer: usize, frame: usize) {
        let other = self.members[me].peers[peer];
        let after = |millis| self.now + Duration::from_millis(millis);
        let (when, event) = match self.members[other].manner {
            Manner::Races if self.members[other].has[frame] => {
                (self.now + NEAR, Event::Came(me, Giver::Peer(peer), frame, true))
            }
            Manner::Races => {
                self.members[other].waiting.push((me, peer, frame));
                (self.now + HOLD, Event::HeldLong(me, peer, frame))
            }
            Manner::Gives(millis) => {
                (after(millis), Event::Came(me, Giver::Peer(peer), frame, true))
            }
            Manner::Lies(millis) => {
                (after(millis), Event::Came(me, Giver::Peer(peer), frame, false))
            }
            Manner::Fails(millis) => (after(millis), Event::Failed(me, peer)),
            Manner::Lacks(millis) => (after(millis), Event::Absent(me, peer, frame)),
            Manner::Silent => return,
        };
        self.at(when, event);
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Came(me, by, frame, is_right) => {
                let race = self.members[me].race.as_mut().unwrap();
                if !race.came(by, frame, now) {
                    return;
                }
                race.checked(by, frame, is_right);
                if is_right {
                    assert!(!self.members[me].has[frame], "it was looked at twice");
                    self.members[me].has[frame] = true;
                    let waiting = std::mem::take(&mut self.members[me].waiting);
                    let (served, waiting) =
                        waiting.into_iter().partition(|(_, _, wanted)| *wanted == frame);
                    self.members[me].waiting = waiting;
                    for (asker, peer, frame) in served {
                        let came = Event::Came(asker, Giver::Peer(peer), frame, true);
                        self.at(now + NEAR, came);
                    }
                }
            }
            Event::RunEnded(me) => self.members[me].race.as_mut().unwrap().run_ended(now),
            Event::Failed(me, peer) => self.members[me].race.as_mut().unwrap().failed(peer),
            Event::Absent(me, peer, frame) => {
                self.members[me].race.as_mut().unwrap().absent(peer, frame);
            }
            Event::HeldLong(me, peer, frame) => {
                let other = self.members[me].peers[peer];
                let waiting = &mut self.members[other].waiting;
                let before = waiting.len();
                waiting.retain(|one| *one != (me, peer, frame));
                if waiting.len() < before {
                    self.members[me].race.as_mut().unwrap().absent(peer, frame);
                }
            }
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

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        (1_u64..3000).prop_map(Manner::Gives),
        (1_u64..50).prop_map(Manner::Gives),
        (1_u64..3000).prop_map(Manner::Lies),
        (1_u64..300).prop_map(Manner::Fails),
        (1_u64..3000).prop_map(Manner::Lacks),
        Just(Manner::Silent),
    ]
}

proptest! {
    #[test]
    fn no_neighbour_makes_a_pull_slower_than_the_source_alone(
        seed: u8,
        n_frames in 1_usize..60,
        per_frame in 5_u64..200,
        others in proptest::collection::vec(manner(), 0..5),
    ) {
        let manners: Vec<_> = [Manner::Races].into_iter().chain(others.clone()).collect();
        let world = World::new(seed, n_frames, per_frame, &manners).run();
        let me = &world.members[0];
        let alone = world.per_frame * n_frames as u32;
        let frames = SLACK as usize + RUN * RUNS_AT_ONCE + PEER_AT_ONCE * others.len() + 2;
        let bound = alone + world.per_frame * frames as u32 + HEDGE.0;
        prop_assert!(me.done_at.unwrap() <= bound, "{:?} and {alone:?} alone", me.done_at);
        prop_assert!(me.has.iter().all(|has| *has));
        // Nobody is blamed that gave what it should in good time.
        for (peer, why) in &me.given_up {
            let manner = others[*peer];
            prop_assert!(!matches!(manner, Manner::Gives(..50)), "{manner:?} {why:?}");
            let is_lie = *why == GivenUp::Lied;
            prop_assert!(!is_lie || matches!(manner, Manner::Lies(_)), "{manner:?} {why:?}");
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nodes_that_begin_together_take_little_more_than_one_copy(
        seed: u8,
        n_nodes in 2_usize..10,
        per_frame in 5_u64..60,
    ) {
        let n_frames = 96;
        let world = World::new(seed, n_frames, per_frame, &vec![Manner::Races; n_nodes]).run();
        prop_assert!(world.n_of_source * 4 <= n_frames * 5, "{} of {n_frames}", world.n_of_source);
        let alone = world.per_frame * (n_frames * n_nodes) as u32;
        for member in &world.members {
            prop_assert!(member.done_at.unwrap() <= alone, "{:?} and {alone:?}", member.done_at);
            prop_assert_eq!(&member.given_up, &[]);
        }
    }
}

/// What came of a race with one other, and how many frames the source gave.
fn with_one(manner: Manner) -> (World, usize) {
    let world = World::new(1, 40, 20, &[Manner::Races, manner]).run();
    let n_of_source = world.n_of_source;
    (world, n_of_source)
}

#[test]
fn at_the_very_moment_at_which_the_source_is_due_it_is_not_forgotten() {
    let manners = [Manner::Races, Manner::Fails(235), Manner::Lacks(906)];
    let world = World::new(0, 32, 47, &manners).run();
    assert!(world.members[0].done_at < Some(Duration::from_millis(1700)));
}

#[test]
fn a_neighbour_that_has_all_gives_all_but_what_shows_how_fast_the_source_is() {
    assert_eq!(with_one(Manner::Gives(5)).1, (40 / TRIAL_PART).min(RUN * RUNS_AT_ONCE));
}

#[test]
fn who_lies_fails_or_is_too_slow_is_given_up_and_who_lacks_it_is_not_blamed() {
    for (manner, why) in [
        (Manner::Lies(5), GivenUp::Lied),
        (Manner::Fails(5), GivenUp::Failed),
        (Manner::Silent, GivenUp::Slow),
        (Manner::Gives(5000), GivenUp::Slow),
        (Manner::Lacks(5), GivenUp::Absent),
    ] {
        let (world, n_of_source) = with_one(manner);
        assert_eq!(world.members[0].given_up, [(0, why)], "{manner:?}");
        assert_eq!(n_of_source, 40, "{manner:?}");
    }
}

#[test]
fn what_one_that_died_was_to_fetch_is_shared_by_the_others() {
    let mut manners = vec![Manner::Races; 5];
    manners.push(Manner::Fails(5));
    let mut world = World::new(3, 120, 20, &manners);
    // The one that fails is taken for one that pulls too, and owns its share.
    for member in &mut world.members {
        if let Some(race) = &mut member.race {
            let racers = race.peers.iter().map(|peer| peer.racer.clone());
            let racers = racers.map(|racer| Racer { has_all: false, ..racer }).collect();
            let (own, wishes) = (race.own.clone(), race.wishes.clone());
            *race = Race::new(layer(3), own, wishes, racers);
        }
    }
    let world = world.run();
    assert!(world.n_of_source <= 150, "{}", world.n_of_source);
    for member in &world.members[..5] {
        assert_eq!(member.given_up, [(4, GivenUp::Failed)]);
    }
}

#[test]
fn runs_are_of_frames_that_follow_one_another() {
    let wishes = [(0, false), (1, true), (3, false), (4, true), (5, true)];
    let wishes = wishes.map(|(idx, follows)| Wish { idx, follows }).to_vec();
    let mut race = Race::new(layer(1), "n0".to_owned(), wishes, Vec::new());
    let mut asked = Vec::new();
    while let Some(Ask::Source { frames }) = race.next(Duration::ZERO) {
        asked.extend(frames);
    }
    let expected: Vec<usize> = (0..5.min(RUN * RUNS_AT_ONCE)).collect();
    assert_eq!(asked, expected, "in their order, as many as the source may be asked for");
}
