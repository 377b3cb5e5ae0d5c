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
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_link::{Endpoint, Listener, PublicTls, chain};
use longshore_trust::PublicFiles;
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

/// With which certificates a role speaks to users.
#[derive(Debug, Clone, clap::Args)]
pub struct TlsOptions {
    /// The certificate that users are shown, with those between it and one that they trust, in PEM; read again
    /// when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that, in PEM; a file for its owner alone
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl TlsOptions {
    /// The certificates, when there are some.
    fn open(&self) -> Result<Option<PublicTls>, Failure> {
        let Some((chain, key)) = self.tls_cert.clone().zip(self.tls_key.clone()) else {
            return Ok(None);
        };
        let files = PublicFiles::Pair { chain, key };
        PublicTls::open(files).or_fail(Kind::Invalid, "users cannot be spoken to by TLS").map(Some)
    }
}

/// Where users call a role: by TLS anywhere, in the clear on loopback alone.
fn users_listener(
    (name, flag): (&str, &str),
    endpoint: &Endpoint,
    tls: Option<&PublicTls>,
) -> Result<Listener, Failure> {
    let hint = match (endpoint, tls) {
        (Endpoint::Tls(_), Some(_)) | (Endpoint::Unix(_), None) => return listener(name, endpoint),
        (Endpoint::Tcp(authority), None) if is_loopback(authority) => {
            return listener(name, endpoint);
        }
        (Endpoint::Tls(_), None) => "TLS wants a certificate: --tls-cert and --tls-key",
        (Endpoint::Tcp(_), None) => {
            "who listens in would have the tokens of users: listen on loopback, or by TLS, with \
             https://HOST:PORT, --tls-cert and --tls-key"
        }
        (Endpoint::Tcp(_) | Endpoint::Unix(_), Some(_)) => {
            "there is a certificate, so say https://HOST:PORT"
        }
    };
    let message = format!("{flag} {endpoint} is not allowed");
    Err(Failure::new(Kind::Usage, message).hint(hint))
}

/// Whether nobody but this machine can connect there.
pub fn is_loopback(authority: &str) -> bool {
    match authority.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => authority.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
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

/// A socket for this machine alone.
fn here(name: &str, flag: &str, endpoint: &Endpoint) -> Result<Listener, Failure> {
    match endpoint {
        Endpoint::Unix(_) => listener(name, endpoint),
        other => Err(Failure::new(Kind::Usage, format!("{flag} {other} is not allowed"))
            .hint("it is for this machine alone: unix:/PATH")),
    }
}

/// The socket that the supervisor passed as `name`, else one that is bound here.
fn listener(name: &str, endpoint: &Endpoint) -> Result<Listener, Failure> {
    Listener::inherit_or_bind(name, endpoint).or_fail(Kind::Other, "cannot begin")
}
