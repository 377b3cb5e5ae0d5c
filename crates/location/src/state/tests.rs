use std::net::Ipv4Addr;
use std::sync::Arc;

use longshore_api::links::{
    Allotment, AppRef, Assignment, Endpoint, Intent, NodeSummary, Reach, ReportChanges,
    ReportTaken, Said, Told,
};
use longshore_types::{
    AppProtocol, ByteCount, Capacity, Decision, Digest, Epoch, Gpu, GpuNeed, InstancePhase,
    Manifest, MilliCpu, Priority, Reached, Release, ReleaseNumber, RestartPolicy, SharedMap,
    Timestamp, Yielding,
};
use serde_json::json;

use super::*;

fn manifest() -> Manifest {
    let ingress = json!({"protocol": "h2c", "slow_start": "3s", "outlier_ejection": false});
    let document = json!({
        "app": "web", "image": "default/web:1", "port": 80, "count": 2, "ingress": ingress,
    });
    Manifest::from_document(&document).unwrap()
}

fn set(generation: u64, release: u64) -> AllotmentSet {
    let manifest = manifest();
    let release = Release {
        secrets: Default::default(),
        number: ReleaseNumber(release),
        image_digest: Digest::from_sha256([1; 32]),
        created_at: Timestamp(0),
        manifest,
    };
    let decision =
        Decision { at: Timestamp(0), chosen: None, why: String::new(), candidates: vec![] };
    let hosts = vec!["web.localhost".parse().unwrap()];
    let generation = Generation(generation);
    let (count, budget, make_room, rollback) = (2, 4, 0, None);
    let (canary, command) = (None, None);
    let allotment = Allotment {
        release: Arc::new(release),
        count,
        canary,
        command,
        budget,
        make_room,
        rollback,
        hosts,
        generation,
        decision,
    };
    AllotmentSet { generation, allotments: vec![allotment], ..AllotmentSet::default() }
}

mod cordons;
mod foreign;
mod hand_over;
mod holds;
mod rounds;

