use longshore_types::{ByteCount, Lack, MilliCpu, Portion};
use proptest::prelude::*;

use super::*;

const EACH: Capacity =
    Capacity { cpu: MilliCpu(100), memory: ByteCount::mib(100), disk: ByteCount::mib(300) };

fn image() -> Digest {
    Digest::from_sha256([7; 32])
}

fn wanted(release: u64, count: u32, budget: u32) -> WantedApp {
    WantedApp {
        project: ProjectName::default(),
        app: "web".parse().unwrap(),
        main: goal(release, count),
        canary: None,
        command: None,
        budget,
        make_room: 0,
        rollout: Rollout::default(),
    }
}

fn goal(release: u64, count: u32) -> Goal {
    Goal {
        release: ReleaseNumber(release),
        image: image(),
        count,
        each: EACH,
        gpus: None,
        runtime: RuntimeName::Embedded,
        needs: Ability::ALWAYS.to_vec(),
        placement: Placement::default(),
        priority: Priority::default(),
        released_at: Timestamp(0),
    }
}

fn node(name: &str, room_for: u64) -> NodeState {
    node_with(name, room_for, room_for)
}

/// A node with memory for some instances and disk for perhaps another number.
fn node_with(name: &str, memory_for: u64, disk_for: u64) -> NodeState {
    let memory = ByteCount::mib(100 * memory_for);
    let disk = ByteCount::mib(300 * disk_for);
    let capacity = Capacity { cpu: MilliCpu(1_000_000), memory, disk };
    NodeState {
        name: name.parse().unwrap(),
        reachable: true,
        cordon: None,
        capacity,
        others: Capacity::default(),
        gpus: Vec::new(),
        others_gpus: GpuShares::default(),
        images: BTreeSet::new(),
        pulling: BTreeSet::new(),
        runtimes: Vec::new(),
        traits: Traits::default(),
        reached: Vec::new(),
    }
}

/// A location that carries out its plans as a real one would, with instances that become ready and
/// vanish when they are told to.
struct World {
    snapshot: Snapshot,
}

impl World {
    fn new(nodes: Vec<NodeState>) -> Self {
        let snapshot =
            Snapshot { now: Timestamp(1), seed: 42, wanted: vec![], instances: vec![], nodes };
        Self { snapshot }
    }

    fn want(&mut self, wanted: WantedApp) {
        self.snapshot.wanted = vec![wanted];
    }

    fn apply(&mut self) -> Plan {
        let plan = plan(&self.snapshot);
        self.snapshot.now = Timestamp(self.snapshot.now.0 + 1);
        self.snapshot.seed += 1;
        for action in &plan.actions {
            match action {
                Action::Drain { instance, .. } => self.set(instance, Standing::Leaving),
                Action::Place {
                    instance,
                    project,
                    app,
                    release,
                    is_command,
                    node,
                    gpus,
                    replaces,
                    ..
                } => {
                    let goal = self.goal(app, *release);
                    let (each, yields) = (goal.each, Some(goal.priority));
                    self.snapshot.instances.push(PlacedInstance {
                        id: instance.clone(),
                        project: project.clone(),
                        app: app.clone(),
                        release: *release,
                        is_command: *is_command,
                        node: node.clone(),
                        each,
                        gpus: gpus.clone(),
                        standing: Standing::NotReady,
                        replaces: replaces.clone(),
                        pinned: None,
                        yields,
                        created_at: self.snapshot.now,
                    });
                }
            }
        }
        plan
    }

    /// What is wanted of a release.
    fn goal(&self, app: &AppName, release: ReleaseNumber) -> Goal {
        let of_app = self.snapshot.wanted.iter().filter(|wanted| wanted.app == *app);
        let mut goals = of_app.flat_map(|wanted| {
            [Some(&wanted.main), wanted.canary.as_ref(), wanted.command.as_ref()]
        });
        goals.find_map(|goal| goal.filter(|goal| goal.release == release)).unwrap().clone()
    }

