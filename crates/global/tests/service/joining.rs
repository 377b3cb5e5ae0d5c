//! Tokens by which machines join.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use longshore_api::links::{AllotmentSet, RegistryTable};
use longshore_api::v1::{
    EventView, JoinTokenCreated, JoinTokenRequest, JoinTokenRole, LocationView,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Endpoint, now};
use longshore_trust::{
    CertificateRequest, Credentials, Fingerprint, Identity, JoinAs, JoinRole, JoinToken,
    LocationAuthority, LocationJoinRequest, Name, NewKey, RedeemRequest, RegistryAccess,
    RootAuthority, Signed, client_config, joining_config,
};
use longshore_types::token::{RegistryAction, Rights};
use longshore_types::{Generation, LocationName};
use serde_json::json;

use crate::plane::*;

impl Plane {
    async fn join_token(&self, location: &str) -> Result<JoinTokenCreated, CallError> {
        self.join_token_as(JoinTokenRole::Node, location).await
    }

    pub async fn join_token_as(
        &self,
        role: JoinTokenRole,
        location: &str,
    ) -> Result<JoinTokenCreated, CallError> {
        let location = location.parse().unwrap();
        let request =
            JoinTokenRequest { location: Some(location), role, recover: false, country: None };
        self.user.call(Method::POST, "/v1/join-tokens", Some(&request)).await
    }

    pub fn at(&self, config: Arc<rustls::ClientConfig>) -> Client {
        Client::secured(Endpoint::Tls(self.locations.clone()), config, Name::Global)
    }

    /// Who shows a certificate.
    pub fn showing(&self, identity: &Identity) -> Client {
        self.at(client_config(&Credentials::new(identity).unwrap()).unwrap())
    }

    pub async fn join(
        &self,
        location: &str,
        token: &JoinToken,
    ) -> Result<LocationAuthority, CallError> {
        let identity = self.join_identity(location, token).await?;
        Ok(LocationAuthority::new(location.parse().unwrap(), &identity).unwrap())
    }

    /// What the authority of a location that joins is made of.
    async fn join_identity(
        &self,
        location: &str,
        token: &JoinToken,
    ) -> Result<Identity, CallError> {
        let key = NewKey::generate().unwrap();
        let location: LocationName = location.parse().unwrap();
        let request =
            LocationJoinRequest { secret: token.secret.clone(), location, key: key.public() };
        let stranger = self.at(joining_config(token.root).unwrap());
        let signed: Signed = stranger.call(Method::POST, "/join", Some(&request)).await?;
        Ok(key.signed(&signed, now()).unwrap())
    }

    async fn redeem(&self, location: &str, token: &JoinToken) -> Result<(), CallError> {
        let request = RedeemRequest {
            secret: Fingerprint::of(token.secret.as_bytes()),
            role: JoinRole::Node,
            name: "n2".parse().unwrap(),
        };
        let path = format!("/link/locations/{location}/join-tokens");
        self.link.call(Method::POST, &path, Some(&request)).await
    }
}

