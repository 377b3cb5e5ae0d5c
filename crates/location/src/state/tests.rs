use std::net::Ipv4Addr;

use longshore_api::links::{Endpoint, Intent, NodeSummary};
use longshore_types::{
    AppProtocol, ByteCount, Capacity, Decision, Digest, InstancePhase, Manifest, MilliCpu, Release,
    ReleaseNumber, Timestamp,
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
    let (count, budget) = (2, 4);
    let (canary, command) = (None, None);
    let allotment =
        Allotment { release, count, canary, command, budget, hosts, generation, decision };
    AllotmentSet { generation, allotments: vec![allotment], cordons: Default::default() }
}

mod cordons;

/// A location with one node, or more, that does what it is told.
struct World {
    state: State,
    start: Instant,
    elapsed: Duration,
    seed: u64,
    nodes: Vec<&'static str>,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let moment = Moment { instant: start, wall: Timestamp(1000) };
        let name = "ams".parse().unwrap();
        let state = State::new(name, AllotmentSet::default(), vec![], moment);
        Self { state, start, elapsed: Duration::ZERO, seed: 1, nodes: vec!["n1"] }
    }

    fn moment(&self) -> Moment {
        let wall = Timestamp(1000 + u64::try_from(self.elapsed.as_millis()).unwrap());
        Moment { instant: self.start + self.elapsed, wall }
    }

    fn wait(&mut self, millis: u64) {
        self.elapsed += Duration::from_millis(millis);
    }

    fn reconcile(&mut self) -> Changes {
        self.seed += 1;
        let changes = self.state.reconcile(self.seed, self.moment());
        self.state.renew_table(self.moment());
        changes
    }

    /// Each node reports every instance it was told of, in the phase that `phase` gives.
    fn report(&mut self, phase: impl Fn(&InstanceRecord) -> InstancePhase) {
        for node in self.nodes.clone() {
            self.report_of(node, &phase);
        }
    }

    fn report_of(&mut self, node: &str, phase: impl Fn(&InstanceRecord) -> InstancePhase) {
        let has = |record: &&InstanceRecord| record.node.as_str() == node;
        let observe = |record: &InstanceRecord| ObservedInstance {
            phase: phase(record),
            address: Some(Ipv4Addr::new(100, 64, 0, 2)),
            ..ObservedInstance::pending(record.instance.clone(), record.generation)
        };
        let report = NodeReport {
            node: node.parse().unwrap(),
            gate: "unix:/x".to_owned(),
            version: "1".to_owned(),
            capacity: Capacity {
                cpu: MilliCpu(8000),
                memory: ByteCount::gib(8),
                disk: ByteCount::gib(100),
            },
            acknowledged: None,
            images: vec![],
            instances: self.state.instances.values().filter(has).map(observe).collect(),
            network: String::new(),
            runtimes: vec![],
        };
        self.state.take_report(report, self.moment());
    }

    fn obey(&mut self) {
        self.report(|record| match record.intent {
            Intent::Run => InstancePhase::Healthy,
            Intent::Stop => InstancePhase::Exited,
        });
    }

    fn running() -> Self {
        let mut world = Self::new();
        world.report(|_| InstancePhase::Healthy);
        world.state.take_allotments(set(1, 1));
        world.reconcile();
        world.obey();
        world.reconcile();
        world
    }

    fn awaiting_an_ingress(&self) -> usize {
        let report = self.state.report("unix:/x", self.moment());
        report.instances.iter().filter(|status| status.awaits_ingress).count()
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
    world.state.take_allotments(set(2, 2));
    for _ in 0..40 {
        world.reconcile();
        assert!(world.routed() >= 2, "{:#?}", world.state.table);
        world.wait(500);
        world.obey();
    }
    let releases: Vec<_> = world.state.instances.values().map(|i| i.release.number.0).collect();
    assert_eq!(releases, [2, 2]);
}

#[test]
fn a_silent_node_gets_nothing_new_and_its_instances_are_lost_after_a_while() {
    let mut world = World::running();
    world.wait(20_000);
    let report = world.state.report("unix:/x", world.moment());
    assert!(!report.nodes[0].reachable);
    assert!(world.reconcile().is_empty(), "nothing is replaced before it counts as lost");
    world.wait(60_000);
    world.reconcile();
    assert_eq!(world.state.shortfalls[0].missing, 2);
    assert_eq!(world.state.instances.len(), 2, "lost instances are kept: they may be running");
}

#[test]
fn a_restarted_location_waits_for_its_nodes_before_it_settles() {
    let world = World::running();
    let stored: Vec<_> = world.state.instances.values().cloned().collect();
    let mut again = World::new();
    again.state = State::new(
        world.state.name.clone(),
        AllotmentSet {
            generation: world.state.acknowledged,
            allotments: world.state.allotments.values().cloned().collect(),
            cordons: world.state.cordons.clone(),
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
