//! `longshore global`

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use longshore_global::{JoiningOptions, PublicRegistry, RegistryChoice, StoreChoice};
use longshore_link::{Endpoint, Listener};
use longshore_types::{Duration, HostName};

use super::{MetricsOptions, Threads, TlsOptions, here, listener, users_listener};
use crate::failure::{Failure, Kind, OrFail};
use crate::store_tls::StoreTlsOptions;

/// Run the global control plane alone: the API and the choice of locations
///
/// `up` starts it with the other roles; this is for running the roles apart.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The directory of its own files, the embedded store among them
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the state is: embedded, or etcd as http[s]://HOST:PORT[,http[s]://HOST:PORT ...][/PREFIX]
    #[arg(long, value_name = "STORE", default_value = "embedded")]
    store: StoreChoice,
    #[command(flatten)]
    store_tls: StoreTlsOptions,
    /// Where the API listens: http on loopback, https anywhere
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:4600")]
    api_listen: Endpoint,
    /// Where users of this machine call it besides, whatever becomes of its certificate: unix:/PATH
    #[arg(long, value_name = "ENDPOINT")]
    api_here: Option<Endpoint>,
    #[command(flatten)]
    tls: TlsOptions,
    /// Where it listens for locations and the registry
    #[arg(long, value_name = "ENDPOINT")]
    link_listen: Endpoint,
    /// Where other control planes on the same etcd reach the API [default: where it listens]
    #[arg(long, value_name = "ENDPOINT")]
    api_advertise: Option<Endpoint>,
    /// The certificates, in PEM, of those who vouch for other control planes at https:// [default: whom this
    /// machine trusts]
    #[arg(long, value_name = "FILE")]
    api_ca: Option<PathBuf>,
    /// Where locations and registries that called another one reach this one [default: where it listens]
    #[arg(long, value_name = "ENDPOINT")]
    link_advertise: Option<Endpoint>,
    /// Where the registry is, or joined for one that joins from another machine
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:4601")]
    registry: RegistryAt,
    /// Such a one as users name it, with https:// before that when it is spoken to by TLS; one that joined says
    /// this itself
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4601")]
    registry_public: PublicRegistry,
    /// The ingress as users reach it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    ingress_public: String,
    /// Below this name every app gets a host name
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    domain: HostName,
    /// The file with the token that may do everything
    #[arg(long, value_name = "FILE")]
    admin_token_file: PathBuf,
    /// The file with the token by which the platform's own parts pull images
    #[arg(long, value_name = "FILE")]
    system_token_file: PathBuf,
    /// The file with the keys that seal secrets; made when it is missing. Keep a copy, apart from those
    /// of the store
    #[arg(long, value_name = "FILE")]
    secret_keys_file: PathBuf,
    /// The file with the root of all certificates; made when it is missing. Whoever has it can be anyone
    #[arg(long, value_name = "FILE")]
    root_file: PathBuf,
    /// Where locations of other machines, and the registry of one, join and call, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT", requires = "locations_advertise")]
    locations_listen: Option<Endpoint>,
    /// The host and port by which they reach that
    #[arg(long, value_name = "HOST:PORT")]
    locations_advertise: Option<String>,
    /// The host and port by which they reach the registry, unless that joins
    #[arg(long, value_name = "HOST:PORT")]
    registry_locations: Option<String>,
    /// How many requests to the API each token may send in a second; five times as many at once
    #[arg(long, value_name = "COUNT", default_value = "100")]
    api_rate: NonZeroU32,
    /// How long it has to be better elsewhere for the users of an app with a latency goal before an instance
    /// moves there
    #[arg(long, value_name = "DURATION", default_value = "3m")]
    rebalance_after: Duration,
    /// How many releases of each app are kept, with their images, beside those that it needs
    #[arg(long, value_name = "COUNT", default_value = "20")]
    keep_releases: NonZeroU32,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Where the registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RegistryAt {
    Endpoint(Endpoint),
    Joined,
}

