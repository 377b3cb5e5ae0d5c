//! The keys of the config file of `up`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;

use longshore_global::StoreChoice;
use longshore_registry::{S3Endpoint, S3Location, S3Region, UpstreamSource};
use longshore_types::{
    Coordinates, Country, DeclaredGpus, DiskMarks, Duration, HostName, Label, MirrorSize, PullRate,
};
use toml::Value;
use tracing_subscriber::EnvFilter;

use super::Settings;

/// One key: what it means, how it is read, how it is written.
pub struct Key {
    /// Its name; the flag has dashes for underscores.
    pub name: &'static str,
    /// Its meaning, unit and default.
    pub help: &'static str,
    /// Takes a value over, or says what is allowed.
    pub set: fn(&mut Settings, &Value) -> Result<(), &'static str>,
    /// Its value in TOML.
    pub show: fn(&Settings) -> String,
}

/// Every key there is, in the order of the dump.
pub const KEYS: &[Key] = &[
    Key {
        name: "data_dir",
        help: "The directory that everything is kept in. Default \"/var/lib/longshore\".",
        set: |settings, value| put(&mut settings.data_dir, directory(value)),
        show: |settings| quoted(settings.data_dir.display()),
    },
    Key {
        name: "run_dir",
        help: "The directory for sockets; it may be lost with a reboot, and its path should be short.\n\
               Default \"/run/longshore\".",
        set: |settings, value| put(&mut settings.run_dir, directory(value)),
        show: |settings| quoted(settings.run_dir.display()),
    },
    Key {
        name: "store",
        help: "Where the state of the control plane is: \"embedded\", a file in the data directory; or an\n\
               etcd cluster that outlives this machine, as \"http://HOST:PORT,http://HOST:PORT/PREFIX\".\n\
               Several control planes may share one: one leads, and all answer. With \"https\" it is spoken\n\
               to by TLS. Default \"embedded\".",
        set: |settings, value| {
            let store = text(value).and_then(|text| text.parse().ok());
            put(&mut settings.store, store.ok_or(StoreChoice::ALLOWED))
        },
        show: |settings| quoted(&settings.store),
    },
    Key {
        name: "store_ca",
        help: "For an etcd at https: a file with the certificates, in PEM, of those who vouch for it.\n\
               Default \"\".",
        set: |settings, value| put(&mut settings.store_tls.ca, file(value)),
        show: |settings| shown(settings.store_tls.ca.as_ref()),
    },
    Key {
        name: "store_cert",
        help: "A file with the certificate that is shown to it, in PEM; empty for none. Default \"\".",
        set: |settings, value| put(&mut settings.store_tls.cert, file(value)),
        show: |settings| shown(settings.store_tls.cert.as_ref()),
    },
    Key {
        name: "store_key",
        help: "A file with the key of that, in PEM, which nobody but its owner may read. All three are\n\
               read when the control plane starts. Default \"\".",
        set: |settings, value| put(&mut settings.store_tls.key, file(value)),
        show: |settings| shown(settings.store_tls.key.as_ref()),
    },
    Key {
        name: "api_listen",
        help: "Where the API listens: an address and a port, 0 for any free one. Without TLS (tls_cert,\n\
               tls_self_signed) a loopback address and no other. Default \"127.0.0.1:4600\".",
        set: |settings, value| put(&mut settings.api_listen, address(value)),
        show: |settings| quoted(settings.api_listen),
    },
    Key {
        name: "api_rate",
        help: "How many requests to the API each token may send in a second, 1 to 1000000; five times as\n\
               many at once. Default 100.",
        set: |settings, value| put(&mut settings.api_rate, rate(value)),
        show: |settings| settings.api_rate.to_string(),
    },
    Key {
        name: "rebalance_after",
        help: "How long it has to be better elsewhere for the users of an app that has a latency goal before an\n\
               instance moves there, at least 1s. Default \"3m\".",
        set: |settings, value| put(&mut settings.rebalance_after, wait(value)),
        show: |settings| quoted(settings.rebalance_after),
    },
    Key {
        name: "keep_releases",
        help: "How many releases of each app are kept, 1 to 1000, beside those that run or may be taken back:\n\
               the registry keeps their images, and a rollback may go to them. Default 20.",
        set: |settings, value| put(&mut settings.keep_releases, releases(value)),
        show: |settings| settings.keep_releases.to_string(),
    },
    Key {
        name: "registry",
        help: "Which registry the platform has: \"own\", which is one of its roles; or \"joined\", one that joins\n\
               from another machine, where locations_listen says (`longshore join-token --role registry`).\n\
               Default \"own\".",
        set: |settings, value| put(&mut settings.registry, parsed(value, "own or joined")),
        show: |settings| quoted(settings.registry.as_str()),
    },
    Key {
        name: "registry_listen",
        help: "Where its own registry listens, likewise. Default \"127.0.0.1:4601\".",
        set: |settings, value| put(&mut settings.registry_listen, address(value)),
        show: |settings| quoted(settings.registry_listen),
    },
    Key {
        name: "registry_storage",
        help: "Where the bytes of images are: \"s3://BUCKET/PREFIX\" of an object store that speaks the\n\
               protocol of S3; empty for the disk, where all else of the registry always is. Not to be\n\
               changed for another bucket while there are images. Default \"\".",
        set: |settings, value| {
            put(&mut settings.registry_objects.storage, some(value, S3Location::ALLOWED))
        },
        show: |settings| shown_some(settings.registry_objects.storage.as_ref()),
    },
    Key {
        name: "registry_s3_endpoint",
        help: "The object store, such as \"https://s3.example.com:9000\"; empty for what AWS_ENDPOINT_URL\n\
               says, and without that for Amazon's. Default \"\".",
        set: |settings, value| {
            put(&mut settings.registry_objects.endpoint, some(value, S3Endpoint::ALLOWED))
        },
        show: |settings| shown_some(settings.registry_objects.endpoint.as_ref()),
    },
    Key {
        name: "registry_s3_region",
        help: "Its region, such as \"eu-central-1\" or \"auto\"; empty for what AWS_REGION says, and without\n\
               that for us-east-1. Default \"\".",
        set: |settings, value| {
            put(&mut settings.registry_objects.region, some(value, S3Region::ALLOWED))
        },
        show: |settings| shown_some(settings.registry_objects.region.as_ref()),
    },
    Key {
        name: "registry_s3_credentials",
        help: "The credentials for it: a file like ~/.aws/credentials, for its owner alone, with\n\
               aws_access_key_id and aws_secret_access_key; empty for those of the environment. It is read\n\
               when the registry starts. Default \"\".",
        set: |settings, value| put(&mut settings.registry_objects.credentials, file(value)),
        show: |settings| shown(settings.registry_objects.credentials.as_ref()),
    },
    Key {
        name: "upstream",
        help: "Other registries, whose images are had from this one below their names: a list such as\n\
               [\"docker.io=https://registry-1.docker.io\"]; one text with commas will do. They come when\n\
               somebody pulls them, and go when nobody did for as long as keep_untagged says. Those of one\n\
               name are tried in their order. Default [].",
        set: |settings, value| {
            put(&mut settings.upstreams.upstreams, listed(value, UpstreamSource::ALLOWED))
        },
        show: |settings| array(&settings.upstreams.upstreams),
    },
    Key {
        name: "upstream_credentials",
        help: "Who the registry is to them: a file as `docker login` writes it (config.json), for its owner\n\
               alone; empty for nobody. It is read when the registry starts. Default \"\".",
        set: |settings, value| put(&mut settings.upstreams.credentials, file(value)),
        show: |settings| shown(settings.upstreams.credentials.as_ref()),
    },
    Key {
        name: "upstream_ca",
        help: "A file with certificates, in PEM, by which they are believed beside those that this machine\n\
               trusts; empty for none. Default \"\".",
        set: |settings, value| put(&mut settings.upstreams.ca, file(value)),
        show: |settings| shown(settings.upstreams.ca.as_ref()),
    },
    Key {
        name: "keep_untagged",
        help: "How long the registry keeps a manifest that no tag and no release names, and what it is made\n\
               of: 500ms, 10s, 5m, 2h, 7d. Default \"7d\".",
        set: |settings, value| put(&mut settings.keep_untagged, duration(value)),
        show: |settings| quoted(settings.keep_untagged),
    },
    Key {
        name: "convert_images",
        help: "Whether the registry, while it has nothing else to do, makes of each large layer a form that\n\
               nodes have in less time, beside what was pushed. That takes about as much room again.\n\
               Default true.",
        set: |settings, value| put(&mut settings.convert_images, truth(value)),
        show: |settings| settings.convert_images.to_string(),
    },
    Key {
        name: "keep_converted",
        help: "How long the registry keeps that form of an image which no node asks for, to the hour:\n\
               500ms, 10s, 5m, 2h, 30d. The image stays as it was pushed, and gets the form again once a\n\
               node pulls it. Default \"30d\".",
        set: |settings, value| put(&mut settings.keep_converted, duration(value)),
        show: |settings| quoted(settings.keep_converted),
    },
    Key {
        name: "tls_cert",
        help: "By which users of the API and the registry are spoken to with TLS: a file with the\n\
               certificate and those between it and one that they trust, in PEM. It is read again when it\n\
               changes; connections go on. Empty for no TLS. Default \"\".",
        set: |settings, value| put(&mut settings.tls.cert, file(value)),
        show: |settings| shown(settings.tls.cert.as_ref()),
    },
    Key {
        name: "tls_key",
        help: "A file with the key of that, in PEM, which nobody but its owner may read. Default \"\".",
        set: |settings, value| put(&mut settings.tls.key, file(value)),
        show: |settings| shown(settings.tls.key.as_ref()),
    },
    Key {
        name: "tls_ca",
        help: "A file with the certificates by which commands on this machine, and other control planes on\n\
               the same store, believe that one; empty for those that the machine trusts. Default \"\".",
        set: |settings, value| put(&mut settings.tls.ca, file(value)),
        show: |settings| shown(settings.tls.ca.as_ref()),
    },
    Key {
        name: "tls_self_signed",
        help: "Whether TLS is spoken by a certificate that is made here, for trying: users trust it by the\n\
               file tls-ca.pem of the data directory. Default false.",
        set: |settings, value| put(&mut settings.tls.self_signed, truth(value)),
        show: |settings| settings.tls.self_signed.to_string(),
    },
    Key {
        name: "public_host",
        help: "The name or address by which users reach the API and the registry with TLS; it stands in\n\
               names of images. Empty for the address that the API listens on, if the certificate is for\n\
               that, else for the first name in the certificate. Default \"\".",
        set: |settings, value| put(&mut settings.tls.host, host(value)),
        show: |settings| quoted(settings.tls.host.as_deref().unwrap_or_default()),
    },
    Key {
        name: "ingress_listen",
        help: "Where requests to apps come in: an address and a port, 0 for any free one. \"0.0.0.0:80\"\n\
               opens it to the network. Default \"127.0.0.1:8080\".",
        set: |settings, value| put(&mut settings.ingress_listen, address(value)),
        show: |settings| quoted(settings.ingress_listen),
    },
    Key {
        name: "ingress_tls",
        help: "By which requests to apps are also taken by TLS: a directory of certificates, pairs of NAME.pem\n\
               and NAME.key or directories with fullchain.pem and privkey.pem, as certbot keeps them. Each\n\
               is shown to who asks for one of the names that it is for, and read again when it changes.\n\
               Empty for no TLS. Default \"\".",
        set: |settings, value| put(&mut settings.ingress_tls.dir, file(value)),
        show: |settings| shown(settings.ingress_tls.dir.as_ref()),
    },
    Key {
        name: "ingress_tls_listen",
        help: "Where those come in: an address and a port, 0 for any free one. Default \"127.0.0.1:8443\".",
        set: |settings, value| put(&mut settings.ingress_tls.listen, address(value)),
        show: |settings| quoted(settings.ingress_tls.listen),
    },
    Key {
        name: "ingress_redirect",
        help: "Whether who comes in the clear for a host with a certificate is sent there. Default false.",
        set: |settings, value| put(&mut settings.ingress_tls.redirects, truth(value)),
        show: |settings| settings.ingress_tls.redirects.to_string(),
    },
    Key {
        name: "metrics_listen",
        help: "Where Prometheus asks the roles for their metrics: an address and the port of the first,\n\
               global, to be followed by location, node, registry and ingress; port 0 for any free ones,\n\
               empty for nowhere. Whoever connects reads names of apps and how they do; there is no\n\
               token. Default \"127.0.0.1:4610\".",
        set: |settings, value| put(&mut settings.metrics_listen, metrics(value)),
        show: |settings| quoted(settings.metrics_listen.map_or(String::new(), |at| at.to_string())),
    },
    Key {
        name: "nodes_listen",
        help: "Where other machines join this location and call as its nodes, with certificates on both\n\
               sides; on the next port, or on that for ingresses where locations_listen says one, they\n\
               reach its ingress. An address and a port, such as \"0.0.0.0:4602\"; empty for nowhere. Default \"\".",
        set: |settings, value| put(&mut settings.nodes_listen, nodes(value)),
        show: |settings| quoted(settings.nodes_listen.map_or(String::new(), |at| at.to_string())),
    },
    Key {
        name: "nodes_advertise",
        help: "The host and port by which they reach that, such as \"203.0.113.1:4602\"; empty for what\n\
               nodes_listen says. Default \"\".",
        set: |settings, value| put(&mut settings.nodes_advertise, host_and_port(value)),
        show: |settings| quoted(settings.nodes_advertise.as_deref().unwrap_or_default()),
    },
    Key {
        name: "locations_listen",
        help: "Where other machines join as locations of their own, or one as the registry, and call from\n\
               then on, with certificates on both sides. On the next port they have images, unless another\n\
               machine is the registry, and on the one after that their ingresses pass requests on to this\n\
               one's. An address and a port, such as \"0.0.0.0:4604\"; empty for nowhere. Default \"\".",
        set: |settings, value| put(&mut settings.locations_listen, nodes(value)),
        show: |settings| {
            quoted(settings.locations_listen.map_or(String::new(), |at| at.to_string()))
        },
    },
    Key {
        name: "locations_advertise",
        help: "The host and port by which they reach that, such as \"203.0.113.1:4604\"; empty for what\n\
               locations_listen says. Default \"\".",
        set: |settings, value| put(&mut settings.locations_advertise, host_and_port(value)),
        show: |settings| quoted(settings.locations_advertise.as_deref().unwrap_or_default()),
    },
    Key {
        name: "domain",
        help: "Below this name every app gets a host name: APP.DOMAIN in the default project,\n\
               APP.PROJECT.DOMAIN in others. Default \"localhost\".",
        set: |settings, value| put(&mut settings.domain, parsed(value, "a DNS name")),
        show: |settings| quoted(&settings.domain),
    },
    Key {
        name: "location",
        help: "The name of the location that this machine is: up to 40 lower-case letters, digits and\n\
               single '-'. Not to be changed later. Default \"local\".",
        set: |settings, value| put(&mut settings.location, parsed(value, LABEL)),
        show: |settings| quoted(&settings.location),
    },
    Key {
        name: "coordinates",
        help: "Where on Earth this machine is, for maps: latitude and longitude in degrees, such as\n\
               \"52.37, 4.90\", south and west negative; empty for no place on them. Default \"\".",
        set: |settings, value| put(&mut settings.coordinates, some(value, Coordinates::ALLOWED)),
        show: |settings| shown_some(settings.coordinates.as_ref()),
    },
    Key {
        name: "country",
        help: "The country whose law holds there, by its two letters in ISO 3166, such as \"NL\"; empty when\n\
               it is not to be known: then an app that asks for a jurisdiction is not there. Default \"\".",
        set: |settings, value| put(&mut settings.traits.country, some(value, Country::ALLOWED)),
        show: |settings| shown_some(settings.traits.country.as_ref()),
    },
    Key {
        name: "label",
        help: "What apps may ask for or keep away from: a list of key=value, such as [\"disk=nvme\"]; one\n\
               text with commas will do. Default [].",
        set: |settings, value| put(&mut settings.traits.labels, listed(value, Label::ALLOWED)),
        show: |settings| array(&settings.traits.labels),
    },
    Key {
        name: "node",
        help: "The name of this machine, likewise. Default: its host name.",
        set: |settings, value| put(&mut settings.node, parsed(value, LABEL)),
        show: |settings| quoted(&settings.node),
    },
    Key {
        name: "instance_pool",
        help: "The IPv4 network that instances get their addresses from. Platforms may share it: each takes\n\
               a part to which the machine has no route. Default \"100.64.0.0/10\".",
        set: |settings, value| {
            let allowed = "an IPv4 network such as 100.64.0.0/10";
            put(&mut settings.instance_pool, parsed(value, allowed))
        },
        show: |settings| quoted(settings.instance_pool),
    },
    Key {
        name: "cpu_overcommit",
        help: "How many times over the processor time of this machine is promised to instances, 1 to\n\
               100. Memory is never promised twice. Default 4.",
        set: |settings, value| put(&mut settings.cpu_overcommit, factor(value)),
        show: |settings| format!("{:?}", settings.cpu_overcommit),
    },
    Key {
        name: "image_disk",
        help: "When images that nothing keeps leave the disk of this machine: over the second percentage of it,\n\
               until it is at the first; the least recently used go first. Default \"75-85\".",
        set: |settings, value| put(&mut settings.image_disk, parsed(value, DiskMarks::ALLOWED)),
        show: |settings| quoted(settings.image_disk),
    },
    Key {
        name: "image_rate",
        help: "How much of the network all pulls of images may take together on this machine: unlimited, or a\n\
               size that may come each second, at least \"64KiB\". Default \"unlimited\".",
        set: |settings, value| put(&mut settings.image_rate, parsed(value, PullRate::ALLOWED)),
        show: |settings| quoted(settings.image_rate),
    },
    Key {
        name: "prewarm_rate",
        help: "How much of that pulls may take that no instance waits for (`image prewarm`), and how much\n\
               other nodes that are given layers: unlimited, or a size for each of the two a second,\n\
               at least \"64KiB\". Default \"unlimited\".",
        set: |settings, value| put(&mut settings.prewarm_rate, parsed(value, PullRate::ALLOWED)),
        show: |settings| quoted(settings.prewarm_rate),
    },
    Key {
        name: "image_mirror",
        help: "With a registry that joined: how much of the disk images may take that are kept for all nodes\n\
               of this location, so that each comes once and is there while the registry is away: a size\n\
               such as \"50GiB\", a percentage of the disk such as \"5%\", or \"0\" for none. 15 of 100 parts of\n\
               the disk stay free in any case; what was not used for longest goes first. Default \"10%\".",
        set: |settings, value| put(&mut settings.image_mirror, parsed(value, MirrorSize::ALLOWED)),
        show: |settings| quoted(settings.image_mirror),
    },
    Key {
        name: "gpu",
        help: "The GPUs of this machine, for apps that need some: a list of model, memory and how many, such as\n\
               [\"h100:80GiB:4\"]; one text with commas will do. Nothing is discovered yet. Default [].",
        set: |settings, value| put(&mut settings.gpus, listed(value, DeclaredGpus::ALLOWED)),
        show: |settings| array(&settings.gpus),
    },
    Key {
        name: "cgroup_parent",
        help: "The cgroup below which instances get theirs, a path such as \"/longshore\"; empty for one\n\
               that is named after this platform. Not that of a systemd service: with cgroup v2 it could not\n\
               be started again while instances run. Default \"\".",
        set: |settings, value| put(&mut settings.cgroup_parent, cgroup(value)),
        show: |settings| quoted(settings.cgroup_parent.as_deref().unwrap_or_default()),
    },
    Key {
        name: "runc",
        help: "The path of the program runc; empty to look for it in the\n\
               usual places. Apps choose it by runtime = \"runc\". Default \"\".",
        set: |settings, value| put(&mut settings.programs.runc, program(value)),
        show: |settings| shown(settings.programs.runc.as_ref()),
    },
    Key {
        name: "crun",
        help: "The path of the program crun; empty to look for it in the\n\
               usual places. Apps choose it by runtime = \"crun\". Default \"\".",
        set: |settings, value| put(&mut settings.programs.crun, program(value)),
        show: |settings| shown(settings.programs.crun.as_ref()),
    },
    Key {
        name: "runsc",
        help: "The path of the program runsc (gVisor); empty to look for it in the\n\
               usual places. Apps choose it by runtime = \"runsc\". Default \"\".",
        set: |settings, value| put(&mut settings.programs.runsc, program(value)),
        show: |settings| shown(settings.programs.runsc.as_ref()),
    },
    Key {
        name: "stop_instances",
        help: "Whether the instances end when the platform is shut down. Otherwise they go on, and the\n\
               next `longshore up` takes them over. Default false.",
        set: |settings, value| put(&mut settings.stop_instances, truth(value)),
        show: |settings| settings.stop_instances.to_string(),
    },
    Key {
        name: "log",
        help: "What is logged to standard error: error, warn, info, debug or trace, also by part:\n\
               \"info,longshore_node=debug\". Default \"info\".",
        set: |settings, value| put(&mut settings.log, filter(value)),
        show: |settings| quoted(&settings.log),
    },
    Key {
        name: "log_format",
        help: "How a line of the log looks: \"text\" for people, \"json\" for programs. Default \"text\".",
        set: |settings, value| put(&mut settings.log_format, parsed(value, "text or json")),
        show: |settings| quoted(settings.log_format.as_str()),
    },
    Key {
        name: "otlp_endpoint",
        help: "Where traces of starts are sent, by OTLP over HTTP: a URL such as\n\
               \"http://127.0.0.1:4318\". Empty for what OTEL_EXPORTER_OTLP_ENDPOINT says, and without\n\
               that for nowhere. Default \"\".",
        set: |settings, value| put(&mut settings.otlp_endpoint, collector(value)),
        show: |settings| quoted(settings.otlp_endpoint.as_deref().unwrap_or_default()),
    },
];

