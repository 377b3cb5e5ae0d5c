//! Ports of this machine that lead to the loopback of another of the world.
//!
//! API and registry speak plain HTTP and so listen on loopback alone; whoever operates a real platform
//! reaches them by a tunnel. So does the user of a world, past the wire: a world in which the control
//! plane is cut off from everybody can still be looked at and mended.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use longshore_link::Service;
use longshore_world::Machine;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A port that leads elsewhere for as long as this lives.
#[derive(Debug)]
pub struct Forward {
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Leads those who connect to `listener` to the same port on the loopback of `machine`.
    pub fn start(listener: TcpListener, machine: &Machine) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let network = machine.network().try_clone_to_owned()?;
        let end = CancellationToken::new();
        let seen = end.clone();
        // The thread is on that machine for good, and so is all that it connects.
        let body = move || {
            if let Err(error) = forward(listener, &network, port, seen) {
                tracing::error!(%error, port, "a port of the world leads nowhere");
            }
        };
        let thread = std::thread::Builder::new().name("forward".to_owned()).spawn(body)?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(thread) = self.thread.take() {
            // Whether it panicked changes nothing any more.
            let _ = thread.join();
        }
    }
}

fn forward(
    listener: TcpListener,
    network: &OwnedFd,
    port: u16,
    end: CancellationToken,
) -> io::Result<()> {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let service = Service::new(end);
        let accepting = service.clone();
        service.spawn_until_shutdown("connections", async move {
            loop {
                // One that is gone before it was accepted is no reason to accept no other.
                if let Ok((near, _)) = listener.accept().await {
                    accepting.spawn_request("connection", lead(near, port));
                }
            }
        });
        service.run().await.map_err(io::Error::other)
    })
}

/// Moves bytes until both sides have said all. Whoever breaks off is told by the other's end.
async fn lead(mut near: TcpStream, port: u16) {
    if let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}
