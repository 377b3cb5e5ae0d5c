//! Both schedulers at work on one world, in which not everything has room.
//!
//! What they tell each other is made here as the services make it: locations report kinds of nodes and what they
//! found no node for, the global scheduler allots.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use longshore_planning::global::{
    self, LocationState, NodeKind, ReportedNode, Share, Without, kinds, more_of_nodes, plan_shares,
};
use longshore_planning::gpus::{choose, free_gpus};
use longshore_planning::location::{self, Action, Goal, PlacedInstance, Snapshot, Standing};
use longshore_types::{
    ByteCount, Capacity, Digest, Gpu, GpuNeed, GpuShares, InstanceId, Lack, LocationName, MilliCpu,
    NodeGpu, NodeName, Priority, ReleaseNumber, RoomMaking, Timestamp, Traits, Yielding,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct App {
    name: String,
    priority: Priority,
    count: u32,
    each: Capacity,
    gpus: Option<GpuNeed>,
    shares: Vec<Share>,
}

/// What a location found no node for, as the global scheduler remembers it.
struct Refusal {
    missing: u32,
    lacks: BTreeSet<Lack>,
    in_vain: bool,
    had: Vec<NodeKind>,
}

struct Place {
    name: LocationName,
    nodes: Vec<(NodeName, Capacity, Vec<Gpu>)>,
    instances: Vec<PlacedInstance>,
    refusals: BTreeMap<String, Refusal>,
}

struct World {
    now: u64,
    apps: Vec<App>,
    places: Vec<Place>,
    /// Who left for whom.
    left: Vec<(Priority, Priority)>,
}

fn memory(units: u64) -> Capacity {
    Capacity { memory: ByteCount::mib(100 * units), ..Capacity::default() }
}

fn gpu(gib: u64) -> Gpu {
    // Two models, so that not each will do.
    let model = if gib.is_multiple_of(2) { "even" } else { "odd" };
    Gpu { model: model.parse().unwrap(), memory: ByteCount::gib(gib) }
}

fn need(count: u32, gib: u64, models: &[&str]) -> GpuNeed {
    let memory = (gib > 0).then(|| ByteCount::gib(gib));
    GpuNeed { count, memory, models: models.iter().map(|model| model.parse().unwrap()).collect() }
}

impl Place {
    fn new(idx: usize, nodes: &[(u64, Vec<u64>)]) -> Self {
        let rich =
            |units| Capacity { cpu: MilliCpu(1000), disk: ByteCount::gib(1), ..memory(units) };
        let named = |(n, (units, gpus)): (usize, &(u64, Vec<u64>))| {
            let gpus = gpus.iter().map(|gib| gpu(*gib));
            (format!("n{n}").parse().unwrap(), rich(*units), gpus.collect())
        };
        Self {
            name: format!("loc{idx}").parse().unwrap(),
            nodes: nodes.iter().enumerate().map(named).collect(),
            instances: Vec::new(),
            refusals: BTreeMap::new(),
        }
    }

    fn promised(&self, node: &NodeName, counts: impl Fn(&PlacedInstance) -> bool) -> Capacity {
        let on_node = self.instances.iter().filter(|one| one.node == *node && counts(one));
        on_node.fold(Capacity::default(), |sum, one| sum.plus(one.each))
    }

    fn gpus(&self, node: &NodeName, counts: impl Fn(&PlacedInstance) -> bool) -> GpuShares {
        let on_node = self.instances.iter().filter(|one| one.node == *node && counts(one));
        on_node.fold(GpuShares::default(), |sum, one| sum.plus(&one.gpus))
    }

    fn reported_gpus(&self, node: &NodeName, gpus: &[Gpu]) -> Vec<NodeGpu> {
        let leaves = |one: &PlacedInstance| one.standing == Standing::Leaving;
        let (all, leaving) = (self.gpus(node, |_| true), self.gpus(node, leaves));
        let each = (0..).zip(gpus).map(|(index, gpu)| NodeGpu {
            model: gpu.model.clone(),
            memory: gpu.memory,
            promised: all.of(index),
            leaving: leaving.of(index),
        });
        each.collect()
    }

    fn kinds(&self) -> Vec<NodeKind> {
        let leaves = |one: &PlacedInstance| one.standing == Standing::Leaving;
        let yielding = |node: &NodeName| -> Vec<Yielding> {
            let staying = self.instances.iter().filter(|one| one.node == *node && !leaves(one));
            let each = staying.map(|one| Yielding {
                priority: one.yields.unwrap(),
                instances: 1,
                promised: one.each,
                gpus: one.gpus.clone(),
            });
            each.collect()
        };
        let yielding = |(node, _, gpus): &(NodeName, Capacity, Vec<Gpu>)| {
            (yielding(node), self.reported_gpus(node, gpus))
        };
        let yielding: Vec<_> = self.nodes.iter().map(yielding).collect();
        let traits = Traits::default();
        let nodes = self.nodes.iter().zip(&yielding);
        kinds(nodes.map(|((node, capacity, _), (yielding, gpus))| ReportedNode {
            traits: &traits,
            open: true,
            capacity: *capacity,
            promised: self.promised(node, |_| true),
            leaving: self.promised(node, leaves),
            yielding,
            gpus,
            reached: &[],
        }))
    }

    fn state(&self, apps: &[App]) -> LocationState {
        let offered =
            self.nodes.iter().fold(Capacity::default(), |sum, (_, own, _)| sum.plus(*own));
        let free = |up_to: Option<Priority>| {
            let staying = apps.iter().filter(|app| Some(app.priority) > up_to);
            let allotted = staying.flat_map(|app| app.shares.iter().map(move |share| (app, share)));
            let here = allotted.filter(|(_, share)| share.location == self.name);
            let sum = here.map(|(app, share)| app.each.times(share.count));
            offered.minus(sum.fold(Capacity::default(), Capacity::plus))
        };
        let levels: BTreeSet<_> = apps.iter().map(|app| app.priority).collect();
        let without = levels.into_iter().map(|up_to| Without { up_to, free: free(Some(up_to)) });
        LocationState {
            name: self.name.clone(),
            reachable: true,
            late: false,
            cordon: None,
            free: free(None),
            without: without.collect(),
            round_trips: BTreeMap::new(),
            coordinates: None,
            traits: Traits::default(),
            kinds: self.kinds(),
            unheard: false,
        }
    }

    fn running(&self, app: &str) -> u32 {
        let stays = |one: &&PlacedInstance| one.standing != Standing::Leaving;
        let of_app = self.instances.iter().filter(stays).filter(|one| one.app.as_str() == app);
        u32::try_from(of_app.count()).unwrap()
    }

    /// What of which apps found no node.
    fn refused(&self) -> Vec<(String, u32, bool)> {
        let each = self.refusals.iter();
        each.map(|(app, one)| (app.clone(), one.missing, one.in_vain)).collect()
    }

    /// One plan, carried out and reported; how many steps it had.
    fn plan(&mut self, now: u64, apps: &[App], left: &mut Vec<(Priority, Priority)>) -> usize {
        let snapshot = self.snapshot(now, apps);
        let plan = location::plan(&snapshot);
        assert_eq!(plan, location::plan(&snapshot), "the same again");
        for action in &plan.actions {
            match action {
                Action::Drain { instance, why } => {
                    let one = self.instances.iter_mut().find(|one| one.id == *instance).unwrap();
                    one.standing = Standing::Leaving;
                    if let Some(rest) = why.strip_prefix("makes room for ") {
                        let by =
                            apps.iter().find(|app| rest.starts_with(&format!("{} ", app.name)));
                        left.push((one.yields.unwrap(), by.unwrap().priority));
                    }
                }
                Action::Place { instance, app, node, gpus, .. } => {
                    let of = apps.iter().find(|of| of.name == app.as_str()).unwrap();
                    let placed = placed(instance, of, (node.clone(), gpus), snapshot.now);
                    self.instances.push(placed);
                }
            }
        }
        for (node, capacity, gpus) in &self.nodes {
            assert!(capacity.holds(self.promised(node, |_| true)), "{} {node}", self.name);
            let held = self.gpus(node, |_| true);
            for (index, gpu) in (0..).zip(gpus) {
                assert!(held.of(index) <= gpu.memory, "GPU {index} of {} {node}", self.name);
            }
        }
        for one in &self.instances {
            let need = apps.iter().find(|app| app.name == one.app.as_str()).unwrap();
            let count = need.gpus.as_ref().map_or(0, |need| need.count);
            assert_eq!(one.gpus.len(), count as usize, "{}", one.id);
        }
        let had = self.kinds();
        let holds =
            |refusal: &Refusal| refusal.lacks.is_disjoint(&more_of_nodes(&refusal.had, &had));
        self.refusals.retain(|_, refusal| holds(refusal));
        self.refusals.values_mut().for_each(|refusal| refusal.missing = 0);
        for short in plan.shortfalls.iter().filter(|short| short.room != RoomMaking::UnderWay) {
            let refusal = Refusal {
                missing: short.missing,
                lacks: short.decision.candidates.iter().filter_map(|one| one.lack).collect(),
                in_vain: short.room == RoomMaking::InVain,
                had: had.clone(),
            };
            self.refusals.insert(short.app.to_string(), refusal);
        }
        plan.actions.len()
    }

    fn snapshot(&self, now: u64, apps: &[App]) -> Snapshot {
        let wanted = apps.iter().filter_map(|app| {
            let share = app.shares.iter().find(|share| share.location == self.name)?;
            Some(location::WantedApp {
                project: Default::default(),
                app: app.name.parse().unwrap(),
                main: goal(app, share.count),
                canary: None,
                command: None,
                budget: share.budget,
                make_room: share.make_room,
                rollout: Default::default(),
            })
        });
        let nodes = self.nodes.iter().map(|(name, capacity, gpus)| location::NodeState {
            name: name.clone(),
            reachable: true,
            cordon: None,
            capacity: *capacity,
            others: Capacity::default(),
            gpus: gpus.clone(),
            others_gpus: GpuShares::default(),
            images: BTreeSet::new(),
            pulling: BTreeSet::new(),
            runtimes: Vec::new(),
            traits: Traits::default(),
            reached: Vec::new(),
        });
        let (wanted, nodes) = (wanted.collect(), nodes.collect());
        let instances = self.instances.clone();
        Snapshot { now: Timestamp(now), seed: now, wanted, instances, nodes }
    }
}

fn goal(app: &App, count: u32) -> Goal {
    Goal {
        release: ReleaseNumber(1),
        image: Digest::from_sha256([7; 32]),
        count,
        each: app.each,
        gpus: app.gpus.clone(),
        runtime: Default::default(),
        needs: Vec::new(),
        placement: Default::default(),
        priority: app.priority,
        released_at: Timestamp(0),
    }
}

fn placed(
    id: &InstanceId,
    app: &App,
    (node, gpus): (NodeName, &GpuShares),
    now: Timestamp,
) -> PlacedInstance {
    PlacedInstance {
        id: id.clone(),
        project: Default::default(),
        app: app.name.parse().unwrap(),
        release: ReleaseNumber(1),
        is_command: false,
        node,
        each: app.each,
        gpus: gpus.clone(),
        standing: Standing::NotReady,
        replaces: None,
        pinned: None,
        yields: Some(app.priority),
        created_at: now,
    }
}

impl World {
    fn new(places: &[Vec<u64>]) -> Self {
        let without = |nodes: &Vec<u64>| nodes.iter().map(|units| (*units, Vec::new())).collect();
        Self::with_gpus(&places.iter().map(without).collect::<Vec<_>>())
    }

    /// Of each node how much memory it has, and the GiB of each of its GPUs.
    fn with_gpus(places: &[Vec<(u64, Vec<u64>)>]) -> Self {
        let places = places.iter().enumerate().map(|(idx, nodes)| Place::new(idx, nodes));
        Self { now: 1, apps: Vec::new(), places: places.collect(), left: Vec::new() }
    }

    fn want(&mut self, name: &str, number: u8, of: (u32, u64)) {
        self.want_with(name, number, of, None);
    }

    fn want_with(
        &mut self,
        name: &str,
        number: u8,
        (count, units): (u32, u64),
        gpus: Option<GpuNeed>,
    ) {
        let priority = Priority::new(number).unwrap();
        let (name, each, shares) = (name.to_owned(), memory(units), Vec::new());
        self.apps.push(App { name, priority, count, each, gpus, shares });
        self.apps.sort_by_key(|app| std::cmp::Reverse(app.priority));
    }

    /// An app as the global scheduler sees it, by what the locations say.
    fn wanted(&self, app: &App) -> global::WantedApp {
        let mut wanted = global::WantedApp {
            project: Default::default(),
            app: app.name.parse().unwrap(),
            count: app.count,
            max: 2 * app.count.max(1),
            each: app.each,
            gpus: app.gpus.clone(),
            placement: Default::default(),
            tried: None,
            refusals: BTreeMap::new(),
            may_make_room: BTreeSet::new(),
            priority: app.priority,
            pinned: None,
            demand: Default::default(),
            shares: app.shares.clone(),
        };
        for place in &self.places {
            let refusal = place.refusals.get(&app.name);
            if let Some(Refusal { lacks, in_vain, .. }) = refusal {
                let why = (*lacks.first().unwrap(), "no node has room".to_owned());
                wanted.refusals.insert(place.name.clone(), why);
                wanted.may_make_room.extend((!in_vain).then(|| place.name.clone()));
            }
            let running = place.running(&app.name);
            let share = wanted.shares.iter_mut().find(|share| share.location == place.name);
            if let Some(share) = share {
                let missing = share.count.saturating_sub(running);
                share.ready = running.min(share.count);
                share.refused = refusal.map_or(0, |refusal| refusal.missing).min(missing);
                share.make_room = share.make_room.min(missing);
                share.budget_in_force = share.budget.max(running);
            }
        }
        wanted
    }

    /// What the global scheduler does; true when it changed something.
    fn allot(&mut self) -> bool {
        let mut changed = false;
        let mut states: Vec<_> = self.places.iter().map(|place| place.state(&self.apps)).collect();
        for idx in 0..self.apps.len() {
            let wanted = self.wanted(&self.apps[idx]);
            let shares = plan_shares(Timestamp(1), &wanted, &states).shares;
            for state in &mut states {
                let count = |shares: &[Share]| {
                    shares.iter().find(|share| share.location == state.name).map_or(0, |s| s.count)
                };
                for _ in count(&wanted.shares)..count(&shares) {
                    let each = (wanted.each, wanted.gpus.as_ref());
                    state.take(&wanted.placement, each, Some(wanted.priority));
                }
            }
            let given = |shares: &[Share]| {
                let each = shares.iter().map(|s| (s.location.clone(), s.count, s.make_room));
                each.collect::<Vec<_>>()
            };
            changed |= given(&self.apps[idx].shares) != given(&shares);
            self.apps[idx].shares = shares;
        }
        changed
    }

    /// One round of both tiers; true when something is still under way.
    fn round(&mut self) -> bool {
        self.now += 1;
        let mut moves = self.allot();
        for place in &mut self.places {
            let refused = place.refused();
            for n in 0.. {
                assert!(n < 100, "a location never ends");
                if place.plan(self.now * 100 + n, &self.apps, &mut self.left) == 0 {
                    break;
                }
                moves = true;
            }
            moves |= place.refused() != refused;
            moves |= place.instances.iter().any(|one| one.standing != Standing::Ready);
            place.instances.retain(|one| one.standing != Standing::Leaving);
            place.instances.iter_mut().for_each(|one| one.standing = Standing::Ready);
        }
        moves
    }

    fn settle(&mut self) {
        let ends = (0..200).any(|_| !self.round());
        assert!(ends, "it goes round in circles: {:#?}", self.apps);
    }

    fn running(&self, app: &str) -> u32 {
        self.places.iter().map(|place| place.running(app)).sum()
    }
}

#[test]
fn what_leaves_goes_elsewhere_or_waits_and_comes_back() {
    let mut world = World::new(&[vec![2], vec![1]]);
    world.want("batch", 20, (2, 1));
    world.want("shop", 50, (1, 1));
    world.settle();
    assert_eq!((world.running("batch"), world.running("shop"), world.left.len()), (2, 1, 0));
    world.want("web", 80, (2, 1));
    world.settle();
    let running = |world: &World| ["web", "shop", "batch"].map(|app| world.running(app));
    assert_eq!(running(&world), [2, 1, 0], "{:?}", world.left);
    // Those of the lowest priority, and nobody else.
    assert!(world.left.len() <= 3, "{:?}", world.left);
    world.apps.iter_mut().find(|app| app.name == "web").unwrap().count = 0;
    world.settle();
    assert_eq!(running(&world), [0, 1, 2]);
}

#[test]
fn what_was_on_a_lost_machine_takes_the_room_of_what_matters_least() {
    let mut world = World::new(&[vec![2, 2]]);
    world.want("web", 80, (2, 1));
    world.want("batch", 20, (2, 1));
    world.settle();
    let lost = world.places[0].nodes.pop().unwrap().0;
    world.places[0].instances.retain(|one| one.node != lost);
    world.settle();
    assert_eq!((world.running("web"), world.running("batch")), (2, 0));
}

#[test]
fn gpus_are_shared_out_and_what_waits_for_them_starts_when_they_are_freed() {
    let mut world = World::with_gpus(&[vec![(9, vec![]), (9, vec![8])], vec![(9, vec![8, 8])]]);
    world.want_with("whole", 50, (2, 1), Some(need(1, 0, &[])));
    world.want_with("half", 50, (1, 1), Some(need(1, 4, &[])));
    world.want_with("other", 50, (1, 1), Some(need(1, 1, &["odd"])));
    world.settle();
    let running = |world: &World| ["whole", "half", "other"].map(|app| world.running(app));
    assert_eq!(running(&world), [2, 1, 0]);
    world.want_with("pair", 50, (1, 1), Some(need(2, 4, &["even"])));
    world.settle();
    assert_eq!((running(&world), world.running("pair")), ([2, 1, 0], 0));
    world.apps.iter_mut().find(|app| app.name == "whole").unwrap().count = 0;
    world.settle();
    assert_eq!((running(&world), world.running("pair")), ([0, 1, 0], 1));
}

fn needs() -> impl Strategy<Value = Option<GpuNeed>> {
    let models = prop::sample::subsequence(vec!["even", "odd"], 0..=2);
    let need = (1..3_u32, 0..4_u64, models).prop_map(|(n, gib, models)| need(n, gib, &models));
    prop::option::of(need)
}

proptest! {
    /// Whatever comes and goes: nothing is promised twice, who leaves stands a gap lower, their number is bounded,
    /// it comes to an end, and then the first that waits could be nowhere.
    #[test]
    fn both_tiers_together_are_safe_come_to_an_end_and_leave_out_nothing_that_matters_more(
        places in prop::collection::vec(
            prop::collection::vec((1..6_u64, prop::collection::vec(1..5_u64, 0..3)), 1..3), 1..4),
        waves in prop::collection::vec(
            (
                prop::collection::vec((1..=100_u8, 0..4_u32, 1..4_u64, needs()), 1..4),
                any::<prop::sample::Index>(),
            ),
            1..4,
        ),
    ) {
        let mut world = World::with_gpus(&places);
        for (wave, (apps, gone)) in waves.iter().enumerate() {
            for (idx, (number, count, units, need)) in apps.iter().enumerate() {
                let name = format!("a{wave}-{idx}");
                world.want_with(&name, *number, (*count, *units), need.clone());
            }
            let n_before: usize = world.places.iter().map(|place| place.instances.len()).sum();
            let n_new: u32 = apps.iter().map(|(_, count, ..)| count).sum();
            world.left.clear();
            world.settle();
            for (victim, by) in &world.left {
                prop_assert!(Some(*victim) <= by.displaces(), "{victim} left for {by}");
            }
            // Each may push away what stands a gap lower, of a third of its size or an eighth of its GPUs, and so on.
            let most = (n_before + n_new as usize) * 10 * 8;
            prop_assert!(world.left.len() <= most, "{} left", world.left.len());
            let waits = world.apps.iter().find(|app| world.running(&app.name) < app.count);
            if let Some(app) = waits {
                let limit = app.priority.displaces();
                let stays = |one: &PlacedInstance| one.yields > limit || limit.is_none();
                // What another one was given and has no room for is not given to a third.
                let all_run = |place: &&Place| world.apps.iter().all(|other| {
                    let mut given = other.shares.iter().filter(|share| share.location == place.name);
                    other.name == app.name || given.all(|share| share.count <= place.running(&other.name))
                });
                for place in world.places.iter().filter(all_run) {
                    for (node, capacity, gpus) in &place.nodes {
                        let free = capacity.minus(place.promised(node, stays));
                        let gpus = free_gpus(gpus, &place.gpus(node, stays));
                        let gpus = app.gpus.as_ref().is_none_or(|need| choose(need, &gpus).is_some());
                        let fits = free.holds(app.each) && gpus;
                        prop_assert!(!fits, "{} fits on {} {node}", app.name, place.name);
                    }
                }
            }
            let idx = gone.index(world.apps.len());
            world.apps[idx].count = 0;
        }
    }
}
