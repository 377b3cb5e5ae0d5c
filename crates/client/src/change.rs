//! Changes that are made once, also when the connection breaks under them.

use std::time::Duration;

use http::{HeaderValue, Method};
use longshore_api::ProblemCode;
use longshore_link::{CallError, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The waits before a change is sent again, in milliseconds.
const WAITS: [u64; 4] = [50, 200, 400, 800];
/// How often a change is sent again while no control plane leads, and the wait between. One that died
/// is succeeded after some 10 s.
const WITHOUT_LEADER: (usize, Duration) = (20, Duration::from_secs(1));

/// Sends a change until it is answered, with one key, so that it is made once.
pub(crate) async fn change<B: Serialize + Sync, T: DeserializeOwned>(
    link: &Client,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<T, CallError> {
    let key = uuid::Uuid::new_v4().simple().to_string();
    let key = HeaderValue::from_str(&key).expect("hexadecimal digits are a header value");
    let keyed = link.clone().with_header("idempotency-key", key);
    let (mut waits, mut without_leader) = (WAITS.into_iter(), 0..WITHOUT_LEADER.0);
    loop {
        let error = match keyed.call(method.clone(), path, body).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let wait = match &error {
            CallError::Refused(problem) if problem.code == ProblemCode::NoLeader => {
                without_leader.next().map(|_| WITHOUT_LEADER.1)
            }
            error if may_help(error) => waits.next().map(Duration::from_millis),
            _ => None,
        };
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// Whether the same change, sent again, may fare better, or be answered where it was not.
fn may_help(error: &CallError) -> bool {
    match error {
        CallError::Unreachable { .. } => true,
        CallError::Refused(problem) => {
            matches!(problem.code, ProblemCode::RequestUnderWay | ProblemCode::TooManyRequests)
        }
        // Who waited 30 s for an answer waits no longer.
        CallError::TimedOut { .. } | CallError::Status { .. } | CallError::Malformed { .. } => {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::{Request, State};
    use axum::response::{IntoResponse, Response};
    use longshore_api::Problem;
    use longshore_link::{Endpoint, Listener, Refusal};
    use tokio::io::AsyncReadExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    type Seen = Arc<Mutex<Vec<String>>>;

    async fn answer(State(seen): State<Seen>, request: Request) -> Response {
        let key = request.headers()["idempotency-key"].to_str().unwrap_or_default().to_owned();
        let mut seen = seen.lock().expect("no test panics with it");
        seen.push(key);
        if seen.len() == 1 {
            let detail = "a request with this idempotency key is under way";
            return Refusal(Problem::new(ProblemCode::RequestUnderWay, detail)).into_response();
        }
        axum::Json(7).into_response()
    }

    #[tokio::test]
    async fn a_change_whose_connection_broke_is_sent_again_with_its_key() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Seen::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&seen));
        let breaking = tokio::spawn(async move {
            // The first connection breaks after the request came.
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = [0; 512];
            let length = stream.read(&mut head).await.expect("a request");
            drop(stream);
            let listener = listener.into_std().expect("a socket");
            let served = Listener::Tcp(listener).serve(router, CancellationToken::new());
            tokio::spawn(served);
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        let link = Client::new(Endpoint::Tcp(address.to_string()));
        let answer: u32 = change(&link, Method::POST, "/", Some(&1)).await.expect("an answer");
        let first = breaking.await.expect("no panic");
        let seen = seen.lock().expect("no test panics with it").clone();
        assert_eq!(answer, 7);
        assert!(seen.len() == 2 && seen[0] == seen[1], "{seen:?}");
        assert!(first.contains(&format!("idempotency-key: {}", seen[0])), "{first}");
    }
}
