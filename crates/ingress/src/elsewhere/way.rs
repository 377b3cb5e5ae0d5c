//! The way to an ingress of another location: TLS, with the certificates of both, over whatever carries it.

use std::io;

use longshore_trust::{Fingerprint, Name, Peer, client_config, server_name};
use longshore_types::LocationName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::gate::{Gates, Own, Stream, prepare};

/// Where an ingress of another location is, and by what it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    pub location: LocationName,
    /// `host:port`; none where it says of itself that nobody can dial it.
    pub address: Option<String>,
    /// The key of the location's authority.
    pub authority: Fingerprint,
}

impl Way {
    /// Dials it, as an ingress of our location. The caller limits the time.
    pub async fn dial(&self, own: &Gates) -> io::Result<Box<dyn Stream>> {
        let own = own.own().await.ok_or_else(ending)?;
        let none = || io::Error::other("it has no address");
        let stream = TcpStream::connect(self.address.as_ref().ok_or_else(none)?).await?;
        prepare(&stream)?;
        self.meet(&own, stream).await
    }

    /// Makes sure that it is at the other end of a stream, and that nobody between reads what is said.
    pub async fn meet<S: Stream + 'static>(
        &self,
        own: &Own,
        stream: S,
    ) -> io::Result<Box<dyn Stream>> {
        let config = client_config(&own.credentials).map_err(io::Error::other)?;
        let name = Name::Ingress(self.location.clone());
        let stream = TlsConnector::from(config).connect(server_name(&name), stream).await?;
        // The name alone would do for one that was removed and whose name another has now.
        match Peer::of(stream.get_ref().1.peer_certificates()) {
            Peer::Known { authority: Some(key), .. } if key == self.authority => {
                Ok(Box::new(stream))
            }
            _ => Err(io::Error::other(format!("{name} is of another authority there"))),
        }
    }
}

/// Why there is nobody to speak as.
pub(super) fn ending() -> io::Error {
    io::Error::other("the ingress ends")
}
