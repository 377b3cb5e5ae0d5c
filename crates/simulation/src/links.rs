//! Who tells whom what: the two ends of each link, as `longshore_api::links` has them. Down go whole states, again
//! when the connection broke, and then what differs from them; up go reports, one at a time, when something changed
//! and every few seconds.

use std::sync::{Arc, Mutex, PoisonError};

use longshore_api::links::{Assigned, LocationReport, ReportChanges, ReportTaken, Said};
use longshore_global::simulation::Told;
use longshore_location::simulation::Reported;

use crate::net::{Message, Party, Sent};
use crate::world::{N_GLOBALS, World};

/// A report goes out at least this often.
const HEARTBEAT: u64 = 5_000;

/// The connection by which a lower role is told what should be.
#[derive(Debug, Default)]
pub struct Watch {
    /// With which life of the one above.
    life: u64,
    /// The newest state that a node was sent.
    sent: Option<Arc<Assigned>>,
    /// What a location was told over it, of which it is told changes.
    told: Told,
    /// What was looked at last.
    seen: u64,
    /// Something was lost; that is noticed then, and it is opened anew.
    broken_until: u64,
}

impl Watch {
    /// Opens it anew, where it is broken or the other end is another one.
    fn renew(&mut self, life: u64, now: u64) -> bool {
        if self.broken_until > now {
            return false;
        }
        if self.life != life || self.broken_until != 0 {
            *self = Self { life, ..Self::default() };
        }
        true
    }
}

/// The connection by which a lower role reports.
#[derive(Debug, Default)]
pub struct Uplink {
    /// When the next report goes out at the latest.
    next_at: u64,
    /// Until when an answer is waited for.
    waits_until: Option<u64>,
    /// What changed since the last one.
    news: bool,
}

impl Uplink {
    /// Something changed.
    pub fn tell(&mut self) {
        self.news = true;
    }

    /// Whether a report is to go out now.
    fn is_due(&mut self, now: u64) -> bool {
        if self.waits_until.is_some_and(|until| now < until) {
            return false;
        }
        if self.waits_until.take().is_some() {
            // It is tried again.
            return true;
        }
        self.news || now >= self.next_at
    }

    fn sent(&mut self, now: u64, gives_up_after: u64) {
        (self.news, self.next_at) = (false, now + HEARTBEAT);
        self.waits_until = Some(now + gives_up_after);
    }

    /// An answer came.
    fn answered(&mut self, was_taken: bool, now: u64) {
        self.waits_until = if was_taken { None } else { Some(now + 200) };
    }
}

/// What came of a report that was handed over; none when it was refused.
pub type Taken = Option<Option<ReportTaken>>;

/// The same of several: from whom to whom, and in which lives.
pub type Outbox = Arc<Mutex<Vec<(Party, Party, (u64, u64), Taken)>>>;

impl World {
    fn life_of(&self, party: Party) -> u64 {
        match party {
            Party::Global(number) => self.globals[number].role.n_lives,
            Party::Location(number) => self.locations[number].role.n_lives,
            // The agent's death loses it what it was told last, and no connection of its location's.
            Party::Node(_) => 0,
        }
    }

    /// Until when somebody stands still.
    fn frozen_until(&self, party: Party) -> Option<u64> {
        match party {
            Party::Global(number) => self.globals[number].role.frozen_until(self.now),
            Party::Location(number) => self.locations[number].role.frozen_until(self.now),
            Party::Node(_) => None,
        }
    }

    fn send_message(&mut self, from: Party, to: Party, message: Message) -> bool {
        let lives = (self.life_of(from), self.life_of(to));
        self.net.send(Sent { from, to, lives, message }, self.now)
    }

    /// Hands over what arrives.
    pub(crate) fn deliver(&mut self) {
        while let Some(sent) = self.net.next(self.now) {
            if let Some(until) = self.frozen_until(sent.to) {
                // It waits in the socket of who stands still.
                self.net.hold(sent, until);
                continue;
            }
            // What was sent stays on its way when its sender dies, and ends with who it is for.
            if sent.lives.1 == self.life_of(sent.to) {
                self.hand_over(sent);
            }
        }
        let done = std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
        for (from, to, lives, outcome) in done {
            let message = Message::Taken(outcome);
            self.net.send(Sent { from, to, lives, message }, self.now);
        }
    }

    fn hand_over(&mut self, Sent { from, to, lives, message }: Sent) {
        match (to, message) {
            (Party::Location(number), Message::Allotments(set)) => {
                self.note(&format!("{to:?} is told {} of {from:?}", set.generation.0));
                if let Some(location) = self.locations[number].role.handle() {
                    location.take_allotments(set);
                }
            }
            (Party::Location(number), Message::Taken(taken)) => {
                let location = &mut self.locations[number];
                location.uplink.answered(taken.is_some(), self.now);
                if taken.is_none() {
                    location.target = (location.target + 1) % N_GLOBALS;
                }
                if let Some((_, _, changes)) = &mut location.reports
                    && !changes.taken(taken.flatten())
                {
                    location.uplink.tell();
                }
            }
            (Party::Location(number), Message::Observed(report)) => {
                let Some(location) = self.locations[number].role.handle() else { return };
                let (heard, outbox) = (location.take_report(*report), Arc::clone(&self.outbox));
                let process = self.locations[number].role.process.as_ref();
                process.expect("who has a handle runs").spawn(async move {
                    let done = (to, from, (lives.1, lives.0), heard.await.map(Some));
                    outbox.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                });
            }
            (Party::Node(number), Message::Taken(taken)) => {
                let node = &mut self.nodes[number];
                node.uplink.answered(taken.is_some(), self.now);
                if !node.node.changes.taken(taken.flatten()) {
                    node.uplink.tell();
                }
            }
            (Party::Node(number), Message::Assignments(set)) => {
                let now = self.now;
                let node = &mut self.nodes[number].node;
                if now < node.silent_until || !node.take_over(set, now) {
                    self.nodes[number].watch.broken_until = now + 100;
                }
            }
            (Party::Global(number), Message::Report(report)) => {
                let Some(global) = self.globals[number].role.handle() else {
                    self.send_message(to, from, Message::Taken(None));
                    return;
                };
                let outbox = Arc::clone(&self.outbox);
                let process = self.globals[number].role.process.as_ref();
                process.expect("who has a handle runs").spawn(async move {
                    let outcome = global.take_report(*report).await.ok();
                    let done = (to, from, (lives.1, lives.0), outcome);
                    outbox.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                });
            }
            (to, message) => unreachable!("nobody says {message:?} to {to:?}"),
        }
    }

