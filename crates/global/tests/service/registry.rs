//! A registry on another machine: how it is let in, who is taken for it, and what is told of it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures_util::StreamExt as _;
use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::RegistryTable;
use longshore_api::v1::{
    EventView, HealthView, JoinTokenCreated, JoinTokenRequest, JoinTokenRole, RegistryView,
};
use longshore_link::{CallError, Client, Endpoint, LineStream, Listener, now};
use longshore_trust::{
    CertificateRequest, Credentials, Fingerprint, Identity, JoinAs, JoinToken, LocationJoinRequest,
    Name, NewKey, RegistryAccess, RegistryJoinRequest, RegistryPlace, RegistryTold, RootAuthority,
    Signed, joining_config,
};
use longshore_types::Generation;
use tokio_util::sync::CancellationToken;

use crate::joining::refused;
use crate::plane::*;

const PLACE: &str = "/link/registry/place";
const TABLE: &str = "/link/registry/table";

fn place(address: &str) -> RegistryPlace {
    RegistryPlace {
        address: address.to_owned(),
        public: "registry.example.com:4601".to_owned(),
        public_secure: true,
    }
}

impl Plane {
    async fn registry_token(&self) -> Result<JoinToken, CallError> {
        let request =
            JoinTokenRequest { role: JoinTokenRole::Registry, ..JoinTokenRequest::default() };
        let made: JoinTokenCreated =
            self.user.call(Method::POST, "/v1/join-tokens", Some(&request)).await?;
        Ok(made.token.parse().unwrap())
    }

    /// Who shows nothing.
    fn stranger(&self, token: &JoinToken) -> Client {
        self.at(joining_config(token.root).unwrap())
    }

    async fn join_registry(&self, token: &JoinToken) -> Result<Identity, CallError> {
        let key = NewKey::generate().unwrap();
        let request = RegistryJoinRequest { secret: token.secret.clone(), key: key.public() };
        let stranger = self.stranger(token);
        let signed: Signed = stranger.call(Method::POST, "/registry/join", Some(&request)).await?;
        Ok(key.signed(&signed, now()).unwrap())
    }

    async fn remove_registry(&self) -> Result<(), CallError> {
        self.user.call::<(), ()>(Method::DELETE, "/v1/registry", None).await
    }

    async fn view(&self) -> RegistryView {
        self.user.get("/v1/registry").await.unwrap()
    }
}

async fn say(client: &Client, place: &RegistryPlace) -> Result<(), CallError> {
    client.call(Method::POST, PLACE, Some(place)).await
}

