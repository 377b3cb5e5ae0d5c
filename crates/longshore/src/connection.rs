//! Which platform a command speaks to, and with which token.
//!
//! What is named on the command line or in the environment wins, then the context file of the user,
//! then the platform in the default data directory. The address and the token are looked for
//! separately, so that `LONGSHORE_TOKEN` alone changes only who is asking.

use std::fs;
use std::path::{Path, PathBuf};

use longshore_client::{Client, Project};
use longshore_link::Endpoint;
use longshore_trust::public_client_config;
use longshore_types::ProjectName;

use crate::context_file::{self, Context, Endpoints};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Format, Output};
use crate::roles::is_loopback;

/// The data directory of `longshore up` when none is named.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/longshore";

/// Which platform, and how data is shown.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionOptions {
    /// The API of the platform [default: the one that `up` or `demo` started here]
    #[arg(long, env = "LONGSHORE_API", value_name = "URL")]
    pub api: Option<String>,
    /// The token to show; other users of this machine can see it here [env: LONGSHORE_TOKEN]
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// A file that holds the token [env: LONGSHORE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The certificates, in PEM, by which a platform at https is believed [default: those of the platform that
    /// is known here, else those that this machine trusts]
    #[arg(long, env = "LONGSHORE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Write data as JSON; `longshore schema VERB` says of which shape
    #[arg(long)]
    pub json: bool,
}

/// The project whose apps are meant.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ProjectOption {
    /// The project that owns the app
    #[arg(long, env = "LONGSHORE_PROJECT", value_name = "NAME", default_value = "default")]
    pub project: ProjectName,
}

impl ProjectOption {
    /// The project on a platform.
    pub fn on(&self, connection: &Connection) -> Project {
        connection.api.project(&self.project)
    }
}

/// A platform that can be called.
#[derive(Debug)]
pub struct Connection {
    /// Its API, with the token.
    pub api: Client,
    /// The token, for the registry.
    pub token: String,
    /// By which certificates the platform is believed, where they are not those of the machine.
    pub ca: Option<PathBuf>,
    /// Where the command writes.
    pub output: Output,
}

impl ConnectionOptions {
    /// Where the command writes.
    pub fn output(&self) -> Output {
        Output::new(if self.json { Format::Json } else { Format::Text })
    }

    /// Finds the platform. Calls nothing yet.
    pub fn connect(&self) -> Result<Connection, Failure> {
        let named = (&self.api, self.named_token()?);
        let context = match named {
            (Some(_), Some(_)) => None,
            _ => known_context()?,
        };
        let (api, token) = named;
        let token = match (token, &context) {
            (Some(token), _) => token,
            (None, Some(context)) => read_token(&context.token_file)?,
            (None, None) if api.is_none() => return Err(no_platform()),
            (None, None) => return Err(no_token()),
        };
        let known = context.filter(|_| api.is_none()).map(|context| context.endpoints);
        let endpoint = match (api, &known) {
            (Some(api), _) => parse_api(api)?,
            (None, Some(known)) => known_api(known)?,
            (None, None) => return Err(no_platform()),
        };
        let ca = self.ca.clone().or_else(|| known.and_then(|known| known.ca));
        let api = client(endpoint, &token, ca.as_deref())?;
        Ok(Connection { api, token, ca, output: self.output() })
    }

    /// The token of the flags, else of the environment. Not left to clap, to which a variable is as
    /// good as a flag: one of the two flags must win over either variable.
    fn named_token(&self) -> Result<Option<String>, Failure> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let named = |token: Option<String>, file: Option<PathBuf>| match (token, file) {
            (Some(token), _) => Some(Ok(token)),
            (None, file) => file.map(|file| read_token(&file)),
        };
        named(self.token.clone(), self.token_file.clone())
            .or_else(|| {
                let file = variable("LONGSHORE_TOKEN_FILE").map(PathBuf::from);
                named(variable("LONGSHORE_TOKEN"), file)
            })
            .transpose()
    }
}

impl Connection {
    /// The platform's registry.
    pub async fn registry(&self) -> Result<RegistryAddress, Failure> {
        let health = self.api.health().await?;
        let authority = health.registry.ok_or_else(|| {
            Failure::new(Kind::Unavailable, "the platform has no registry")
                .hint("name one in the image reference: host:port/repository:tag")
        })?;
        Ok(RegistryAddress { authority, is_secure: health.registry_secure, is_own: true })
    }
}

/// Where a registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryAddress {
    /// `host[:port]`, as it stands in image names.
    pub authority: String,
    /// Whether it is spoken to by TLS.
    pub is_secure: bool,
    /// Whether it is the platform's, and has the token.
    pub is_own: bool,
}

impl RegistryAddress {
    /// One that an image name names: as docker does, in the clear on this machine alone.
    pub fn named(authority: &str) -> Self {
        let mut named = Self { authority: authority.to_owned(), is_secure: true, is_own: false };
        named.is_secure = !named.is_here();
        named
    }

    /// Whether it is on this machine by its name: nobody else sees what is sent there.
    pub fn is_here(&self) -> bool {
        is_loopback(&self.authority) || self.authority == "localhost"
    }

