//! The resolver that instances see: a forwarder on port 53 of the gateway's address.
//!
//! It runs in the host's namespace, so that a resolver on the host's loopback works for instances
//! too. It forwards questions as they are, from a fresh random port each, and keeps nothing: a
//! cache would be one more thing that one instance could poison for another. Work is bounded in
//! all, and per instance, so that one that asks too much starves only itself: a question over the
//! bound is dropped, and asked again by the resolver library that sent it.

mod budget;
mod message;
mod tcp;
mod udp;
mod upstreams;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use longshore_types::IpNet;
use nix::fcntl::Flock;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use budget::Budget;
pub(crate) use upstreams::Upstreams;

/// How long a client waits at most until it is told that there is no answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a resolver is waited for before the next one is asked as well.
const PATIENCE: Duration = Duration::from_millis(1500);

pub(crate) struct Forwarder {
    pub(crate) gateway: Ipv4Addr,
    /// Where clients are; nobody else is answered.
    pub(crate) clients: IpNet,
    pub(crate) upstreams: Arc<Upstreams>,
    /// Held for as long as the port is: whoever has it next finds the port free.
    pub(crate) lock: Arc<Flock<File>>,
}

impl Forwarder {
    /// Listens on port 53 of the gateway's address and answers until `stop`.
    ///
    /// An error names the address that could not be had.
    pub(crate) async fn start(
        self,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), (SocketAddr, io::Error)> {
        let address = SocketAddr::from((self.gateway, 53));
        let named = |error| (address, error);
        let udp = UdpSocket::bind(address).await.map_err(named)?;
        let tcp = TcpListener::bind(address).await.map_err(named)?;
        let server = Arc::new(Server {
            udp,
            tcp,
            clients: self.clients,
            upstreams: self.upstreams,
            udp_budget: Budget::new(512, 64),
            tcp_budget: Budget::new(128, 16),
            tasks: tasks.clone(),
            stop: stop.clone(),
            _lock: self.lock,
        });
        let (for_udp, for_tcp) = (Arc::clone(&server), Arc::clone(&server));
        server.spawn(async move { udp::serve(&for_udp).await });
        server.spawn(async move { tcp::serve(&for_tcp).await });
        Ok(())
    }
}

/// Fields are dropped in this order: the lock after the sockets.
struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    clients: IpNet,
    upstreams: Arc<Upstreams>,
    udp_budget: Arc<Budget>,
    tcp_budget: Arc<Budget>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _lock: Arc<Flock<File>>,
}

impl Server {
    /// Runs a task that ends when the forwarder does.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(task).await });
    }

    /// The client's address, when it is one that is answered.
    fn client(&self, peer: SocketAddr) -> Option<Ipv4Addr> {
        match peer.ip() {
            IpAddr::V4(address) if self.clients.contains(address) => Some(address),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
