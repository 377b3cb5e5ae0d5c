//! The sockets of all roles, bound once by the supervisor, which keeps them open while a role is
//! started again: whoever connects meanwhile waits in the backlog in place of being refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use longshore_link::{Endpoint, ListenError, Listener};

use super::preflight::Obstacle;
use super::settings::Settings;
use super::tls::UsersTls;
use crate::context_file::{Endpoints, MetricsTarget};
use crate::failure::{Failure, Kind, OrFail};

/// How long the kernel may take to close the sockets of a process that was killed. The lock by which the
/// end of old roles is known goes first, and those with many connections take longer.
const RELEASE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The sockets that users reach.
#[derive(Debug)]
pub struct PublicSockets {
    /// The API's.
    pub api: Listener,
    /// That of the platform's own registry.
    pub registry: Option<Listener>,
    /// The ingress's.
    pub ingress: Listener,
    /// The ingress's by TLS, where it speaks that.
    pub ingress_tls: Option<Listener>,
    /// Those for the metrics of the roles.
    pub metrics: MetricsSockets,
    /// Those of machines that join as nodes, where they may.
    pub nodes: Option<Nodes>,
    /// Those of machines that join as locations, where they may.
    pub locations: Option<Locations>,
}

/// A socket that other machines reach.
#[derive(Debug)]
pub struct Outer {
    /// The socket.
    pub listener: Listener,
    /// Its address.
    pub listens: Endpoint,
    /// The `host:port` by which others reach it.
    pub advertised: String,
}

/// Where nodes of other machines call.
#[derive(Debug)]
pub struct Nodes {
    /// The location's.
    pub location: Outer,
    /// The ingress's, on the next port; none where it has one for locations, which nodes reach as well.
    pub ingress: Option<Outer>,
}

/// Where locations of other machines call.
#[derive(Debug)]
pub struct Locations {
    /// The control plane's.
    pub global: Outer,
    /// That of the platform's own registry, on the next port.
    pub registry: Option<Outer>,
    /// The ingress's, on the one after that.
    pub ingress: Outer,
}

impl Outer {
    /// Binds a port `further` than that of `address`; what is advertised is as many ports on.
    fn bind(
        key: &str,
        mut address: SocketAddr,
        (advertised, further): (Option<&str>, u16),
    ) -> Result<Self, Obstacle> {
        if address.port() > 0 {
            address.set_port(address.port().saturating_add(further));
        }
        let refuse = |error: &ListenError| obstacle(key, address, error);
        let asked = Endpoint::Tls(address.to_string());
        let listener = Listener::bind(key, &asked).map_err(|error| refuse(&error))?;
        let listens = listener.endpoint().map_err(|source| {
            refuse(&ListenError::Bind { name: key.to_owned(), endpoint: asked, source })
        })?;
        let advertised = match advertised.and_then(|text| text.rsplit_once(':')) {
            Some((host, port)) => {
                let port: u16 = port.parse().unwrap_or_default();
                format!("{host}:{}", port.saturating_add(further))
            }
            None => listens.authority().to_owned(),
        };
        Ok(Self { listener, listens, advertised })
    }
}

impl Locations {
    fn bind(settings: &Settings, address: SocketAddr) -> Result<Self, Obstacle> {
        let advertised = settings.locations_advertise.as_deref();
        let bind = |further: u16| Outer::bind("locations", address, (advertised, further));
        let registry = settings.own_registry().then(|| bind(1)).transpose()?;
        Ok(Self { global: bind(0)?, registry, ingress: bind(2)? })
    }
}

/// The sockets on which the roles are asked for their metrics, by role; none where nobody asks.
pub type MetricsSockets = BTreeMap<&'static str, Listener>;

/// In the order of their ports.
const WITH_METRICS: [&str; 5] = ["global", "location", "node", "registry", "ingress"];

/// The sockets on which the roles reach each other.
#[derive(Debug)]
pub struct LinkSockets {
    /// The API's, for users of this machine.
    pub api: Listener,
    /// That of the platform's own registry, for other roles.
    pub registry: Option<Listener>,
    /// The global plane's.
    pub global: Listener,
    /// The location's.
    pub location: Listener,
    /// The node's.
    pub gate: Listener,
}

