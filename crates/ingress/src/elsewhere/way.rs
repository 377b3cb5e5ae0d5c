//! The way to an ingress of another location: TLS, with the certificates of both.

use std::io;

use longshore_trust::{Fingerprint, Name, Peer, client_config, server_name};
use longshore_types::LocationName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::gate::{Gates, Stream, prepare};

/// Where an ingress of another location is, and by what it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    pub location: LocationName,
    /// `host:port`.
    pub address: String,
    /// The key of the location's authority.
    pub authority: Fingerprint,
}

impl Way {
    /// Connects, as an ingress of our location. The caller limits the time.
    pub async fn dial(&self, own: &Gates) -> io::Result<Box<dyn Stream>> {
        let ending = || io::Error::other("the ingress ends");
        let own = own.own().await.ok_or_else(ending)?;
        let config = client_config(&own.credentials).map_err(io::Error::other)?;
        let stream = TcpStream::connect(&self.address).await?;
        prepare(&stream)?;
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
