//! The flags of `up`.

use std::path::PathBuf;

use longshore_api::Problem;

use super::settings::{Settings, node_name};
use crate::failure::{Failure, Kind, OrFail};

/// Run the whole platform on this machine
///
/// Starts every role as a process of its own and starts it again when it dies. At the end the
/// instances go on, and the next `up` takes them over; --stop-instances ends them too. A flag wins
/// over the key of the same name in the config file.
#[derive(Debug, Clone, clap::Args)]
pub struct UpOptions {
    /// A config file; --dump-config shows every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the config that holds, with every key explained, and start nothing
    #[arg(long)]
    pub dump_config: bool,
    /// The directory that everything is kept in [default: /var/lib/longshore]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The directory for sockets [default: /run/longshore]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Where the state of the control plane is: embedded, or the members of an etcd [default: embedded]
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// For an etcd at https: the certificates of those who vouch for it, in PEM
    #[arg(long, value_name = "FILE")]
    store_ca: Option<String>,
    /// The certificate that is shown to it
    #[arg(long, value_name = "FILE")]
    store_cert: Option<String>,
    /// The key of that, in a file for its owner alone
    #[arg(long, value_name = "FILE")]
    store_key: Option<String>,
    /// Where the API listens, without TLS on loopback alone; port 0 for any [default: 127.0.0.1:4600]
    #[arg(long, value_name = "ADDRESS")]
    api_listen: Option<String>,
    /// How many requests to the API each token may send in a second [default: 100]
    #[arg(long, value_name = "COUNT")]
    api_rate: Option<String>,
    /// How long it has to be better elsewhere for the users of an app with a latency goal before an instance
    /// moves there [default: 3m]
    #[arg(long, env = "LONGSHORE_REBALANCE_AFTER", value_name = "DURATION")]
    rebalance_after: Option<String>,
    #[command(flatten)]
    registry: RegistryFlags,
    #[command(flatten)]
    users_tls: UsersTlsFlags,
    /// Where requests to apps come in [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    ingress_listen: Option<String>,
    #[command(flatten)]
    ingress_tls: IngressTlsFlags,
    /// Where the first of the roles is asked for its metrics, the others on the next ports; empty for
    /// nowhere [default: 127.0.0.1:4610]
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    /// Where other machines join this location and call as its nodes; on the next port they reach its ingress, where
    /// --locations-listen says no other; empty for nowhere [default: ""]
    #[arg(long, value_name = "ADDRESS")]
    nodes_listen: Option<String>,
    /// The host and port by which they reach that [default: the address itself]
    #[arg(long, value_name = "HOST:PORT")]
    nodes_advertise: Option<String>,
    /// Where other machines join as locations of their own, or as the registry, and call from then on; on the next port they have
    /// images, and on the one after that their ingresses pass requests on to this one's; empty for nowhere [default: ""]
    #[arg(long, value_name = "ADDRESS")]
    locations_listen: Option<String>,
    /// The host and port by which they reach that [default: the address itself]
    #[arg(long, value_name = "HOST:PORT")]
    locations_advertise: Option<String>,
    /// Below this name every app gets a host name [default: localhost]
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// The name of the location that this machine is [default: local]
    #[arg(long, value_name = "NAME")]
    location: Option<String>,
    /// Where on Earth this machine is, in degrees, for maps: 52.37,4.90
    #[arg(long, value_name = "LATITUDE,LONGITUDE", allow_hyphen_values = true)]
    coordinates: Option<String>,
    /// The country whose law holds there, by its code in ISO 3166, such as NL; empty for not known
    /// [default: ""]
    #[arg(long, value_name = "CODE")]
    country: Option<String>,
    /// What apps may ask for or keep away from, such as disk=nvme; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// The name of this machine [default: its host name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The IPv4 network that instances get addresses from [default: 100.64.0.0/10]
    #[arg(long, value_name = "NETWORK")]
    instance_pool: Option<String>,
    /// How many times over processor time is promised [default: 4]
    #[arg(long, value_name = "FACTOR")]
    cpu_overcommit: Option<String>,
    #[command(flatten)]
    node_images: NodeImagesFlags,
    /// GPUs that this machine has, for apps that need some, such as h100:80GiB:4; may be given several times
    #[arg(long, value_name = "MODEL:MEMORY[:COUNT]")]
    gpu: Vec<String>,
    /// The cgroup below which instances get theirs
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// The program runc [default: the one in the usual places]
    #[arg(long, value_name = "PATH")]
    runc: Option<String>,
    /// The program crun, likewise
    #[arg(long, value_name = "PATH")]
    crun: Option<String>,
    /// The program runsc (gVisor), likewise
    #[arg(long, value_name = "PATH")]
    runsc: Option<String>,
    /// End the instances with the platform
    #[arg(long)]
    stop_instances: bool,
    /// What is logged, such as debug or info,longshore_node=debug [default: info]
    #[arg(long, env = "LONGSHORE_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How a line of the log looks: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Where traces of starts are sent, by OTLP over HTTP [default: what OTEL_EXPORTER_OTLP_ENDPOINT
    /// says]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Do not make this the platform that later commands mean
    #[arg(long)]
    no_context: bool,
}