    /// With the way in which it is spoken to.
    pub fn url(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        let authority = match self.authority.as_str() {
            // What is so named in images answers elsewhere.
            "docker.io" => "registry-1.docker.io",
            authority => authority,
        };
        format!("{scheme}://{authority}")
    }
}

/// A client of an API that is believed by the certificates in `ca`, or by those of the machine.
fn client(endpoint: Endpoint, token: &str, ca: Option<&Path>) -> Result<Client, Failure> {
    match endpoint {
        Endpoint::Tls(_) => {
            let doing = format!("cannot call {endpoint}");
            let config = public_client_config(ca).or_fail(Kind::Invalid, doing)?;
            Ok(Client::over(longshore_link::Client::public(endpoint, config), token))
        }
        endpoint => Ok(Client::new(endpoint, token)),
    }
}

/// The API of a platform that is known here: by the socket that it has for this machine, while it runs.
fn known_api(known: &Endpoints) -> Result<Endpoint, Failure> {
    match &known.socket {
        Some(socket) if socket.exists() => Ok(Endpoint::Unix(socket.clone())),
        _ => parse_api(&known.api),
    }
}

/// An address as users write it. `http://` may be left out on loopback, `https://` elsewhere: a token never goes
/// over a network in the clear because of what was left out.
fn parse_api(text: &str) -> Result<Endpoint, Failure> {
    let full = match text {
        _ if text.contains("://") || text.starts_with("unix:") => text.to_owned(),
        _ if is_loopback(text) => format!("http://{text}"),
        _ => format!("https://{text}"),
    };
    // As in a browser.
    let has_port = |rest: &str| rest.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':');
    let full = match full.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')) {
        Some(rest) if !rest.is_empty() && !has_port(rest) => format!("https://{rest}:443"),
        _ => full,
    };
    full.parse().map_err(|why: String| {
        Failure::new(Kind::Invalid, format!("--api: {why}")).hint(
            "for instance --api http://127.0.0.1:4600, or --api https://longshore.example.com:4600",
        )
    })
}

fn known_context() -> Result<Option<Context>, Failure> {
    if let Some(path) = context_file::path() {
        let context = context_file::read(&path)
            .or_fail(Kind::Other, format!("cannot read {}", path.display()))?;
        if context.is_some() {
            return Ok(context);
        }
    }
    let dir = Path::new(DEFAULT_DATA_DIR);
    match context_file::of_data_dir(dir) {
        // Another user's platform: as good as none, for this user has no token for it either.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        outcome => outcome.or_fail(Kind::Other, format!("cannot read {}", dir.display())),
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path)
        .or_fail(Kind::Denied, format!("cannot read the token in {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        let message = format!("{} does not hold a token", path.display());
        return Err(
            Failure::new(Kind::Denied, message).hint("a token is one word that begins with lsh_")
        );
    }
    Ok(token.to_owned())
}

fn no_platform() -> Failure {
    Failure::new(Kind::Unavailable, "no platform is known here")
        .hint("start one with `longshore up`, or name one with --api and --token-file")
}

fn no_token() -> Failure {
    Failure::new(Kind::Denied, "no token for that platform is known here")
        .hint("give one with --token-file or LONGSHORE_TOKEN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_leave_out_the_scheme() {
        for (text, endpoint) in [
            ("http://127.0.0.1:4600", "http://127.0.0.1:4600"),
            ("127.0.0.1:4600", "http://127.0.0.1:4600"),
            ("localhost:4600", "http://localhost:4600"),
            ("unix:/run/api.sock", "unix:/run/api.sock"),
            ("ams.example.com:4600", "https://ams.example.com:4600"),
            ("192.0.2.1:4600", "https://192.0.2.1:4600"),
            ("https://example.com/", "https://example.com:443"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:443"),
            ("example.com", "https://example.com:443"),
            ("http://ams.example.com:4600", "http://ams.example.com:4600"),
        ] {
            assert_eq!(parse_api(text).unwrap().to_string(), endpoint);
        }
        for bad in ["", "https://", "http://example.com", "ftp://x:1"] {
            let failure = parse_api(bad).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid, "{bad}");
            assert!(failure.hint.is_some());
        }
    }

    #[test]
    fn a_registry_is_spoken_to_in_the_clear_on_loopback_alone() {
        for (authority, url) in [
            ("127.0.0.1:4601", "http://127.0.0.1:4601"),
            ("localhost:4601", "http://localhost:4601"),
            ("registry.example.com", "https://registry.example.com"),
            ("docker.io", "https://registry-1.docker.io"),
            ("192.0.2.1:4601", "https://192.0.2.1:4601"),
        ] {
            assert_eq!(RegistryAddress::named(authority).url(), url);
        }
    }

    #[test]
    fn a_token_file_holds_one_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "lsh_abc\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "lsh_abc");
        for bad in ["", "\n", "two words"] {
            fs::write(&path, bad).unwrap();
            assert_eq!(read_token(&path).unwrap_err().kind, Kind::Denied, "{bad:?}");
        }
    }
}
