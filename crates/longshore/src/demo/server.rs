//! `longshore demo-server`: what runs in the demo's instances.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::run_client;
use crate::failure::{Failure, Kind, OrFail};
use crate::output::say;

/// Answer HTTP requests with the name of this machine
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Options {
    /// The port to listen on
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// What the server knows.
struct Server {
    name: String,
    n_answered: AtomicU64,
}

/// Serves until it is told to end.
pub fn run(options: Options) -> Result<(), Failure> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let server = Arc::new(Server { name, n_answered: AtomicU64::new(0) });
    run_client(async {
        let address = SocketAddr::from(([0, 0, 0, 0], options.port));
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .or_fail(Kind::Other, format!("cannot listen on {address}"))?;
        say(format!("{} listens on {address}", server.name));
        let mut terminate = signal(SignalKind::terminate()).or_fail(Kind::Other, "cannot begin")?;
        axum::serve(listener, router(server))
            .with_graceful_shutdown(async move {
                terminate.recv().await;
            })
            .await
            .or_fail(Kind::Other, "cannot serve")
    })
}

fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(answer))
        .route("/health", get(|| async { "ok\n" }))
        .with_state(server)
}

async fn answer(State(server): State<Arc<Server>>) -> String {
    let count = server.n_answered.fetch_add(1, Ordering::Relaxed) + 1;
    format!("{} answered its request number {count}\n", server.name)
}