/// Those by which users of the API and the registry are spoken to with TLS.
#[derive(Debug, Clone, clap::Args)]
struct UsersTlsFlags {
    /// Speak TLS with users of the API and the registry: the certificate that they are shown, with those
    /// between it and one that they trust, in PEM; read again when it changes
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The key of that, in PEM, in a file for its owner alone
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// The certificates by which commands here believe that one [default: whom this machine trusts]
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<String>,
    /// Speak TLS by a certificate that is made here, for trying: users trust it by DATA-DIR/tls-ca.pem
    #[arg(long)]
    tls_self_signed: bool,
    /// The name or address by which users reach the API and the registry [default: the address that the API
    /// listens on, or the first name in the certificate]
    #[arg(long, value_name = "HOST")]
    public_host: Option<String>,
}

impl UsersTlsFlags {
    fn given(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self { tls_cert, tls_key, tls_ca, tls_self_signed, public_host } = self.clone();
        let flags = [
            ("tls_cert", tls_cert),
            ("tls_key", tls_key),
            ("tls_ca", tls_ca),
            ("tls_self_signed", tls_self_signed.then(|| "true".to_owned())),
            ("public_host", public_host),
        ];
        flags.into_iter().filter_map(|(key, text)| Some((key, text?)))
    }
}

/// Those by which users of apps are.
#[derive(Debug, Clone, clap::Args)]
struct IngressTlsFlags {
    /// Take requests to apps by TLS too: the directory of the certificates, pairs of NAME.pem and NAME.key or
    /// directories with fullchain.pem and privkey.pem; each is shown to who asks for one of its names
    #[arg(long, value_name = "DIR")]
    ingress_tls: Option<String>,
    /// Where those come in [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDRESS")]
    ingress_tls_listen: Option<String>,
    /// Send who comes in the clear for a host with a certificate there
    #[arg(long)]
    ingress_redirect: bool,
}

impl IngressTlsFlags {
    fn given(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self { ingress_tls, ingress_tls_listen, ingress_redirect } = self.clone();
        let flags = [
            ("ingress_tls", ingress_tls),
            ("ingress_tls_listen", ingress_tls_listen),
            ("ingress_redirect", ingress_redirect.then(|| "true".to_owned())),
        ];
        flags.into_iter().filter_map(|(key, text)| Some((key, text?)))
    }
}

