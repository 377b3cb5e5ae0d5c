//! What a location knows of others, and tells its ingresses and the global plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use http::Method;
use longshore_api::links::{
    AppRef, AppRequests, Counted, Elsewhere, ElsewhereChange, LocationReport, MeasuredWays,
    Peering, Places,
};
use longshore_link::{Body, json_lines, now, watch_lines};
use longshore_trust::{CertificateRequest, RootAuthority};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Outside, World, until};

fn app(name: &str) -> AppRef {
    AppRef { project: Default::default(), app: name.parse().unwrap() }
}

fn elsewhere(apps: &[(&str, &str)]) -> Elsewhere {
    let peering = |at: &str| Peering {
        address: Some(format!("{at}.test:4606")),
        authority: at.to_owned(),
        relays: Vec::new(),
    };
    let places = |app: &str, at: &str| Places {
        hosts: vec![format!("{app}.test").parse().unwrap()],
        at: vec![at.parse().unwrap()],
    };
    Elsewhere {
        peers: BTreeMap::from(["sin", "fra"].map(|at| (at.parse().unwrap(), peering(at)))),
        apps: apps.iter().map(|(name, at)| (app(name), places(name, at))).collect(),
    }
}

#[tokio::test]
async fn ingresses_are_told_what_others_serve_also_after_a_start_without_the_global_plane() {
    let dir = tempfile::tempdir().unwrap();
    let root = Arc::new(RootAuthority::open(&dir.path().join("root.json"), now()).unwrap());
    let (tell, told) =
        watch::channel(Arc::new(elsewhere(&[("one", "sin"), ("two", "fra")]).whole()));
    let lines = get(move || async move { json_lines(watch_lines(told), CancellationToken::new()) });
    let authority = post(move |Body(CertificateRequest { key }): Body<_>| async move {
        axum::Json(root.sign_location(&"ams".parse().unwrap(), &key, now()).unwrap())
    });
    let global = Router::new()
        .route("/link/locations/ams/elsewhere", lines)
        .route("/link/locations/ams/authority", authority);
    let at = Some("203.0.113.7:4606".to_owned());
    let outside = Outside { peers_advertised: at.clone(), ..Outside::default() };
    let mut world = World::start_as(dir.path(), outside, global).await;
    let mut known = Elsewhere::default();
    let mut said = world.watch::<ElsewhereChange>("/link/elsewhere").await;
    let first = until(&mut said, |change| !change.apps.is_empty()).await;
    known.take(first);
    // What comes after is what changed.
    let next = elsewhere(&[("one", "fra")]);
    tell.send_replace(Arc::new(next.since(&elsewhere(&[("one", "sin"), ("two", "fra")]))));
    let second = until(&mut said, |_| true).await;
    assert!(!second.whole && second.peers.is_empty(), "{second:?}");
    assert_eq!((second.apps.len(), &second.apps_gone), (1, &vec![app("two")]));
    known.take(second);
    assert_eq!(known, next);
    // It says itself by which key its ingresses are known.
    world.node_says(&[]).await;
    let report = world.reported(|report| report.peering.is_some()).await;
    let peering = report.peering.unwrap();
    assert_eq!((peering.address, peering.authority.len()), (at, 64));
    // And how far others are, as its ingresses find, and through whom it is reached.
    let round_trip_micros = BTreeMap::from([("sin".parse().unwrap(), 160_000)]);
    let relays = vec!["sin".parse().unwrap()];
    let ways = MeasuredWays { round_trip_micros, relays: relays.clone() };
    let path = "/link/elsewhere/measured";
    world.location.call::<_, ()>(Method::POST, path, Some(&ways)).await.unwrap();
    let told = |report: &LocationReport| {
        let is_reached = report.peering.as_ref().is_some_and(|peering| peering.relays == relays);
        is_reached && report.round_trip_micros == ways.round_trip_micros
    };
    world.reported(told).await;
    // And how many requests came in there, for which app.
    let AppRef { project, app: name } = app("one");
    let counted = Counted { apps: vec![AppRequests { project, app: name, requests: 60 }] };
    world.location.call::<_, ()>(Method::POST, "/link/demand", Some(&counted)).await.unwrap();
    let is_it = |report: &LocationReport| {
        let told = report.demand.iter().find(|one| one.app.as_str() == "one");
        told.is_some_and(|one| one.requests_per_hour > 3000)
    };
    world.reported(is_it).await;
    world.stop().await;

    let world = World::start(dir.path()).await;
    let mut said = world.watch::<ElsewhereChange>("/link/elsewhere").await;
    let mut again = Elsewhere::default();
    again.take(until(&mut said, |change| change.whole).await);
    assert_eq!(again, next);
    world.stop().await;
}