const LABEL: &str = "1 to 40 lower-case letters, digits and single '-', beginning with a letter";

fn put<T>(place: &mut T, value: Result<T, &'static str>) -> Result<(), &'static str> {
    value.map(|value| *place = value)
}

fn quoted(text: impl ToString) -> String {
    Value::from(text.to_string()).to_string()
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

fn parsed<T: std::str::FromStr>(value: &Value, allowed: &'static str) -> Result<T, &'static str> {
    text(value).and_then(|text| text.parse().ok()).ok_or(allowed)
}

/// What is empty is none.
fn some<T: std::str::FromStr>(
    value: &Value,
    allowed: &'static str,
) -> Result<Option<T>, &'static str> {
    match text(value) {
        Some("") => Ok(None),
        _ => parsed(value, allowed).map(Some),
    }
}

fn shown_some(value: Option<&impl ToString>) -> String {
    quoted(value.map(ToString::to_string).unwrap_or_default())
}

/// A list of texts, or one with commas.
fn listed<T: std::str::FromStr, All: FromIterator<T>>(
    value: &Value,
    allowed: &'static str,
) -> Result<All, &'static str> {
    let texts: Option<Vec<&str>> = match value {
        Value::String(all) => Some(all.split(',').filter(|one| !one.is_empty()).collect()),
        Value::Array(all) => all.iter().map(text).collect(),
        _ => None,
    };
    let texts = texts.ok_or(allowed)?;
    texts.into_iter().map(|one| one.trim().parse().map_err(|_| allowed)).collect()
}

/// The same as it is written.
fn array<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    Value::Array(all.into_iter().map(|one| Value::from(one.to_string())).collect()).to_string()
}