/// Those of the registry.
#[derive(Debug, Clone, clap::Args)]
struct RegistryFlags {
    /// Which registry the platform has: own, one of its roles; or joined, one that joins from another machine
    /// [default: own]
    #[arg(long, value_name = "WHICH")]
    registry: Option<String>,
    /// Where its own registry listens, likewise [default: 127.0.0.1:4601]
    #[arg(long, value_name = "ADDRESS")]
    registry_listen: Option<String>,
    /// Where the bytes of images are: s3://BUCKET/PREFIX of an object store; empty for the disk [default: ""]
    #[arg(long, value_name = "URL")]
    registry_storage: Option<String>,
    /// That object store, as https://HOST:PORT [default: what AWS_ENDPOINT_URL says, else Amazon's]
    #[arg(long, value_name = "URL")]
    registry_s3_endpoint: Option<String>,
    /// Its region [default: what AWS_REGION says, else us-east-1]
    #[arg(long, value_name = "NAME")]
    registry_s3_region: Option<String>,
    /// The credentials for it, in a file like ~/.aws/credentials, for its owner alone [default: those of the
    /// environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY]
    #[arg(long, value_name = "FILE")]
    registry_s3_credentials: Option<String>,
    /// Another registry, whose images are had from this one below its name, such as
    /// docker.io=https://registry-1.docker.io; they come when somebody pulls them. May be given several times; those
    /// of one name are tried in their order
    #[arg(long, value_name = "NAME=URL")]
    upstream: Vec<String>,
    /// Who the registry is to them, in a file as `docker login` writes it, for its owner alone [default: nobody]
    #[arg(long, value_name = "FILE")]
    upstream_credentials: Option<String>,
    /// Certificates, in PEM, by which they are believed beside those that this machine trusts
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<String>,
    /// How long the registry keeps a manifest that no tag and no release names [default: 7d]
    #[arg(long, value_name = "DURATION")]
    keep_untagged: Option<String>,
    /// How many releases of each app are kept, with their images, beside those that it needs [default: 20]
    #[arg(long, value_name = "COUNT")]
    keep_releases: Option<String>,
    /// Whether the registry, with nothing else to do, makes of each large layer a form that nodes have in less
    /// time [default: true]
    #[arg(long, value_name = "BOOL")]
    convert_images: Option<String>,
    /// How long the registry keeps that form of an image which no node asks for; the image itself stays
    /// [default: 30d]
    #[arg(long, value_name = "DURATION")]
    keep_converted: Option<String>,
}

impl RegistryFlags {
    fn given(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self {
            registry,
            registry_listen,
            registry_storage,
            registry_s3_endpoint,
            registry_s3_region,
            registry_s3_credentials,
            upstream,
            upstream_credentials,
            upstream_ca,
            keep_untagged,
            keep_releases,
            convert_images,
            keep_converted,
        } = self.clone();
        let flags = [
            ("registry", registry),
            ("registry_listen", registry_listen),
            ("registry_storage", registry_storage),
            ("registry_s3_endpoint", registry_s3_endpoint),
            ("registry_s3_region", registry_s3_region),
            ("registry_s3_credentials", registry_s3_credentials),
            ("upstream", listed(&upstream)),
            ("upstream_credentials", upstream_credentials),
            ("upstream_ca", upstream_ca),
            ("keep_untagged", keep_untagged),
            ("keep_releases", keep_releases),
            ("convert_images", convert_images),
            ("keep_converted", keep_converted),
        ];
        flags.into_iter().filter_map(|(key, text)| Some((key, text?)))
    }
}

/// Those of the images that the node and its location have.
#[derive(Debug, Clone, clap::Args)]
struct NodeImagesFlags {
    /// When images that nothing keeps leave the disk, in percent of it [default: 75-85]
    #[arg(long, value_name = "LOW-HIGH")]
    image_disk: Option<String>,
    /// How much of the network pulls of images may take together, a second [default: unlimited]
    #[arg(long, value_name = "SIZE")]
    image_rate: Option<String>,
    /// How much of that those may take that no instance waits for, and how much other nodes that are given
    /// layers, a second [default: unlimited]
    #[arg(long, value_name = "SIZE")]
    prewarm_rate: Option<String>,
    /// With a registry that joined: how much of the disk images may take that are kept for all nodes of this location,
    /// a size, a percentage of the disk, or 0 for none [default: 10%]
    #[arg(long, value_name = "SIZE")]
    image_mirror: Option<String>,
}

