//! Frames of layers for other nodes of the location, as far as the location says that they may have them.
//!
//! What is given is read as it lies on the disk; who asked checks it. No more are given at a time than
//! [`AT_ONCE`], and no faster than what is pulled before it is needed: instances come first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use longshore_api::links::Vouched;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Refusal, chain};
use longshore_trust::{Fingerprint, Name, Peer};
use longshore_types::{Digest, NodeName, PullRate};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Node;
use crate::rate::Rate;

/// How many frames are given at the same time, and held in memory for that.
const AT_ONCE: usize = 32;
/// How long it is waited for a frame that is on its way.
const HOLD: Duration = Duration::from_secs(2);
/// How long what the location said of a node and a layer holds.
const VOUCHED_FOR: Duration = Duration::from_secs(5);

/// What is given to other nodes.
pub struct Giving {
    turns: Semaphore,
    rate: Rate,
    vouched: Mutex<BTreeMap<(NodeName, Digest), (Fingerprint, Instant)>>,
}

impl Giving {
    /// No faster than that.
    pub fn new(rate: PullRate) -> Self {
        let vouched = Mutex::default();
        Self { turns: Semaphore::new(AT_ONCE), rate: Rate::new(rate), vouched }
    }

    fn vouched(&self) -> MutexGuard<'_, BTreeMap<(NodeName, Digest), (Fingerprint, Instant)>> {
        self.vouched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses who is not known by this key, or may not have the layer.
    async fn check(
        &self,
        (location, own): (&Client, &NodeName),
        (other, key): (&NodeName, Fingerprint),
        layer: &Digest,
    ) -> Result<(), Refusal> {
        let of = (other.clone(), *layer);
        let now = Instant::now();
        if let Some((known, until)) = self.vouched().get(&of)
            && *known == key
            && *until > now
        {
            return Ok(());
        }
        let path = format!("/link/nodes/{own}/neighbours/{other}?layer={layer}");
        let vouched = location.get::<Vouched>(&path).await.map_err(|error| match error {
            CallError::Refused(problem) => Refusal(problem),
            error => {
                let detail = format!("the location does not vouch for {other}: {}", chain(&error));
                Problem::new(ProblemCode::Unavailable, detail).into()
            }
        })?;
        if vouched.key != key.to_string() {
            let detail = format!("node {other} is known by another key");
            return Err(Problem::new(ProblemCode::Forbidden, detail).into());
        }
        let mut vouched = self.vouched();
        vouched.retain(|_, (_, until)| *until > now);
        vouched.insert(of, (key, now + VOUCHED_FOR));
        Ok(())
    }
}

/// Gives a frame, once it is here.
pub async fn frame(
    State(node): State<Arc<Node>>,
    Path((layer, idx)): Path<(Digest, usize)>,
    Extension(peer): Extension<Peer>,
) -> Result<Response, Refusal> {
    let Peer::Known { name: Name::Node(_, other), key, .. } = peer else {
        let detail = "layers are given to nodes of the same location alone";
        return Err(Problem::new(ProblemCode::Forbidden, detail).into());
    };
    let giving = &node.giving;
    giving.check((&node.location, &node.name), (&other, key), &layer).await?;
    let _turn = giving.turns.acquire().await.expect("the semaphore is never closed");
    let given = node.images.frame(&layer, idx, HOLD).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "a frame cannot be given");
        Problem::new(ProblemCode::Internal, chain(&error))
    })?;
    let now = Instant::now();
    // One that would come late, who asked has of others sooner, and thinks no worse of this node.
    let given = given.filter(|frame| giving.rate.allows(frame.len(), now, HOLD));
    let absent = || Problem::not_found("frame", format!("{idx} of {layer}"));
    let frame = given.ok_or_else(absent)?;
    if let Some(until) = giving.rate.take(frame.len(), now) {
        tokio::time::sleep_until(until).await;
    }
    node.metrics.note_given(frame.len() as u64);
    Ok(Response::new(frame.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::get;
    use longshore_link::{Endpoint, Listener};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_layer_is_given_to_whom_the_location_vouches_for_and_to_no_other_key() {
        let dir = tempfile::tempdir().unwrap();
        let at = Endpoint::Unix(dir.path().join("location.sock"));
        let (key, thief) = (Fingerprint::of(b"key"), Fingerprint::of(b"another"));
        let layer = |n| Digest::from_sha256([n; 32]);
        let n_asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&n_asked);
        let vouch =
            get(move |axum::extract::RawQuery(query): axum::extract::RawQuery| async move {
                counted.fetch_add(1, Ordering::Relaxed);
                match query {
                    Some(query) if query == format!("layer={}", layer(1)) => {
                        Ok(axum::Json(Vouched { key: key.to_string() }))
                    }
                    _ => Err(Refusal(Problem::new(ProblemCode::Forbidden, "it is not its"))),
                }
            });
        let end = CancellationToken::new();
        let location = Router::new().route("/link/nodes/n1/neighbours/n2", vouch);
        let listener = Listener::bind("location", &at).unwrap();
        let served = tokio::spawn(listener.serve(location, end.clone()));
        let (giving, client) = (Giving::new(PullRate::default()), Client::new(at));
        let (own, other) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let check = async |key, n| {
            let checked = giving.check((&client, &own), (&other, key), &layer(n)).await;
            checked.map_err(|Refusal(problem)| problem.code)
        };
        let forbidden = Err(ProblemCode::Forbidden);
        assert_eq!(check(thief, 1).await, forbidden, "it has the name and not the key");
        assert_eq!(check(key, 1).await, Ok(()));
        assert_eq!((check(key, 1).await, n_asked.load(Ordering::Relaxed)), (Ok(()), 2));
        assert_eq!((check(key, 2).await, check(thief, 1).await), (forbidden, forbidden));
        end.cancel();
        served.await.unwrap().unwrap();
        // Without the location nobody is vouched for that was not before.
        assert_eq!(check(key, 3).await, Err(ProblemCode::Unavailable));
        assert_eq!(check(key, 1).await, Ok(()));
    }
}