    fn set(&mut self, id: &InstanceId, standing: Standing) {
        for instance in self.snapshot.instances.iter_mut().filter(|i| i.id == *id) {
            instance.standing = standing;
        }
    }

    /// What is on its way becomes ready; what is leaving is gone.
    fn let_time_pass(&mut self) {
        self.snapshot.instances.retain(|i| i.standing != Standing::Leaving);
        for instance in &mut self.snapshot.instances {
            if instance.standing == Standing::NotReady {
                instance.standing = Standing::Ready;
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            if self.apply().actions.is_empty()
                && self.n(Standing::NotReady) == 0
                && self.n(Standing::Leaving) == 0
            {
                return;
            }
            self.let_time_pass();
        }
        panic!("does not settle: {:#?}", self.snapshot);
    }

    fn n(&self, standing: Standing) -> usize {
        self.snapshot.instances.iter().filter(|i| i.standing == standing).count()
    }

    fn ready_of(&self, release: u64) -> usize {
        let ready = |i: &&PlacedInstance| i.standing == Standing::Ready && i.release.0 == release;
        self.snapshot.instances.iter().filter(ready).count()
    }
}

/// Where the first instance goes, and why.
fn first_of(nodes: &[NodeState]) -> (String, String) {
    let mut world = World::new(nodes.to_vec());
    world.want(wanted(1, 1, 2));
    match &world.apply().actions[..] {
        [Action::Place { node, decision, .. }] => (node.to_string(), decision.why.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_has_the_image_is_better_and_one_that_pulls_it_half_as_much() {
    let bare = |room_for| node("n1", room_for);
    let has = |name, room_for| NodeState { images: [image()].into(), ..node(name, room_for) };
    let pulls = |name, room_for| NodeState { pulling: [image()].into(), ..node(name, room_for) };
    // What a bonus is worth lies between these, in instances of 100 MiB.
    for (nodes, chosen, why) in [
        ([bare(100), node("n2", 100)], "n1", "must pull the image"),
        ([bare(100), has("n2", 100)], "n2", "has the image"),
        ([bare(100), has("n2", 60)], "n2", "has the image"),
        ([bare(100), has("n2", 59)], "n1", "must pull the image"),
        ([bare(100), pulls("n2", 80)], "n2", "is pulling the image"),
        ([bare(100), pulls("n2", 79)], "n1", "must pull the image"),
        ([pulls("n1", 100), has("n2", 80)], "n2", "has the image"),
        ([pulls("n1", 100), has("n2", 79)], "n1", "is pulling the image"),
    ] {
        let (found, told) = first_of(&nodes);
        assert_eq!(found, chosen, "{told}");
        assert!(told.contains(why), "{why:?} is not in {told:?}");
    }
    // Another image is of no use, and one that is whole has come, whatever else is said of it.
    let other = BTreeSet::from([Digest::from_sha256([8; 32])]);
    let others = NodeState { images: other.clone(), pulling: other, ..node("n2", 100) };
    assert_eq!(first_of(&[bare(100), others]).0, "n1");
    let both = NodeState { pulling: [image()].into(), ..has("n2", 60) };
    assert!(first_of(&[bare(100), both]).1.contains("has the image"));
}

#[test]
fn apps_spread_before_they_go_where_the_image_is() {
    let has = NodeState { images: [image()].into(), ..node("n2", 10) };
    let mut world = World::new(vec![node("n1", 10), has]);
    world.want(wanted(1, 2, 4));
    world.apply();
    let nodes = world.snapshot.instances.iter().map(|one| one.node.as_str());
    assert_eq!(nodes.collect::<BTreeSet<_>>(), ["n1", "n2"].into());
}

#[test]
fn a_first_deploy_starts_everything_at_once_and_spreads() {
    let mut world = World::new(vec![node("n1", 10), node("n2", 10)]);
    world.want(wanted(1, 4, 8));
    let plan = world.apply();
    assert_eq!(plan.actions.len(), 4);
    let on =
        |name: &str| world.snapshot.instances.iter().filter(|i| i.node.as_str() == name).count();
    assert_eq!((on("n1"), on("n2")), (2, 2));
    assert!(world.apply().actions.is_empty());
}

#[test]
fn a_new_release_replaces_the_old_one_by_one_and_never_serves_with_fewer() {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, 3, 6));
    world.settle();
    world.want(wanted(2, 3, 6));
    for _ in 0..50 {
        world.apply();
        assert!(world.n(Standing::Ready) >= 3, "{:#?}", world.snapshot);
        assert!(world.n(Standing::NotReady) <= 1);
        world.let_time_pass();
    }
    assert_eq!((world.ready_of(2), world.ready_of(1)), (3, 0));
}

#[test]
fn a_new_release_that_never_becomes_ready_leaves_the_old_one_serving() {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, 2, 4));
    world.settle();
    world.want(wanted(2, 2, 4));
    for _ in 0..10 {
        world.apply();
    }
    assert_eq!((world.ready_of(1), world.n(Standing::NotReady)), (2, 1));
}

