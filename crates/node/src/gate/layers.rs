//! Frames of layers for other nodes of the location, as far as the location says that they may have them.
//!
//! What is given is read as it lies on the disk; who asked checks it. No more are given at a time than
//! [`AT_ONCE`], of which one node has [`EACH`] at most, and no faster than what is pulled before it is needed: instances
//! come first. Who takes nothing of a frame for [`TAKEN_WITHIN`] is given no more of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use longshore_api::links::Vouched;
use longshore_api::{Problem, ProblemCode};
use longshore_image::store::Presence;
use longshore_link::{CallError, Client, Refusal, chain};
use longshore_trust::{Fingerprint, Name, Peer};
use longshore_types::{Digest, NodeName, PullRate};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Node;
use crate::rate::Rate;

/// How many frames are given at the same time, and held in memory for that.
const AT_ONCE: usize = 32;
/// How many one node is given at the same time; one that takes none of them has these, and no others, until it is gone.
const EACH: usize = 16;
/// How long a frame may take to be taken.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// How much of one is handed to its connection at a time.
const PIECE: usize = 64 << 10;
/// How long it is waited for a frame that is on its way.
const HOLD: Duration = Duration::from_secs(2);
/// How long what the location said of a node and a layer holds.
const VOUCHED_FOR: Duration = Duration::from_secs(5);

/// What is given to other nodes.
pub struct Giving {
    turns: Arc<Semaphore>,
    of_each: Mutex<BTreeMap<NodeName, Arc<Semaphore>>>,
    rate: Rate,
    vouched: Mutex<BTreeMap<(NodeName, Digest), (Fingerprint, Instant)>>,
}

impl Giving {
    /// No faster than that.
    pub fn new(rate: PullRate) -> Self {
        let (of_each, vouched) = Default::default();
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { turns, of_each, rate: Rate::new(rate), vouched }
    }

    /// A turn of a node's own; nothing when it has as many as it may.
    fn own_turn(&self, node: &NodeName) -> Option<OwnedSemaphorePermit> {
        let mut of_each = self.of_each.lock().unwrap_or_else(PoisonError::into_inner);
        of_each.retain(|_, turns| turns.available_permits() < EACH);
        let turns = of_each.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(EACH)));
        Arc::clone(turns).try_acquire_owned().ok()
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
    // Who is told that one is not here has it of others sooner, and thinks no worse of this node.
    let absent = || absent(&layer, idx);
    let own = giving.own_turn(&other).ok_or_else(absent)?;
    let until = Instant::now() + HOLD;
    let presence = node.images.frame_comes(&layer, idx, HOLD).await;
    if let Some(answer) = answer_at_once(presence, &layer, idx)? {
        return Ok(answer);
    }
    let turn = tokio::time::timeout_at(until, Arc::clone(&giving.turns).acquire_owned()).await;
    let turn = turn.map_err(|_| absent())?.expect("the semaphore is never closed");
    let given = node.images.frame(&layer, idx, Duration::ZERO).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "a frame cannot be given");
        Problem::new(ProblemCode::Internal, chain(&error))
    })?;
    let frame = given.ok_or_else(absent)?;
    let paid = giving.rate.take_within(frame.len(), Instant::now(), HOLD);
    tokio::time::sleep_until(paid.ok_or_else(absent)?).await;
    node.metrics.note_given(frame.len() as u64);
    Ok(Response::new(given_away(frame, turn, own)))
}

fn absent(layer: &Digest, idx: usize) -> Refusal {
    Refusal(Problem::not_found("frame", format!("{idx} of {layer}")))
}

/// The answer where there is nothing to give. Who is told that it is on its way asks again: this node has it before
/// the others.
fn answer_at_once(
    presence: Presence,
    layer: &Digest,
    idx: usize,
) -> Result<Option<Response>, Refusal> {
    match presence {
        Presence::Here => Ok(None),
        Presence::OnItsWay => Ok(Some(StatusCode::ACCEPTED.into_response())),
        Presence::NoLayer | Presence::NoFrame => Err(absent(layer, idx)),
    }
}

