use std::collections::BTreeMap;
use std::time::Duration;

use longshore_api::links::{Endpoint, Route};
use longshore_types::HostName;

use super::*;

fn endpoint(idx: u16) -> Endpoint {
    Endpoint {
        instance: InstanceId::mint(&"web".parse().unwrap(), u64::from(idx)),
        node: "node".parse().unwrap(),
        address: ([127, 0, 0, 1], 1000 + idx).into(),
        protocol: Default::default(),
        reach: Default::default(),
    }
}

fn route(app: &str, hosts: &[&str], endpoints: &[u16]) -> Arc<Route> {
    Arc::new(Route {
        project: Default::default(),
        app: app.parse().unwrap(),
        hosts: hosts.iter().map(|host| host.parse::<HostName>().unwrap()).collect(),
        rules: Default::default(),
        endpoints: endpoints.iter().copied().map(endpoint).collect(),
    })
}

fn router(endpoints: &[u16]) -> Router {
    let router = Router::default();
    router.replace(&table(endpoints));
    router
}

fn table(endpoints: &[u16]) -> RoutingTable {
    let routes = vec![route("web", &["Web.Test", "other.test"], endpoints)];
    RoutingTable { revision: 1, routes, ..RoutingTable::default() }
}

fn pick(router: &Router) -> InFlight {
    router.pick("web.test", &BTreeSet::new()).unwrap()
}

fn endpoint_of(upstream: &Upstream) -> Endpoint {
    match upstream.site() {
        Site::Instance(endpoint) => endpoint.clone(),
        Site::Location(way) => panic!("{way:?} is in no table of instances"),
    }
}

fn port(picked: &InFlight) -> u16 {
    endpoint_of(picked.upstream()).address.port() - 1000
}

#[test]
fn what_cannot_be_routed_is_told_apart() {
    let none = BTreeSet::new();
    let why = |router: &Router, host| router.pick(host, &none).map(|_| ()).unwrap_err();
    assert_eq!(why(&Router::default(), "web.test"), NoPick::NoTable);
    let router = router(&[]);
    assert_eq!(why(&router, "absent.test"), NoPick::UnknownHost);
    assert_eq!(why(&router, "other.test"), NoPick::NoEndpoint("web".parse().unwrap()));
}

#[test]
fn the_first_of_two_apps_keeps_a_host() {
    let routes = vec![route("first", &["x.test"], &[1]), route("second", &["x.test"], &[2])];
    let router = Router::default();
    router.replace(&RoutingTable { revision: 1, routes, ..RoutingTable::default() });
    let picked = router.pick("x.test", &BTreeSet::new()).unwrap();
    assert_eq!(port(&picked), 1);
}

#[test]
fn requests_in_flight_are_spread_evenly_and_ties_by_chance() {
    let router = router(&[1, 2, 3]);
    let mut first = BTreeSet::new();
    for _ in 0..200 {
        let in_flight: Vec<_> = (0..9).map(|_| pick(&router)).collect();
        let mut per_endpoint = BTreeMap::<u16, u32>::new();
        in_flight.iter().for_each(|picked| *per_endpoint.entry(port(picked)).or_default() += 1);
        assert_eq!(per_endpoint, BTreeMap::from([(1, 3), (2, 3), (3, 3)]));
        first.insert(port(&in_flight[0]));
    }
    assert_eq!(first.len(), 3, "each endpoint is sometimes first");
}

#[test]
fn the_one_with_the_fewest_requests_is_picked() {
    let router = router(&[1, 2]);
    let mut held: Vec<_> = (0..10).map(|_| pick(&router)).collect();
    held.retain(|picked| port(picked) == 1);
    for _ in 0..5 {
        let picked = pick(&router);
        assert_eq!(port(&picked), 2);
        held.push(picked);
    }
}

#[test]
fn an_endpoint_that_stays_keeps_its_state_and_one_that_leaves_is_not_picked() {
    let router = router(&[1, 2]);
    let held: Vec<_> = (0..4).map(|_| pick(&router)).collect();
    router.replace(&table(&[2, 3]));
    let picked: Vec<_> = (0..4).map(|_| pick(&router)).collect();
    assert_eq!(picked.iter().filter(|picked| port(picked) == 3).count(), 3);
    assert_eq!(picked.iter().filter(|picked| port(picked) == 1).count(), 0);
    drop(held);
    drop(picked);
    assert!(router.upstreams().iter().all(|upstream| upstream.outstanding() == 0));
}

#[test]
fn an_endpoint_that_failed_is_put_aside_then_tried_by_one_request() {
    let router = router(&[1, 2]);
    let dead = || router.upstreams().into_iter().find(|u| endpoint_of(u) == endpoint(1)).unwrap();
    dead().note_failed(Instant::now() + Duration::from_secs(60));
    assert!((0..50).all(|_| port(&pick(&router)) == 2));

    // As if all had happened a minute ago: the longest time aside is over.
    dead().note_failed(Instant::now() - Duration::from_secs(60));
    let held = std::iter::repeat_with(|| pick(&router)).find(|picked| port(picked) == 1);
    assert!((0..50).all(|_| port(&pick(&router)) == 2), "one request tries, the others do not");
    dead().note_connected();
    drop(held);
    assert!((0..200).any(|_| port(&pick(&router)) == 1), "all is well again");
}

#[test]
fn endpoints_put_aside_are_better_than_none_and_tried_ones_are_not_picked_again() {
    let router = router(&[1, 2]);
    let now = Instant::now();
    router.upstreams().iter().for_each(|upstream| upstream.note_failed(now));
    let mut tried = BTreeSet::new();
    for _ in 0..2 {
        let picked = router.pick("web.test", &tried).unwrap();
        assert!(tried.insert(picked.upstream().instance().unwrap().clone()));
    }
    let app = "web".parse().unwrap();
    assert_eq!(router.pick("web.test", &tried).map(|_| ()).unwrap_err(), NoPick::NoEndpoint(app));
}

#[test]
fn a_departed_endpoint_is_known_until_its_last_request_ended() {
    let router = router(&[1, 2]);
    let request = std::iter::repeat_with(|| pick(&router)).find(|picked| port(picked) == 1);
    router.replace(&table(&[2]));
    let departed: Vec<_> = router.departed().iter().map(|one| endpoint_of(one)).collect();
    assert_eq!(departed, [endpoint(1)]);
    router.replace(&table(&[]));
    assert_eq!(router.departed().len(), 1, "another table changes nothing about it");
    drop(request);
    assert!(router.departed().is_empty());
}

#[test]
fn an_endpoint_beside_older_ones_has_a_slow_start() {
    let router = Router::default();
    let now = Instant::now();
    let (slow_start, half) = (Duration::from_secs(10), Duration::from_secs(5));
    router.replace_at(&table(&[1]), now - slow_start);
    router.replace_at(&table(&[1, 2]), now);
    let mut share = |now| {
        let picked = (0..1000)
            .map(|_| router.pick_at("web.test", &BTreeSet::new(), Aside::Too, now).unwrap());
        picked.filter(|picked| port(picked) == 2).count()
    };
    let shares = [now, now + half, now + slow_start].map(&mut share);
    for (share, expected) in shares.into_iter().zip([50, 250, 500]) {
        assert!(share.abs_diff(expected) < 100, "{share} of {expected}");
    }
}