impl PublicSockets {
    /// Binds them all, or says of each that cannot be bound why. One that is in use is waited for a
    /// little: a role that was killed may not have let go of it yet.
    pub fn bind(settings: &Settings) -> Result<Self, Vec<Obstacle>> {
        let deadline = Instant::now() + RELEASE;
        let bind_as = |key: &str, kind: fn(String) -> Endpoint, address: SocketAddr| loop {
            match Listener::bind(key, &kind(address.to_string())) {
                Err(ListenError::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                bound => return bound.map_err(|error| obstacle(key, address, &error)),
            }
        };
        let bind = |key: &str, address| bind_as(key, Endpoint::Tcp, address);
        let to_users = if settings.tls.is_spoken() { Endpoint::Tls } else { Endpoint::Tcp };
        let api = bind_as("api", to_users, settings.api_listen);
        let registry = settings.own_registry().then_some(settings.registry_listen);
        let registry = registry.map(|at| bind_as("registry", to_users, at)).transpose();
        let ingress = bind("ingress", settings.ingress_listen);
        let mut metrics = MetricsSockets::new();
        let mut obstacles = Vec::new();
        let secure = settings.ingress_tls.dir.as_ref().map(|_| settings.ingress_tls.listen);
        let ingress_tls = secure.map(|address| bind_as("ingress-tls", Endpoint::Tls, address));
        let ingress_tls = ingress_tls.transpose().unwrap_or_else(|obstacle| {
            obstacles.push(obstacle);
            None
        });
        let asked = |role: &&str| *role != "registry" || settings.own_registry();
        // The others keep their ports.
        for (role, port) in WITH_METRICS.into_iter().zip(0..).filter(|(role, _)| asked(role)) {
            let Some(mut address) = settings.metrics_listen else { break };
            if address.port() > 0 {
                address.set_port(address.port() + port);
            }
            match bind("metrics", address) {
                Ok(listener) => _ = metrics.insert(role, listener),
                Err(obstacle) => obstacles.push(obstacle),
            }
        }
        let advertised = settings.nodes_advertise.as_deref();
        let nodes = settings.nodes_listen.map(|address| {
            let bind = |further: u16| Outer::bind("nodes", address, (advertised, further));
            let alone = settings.locations_listen.is_none();
            Ok(Nodes { location: bind(0)?, ingress: alone.then(|| bind(1)).transpose()? })
        });
        let nodes = nodes.transpose().map_err(|obstacle| obstacles.push(obstacle));
        let locations = settings.locations_listen;
        let locations = locations.map(|address| Locations::bind(settings, address)).transpose();
        let locations = locations.map_err(|obstacle| obstacles.push(obstacle));
        match (api, registry, ingress, nodes, locations) {
            (Ok(api), Ok(registry), Ok(ingress), Ok(nodes), Ok(locations))
                if obstacles.is_empty() =>
            {
                Ok(Self { api, registry, ingress, ingress_tls, metrics, nodes, locations })
            }
            (api, registry, ingress, ..) => {
                let errors = [api.err(), registry.err(), ingress.err()];
                Err(errors.into_iter().flatten().chain(obstacles).collect())
            }
        }
    }

    /// Where each role is asked for its metrics.
    pub fn metrics_targets(&self) -> Result<Vec<MetricsTarget>, Failure> {
        let target = |(role, socket): (&&'static str, &Listener)| {
            let endpoint = socket.endpoint().or_fail(Kind::Other, "cannot tell an address")?;
            Ok(MetricsTarget { role, address: reachable(endpoint.authority()) })
        };
        self.metrics.iter().map(target).collect()
    }

    /// Where they listen, with the ports that the kernel chose.
    pub fn listening(&self) -> Result<Listening, Failure> {
        let at = |socket: &Listener| {
            socket.endpoint().or_fail(Kind::Other, "cannot tell the address of a socket")
        };
        let registry = self.registry.as_ref().map(at).transpose()?;
        Ok(Listening { api: at(&self.api)?, registry, ingress: at(&self.ingress)? })
    }
}

/// Where the sockets that users reach listen.
#[derive(Debug)]
pub struct Listening {
    /// The API's.
    pub api: Endpoint,
    /// That of the platform's own registry.
    pub registry: Option<Endpoint>,
    /// The ingress's.
    pub ingress: Endpoint,
}

impl Listening {
    /// Where users reach them; by TLS at a host of its own.
    pub fn endpoints(&self, tls: Option<&UsersTls>, links: &Path) -> Endpoints {
        let ingress = reachable(self.ingress.authority());
        let registry = |at: &dyn Fn(&Endpoint) -> String| self.registry.as_ref().map(at);
        let Some(tls) = tls else {
            let at = |endpoint: &Endpoint| reachable(endpoint.authority());
            let registry = registry(&at).unwrap_or_default();
            return Endpoints::plain(at(&self.api), registry, ingress);
        };
        let at = |endpoint: &Endpoint| {
            let port = endpoint.authority().rsplit(':').next().unwrap_or_default();
            tls.authority(port)
        };
        Endpoints {
            api: format!("https://{}", at(&self.api)),
            registry: registry(&at).unwrap_or_default(),
            ingress,
            ca: tls.ca.clone(),
            socket: Some(links.join(API_SOCKET)),
        }
    }
}

/// The name of the API's socket in the directory of links.
pub const API_SOCKET: &str = "api.sock";

impl LinkSockets {
    /// Binds them in `dir`.
    pub fn bind(settings: &Settings, dir: &Path) -> Result<Self, Failure> {
        let bind = |name: &str| {
            let path = dir.join(format!("{name}.sock"));
            Listener::bind(name, &Endpoint::Unix(path)).or_fail(Kind::Other, "cannot begin")
        };
        Ok(Self {
            api: bind("api")?,
            registry: settings.own_registry().then(|| bind("registry")).transpose()?,
            global: bind("global")?,
            location: bind("location")?,
            gate: bind("gate")?,
        })
    }
}

/// An address to connect to for one to listen on: all addresses of a machine include loopback's.
pub fn reachable(authority: &str) -> String {
    match authority.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
        _ => authority.to_owned(),
    }
}

