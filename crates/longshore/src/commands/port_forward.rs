//! `longshore port-forward`

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_client::Project;
use longshore_link::{Service, Tunnel, chain, pass_on};
use longshore_types::{InstanceId, Port};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::connection::{ConnectionOptions, ProjectOption};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::{self, Output};
use crate::target;

/// When a connection that could not be taken is tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Reach ports of an instance from this machine
///
/// Of an app, its oldest healthy instance is taken, and another one when that is gone. Goes on until it
/// is interrupted. The program must listen on more than 127.0.0.1 inside.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of an instance or the name of an app
    #[arg(value_name = "INSTANCE|APP")]
    target: String,
    /// A port of the instance, and before it the one here; 0 or nothing there is any that is free
    #[arg(required = true, value_name = "[LOCAL]:REMOTE")]
    ports: Vec<Ports>,
    /// The address to listen on here
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
    #[command(flatten)]
    project: ProjectOption,
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// A port here and one of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: Port,
}

impl FromStr for Ports {
    type Err = String;

    /// `REMOTE` means the same port here; `:REMOTE` any.
    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = match text.split_once(':') {
            Some((local, remote)) => (Some(local), remote),
            None => (None, text),
        };
        let remote: Port = remote.parse().map_err(|error| format!("{error}"))?;
        let local = match local {
            None => remote.get(),
            Some("") => 0,
            Some(local) => local.parse().map_err(|_| format!("{local:?} is no port"))?,
        };
        Ok(Self { local, remote })
    }
}

/// What is forwarded, as it is shown.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Forwarded {
    /// The address and port here.
    local: String,
    /// The port of the instance.
    remote: Port,
}

/// What the connections share.
struct Forwarder {
    output: Output,
    project: Project,
    target: String,
    /// Where the last connection went.
    instance: Mutex<InstanceId>,
}

/// Forwards until it is interrupted.
pub async fn run(options: Options) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let (output, project) = (connection.output, options.project.on(&connection));
    let instance = target::one_instance(output, &project, &options.target).await?;
    let shutdown = CancellationToken::new();
    let service = Service::new(shutdown.clone());
    let mut listeners = Vec::new();
    for ports in options.ports {
        let address = (options.address, ports.local);
        let listener = TcpListener::bind(address)
            .await
            .or_fail(Kind::Other, format!("cannot listen on {}:{}", address.0, address.1))?;
        let local = listener.local_addr().or_fail(Kind::Other, "cannot listen")?.to_string();
        let forwarded = Forwarded { local, remote: ports.remote };
        let line = |shown: &Forwarded| format!("{} -> {}", shown.local, shown.remote);
        output.item(&forwarded, line)?;
        listeners.push((listener, ports.remote));
    }
    let forwarder = Arc::new(Forwarder {
        output,
        project,
        target: options.target,
        instance: Mutex::new(instance),
    });
    for (listener, remote) in listeners {
        let (forwarder, connections) = (Arc::clone(&forwarder), service.clone());
        service.spawn_request("listener", async move {
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    // For want of descriptors, which connections that end give back.
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                };
                let forwarder = Arc::clone(&forwarder);
                let forward = async move { forwarder.forward(near, remote).await };
                connections.spawn_request("connection", forward);
            }
        });
    }
    let interrupted = tokio::signal::ctrl_c().await;
    interrupted.or_fail(Kind::Other, "cannot listen for signals")?;
    shutdown.cancel();
    // Nothing in it can fail.
    let _ = service.run().await;
    Ok(())
}

impl Forwarder {
    async fn forward(&self, near: TcpStream, remote: Port) {
        // What is typed goes out at once; without it, it is only slower.
        let _ = near.set_nodelay(true);
        match self.open(remote).await {
            Ok(tunnel) => pass_on(near, tunnel).await,
            Err(failure) => output::say(failure.to_string()),
        }
    }

    /// A tunnel to the instance, or to the one that took its place.
    async fn open(&self, remote: Port) -> Result<Tunnel, Failure> {
        let last = self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let error = match self.project.connect(&last, remote).await {
            Ok(tunnel) => return Ok(tunnel),
            Err(error) => error,
        };
        let next = target::one_instance(self.output, &self.project, &self.target).await;
        match next {
            Ok(next) if next != last => {
                let tunnel = self.project.connect(&next, remote).await?;
                *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = next;
                Ok(tunnel)
            }
            _ => Err(Failure::new(Kind::Unavailable, chain(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_kubectl_writes_them() {
        let ports =
            |text: &str| text.parse::<Ports>().map(|ports| (ports.local, ports.remote.get()));
        for (text, meant) in
            [("80", (80, 80)), ("8080:80", (8080, 80)), (":80", (0, 80)), ("0:80", (0, 80))]
        {
            assert_eq!(ports(text), Ok(meant), "{text}");
        }
        for bad in ["", ":", "0", "80:", "80:0", "a:80", "1:2:3", "70000"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
