//! What goes wrong, and when: it follows from the seed.

use crate::net::{Party, Weather};
use crate::world::{N_GLOBALS, N_LOCATIONS, N_NODES, World};

/// What is done to the world, some of it for a while, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It dies at once, and is started again.
    Kill(Party),
    /// It stands still and goes on as if nothing had been.
    Freeze(Party, u64),
    /// A machine of a node loses its power.
    PowerOff(usize, u64),
    /// Nothing passes between two.
    Cut(Party, Party, u64),
    /// A location hears of no control plane.
    CutOff(usize, u64),
    /// A control plane does not reach the store.
    CutStore(usize, u64),
    /// The store elects a leader: nobody reaches it, and leases begin anew.
    Election(u64),
    /// A clock is set wrong.
    Clock(Party, i64),
    /// Messages are late, lost, and come twice.
    Weather(u64, u32, u32, u64),
}

/// For how long something lasts: mostly for seconds, and now and then for long enough to count as lost.
fn span(random: &mut fastrand::Rng) -> u64 {
    match random.u32(0..6) {
        0 => random.u64(60_000..110_000),
        1 | 2 => random.u64(10_000..40_000),
        _ => random.u64(300..9_000),
    }
}

fn party(random: &mut fastrand::Rng) -> Party {
    match random.u32(0..3) {
        0 => Party::Global(random.usize(0..N_GLOBALS)),
        1 => Party::Location(random.usize(0..N_LOCATIONS)),
        _ => Party::Node(random.usize(0..N_NODES)),
    }
}

/// The next fault. `leader` is the control plane that leads, which is worth more than others.
pub fn next(random: &mut fastrand::Rng, leader: usize) -> Fault {
    match random.u32(0..23) {
        0..=3 => Fault::Kill(party(random)),
        4..=6 => Fault::Freeze(party(random), span(random)),
        7 | 8 => Fault::PowerOff(random.usize(0..N_NODES), span(random)),
        9 | 10 => {
            let node = random.usize(0..N_NODES);
            Fault::Cut(Party::Node(node), Party::Location(World::location_of(node)), span(random))
        }
        11 => {
            let (global, location) = (random.usize(0..N_GLOBALS), random.usize(0..N_LOCATIONS));
            Fault::Cut(Party::Global(global), Party::Location(location), span(random))
        }
        12..=14 => Fault::CutOff(random.usize(0..N_LOCATIONS), span(random)),
        15 | 16 => Fault::CutStore(random.usize(0..N_GLOBALS), span(random)),
        17 => Fault::Election(random.u64(500..6_000)),
        18 => {
            let ahead = random.i64(-7_200_000..7_200_000);
            Fault::Clock(party(random), ahead)
        }
        19 => Fault::Kill(Party::Global(leader)),
        20 => Fault::Freeze(Party::Global(leader), span(random)),
        21 => Fault::CutStore(leader, span(random)),
        _ => Fault::Weather(
            random.u64(2..60),
            random.u32(0..40),
            random.u32(0..40),
            random.u64(2_000..40_000),
        ),
    }
}

impl World {
    /// Does it.
    pub(crate) fn inflict(&mut self, fault: &Fault) {
        let now = self.now;
        self.note(&format!("fault {fault:?}"));
        match *fault {
            Fault::Kill(party) => {
                let again = now + self.random.u64(50..4_000);
                match party {
                    Party::Global(number) => self.globals[number].role.kill(again),
                    Party::Location(number) => self.locations[number].role.kill(again),
                    Party::Node(number) => self.nodes[number].node.kill_agent(again),
                }
            }
            Fault::Freeze(party, lasts) => match party {
                Party::Global(number) => self.globals[number].role.freeze(now + lasts),
                Party::Location(number) => self.locations[number].role.freeze(now + lasts),
                Party::Node(number) => {
                    let node = &mut self.nodes[number].node;
                    node.silent_until = node.silent_until.max(now + lasts);
                }
            },
            Fault::PowerOff(number, lasts) => self.nodes[number].node.power_off(now + lasts),
            Fault::Cut(a, b, lasts) => self.net.cut(a, b, now + lasts),
            Fault::CutOff(location, lasts) => {
                for global in 0..N_GLOBALS {
                    self.net.cut(Party::Global(global), Party::Location(location), now + lasts);
                }
            }
            Fault::CutStore(number, lasts) => {
                let global = &mut self.globals[number];
                global.cut_until = global.cut_until.max(now + lasts);
            }
            Fault::Election(lasts) => {
                self.store.restart();
                for global in &mut self.globals {
                    global.cut_until = global.cut_until.max(now + lasts);
                }
            }
            Fault::Clock(party, ahead) => match party {
                Party::Global(number) => self.globals[number].role.set_clock(ahead),
                Party::Location(number) => self.locations[number].role.set_clock(ahead),
                // What a node says of the time nobody goes by.
                Party::Node(_) => {}
            },
            Fault::Weather(slow, lost, twice, lasts) => {
                self.net.weather = Weather { slow, lost, twice };
                self.weather_until = now + lasts;
            }
        }
    }

    /// Ends what holds for a while and is over.
    pub(crate) fn recover(&mut self) {
        if self.weather_until <= self.now {
            self.net.weather = Weather { slow: 1, ..Weather::default() };
        }
        for global in &self.globals {
            let is_cut = global.cut_until > self.now;
            global.cut.send_if_modified(|known| std::mem::replace(known, is_cut) != is_cut);
        }
    }

    /// Ends all that goes wrong. Clocks stay wrong: nobody sets them right in the real world either.
    pub(crate) fn heal(&mut self) {
        let now = self.now;
        self.note("all faults end");
        self.net.heal();
        for global in &mut self.globals {
            global.cut_until = now;
            if let Some(process) = &mut global.role.process {
                process.frozen_until = now;
            }
        }
        for location in &mut self.locations {
            if let Some(process) = &mut location.role.process {
                process.frozen_until = now;
            }
        }
        for node in &mut self.nodes {
            node.node.silent_until = node.node.silent_until.min(now);
        }
    }
}
