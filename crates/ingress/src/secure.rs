//! Users who come by TLS, and those who should.
//!
//! Which certificate is shown follows from the name that a client asks for in its handshake, and from nothing else:
//! who asks for one that there is none for is not spoken to. Nor is who asks for the host of no app that is known
//! here or elsewhere, whatever certificates there are: a jurisdiction keeps the names of its apps from those outside,
//! who could otherwise read what they must not answer. Whom a request then is for its host says, as in the
//! clear; a client may ask for several hosts over one connection when the certificate is for them all. Rejected: a
//! certificate for those who ask for no name, which would be wrong for whoever looked; an answer of ours to those who ask for
//! an unknown host, which they could have only after their request was read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::Full;
use longshore_link::{PublicTls, refuse_plain};
use longshore_trust::PublicCertificates;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::SecureOptions;
use crate::elsewhere::Others;
use crate::router::Router;

/// How long a user may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The port of `https` when an address says none.
const HTTPS_PORT: u16 = 443;

/// The certificates for hosts of apps that are known here or elsewhere.
pub(crate) fn of_apps(tls: &PublicTls, router: &Arc<Router>, others: &Arc<Others>) -> PublicTls {
    let (router, others) = (Arc::clone(router), Arc::clone(others));
    tls.of_served(move |host| router.app(host).is_some() || others.app(host).is_some())
}

/// Shakes hands with who connects.
pub(crate) async fn shake(tls: &PublicTls, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let shaken = async {
        let stream = refuse_plain(stream).await?;
        TlsAcceptor::from(tls.config()).accept(stream).await
    };
    tokio::time::timeout(HANDSHAKE, shaken).await?
}

/// Sends users who come in the clear where TLS is spoken.
#[derive(Debug)]
pub(crate) struct Redirect {
    certificates: Arc<PublicCertificates>,
    port: u16,
}

impl Redirect {
    /// As the options say, if they do.
    pub fn of(options: &SecureOptions) -> Option<Self> {
        let certificates = Arc::clone(options.tls.certificates());
        options.redirect.map(|port| Self { certificates, port })
    }

    /// The answer to a request in the clear; none for a host without a certificate.
    pub fn answer(&self, host: &str, uri: &Uri) -> Option<Response<Full<Bytes>>> {
        if !self.certificates.is_for(host) {
            return None;
        }
        let port = if self.port == HTTPS_PORT { String::new() } else { format!(":{}", self.port) };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let to = HeaderValue::try_from(format!("https://{host}{port}{path}")).ok()?;
        let mut answer = Response::new(Full::default());
        // Unlike 301, this keeps method and body.
        *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
        answer.headers_mut().insert(header::LOCATION, to);
        Some(answer)
    }
}