fn rollout(max_surge: u32, max_unavailable: u32) -> Rollout {
    let (max_surge, max_unavailable) = (Portion::Count(max_surge), Portion::Count(max_unavailable));
    Rollout { max_surge, max_unavailable, ..Rollout::default() }
}

#[test]
fn a_rollout_goes_as_wide_as_it_may() {
    for (surge, unavailable) in [(3, 0), (0, 2), (2, 1), (0, 4)] {
        let mut world = World::new(vec![node("n1", 20)]);
        world.want(wanted(1, 4, 8));
        world.settle();
        world.want(WantedApp { rollout: rollout(surge, unavailable), ..wanted(2, 4, 8) });
        let (mut most, mut fewest) = (0, 4);
        for _ in 0..50 {
            world.apply();
            let leaving = world.n(Standing::Leaving);
            most = most.max(world.snapshot.instances.len() - leaving);
            fewest = fewest.min(world.n(Standing::Ready));
            world.let_time_pass();
        }
        let bounds = ((4 + surge) as usize, (4 - unavailable) as usize);
        assert_eq!((most, fewest), bounds, "{surge} more, {unavailable} less");
        assert_eq!((world.ready_of(2), world.snapshot.instances.len()), (4, 4));
    }
}

#[test]
fn a_release_that_never_becomes_ready_takes_no_more_than_may_be_missing() {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, 4, 8));
    world.settle();
    world.want(WantedApp { rollout: rollout(0, 1), ..wanted(2, 4, 8) });
    for _ in 0..10 {
        world.apply();
        world.snapshot.instances.retain(|instance| instance.standing != Standing::Leaving);
    }
    assert_eq!((world.ready_of(1), world.n(Standing::NotReady)), (3, 1));
}

#[test]
fn canaries_run_beside_all_of_the_main_release_and_become_the_first_of_their_own() {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, 3, 6));
    world.settle();
    let beside = |release| WantedApp { canary: Some(goal(release, 2)), ..wanted(1, 3, 6) };
    world.want(beside(2));
    world.settle();
    assert_eq!((world.ready_of(1), world.ready_of(2)), (3, 2));
    // An instance of the main release that is lost comes back as one of that.
    let lost = world.snapshot.instances[0].id.clone();
    world.snapshot.instances.retain(|instance| instance.id != lost);
    world.settle();
    assert_eq!((world.ready_of(1), world.ready_of(2)), (3, 2));
    // Another one is tried instead: the canaries before it go.
    world.want(beside(3));
    world.settle();
    assert_eq!((world.ready_of(1), world.ready_of(2), world.ready_of(3)), (3, 0, 2));
    let canaries = world.snapshot.instances.iter().filter(|i| i.release.0 == 3);
    let canaries: Vec<_> = canaries.map(|canary| canary.id.clone()).collect();
    world.want(wanted(3, 3, 6));
    world.settle();
    assert_eq!((world.ready_of(1), world.ready_of(3)), (0, 3));
    assert!(canaries.iter().all(|id| world.snapshot.instances.iter().any(|i| i.id == *id)));
    // And back from a try.
    world.want(WantedApp { canary: Some(goal(4, 1)), ..wanted(3, 3, 6) });
    world.settle();
    world.want(wanted(3, 3, 6));
    world.settle();
    assert_eq!((world.ready_of(3), world.snapshot.instances.len()), (3, 3));
}