    /// Lets everyone say what there is to say.
    pub(crate) fn speak(&mut self) {
        for number in 0..self.locations.len() {
            self.tell_location(number);
            self.report_of_location(number);
        }
        for number in 0..self.nodes.len() {
            self.tell_node(number);
            self.report_of_node(number);
        }
    }

    /// Whichever control plane a location follows tells it what it should have, while that one leads and is awake.
    fn tell_location(&mut self, number: usize) {
        let now = self.now;
        let target = self.locations[number].target;
        let Some(global) = self.globals[target].role.awake(now) else { return };
        let Some(handle) = self.locations[number].role.awake(now) else { return };
        if handle.asks_for_whole() {
            // It opens the connection anew.
            let watch = &mut self.locations[number].watch;
            watch.broken_until = watch.broken_until.max(now + 20);
        }
        let life = (self.globals[target].role.n_lives << 32)
            | (self.locations[number].role.n_lives << 8)
            | target as u64;
        let (from, to) = (Party::Global(target), Party::Location(number));
        let location = &mut self.locations[number];
        let revision = global.revision().0;
        if !location.watch.renew(life, now) || location.watch.seen == revision {
            return;
        }
        location.watch.seen = revision;
        let Some(set) = global.allotments(&location.name, &mut location.watch.told) else {
            return;
        };
        if !self.send_message(from, to, Message::Allotments(set)) {
            let noticed = self.net.random_of(from, to).u64(100..15_000);
            self.locations[number].watch.broken_until = now + noticed;
        }
    }

    fn report_of_location(&mut self, number: usize) {
        let now = self.now;
        let location = &mut self.locations[number];
        let Some(handle) = location.role.awake(now) else { return };
        let life = location.role.n_lives;
        let wall = longshore_types::Timestamp(now.saturating_add_signed(location.role.ahead));
        if location.reports.as_ref().is_none_or(|(of, ..)| *of != life) {
            location.reports = Some((life, handle.report(), ReportChanges::new(wall)));
            location.uplink.tell();
        }
        let (_, reports, changes) = location.reports.as_mut().expect("it was set above");
        if reports.has_changed().unwrap_or(false) {
            location.uplink.tell();
        }
        if !location.uplink.is_due(now) {
            return;
        }
        let told = Option::clone(&reports.borrow_and_update());
        let Some(Reported { report, instances }) = told else { return };
        let Said { number: sent, since, instances, gone } = changes.of(&instances);
        let report = LocationReport { number: sent, since, instances, gone, at: wall, ..report };
        let (from, to) = (Party::Location(number), Party::Global(location.target));
        let gives_up = self.net.random_of(from, to).u64(500..12_000);
        self.locations[number].uplink.sent(now, gives_up);
        let is_under_way = self.send_message(from, to, Message::Report(Box::new(report)));
        if !is_under_way || self.net.random_of(from, to).u32(0..40) == 0 {
            // A connection that leads nowhere is given up, and another control plane tried.
            let location = &mut self.locations[number];
            location.target = (location.target + 1) % N_GLOBALS;
        }
    }

    fn tell_node(&mut self, number: usize) {
        let now = self.now;
        let home = self.nodes[number].node.location;
        let Some(location) = self.locations[home].role.awake(now) else { return };
        let life = self.locations[home].role.n_lives;
        let node = &mut self.nodes[number];
        if now < node.node.silent_until {
            return;
        }
        let began = node.watch.life != life || node.watch.broken_until != 0;
        if !node.watch.renew(life, now) {
            return;
        }
        let Some(assigned) = location.assigned(&node.node.name) else { return };
        let sent = node.watch.sent.take().filter(|_| !began);
        let is_news = sent.as_ref().is_none_or(|sent| !Arc::ptr_eq(sent, &assigned));
        let next = match &sent {
            Some(sent) => assigned.since(sent),
            None => assigned.whole(),
        };
        node.watch.sent = Some(assigned);
        if !is_news {
            return;
        }
        let (from, to) = (Party::Location(home), Party::Node(number));
        if !self.send_message(from, to, Message::Assignments(next)) {
            let noticed = self.net.random_of(from, to).u64(100..15_000);
            self.nodes[number].watch.broken_until = now + noticed;
        }
    }

    fn report_of_node(&mut self, number: usize) {
        let now = self.now;
        let one = &mut self.nodes[number];
        one.node.go_on(now);
        if now < one.node.silent_until {
            return;
        }
        if one.node.has_news {
            one.uplink.tell();
        }
        if !one.uplink.is_due(now) {
            return;
        }
        let (from, to) = (Party::Node(number), Party::Location(one.node.location));
        let report = one.node.report();
        let gives_up = self.net.random_of(from, to).u64(500..12_000);
        self.nodes[number].uplink.sent(now, gives_up);
        self.send_message(from, to, Message::Observed(Box::new(report)));
    }
}