/// A location with one node, or more, that does what it is told.
struct World {
    state: State,
    start: Instant,
    elapsed: Duration,
    seed: u64,
    nodes: Vec<&'static str>,
    /// What each was told.
    told: BTreeMap<NodeName, SharedMap<InstanceId, Arc<Assignment>>>,
    /// What of their reports is known.
    says: BTreeMap<&'static str, ReportChanges<ObservedInstance>>,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let moment = Moment { instant: start, wall: Timestamp(1000) };
        let name = "ams".parse().unwrap();
        let state = State::new(name, AllotmentSet::default(), vec![], moment);
        let (elapsed, nodes) = (Duration::ZERO, vec!["n1"]);
        let (told, says) = Default::default();
        Self { state, start, elapsed, seed: 1, nodes, told, says }
    }

    fn moment(&self) -> Moment {
        let wall = Timestamp(1000 + u64::try_from(self.elapsed.as_millis()).unwrap());
        Moment { instant: self.start + self.elapsed, wall }
    }

    fn take(&mut self, set: &AllotmentSet) {
        assert!(self.state.accepts(set));
        let adopted = self.state.adopted(set);
        self.state.take(adopted);
    }

    /// Goes on until nothing changes any more; never without two that are routed.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.reconcile();
            assert!(self.routed() >= 2, "{:#?}", self.state.table);
            self.wait(500);
            self.obey();
        }
    }

    /// The instances with the releases that others know them by.
    fn releases(&mut self) -> BTreeMap<InstanceId, u64> {
        let report = self.state.report(Some("unix:/x"), self.moment());
        let each = report.instances.iter();
        each.map(|(instance, status)| (instance.clone(), status.release.0)).collect()
    }

    fn wait(&mut self, millis: u64) {
        self.elapsed += Duration::from_millis(millis);
    }

    fn reconcile(&mut self) -> Changes {
        self.seed += 1;
        let changes = self.state.reconcile(self.seed, self.moment());
        self.state.renew_table(self.moment());
        self.check_told();
        if changes.only_places {
            // So nobody has to make another round for it.
            assert_eq!(self.state.reconcile(self.seed, self.moment()), Changes::default());
        }
        changes
    }

    /// What is made anew only where something changed is what it would be if all of it were.
    fn check_told(&mut self) {
        let moment = self.moment();
        let told = self.state.report(None, moment);
        let kept = std::mem::take(&mut self.state.statuses);
        let anew = self.state.report(None, moment);
        self.state.statuses = kept;
        assert!(told.instances.values().eq(anew.instances.values()), "{told:#?}, not {anew:#?}");
        assert_eq!(told.report, anew.report);
        let state = &mut self.state;
        let changed = state.instances.take_changed_nodes();
        let told: BTreeSet<_> = state.roster().nodes().map(|(node, _)| node.clone()).collect();
        self.told.retain(|node, _| told.contains(node));
        for node in told {
            let changed = changed.get(&node).cloned().unwrap_or_default();
            let all = state.assignments(&node);
            if let Some(before) = self.told.get(&node) {
                let after = state.assignments_after(before, &node, changed.iter());
                assert!(after.iter().eq(&all), "{after:#?}, not {all:#?}: {changed:?} changed");
            }
            self.told.insert(node, all);
        }
        let routes = state.allotments.values().filter_map(|allotment| state.route(allotment));
        let routes: Vec<_> = routes.map(Arc::new).collect();
        assert_eq!(state.table.routes, routes);
        let releases = state.allotments.values().flat_map(Allotment::releases);
        let reach: BTreeSet<_> = releases.flat_map(|one| &one.manifest.placement.reach).collect();
        assert!(state.allotments.reach().eq(reach));
    }

    /// Each node reports every instance it was told of, in the phase that `phase` gives.
    fn report(&mut self, phase: impl Fn(&InstanceRecord) -> InstancePhase) {
        for node in self.nodes.clone() {
            self.report_of(node, &phase);
        }
    }

    /// Gives what it says for the first time that it was given. It says what differs from the report before, where
    /// that is known.
    fn report_of(
        &mut self,
        node: &'static str,
        phase: impl Fn(&InstanceRecord) -> InstancePhase,
    ) -> BTreeSet<InstanceId> {
        let has = |record: &&InstanceRecord| record.node.as_str() == node;
        let observe = |record: &InstanceRecord| ObservedInstance {
            phase: phase(record),
            address: Some(Ipv4Addr::new(100, 64, 0, 2)),
            ..ObservedInstance::pending(record.instance.clone(), record.generation)
        };
        let mut observed = Told::default();
        for record in self.state.instances.values().filter(has) {
            observed.insert(record.instance.clone(), Arc::new(observe(record)));
        }
        let says = self.says.entry(node).or_insert_with(|| ReportChanges::new(Timestamp(1)));
        let Said { number, since, instances, gone } = says.of(&observed);
        let report = NodeReport {
            node: node.parse().unwrap(),
            number,
            since,
            gone,
            gate: "unix:/x".to_owned(),
            version: "1".to_owned(),
            capacity: Capacity {
                cpu: MilliCpu(8000),
                memory: ByteCount::gib(8),
                disk: ByteCount::gib(100),
            },
            acknowledged: None,
            images: vec![],
            pulling: vec![],
            instances,
            network: String::new(),
            runtimes: vec![],
            image_mount: None,
            traits: Default::default(),
            location_epoch: self.state.life.epoch(),
            handed_over: None,
            gpus: Vec::new(),
            reached: Vec::new(),
        };
        let is_known = self.state.knows(&report);
        if !says.taken(Some(ReportTaken { number: is_known.then_some(number) })) {
            return self.report_of(node, phase);
        }
        let (mut changes, moment) = (Changes::default(), self.moment());
        self.state.take_report(report, Reach::Here, &mut changes, moment);
        // What it left out is known all the same.
        let known = self.state.nodes.get(&node.parse::<NodeName>().unwrap());
        assert!(known.is_none_or(|known| known.observed.values().eq(observed.values())));
        changes.confirmed
    }

    fn obey(&mut self) {
        for node in self.nodes.clone() {
            self.obey_of(node);
        }
    }

    fn obey_of(&mut self, node: &'static str) {
        self.report_of(node, |record| match record.intent {
            Intent::Run => InstancePhase::Healthy,
            Intent::Stop => InstancePhase::Exited,
        });
    }

    fn running() -> Self {
        let mut world = Self::new();
        world.report(|_| InstancePhase::Healthy);
        world.take(&set(1, 1));
        world.reconcile();
        world.obey();
        world.reconcile();
        world
    }

    fn awaiting_an_ingress(&mut self) -> usize {
        let report = self.state.report(Some("unix:/x"), self.moment());
        report.instances.values().filter(|status| status.awaits_ingress).count()
    }

    fn routed(&self) -> usize {
        self.state.table.routes[0].endpoints.len()
    }
}

