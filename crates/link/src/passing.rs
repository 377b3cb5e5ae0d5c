//! Requests that are passed on whole: whatever the method, however long the bodies, upgrades too.
//!
//! For a service that does not answer by itself and stands for another of its kind. It knows nothing of
//! what is asked, so nothing has to be added here for what is new there. Beside the headers that are
//! about one connection everything goes through as it came.

use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::transfer::whole_or_broken;
use crate::upgrade::{names, of_upgrade, pass_on, switching};
use crate::{CallError, Client, Service};

/// What is about one connection, beside what the header Connection names.
const OF_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    header::TE,
    header::HOST,
    header::EXPECT,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];

/// Why a request was not passed on, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum NotPassedOn {
    /// The other service cannot be connected to; it has not seen the request.
    #[error("the request was not sent")]
    NotSent(#[source] CallError),
    /// It broke off, or `until` came: it may have done what was asked.
    #[error("the request was not answered")]
    BrokeOff(#[source] CallError),
}

impl Client {
    /// Passes a request on with `more` headers, and the answer back, as they come. Both are broken off
    /// at `until`; before, they may take as long as they like.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn pass_on_request(
        &self,
        request: Request,
        more: HeaderMap,
        service: &Service,
        until: &CancellationToken,
    ) -> Result<Response, NotPassedOn> {
        let (mut parts, body) = request.into_parts();
        let asks = names(&parts.headers, &header::CONNECTION, "upgrade");
        let near = parts.extensions.remove::<OnUpgrade>().filter(|_| asks);
        let mut headers = of_message(&parts.headers);
        if near.is_some() {
            headers.extend(of_upgrade(&parts.headers));
        }
        headers.extend(more);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let sent = self.request(parts.method, path, body, headers).map_err(NotPassedOn::NotSent)?;
        let answer = match until.run_until_cancelled(sent).await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) if error.is_connect() => {
                return Err(NotPassedOn::NotSent(self.unreachable(error)));
            }
            Some(Err(error)) => return Err(NotPassedOn::BrokeOff(self.unreachable(error))),
            None => {
                let why = self.unreachable("it is no longer waited for");
                return Err(NotPassedOn::BrokeOff(why));
            }
        };
        Ok(match near {
            Some(near) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                upgraded(near, answer, service, until.clone())
            }
            _ => answered(answer, until.clone()),
        })
    }
}

/// The headers of a message but for those about its connection.
fn of_message(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for listed in headers.get_all(header::CONNECTION) {
        let names = listed.to_str().unwrap_or_default().split(',');
        for name in names.filter_map(|name| name.trim().parse::<HeaderName>().ok()) {
            kept.remove(name);
        }
    }
    for name in OF_CONNECTION {
        kept.remove(name);
    }
    kept
}

fn answered(answer: http::Response<Incoming>, until: CancellationToken) -> Response {
    let (parts, body) = answer.into_parts();
    let unknown = HeaderValue::from_static("application/octet-stream");
    let mut response = whole_or_broken(unknown, body.into_data_stream(), until);
    *response.status_mut() = parts.status;
    *response.headers_mut() = of_message(&parts.headers);
    response
}

fn upgraded(
    near: OnUpgrade,
    answer: http::Response<Incoming>,
    service: &Service,
    until: CancellationToken,
) -> Response {
    let mut headers = of_message(answer.headers());
    headers.extend(of_upgrade(answer.headers()));
    service.spawn_request("pass on", async move {
        // Where one side went away meanwhile, the other is closed by this.
        if let (Ok(near), Ok(far)) = (near.await, hyper::upgrade::on(answer).await) {
            until.run_until_cancelled(pass_on(TokioIo::new(near), TokioIo::new(far))).await;
        }
    });
    switching(headers)
}

#[cfg(test)]
mod tests;