fn directory(value: &Value) -> Result<PathBuf, &'static str> {
    text(value).map(PathBuf::from).filter(|path| path.is_absolute()).ok_or("an absolute path")
}

fn program(value: &Value) -> Result<Option<PathBuf>, &'static str> {
    match text(value) {
        Some("") => Ok(None),
        Some(path) if path.starts_with('/') => Ok(Some(path.into())),
        _ => Err("the absolute path of a program, or empty"),
    }
}

fn file(value: &Value) -> Result<Option<PathBuf>, &'static str> {
    program(value).map_err(|_| "the absolute path of a file, or empty")
}

fn shown(path: Option<&PathBuf>) -> String {
    quoted(path.map(|path| path.display().to_string()).unwrap_or_default())
}

fn address(value: &Value) -> Result<SocketAddr, &'static str> {
    parsed(value, "an IP address and a port, such as 0.0.0.0:80")
}

fn nodes(value: &Value) -> Result<Option<SocketAddr>, &'static str> {
    match text(value) {
        Some("") => Ok(None),
        _ => parsed(value, "an IP address and a port, such as 0.0.0.0:4602, or empty").map(Some),
    }
}

fn host_and_port(value: &Value) -> Result<Option<String>, &'static str> {
    const ALLOWED: &str = "a host and a port, such as 203.0.113.1:4602, or empty";
    let text = text(value).ok_or(ALLOWED)?;
    match text {
        "" => Ok(None),
        _ if format!("https://{text}").parse::<longshore_link::Endpoint>().is_ok() => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(ALLOWED),
    }
}