#[test]
fn a_release_command_runs_once_beside_what_there_is_and_goes_when_it_is_over() {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, 2, 4));
    world.settle();
    world.want(WantedApp { command: Some(goal(2, 1)), ..wanted(1, 2, 4) });
    world.settle();
    let commands =
        |world: &World| world.snapshot.instances.iter().filter(|one| one.is_command).count();
    assert_eq!((world.ready_of(1), commands(&world)), (2, 1));
    // It has ended: that is no reason to run it again.
    let ended = world.snapshot.instances.iter().find(|one| one.is_command).unwrap().id.clone();
    world.set(&ended, Standing::NotReady);
    assert!(world.apply().actions.is_empty());
    // Its node is gone for good, so nobody knows whether it did.
    world.set(&ended, Standing::Lost);
    assert_eq!(world.apply().actions.len(), 1);
    world.want(wanted(2, 2, 4));
    world.settle();
    world.snapshot.instances.retain(|one| one.id != ended);
    assert_eq!((world.ready_of(2), commands(&world)), (2, 0));
}

#[test]
fn a_budget_without_room_replaces_by_going_one_down() {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, 2, 2));
    world.settle();
    world.want(wanted(2, 2, 2));
    for _ in 0..30 {
        world.apply();
        assert!(world.snapshot.instances.len() <= 2);
        assert!(world.n(Standing::Ready) >= 1);
        world.let_time_pass();
    }
    assert_eq!(world.ready_of(2), 2);
}

#[test]
fn what_does_not_fit_is_a_shortfall_that_names_every_node() {
    let mut world = World::new(vec![node("n1", 1), node_with("n2", 5, 0)]);
    world.want(wanted(1, 3, 6));
    let plan = world.apply();
    assert_eq!(plan.actions.len(), 1);
    let shortfall = &plan.shortfalls[0];
    assert_eq!(shortfall.missing, 2);
    let mut whys: Vec<_> = shortfall.decision.candidates.iter().map(|c| c.why.as_str()).collect();
    whys.sort_unstable();
    let memory = "refused: 100 MiB of memory needed, 0 B free; 300 MiB of disk needed, 0 B free";
    assert_eq!(whys, [memory, "refused: 300 MiB of disk needed, 0 B free"]);
}

fn offer(runtime: RuntimeName, lacks: &[Ability]) -> RuntimeOffer {
    let lacks = lacks.iter().map(|ability| (*ability, "it is old".to_owned())).collect();
    RuntimeOffer { runtime, path: None, version: None, unavailable: None, lacks }
}

#[test]
fn an_instance_goes_where_its_runtime_is_and_can_do_what_it_needs() {
    let mut world = World::new(vec![node("n1", 9), node("n2", 9), node("n3", 9)]);
    world.snapshot.nodes[1].runtimes = vec![offer(RuntimeName::Runc, &[Ability::Limits])];
    world.snapshot.nodes[2].runtimes = vec![offer(RuntimeName::Runc, &[Ability::Gpu])];
    let main = Goal { runtime: RuntimeName::Runc, ..goal(1, 2) };
    world.want(WantedApp { main, ..wanted(1, 2, 4) });
    let plan = world.apply();
    assert_eq!(plan.actions.len(), 2);
    for action in &plan.actions {
        let Action::Place { node, decision, .. } = action else { panic!("{action:?}") };
        assert_eq!(node.as_str(), "n3");
        let whys: Vec<_> = decision.candidates.iter().map(|c| c.why.as_str()).collect();
        assert!(whys.contains(&"refused: no runc: the node does not know it"), "{whys:?}");
        assert!(whys.contains(&"refused: runc lacks limits: it is old"), "{whys:?}");
    }
}

