//! Which platform a command speaks to, and with which token.
//!
//! What is named on the command line or in the environment wins, then the context file of the user,
//! then the platform in the default data directory. The address and the token are looked for
//! separately, so that `LONGSHORE_TOKEN` alone changes only who is asking.

use std::fs;
use std::path::{Path, PathBuf};

use longshore_client::{Client, Project};
use longshore_link::Endpoint;
use longshore_types::ProjectName;

use crate::context_file::{self, Context};
use crate::failure::{Failure, Kind, OrFail};
use crate::output::{Format, Output};

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
        let found = match (&self.api, self.named_token()?) {
            (Some(api), Some(token)) => (api.clone(), token),
            (api, token) => {
                let context = known_context()?;
                let api = match (api, &context) {
                    (Some(api), _) => api.clone(),
                    (None, Some(context)) => context.endpoints.api.clone(),
                    (None, None) => return Err(no_platform()),
                };
                let token = match (token, &context) {
                    (Some(token), _) => token,
                    (None, Some(context)) => read_token(&context.token_file)?,
                    (None, None) => return Err(no_token()),
                };
                (api, token)
            }
        };
        let (api, token) = found;
        Ok(Connection { api: Client::new(parse_api(&api)?, &token), token, output: self.output() })
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
    /// The host and port of the platform's registry.
    pub async fn registry(&self) -> Result<String, Failure> {
        let health = self.api.health().await?;
        health.registry.ok_or_else(|| {
            Failure::new(Kind::Unavailable, "the platform has no registry")
                .hint("name one in the image reference: host:port/repository:tag")
        })
    }
}

/// An address as users write it: `http://` may be left out.
fn parse_api(text: &str) -> Result<Endpoint, Failure> {
    let full = if text.contains("://") || text.starts_with("unix:") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    full.parse().map_err(|why: String| {
        let hint = if full.starts_with("https:") {
            "this version speaks plain HTTP, on loopback only"
        } else {
            "for instance --api http://127.0.0.1:4600"
        };
        Failure::new(Kind::Invalid, format!("--api: {why}")).hint(hint)
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
            ("unix:/run/api.sock", "unix:/run/api.sock"),
        ] {
            assert_eq!(parse_api(text).unwrap().to_string(), endpoint);
        }
        for bad in ["", "https://example.com", "example.com", "ftp://x:1"] {
            let failure = parse_api(bad).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid, "{bad}");
            assert!(failure.hint.is_some());
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