/// Five ports from there on.
fn metrics(value: &Value) -> Result<Option<SocketAddr>, &'static str> {
    const ALLOWED: &str = "an IP address and a port up to 65531, such as 127.0.0.1:4610, or empty";
    match text(value) {
        Some("") => Ok(None),
        _ => match parsed::<SocketAddr>(value, ALLOWED)? {
            address if address.port() <= u16::MAX - 4 => Ok(Some(address)),
            _ => Err(ALLOWED),
        },
    }
}

fn host(value: &Value) -> Result<Option<String>, &'static str> {
    const ALLOWED: &str = "a DNS name or an IP address, without a port, or empty";
    let text = text(value).ok_or(ALLOWED)?;
    let is_name = || text.parse::<HostName>().is_ok();
    match text {
        "" => Ok(None),
        _ if text.parse::<IpAddr>().is_ok() || is_name() => Ok(Some(text.to_owned())),
        _ => Err(ALLOWED),
    }
}

fn factor(value: &Value) -> Result<f64, &'static str> {
    let factor = match value {
        Value::Float(factor) => Some(*factor),
        // Exact for every number in the range that is allowed.
        Value::Integer(factor) => i32::try_from(*factor).ok().map(f64::from),
        _ => text(value).and_then(|text| text.parse().ok()),
    };
    factor.filter(|factor| (1.0..=100.0).contains(factor)).ok_or("a number from 1 to 100")
}