#[test]
fn nodes_are_chosen_by_their_labels_their_country_and_how_many_they_have() {
    let labelled = |name: &str, country: &str, label: &str| {
        let labels = label.parse().into_iter().collect();
        NodeState { traits: Traits { country: country.parse().ok(), labels }, ..node(name, 9) }
    };
    let mut world = World::new(vec![
        labelled("n1", "NL", "disk=hdd"),
        labelled("n2", "NL", "disk=nvme"),
        labelled("n3", "US", "disk=nvme"),
        labelled("n4", "", "disk=nvme"),
    ]);
    let placement = Placement {
        labels: ["disk=nvme".parse().unwrap()].into(),
        jurisdiction: ["eu".parse().unwrap()].into(),
        max_per_node: Some(2),
        ..Placement::default()
    };
    let of = |release| Goal { placement: placement.clone(), ..goal(release, 3) };
    world.want(WantedApp { main: of(1), ..wanted(1, 3, 6) });
    let plan = world.apply();
    assert!(world.snapshot.instances.iter().all(|one| one.node.as_str() == "n2"));
    let [shortfall] = &plan.shortfalls[..] else { panic!("{plan:#?}") };
    let mut told: Vec<_> = shortfall.decision.candidates.iter().collect();
    told.sort_by_key(|one| &one.name);
    let whys: Vec<_> = told.iter().map(|one| (one.lack.unwrap(), one.why.as_str())).collect();
    let abroad = "refused: it is in US, and placement.jurisdiction is eu";
    let somewhere = "refused: it is in an unknown country, and placement.jurisdiction is eu";
    let expected = [
        (Lack::Label, "refused: no label disk=nvme, but disk=hdd"),
        (Lack::Spread, "refused: it has 2 of r1, and placement.max_per_node = 2"),
        (Lack::Jurisdiction, abroad),
        (Lack::Jurisdiction, somewhere),
    ];
    assert_eq!((whys, shortfall.missing), (expected.to_vec(), 1));
    // The next release has room beside this one.
    world.let_time_pass();
    world.want(WantedApp { main: Goal { count: 2, ..of(2) }, ..wanted(2, 2, 6) });
    world.settle();
    assert_eq!((world.ready_of(1), world.ready_of(2)), (0, 2));
}

#[test]
fn an_instance_whose_runtime_no_node_has_waits_and_says_so() {
    let mut world = World::new(vec![node("n1", 9)]);
    let main = Goal { runtime: RuntimeName::Runsc, ..goal(1, 1) };
    world.want(WantedApp { main, ..wanted(1, 1, 2) });
    let plan = world.apply();
    assert_eq!((plan.actions.len(), plan.shortfalls.len()), (0, 1));
    let decision = &plan.shortfalls[0].decision;
    assert_eq!(decision.why, "no node can run it with the runtime runsc");
    world.snapshot.nodes[0].runtimes = vec![offer(RuntimeName::Runsc, &[])];
    assert_eq!(world.apply().actions.len(), 1);
}

#[test]
fn a_lost_instance_is_replaced_inside_the_budget_and_drained_when_it_returns() {
    let mut world = World::new(vec![node("n1", 10), node("n2", 10)]);
    world.want(wanted(1, 2, 3));
    world.settle();
    let lost = world.snapshot.instances[0].id.clone();
    world.set(&lost, Standing::Lost);
    world.settle();
    assert_eq!((world.n(Standing::Ready), world.n(Standing::Lost)), (2, 1));
    world.set(&lost, Standing::Ready);
    world.settle();
    assert_eq!(world.snapshot.instances.len(), 2);
}

#[test]
fn an_app_that_is_not_wanted_is_drained() {
    let mut world = World::new(vec![node("n1", 10)]);
    world.want(wanted(1, 2, 4));
    world.settle();
    world.snapshot.wanted.clear();
    world.settle();
    assert!(world.snapshot.instances.is_empty());
}