pub fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Problem {
    match outcome {
        Err(CallError::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_join_token_is_for_one_location_and_good_once() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    assert_eq!(refused(plane.join_token("ams").await).code, ProblemCode::NotFound);
    plane.report(Generation(0), vec![]).await;
    let made = plane.join_token("ams").await.unwrap();
    assert!(made.expires_at > now());
    let token: JoinToken = made.token.parse().unwrap();
    assert_eq!(token.joins, JoinAs::Node("ams".parse().unwrap()));
    assert_eq!(&*token.address, "203.0.113.1:4602");
    assert_eq!(refused(plane.redeem("sin", &token).await).code, ProblemCode::Forbidden);
    plane.redeem("ams", &token).await.unwrap();
    assert_eq!(refused(plane.redeem("ams", &token).await).code, ProblemCode::Forbidden);
    let mut other = token.clone();
    other.secret = "guessed".to_owned().into();
    assert_eq!(refused(plane.redeem("ams", &other).await).code, ProblemCode::Forbidden);
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (&*event.what, &*event.subject)).collect();
    assert!(told.contains(&("join-token create", "for a node of ams")), "{told:?}");
    assert!(told.contains(&("node join", "n2 of ams")), "{told:?}");
    plane.stop().await;
}

#[tokio::test]
async fn an_authority_goes_back_to_the_root_that_tokens_name() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let token: JoinToken = plane.join_token("ams").await.unwrap().token.parse().unwrap();
    let key = NewKey::generate().unwrap();
    let request = CertificateRequest { key: key.public() };
    let path = "/link/locations/ams/authority";
    let signed: Signed = plane.link.call(Method::POST, path, Some(&request)).await.unwrap();
    let identity = key.signed(&signed, now()).unwrap();
    assert_eq!(Fingerprint::of(identity.root()), token.root);
    for bad in ["", "AA==", "not base 64"] {
        let request = serde_json::json!({"key": bad});
        let answer = plane.link.call::<_, Signed>(Method::POST, path, Some(&request)).await;
        assert_eq!(refused(answer).code, ProblemCode::InvalidRequest);
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_location_joins_once_and_speaks_for_itself_alone() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let token = async |location| plane.join_token_as(JoinTokenRole::Location, location).await;
    // One that there is already is no new one, and a token for a node is none for a location.
    assert_eq!(refused(token("ams").await).code, ProblemCode::Conflict);
    let for_node: JoinToken = plane.join_token("ams").await.unwrap().token.parse().unwrap();
    assert!(plane.join("sin", &for_node).await.is_err());
    let made: JoinToken = token("sin").await.unwrap().token.parse().unwrap();
    assert_eq!(made.address, plane.locations);
    assert!(plane.join("fra", &made).await.is_err(), "it is for another");
    let joined = plane.join_identity("sin", &made).await.unwrap();
    let sin = LocationAuthority::new("sin".parse().unwrap(), &joined).unwrap();
    assert!(plane.join("sin", &made).await.is_err(), "it was used");

    let name = Name::Location("sin".parse().unwrap());
    let location = plane.showing(&sin.identify(&name, now()).unwrap());
    let say = async |client: &Client, of: &str| {
        let path = format!("/link/locations/{of}/report");
        let report = report_of(of, Generation(0), vec![], vec![]);
        client.call::<_, ()>(Method::POST, &path, Some(&report)).await
    };
    say(&location, "sin").await.unwrap();
    assert_eq!(refused(say(&location, "ams").await).code, ProblemCode::Forbidden);
    for path in [
        "/link/locations/ams/allotments",
        "/link/locations/ams/registry",
        "/link/locations/ams/reverse",
        "/link/registry/table",
    ] {
        let answer = location.get::<serde_json::Value>(path).await;
        assert_eq!(refused(answer).code, ProblemCode::Forbidden, "{path}");
    }
    let access: RegistryAccess = location.get("/link/locations/sin/registry").await.unwrap();
    assert_eq!(access.address, "203.0.113.1:4605");
    assert!(access.is_own);
    // Its nodes and ingresses are nobody here, nor is a stranger, nor anyone of this machine it.
    let node = Name::Node("sin".parse().unwrap(), "n1".parse().unwrap());
    for name in [node, Name::Ingress("sin".parse().unwrap())] {
        let client = plane.showing(&sin.identify(&name, now()).unwrap());
        assert_eq!(refused(say(&client, "sin").await).code, ProblemCode::Forbidden);
    }
    let stranger = plane.at(joining_config(made.root).unwrap());
    assert_eq!(refused(say(&stranger, "sin").await).code, ProblemCode::Forbidden);
    assert_eq!(refused(say(&plane.link, "sin").await).code, ProblemCode::Forbidden);
    // Another authority of that name, though the root signed it.
    let root = RootAuthority::open(&dir.path().join("root.json"), now()).unwrap();
    let key = NewKey::generate().unwrap();
    let other = root.sign_location(&"sin".parse().unwrap(), &key.public(), now()).unwrap();
    let other = key.signed(&other, now()).unwrap();
    let other = LocationAuthority::new("sin".parse().unwrap(), &other).unwrap();
    let other = plane.showing(&other.identify(&name, now()).unwrap());
    assert_eq!(refused(say(&other, "sin").await).code, ProblemCode::Forbidden);
    // It is named anew with its own key and no other.
    let path = "/link/locations/sin/authority";
    let request = CertificateRequest { key: key.public() };
    let answer = location.call::<_, Signed>(Method::POST, path, Some(&request)).await;
    assert_eq!(refused(answer).code, ProblemCode::Forbidden);
    // Without a certificate too, for when that of its authority has expired; of this machine's none is renewed.
    let bare = async |location: &str, request: &CertificateRequest| {
        let path = format!("/renew/{location}");
        stranger.call::<_, Signed>(Method::POST, &path, Some(request)).await
    };
    let own = CertificateRequest { key: joined.public_key().unwrap() };
    assert_eq!(refused(bare("sin", &request).await).code, ProblemCode::Forbidden);
    assert_eq!(refused(bare("ams", &own).await).code, ProblemCode::Forbidden);
    let renewed = joined.renewed(&bare("sin", &own).await.unwrap(), now()).unwrap();
    let renewed = LocationAuthority::new("sin".parse().unwrap(), &renewed).unwrap();
    say(&plane.showing(&renewed.identify(&name, now()).unwrap()), "sin").await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn a_location_is_in_no_other_country_than_it_joined_for() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let token = async |role, location: &str| {
        let location = Some(location.parse().unwrap());
        let country = "NL".parse().ok();
        let request = JoinTokenRequest { location, role, country, ..Default::default() };
        plane
            .user
            .call::<_, JoinTokenCreated>(Method::POST, "/v1/join-tokens", Some(&request))
            .await
    };
    let no_location = refused(token(JoinTokenRole::Node, "ams").await);
    assert_eq!(no_location.code, ProblemCode::InvalidRequest);
    let problem = &no_location.problems[0];
    assert_eq!((problem.field.as_str(), problem.value.as_str()), ("country", "NL"));
    let made = token(JoinTokenRole::Location, "sin").await.unwrap();
    let sin = plane.join("sin", &made.token.parse().unwrap()).await.unwrap();
    let name = Name::Location("sin".parse().unwrap());
    let location = plane.showing(&sin.identify(&name, now()).unwrap());
    // Whatever it says of itself and of its nodes.
    let say = async |of_location: &str, of_node: &str| {
        let mut report = report_of("sin", Generation(0), vec![], vec![]);
        report.traits.country = of_location.parse().ok();
        report.nodes[0].traits.country = of_node.parse().ok();
        let path = "/link/locations/sin/report";
        location.call::<_, ()>(Method::POST, path, Some(&report)).await.unwrap();
        let view: LocationView = plane.user.get("/v1/locations/sin").await.unwrap();
        assert_eq!(view.joined_for, "NL".parse().ok());
        (view.traits.country, view.nodes[0].traits.country)
    };
    let nl = "NL".parse().ok();
    assert_eq!(say("DE", "DE").await, (None, None));
    let mut german = web();
    german["placement"] = json!({"jurisdiction": ["de"]});
    let plan = plane.plan(german).await.unwrap();
    assert!(plan.placement.is_empty() && plan.waiting.is_some(), "{plan:?}");
    // On which of its nodes an instance runs is not decided here.
    assert_eq!(say("NL", "DE").await, (None, None));
    let mut european = web();
    european["placement"] = json!({"jurisdiction": ["eu"]});
    let plan = plane.plan(european).await.unwrap();
    assert!(plan.placement.is_empty() && plan.waiting.is_some(), "{plan:?}");
    assert_eq!(say("NL", "NL").await, (nl, nl));
    let mut dutch = web();
    dutch["placement"] = json!({"jurisdiction": ["nl"]});
    let plan = plane.plan(dutch).await.unwrap();
    let placed: Vec<_> = plan.placement.iter().map(|one| one.location.as_str()).collect();
    assert_eq!(placed, ["sin"]);
    plane.stop().await;
}

#[tokio::test]
async fn a_location_pulls_what_it_was_allotted_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let token = plane.join_token_as(JoinTokenRole::Location, "sin").await.unwrap();
    let sin = plane.join("sin", &token.token.parse().unwrap()).await.unwrap();
    let name = Name::Location("sin".parse().unwrap());
    let location = plane.showing(&sin.identify(&name, now()).unwrap());
    let access: RegistryAccess = location.get("/link/locations/sin/registry").await.unwrap();
    let hash = Fingerprint::of(access.token.as_bytes()).to_string();
    let mut tables = plane.link.watch::<RegistryTable>("/link/registry/table").await.unwrap();
    let mut rights = async |holds: &dyn Fn(&Rights) -> bool| loop {
        let table = tables.next().await.expect("the watch goes on").unwrap();
        let rights = table.tokens.get(&hash).expect("a location has a token").clone();
        if holds(&rights) {
            return rights;
        }
    };
    assert_eq!(rights(&|_| true).await, Rights::default());
    let path = "/link/locations/sin/report";
    let mut report = report_of("sin", Generation(0), vec![], vec![]);
    report.gate = None;
    location.call::<_, ()>(Method::POST, path, Some(&report)).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let given = rights(&|rights| !rights.registry.is_empty()).await;
    let [right] = &given.registry[..] else { panic!("{given:?}") };
    assert_eq!(right.repositories, "default/web");
    assert_eq!(right.actions, [RegistryAction::Pull]);
    plane.stop().await;
}