#[test]
fn an_allotment_becomes_instances_and_healthy_ones_are_routed() {
    let world = World::running();
    assert_eq!((world.state.instances.len(), world.routed()), (2, 2));
}

#[test]
fn ingresses_are_told_what_the_manifest_says_of_requests() {
    let route = &World::running().state.table.routes[0];
    assert_eq!(route.rules, manifest().ingress);
    let speaks = |endpoint: &Endpoint| endpoint.protocol == AppProtocol::H2c;
    assert!(route.endpoints.iter().all(speaks), "{:?}", route.endpoints);
}

#[test]
fn an_older_set_of_allotments_is_not_accepted() {
    let world = World::running();
    assert!(!world.state.accepts(&set(0, 1)));
    assert!(world.state.accepts(&set(1, 1)) && world.state.accepts(&set(2, 2)));
}

fn ack(ingress: &str, revision: u64) -> RouteAck {
    RouteAck { ingress: ingress.into(), revision, busy: Vec::new() }
}

#[test]
fn a_draining_instance_may_end_its_requests_within_its_time() {
    let mut world = World::running();
    let ids: Vec<_> = world.state.instances.keys().cloned().collect();
    for id in &ids {
        world.state.drain(id, "test", &mut Changes::default());
    }
    world.reconcile();
    let intents = |world: &World| ids.iter().map(|id| world.state.instances[id].intent).collect();
    let newest = world.state.table.revision;
    world.state.take_ack(RouteAck { busy: ids.clone(), ..ack("a", newest) });
    world.state.take_ack(RouteAck { busy: vec![ids[0].clone()], ..ack("b", newest) });
    world.wait(3000);
    world.reconcile();
    let all: Vec<Intent> = intents(&world);
    assert_eq!(all, [Intent::Run, Intent::Run]);
    world.state.take_ack(ack("a", newest));
    world.reconcile();
    let all: Vec<Intent> = intents(&world);
    assert_eq!(all, [Intent::Run, Intent::Stop], "b still has requests with the first");
    world.wait(27_000);
    world.reconcile();
    let all: Vec<Intent> = intents(&world);
    assert_eq!(all, [Intent::Stop, Intent::Stop], "30 s are over");
}

#[test]
fn an_instance_is_stopped_only_after_every_ingress_left_it_out() {
    let mut world = World::running();
    world.state.take_ack(ack("a", world.state.table.revision));
    let id = world.state.instances.keys().next().unwrap().clone();
    let mut changes = Changes::default();
    assert!(world.state.drain(&id, "test", &mut changes));
    world.reconcile();
    assert_eq!(world.routed(), 1);
    world.reconcile();
    assert_eq!(world.state.instances[&id].intent, Intent::Run, "the ingress has not said so yet");
    world.state.take_ack(ack("a", world.state.table.revision));
    world.reconcile();
    assert_eq!(world.state.instances[&id].intent, Intent::Stop);
    world.obey();
    let changes = world.reconcile();
    assert!(changes.delete.contains(&id) && !world.state.instances.contains_key(&id));
}