#[test]
fn an_instance_starts_only_on_a_node_that_reaches_what_it_needs() {
    let mut world = World::new(vec![node("n1", 9), node("n2", 1), node("n3", 9)]);
    let tried = |error: Option<&str>| Reached {
        address: "db:5432".parse().unwrap(),
        at: Timestamp(7),
        error: error.map(str::to_owned),
    };
    world.snapshot.nodes[0].reached = vec![tried(Some("connection refused"))];
    world.snapshot.nodes[1].reached = vec![tried(None)];
    let placement =
        Placement { reach: ["db:5432".parse().unwrap()].into(), ..Placement::default() };
    world.want(WantedApp { main: Goal { placement, ..goal(1, 2) }, ..wanted(1, 2, 4) });
    let plan = world.apply();
    assert_eq!(world.snapshot.instances[0].node.as_str(), "n2");
    let told: Vec<_> = plan.shortfalls[0]
        .decision
        .candidates
        .iter()
        .map(|one| (one.lack, one.why.as_str()))
        .collect();
    assert_eq!(
        told[0],
        (Some(Lack::Reach), "refused: db:5432 does not answer there: connection refused")
    );
    assert_eq!(told[2], (Some(Lack::Reach), "refused: nobody has tried db:5432 there yet"));
    // What runs where it does not answer any more stays.
    world.settle();
    world.snapshot.nodes[1].reached = vec![tried(Some("no answer"))];
    assert!(world.apply().actions.is_empty());
}

mod drained;
mod gpus;
mod room;

