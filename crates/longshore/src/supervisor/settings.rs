//! The settings of `up`: a documented TOML file, and flags that win over it.
//!
//! One list of keys drives all of it: reading the file, reading the flags, `--dump-config`, the
//! advice on an unknown key. A key that is not in the list does not exist, so none can be without
//! its documentation.

mod keys;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use longshore_global::StoreChoice;
use longshore_runtime::RuntimePrograms;
use longshore_store::EtcdTlsFiles;
use longshore_types::{
    Coordinates, DeclaredGpus, DiskMarks, Duration, HostName, IpNet, LocationName, ManifestProblem,
    MirrorSize, NodeName, PullRate, Traits, nearest,
};
use toml::Value;

use super::tls::{IngressTls, TlsSettings};
use crate::failure::flag;
use crate::logging::LogFormat;
use crate::roles::registry::{ObjectSettings, UpstreamSettings};
use crate::store_tls;
use keys::KEYS;

const DEFAULT_API_RATE: NonZeroU32 = NonZeroU32::new(100).expect("100 is not 0");

const DEFAULT_KEEP_RELEASES: NonZeroU32 = NonZeroU32::new(20).expect("20 is not 0");

/// What `up` runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Below it are the sockets; lost with a reboot.
    pub run_dir: PathBuf,
    /// Where the state of the control plane is.
    pub store: StoreChoice,
    /// The certificates for an etcd at https.
    pub store_tls: EtcdTlsFiles,
    /// Where the API listens, a loopback address without TLS.
    pub api_listen: SocketAddr,
    /// How many requests to the API each token may send in a second.
    pub api_rate: NonZeroU32,
    /// How long it has to be better elsewhere for the users of an app before an instance moves there.
    pub rebalance_after: Duration,
    /// How many releases of an app are kept beside those that it needs.
    pub keep_releases: NonZeroU32,
    /// Which registry the platform has.
    pub registry: RegistrySetting,
    /// Where its own listens, likewise.
    pub registry_listen: SocketAddr,
    /// Where the bytes of its images are.
    pub registry_objects: ObjectSettings,
    /// Which other registries' images it gives.
    pub upstreams: UpstreamSettings,
    /// How long the registry keeps a manifest that no tag and no release names.
    pub keep_untagged: Duration,
    /// Whether it converts the layers of images.
    pub convert_images: bool,
    /// How long it keeps what it converted and no node asks for.
    pub keep_converted: Duration,
    /// How users of both are spoken to.
    pub tls: TlsSettings,
    /// Where the ingress listens.
    pub ingress_listen: SocketAddr,
    /// By what users are spoken to there by TLS, where they are.
    pub ingress_tls: IngressTls,
    /// Where the first of the roles is asked for its metrics, the others on the ports that follow;
    /// nowhere when absent.
    pub metrics_listen: Option<SocketAddr>,
    /// Where machines that join this location call; nowhere when absent.
    pub nodes_listen: Option<SocketAddr>,
    /// The `host:port` by which they reach that, where its own address is not it.
    pub nodes_advertise: Option<String>,
    /// Where machines that join as locations call; on the next port they have images, and on the one after that
    /// their ingresses pass requests on. Nowhere when absent.
    pub locations_listen: Option<SocketAddr>,
    /// The `host:port` by which they reach that, where its own address is not it.
    pub locations_advertise: Option<String>,
    /// Below it every app gets a host name.
    pub domain: HostName,
    /// The name of the location that this machine is.
    pub location: LocationName,
    /// Where on Earth this machine is, when that is said.
    pub coordinates: Option<Coordinates>,
    /// What else is said of that location.
    pub traits: Traits,
    /// The name of this machine as a node.
    pub node: NodeName,
    /// What instances get their addresses from; every agent takes a part of it that is free.
    pub instance_pool: IpNet,
    /// How many times over the processor time of the machine is promised.
    pub cpu_overcommit: f64,
    /// When images that nothing keeps leave the disk.
    pub image_disk: DiskMarks,
    /// How much of the network all pulls may take together.
    pub image_rate: PullRate,
    /// How much of that those may take that no instance waits for.
    pub prewarm_rate: PullRate,
    /// How much of the disk images may take that are kept for all nodes of the location.
    pub image_mirror: MirrorSize,
    /// The GPUs that the machine has.
    pub gpus: Vec<DeclaredGpus>,
    /// The cgroup below which the instances have theirs; the node's own when absent.
    pub cgroup_parent: Option<String>,
    /// Where the programs of the runtimes are, those that are not in the usual places.
    pub programs: RuntimePrograms,
    /// Whether the instances end with the platform.
    pub stop_instances: bool,
    /// What is logged, in the syntax of tracing's filters.
    pub log: String,
    /// How a line of the log looks.
    pub log_format: LogFormat,
    /// Where traces of starts are sent by OTLP; the environment says when absent.
    pub otlp_endpoint: Option<String>,
}