#[test]
fn a_dead_ingress_does_not_hold_up_a_stop_for_long() {
    let mut world = World::running();
    world.state.take_ack(ack("dead", 1));
    let id = world.state.instances.keys().next().unwrap().clone();
    world.state.drain(&id, "test", &mut Changes::default());
    world.reconcile();
    world.wait(1900);
    world.reconcile();
    assert_eq!(world.state.instances[&id].intent, Intent::Run);
    world.wait(200);
    world.reconcile();
    assert_eq!(world.state.instances[&id].intent, Intent::Stop);
}

#[test]
fn a_healthy_instance_is_reachable_only_after_every_ingress_heard_of_it() {
    let mut world = World::running();
    assert_eq!(world.awaiting_an_ingress(), 2, "there may be one that has not said anything yet");
    let newest = world.state.table.revision;
    world.state.take_ack(ack("a", newest));
    world.state.take_ack(ack("b", newest - 1));
    assert_eq!(world.awaiting_an_ingress(), 2);
    world.state.take_ack(ack("b", newest));
    assert_eq!(world.awaiting_an_ingress(), 0);

    // One that falls ill and recovers was out of the table in between.
    world.report(|_| InstancePhase::Unhealthy);
    world.reconcile();
    world.obey();
    world.reconcile();
    assert_eq!(world.awaiting_an_ingress(), 2);
    world.wait(2100);
    assert_eq!(world.awaiting_an_ingress(), 0, "a dead ingress holds up no deploy for long");
}

#[test]
fn a_rollout_ends_with_only_new_instances_and_always_routes_enough() {
    let mut world = World::running();
    world.take(&set(2, 2));
    world.settle();
    let releases: Vec<_> = world.state.instances.values().map(|i| i.release.number.0).collect();
    assert_eq!(releases, [2, 2]);
}

#[test]
fn a_silent_node_gets_nothing_new_and_its_instances_are_lost_after_a_while() {
    let mut world = World::running();
    world.wait(20_000);
    let report = world.state.report(Some("unix:/x"), world.moment());
    assert!(!report.report.nodes[0].reachable);
    assert!(world.reconcile().is_empty(), "nothing is replaced before it counts as lost");
    world.wait(60_000);
    world.reconcile();
    assert_eq!(world.state.shortfalls[0].missing, 2);
    assert_eq!(world.state.instances.len(), 2, "lost instances are kept: they may be running");
}

#[test]
fn nodes_try_what_the_global_plane_says_and_what_was_given_also_after_a_restart() {
    let reach = |text: &str| text.parse().unwrap();
    let mut world = World::new();
    let mut set = set(1, 1);
    set.reach = [reach("queue:5672")].into();
    Arc::make_mut(&mut set.allotments[0].release).manifest.placement.reach =
        [reach("db:5432")].into();
    let adopted = world.state.adopted(&set);
    world.state.take(adopted);
    assert_eq!(world.state.reach(), [reach("db:5432"), reach("queue:5672")].into());
    // What a node says of it goes up, and nothing starts before it answers.
    world.report(|_| InstancePhase::Healthy);
    world.reconcile();
    assert_eq!((world.state.instances.len(), world.state.shortfalls[0].missing), (0, 2));
    let reached = vec![Reached { address: reach("db:5432"), at: Timestamp(5), error: None }];
    for node in world.state.nodes.values_mut() {
        node.report.reached = reached.clone();
    }
    world.reconcile();
    assert_eq!(world.state.instances.len(), 2);
    assert_eq!(world.state.report(None, world.moment()).report.nodes[0].reached, reached);
    let stored = AllotmentSet { allotments: set.allotments, ..AllotmentSet::default() };
    let again = State::new(world.state.name.clone(), stored, vec![], world.moment());
    assert_eq!(again.reach(), [reach("db:5432")].into());
}

