//! Tokens by which machines join.

use http::Method;
use longshore_api::v1::{EventView, JoinTokenCreated, JoinTokenRequest};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, now};
use longshore_trust::{
    CertificateRequest, Fingerprint, JoinRole, JoinToken, NewKey, RedeemRequest, Signed,
};
use longshore_types::Generation;

use crate::plane::*;

impl Plane {
    async fn join_token(&self, location: &str) -> Result<JoinTokenCreated, CallError> {
        let request =
            JoinTokenRequest { location: location.parse().unwrap(), role: Default::default() };
        self.user.call(Method::POST, "/v1/join-tokens", Some(&request)).await
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

fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Problem {
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
    assert_eq!((token.location.as_str(), &*token.address), ("ams", "203.0.113.1:4602"));
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
