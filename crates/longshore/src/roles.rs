//! The roles of the platform as processes: what is the same for each, and one file per role with its
//! flags and its wiring.

pub mod global;
pub mod ingress;
pub mod location;
pub mod node;
pub mod registry;

use std::error::Error;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use longshore_link::{Endpoint, Listener, chain};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::Inheritance;
use crate::logging;

/// How long a role whose supervisor is gone may take to end. With a supervisor, that one decides.
const LAST_DRAIN: Duration = Duration::from_secs(30);
/// How long threads that wait for the disk may take after that.
const THREADS_DRAIN: Duration = Duration::from_secs(1);
/// Threads of a role that mostly waits. More would cost memory and gain nothing.
const FEW_THREADS: usize = 2;

/// How much of the machine a role may keep busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// It decides and waits.
    Few,
    /// It moves bytes, on every core.
    PerCore,
}

/// Runs the service of a role until it is told to end by a signal or by the end of its supervisor.
/// `dir` is the role's own directory, used by one process at a time.
pub fn run<E, F>(
    role: &'static str,
    dir: &Path,
    threads: Threads,
    service: impl FnOnce(CancellationToken) -> F,
) -> Result<(), Failure>
where
    E: Error,
    F: Future<Output = Result<(), E>>,
{
    let inheritance = Inheritance::take().or_fail(Kind::Other, "cannot begin")?;
    logging::begin(role, &logging::filter_of_environment(), logging::format_of_environment());
    let _lock = lock(dir)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if threads == Threads::Few {
        runtime.worker_threads(FEW_THREADS);
    }
    let runtime = runtime.enable_all().build().or_fail(Kind::Other, "cannot begin")?;
    let outcome = runtime.block_on(until_told(inheritance, service));
    runtime.shutdown_timeout(THREADS_DRAIN);
    outcome
}

async fn until_told<E, F>(
    inheritance: Inheritance,
    service: impl FnOnce(CancellationToken) -> F,
) -> Result<(), Failure>
where
    E: Error,
    F: Future<Output = Result<(), E>>,
{
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).or_fail(Kind::Other, "cannot begin")?;
    let mut interrupt = signal(SignalKind::interrupt()).or_fail(Kind::Other, "cannot begin")?;
    let signalled = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
        std::future::pending::<()>().await
    };
    let left_alone = async {
        if let Err(error) = inheritance.watch(shutdown.clone()).await {
            tracing::error!(%error, "cannot watch the supervisor");
        }
        shutdown.cancelled().await;
        // Nobody is left who would end this process if it hung.
        tokio::time::sleep(LAST_DRAIN).await;
    };
    tokio::select! {
        outcome = service(shutdown.clone()) => outcome.map_err(|error| {
            let text = chain(&error);
            tracing::error!("{text}");
            Failure::new(Kind::Other, text)
        }),
        () = signalled => unreachable!("it waits for ever"),
        () = left_alone => Err(Failure::new(Kind::TimedOut, "did not end in time")),
    }
}

/// Takes the role's directory. Waits for the process that had it before, which is ending: a
/// supervisor starts no role twice, and one that was killed took its roles with it.
fn lock(dir: &Path) -> Result<File, Failure> {
    let doing = || format!("cannot use {}", dir.display());
    fs::create_dir_all(dir).or_fail(Kind::Other, doing())?;
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))
        .or_fail(Kind::Other, doing())?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            tracing::info!("waiting for another process to give up {}", dir.display());
            lock.lock().or_fail(Kind::Other, doing())?;
        }
        Err(TryLockError::Error(error)) => return Err(error).or_fail(Kind::Other, doing()),
    }
    Ok(lock)
}

/// The flag of every role by which it is asked for its metrics.
#[derive(Debug, Clone, clap::Args)]
pub struct MetricsOptions {
    /// Where Prometheus asks for the metrics [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    metrics_listen: Option<Endpoint>,
}

impl MetricsOptions {
    fn listener(&self) -> Result<Option<Listener>, Failure> {
        self.metrics_listen.as_ref().map(|endpoint| listener("metrics", endpoint)).transpose()
    }
}

/// Where locations of other machines call a role, if they may; never in the clear.
fn locations_listener(endpoint: Option<&Endpoint>) -> Result<Option<Listener>, Failure> {
    match endpoint {
        Some(endpoint @ Endpoint::Tls(_)) => listener("locations", endpoint).map(Some),
        Some(endpoint) => {
            let message = format!("--locations-listen {endpoint} is not allowed");
            let hint = "what others reach speaks TLS: https://HOST:PORT";
            Err(Failure::new(Kind::Usage, message).hint(hint))
        }
        None => Ok(None),
    }
}

/// The socket that the supervisor passed as `name`, else one that is bound here.
fn listener(name: &str, endpoint: &Endpoint) -> Result<Listener, Failure> {
    Listener::inherit_or_bind(name, endpoint).or_fail(Kind::Other, "cannot begin")
}