/// Which registry a platform has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrySetting {
    /// One that it runs.
    Own,
    /// One that joins from another machine.
    Joined,
}

impl RegistrySetting {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Joined => "joined",
        }
    }
}

impl FromStr for RegistrySetting {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Own, Self::Joined].into_iter().find(|one| one.as_str() == text).ok_or(())
    }
}

impl Settings {
    /// What holds when nothing is said.
    pub fn defaults(node: NodeName) -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data_dir: crate::connection::DEFAULT_DATA_DIR.into(),
            run_dir: "/run/longshore".into(),
            store: StoreChoice::Embedded,
            store_tls: EtcdTlsFiles::default(),
            api_listen: loopback(4600),
            api_rate: DEFAULT_API_RATE,
            rebalance_after: Duration::from_secs(180),
            keep_releases: DEFAULT_KEEP_RELEASES,
            registry: RegistrySetting::Own,
            registry_listen: loopback(4601),
            registry_objects: ObjectSettings::default(),
            upstreams: UpstreamSettings::default(),
            keep_untagged: Duration::from_secs(7 * 24 * 3600),
            convert_images: true,
            keep_converted: Duration::from_secs(30 * 24 * 3600),
            tls: TlsSettings::default(),
            ingress_listen: loopback(8080),
            ingress_tls: IngressTls::default(),
            metrics_listen: Some(loopback(4610)),
            nodes_listen: None,
            nodes_advertise: None,
            locations_listen: None,
            locations_advertise: None,
            domain: constant("localhost"),
            location: constant("local"),
            coordinates: None,
            traits: Traits::default(),
            node,
            instance_pool: constant(longshore_network::NetworkConfig::DEFAULT_POOL),
            cpu_overcommit: 4.0,
            image_disk: DiskMarks::default(),
            image_rate: PullRate::default(),
            prewarm_rate: PullRate::default(),
            image_mirror: MirrorSize::default(),
            gpus: Vec::new(),
            cgroup_parent: None,
            programs: RuntimePrograms::default(),
            stop_instances: false,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
        }
    }

    /// The defaults, changed by the text of a config file, changed by flags (key and text).
    pub fn load(
        defaults: Self,
        file: Option<&str>,
        flags: &[(&'static str, String)],
    ) -> Result<Self, Vec<ManifestProblem>> {
        let mut settings = defaults;
        let mut problems = Vec::new();
        if let Some(text) = file {
            match text.parse::<toml::Table>() {
                Ok(table) => settings.take_file(&table, &mut problems),
                Err(error) => problems.push(ManifestProblem {
                    field: "(file)".to_owned(),
                    value: String::new(),
                    allowed: format!("not valid TOML\n{}", error.to_string().trim_end()),
                }),
            }
        }
        for (name, text) in flags {
            let key =
                KEYS.iter().find(|key| key.name == *name).expect("every flag is named as a key");
            if let Err(allowed) = (key.set)(&mut settings, &Value::from(text.as_str())) {
                problems.push(ManifestProblem {
                    field: flag(name),
                    value: format!("{text:?}"),
                    allowed: allowed.to_owned(),
                });
            }
        }
        let (nodes, locations) = (settings.nodes_listen, settings.locations_listen);
        problems.extend(unreachable("nodes", nodes, settings.nodes_advertise.as_ref()));
        problems.extend(unreachable("locations", locations, settings.locations_advertise.as_ref()));
        let names = ["api_listen", "registry_listen"];
        let listen: Vec<_> = names.into_iter().zip(settings.to_users()).collect();
        let of_tls = settings.tls.problems(&listen).into_iter();
        let of_tls = of_tls.chain(settings.ingress_tls.problem());
        // What is wrong with where images are is not wrong with what is said of that too.
        let is_known = problems.iter().all(|problem| !problem.field.ends_with("storage"));
        let of_objects = is_known.then(|| settings.registry_objects.problems("registry_"));
        let is_known = problems.iter().all(|problem| !problem.field.ends_with("upstream"));
        let of_upstreams = is_known.then(|| settings.upstreams.problems()).into_iter().flatten();
        let of_registry = of_objects.into_iter().flatten().chain(of_upstreams);
        let of_registry = of_registry.chain(settings.nowhere_to_join());
        let of_files = of_tls.chain(of_registry);
        // Named as they were given.
        problems.extend(of_files.map(|problem| {
            match flags.iter().any(|(name, _)| *name == problem.field) {
                true => ManifestProblem { field: flag(&problem.field), ..problem },
                false => problem,
            }
        }));
        // What is wrong with the store is not wrong with its certificates too.
        if problems.iter().all(|problem| !problem.field.ends_with("store")) {
            let wrong = settings.store_tls.load(settings.store.etcd()).err();
            problems.extend(wrong.into_iter().flatten().map(store_tls::shown));
        }
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    /// What users of the platform call by one certificate, the API first.
    pub fn to_users(&self) -> Vec<SocketAddr> {
        let registry = self.own_registry().then_some(self.registry_listen);
        [self.api_listen].into_iter().chain(registry).collect()
    }

    /// Whether the platform has a registry that it runs.
    pub fn own_registry(&self) -> bool {
        self.registry == RegistrySetting::Own
    }

    /// A registry joins where locations do.
    fn nowhere_to_join(&self) -> Option<ManifestProblem> {
        let is_wrong = self.registry == RegistrySetting::Joined && self.locations_listen.is_none();
        is_wrong.then(|| ManifestProblem {
            field: "registry".to_owned(),
            value: "\"joined\"".to_owned(),
            allowed: "own, unless locations_listen says where it joins".to_owned(),
        })
    }

    fn take_file(&mut self, table: &toml::Table, problems: &mut Vec<ManifestProblem>) {
        for (name, value) in table {
            let allowed = match KEYS.iter().find(|key| key.name == *name) {
                Some(key) => match (key.set)(self, value) {
                    Ok(()) => continue,
                    Err(allowed) => allowed.to_owned(),
                },
                None => unknown(name),
            };
            problems.push(ManifestProblem {
                field: name.clone(),
                value: value.to_string(),
                allowed,
            });
        }
    }

    /// A config file that says what these settings are, every key with its meaning.
    pub fn dump(&self) -> String {
        let mut text = String::from(
            "# The configuration of `longshore up`. Every key has a flag of the same name that wins\n\
             # over it: data_dir is --data-dir.\n",
        );
        for key in KEYS {
            text.push('\n');
            for line in key.help.lines() {
                text.push_str(&format!("# {line}\n"));
            }
            text.push_str(&format!("{} = {}\n", key.name, (key.show)(self)));
        }
        text
    }
}

/// An address that stands for all is none to call.
fn unreachable(
    who: &str,
    listen: Option<SocketAddr>,
    advertise: Option<&String>,
) -> Option<ManifestProblem> {
    let listen = listen.filter(|address| address.ip().is_unspecified())?;
    advertise.is_none().then(|| ManifestProblem {
        field: format!("{who}_advertise"),
        value: "\"\"".to_owned(),
        allowed: format!(
            "the host and port by which other machines reach this one, such as 203.0.113.1:{}, when \
             {who}_listen is {listen}",
            listen.port()
        ),
    })
}

/// What is said about a key that does not exist.
fn unknown(name: &str) -> String {
    match nearest(KEYS.iter().map(|key| key.name), name) {
        Some(known) => format!("unknown key; did you mean {known:?}?"),
        None => {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("unknown key; known keys: {}", names.join(", "))
        }
    }
}

/// A name of this machine: its host name as far as that goes as a label, else `node`.
pub fn node_name(host_name: &str) -> NodeName {
    let first = host_name.split('.').next().unwrap_or_default();
    let lower = first.to_ascii_lowercase();
    // A container's host name is often hexadecimal digits, which may not begin a label.
    [lower.clone(), format!("node-{lower}")]
        .iter()
        .find_map(|name| name.parse().ok())
        .unwrap_or_else(|| constant("node"))
}

/// Parses a text of this program's own.
fn constant<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("the constant is valid")
}

#[cfg(test)]
mod tests;
