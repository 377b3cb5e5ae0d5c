//! What an image says about how to run it: our validated view of the OCI and docker image config.
//!
//! Builders disagree about which fields may be missing or `null`, so everything but the platform and
//! the DiffIDs is optional here. Fields that we do not use are not read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use longshore_types::{Digest, ParseError, Port, Protocol};
use serde::Deserialize;

use crate::wire::{LookalikeKey, Shape, short};

/// The longest argument or variable that the kernel hands to a program, without its NUL
/// (`MAX_ARG_STRLEN`).
const MAX_TEXT: usize = (128 << 10) - 1;

/// All arguments and variables together. The kernel's own limit, a quarter of the stack's, is 2 MiB
/// with the usual stack; what is left is for the manifest.
const MAX_TEXTS: usize = 1 << 20;

/// How an image wants to be run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// What is always run, before `cmd`; empty when the image does not say.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command when there is no entrypoint; empty when the image does not say.
    pub cmd: Vec<String>,
    /// Environment in the image's order, the last one of a name winning.
    pub env: Vec<(String, String)>,
    /// `user`, `uid`, `user:group` or `uid:gid`; `None` is root.
    pub user: Option<String>,
    /// Directory to start in, absolute; `/` when the image does not say.
    pub working_dir: String,
    /// Name or number of the signal that asks the process to stop, as written.
    pub stop_signal: Option<String>,
    /// Ports that the image says it listens on, for information.
    pub exposed_ports: Vec<(Port, Protocol)>,
}

/// A parsed image config: how to run the image and what its layers must unpack to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// How to run it.
    pub run: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Why an image config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON of the expected shape.
    #[error("it is not an image config")]
    Json(#[from] serde_json::Error),
    /// It has one meaning for us and another for programs that read keys without regard to case.
    #[error("it can be read in two ways")]
    Ambiguous(#[from] LookalikeKey),
    /// It is for other machines.
    #[error("the image is for {found}, this node is {host}")]
    Platform {
        /// The image's, as `os/architecture`.
        found: String,
        /// Ours.
        host: String,
    },
    /// Its layers are not described by DiffIDs.
    #[error("its rootfs has the type {0:?}, not \"layers\"")]
    RootFs(String),
    /// A DiffID is not a digest that we know.
    #[error("the DiffID of a layer")]
    DiffId(#[from] ParseError),
    /// A field has a value that cannot be used.
    #[error("{field} has the value {value:?}; allowed is {allowed}")]
    Field {
        /// The field's name in the config.
        field: &'static str,
        /// Its value, cut when it is long.
        value: String,
        /// What would have been accepted, as a phrase.
        allowed: &'static str,
    },
}

/// The name that OCI gives this machine's architecture.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        same => same, // arm, riscv64 and s390x have one name in both worlds.
    }
}

#[derive(Deserialize)]
struct WireConfig {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<WireRun>,
    rootfs: WireRootFs,
}

/// The keys of a config that we read.
static CONFIG: Shape = Shape::Object(&[
    ("architecture", Shape::Any),
    ("os", Shape::Any),
    (
        "config",
        Shape::Object(&[
            ("Entrypoint", Shape::Any),
            ("Cmd", Shape::Any),
            ("Env", Shape::Any),
            ("User", Shape::Any),
            ("WorkingDir", Shape::Any),
            ("StopSignal", Shape::Any),
            ("ExposedPorts", Shape::Any),
        ]),
    ),
    ("rootfs", Shape::Object(&[("type", Shape::Any), ("diff_ids", Shape::Any)])),
]);

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct WireRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct WireRootFs {
    r#type: Option<String>,
    diff_ids: Option<Vec<String>>,
}

