//! What locations are told of each other.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use longshore_api::links::{AppRef, Elsewhere, ElsewhereChange, LocationReport, Peering};
use longshore_api::v1::{JoinTokenCreated, JoinTokenRequest, JoinTokenRole};
use longshore_link::{Client, Endpoint, LineStream};
use longshore_trust::{JoinToken, LocationJoinRequest, Name, NewKey, Signed, joining_config};
use longshore_types::{Generation, LocationName};

use crate::plane::*;

/// What a location has been told so far.
struct Told {
    lines: LineStream<ElsewhereChange>,
    known: Elsewhere,
}

impl Told {
    async fn by(plane: &Plane, location: &str) -> Self {
        let path = format!("/link/locations/{location}/elsewhere");
        Self { lines: plane.link.watch(&path).await.unwrap(), known: Elsewhere::default() }
    }

    /// Waits until it knows this.
    async fn until(&mut self, what: &str, holds: impl Fn(&Elsewhere) -> bool) {
        let search = async {
            while !holds(&self.known) {
                let line = self.lines.next().await.expect("the watch goes on").unwrap();
                self.known.take(line);
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), search).await;
        assert!(found.is_ok(), "{what}: {:?}", self.known);
    }
}

fn name(text: &str) -> LocationName {
    text.parse().unwrap()
}

fn web_app() -> AppRef {
    AppRef { project: Default::default(), app: "web".parse().unwrap() }
}

/// A report of a location whose ingresses others reach.
fn reached(location: &str) -> LocationReport {
    let (address, authority) = (Some(format!("{location}.test:4606")), location.to_owned());
    let peering = Peering { address, authority, relays: Vec::new() };
    LocationReport { peering: Some(peering), ..report_of(location, Generation(0), vec![], vec![]) }
}

fn is_served(known: &Elsewhere) -> bool {
    known.apps.contains_key(&web_app())
}

#[tokio::test]
async fn a_location_is_told_where_apps_are_ready_that_were_given_there() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.send(&reached("ams")).await;
    plane.deploy(web()).await.unwrap();
    let set = until(&mut plane.allotments().await, |set| set.allotments.len() == 1).await;
    let ready = healthy(&set.allotments[0], "web-aaaaaaaa");
    // One that was never given the app says that it has it.
    plane.send(&LocationReport { instances: vec![ready.clone().into()], ..reached("liar") }).await;
    let (mut liar, mut ams) = (Told::by(&plane, "liar").await, Told::by(&plane, "ams").await);
    ams.until("who the other is", |known| known.peers.contains_key(&name("liar"))).await;
    liar.until("who the other is", |known| known.peers.contains_key(&name("ams"))).await;
    assert!(!is_served(&liar.known), "no instance is ready");

    plane.send(&LocationReport { instances: vec![ready.clone().into()], ..reached("ams") }).await;
    liar.until("that the app is served", is_served).await;
    let places = &liar.known.apps[&web_app()];
    assert_eq!((&places.at, places.hosts[0].as_str()), (&vec![name("ams")], "web.localhost"));
    assert_eq!(liar.known.peers[&name("ams")].address.as_deref(), Some("ams.test:4606"));
    // Where it is not ready any more, nothing goes.
    let draining = longshore_api::links::InstanceStatus { draining: true, ..ready.clone() };
    plane.send(&LocationReport { instances: vec![draining.into()], ..reached("ams") }).await;
    liar.until("that it is not any more", |known| !is_served(known)).await;
    plane.send(&LocationReport { instances: vec![ready.into()], ..reached("ams") }).await;
    liar.until("that it is again", is_served).await;
    // Neither of itself, nor of what the other has not.
    assert!(!liar.known.peers.contains_key(&name("liar")));
    let anew = Told::by(&plane, "ams").await.lines.next().await.unwrap().unwrap();
    assert!(anew.whole && anew.apps.is_empty(), "{anew:?}");
    plane.stop().await;
}

#[tokio::test]
async fn a_location_that_joins_is_known_by_its_key_and_one_that_is_removed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.send(&reached("ams")).await;
    let mut ams = Told::by(&plane, "ams").await;
    let request = JoinTokenRequest {
        location: Some(name("sin")),
        role: JoinTokenRole::Location,
        recover: false,
        country: None,
    };
    let made: JoinTokenCreated =
        plane.user.call(Method::POST, "/v1/join-tokens", Some(&request)).await.unwrap();
    let token: JoinToken = made.token.parse().unwrap();
    let key = NewKey::generate().unwrap();
    let request = LocationJoinRequest {
        secret: token.secret.clone(),
        location: name("sin"),
        key: key.public(),
    };
    let at = Endpoint::Tls(plane.locations.clone());
    let stranger = Client::secured(at, joining_config(token.root).unwrap(), Name::Global);
    let _: Signed = stranger.call(Method::POST, "/join", Some(&request)).await.unwrap();
    let authority = key.public().fingerprint().to_string();
    let expected = Peering { address: None, authority, relays: Vec::new() };
    let is_known = |known: &Elsewhere| known.peers.get(&name("sin")) == Some(&expected);
    ams.until("by which key it is known", is_known).await;
    plane.user.call::<(), ()>(Method::DELETE, "/v1/locations/sin", None).await.unwrap();
    ams.until("that it is none", |known| !known.peers.contains_key(&name("sin"))).await;
    plane.stop().await;
}

#[tokio::test]
async fn a_control_plane_that_has_just_begun_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    for location in ["ams", "sin"] {
        plane.send(&reached(location)).await;
    }
    plane.stop().await;
    let plane = Plane::start(dir.path()).await;
    plane.send(&reached("ams")).await;
    let mut ams = Told::by(&plane, "ams").await;
    let early = tokio::time::timeout(Duration::from_millis(500), ams.lines.next()).await;
    assert!(early.is_err(), "it has not heard of sin: {early:?}");
    plane.send(&reached("sin")).await;
    ams.until("the whole", |known| known.peers.contains_key(&name("sin"))).await;
    plane.stop().await;
}