#[test]
fn a_report_tells_what_leaves_and_what_could_be_made_to() {
    let mut world = World::running();
    let each = manifest().resources.capacity();
    let yielding = |instances| Yielding {
        priority: Priority::default(),
        instances,
        promised: each.times(instances),
        gpus: Default::default(),
    };
    let node = |world: &mut World| world.state.report(None, world.moment()).report.nodes.remove(0);
    let told = node(&mut world);
    assert_eq!((told.leaving, told.yielding), (Capacity::default(), vec![yielding(2)]));
    let first = world.state.instances.keys().next().unwrap().clone();
    world.state.drain(&first, "makes room for shop (priority 80)", &mut Changes::default());
    let told = node(&mut world);
    assert_eq!((told.leaving, told.yielding), (each, vec![yielding(1)]));
    let report = world.state.report(None, world.moment());
    let notes = report.instances.values().filter_map(|status| status.observed.note.as_deref());
    assert_eq!(notes.collect::<Vec<_>>(), ["makes room for shop (priority 80)"]);
    // What is attached to a client, or runs once, never leaves for anything.
    for instance in world.state.instances.keys().cloned().collect::<Vec<_>>() {
        world.state.instances.change(&instance, |record| {
            Arc::make_mut(&mut record.release).manifest.restart = RestartPolicy::Never;
        });
    }
    assert!(node(&mut world).yielding.is_empty());
}

/// The same set with one allotment, of an app with this priority and memory.
fn set_of(set: AllotmentSet, app: &str, (priority, gib): (u32, u64)) -> AllotmentSet {
    let mut set = set;
    let document = json!({
        "app": app, "image": "default/web:1", "priority": priority,
        "resources": {"memory": format!("{gib}GiB"), "cpu": 0.1, "disk": "4MiB"},
    });
    Arc::make_mut(&mut set.allotments[0].release).manifest =
        Manifest::from_document(&document).unwrap();
    set
}

#[test]
fn who_leaves_for_what_a_change_brings_is_found_among_all() {
    let mut world = World::new();
    world.obey();
    world.take(&set_of(set(1, 1), "web", (10, 3)));
    while !world.reconcile().is_empty() {
        world.obey();
    }
    assert_eq!(world.state.instances.len(), 2);
    let mut change = set_of(set(2, 1), "shop", (90, 4));
    change.since = Some(Generation(1));
    (change.allotments[0].count, change.allotments[0].make_room) = (1, 1);
    assert!(world.state.continues(&change));
    world.state.take_change(change);
    assert!(!world.reconcile().is_empty());
    let leaving = |world: &World| {
        let each = world.state.instances.draining();
        each.filter_map(|record| record.draining.clone()).collect::<Vec<_>>()
    };
    assert_eq!(leaving(&world), ["makes room for shop (priority 90)"]);
    // As long as it waits nobody more leaves, and what matters less gets nothing of its room.
    for _ in 0..40 {
        world.reconcile();
        world.wait(500);
        world.obey();
        assert!(leaving(&world).len() <= 1);
    }
    let of = |app: &str| {
        let key = (Default::default(), app.parse().unwrap());
        world.state.instances.of_app(&key).count()
    };
    assert_eq!((of("shop"), of("web")), (1, 1));
}

#[test]
fn what_a_change_leaves_out_stays_a_stray() {
    let mut world = World::running();
    let restored = |generation, since| AllotmentSet {
        epoch: Epoch(1),
        generation: Generation(generation),
        since,
        ..AllotmentSet::default()
    };
    world.take(&restored(1, None));
    assert_eq!(world.state.strays.len(), 1);
    let allotments = set_of(set(2, 1), "api", (50, 1)).allotments;
    let change = AllotmentSet { allotments, ..restored(2, Some(Generation(1))) };
    assert!(world.state.continues(&change));
    let whole = world.state.whole(change);
    let adopted = world.state.adopted(&whole);
    world.state.take(adopted);
    assert_eq!((world.state.strays.len(), world.state.allotments.len()), (1, 2));
}

