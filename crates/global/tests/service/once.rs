//! Changes that are made once, on conditions, and not too often.

use std::num::NonZeroU32;

use http::{HeaderValue, Method};
use longshore_api::v1::{
    AppView, DeployRequest, DeployResponse, ReleaseView, RollbackRequest, ScaleRequest,
    SecretRequest, SecretView, TokenCreated, TokenRequest,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client};
use longshore_types::SecretValue;
use longshore_types::token::Rights;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::plane::*;

const APP: &str = "/v1/projects/default/apps/web";

fn with_header(client: &Client, name: &'static str, value: &str) -> Client {
    client.clone().with_header(name, HeaderValue::from_str(value).unwrap())
}

fn keyed(client: &Client, key: &str) -> Client {
    with_header(client, "idempotency-key", key)
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Problem {
    match outcome {
        Err(CallError::Refused(problem)) => problem,
        other => panic!("must be refused: {other:?}"),
    }
}

async fn post<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    body: &(impl Serialize + Sync),
) -> Result<T, CallError> {
    client.call(Method::POST, path, Some(body)).await
}

#[tokio::test]
async fn what_comes_again_with_its_key_is_done_once_and_answered_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    for word in ["a", "b", "c"] {
        plane.deploy(web_with(word, serde_json::json!({}))).await.unwrap();
    }
    // Without a release named, each goes one further back.
    let back = RollbackRequest { release: None };
    let rollback = format!("{APP}/rollback");
    let client = keyed(&plane.user, "first");
    let first: DeployResponse = post(&client, &rollback, &back).await.unwrap();
    for _ in 0..2 {
        assert_eq!(post::<DeployResponse>(&client, &rollback, &back).await.unwrap(), first);
    }
    assert_eq!(plane.app().await.release.0, 2);
    let other = RollbackRequest { release: Some(longshore_types::ReleaseNumber(1)) };
    let problem = refusal(post::<DeployResponse>(&client, &rollback, &other).await);
    assert_eq!(problem.problems[0].field, "Idempotency-Key");

    // The text of a token is shown to who made it, also when the first answer did not arrive.
    let request = TokenRequest { name: "ci".parse().unwrap(), rights: Rights::default() };
    let client = keyed(&plane.user, "token-1");
    let made: TokenCreated = post(&client, "/v1/tokens", &request).await.unwrap();
    plane.stop().await;
    let store = std::fs::read(dir.path().join("data/store.redb")).unwrap();
    assert!(!store.windows(made.token.len()).any(|part| part == made.token.as_bytes()));

    let plane = Plane::start(dir.path()).await;
    let again = keyed(&plane.user, "token-1");
    assert_eq!(post::<TokenCreated>(&again, "/v1/tokens", &request).await.unwrap(), made);
    // The same key of another token is another key.
    let ci = keyed(&Client::new(plane.user.endpoint().clone()).with_token(made.token), "first");
    let forbidden = refusal(post::<DeployResponse>(&ci, &rollback, &back).await);
    assert_eq!(forbidden.code, ProblemCode::Forbidden);
    plane.stop().await;
}

