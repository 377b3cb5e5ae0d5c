//! What is said between the processes, and what becomes of it: late, out of order, twice, or never.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use longshore_api::links::{AllotmentSet, AssignmentSet, LocationReport, NodeReport, ReportTaken};

/// Who speaks, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A control plane.
    Global(usize),
    /// A location.
    Location(usize),
    /// A node.
    Node(usize),
}

/// What is said.
#[derive(Debug, Clone)]
pub enum Message {
    /// What a location is allotted.
    Allotments(AllotmentSet),
    /// What a location observes.
    Report(Box<LocationReport>),
    /// What a node observes.
    Observed(Box<NodeReport>),
    /// What is known by either; none when it was not taken over.
    Taken(Option<Option<ReportTaken>>),
    /// What a node is assigned.
    Assignments(AssignmentSet),
}

/// A message under way.
#[derive(Debug, Clone)]
pub struct Sent {
    /// From whom.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// Which life of either it belongs to: what comes over a connection ends with both its ends.
    pub lives: (u64, u64),
    /// What.
    pub message: Message,
}

/// What becomes of messages for as long as it holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// How many times as long everything takes.
    pub slow: u64,
    /// How many of a hundred messages are lost.
    pub lost: u32,
    /// How many of a hundred come twice.
    pub twice: u32,
}

/// The network. Each pair of parties draws from a sequence of its own.
pub struct Net {
    seed: u64,
    random: BTreeMap<(Party, Party), fastrand::Rng>,
    /// Until when nothing passes between two, by the world's clock.
    cuts: BTreeMap<(Party, Party), u64>,
    waiting: BinaryHeap<Reverse<(u64, u64)>>,
    sent: BTreeMap<u64, Sent>,
    last: u64,
    /// What holds now.
    pub weather: Weather,
}

fn pair(a: Party, b: Party) -> (Party, Party) {
    (a.min(b), a.max(b))
}

impl Net {
    /// A network in which all is well.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            random: BTreeMap::new(),
            cuts: BTreeMap::new(),
            waiting: BinaryHeap::new(),
            sent: BTreeMap::new(),
            last: 0,
            weather: Weather { slow: 1, ..Weather::default() },
        }
    }

    /// Lets nothing pass between two until then.
    pub fn cut(&mut self, a: Party, b: Party, until: u64) {
        let known = self.cuts.entry(pair(a, b)).or_default();
        *known = until.max(*known);
    }

    /// Whether nothing passes between two.
    pub fn is_cut(&self, a: Party, b: Party, now: u64) -> bool {
        self.cuts.get(&pair(a, b)).is_some_and(|until| now < *until)
    }

    /// Everything is well again.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.weather = Weather { slow: 1, ..Weather::default() };
    }

    /// Sends; false when it is lost already.
    pub fn send(&mut self, sent: Sent, now: u64) -> bool {
        let weather = self.weather;
        if self.is_cut(sent.from, sent.to, now) {
            return false;
        }
        let random = self.random_of(sent.from, sent.to);
        if random.u32(0..100) < weather.lost {
            return false;
        }
        let n_copies = if random.u32(0..100) < weather.twice { 2 } else { 1 };
        let delays: Vec<u64> = (0..n_copies).map(|_| random.u64(1..60) * weather.slow).collect();
        for delay in delays {
            self.hold(sent.clone(), now + delay);
        }
        true
    }

    /// Keeps a message until then.
    pub fn hold(&mut self, sent: Sent, until: u64) {
        self.last += 1;
        self.waiting.push(Reverse((until, self.last)));
        self.sent.insert(self.last, sent);
    }

    /// What arrives by now, one after the other.
    pub fn next(&mut self, now: u64) -> Option<Sent> {
        loop {
            let Reverse((at, number)) = *self.waiting.peek()?;
            if at > now {
                return None;
            }
            self.waiting.pop();
            let sent = self.sent.remove(&number).expect("each waits once");
            if !self.is_cut(sent.from, sent.to, now) {
                return Some(sent);
            }
        }
    }

    /// The sequence of what happens between two.
    pub fn random_of(&mut self, from: Party, to: Party) -> &mut fastrand::Rng {
        let number = |party| match party {
            Party::Global(number) => number as u64,
            Party::Location(number) => 100 + number as u64,
            Party::Node(number) => 200 + number as u64,
        };
        let seed = self.seed ^ (number(from) << 32) ^ (number(to) << 48);
        self.random.entry((from, to)).or_insert_with(|| fastrand::Rng::with_seed(seed))
    }
}
