//! Which roles a platform on one machine has, with which flags, and in which order they end.

use std::path::Path;
use std::time::Duration;

use longshore_link::Listener;
use longshore_runtime::RuntimePrograms;
use longshore_store::EtcdTlsFiles;
use longshore_types::Traits;

use super::child::RolePlan;
use super::home::Home;
use super::settings::Settings;
use super::sockets::{
    API_SOCKET, LinkSockets, Listening, Locations, MetricsSockets, Nodes, Outer, PublicSockets,
};
use super::tls::{IngressTls, UsersTls};
use crate::context_file::Endpoints;
use crate::roles::registry::{ObjectSettings, UpstreamSettings};

/// How long a role may take to end. A role itself gives up on its last requests sooner.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the node may take to end its instances, each of which has its grace.
const DRAIN_INSTANCES: Duration = Duration::from_secs(90);

/// Where the platform is reached.
#[derive(Debug)]
pub struct Reached {
    /// Where its sockets listen.
    pub listening: Listening,
    /// Where users find them.
    pub endpoints: Endpoints,
    /// With which certificate, when TLS is spoken to them.
    pub tls: Option<UsersTls>,
}

/// The roles in waves; a wave ends once the one before has.
///
/// First those that change things (nothing new begins), then the ingress while the node is still
/// there, for the requests that it is answering go through the node's gate. The location comes
/// before the node, so that it does not take the end of the node for a loss; and the node last:
/// when the instances are to end with it, no request is on its way to them any more. Rejected: the
/// ingress last, to answer for as long as possible. What it could answer without the others is
/// errors.
pub fn plan_roles(
    settings: &Settings,
    home: &Home,
    reached: &Reached,
    sockets: (PublicSockets, LinkSockets),
) -> Vec<Vec<RolePlan>> {
    let (public, links) = sockets;
    let mut metrics = public.metrics;
    let at = |socket: &str| format!("unix:{}", home.links_dir().join(socket).display());
    let (global_at, location_at) = (at("global.sock"), at("location.sock"));
    let registry_at = at("registry.sock");

    let own_registry = settings.own_registry().then_some(registry_at.as_str());
    let global = control_plane(settings, home, reached, (&global_at, own_registry))
        .with("api-here", at(API_SOCKET));
    let ingress = Flags::new()
        .with("data-dir", home.role_dir("ingress").display())
        .with("listen", &reached.listening.ingress)
        .with("location", &location_at);
    let location = Flags::below("run")
        .with("name", &settings.location)
        .with("own-node", &settings.node)
        .with("data-dir", home.role_dir("location").display())
        .with("listen", &location_at)
        .with("global", &global_at)
        .with("image-mirror", settings.image_mirror);
    let location =
        location.with_some("coordinates", settings.coordinates).with_traits(&settings.traits);
    let mut of_global = vec![("api", public.api), ("api-here", links.api), ("link", links.global)];
    let mut of_location = vec![("link", links.location)];
    let mut of_ingress = vec![("ingress", public.ingress)];
    let ingress = match public.ingress_tls {
        Some(listener) => {
            let ingress = ingress.with_ingress_tls(&settings.ingress_tls, &listener);
            of_ingress.push(("ingress-tls", listener));
            ingress
        }
        None => ingress,
    };
    let location = location.with_registry(own_registry, home);
    let (global, images, ingress, location) = match public.locations {
        Some(Locations { global: own, registry: images, ingress: peers }) => {
            let advertised = images.as_ref().map(|images| &images.advertised);
            let global = global
                .with("locations-listen", &own.listens)
                .with("locations-advertise", &own.advertised)
                .with_some("registry-locations", advertised);
            of_global.push(("locations", own.listener));
            of_ingress.push(("peers", peers.listener));
            let ingress = ingress.with("peers-listen", &peers.listens);
            (global, images, ingress, location.with("peers-advertise", &peers.advertised))
        }
        None => (global, None, ingress, location),
    };
    let (ingress, location) = match public.nodes {
        Some(nodes) => for_nodes(nodes, (ingress, &mut of_ingress), (location, &mut of_location)),
        None => (ingress, location),
    };
    let sockets = public.registry.zip(links.registry);
    let registry = sockets.map(|(users, here)| {
        registry((settings, home, reached), (&global_at, &registry_at), (users, here, images))
    });
    let node = agent(settings, home, (&at("gate.sock"), &location_at, own_registry));
    let node_drain = if settings.stop_instances { DRAIN_INSTANCES } else { DRAIN };
    let mut waves = vec![
        [role("global", global, of_global, DRAIN)].into_iter().chain(registry).collect(),
        vec![role("ingress", ingress, of_ingress, DRAIN)],
        vec![role("location", location, of_location, DRAIN)],
        vec![role("node", node, vec![("gate", links.gate)], node_drain)],
    ];
    waves.iter_mut().flatten().for_each(|plan| give_metrics(plan, &mut metrics));
    waves
}

