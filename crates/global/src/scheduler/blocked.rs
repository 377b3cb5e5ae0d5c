//! The apps that wait for a place, each by what it lacks where.
//!
//! An app of which something waits is not planned anew until one of three things happens: what should be of it
//! changes, a location has more of what it lacked there, or operators change what they wish or say of locations,
//! so that something may have to move.

use std::collections::BTreeMap;

use longshore_planning::global::{Blocked, LocationState, Supplies, Waiting, WantedApp, supplies};
use longshore_store::Revision;

use crate::catalog::AppKey;

/// Those that wait.
#[derive(Default)]
pub struct Queue {
    /// The locations when the last round began.
    states: Vec<LocationState>,
    /// What each has more of since then.
    supplies: Supplies,
    /// Whether where something may be is not what it was.
    disturbed: bool,
    waiting: BTreeMap<AppKey, Entry>,
}

struct Entry {
    /// Of the app's record.
    revision: Revision,
    wanted: WantedApp,
    blocked: Blocked,
}

impl Queue {
    /// Takes over how the locations are when a round begins.
    pub fn begin_round(&mut self, states: &[LocationState]) {
        self.supplies = supplies(&self.states, states);
        let said = |state: &LocationState| {
            let kinds = state.kinds.iter().map(|kind| kind.traits.clone()).collect::<Vec<_>>();
            (state.name.clone(), state.cordon.clone(), state.traits.clone(), state.unheard, kinds)
        };
        self.disturbed = !self.states.iter().map(said).eq(states.iter().map(said));
        self.states = states.to_vec();
    }

    /// Forgets apps that are there no more.
    pub fn forget_gone(&mut self, exists: impl Fn(&AppKey) -> bool) {
        self.waiting.retain(|key, _| exists(key));
    }

    /// Those that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &AppKey> {
        self.waiting.keys()
    }

    /// Whether planning an app would change nothing.
    pub fn sleeps(&mut self, key: &AppKey, revision: Revision, wanted: &WantedApp) -> bool {
        let Some(entry) = self.waiting.get(key) else { return false };
        // Where users are makes room for nothing.
        let demand = entry.wanted.demand.clone();
        let is_same =
            entry.revision == revision && entry.wanted == WantedApp { demand, ..wanted.clone() };
        let sleeps = is_same && !self.disturbed && !entry.blocked.is_woken(&self.supplies);
        if !sleeps {
            self.waiting.remove(key);
        }
        sleeps
    }

    /// Lets an app sleep whose plan found no place for some of it and changed nothing. Only in a round in which
    /// nothing was given to any other: that is taken from what the next round sees, or was not written after all.
    pub fn block(
        &mut self,
        key: &AppKey,
        revision: Revision,
        (wanted, waiting): (WantedApp, &Waiting),
    ) {
        let blocked = Blocked::new(&waiting.decision);
        self.waiting.insert(key.clone(), Entry { revision, wanted, blocked });
    }
}

#[cfg(test)]
mod tests {
    use longshore_planning::global::{NodeKind, plan_shares};
    use longshore_types::{ByteCount, Capacity, MilliCpu, Timestamp};

    use super::*;

    fn location(free_mib: u64) -> LocationState {
        let memory = ByteCount::mib(free_mib);
        let free = Capacity { cpu: MilliCpu(1000), memory, disk: ByteCount::gib(1) };
        let traits = Default::default();
        let kind = NodeKind {
            traits,
            open: true,
            n_nodes: 1,
            free,
            largest: free,
            gpus: Default::default(),
            freed: vec![],
            reached: vec![],
        };
        LocationState {
            name: "ams".parse().unwrap(),
            reachable: true,
            late: false,
            cordon: None,
            free,
            without: vec![],
            coordinates: None,
            traits: Default::default(),
            kinds: vec![kind],
            unheard: false,
            round_trips: BTreeMap::new(),
        }
    }

    fn wanted() -> WantedApp {
        let each =
            Capacity { cpu: MilliCpu(1), memory: ByteCount::mib(100), disk: ByteCount::mib(1) };
        WantedApp {
            project: Default::default(),
            app: "web".parse().unwrap(),
            count: 1,
            max: 2,
            each,
            gpus: None,
            placement: Default::default(),
            tried: None,
            refusals: BTreeMap::new(),
            may_make_room: Default::default(),
            priority: Default::default(),
            pinned: None,
            demand: Default::default(),
            shares: Vec::new(),
        }
    }

    #[test]
    fn what_waits_sleeps_until_it_could_be_placed_or_is_changed() {
        let key: AppKey = (Default::default(), "web".parse().unwrap());
        let mut queue = Queue::default();
        let sleeps_after =
            |queue: &mut Queue, state: &LocationState, revision, wanted: &WantedApp| {
                let states = [state.clone()];
                queue.begin_round(&states);
                let sleeps = queue.sleeps(&key, Revision(revision), wanted);
                if let Some(waiting) = plan_shares(Timestamp(1), wanted, &states).waiting
                    && !sleeps
                {
                    queue.block(&key, Revision(revision), (wanted.clone(), &waiting));
                }
                sleeps
            };
        let mut state = location(50);
        assert!(!sleeps_after(&mut queue, &state, 1, &wanted()), "it was never planned");
        assert!(sleeps_after(&mut queue, &state, 1, &wanted()));
        state.free.disk = ByteCount::gib(9);
        assert!(sleeps_after(&mut queue, &state, 1, &wanted()), "it has disk enough");
        assert!(!sleeps_after(&mut queue, &state, 2, &wanted()), "it was deployed anew");
        assert!(sleeps_after(&mut queue, &state, 2, &wanted()));
        let fewer = WantedApp { count: 2, ..wanted() };
        assert!(!sleeps_after(&mut queue, &state, 2, &fewer), "another count is wanted");
        state.traits.country = "NL".parse().ok();
        assert!(!sleeps_after(&mut queue, &state, 2, &fewer), "it may have to move");
        assert!(sleeps_after(&mut queue, &state, 2, &fewer));
        assert!(!sleeps_after(&mut queue, &location(500), 2, &fewer), "there is room");
    }
}