impl ConfigFile {
    /// Parses a config and checks that this machine can run it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let wire: WireConfig = serde_json::from_slice(bytes)?;
        CONFIG.check(bytes)?;
        check_platform(wire.os.as_deref(), wire.architecture.as_deref())?;
        if let Some(kind) = wire.rootfs.r#type.filter(|kind| kind != "layers") {
            return Err(ConfigError::RootFs(short(&kind)));
        }
        let diff_ids = wire.rootfs.diff_ids.unwrap_or_default();
        let diff_ids = diff_ids.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let run = wire.config.unwrap_or_default().validate()?;
        Ok(Self { run, diff_ids })
    }
}

/// An empty platform is taken for ours: old builders leave it out.
fn check_platform(os: Option<&str>, architecture: Option<&str>) -> Result<(), ConfigError> {
    let (host_os, host_arch) = ("linux", host_architecture());
    let or = |value: Option<&str>, host: &str| match value {
        None | Some("") => host.to_owned(),
        Some(value) => value.to_owned(),
    };
    let found = format!("{}/{}", or(os, host_os), or(architecture, host_arch));
    let host = format!("{host_os}/{host_arch}");
    if found == host { Ok(()) } else { Err(ConfigError::Platform { found: short(&found), host }) }
}

impl WireRun {
    fn validate(self) -> Result<ImageConfig, ConfigError> {
        let present = |text: &String| !text.is_empty();
        let entrypoint = self.entrypoint.unwrap_or_default();
        let cmd = self.cmd.unwrap_or_default();
        let env = self.env.unwrap_or_default();
        check_texts("Entrypoint or Cmd", entrypoint.iter().chain(&cmd))?;
        check_texts("Env", &env)?;
        let working_dir = self.working_dir.filter(present).unwrap_or_else(|| "/".to_owned());
        refuse_nul("WorkingDir", &working_dir)?;
        let user = self.user.filter(present);
        refuse_nul("User", user.as_deref().unwrap_or_default())?;
        Ok(ImageConfig {
            entrypoint,
            cmd,
            env: parse_env(&env)?,
            user,
            working_dir: absolute(&working_dir),
            stop_signal: self.stop_signal.filter(present),
            exposed_ports: parse_ports(self.exposed_ports.unwrap_or_default())?,
        })
    }
}

/// A path below the root as docker reads it: a relative one begins there, `.` and `..` are resolved
/// by their words.
fn absolute(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn refuse_nul(field: &'static str, value: &str) -> Result<(), ConfigError> {
    if value.contains('\0') {
        return Err(ConfigError::Field { field, value: short(value), allowed: "text without NUL" });
    }
    Ok(())
}

/// Refuses what no kernel would hand to a program.
fn check_texts<'a>(
    field: &'static str,
    texts: impl IntoIterator<Item = &'a String>,
) -> Result<(), ConfigError> {
    let mut n_bytes = 0;
    for text in texts {
        refuse_nul(field, text)?;
        n_bytes += text.len() + 1;
        let allowed = match (text.len() > MAX_TEXT, n_bytes > MAX_TEXTS) {
            (true, _) => "at most 131071 bytes each",
            (_, true) => "at most 1 MiB together",
            _ => continue,
        };
        return Err(ConfigError::Field { field, value: short(text), allowed });
    }
    Ok(())
}