/// The platform's own registry, which hears from the control plane at `global` and is called by other roles at
/// `own`.
fn registry(
    (settings, home, reached): (&Settings, &Home, &Reached),
    (global, own): (&str, &str),
    (users, here, locations): (Listener, Listener, Option<Outer>),
) -> RolePlan {
    let flags = Flags::below("run")
        .with("data-dir", home.role_dir("registry").display())
        .with_some("listen", reached.listening.registry.as_ref())
        .with("listen-here", own)
        .with_tls(reached.tls.as_ref())
        .with("global", global)
        .with("keep-untagged", settings.keep_untagged)
        .with("convert-images", settings.convert_images)
        .with("keep-converted", settings.keep_converted)
        .with_objects(&settings.registry_objects)
        .with_upstreams(&settings.upstreams);
    let mut sockets = vec![("registry", users), ("registry-here", here)];
    let flags = match locations {
        Some(Outer { listener, listens, .. }) => {
            sockets.push(("locations", listener));
            flags.with("locations-listen", listens)
        }
        None => flags,
    };
    role("registry", flags, sockets, DRAIN)
}

/// The flags and sockets of the ingress and the location, with where nodes of other machines call.
fn for_nodes(
    Nodes { location: Outer { listener, listens, advertised }, ingress: door }: Nodes,
    (ingress, of_ingress): (Flags, &mut Vec<(&'static str, Listener)>),
    (location, of_location): (Flags, &mut Vec<(&'static str, Listener)>),
) -> (Flags, Flags) {
    of_location.push(("nodes", listener));
    let location = location.with("nodes-listen", listens).with("nodes-advertise", advertised);
    match door {
        Some(Outer { listener, listens, advertised }) => {
            of_ingress.push(("peers", listener));
            let ingress = ingress.with("peers-listen", listens);
            (ingress, location.with("ingress-advertise", advertised))
        }
        None => (ingress, location),
    }
}

/// The flags of the control plane, which locations of this machine call at `link`, with where its own registry is.
fn control_plane(
    settings: &Settings,
    home: &Home,
    reached: &Reached,
    (link, registry): (&str, Option<&str>),
) -> Flags {
    let Reached { listening, endpoints, tls } = reached;
    let public = registry.map(|_| match tls {
        Some(_) => format!("https://{}", endpoints.registry),
        None => endpoints.registry.clone(),
    });
    let flags = Flags::new()
        .with("data-dir", home.role_dir("global").display())
        .with("store", &settings.store)
        .with("api-listen", &listening.api)
        .with("api-advertise", &endpoints.api)
        .with_tls(tls.as_ref())
        .with_some("api-ca", endpoints.ca.as_deref().map(Path::display))
        .with("link-listen", link)
        .with("registry", registry.unwrap_or("joined"))
        .with_some("registry-public", public)
        .with("ingress-public", &endpoints.ingress)
        .with("domain", &settings.domain)
        .with("api-rate", settings.api_rate)
        .with("rebalance-after", settings.rebalance_after)
        .with("keep-releases", settings.keep_releases)
        .with("admin-token-file", home.admin_token_file().display())
        .with("system-token-file", home.system_token_file().display())
        .with("secret-keys-file", home.secret_keys_file().display())
        .with("root-file", home.root_file().display());
    with_store_tls(flags, &settings.store_tls)
}

/// The flags of the agent of this machine, with where its gate, its location and the platform's own registry are.
fn agent(
    settings: &Settings,
    home: &Home,
    (gate, location, registry): (&str, &str, Option<&str>),
) -> Flags {
    let node = Flags::below("agent")
        .with("name", &settings.node)
        .with("agent", home.agent())
        .with("data-dir", home.role_dir("node").display())
        .with("run-dir", home.run_dir().display())
        .with("gate-listen", gate)
        .with("location", location)
        .with_registry(registry, home)
        .with("instance-pool", settings.instance_pool)
        .with("cpu-overcommit", settings.cpu_overcommit)
        .with("image-disk", settings.image_disk)
        .with("image-rate", settings.image_rate)
        .with("prewarm-rate", settings.prewarm_rate)
        .with_each("gpu", &settings.gpus);
    let node = match &settings.cgroup_parent {
        Some(parent) => node.with("cgroup-parent", parent),
        None => node,
    };
    let RuntimePrograms { runc, crun, runsc } = &settings.programs;
    let given = [("runc", runc), ("crun", crun), ("runsc", runsc)];
    let given = given.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
    given.fold(node, |node, (name, path)| node.with(name, path.display()))
}

/// Where the certificates for an etcd are.
fn with_store_tls(flags: Flags, files: &EtcdTlsFiles) -> Flags {
    let EtcdTlsFiles { ca, cert, key } = files;
    [("store-ca", ca), ("store-cert", cert), ("store-key", key)]
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?)))
        .fold(flags, |flags, (name, path)| flags.with(name, path.display()))
}

/// Lets a role be asked for its metrics, where anyone may.
fn give_metrics(plan: &mut RolePlan, metrics: &mut MetricsSockets) {
    let Some(listener) = metrics.remove(plan.role) else { return };
    let Ok(endpoint) = listener.endpoint() else { return };
    plan.args.extend(["--metrics-listen".to_owned(), endpoint.to_string()]);
    plan.sockets.push(("metrics", listener));
}

fn role(
    role: &'static str,
    flags: Flags,
    sockets: Vec<(&'static str, Listener)>,
    drain: Duration,
) -> RolePlan {
    RolePlan { role, args: flags.into_args(), sockets, drain }
}

/// Flags of a role.
pub struct Flags(Vec<String>);

impl Flags {
    /// None.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Those of a verb below that of the role.
    pub fn below(verb: &str) -> Self {
        Self(vec![verb.to_owned()])
    }

    /// As a command has them.
    pub fn into_args(self) -> Vec<String> {
        self.0
    }

    /// The same with one more.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.0.extend([format!("--{name}"), value.to_string()]);
        self
    }

    /// The same with one more, if there is one.
    pub fn with_some(self, name: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The same with one for each value.
    pub fn with_each(self, name: &str, values: &[impl std::fmt::Display]) -> Self {
        values.iter().fold(self, |flags, value| flags.with(name, value))
    }

    /// The same with the certificate for users, if there is one.
    pub fn with_tls(self, tls: Option<&UsersTls>) -> Self {
        match tls {
            Some(tls) => {
                self.with("tls-cert", tls.cert.display()).with("tls-key", tls.key.display())
            }
            None => self,
        }
    }

    /// The same with where the bytes of images are.
    pub fn with_objects(self, objects: &ObjectSettings) -> Self {
        let ObjectSettings { storage, endpoint, region, credentials } = objects;
        self.with_some("storage", storage.as_ref())
            .with_some("s3-endpoint", endpoint.as_ref())
            .with_some("s3-region", region.as_ref())
            .with_some("s3-credentials", credentials.as_ref().map(|path| path.display()))
    }

    /// The same with the registries whose images are given.
    pub fn with_upstreams(self, settings: &UpstreamSettings) -> Self {
        let UpstreamSettings { upstreams, credentials, ca } = settings;
        self.with_each("upstream", upstreams)
            .with_some("upstream-credentials", credentials.as_ref().map(|path| path.display()))
            .with_some("upstream-ca", ca.as_ref().map(|path| path.display()))
    }

    /// The same with where the platform's own registry is; without, images are had in another way.
    fn with_registry(self, registry: Option<&str>, home: &Home) -> Self {
        let token = registry.map(|_| home.system_token_file());
        self.with_some("registry", registry)
            .with_some("registry-token-file", token.as_deref().map(Path::display))
    }

    /// The same with where the ingress speaks TLS.
    pub fn with_ingress_tls(self, tls: &IngressTls, listener: &Listener) -> Self {
        let (Some(dir), Ok(endpoint)) = (&tls.dir, listener.endpoint()) else { return self };
        let port = endpoint.authority().rsplit(':').next().unwrap_or_default().to_owned();
        self.with("tls", dir.display())
            .with("tls-listen", &endpoint)
            .with_some("redirect", tls.redirects.then_some(port))
    }

    /// The same with what is said of a location or a node.
    pub fn with_traits(self, traits: &Traits) -> Self {
        let flags = self.with_some("country", traits.country);
        traits.labels.iter().fold(flags, |flags, label| flags.with("label", label))
    }
}

/// The path of our own program, which every role and shim runs.
pub fn own_program() -> std::io::Result<std::path::PathBuf> {
    let path = std::env::current_exe()?;
    // After an upgrade in place the kernel says so behind the path; what lies there now is the new
    // version, which is what a role that is started from now on should be.
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(present) if Path::new(present).exists() => present.into(),
        _ => path,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::home::Contents;
    use super::super::settings::RegistrySetting;
    use super::super::tls::{IngressTls, TlsSettings};
    use super::*;
    use crate::cli::Cli;

    #[test]
    fn nodes_reach_the_ingress_also_where_no_locations_may_join() {
        let args = |locations: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            let home =
                Home::take(&dir.path().join("data"), &dir.path().join("run"), Contents::Platform)
                    .unwrap();
            let free = "127.0.0.1:0".parse().unwrap();
            let settings = Settings {
                api_listen: free,
                registry_listen: free,
                ingress_listen: free,
                metrics_listen: None,
                nodes_listen: Some(free),
                locations_listen: locations.map(|at| at.parse().unwrap()),
                ..Settings::defaults("n1".parse().unwrap())
            };
            let public = PublicSockets::bind(&settings).unwrap();
            let listening = public.listening().unwrap();
            let endpoints = listening.endpoints(None, &home.links_dir());
            let reached = Reached { listening, endpoints, tls: None };
            home.prepare_run_dir().unwrap();
            let links = LinkSockets::bind(&settings, &home.links_dir()).unwrap();
            let waves = plan_roles(&settings, &home, &reached, (public, links));
            let plans: Vec<_> = waves.into_iter().flatten().collect();
            let value = |role: &str, flag: &str| {
                let plan = plans.iter().find(|plan| plan.role == role).unwrap();
                let at = plan.args.iter().position(|arg| arg == flag)?;
                Some(plan.args[at + 1].trim_start_matches("https://").to_owned())
            };
            (
                value("ingress", "--peers-listen").unwrap(),
                value("location", "--ingress-advertise"),
                value("location", "--peers-advertise"),
            )
        };
        let (listens, told, for_locations) = args(None);
        assert_eq!((told, for_locations), (Some(listens), None));
        let (listens, told, for_locations) = args(Some("127.0.0.1:0"));
        assert_eq!((told, for_locations), (None, Some(listens)));
    }

    fn every_setting(dir: &Path, registry: RegistrySetting) -> Settings {
        let free = "127.0.0.1:0".parse().unwrap();
        Settings {
            api_listen: free,
            registry,
            registry_listen: free,
            ingress_listen: free,
            metrics_listen: Some(free),
            nodes_listen: Some(free),
            locations_listen: Some(free),
            tls: TlsSettings { self_signed: true, ..TlsSettings::default() },
            ingress_tls: IngressTls { dir: Some(dir.to_owned()), listen: free, redirects: true },
            cgroup_parent: Some("/test".to_owned()),
            store_tls: EtcdTlsFiles {
                ca: Some("/ca".into()),
                cert: Some("/cert".into()),
                key: Some("/key".into()),
            },
            coordinates: "-33.9,151.2".parse().ok(),
            traits: Traits {
                country: "AU".parse().ok(),
                labels: ["tier=edge".parse().unwrap(), "disk=nvme".parse().unwrap()].into(),
            },
            upstreams: UpstreamSettings {
                upstreams: vec!["docker.io=https://registry-1.docker.io".parse().unwrap()],
                credentials: Some("/credentials".into()),
                ca: Some("/ca".into()),
            },
            gpus: ["h100:80GiB:2", "l4:24GiB"].map(|gpu| gpu.parse().unwrap()).into(),
            programs: RuntimePrograms { runsc: Some("/opt/runsc".into()), ..Default::default() },
            ..Settings::defaults("n1".parse().unwrap())
        }
    }

    #[test]
    fn every_role_understands_the_flags_it_is_given() {
        for (registry, first) in [
            (RegistrySetting::Own, &["global", "registry"][..]),
            (RegistrySetting::Joined, &["global"]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let home =
                Home::take(&dir.path().join("data"), &dir.path().join("run"), Contents::Platform)
                    .unwrap();
            let settings = every_setting(dir.path(), registry);
            let public = PublicSockets::bind(&settings).unwrap();
            let listening = public.listening().unwrap();
            let tls = UsersTls::prepare(&settings.tls, &settings.to_users(), &home).unwrap();
            let endpoints = listening.endpoints(tls.as_ref(), &home.links_dir());
            let reached = Reached { listening, endpoints, tls };
            home.prepare_run_dir().unwrap();
            let links = LinkSockets::bind(&settings, &home.links_dir()).unwrap();
            let waves = plan_roles(&settings, &home, &reached, (public, links));
            let order: Vec<Vec<&str>> =
                waves.iter().map(|wave| wave.iter().map(|plan| plan.role).collect()).collect();
            assert_eq!(order[0], first);
            assert_eq!(order.last().unwrap(), &["node"]);
            for plan in waves.iter().flatten() {
                let is_asked = plan.args.iter().any(|arg| arg == "--metrics-listen");
                assert!(is_asked, "{}", plan.role);
                let line = ["longshore", plan.role].into_iter();
                let line = line.chain(plan.args.iter().map(String::as_str));
                Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{}: {error}", plan.role));
            }
        }
    }
}
