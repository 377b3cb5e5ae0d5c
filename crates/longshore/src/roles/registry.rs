//! `longshore registry`

mod elsewhere;
mod joined;
mod objects;
mod table;
mod upstreams;

use std::path::PathBuf;
use std::sync::Arc;

use longshore_global::PublicRegistry;
use longshore_link::{
    Endpoint, Endpoints, Followed, JoinError, Listener, PublicTls, Service, ServiceError,
};
use longshore_registry::{
    ConnectS3Error, OpenRegistryError, Pushes, Registry, RegistryOptions, S3Options, Scheme,
    UpstreamOptions,
};
use longshore_trust::RegistryPlace;
use longshore_types::Duration;
use tokio_util::sync::CancellationToken;

use super::{MetricsOptions, Threads, TlsOptions, here, users_listener};
use crate::commands::{self, run_client};
use crate::failure::Failure;
use crate::supervisor;
use joined::Joined;
pub use joined::join;
pub use objects::ObjectSettings;
use table::{FollowTableError, FollowedTable};
pub use upstreams::UpstreamSettings;

/// How long a push waits for a control plane that is away.
const HOLD: std::time::Duration = std::time::Duration::from_secs(5);

/// Join as the registry, start what joined, run it alone, or look after it
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    Join(Box<supervisor::RegistryJoinOptions>),
    Start(Box<supervisor::RegistryStartOptions>),
    Run(Box<RunOptions>),
    Show(commands::registry::ShowOptions),
    Rm(commands::registry::RemoveOptions),
}

/// Run the registry of images alone
///
/// `up`, `registry join` and `registry start` start it; this is for running the roles apart. It keeps the tokens
/// that it last knew, so it serves on while the global control plane is away.
#[derive(Debug, Clone, clap::Args)]
struct RunOptions {
    /// The directory of its images
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    objects: ObjectSettings,
    #[command(flatten)]
    upstreams: UpstreamSettings,
    /// Where it listens: http on loopback, https anywhere
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:4601")]
    listen: Endpoint,
    /// Where the other roles of this machine have images: unix:/PATH [default: where users do]
    #[arg(long, value_name = "ENDPOINT")]
    listen_here: Option<Endpoint>,
    #[command(flatten)]
    tls: TlsOptions,
    /// Where the global control plane listens, which knows the tokens; several, of which one leads, as
    /// ENDPOINT,ENDPOINT
    #[arg(long, value_name = "ENDPOINTS")]
    global: Endpoints,
    /// Where locations of other machines have images, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    locations_listen: Option<Endpoint>,
    /// The file with the key and the certificate of a registry that joined from another machine
    #[arg(long, value_name = "FILE", requires_all = ["locations_listen", "locations_advertise", "public"])]
    identity_file: Option<PathBuf>,
    /// The host and port by which the control plane and locations reach such a one
    #[arg(long, value_name = "HOST:PORT", requires = "identity_file")]
    locations_advertise: Option<String>,
    /// Such a one as users name it, with https:// before that when it is spoken to by TLS
    #[arg(long, value_name = "HOST:PORT", requires = "identity_file")]
    public: Option<PublicRegistry>,
    /// How long a manifest is kept that no tag and no release names
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    keep_untagged: Duration,
    /// Whether, with nothing else to do, it makes of each large layer a form that nodes have in less time, which
    /// takes about as much room again; one that joined from another machine never does: nobody would believe it
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true)]
    convert_images: bool,
    /// How long it keeps that form of an image which no node asks for
    #[arg(long, value_name = "DURATION", default_value = "30d")]
    keep_converted: Duration,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Joins, runs the role, or looks after it.
pub fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Join(options) => supervisor::join_registry(*options),
        Verb::Start(options) => supervisor::start_registry(*options),
        Verb::Run(options) => run_alone(*options),
        Verb::Show(options) => run_client(commands::registry::show(options)),
        Verb::Rm(options) => run_client(commands::registry::remove(options)),
    }
}

fn run_alone(options: RunOptions) -> Result<(), Failure> {
    let objects = options.objects.clone().read()?;
    let upstreams = options.upstreams.clone().read()?;
    let tls = options.tls.open()?;
    let users = users_listener(("registry", "--listen"), &options.listen, tls.as_ref())?;
    let listen_here = options.listen_here.as_ref();
    let here = listen_here.map(|at| here("registry-here", "--listen-here", at)).transpose()?;
    let metrics = options.metrics.listener()?;
    let locations = super::locations_listener(options.locations_listen.as_ref())?;
    let dir = options.data_dir.clone();
    let listeners = Listeners { users, tls, here, locations, metrics };
    super::run("registry", &dir, Threads::PerCore, |shutdown| {
        serve(options, (objects, upstreams), listeners, shutdown)
    })
}

/// Where it is called.
struct Listeners {
    users: Listener,
    /// With what they are spoken to by TLS, if they are.
    tls: Option<PublicTls>,
    /// By other roles of this machine.
    here: Option<Listener>,
    /// By locations of other machines, and by the control plane of another.
    locations: Option<Listener>,
    metrics: Option<Listener>,
}