impl NodeImagesFlags {
    fn given(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self { image_disk, image_rate, prewarm_rate, image_mirror } = self.clone();
        let flags = [
            ("image_mirror", image_mirror),
            ("image_disk", image_disk),
            ("image_rate", image_rate),
            ("prewarm_rate", prewarm_rate),
        ];
        flags.into_iter().filter_map(|(key, text)| Some((key, text?)))
    }
}

/// Whether later commands may come to mean this platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextUse {
    /// They may, when they mean no other that answers.
    Offer,
    /// They do not.
    Leave,
}

impl UpOptions {
    /// What the flags and the config file say together.
    pub fn settings(&self) -> Result<Settings, Failure> {
        let file = match &self.config {
            Some(path) => {
                let doing = format!("cannot read the config file {}", path.display());
                Some(std::fs::read_to_string(path).or_fail(Kind::Invalid, doing)?)
            }
            None => None,
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let defaults = Settings::defaults(node_name(&host));
        Settings::load(defaults, file.as_deref(), &self.flags()).map_err(|problems| {
            Failure::from(Problem::invalid(problems))
                .hint("`longshore up --dump-config` shows every key with its meaning")
        })
    }

    /// Whether later commands may come to mean this platform.
    pub fn context_use(&self) -> ContextUse {
        if self.no_context { ContextUse::Leave } else { ContextUse::Offer }
    }

    /// The flags that were given, by the name of their key.
    fn flags(&self) -> Vec<(&'static str, String)> {
        let Self {
            config: _,
            dump_config: _,
            no_context: _,
            data_dir,
            run_dir,
            store,
            store_ca,
            store_cert,
            store_key,
            api_listen,
            api_rate,
            rebalance_after,
            registry,
            users_tls,
            ingress_listen,
            ingress_tls,
            metrics_listen,
            nodes_listen,
            nodes_advertise,
            locations_listen,
            locations_advertise,
            domain,
            location,
            coordinates,
            country,
            label,
            node,
            instance_pool,
            cpu_overcommit,
            node_images,
            gpu,
            cgroup_parent,
            runc,
            crun,
            runsc,
            stop_instances,
            log,
            log_format,
            otlp_endpoint,
        } = self;
        let stop_instances = stop_instances.then(|| "true".to_owned());
        let flags = [
            ("data_dir", data_dir),
            ("run_dir", run_dir),
            ("store", store),
            ("store_ca", store_ca),
            ("store_cert", store_cert),
            ("store_key", store_key),
            ("api_listen", api_listen),
            ("api_rate", api_rate),
            ("rebalance_after", rebalance_after),
            ("ingress_listen", ingress_listen),
            ("metrics_listen", metrics_listen),
            ("nodes_listen", nodes_listen),
            ("nodes_advertise", nodes_advertise),
            ("locations_listen", locations_listen),
            ("locations_advertise", locations_advertise),
            ("domain", domain),
            ("location", location),
            ("coordinates", coordinates),
            ("country", country),
            ("label", &listed(label)),
            ("node", node),
            ("instance_pool", instance_pool),
            ("cpu_overcommit", cpu_overcommit),
            ("gpu", &listed(gpu)),
            ("cgroup_parent", cgroup_parent),
            ("runc", runc),
            ("crun", crun),
            ("runsc", runsc),
            ("stop_instances", &stop_instances),
            ("log", log),
            ("log_format", log_format),
            ("otlp_endpoint", otlp_endpoint),
        ];
        let given = flags.into_iter().filter_map(|(key, text)| Some((key, text.clone()?)));
        let given = given.chain(registry.given()).chain(node_images.given());
        given.chain(users_tls.given()).chain(ingress_tls.given()).collect()
    }
}

/// What was given several times, as one text.
fn listed(all: &[String]) -> Option<String> {
    (!all.is_empty()).then(|| all.join(","))
}
