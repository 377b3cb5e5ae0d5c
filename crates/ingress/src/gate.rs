//! How an instance is dialled: through the gate of its node.
//!
//! The address of an instance means something only on its node, so nothing in the ingress connects
//! to it except through [`NodeGate`]. Today the ingress and all instances share one machine and
//! [`DirectGate`] is the only one; with several nodes a second one speaks mTLS HTTP/2 CONNECT to the
//! listener of [`Endpoint::node`], and nothing else here changes.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use longshore_api::links::Endpoint;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// When the kernel asks whether a silent peer is still there, and how often.
pub(crate) const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// A byte stream to an instance.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens byte streams to the port of an instance.
pub(crate) trait NodeGate: Debug + Send + Sync {
    /// Connects. The caller limits the time and drops the future when it is over.
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Stream>>>;
}

/// The gate of the machine that the ingress runs on: plain TCP.
#[derive(Debug)]
pub(crate) struct DirectGate;

impl NodeGate for DirectGate {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(endpoint.address).await?;
            stream.set_nodelay(true)?;
            SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}