fn duration(value: &Value) -> Result<Duration, &'static str> {
    parsed(value, "a whole number and ms, s, m, h or d")
}

fn rate(value: &Value) -> Result<NonZeroU32, &'static str> {
    count(value, 1_000_000).ok_or("a whole number from 1 to 1000000")
}

fn releases(value: &Value) -> Result<NonZeroU32, &'static str> {
    count(value, 1000).ok_or("a whole number from 1 to 1000")
}

fn count(value: &Value, most: u32) -> Option<NonZeroU32> {
    let count = match value {
        Value::Integer(count) => u32::try_from(*count).ok(),
        _ => text(value).and_then(|text| text.parse().ok()),
    };
    count.and_then(NonZeroU32::new).filter(|count| count.get() <= most)
}

fn wait(value: &Value) -> Result<Duration, &'static str> {
    const ALLOWED: &str = "a whole number and s, m, h or d, at least 1s";
    parsed::<Duration>(value, ALLOWED)
        .and_then(|wait| if wait < Duration::from_secs(1) { Err(ALLOWED) } else { Ok(wait) })
}

fn cgroup(value: &Value) -> Result<Option<String>, &'static str> {
    let text = text(value).ok_or("a path such as \"/longshore\", or empty")?;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    match text.strip_prefix('/') {
        None if text.is_empty() => Ok(None),
        Some(rest) if rest.split('/').all(plain) => Ok(Some(text.to_owned())),
        _ => Err("a path such as \"/longshore\", or empty"),
    }
}

fn collector(value: &Value) -> Result<Option<String>, &'static str> {
    const ALLOWED: &str = "a URL that begins with http:// or https://, or empty";
    let text = text(value).ok_or(ALLOWED)?;
    let is_url = |scheme: &str| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty());
    match text {
        "" => Ok(None),
        _ if is_url("http://") || is_url("https://") => Ok(Some(text.to_owned())),
        _ => Err(ALLOWED),
    }
}

fn truth(value: &Value) -> Result<bool, &'static str> {
    match value {
        Value::Boolean(truth) => Ok(*truth),
        _ => parsed(value, "true or false"),
    }
}

fn filter(value: &Value) -> Result<String, &'static str> {
    text(value)
        .filter(|text| EnvFilter::try_new(text).is_ok())
        .map(str::to_owned)
        .ok_or("error, warn, info, debug or trace, or a filter such as info,longshore_node=debug")
}