fn parse_env(lines: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(lines.len());
    // Searching the list for each line would let a config cost the square of its length.
    let mut places: HashMap<&str, usize> = HashMap::new();
    for line in lines {
        let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(ConfigError::Field {
                field: "Env",
                value: short(line),
                allowed: "NAME=value",
            });
        };
        match places.entry(name) {
            Entry::Occupied(place) => value.clone_into(&mut env[*place.get()].1),
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    Ok(env)
}

fn parse_ports(
    ports: BTreeMap<String, serde::de::IgnoredAny>,
) -> Result<Vec<(Port, Protocol)>, ConfigError> {
    let parse = |text: &str| {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        Some((port.parse().ok()?, protocol))
    };
    ports
        .into_keys()
        // sctp and port ranges are legal and of no use to us; the list is for information.
        .filter(|text| !text.ends_with("/sctp") && !text.contains('-'))
        .map(|text| {
            parse(&text).ok_or_else(|| ConfigError::Field {
                field: "ExposedPorts",
                value: short(&text),
                allowed: "PORT/tcp or PORT/udp",
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: serde_json::Value) -> Result<ImageConfig, ConfigError> {
        let file = json!({ "rootfs": { "diff_ids": [] }, "config": config });
        ConfigFile::parse(file.to_string().as_bytes()).map(|file| file.run)
    }

    #[test]
    fn a_full_config() {
        let config = parse(json!({
            "Entrypoint": ["/entry"], "Cmd": ["a", ""], "User": "1000:www", "WorkingDir": "srv",
            "Env": ["PATH=/bin", "EMPTY=", "EQ=a=b", "PATH=/sbin"], "StopSignal": "SIGQUIT",
            "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "81": {}, "9/sctp": {}, "1-2/tcp": {} },
            "Volumes": null, "Labels": { "a": "b" }, "Healthcheck": {}, "OnBuild": null,
        }))
        .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let port = |number, protocol| (Port::new(number).unwrap(), protocol);
        let expected = ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["a".to_owned(), String::new()],
            env: vec![pair("PATH", "/sbin"), pair("EMPTY", ""), pair("EQ", "a=b")],
            user: Some("1000:www".to_owned()),
            working_dir: "/srv".to_owned(),
            stop_signal: Some("SIGQUIT".to_owned()),
            exposed_ports: vec![
                port(53, Protocol::Udp),
                port(80, Protocol::Tcp),
                port(81, Protocol::Tcp),
            ],
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn what_is_missing_null_or_empty_has_its_default() {
        let empty = ImageConfig { working_dir: "/".to_owned(), ..ImageConfig::default() };
        for config in [
            json!(null),
            json!({}),
            json!({
                "Entrypoint": null, "Cmd": null, "Env": null, "User": null, "WorkingDir": null,
                "StopSignal": null, "ExposedPorts": null,
            }),
            json!({ "Entrypoint": [], "User": "", "WorkingDir": "", "StopSignal": "" }),
        ] {
            assert_eq!(parse(config).unwrap(), empty);
        }
        for (written, meant) in [("a/b", "/a/b"), ("/a/../../b/./c/", "/b/c"), ("..", "/")] {
            let config = parse(json!({ "WorkingDir": written })).unwrap();
            assert_eq!(config.working_dir, meant);
        }
        let bare = ConfigFile::parse(br#"{ "rootfs": { "diff_ids": null } }"#).unwrap();
        assert_eq!((bare.run, bare.diff_ids), (empty, Vec::new()));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (config, field) in [
            (json!({ "Env": ["NOVALUE"] }), "Env"),
            (json!({ "Env": ["=x"] }), "Env"),
            (json!({ "Cmd": ["a\0b"] }), "Entrypoint or Cmd"),
            (json!({ "User": "\0" }), "User"),
            (json!({ "WorkingDir": "/\0" }), "WorkingDir"),
            (json!({ "ExposedPorts": { "0/tcp": {} } }), "ExposedPorts"),
            (json!({ "ExposedPorts": { "http": {} } }), "ExposedPorts"),
        ] {
            match parse(config) {
                Err(ConfigError::Field { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field}: {other:?}"),
            }
        }
        let file = |text: &str| ConfigFile::parse(text.as_bytes());
        assert!(matches!(file("{}"), Err(ConfigError::Json(_))));
        assert!(matches!(file(r#"{"rootfs":{"type":"zfs"}}"#), Err(ConfigError::RootFs(_))));
        assert!(matches!(
            file(r#"{"rootfs":{"diff_ids":["sha512:1"]}}"#),
            Err(ConfigError::DiffId(_))
        ));
        assert!(matches!(
            file(r#"{"os":"windows","rootfs":{}}"#),
            Err(ConfigError::Platform { .. })
        ));
    }
}