impl FromStr for RegistryAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "joined" => Ok(Self::Joined),
            _ => {
                text.parse().map(Self::Endpoint).map_err(|why: String| format!("{why}, or joined"))
            }
        }
    }
}

impl Options {
    /// The registry, and how locations of other machines reach what they need, where they may join.
    fn registry(&self) -> Result<(RegistryChoice, Option<JoiningOptions>), Failure> {
        let refuse = |message: &str, hint: &str| Err(Failure::new(Kind::Usage, message).hint(hint));
        let registry = match &self.registry {
            RegistryAt::Joined if self.locations_listen.is_none() => {
                return refuse(
                    "--registry joined is not allowed without --locations-listen",
                    "that is where it joins: https://HOST:PORT",
                );
            }
            RegistryAt::Joined => RegistryChoice::Joined,
            RegistryAt::Endpoint(endpoint) => RegistryChoice::At {
                endpoint: endpoint.clone(),
                public: self.registry_public.clone(),
            },
        };
        let registry_advertised = self.registry_locations.clone();
        let is_joined = registry == RegistryChoice::Joined;
        if self.locations_listen.is_some() && registry_advertised.is_some() == is_joined {
            return refuse(
                "--locations-listen goes with one of --registry-locations and --registry joined",
                "locations have images from the registry: say where they reach it, or have it join",
            );
        }
        let advertised =
            self.locations_advertise.clone().filter(|_| self.locations_listen.is_some());
        let joining =
            advertised.map(|advertised| JoiningOptions { advertised, registry_advertised });
        Ok((registry, joining))
    }
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let (registry, joining) = options.registry()?;
    let api_tls = options.tls.open()?;
    let api = users_listener(("api", "--api-listen"), &options.api_listen, api_tls.as_ref())?;
    let api_here = options.api_here.as_ref();
    let api_here = api_here.map(|endpoint| here("api-here", "--api-here", endpoint)).transpose()?;
    if matches!(options.link_listen, Endpoint::Tcp(_)) {
        let message = format!("--link-listen {} is not allowed", options.link_listen);
        return Err(Failure::new(Kind::Usage, message).hint(
            "whoever connects there is believed: a socket that others cannot open, unix:/PATH",
        ));
    }
    let link = listener("link", &options.link_listen)?;
    let metrics = options.metrics.listener()?;
    let api_advertise = advertised("api", options.api_advertise, &api)?;
    let link_advertise = advertised("link", options.link_advertise, &link)?;
    let locations = super::locations_listener(options.locations_listen.as_ref())?;
    let listeners =
        longshore_global::Listeners { api, api_tls, api_here, link, locations, metrics };
    let store_tls = options.store_tls.load(options.store.etcd())?;
    let dir = options.data_dir.clone();
    super::run("global", &dir, Threads::Few, |shutdown| {
        let options = longshore_global::Options {
            data_dir: options.data_dir,
            store: options.store,
            store_tls,
            api_advertise,
            api_ca: options.api_ca,
            link_advertise,
            registry,
            ingress_public: options.ingress_public,
            domain: options.domain.to_string(),
            admin_token_file: options.admin_token_file,
            system_token_file: options.system_token_file,
            secret_keys_file: options.secret_keys_file,
            root_file: options.root_file,
            joining,
            api_rate: options.api_rate,
            rebalance_after: options.rebalance_after,
            keep_releases: options.keep_releases,
        };
        longshore_global::run(options, listeners, shutdown)
    })
}

/// Where others reach what listens: as is said, else where it does, which must be a place to connect to.
fn advertised(
    name: &str,
    said: Option<Endpoint>,
    listener: &Listener,
) -> Result<Endpoint, Failure> {
    let endpoint = match said {
        Some(endpoint) => endpoint,
        None => listener.endpoint().or_fail(Kind::Other, "cannot tell an address")?,
    };
    match endpoint.authority().parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => {
            let message =
                format!("nobody can connect to {endpoint}, which stands for all addresses");
            let hint = format!("name one that others reach: --{name}-advertise");
            Err(Failure::new(Kind::Invalid, message).hint(hint))
        }
        _ => Ok(endpoint),
    }
}
