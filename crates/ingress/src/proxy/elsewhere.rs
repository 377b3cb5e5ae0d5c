//! What is particular to a request that goes to another location, or comes from one.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use longshore_types::AppName;
use tokio::time::Instant;

use super::Proxy;
use super::attempt::{repetition, with_head_of};
use super::body::{Answer, Kept, RequestBody};
use super::dial::note_failed;
use super::headers::REFUSED;
use crate::elsewhere::{Location, Told};
use crate::fault::Fault;
use crate::upstream::Upstream;

/// The host of a probe, which no app can be reached by.
const PROBE: &str = "probe.longshore.internal";
/// The longest answer to a probe, bytes.
const MAX_TOLD: usize = 1024;

/// True when nothing of a request came to an instance, so that another location may have it.
fn is_refusal(fault: &Fault) -> bool {
    match fault {
        Fault::NoRoutes
        | Fault::UnknownHost(_)
        | Fault::NoInstance(_)
        | Fault::Overloaded
        | Fault::Unreachable => true,
        Fault::Invalid(_) | Fault::Tunnel | Fault::Broken | Fault::Silent | Fault::ClientSilent => {
            false
        }
    }
}

/// Says in an answer to another location that the request may go elsewhere.
pub(super) fn mark_refused(answer: &mut Response<Answer>, fault: &Fault) {
    if is_refusal(fault) {
        answer.headers_mut().insert(REFUSED, HeaderValue::from_static(fault.code()));
    }
}

/// A request to another location, as far as it can be sent once more.
pub(super) enum PassedOn {
    /// It has no body.
    Empty(Option<Box<Request<RequestBody>>>),
    /// The beginning of its body is kept.
    Kept(Box<Request<Kept>>),
}

impl PassedOn {
    /// Has what is sent of a request kept until it is answered.
    pub fn of(request: Request<RequestBody>) -> (Request<RequestBody>, Self) {
        let request = request.map(RequestBody::held);
        match request.body().keep() {
            Some(kept) if !request.body().is_end_stream() => {
                let again = with_head_of(&request, kept);
                (request, Self::Kept(Box::new(again)))
            }
            _ => {
                let again = repetition(&request).map(Box::new);
                (request, Self::Empty(again))
            }
        }
    }

    /// When the location refused: the request once more, or what to answer when some of its body is gone.
    pub fn refused(
        self,
        answer: &Response<Incoming>,
        app: &AppName,
    ) -> Option<Result<Request<RequestBody>, Fault>> {
        let Some(code) = answer.headers().get(REFUSED) else {
            if let Self::Kept(kept) = self {
                kept.body().end();
            }
            return None;
        };
        let again = match self {
            Self::Empty(again) => again.map(|again| *again),
            Self::Kept(kept) => {
                let body = kept.body().again();
                body.map(|body| kept.map(|_| body))
            }
        };
        Some(again.ok_or_else(|| match code.as_bytes() {
            b"ingress-overloaded" => Fault::Overloaded,
            b"instance-unreachable" => Fault::Unreachable,
            _ => Fault::NoInstance(app.clone()),
        }))
    }
}

impl Proxy {
    /// Asks another location how much it has to do, and measures how long that takes, without the time for
    /// a connection. None when it does not answer.
    pub async fn probe(&self, upstream: &Upstream) -> Option<(Duration, Told)> {
        let mut place = match self.dialler.place(upstream).await {
            Ok(place) => place,
            Err(error) => {
                note_failed(upstream, &error);
                return None;
            }
        };
        let uri = format!("http://{PROBE}/");
        let mut request = Request::new(RequestBody::none());
        *request.uri_mut() = uri.parse().expect("a constant URI");
        *request.version_mut() = http::Version::HTTP_2;
        let asking = async {
            let began = Instant::now();
            let answer = place.sender.send_request(request).await.ok()?;
            let took = began.elapsed();
            let body = Limited::new(answer.into_body(), MAX_TOLD).collect().await.ok()?;
            Some((took, serde_json::from_slice(&body.to_bytes()).ok()?))
        };
        let answered = tokio::time::timeout(self.limits.connect, asking).await.ok().flatten();
        match answered {
            Some(_) => upstream.note_connected(),
            None => {
                tracing::info!(site = %upstream.site(), "a probe was not answered");
                upstream.note_failed(Instant::now());
                // What is on it may come to its end; what is new tries another one.
                upstream.shared().abandon();
            }
        }
        answered
    }

    /// Looks now and then whether a location that is reached through another one can be dialled.
    pub async fn look_directly(&self, location: &Location) {
        self.dialler.look_directly(location).await;
    }

    /// The answer to a request from another location that is a probe.
    pub(super) fn answer_probe(&self, request: &Request<Incoming>) -> Option<Response<Answer>> {
        if request.uri().host() != Some(PROBE) {
            return None;
        }
        let body = serde_json::to_vec(&self.router.told()).ok()?;
        let mut answer = Response::new(Answer::Own(Full::new(Bytes::from(body))));
        *answer.status_mut() = StatusCode::OK;
        let kind = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        Some(answer)
    }
}