#[tokio::test]
async fn what_was_refused_may_be_tried_again_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let client = keyed(&plane.user, "one");
    let scale = ScaleRequest { count: 3 };
    let path = format!("{APP}/scale");
    let refused = refusal(post::<AppView>(&client, &path, &scale).await);
    assert_eq!(refused.code, ProblemCode::NotFound);
    plane.deploy(web()).await.unwrap();
    assert_eq!(post::<AppView>(&client, &path, &scale).await.unwrap().count, 3);
    for bad in ["", "a b", &"x".repeat(129)] {
        let problem = refusal(post::<AppView>(&keyed(&plane.user, bad), &path, &scale).await);
        assert_eq!(problem.problems[0].field, "Idempotency-Key", "{bad:?}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn twenty_at_once_with_one_key_make_one_version() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let client = keyed(&plane.user, "burst");
    let request = SecretRequest { value: SecretValue::new(b"x".to_vec()) };
    let path = "/v1/projects/default/secrets/db";
    let set = || client.call::<_, SecretView>(Method::PUT, path, Some(&request));
    let outcomes = futures_util::future::join_all((0..20).map(|_| set())).await;
    let done = outcomes.into_iter().filter_map(|outcome| match outcome {
        Ok(view) => Some(view),
        Err(CallError::Refused(problem)) if problem.code == ProblemCode::RequestUnderWay => None,
        Err(error) => panic!("{error}"),
    });
    assert!(done.map(|view| view.version.0).all(|version| version == 1));
    let last: SecretView = set().await.unwrap();
    assert_eq!(last.version.0, 1);
    plane.stop().await;
}

#[tokio::test]
async fn a_change_is_made_only_of_what_its_sender_has_seen() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let deploy = async |client: &Client, word: &str| {
        let request = DeployRequest { manifest: web_with(word, serde_json::json!({})) };
        client.call::<_, DeployResponse>(Method::PUT, APP, Some(&request)).await
    };
    let absent = with_header(&plane.user, "if-none-match", "*");
    let failed = |problem: Problem| assert_eq!(problem.code, ProblemCode::PreconditionFailed);
    failed(refusal(deploy(&with_header(&plane.user, "if-match", "*"), "a").await));
    let first = deploy(&absent, "a").await.unwrap();
    failed(refusal(deploy(&absent, "a").await));

    let answer = plane.user.send(Method::GET, APP, None::<&()>).await.unwrap();
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, format!("\"{}\"", first.generation));
    let seen = with_header(&plane.user, "if-match", &tag);
    let second = deploy(&seen, "b").await.unwrap();
    assert!(second.generation > first.generation);
    failed(refusal(deploy(&seen, "c").await));
    let scale = post::<AppView>(&seen, &format!("{APP}/scale"), &ScaleRequest { count: 1 }).await;
    failed(refusal(scale));
    failed(refusal(post::<DeployResponse>(&seen, &format!("{APP}/promote"), &()).await));
    let back = RollbackRequest { release: None };
    failed(refusal(post::<DeployResponse>(&seen, &format!("{APP}/rollback"), &back).await));
    failed(refusal(seen.call::<(), ()>(Method::DELETE, APP, None).await));
    let releases: Vec<ReleaseView> = plane.releases().await;
    assert_eq!((releases.len(), plane.app().await.count), (2, 2));
    let bad = refusal(deploy(&with_header(&plane.user, "if-match", "seven"), "d").await);
    assert_eq!(bad.problems[0].field, "If-Match");
    plane.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start_with_rate(dir.path(), NonZeroU32::new(2).unwrap()).await;
    let request = TokenRequest { name: "busy".parse().unwrap(), rights: Rights::default() };
    let made: TokenCreated = post(&plane.user, "/v1/tokens", &request).await.unwrap();
    let endpoint = plane.user.endpoint().clone();
    let busy = Client::new(endpoint.clone()).with_token(made.token);
    let mut codes = Vec::new();
    for _ in 0..100 {
        codes.push(refusal(busy.get::<Vec<AppView>>("/v1/projects/default/apps").await).code);
    }
    assert_eq!(codes[..10], [ProblemCode::Forbidden; 10]);
    assert_eq!(codes[99], ProblemCode::TooManyRequests);
    assert!(plane.user.get::<Vec<AppView>>("/v1/projects/default/apps").await.is_ok());

    let guesser = Client::new(endpoint).with_token("lsh_guess");
    let mut codes = Vec::new();
    for _ in 0..100 {
        codes.push(refusal(guesser.get::<Vec<AppView>>("/v1/projects/default/apps").await).code);
    }
    assert_eq!(codes[0], ProblemCode::Unauthenticated);
    assert_eq!(codes[99], ProblemCode::TooManyRequests);
    assert!(plane.user.get::<Vec<AppView>>("/v1/projects/default/apps").await.is_ok());
    plane.stop().await;
}

#[tokio::test]
async fn whatever_cannot_be_asked_is_answered_as_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    for (method, path, code) in [
        (Method::PATCH, "/v1/health", ProblemCode::MethodNotAllowed),
        (Method::DELETE, "/v1/projects/default/apps", ProblemCode::MethodNotAllowed),
        (Method::GET, "/v1/nothing", ProblemCode::NotFound),
        (Method::GET, "/none", ProblemCode::NotFound),
        (Method::GET, "/v1/projects/%ff/apps", ProblemCode::InvalidRequest),
        (
            Method::GET,
            "/v1/projects/default/instances?limit=1&limit=2",
            ProblemCode::InvalidRequest,
        ),
        (Method::GET, "/v1/errors/none", ProblemCode::NotFound),
    ] {
        let answer = plane.user.send(method.clone(), path, None::<&()>).await;
        assert_eq!(refusal(answer.map(drop)).code, code, "{method} {path}");
    }
    plane.stop().await;
}
