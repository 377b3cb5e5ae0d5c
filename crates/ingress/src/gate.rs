//! How an instance is dialled: through the gate of its node.
//!
//! The address of an instance means something only on its node, so nothing in the ingress connects
//! to it except through [`NodeGate`]. [`Gates`] connects directly on the machine of the ingress, and
//! elsewhere asks the node's gate for a tunnel, as an ingress of its location. When that gate cannot be dialled it is
//! asked over a connection that the node keeps open (`opened`), and where it has none, through the location.

mod opened;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Method;
use longshore_api::links::{Endpoint, Reach};
use longshore_link::{CallError, Client, now};
use longshore_trust::{
    AuthorityError, CertificateRequest, Credentials, Identity, Name, NewKey, Signed, client_config,
};
use longshore_types::{LocationName, NodeName};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use opened::Opened;

/// When the kernel asks whether a silent peer is still there, and how often.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// How often to look whether the certificate should be renewed, and how long to wait before a first one is
/// asked for again.
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);
/// How long a node that keeps connections open may take to make use of one.
const OPENED_WITHIN: Duration = Duration::from_secs(1);

/// A byte stream to an instance.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens byte streams to the port of an instance.
pub(crate) trait NodeGate: Debug + Send + Sync {
    /// Connects. The caller limits the time and drops the future when it is over.
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Stream>>>;
}

/// The gates of all nodes.
#[derive(Debug)]
pub(crate) struct Gates {
    location: Client,
    /// As whom nodes of other machines are reached; absent until one is.
    own: watch::Sender<Option<Own>>,
    needed: Notify,
    /// The gate that each node was last reached by.
    nodes: Mutex<BTreeMap<NodeName, (String, Client)>>,
    opened: Opened,
}

/// As whom this ingress shows itself.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub credentials: Credentials,
    pub location: LocationName,
}

/// Why a node elsewhere is not reached.
#[derive(Debug, thiserror::Error)]
enum ElsewhereError {
    #[error("the gate of {node}: {why}")]
    Address { node: NodeName, why: String },
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Key(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] longshore_trust::TlsError),
    #[error("the location gave a certificate that is of no use")]
    Useless,
    #[error("the ingress ends")]
    Ending,
}

impl Gates {
    /// Those of a location's nodes.
    pub fn new(location: Client) -> Self {
        let (own, needed) = (watch::Sender::new(None), Notify::new());
        Self { location, own, needed, nodes: Mutex::default(), opened: Opened::default() }
    }

    /// Has a certificate to show from the moment when one is first needed, and keeps it good.
    pub async fn keep_certificate(self: Arc<Self>) -> Infallible {
        self.needed.notified().await;
        let mut identity: Option<Identity> = None;
        loop {
            if identity.as_ref().is_none_or(|identity| identity.is_due(now())) {
                match self.obtain().await {
                    Ok(obtained) => identity = Some(obtained),
                    Err(error) => tracing::warn!(%error, "no certificate for now"),
                }
            }
            tokio::time::sleep(if identity.is_some() { LOOK } else { RETRY }).await;
        }
    }

    async fn obtain(&self) -> Result<Identity, ElsewhereError> {
        let key = NewKey::generate()?;
        let request = CertificateRequest { key: key.public() };
        let path = "/link/ingress/certificate";
        let signed: Signed = self.location.call(Method::POST, path, Some(&request)).await?;
        let identity = key.signed(&signed, now()).map_err(|_| ElsewhereError::Useless)?;
        let Some(Name::Ingress(location)) = identity.name() else {
            return Err(ElsewhereError::Useless);
        };
        let shown = self.own.borrow().as_ref().map(|own| own.credentials.clone());
        match shown {
            Some(credentials) => credentials.replace(&identity)?,
            None => {
                let credentials = Credentials::new(&identity)?;
                self.own.send_replace(Some(Own { credentials, location }));
            }
        }
        Ok(identity)
    }

    async fn tunnel(
        &self,
        endpoint: &Endpoint,
        gate: &str,
    ) -> Result<Box<dyn Stream>, ElsewhereError> {
        let client = self.client(&endpoint.node, gate).await?;
        Ok(Box::new(client.tunnel(&port_of(endpoint)).await?))
    }

    /// What nodes opened.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// To a node that only dials out: over what it opened to this ingress, else through the location, to which it
    /// opens connections as well.
    async fn behind(&self, endpoint: &Endpoint) -> Result<Box<dyn Stream>, ElsewhereError> {
        let own = self.own.borrow().as_ref().map(|own| own.location.clone());
        if let Some(reverse) = own.and_then(|own| self.opened.by(&endpoint.node, &own)) {
            let path = port_of(endpoint);
            let tunnel = reverse.client().tunnel(&path);
            match tokio::time::timeout(OPENED_WITHIN, tunnel).await {
                Ok(Ok(tunnel)) => return Ok(Box::new(tunnel)),
                Ok(Err(CallError::Refused(problem))) => {
                    return Err(CallError::Refused(problem).into());
                }
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(node = %endpoint.node, error, "what a node opened is of no use");
                }
                Err(_) => tracing::debug!(node = %endpoint.node, "a node opens no connection"),
            }
        }
        self.relayed(endpoint).await
    }

    async fn relayed(&self, endpoint: &Endpoint) -> Result<Box<dyn Stream>, ElsewhereError> {
        let path = format!("/link/ingress/nodes/{}{}", endpoint.node, port_of(endpoint));
        Ok(Box::new(self.location.tunnel(&path).await?))
    }

    /// As whom this ingress shows itself, once its location has said so; none when the ingress ends.
    pub async fn own(&self) -> Option<Own> {
        self.needed.notify_one();
        let mut own = self.own.subscribe();
        let own = own.wait_for(Option::is_some).await;
        own.ok().and_then(|own| own.clone())
    }

    /// A client of a node's gate. It shows whatever certificate is newest.
    async fn client(&self, node: &NodeName, gate: &str) -> Result<Client, ElsewhereError> {
        let own = self.own().await.ok_or(ElsewhereError::Ending)?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, client)) = nodes.get(node)
            && at == gate
        {
            return Ok(client.clone());
        }
        let endpoint = gate.parse();
        let endpoint =
            endpoint.map_err(|why| ElsewhereError::Address { node: node.clone(), why })?;
        let name = Name::Node(own.location, node.clone());
        let client = Client::secured(endpoint, client_config(&own.credentials)?, name);
        nodes.insert(node.clone(), (gate.to_owned(), client.clone()));
        Ok(client)
    }
}

impl NodeGate for Gates {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            match &endpoint.reach {
                Reach::Here => connect(endpoint).await,
                Reach::Gate(gate) => self.tunnel(endpoint, gate).await.map_err(io::Error::other),
                Reach::Location => self.behind(endpoint).await.map_err(io::Error::other),
            }
        })
    }
}

/// The path by which a gate is asked for the port of an instance.
fn port_of(endpoint: &Endpoint) -> String {
    let (instance, port) = (&endpoint.instance, endpoint.address.port());
    format!("/instances/{instance}/port-forward?port={port}")
}

/// Sets what every connection of the ingress wants: what is small goes out at once, and a peer that is gone is
/// noticed.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE)
}

/// Connects to an instance on this machine.
async fn connect(endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(endpoint.address).await?;
    prepare(&stream)?;
    Ok(Box::new(stream) as Box<dyn Stream>)
}

/// Only instances of this machine, for tests that have no location.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct DirectGate;

#[cfg(test)]
impl NodeGate for DirectGate {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(connect(endpoint))
    }
}
