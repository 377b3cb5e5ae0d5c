//! `longshore ingress`

use std::path::PathBuf;

use longshore_ingress::SecureOptions;
use longshore_link::{Endpoint, PublicTls};
use longshore_trust::PublicFiles;

use super::{MetricsOptions, Threads, listener};
use crate::failure::{Failure, Kind, OrFail};

/// Run an ingress alone: requests from users to instances
///
/// `up` starts it with the other roles; this is for running the roles apart.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The directory of the routes it last knew
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where requests come in in the clear
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:8080")]
    listen: Endpoint,
    /// Where they come in by TLS, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT", requires = "tls")]
    tls_listen: Option<Endpoint>,
    /// The directory of the certificates for that: pairs of NAME.pem and NAME.key, and directories with
    /// fullchain.pem and privkey.pem; read again when they change
    #[arg(long, value_name = "DIR", requires = "tls_listen")]
    tls: Option<PathBuf>,
    /// Send who comes in the clear for a host with a certificate to this port by TLS
    #[arg(long, value_name = "PORT", requires = "tls")]
    redirect: Option<u16>,
    /// Where ingresses of other locations pass requests on to, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    peers_listen: Option<Endpoint>,
    /// Where its location listens
    #[arg(long, value_name = "ENDPOINT")]
    location: Endpoint,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let listener = listener("ingress", &options.listen)?;
    let metrics = options.metrics.listener()?;
    let secure = secure(&options)?;
    let peers = options.peers_listen.as_ref().map(|endpoint| match endpoint {
        Endpoint::Tls(_) => super::listener("peers", endpoint),
        other => Err(Failure::new(Kind::Usage, format!("--peers-listen {other} is not allowed"))
            .hint("what others reach speaks TLS: https://HOST:PORT")),
    });
    let peers = peers.transpose()?;
    let dir = options.data_dir.clone();
    super::run("ingress", &dir, Threads::PerCore, |shutdown| {
        let options = longshore_ingress::IngressOptions {
            listener,
            secure,
            peers,
            location: options.location,
            state_dir: options.data_dir,
            metrics,
        };
        longshore_ingress::run(options, shutdown)
    })
}

/// Where users come in by TLS, if they do.
fn secure(options: &Options) -> Result<Option<SecureOptions>, Failure> {
    let Some((endpoint, dir)) = options.tls_listen.as_ref().zip(options.tls.clone()) else {
        return Ok(None);
    };
    if !matches!(endpoint, Endpoint::Tls(_)) {
        let message = format!("--tls-listen {endpoint} is not allowed");
        return Err(
            Failure::new(Kind::Usage, message).hint("TLS is spoken there: https://HOST:PORT")
        );
    }
    let listener = listener("ingress-tls", endpoint)?;
    let tls = PublicTls::open(PublicFiles::Directory(dir));
    let tls = tls.or_fail(Kind::Invalid, "users cannot be spoken to by TLS")?;
    Ok(Some(SecureOptions { listener, tls, redirect: options.redirect }))
}