#[tokio::test]
async fn a_location_that_is_removed_is_nobody_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let join = async || {
        let token = plane.join_token_as(JoinTokenRole::Location, "sin").await.unwrap();
        let sin = plane.join("sin", &token.token.parse().unwrap()).await.unwrap();
        plane.showing(&sin.identify(&Name::Location("sin".parse().unwrap()), now()).unwrap())
    };
    let report = report_of("sin", Generation(0), vec![], vec![]);
    let say = async |client: &Client| {
        let path = "/link/locations/sin/report";
        client.call::<_, ()>(Method::POST, path, Some(&report)).await
    };
    let remove = async |name: &str| {
        let path = format!("/v1/locations/{name}");
        plane.user.call::<(), ()>(Method::DELETE, &path, None).await
    };
    let location = join().await;
    say(&location).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let path = "/link/locations/sin/allotments";
    let mut sets = location.watch::<AllotmentSet>(path).await.unwrap();
    until(&mut sets, |set| !set.allotments.is_empty()).await;
    let why = refused(remove("sin").await).detail;
    assert!(why.contains("longshore drain --location sin"), "{why}");
    assert_eq!(refused(remove("ams").await).code, ProblemCode::Conflict);
    assert_eq!(refused(remove("fra").await).code, ProblemCode::NotFound);
    plane.user.call::<(), ()>(Method::DELETE, "/v1/projects/default/apps/web", None).await.unwrap();
    until(&mut sets, |set| set.allotments.is_empty()).await;
    remove("sin").await.unwrap();

    // Its streams end, it is not let in, and it may join anew.
    let rest = tokio::time::timeout(Duration::from_secs(20), sets.by_ref().count()).await;
    rest.expect("it is told nothing more");
    assert_eq!(refused(say(&location).await).code, ProblemCode::Forbidden);
    assert_eq!(refused(location.get::<serde_json::Value>(path).await).code, ProblemCode::Forbidden);
    let locations: Vec<LocationView> = plane.user.get("/v1/locations").await.unwrap();
    assert!(locations.iter().all(|view| view.location.as_str() != "sin"));
    say(&join().await).await.unwrap();
    plane.stop().await;
}