/// A frame on its way to who asked. It and its turn are free again when it was taken, or not taken in time; the node's
/// own turn when its connection lets go of it.
fn given_away(frame: Bytes, turn: OwnedSemaphorePermit, own: OwnedSemaphorePermit) -> Body {
    let held = Arc::new(Mutex::new(Some((frame, turn))));
    let late = Arc::clone(&held);
    let timer = Timer(tokio::spawn(async move {
        tokio::time::sleep(TAKEN_WITHIN).await;
        late.lock().unwrap_or_else(PoisonError::into_inner).take();
    }));
    let pieces = stream::try_unfold((held, 0, timer, own), |(held, from, timer, own)| async move {
        let piece = {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((frame, _)) = &*held else {
                return Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
            };
            // A copy: a part of the frame would keep all of it.
            let piece = &frame[from..frame.len().min(from + PIECE)];
            let piece = (!piece.is_empty()).then(|| Bytes::copy_from_slice(piece));
            if piece.is_none() {
                held.take();
            }
            piece
        };
        Ok(piece.map(|piece| {
            let next = from + piece.len();
            (piece, (held, next, timer, own))
        }))
    });
    Body::from_stream(pieces)
}

/// Ends with what it is for.
struct Timer(JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::get;
    use longshore_link::{Endpoint, Listener};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_holds_no_frame_and_no_turn_of_others() {
        let giving = Giving::new(PullRate::default());
        let (slow, other) = ("n2".parse().unwrap(), "n3".parse().unwrap());
        let mut bodies = Vec::new();
        for _ in 0..EACH {
            let own = giving.own_turn(&slow).expect("it has some left");
            let turn = Arc::clone(&giving.turns).try_acquire_owned().unwrap();
            bodies.push(given_away(vec![7; 3 * PIECE].into(), turn, own));
        }
        assert!(giving.own_turn(&slow).is_none(), "it has as many as it may");
        assert_eq!(giving.turns.available_permits(), AT_ONCE - EACH);
        let own = giving.own_turn(&other).expect("that is another's");
        let turn = Arc::clone(&giving.turns).try_acquire_owned().unwrap();
        let taken = axum::body::to_bytes(given_away(vec![7; 100_000].into(), turn, own), 1 << 20);
        assert_eq!(taken.await.unwrap(), vec![7; 100_000]);
        // Those timers begin when they are first looked at.
        tokio::task::yield_now().await;
        tokio::time::advance(TAKEN_WITHIN + Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
        assert_eq!(giving.turns.available_permits(), AT_ONCE);
        assert!(giving.own_turn(&slow).is_none(), "its connections are still there");
        let broken = axum::body::to_bytes(bodies.pop().unwrap(), 1 << 20).await;
        assert!(broken.is_err(), "it came too late");
        drop(bodies);
        assert!(giving.own_turn(&slow).is_some());
    }

    #[test]
    fn who_asks_for_what_is_on_its_way_is_told_so() {
        let layer = Digest::from_sha256([1; 32]);
        let told = |presence| match answer_at_once(presence, &layer, 7) {
            Ok(answer) => Ok(answer.map(|answer| answer.status())),
            Err(Refusal(problem)) => Err((problem.code, problem.detail)),
        };
        assert_eq!(told(Presence::Here), Ok(None));
        // No problem: neighbours take those for a reason to ask others.
        assert_eq!(told(Presence::OnItsWay), Ok(Some(StatusCode::ACCEPTED)));
        for presence in [Presence::NoLayer, Presence::NoFrame] {
            let (code, detail) = told(presence).unwrap_err();
            assert_eq!(code, ProblemCode::NotFound, "{presence:?}");
            assert!(detail.contains("7 of sha256:0101"), "{detail}");
        }
    }

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