/// Why the registry ended.
#[derive(Debug, thiserror::Error)]
enum RegistryRoleError {
    #[error("cannot speak as the registry")]
    Joined(#[from] JoinError),
    #[error(transparent)]
    Objects(#[from] ConnectS3Error),
    #[error(transparent)]
    Open(#[from] OpenRegistryError),
    #[error(transparent)]
    Table(#[from] FollowTableError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl RunOptions {
    /// Whether it makes converted forms of layers. Locations ask one that joined for none (SECURITY.md), so its time
    /// and its disk are not spent on them, whatever it was told.
    fn converts(&self) -> bool {
        self.convert_images && self.identity_file.is_none()
    }

    /// What it has by having joined, if it has, and where it then is.
    fn joined(&self) -> Result<Option<(Joined, RegistryPlace)>, JoinError> {
        let Self { identity_file, locations_advertise, public, .. } = self;
        let (Some(file), Some(address), Some(public)) =
            (identity_file, locations_advertise, public)
        else {
            return Ok(None);
        };
        let place = RegistryPlace {
            address: address.clone(),
            public: public.authority.clone(),
            public_secure: public.is_secure,
        };
        Ok(Some((Joined::open(file.clone(), self.global.clone())?, place)))
    }
}

async fn serve(
    options: RunOptions,
    (objects, upstreams): (Option<S3Options>, UpstreamOptions),
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), RegistryRoleError> {
    let joined = options.joined()?.map(|(joined, place)| (Arc::new(joined), place));
    let table = FollowedTable::open(options.data_dir.join("tokens.json"))?;
    let authorizer = Arc::new(table.tokens());
    let images = options.data_dir.join("images");
    let objects = objects::connect(objects, &images).await?;
    let mut defaults = RegistryOptions::new(images, authorizer);
    if !options.converts() {
        defaults.convert_from = None;
    }
    let metrics = longshore_registry::Metrics::default();
    let registry = RegistryOptions {
        objects,
        pins: table.pins(),
        is_told: table.is_told(),
        pushes: match joined {
            Some(_) => Pushes::WhileTold { hold: HOLD },
            None => Pushes::Always,
        },
        keep_untagged: options.keep_untagged.0,
        keep_converted: options.keep_converted.0,
        upstreams,
        metrics: metrics.clone(),
        ..defaults
    };
    let registry = Arc::new(Registry::open(registry)?);

    let service = Service::new(shutdown);
    let global = match &joined {
        Some((joined, _)) => joined.global(),
        None => Followed::new(options.global),
    };
    service.spawn_until_shutdown("table", table.follow(global.clone()));
    let maintained = Arc::clone(&registry);
    service.spawn_until_shutdown("maintenance", async move { maintained.maintain().await });
    let converting = Arc::clone(&registry);
    service.spawn_until_shutdown("converter", async move { converting.convert().await });
    if let Some(listener) = listeners.metrics {
        let mut told = longshore_registry::metrics_registry();
        metrics.register(&mut told);
        longshore_telemetry::metrics::serve(told, listener, &service);
    }
    let scheme = if listeners.users.is_secure() { Scheme::Https } else { Scheme::Http };
    let router = metrics.measure(longshore_registry::router(registry, scheme));
    match (listeners.locations, joined) {
        (Some(locations), Some((joined, place))) => {
            let credentials = joined.credentials();
            let served = locations.serve_with(credentials, router.clone(), service.shutdown());
            service.spawn("locations", served);
            service.spawn_until_shutdown("certificate", Arc::clone(&joined).keep());
            service.spawn_until_shutdown("place", joined.tell_place(place));
        }
        (Some(locations), None) => {
            let file = options.data_dir.join("identity.json");
            let served = elsewhere::serve(locations, router.clone(), global, file, service.clone());
            service.spawn_until_shutdown("certificate", served);
        }
        (None, _) => {}
    }
    if let Some(here) = listeners.here {
        service.spawn("here", here.serve(router.clone(), service.shutdown()));
    }
    if let Some(tls) = listeners.tls.clone() {
        service.spawn_until_shutdown("users' certificate", tls.keep_fresh());
    }
    let served = listeners.users.serve_users(listeners.tls, router, service.shutdown());
    service.spawn("listener", served);
    Ok(service.run().await?)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: RunOptions,
    }

    #[test]
    fn one_that_joined_converts_nothing_whatever_it_is_told() {
        let own = ["run", "--data-dir", "/d", "--global", "unix:/g"];
        let joined = [
            "--locations-listen",
            "https://127.0.0.1:1",
            "--identity-file",
            "/i",
            "--locations-advertise",
            "a:1",
            "--public",
            "a:2",
        ];
        let converts = |flags: &[&str], more: &[&str]| {
            let line = [&own[..], flags, more].concat();
            Line::try_parse_from(line).unwrap().options.converts()
        };
        assert!(converts(&[], &[]) && converts(&[], &["--convert-images", "true"]));
        assert!(!converts(&[], &["--convert-images", "false"]));
        for told in [&[][..], &["--convert-images", "true"]] {
            assert!(!converts(&joined, told), "{told:?}");
        }
    }
}
