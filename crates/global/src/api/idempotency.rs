//! Changes that are made once, however often they are sent: `Idempotency-Key`.
//!
//! A client that lost the connection does not know whether its change was made, and sends it again with the
//! same key. That the change was made is written in the transaction of the change itself, so it is known
//! also after a crash at any moment; its answer is added a moment later, sealed, for some answers are
//! secrets. A request goes on when its client is gone, so that there is an answer to come back for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, now};
use longshore_store::{MAX_OPERATIONS, Page, Store, StoreError, Transaction};
use longshore_types::{Duration, SecretValue};
use sha2::{Digest as _, Sha256};

use super::access::Caller;
use super::endpoint::Endpoint;
use super::{MAX_BODY, store_failed};
use crate::Plane;
use crate::events::OnceMark;
use crate::hash::{hex, sha256};
use crate::records::{AnswerRecord, GivenAnswer, Key, decode, encode};

/// The header that carries the key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header of an answer that was given before.
const REPLAYED: &str = "idempotency-replayed";
/// The longest key, in bytes.
const LONGEST_KEY: usize = 128;
/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The largest answer that is kept.
const LARGEST_ANSWER: usize = 256 << 10;
/// Below this, the records.
const ANSWERS: &str = "/answers/";

/// The keys of requests that are under way.
#[derive(Debug, Default)]
pub struct UnderWay(Mutex<BTreeSet<String>>);

/// A key's turn, over when this is dropped.
struct Turn {
    plane: Arc<Plane>,
    record: String,
}

impl Turn {
    fn take(plane: &Arc<Plane>, record: &str) -> Option<Self> {
        let mut keys = plane.under_way.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = || Self { plane: Arc::clone(plane), record: record.to_owned() };
        keys.insert(record.to_owned()).then(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut keys = self.plane.under_way.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.remove(&self.record);
    }
}

impl Endpoint {
    /// Whether a key makes it happen once: what changes something, and is no stream, either way.
    pub(super) fn is_idempotent_by_key(&self) -> bool {
        let streams = self.about.answer.forms.iter().any(|form| !form.what.is_empty());
        let takes_json = self.about.takes.is_none_or(|(kind, _)| kind == "application/json");
        self.method.0 != "GET" && !streams && takes_json && !self.path.ends_with("/plan")
    }
}

/// The key of a request, if it has one.
pub fn key_of(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| {
        (1..=LONGEST_KEY).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    text.map(|text| Some(text.to_owned())).ok_or_else(|| {
        let allowed = format!("1 to {LONGEST_KEY} visible characters of ASCII");
        Problem::invalid_value("Idempotency-Key", format_args!("{value:?}"), allowed).into()
    })
}

/// Carries a request out, or gives the answer that it had when it came before.
pub async fn once(
    plane: Arc<Plane>,
    mut caller: Caller,
    key: &str,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| {
        Problem::new(ProblemCode::TooLarge, format!("a body has at most {MAX_BODY} bytes"))
    })?;
    let mut request_hash = Sha256::new();
    request_hash.update(format!("{} {}\n", parts.method, parts.uri));
    request_hash.update(&body);
    let request_hash = hex(&request_hash.finalize());
    let record = Key::Answer(caller.token.clone(), sha256(key)).to_string();
    let Some(turn) = Turn::take(&plane, &record) else {
        let detail = "a request with this idempotency key is under way; ask again in a moment";
        return Err(Problem::new(ProblemCode::RequestUnderWay, detail).into());
    };
    if let Some(stored) = plane.store.get(&record).await.map_err(store_failed)? {
        let before: AnswerRecord = decode(&stored).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "an answer cannot be read");
            Problem::new(ProblemCode::Internal, "what is kept of this key cannot be understood")
        })?;
        return again(&plane, &record, &request_hash, before);
    }
    caller.once = Some(OnceMark { record: record.clone(), request_hash: request_hash.clone() });
    let mut request = Request::from_parts(parts, Body::from(body));
    request.extensions_mut().insert(caller);
    let (sender, answered) = tokio::sync::oneshot::channel();
    let service = plane.service.clone();
    service.spawn_until_shutdown("request", async move {
        let response = next.run(request).await;
        let response = keep(&plane, record, request_hash, response).await;
        drop(turn);
        // A client that is gone comes back with the key, or does not care.
        let _ = sender.send(response);
    });
    answered.await.map_err(|_| {
        Refusal(Problem::new(ProblemCode::Unavailable, "the control plane is ending; ask again"))
    })
}

/// Keeps the answer to a request that was carried out.
async fn keep(plane: &Plane, record: String, request_hash: String, response: Response) -> Response {
    if !response.status().is_success() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let body = match to_bytes(body, LARGEST_ANSWER).await {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(%error, "an answer is too large to be kept");
            let detail = "it was done, but its answer is too large to be given with a key";
            return Refusal(Problem::new(ProblemCode::Internal, detail)).into_response();
        }
    };
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let sealed = plane.keyring.seal(&record, &SecretValue::new(body.to_vec()));
    let kept = match sealed {
        Ok(body) => {
            let status = parts.status.as_u16();
            let answer = Some(GivenAnswer { status, content_type, body });
            let value = encode(&AnswerRecord { request_hash, at: now(), answer });
            plane
                .store
                .commit(Transaction::new().put(record, value))
                .await
                .map_err(|e| e.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = kept {
        // The client has it now. Only if it asks again will it hear that the answer was lost.
        tracing::warn!(error, "an answer was not kept");
    }
    Response::from_parts(parts, Body::from(body))
}

/// Answers a request whose key came before.
fn again(
    plane: &Plane,
    record: &str,
    request_hash: &str,
    before: AnswerRecord,
) -> Result<Response, Refusal> {
    if before.request_hash != request_hash {
        let allowed = "a key of its own: this one came with another request";
        return Err(Problem::invalid_value("Idempotency-Key", "(given)", allowed).into());
    }
    let lost = || {
        let detail =
            "it was done when this key came first, but its answer was lost; look at how things are";
        Refusal(Problem::new(ProblemCode::Conflict, detail))
    };
    let answer = before.answer.ok_or_else(lost)?;
    // The key of the seal may have been changed and forgotten since.
    let body = plane.keyring.unseal(record, &answer.body).map_err(|_| lost())?;
    let mut response = Response::new(Body::from(body.bytes().to_vec()));
    *response.status_mut() = StatusCode::from_u16(answer.status).map_err(|_| lost())?;
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Some(kind) = answer.content_type.and_then(|kind| kind.parse().ok()) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// Forgets answers that nobody comes back for any more.
pub async fn forget_old(store: &dyn Store) -> Result<(), StoreError> {
    let now = now();
    let listing = store.list(ANSWERS, Page::default()).await?;
    let old = listing.items.iter().filter(|stored| {
        // One that cannot be read helps nobody.
        decode::<AnswerRecord>(stored).map_or(true, |record| now.since(record.at) > KEPT)
    });
    let old: Vec<_> = old.map(|stored| stored.key.clone()).collect();
    for some in old.chunks(MAX_OPERATIONS) {
        let change = some.iter().cloned().fold(Transaction::new(), Transaction::delete);
        store.commit(change).await?;
    }
    Ok(())
}
