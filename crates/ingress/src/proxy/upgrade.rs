//! Connections that change their protocol: WebSocket and others that HTTP/1.1 upgrades to.

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::body::Answer;
use super::headers;
use super::lease::Seat;

/// What a user offered to change to.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The value of `Upgrade`.
    pub protocol: HeaderValue,
    user: OnUpgrade,
}

impl Offer {
    /// The offer of a request, when it makes one that is passed on. An upgrade to HTTP/2 is not:
    /// behind it, requests would reach the instance unseen.
    pub fn of(request: &mut Request<Incoming>) -> Option<Self> {
        let headers = request.headers();
        if request.version() != Version::HTTP_11 || !headers::connection_has(headers, "upgrade") {
            return None;
        }
        let mut lines = headers.get_all(header::UPGRADE).iter();
        let (protocol, another) = (lines.next()?.clone(), lines.next());
        let hides_http = |token: &str| {
            let name = token.split('/').next().unwrap_or_default().trim();
            name.eq_ignore_ascii_case("h2c") || name.eq_ignore_ascii_case("http")
        };
        if another.is_some() || headers::tokens(headers, &header::UPGRADE).any(hides_http) {
            return None;
        }
        Some(Self { protocol, user: hyper::upgrade::on(request) })
    }

    /// Takes the instance's 101: the answer to the user, and the tunnel that follows it.
    pub fn accept(
        self,
        mut answer: Response<Incoming>,
        seat: Seat,
        end: CancellationToken,
    ) -> (Response<Answer>, impl Future<Output = ()> + Send + 'static) {
        let instance = hyper::upgrade::on(&mut answer);
        let chosen = answer.headers().get(header::UPGRADE).cloned();
        let protocol = chosen.unwrap_or_else(|| self.protocol.clone());
        let mut switched = Response::new(Answer::Upgrade);
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *switched.headers_mut() = std::mem::take(answer.headers_mut());
        headers::to_user(switched.headers_mut());
        let upgrade = HeaderValue::from_static("upgrade");
        switched.headers_mut().insert(header::CONNECTION, upgrade);
        switched.headers_mut().insert(header::UPGRADE, protocol);

        let tunnel = async move {
            let both = async { tokio::try_join!(self.user, instance) };
            let copied = async {
                match both.await {
                    Ok((user, instance)) => splice(user, instance).await,
                    Err(error) => tracing::debug!(%error, "an upgrade did not come about"),
                }
            };
            end.run_until_cancelled(copied).await;
            drop(seat);
        };
        (switched, tunnel)
    }
}

/// Copies both ways until both sides have ended theirs. There is no limit of silence: an open
/// WebSocket may be quiet for hours, and the kernel's keep-alive finds a user who is gone.
async fn splice(user: Upgraded, instance: Upgraded) {
    let (mut user, mut instance) = (TokioIo::new(user), TokioIo::new(instance));
    if let Err(error) = tokio::io::copy_bidirectional(&mut user, &mut instance).await {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}