async fn next<T: Send + 'static>(lines: &mut LineStream<T>, holds: impl Fn(&T) -> bool) -> T {
    let search = async {
        loop {
            let line = lines.next().await.expect("the watch goes on").unwrap();
            if holds(&line) {
                return line;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time")
}

/// A registry that has the image of [`web`], at an address where it shows this.
fn serve_as(identity: &Identity, end: &CancellationToken) -> String {
    let any = Endpoint::Tls("127.0.0.1:0".to_owned());
    let listener = Listener::bind("registry", &any).unwrap();
    let address = listener.endpoint().unwrap().authority().to_owned();
    let image = get(|| async { [("docker-content-digest", DIGEST)] });
    let known = Router::new()
        .route("/v2/", get(|| async { "{}" }))
        .route("/v2/default/web/manifests/1", image);
    tokio::spawn(listener.serve_with(Credentials::new(identity).unwrap(), known, end.clone()));
    address
}

#[tokio::test]
async fn a_registry_joins_once_and_is_known_by_its_key_alone() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start_for_registry(dir.path()).await;
    let made = plane.registry_token().await.unwrap();
    assert_eq!((&made.joins, &made.address), (&JoinAs::Registry, &plane.locations));
    // A token for a location is none for it, and the other way round.
    let for_location = plane.join_token_as(JoinTokenRole::Location, "sin").await.unwrap();
    let for_location: JoinToken = for_location.token.parse().unwrap();
    let wrong = plane.join_registry(&for_location).await;
    assert_eq!(refused(wrong).code, ProblemCode::Forbidden);
    let key = NewKey::generate().unwrap().public();
    let (secret, location) = (made.secret.clone(), "sin".parse().unwrap());
    let request = LocationJoinRequest { secret, location, key };
    let stranger = plane.stranger(&made);
    let wrong = stranger.call::<_, Signed>(Method::POST, "/join", Some(&request)).await;
    assert_eq!(refused(wrong).code, ProblemCode::Forbidden);
    let joined = plane.join_registry(&made).await.unwrap();
    assert_eq!(joined.name(), Some(Name::Registry));
    let again = plane.join_registry(&made).await;
    assert_eq!(refused(again).code, ProblemCode::Forbidden, "it was used");
    assert_eq!(refused(plane.registry_token().await).code, ProblemCode::Conflict, "there is one");

    let registry = plane.showing(&joined);
    assert!(registry.watch::<RegistryTable>(TABLE).await.is_ok());
    say(&registry, &place("203.0.113.7:4605")).await.unwrap();
    let bad = RegistryPlace { public: "https://a:1".to_owned(), ..place("203.0.113.7:4605") };
    assert_eq!(refused(say(&registry, &bad).await).code, ProblemCode::InvalidRequest);
    let bad = say(&registry, &place("203.0.113.7")).await;
    assert_eq!(refused(bad).code, ProblemCode::InvalidRequest);

    // Nobody else is it: not one of this machine, a location, a stranger, or another key of that name.
    let sin = plane.join("sin", &for_location).await.unwrap();
    let sin = sin.identify(&Name::Location("sin".parse().unwrap()), now()).unwrap();
    let root = RootAuthority::open(&dir.path().join("root.json"), now()).unwrap();
    let other = plane.showing(&root.identify(&Name::Registry, now()).unwrap());
    for client in [&plane.link, &plane.showing(&sin), &plane.stranger(&made), &other] {
        let place = place("203.0.113.8:4605");
        assert_eq!(refused(say(client, &place).await).code, ProblemCode::Forbidden);
        let table = client.get::<serde_json::Value>(TABLE).await;
        assert_eq!(refused(table).code, ProblemCode::Forbidden);
    }
    // And it is nothing else.
    for path in ["/link/locations/sin/allotments", "/link/locations/sin/registry"] {
        let answer = registry.get::<serde_json::Value>(path).await;
        assert_eq!(refused(answer).code, ProblemCode::Forbidden, "{path}");
    }

    // It is named anew with its own key and no other, also when its certificate has expired.
    let own = CertificateRequest { key: joined.public_key().unwrap() };
    let another = CertificateRequest { key: NewKey::generate().unwrap().public() };
    for (client, path) in
        [(&registry, "/link/registry/certificate"), (&stranger, "/registry/renew")]
    {
        let answer = client.call::<_, Signed>(Method::POST, path, Some(&another)).await;
        assert_eq!(refused(answer).code, ProblemCode::Forbidden, "{path}");
        let signed: Signed = client.call(Method::POST, path, Some(&own)).await.unwrap();
        let renewed = plane.showing(&joined.renewed(&signed, now()).unwrap());
        say(&renewed, &place("203.0.113.7:4605")).await.unwrap();
    }
    plane.stop().await;
}

#[tokio::test]
async fn no_registry_joins_a_platform_that_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let why = refused(plane.registry_token().await);
    assert_eq!(why.code, ProblemCode::Conflict);
    assert!(why.detail.contains("--registry joined"), "{why}");
    assert_eq!(refused(plane.remove_registry().await).code, ProblemCode::Conflict);
    let view = plane.view().await;
    assert_eq!((view.joins, view.public.as_deref()), (false, Some("127.0.0.1:4601")));
    // What makes no sense is refused.
    for (location, role, recover) in [
        (Some("ams"), JoinTokenRole::Registry, false),
        (None, JoinTokenRole::Registry, true),
        (None, JoinTokenRole::Location, false),
        (None, JoinTokenRole::Node, false),
    ] {
        let location = location.map(|location| location.parse().unwrap());
        let request = JoinTokenRequest { location, role, recover, country: None };
        let answer =
            plane.user.call::<_, JoinTokenCreated>(Method::POST, "/v1/join-tokens", Some(&request));
        assert_eq!(refused(answer.await).code, ProblemCode::InvalidRequest, "{request:?}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn locations_and_users_are_told_where_the_registry_is_and_images_are_asked_for_there() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start_for_registry(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let health = async || plane.user.get::<HealthView>("/v1/health").await.unwrap();
    assert_eq!(health().await.registry, None);
    let why = refused(plane.deploy(web()).await);
    assert_eq!(why.code, ProblemCode::Unavailable);
    assert!(why.detail.contains("longshore join-token --role registry"), "{why}");
    let path = "/link/locations/ams/registry";
    let mut told = plane.link.watch::<RegistryTold>(&format!("{path}/told")).await.unwrap();
    next(&mut told, |told| told.access.is_none()).await;

    let token = plane.registry_token().await.unwrap();
    let joined = plane.join_registry(&token).await.unwrap();
    assert!(refused(plane.deploy(web()).await).detail.contains("has not said yet where it is"));
    let (registry, end) = (plane.showing(&joined), CancellationToken::new());
    let address = serve_as(&joined, &end);
    say(&registry, &place(&address)).await.unwrap();
    let news = next(&mut told, |told| told.access.is_some()).await.access.unwrap();
    let access: RegistryAccess = plane.link.get(path).await.unwrap();
    assert_eq!((&news.address, &access.address), (&address, &address));
    assert!(!access.is_own && !news.is_own);
    // A location of this machine pulls what it was allotted, as those of others do.
    let mut tables = registry.watch::<RegistryTable>(TABLE).await.unwrap();
    let hash = Fingerprint::of(access.token.as_bytes()).to_string();
    next(&mut tables, |table| table.tokens.contains_key(&hash)).await;
    let health = health().await;
    assert_eq!(health.registry.as_deref(), Some("registry.example.com:4601"));
    assert!(health.registry_secure);
    plane.deploy(web()).await.unwrap();
    let rights = next(&mut tables, |table| !table.tokens[&hash].registry.is_empty()).await;
    assert_eq!(rights.tokens[&hash].registry[0].repositories, "default/web");
    let view = plane.view().await;
    assert!(view.joins && view.answers && view.joined_at.is_some(), "{view:?}");

    // Another role of this world at that address is not asked.
    let root = RootAuthority::open(&dir.path().join("root.json"), now()).unwrap();
    let global = Arc::new(root.identify(&Name::Global, now()).unwrap());
    say(&registry, &place(&serve_as(&global, &end))).await.unwrap();
    let mut other = web();
    other["count"] = 3.into();
    assert_eq!(refused(plane.deploy(other).await).code, ProblemCode::Unavailable);
    let view = plane.view().await;
    assert!(!view.answers && view.silent.is_some(), "{view:?}");
    end.cancel();
    plane.stop().await;
}

#[tokio::test]
async fn a_registry_that_is_removed_is_nobody_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start_for_registry(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    assert_eq!(refused(plane.remove_registry().await).code, ProblemCode::NotFound);
    let token = plane.registry_token().await.unwrap();
    let joined = plane.join_registry(&token).await.unwrap();
    let registry = plane.showing(&joined);
    say(&registry, &place("203.0.113.7:4605")).await.unwrap();
    let mut tables = registry.watch::<RegistryTable>(TABLE).await.unwrap();
    next(&mut tables, |_| true).await;
    let path = "/link/locations/ams/registry";
    let mut told = plane.link.watch::<RegistryTold>(&format!("{path}/told")).await.unwrap();
    next(&mut told, |told| told.access.is_some()).await;

    plane.remove_registry().await.unwrap();
    next(&mut told, |told| told.access.is_none()).await;
    let answer = plane.link.get::<RegistryAccess>(path).await.map(drop);
    assert!(refused(answer).detail.contains("no registry has joined"));
    let rest = tokio::time::timeout(Duration::from_secs(20), tables.by_ref().count()).await;
    rest.expect("it is told nothing more");
    let refuses = async || {
        let place = place("203.0.113.7:4605");
        assert_eq!(refused(say(&registry, &place).await).code, ProblemCode::Forbidden);
        let table = registry.get::<serde_json::Value>(TABLE).await;
        assert_eq!(refused(table).code, ProblemCode::Forbidden);
        let own = CertificateRequest { key: joined.public_key().unwrap() };
        for (client, path) in [
            (&registry, "/link/registry/certificate"),
            (&plane.stranger(&token), "/registry/renew"),
        ] {
            let answer = client.call::<_, Signed>(Method::POST, path, Some(&own)).await;
            assert_eq!(refused(answer).code, ProblemCode::Forbidden, "{path}");
        }
    };
    refuses().await;

    // Another takes its place, and it is nobody still.
    let next_token = plane.registry_token().await.unwrap();
    let after = plane.join_registry(&next_token).await.unwrap();
    say(&plane.showing(&after), &place("203.0.113.9:4605")).await.unwrap();
    refuses().await;
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (&*event.what, &*event.subject)).collect();
    assert!(told.contains(&("join-token create", "for the registry")), "{told:?}");
    assert!(told.contains(&("registry rm", "the registry")), "{told:?}");
    assert_eq!(told.iter().filter(|(what, _)| *what == "registry join").count(), 2);
    plane.stop().await;
}
