//! The file that tells the commands of a user which platform they mean.
//!
//! `up` and `demo` write it, so that the next command needs no flags. They never take it away from
//! a platform that still answers: a second platform on the machine is reached with `--api`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::state_file;

/// Where a platform is reached, as `up` publishes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The API, `http://host:port` or `https://host:port`; the registry is spoken to as this is.
    pub api: String,
    /// The platform's own registry, `host:port`; empty when that is one that joined.
    pub registry: String,
    /// The ingress, `host:port`.
    pub ingress: String,
    /// With TLS, the file of the certificates by which it is believed, when it is not those of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// With TLS, the socket by which this machine's root calls the API, whatever becomes of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl Endpoints {
    /// In the clear.
    pub fn plain(api: String, registry: String, ingress: String) -> Self {
        Self { api: format!("http://{api}"), registry, ingress, ca: None, socket: None }
    }
}

/// Where a role is asked for its metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsTarget {
    /// The role.
    pub role: &'static str,
    /// `host:port`.
    pub address: String,
}

/// A platform and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Where it is.
    #[serde(flatten)]
    pub endpoints: Endpoints,
    /// The file that holds the token.
    pub token_file: PathBuf,
}

/// The file that [`Endpoints`] are published in, below a data directory.
pub const ENDPOINTS_FILE: &str = "endpoints.json";
/// The file that holds the token of the administrator, below a data directory.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";

/// The file that the [`MetricsTarget`]s are published in, below a data directory.
pub const METRICS_TARGETS_FILE: &str = "metrics-targets.json";

/// Where the context file of this user is: below `XDG_CONFIG_HOME`, else below `~/.config`. None
/// for a user without a home, such as a system service.
pub fn path() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("longshore/context.json"))
}

/// Reads a context file; `None` when there is none.
pub fn read(path: &Path) -> io::Result<Option<Context>> {
    read_json(path)
}

/// The platform that keeps its state in `data_dir`, when it has published itself there.
pub fn of_data_dir(data_dir: &Path) -> io::Result<Option<Context>> {
    let endpoints = read_json(&data_dir.join(ENDPOINTS_FILE))?;
    Ok(endpoints
        .map(|endpoints| Context { endpoints, token_file: data_dir.join(ADMIN_TOKEN_FILE) }))
}

/// Writes a context file, and its directory when that is missing.
pub fn write(path: &Path, context: &Context) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    state_file::replace(path, &to_json(context)?)
}

/// Publishes where the platform of `data_dir` is reached.
pub fn publish(data_dir: &Path, endpoints: &Endpoints) -> io::Result<()> {
    state_file::replace(&data_dir.join(ENDPOINTS_FILE), &to_json(endpoints)?)
}

/// Publishes where the roles of the platform of `data_dir` are asked for their metrics, as
/// Prometheus reads it (`file_sd_configs`).
pub fn publish_metrics(data_dir: &Path, targets: &[MetricsTarget]) -> io::Result<()> {
    let entry = |MetricsTarget { role, address }: &MetricsTarget| serde_json::json!({ "targets": [address], "labels": { "role": role } });
    let entries: Vec<_> = targets.iter().map(entry).collect();
    state_file::replace(&data_dir.join(METRICS_TARGETS_FILE), &to_json(&entries)?)
}

fn to_json<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    Ok(json)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_reads_back_and_is_flat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/context.json");
        assert_eq!(read(&path).unwrap(), None);
        let context = Context {
            endpoints: Endpoints::plain(
                "127.0.0.1:4600".to_owned(),
                "127.0.0.1:4601".to_owned(),
                "127.0.0.1:8080".to_owned(),
            ),
            token_file: "/data/admin-token".into(),
        };
        write(&path, &context).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), context);
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["api"], "http://127.0.0.1:4600");
        assert_eq!(json.as_object().unwrap().len(), 4);
    }

    #[test]
    fn a_data_directory_names_its_platform() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_data_dir(dir.path()).unwrap(), None);
        let endpoints = Endpoints {
            ca: Some("/ca".into()),
            socket: Some("/socket".into()),
            ..Endpoints::plain("a".to_owned(), "b".to_owned(), "c".to_owned())
        };
        publish(dir.path(), &endpoints).unwrap();
        let found = of_data_dir(dir.path()).unwrap().unwrap();
        assert_eq!(found.endpoints, endpoints);
        assert_eq!(found.token_file, dir.path().join("admin-token"));
    }
}
