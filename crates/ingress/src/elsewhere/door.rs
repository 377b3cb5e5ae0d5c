//! Where ingresses of other locations come in.
//!
//! Whoever shows no certificate of an ingress of this world, or one of a location that was removed, is not
//! spoken to; and one that is removed while it is connected is cut off. With a request from here comes the right
//! to be believed about its user: which address he has, and how he came.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use longshore_trust::{Peer, server_config};
use longshore_types::LocationName;
use tokio_rustls::TlsAcceptor;

use super::Others;
use crate::gate::{Gates, Stream};

/// How long a peer may take to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Lets ingresses of other locations in.
#[derive(Clone)]
pub(crate) struct Door {
    acceptor: TlsAcceptor,
    others: Arc<Others>,
}

/// How somebody came to the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// By himself.
    Directly,
    /// Over a connection that was opened from here: through a relay, or from the other end of it.
    Relayed,
}

/// An ingress of another location that was let in.
pub(crate) struct Guest {
    stream: Box<dyn Stream>,
    location: LocationName,
    pub came: Came,
    peer: Peer,
    others: Arc<Others>,
}

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefusedGuest {
    #[error("it took too long to show who it is")]
    Slow,
    #[error("it did not show who it is")]
    Handshake(#[source] io::Error),
    #[error("it is no ingress of a location of this world: {0:?}")]
    Unknown(Peer),
}

impl Door {
    /// One that shows whom it belongs to, once that is known; never opened where it never is.
    pub async fn open(own: &Gates, others: Arc<Others>) -> io::Result<Self> {
        let ending = || io::Error::other("the ingress ends");
        let own = own.own().await.ok_or_else(ending)?;
        let config = server_config(&own.credentials).map_err(io::Error::other)?;
        Ok(Self { acceptor: TlsAcceptor::from(config), others })
    }

    /// Lets one in that shows who it is.
    pub async fn admit(
        &self,
        stream: impl Stream + 'static,
        came: Came,
    ) -> Result<Guest, RefusedGuest> {
        let shaken = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        let stream = shaken.map_err(|_| RefusedGuest::Slow)?.map_err(RefusedGuest::Handshake)?;
        let peer = Peer::of(stream.get_ref().1.peer_certificates());
        let Some(location) = self.others.recognize(&peer) else {
            return Err(RefusedGuest::Unknown(peer));
        };
        let others = Arc::clone(&self.others);
        Ok(Guest { stream: Box::new(stream), location, came, peer, others })
    }
}

impl Guest {
    /// Its stream, where it is from, and what ends once its location is removed.
    pub fn into_parts(
        self,
    ) -> (Box<dyn Stream>, LocationName, impl Future<Output = ()> + Send + 'static) {
        let Self { stream, location, came: _, peer, others } = self;
        (stream, location, async move { others.removed(&peer).await })
    }
}