proptest! {
    /// Safety at every step: never over a node, never over the budget, never fewer ready than
    /// before or than the rollout has to leave. Progress: every wish is reached when instances become ready.
    #[test]
    fn plans_are_safe_and_get_there(
        rooms in prop::collection::vec(((0..9_u64, 0..9_u64, 0..9_u32), any::<bool>()), 1..4),
        (is_labelled, most) in (any::<bool>(), prop::option::of(1..4_u32)),
        wishes in prop::collection::vec((0..6_u32, 0..4_u32, 0..3_u32, any::<bool>()), 1..6),
        (surge, unavailable) in (0..4_u32, 0..4_u32).prop_filter("neither", |(s, u)| s + u > 0),
        chaos in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let label = || "disk=nvme".parse::<longshore_types::Label>().unwrap();
        let node = |(idx, ((memory, disk, cpu), has_label)): (usize, &((u64, u64, u32), bool))| {
            let mut node = node_with(&format!("n{idx}"), *memory, *disk);
            node.capacity.cpu = MilliCpu(100 * cpu);
            node.traits.labels.extend(has_label.then(label));
            node
        };
        let nodes: Vec<_> = rooms.iter().enumerate().map(node).collect();
        let labels = is_labelled.then(label).into_iter().collect();
        let placement = Placement { labels, max_per_node: most, ..Placement::default() };
        let may_be_on = |node: &NodeState| node.traits.labels.is_superset(&placement.labels);
        let open = rooms.iter().filter(|(_, has_label)| *has_label || !is_labelled);
        let smallest = |((memory, disk, cpu), _): &((u64, u64, u32), bool)| {
            *memory.min(disk).min(&u64::from(*cpu))
        };
        let open: Vec<u64> = open.map(smallest).collect();
        let total: u64 = open.iter().sum();
        let mut world = World::new(nodes);
        let mut release = 1;
        let mut chaos = chaos.into_iter();
        for (count, extra, n_canaries, new_release) in wishes {
            release += u64::from(new_release);
            let rollout = rollout(surge, unavailable);
            let enough = count - rollout.unavailable(count);
            let n_canaries = n_canaries.min(count);
            let of = |release, count| Goal { placement: placement.clone(), ..goal(release, count) };
            let canary = (n_canaries > 0).then(|| of(release + 1000, n_canaries));
            let main = of(release, count);
            world.want(WantedApp { rollout, canary, main, ..wanted(release, count, count + extra) });
            for _ in 0..60 {
                // Canaries come on top, and fewer of them are nobody's loss.
                let served =
                    |world: &World| world.n(Standing::Ready) - world.ready_of(release + 1000);
                let before = served(&world);
                let occupied = world.snapshot.instances.len();
                world.apply();
                let placed = world.snapshot.instances.len() - occupied;
                prop_assert!(placed == 0 || world.snapshot.instances.len() <= (count + extra) as usize);
                if extra > 0 {
                    prop_assert!(served(&world) >= before.min(enough as usize));
                }
                for node in &world.snapshot.nodes {
                    let on = world.snapshot.instances.iter().filter(|i| i.node == node.name);
                    let n_on = on.clone().count() as u64;
                    prop_assert!(n_on * 100 <= node.capacity.memory.0 >> 20);
                    prop_assert!(n_on * 300 <= node.capacity.disk.0 >> 20);
                    prop_assert!(n_on * 100 <= u64::from(node.capacity.cpu.0));
                    prop_assert!(n_on == 0 || may_be_on(node), "{:#?}", world.snapshot);
                    let mut of_release = BTreeMap::<_, u32>::new();
                    for one in on.filter(|one| one.standing != Standing::Leaving) {
                        *of_release.entry(one.release).or_default() += 1;
                    }
                    let is_spread = |n: &u32| most.is_none_or(|most| *n <= most);
                    prop_assert!(of_release.values().all(is_spread), "{:#?}", world.snapshot);
                }
                world.let_time_pass();
                if let (Some(index), false) = (chaos.next(), world.snapshot.instances.is_empty()) {
                    let idx = index.index(world.snapshot.instances.len());
                    world.snapshot.instances[idx].standing = Standing::NotReady;
                }
            }
            // A surge needs room for one more; without it an old release may have to stay. Where only so many of a release
            // may be on one node, those count that have room for all of it.
            let needed = u64::from(count + 1 + n_canaries);
            let n_roomy = open.iter().filter(|room| **room > needed).count() as u64;
            let is_enough = |most: u32| n_roomy * u64::from(most) >= u64::from(count.max(n_canaries));
            if total > needed && most.is_none_or(is_enough) {
                let canaries = n_canaries.min(extra) as usize;
                prop_assert_eq!(world.ready_of(release), count as usize);
                prop_assert_eq!(world.ready_of(release + 1000), canaries);
                prop_assert_eq!(world.snapshot.instances.len(), count as usize + canaries);
            }
        }
    }

    /// A plan of the apps that something has to happen to is the plan of all.
    #[test]
    fn a_plan_of_some_apps_is_that_of_all_where_the_others_are_as_they_should_be(
        (before, after, other) in (0..6_u32, 0..6_u32, 0..6_u32),
        is_new_release in any::<bool>(),
    ) {
        let app = |name: &str, release, count| {
            WantedApp { app: name.parse().unwrap(), ..wanted(release, count, count + 2) }
        };
        let mut world = World::new(vec![node("n1", 9), node("n2", 14)]);
        world.snapshot.wanted = vec![app("other", 1, other), app("web", 1, before)];
        world.settle();
        let release = 1 + u64::from(is_new_release);
        world.snapshot.wanted[1] = app("web", release, after);
        let mut some = world.snapshot.clone();
        some.wanted.remove(0);
        let (listed, left_out): (Vec<_>, Vec<_>) =
            some.instances.into_iter().partition(|instance| instance.app.as_str() == "web");
        for node in &mut some.nodes {
            let there = left_out.iter().filter(|instance| instance.node == node.name);
            node.others_gpus =
                there.clone().fold(GpuShares::default(), |sum, one| sum.plus(&one.gpus));
            node.others = there.fold(Capacity::default(), |sum, one| sum.plus(one.each));
        }
        some.instances = listed;
        prop_assert_eq!(plan(&some), plan(&world.snapshot));
    }
}
