//! Who somebody is to registries, from a file as `docker login` writes it: `~/.docker/config.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Credentials;

/// Far more than such a file has.
const MAX_FILE: u64 = 1 << 20;
/// What makes a file one that others than its owner can read or change.
const OTHERS: u32 = 0o077;

/// The names of Docker's own registry, and the key under which all of them are kept.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What such a file says.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
    said: Said,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Said {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

/// Without what opens anything.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

/// Why such a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// It cannot be read.
    #[error("cannot read the credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Others than its owner can read or change it.
    #[error("{} has the mode {mode:o}; credentials must be in a file for its owner alone, such as 600", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no JSON, or says something else.
    #[error("{} is not a file as `docker login` writes it", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// What it says of a registry is not who somebody is there.
    #[error("{} says of {host} {what}; auth with the Base64 of USER:PASSWORD is understood", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Of which registry.
        host: String,
        /// What it says.
        what: String,
    },
}

impl DockerConfig {
    /// Reads a file, which may be one of a user's that is not there.
    pub fn read(path: &Path) -> Result<Option<Self>, DockerConfigError> {
        match read(path, false) {
            Err(DockerConfigError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Reads a file that must be there, and be its owner's alone.
    pub fn read_private(path: &Path) -> Result<Self, DockerConfigError> {
        read(path, true)
    }

    /// With what a registry, as `host[:port]`, is logged in to: nothing when the file does not say.
    pub fn credentials(&self, host: &str) -> Result<Credentials, DockerConfigError> {
        let refuse = |what: String| {
            let (path, host) = (self.path.clone(), host.to_owned());
            DockerConfigError::Entry { path, host, what }
        };
        let keys = keys(host);
        if let Some(helper) = keys.iter().find_map(|key| self.said.helpers.get(key)) {
            return Err(refuse(format!("that the program docker-credential-{helper} knows it")));
        }
        let Some(entry) = keys.iter().find_map(|key| self.said.auths.get(key)) else {
            return Ok(Credentials::Anonymous);
        };
        let Entry { auth, username, password, identity_token } = entry;
        if identity_token.as_ref().is_some_and(|token| !token.is_empty()) {
            return Err(refuse("an identitytoken".to_owned()));
        }
        if let Some(auth) = auth.as_ref().filter(|auth| !auth.is_empty()) {
            let decoded =
                STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let (user, password) =
                pair.ok_or_else(|| refuse("an auth of another form".to_owned()))?;
            // Some writers end it with a zero byte.
            let (user, password) = (user.to_owned(), password.trim_end_matches('\0').to_owned());
            return Ok(Credentials::Password { user, password });
        }
        match (username, password, &self.said.store) {
            (Some(user), Some(password), _) => {
                Ok(Credentials::Password { user: user.clone(), password: password.clone() })
            }
            (_, _, Some(store)) => {
                Err(refuse(format!("that the program docker-credential-{store} knows it")))
            }
            _ => Err(refuse("neither a user nor a password".to_owned())),
        }
    }
}

fn read(path: &Path, is_private: bool) -> Result<DockerConfig, DockerConfigError> {
    let failed = |source| DockerConfigError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if is_private && mode & OTHERS != 0 {
        return Err(DockerConfigError::Open { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    let path = path.to_owned();
    match serde_json::from_slice(&text) {
        Ok(said) => Ok(DockerConfig { path, said }),
        Err(source) => Err(DockerConfigError::Malformed { path, source }),
    }
}

/// Under what a registry may stand in such a file.
fn keys(host: &str) -> Vec<String> {
    let mut keys = vec![host.to_owned()];
    keys.extend(["https://", "http://"].map(|scheme| format!("{scheme}{host}")));
    keys.extend(["https://", "http://"].map(|scheme| format!("{scheme}{host}/")));
    if HUB.contains(&host) {
        keys.push(HUB_KEY.to_owned());
        keys.push(HUB[0].to_owned());
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::{Value, json};

    use super::*;

    fn written(said: &Value) -> (tempfile::NamedTempFile, DockerConfig) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), said.to_string()).unwrap();
        let config = DockerConfig::read(file.path()).unwrap().unwrap();
        (file, config)
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn who_somebody_is_to_a_registry_is_found() {
        let auth = |text: &str| json!({"auth": STANDARD.encode(text)});
        let (_file, config) = written(&json!({"auths": {
            "registry.example.com:5000": auth("me:a:b"),
            "https://other.example.com": auth("you:\u{0}"),
            "https://index.docker.io/v1/": auth("hub:token"),
            "plain.example.com": {"username": "u", "password": "p"},
        }, "HttpHeaders": {"unknown": "keys"}}));
        for (host, expected) in [
            ("registry.example.com:5000", password("me", "a:b")),
            ("other.example.com", password("you", "")),
            ("registry-1.docker.io", password("hub", "token")),
            ("docker.io", password("hub", "token")),
            ("plain.example.com", password("u", "p")),
            ("registry.example.com", Credentials::Anonymous),
            ("evil.docker.io", Credentials::Anonymous),
        ] {
            assert_eq!(config.credentials(host).unwrap(), expected, "{host}");
        }
        let shown = format!("{config:?}");
        assert!(!shown.contains("token") && !shown.contains(&STANDARD.encode("me:a:b")), "{shown}");
    }

    #[test]
    fn what_is_kept_elsewhere_or_not_understood_is_told() {
        let (_file, config) = written(&json!({
            "auths": {
                "a.test": {}, "b.test": {"auth": "???"}, "c.test": {"auth": STANDARD.encode("x")},
                "d.test": {"auth": STANDARD.encode("<token>:"), "identitytoken": "t"},
            },
            "credHelpers": {"e.test": "gcr"}, "credsStore": "desktop",
        }));
        for (host, part) in [
            ("a.test", "docker-credential-desktop"),
            ("b.test", "an auth of another form"),
            ("c.test", "an auth of another form"),
            ("d.test", "an identitytoken"),
            ("e.test", "docker-credential-gcr"),
        ] {
            let error = config.credentials(host).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(host), "{error}");
        }
    }

    #[test]
    fn a_file_is_there_and_its_owners_where_it_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(DockerConfig::read(&path).unwrap().is_none());
        assert!(matches!(DockerConfig::read_private(&path), Err(DockerConfigError::Read { .. })));
        fs::write(&path, "{}").unwrap();
        for (mode, is_taken) in [(0o644, false), (0o640, false), (0o600, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(DockerConfig::read_private(&path).is_ok(), is_taken, "{mode:o}");
            assert!(DockerConfig::read(&path).unwrap().is_some());
        }
        for bad in ["", "7", r#"{"auths": 1}"#] {
            fs::write(&path, bad).unwrap();
            let error = DockerConfig::read_private(&path).unwrap_err();
            assert!(matches!(error, DockerConfigError::Malformed { .. }), "{bad:?}: {error}");
        }
    }
}
