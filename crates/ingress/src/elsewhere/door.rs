//! Where ingresses of other locations come in, and nodes of this one that keep connections open.
//!
//! Whoever shows no certificate of an ingress of this world or of such a node, or one of a location or node that was
//! removed, is not spoken to; and an ingress that is removed while it is connected is cut off. With a request from here comes the right
//! to be believed about its user: which address he has, and how he came.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use longshore_link::Reverse;
use longshore_trust::{Peer, server_config};
use longshore_types::{LocationName, NodeName};
use tokio_rustls::TlsAcceptor;

use super::Others;
use super::way::ending;
use crate::gate::{Gates, Stream};

/// How long a peer may take to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Lets ingresses of other locations in, and nodes.
#[derive(Clone)]
pub(crate) struct Door {
    acceptor: TlsAcceptor,
    location: LocationName,
    gates: Arc<Gates>,
    others: Arc<Others>,
}

/// Who was let in.
pub(crate) enum Visitor {
    Ingress(Guest),
    Node(Box<Visit>),
}

/// A node of this location, on another machine.
pub(crate) struct Visit {
    pub stream: Box<dyn Stream>,
    pub node: NodeName,
    /// Where connections are kept that it opens.
    pub reverse: Reverse,
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
    #[error("it is no ingress of a location of this world, nor a node of this one: {0:?}")]
    Unknown(Peer),
}

impl Door {
    /// One that shows whom it belongs to, once that is known; never opened where it never is.
    pub async fn open(gates: Arc<Gates>, others: Arc<Others>) -> io::Result<Self> {
        let own = gates.own().await.ok_or_else(ending)?;
        let config = server_config(&own.credentials).map_err(io::Error::other)?;
        Ok(Self { acceptor: TlsAcceptor::from(config), location: own.location, gates, others })
    }

    /// Lets one in that shows who it is.
    pub async fn admit(
        &self,
        stream: impl Stream + 'static,
        came: Came,
    ) -> Result<Visitor, RefusedGuest> {
        let shaken = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        let stream = shaken.map_err(|_| RefusedGuest::Slow)?.map_err(RefusedGuest::Handshake)?;
        let peer = Peer::of(stream.get_ref().1.peer_certificates());
        let stream = Box::new(stream);
        if let Some(location) = self.others.recognize(&peer) {
            let others = Arc::clone(&self.others);
            return Ok(Visitor::Ingress(Guest { stream, location, came, peer, others }));
        }
        match self.gates.opened().recognize(&peer, &self.location) {
            Some((node, reverse)) if came == Came::Directly => {
                Ok(Visitor::Node(Box::new(Visit { stream, node, reverse })))
            }
            _ => Err(RefusedGuest::Unknown(peer)),
        }
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