fn obstacle(key: &str, address: SocketAddr, error: &ListenError) -> Obstacle {
    let other = format!("choose another with --{key}-listen, port 0 for any free one");
    match error {
        ListenError::InUse { .. } => {
            Obstacle::new(format!("{address}, for the {key}, is in use by another process"), other)
        }
        ListenError::Bind { source, .. } => {
            Obstacle::new(format!("cannot listen on {address} for the {key}: {source}"), other)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn settings(api_listen: SocketAddr, ingress_listen: SocketAddr) -> Settings {
        let defaults = Settings::defaults("n1".parse().unwrap());
        Settings {
            api_listen,
            registry_listen: FREE,
            ingress_listen,
            metrics_listen: None,
            ..defaults
        }
    }

    #[test]
    fn every_port_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind(FREE).unwrap();
        let address = taken.local_addr().unwrap();
        let settings = |at| settings(at, at);
        let obstacles = PublicSockets::bind(&settings(address)).unwrap_err();
        assert_eq!(obstacles.len(), 2);
        assert_eq!(
            obstacles[1].what,
            format!("{address}, for the ingress, is in use by another process")
        );
        let listening = PublicSockets::bind(&settings(FREE)).unwrap().listening().unwrap();
        let endpoints = listening.endpoints(None, Path::new("/run"));
        assert!(!endpoints.api.ends_with(":0"), "the port was chosen: {endpoints:?}");
    }

    #[test]
    fn every_role_has_a_port_of_its_own_for_its_metrics() {
        let mut settings = settings(FREE, FREE);
        let none = PublicSockets::bind(&settings).unwrap();
        assert!(none.metrics_targets().unwrap().is_empty());
        settings.metrics_listen = Some(FREE);
        let targets = PublicSockets::bind(&settings).unwrap().metrics_targets().unwrap();
        let addresses: std::collections::BTreeSet<_> =
            targets.iter().map(|target| &target.address).collect();
        assert_eq!((targets.len(), addresses.len()), (5, 5));

        // Ports that follow each other, as far as this machine has such free now.
        let first = (20_000..60_000).step_by(7).find_map(|port| {
            settings.metrics_listen = Some(SocketAddr::new(FREE.ip(), port));
            Some((port, PublicSockets::bind(&settings).ok()?))
        });
        let (port, sockets) = first.unwrap();
        let targets = sockets.metrics_targets().unwrap();
        let of = |role| &targets.iter().find(|target| target.role == role).unwrap().address;
        assert_eq!(*of("global"), format!("127.0.0.1:{port}"));
        assert_eq!(*of("ingress"), format!("127.0.0.1:{}", port + 4));
    }

    #[test]
    fn a_port_that_is_just_let_go_of_is_waited_for() {
        let taken = std::net::TcpListener::bind(FREE).unwrap();
        let address = taken.local_addr().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(taken);
        });
        let sockets = PublicSockets::bind(&settings(address, FREE)).unwrap();
        let listening = sockets.listening().unwrap();
        assert_eq!(listening.api, Endpoint::Tcp(address.to_string()));
    }

    #[test]
    fn all_addresses_are_reached_on_loopback() {
        for (listen, reach) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(reachable(listen), reach);
        }
    }
}