#[test]
fn what_a_node_took_over_is_to_be_stored_once() {
    let mut world = World::new();
    world.obey();
    world.take(&set(1, 1));
    world.reconcile();
    let pending = |_: &InstanceRecord| InstancePhase::Pending;
    assert_eq!(world.report_of("n1", pending).len(), 2);
    assert!(world.report_of("n1", pending).is_empty());
    let first = world.state.instances.keys().next().unwrap().clone();
    world.state.instances.unconfirm(&first);
    // A node that is not told that it was stored says all again.
    world.says.clear();
    assert_eq!(world.report_of("n1", pending), [first].into(), "it could not be stored");
}

#[test]
fn a_restarted_location_waits_for_its_nodes_before_it_settles() {
    let world = World::running();
    let stored: Vec<_> = world.state.instances.values().cloned().collect();
    let mut again = World::new();
    again.state = State::new(
        world.state.name.clone(),
        AllotmentSet {
            epoch: world.state.epoch,
            generation: world.state.acknowledged,
            allotments: world.state.allotments.values().cloned().collect(),
            cordons: world.state.cordons.clone(),
            ..AllotmentSet::default()
        },
        stored,
        again.moment(),
    );
    assert!(!again.state.settled(again.moment()));
    again.obey();
    assert!(again.state.settled(again.moment()));
    assert!(again.reconcile().is_empty());
    assert_eq!(again.routed(), 2);
    assert_eq!(again.awaiting_an_ingress(), 0, "ingresses went on with what they had");
}

/// A set of another life of the global store.
fn of_life(epoch: u64, set: AllotmentSet) -> AllotmentSet {
    AllotmentSet { epoch: Epoch(epoch), ..set }
}

#[test]
fn a_restored_store_is_followed_with_lower_generations_and_the_one_before_is_refused() {
    let mut world = World::running();
    world.take(&set(900, 1));
    let before = world.releases();
    assert!(!world.state.accepts(&set(3, 1)));
    let restored = of_life(7, set(3, 1));
    world.take(&restored);
    world.settle();
    assert_eq!(world.releases(), before, "what it says again is nothing new");
    let report = world.state.report(Some("unix:/x"), world.moment());
    let Reported { report, .. } = report;
    assert_eq!((report.epoch, report.acknowledged), (Epoch(7), Generation(3)));
    assert!(!world.state.accepts(&set(901, 1)), "of the life before, however new");
    assert!(!world.state.accepts(&of_life(7, set(2, 1))) && world.state.accepts(&restored));
}

#[test]
fn what_a_restored_store_does_not_know_goes_on_until_it_is_to_be_let_go() {
    let mut world = World::running();
    let before = world.releases();
    let nothing = |generation| AllotmentSet {
        epoch: Epoch(7),
        generation: Generation(generation),
        ..AllotmentSet::default()
    };
    let web = AppRef { project: "default".parse().unwrap(), app: "web".parse().unwrap() };
    world.take(&nothing(3));
    // Later sets of the same life end it as little, and neither does a restart or the end of one instance.
    world.take(&nothing(4));
    world.settle();
    assert_eq!(world.releases(), before);
    let report = world.state.report(Some("unix:/x"), world.moment());
    assert_eq!(report.report.strays, std::slice::from_ref(&web));
    let note = report.instances.values().next().unwrap().observed.note.as_deref().unwrap();
    assert!(note.contains("restored") && note.contains("longshore rm web"), "{note}");
    let one = before.keys().next().unwrap();
    world.state.drain(one, "test", &mut Changes::default());
    for _ in 0..20 {
        world.reconcile();
        world.wait(500);
        world.obey();
    }
    assert_eq!((world.routed(), world.releases().len()), (2, 2), "another took its place");

    // Only by its name it goes, and then with all that an end has.
    let mut let_go = nothing(5);
    let_go.let_go.push(web);
    world.take(&let_go);
    world.reconcile();
    assert!(world.state.table.routes.is_empty());
    world.wait(31_000);
    for _ in 0..3 {
        world.reconcile();
        world.obey();
    }
    assert!(world.state.instances.is_empty() && world.state.strays.is_empty());
    // In the same life an app that is left out goes, as ever.
    world.take(&of_life(7, set(6, 1)));
    world.reconcile();
    world.take(&nothing(7));
    assert!(world.state.allotments.is_empty());
}

