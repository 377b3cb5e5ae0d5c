use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use longshore_api::ProblemCode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Body, Listener, Refusal, json_lines, watch_lines};

async fn serve(endpoint: Endpoint, router: Router) -> (Client, CancellationToken) {
    let listener = Listener::bind("test", &endpoint).unwrap();
    let client = Client::new(listener.endpoint().unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(listener.serve(router, shutdown.clone()));
    (client, shutdown)
}

fn router() -> Router {
    Router::new()
        .route("/double", post(|Body(n): Body<u32>| async move { axum::Json(n * 2) }))
        .route("/no", get(|| async { Refusal(Problem::not_found("app", "web")) }))
        .route("/bare", get(|| async { http::StatusCode::IM_A_TEAPOT }))
        .route(
            "/registry",
            get(|| async {
                let errors = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"a has no b"}]}"#;
                (http::StatusCode::NOT_FOUND, errors)
            }),
        )
}

#[tokio::test]
async fn calls_over_tcp_and_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    for endpoint in [Endpoint::Tcp("127.0.0.1:0".into()), Endpoint::Unix(dir.path().join("s"))] {
        let (client, _shutdown) = serve(endpoint, router()).await;
        let doubled: u32 = client.call(Method::POST, "/double", Some(&21)).await.unwrap();
        assert_eq!(doubled, 42);
        let refused = client.get::<()>("/no").await.unwrap_err();
        assert!(matches!(&refused, CallError::Refused(p) if p.code == ProblemCode::NotFound));
        assert!(!refused.retryable());
        let bare = client.get::<()>("/bare").await.unwrap_err();
        assert!(matches!(bare, CallError::Status { status: 418, .. }), "{bare}");
        let of_registry = client.get::<()>("/registry").await.unwrap_err().to_string();
        assert!(of_registry.ends_with("answered with status 404: a has no b"), "{of_registry}");
        let bad = client.call::<_, u32>(Method::POST, "/double", Some(&"x")).await.unwrap_err();
        assert!(matches!(bad, CallError::Refused(p) if p.code == ProblemCode::InvalidRequest));
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_retryable() {
    let client = Client::new(Endpoint::Unix("/nonexistent/socket".into()));
    let error = client.get::<()>("/").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }) && error.retryable(), "{error}");
}

#[tokio::test]
async fn a_watch_gives_the_present_value_then_changes_and_ends_at_shutdown() {
    let (sender, receiver) = watch::channel(Arc::new(1_u32));
    let shutdown = CancellationToken::new();
    let until = shutdown.clone();
    let handler = move || async move { json_lines(watch_lines(receiver), until) };
    let router = Router::new().route("/watch", get(handler));
    let (client, _server) = serve(Endpoint::Tcp("127.0.0.1:0".into()), router).await;
    let mut lines = client.watch::<u32>("/watch").await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), 1);
    sender.send(Arc::new(2)).unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), 2);
    shutdown.cancel();
    assert!(lines.next().await.is_none());
}

#[test]
fn a_second_bind_names_the_address() {
    let first = Listener::bind("first", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
    let taken = first.endpoint().unwrap();
    let error = Listener::bind("second", &taken).unwrap_err().to_string();
    assert!(error.contains(taken.authority()) && error.contains("already in use"), "{error}");
}
