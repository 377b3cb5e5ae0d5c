use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::routing::{get, put};
use http::StatusCode;
use longshore_api::{Problem, ProblemCode};

use super::*;
use crate::{Endpoint, Listener, Refusal};

type Counted = Arc<AtomicUsize>;

/// Counts what comes and whether it is whole.
async fn count(State(n_bytes): State<Counted>, body: Body) -> StatusCode {
    let mut body = body.into_data_stream();
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else { return StatusCode::BAD_REQUEST };
        n_bytes.fetch_add(chunk.len(), Ordering::Relaxed);
    }
    StatusCode::NO_CONTENT
}

/// Reads one piece and never another.
async fn hang(body: Body) {
    let mut body = body.into_data_stream();
    let _ = body.next().await;
    std::future::pending::<()>().await;
}

async fn refuse() -> Refusal {
    Problem::new(ProblemCode::Conflict, "the disk is full").into()
}

async fn serve(router: Router) -> (Client, CancellationToken) {
    let listener = Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".to_owned())).unwrap();
    let client = Client::new(listener.endpoint().unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(listener.serve(router, shutdown.clone()));
    (client, shutdown)
}

fn pieces(n: usize) -> impl Stream<Item = io::Result<Bytes>> {
    stream::iter((0..n).map(|_| Ok(Bytes::from(vec![7; 64 << 10]))))
}

#[tokio::test]
async fn a_body_of_any_size_is_sent_as_it_comes() {
    let n_bytes = Counted::default();
    let router = Router::new().route("/", put(count)).with_state(Arc::clone(&n_bytes));
    let (client, _shutdown) = serve(router).await;
    client.upload(Method::PUT, "/", "application/x-tar", pieces(800)).await.unwrap();
    assert_eq!(n_bytes.load(Ordering::Relaxed), 800 * (64 << 10));
    // A source that breaks off does not look like one that ended.
    let broken = pieces(3).chain(stream::once(async { Err(io::Error::other("broken")) }));
    let error = client.upload(Method::PUT, "/", "application/x-tar", broken).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_heard_while_the_body_is_under_way() {
    let (client, _shutdown) = serve(Router::new().route("/", put(refuse))).await;
    let error = client.upload(Method::PUT, "/", "application/x-tar", pieces(10_000)).await;
    let error = error.unwrap_err();
    assert!(matches!(&error, CallError::Refused(problem) if problem.detail == "the disk is full"));
}

#[tokio::test(start_paused = true)]
async fn only_who_takes_nothing_is_silent() {
    let n_bytes = Counted::default();
    let router = Router::new().route("/", put(count)).route("/hang", put(hang));
    let (client, _shutdown) = serve(router.with_state(Arc::clone(&n_bytes))).await;
    // Far longer than anybody may be silent, for want of a source.
    let slow = stream::iter(0..5).then(|_| async {
        tokio::time::sleep(3 * SILENCE).await;
        Ok::<_, io::Error>(Bytes::from_static(b"x"))
    });
    client.upload(Method::PUT, "/", "application/x-tar", slow).await.unwrap();
    assert_eq!(n_bytes.load(Ordering::Relaxed), 5);
    let error = client.upload(Method::PUT, "/hang", "application/x-tar", pieces(10_000)).await;
    assert!(matches!(error, Err(CallError::TimedOut { .. })), "{error:?}");
}

#[tokio::test]
async fn an_answer_is_whole_or_broken_off() {
    let parts = |end: Option<&'static str>| {
        let end = end.map(|why| Err(io::Error::other(why)));
        pieces(2).chain(stream::iter(end))
    };
    let kind = || HeaderValue::from_static("application/x-tar");
    let running = CancellationToken::new();
    let ended = running.clone();
    let router =
        Router::new()
            .route(
                "/whole",
                get(move || async move {
                    whole_or_broken(kind(), parts(None), CancellationToken::new())
                }),
            )
            .route(
                "/broken",
                get(move || async move {
                    whole_or_broken(kind(), parts(Some("no")), CancellationToken::new())
                }),
            )
            .route(
                "/ends",
                get(move || async move {
                    let endless = pieces(2).chain(stream::pending());
                    whole_or_broken(kind(), endless, ended)
                }),
            );
    let (client, _shutdown) = serve(router).await;
    // The same through another service.
    let near = client.clone();
    let relayed = Router::new().route(
        "/{which}",
        get(move |axum::extract::Path(which): axum::extract::Path<String>| async move {
            let answer = near.send(Method::GET, &format!("/{which}"), None::<&()>).await;
            let answer = answer
                .map_err(|error| Problem::new(ProblemCode::Unavailable, error.to_string()))?;
            Ok::<_, Refusal>(relay_whole(answer, CancellationToken::new()))
        }),
    );
    let (relay, _other) = serve(relayed).await;
    let read = async |client: &Client, path: &str| -> Result<usize, CallError> {
        let parts: Vec<Bytes> = client.download(path).await?.try_collect().await?;
        Ok(parts.iter().map(Bytes::len).sum())
    };
    for client in [&client, &relay] {
        assert_eq!(read(client, "/whole").await.unwrap(), 128 << 10);
        let broken = read(client, "/broken").await;
        assert!(broken.is_err(), "{broken:?}");
    }
    let mut endless = relay.download("/ends").await.unwrap();
    assert!(endless.next().await.unwrap().is_ok());
    running.cancel();
    let rest: Result<Vec<Bytes>, _> = endless.try_collect().await;
    assert!(matches!(rest, Err(CallError::Unreachable { .. })), "{rest:?}");
}