#[test]
fn a_stray_that_is_deployed_again_is_taken_over_without_a_touch_when_it_is_the_same() {
    for (release, is_same) in [(1, true), (2, false)] {
        let mut world = World::running();
        let before = world.releases();
        let empty = of_life(7, AllotmentSet { generation: Generation(3), ..Default::default() });
        world.take(&empty);
        let mut again = of_life(7, set(4, release));
        Arc::make_mut(&mut again.allotments[0].release).created_at = Timestamp(99);
        world.take(&again);
        assert!(world.state.strays.is_empty());
        world.settle();
        assert_eq!(world.releases() == before, is_same);
        assert!(world.releases().values().all(|number| *number == release));
    }
}

#[test]
fn a_number_that_is_given_again_to_another_release_is_not_mistaken() {
    let mut world = World::running();
    let before = world.releases();
    let mut other = of_life(7, set(3, 1));
    Arc::make_mut(&mut other.allotments[0].release).image_digest = Digest::from_sha256([2; 32]);
    world.take(&other);
    assert!(world.releases().values().all(|number| *number == 0), "it is of none that is known");
    world.settle();
    let after = world.releases();
    assert!(after.keys().all(|id| !before.contains_key(id)), "{before:?} {after:?}");
    assert!(after.len() == 2 && after.values().all(|number| *number == 1));
}

#[test]
fn what_is_given_of_gpus_is_promised_and_told_to_the_node_and_to_the_world() {
    let mut world = World::new();
    world.report(|_| InstancePhase::Healthy);
    let n1: NodeName = "n1".parse().unwrap();
    let gpu = Gpu { model: "l4".parse().unwrap(), memory: ByteCount::gib(24) };
    world.state.nodes.get_mut(&n1).unwrap().report.gpus = vec![gpu.clone(), gpu];
    let mut set = set(1, 1);
    let need = GpuNeed { count: 1, memory: Some(ByteCount::gib(16)), models: Default::default() };
    Arc::make_mut(&mut set.allotments[0].release).manifest.resources.gpu = Some(need);
    world.take(&set);
    world.reconcile();
    let told = world.state.assignments(&n1);
    let given: Vec<_> = told.values().map(|one| one.gpus.clone()).collect();
    let shares: BTreeSet<_> = given.iter().map(ToString::to_string).collect();
    assert_eq!(shares, ["0", "1"].map(str::to_owned).into());
    let records = world.state.instances.values().map(|record| record.gpus.clone());
    assert_eq!(records.collect::<Vec<_>>(), given);
    let node = |world: &mut World| world.state.report(None, world.moment()).report.nodes.remove(0);
    let promised = |node: &NodeSummary| node.gpus.iter().map(|gpu| gpu.promised.0 >> 30).collect();
    let all: Vec<u64> = promised(&node(&mut world));
    assert_eq!(all, [16, 16]);
    assert_eq!(node(&mut world).yielding[0].gpus, given[0].plus(&given[1]));

    let first = world.state.instances.keys().next().unwrap().clone();
    world.state.drain(&first, "makes room for shop (priority 80)", &mut Changes::default());
    let index = given[0].iter().next().unwrap().index as usize;
    let leaving = node(&mut world);
    assert_eq!(leaving.gpus[index].leaving, ByteCount::gib(16));
    assert_eq!(leaving.yielding[0].gpus, given[1]);
    world.state.instances.remove(&first);
    assert_eq!(node(&mut world).gpus[index].promised, ByteCount(0));
}
