//! Passing tokens, as the token endpoint hands them out: good for some minutes and for the scopes
//! that were asked for, so that what a client sends with each request opens little and not for long.
//!
//! A passing token names the token behind it by its hash and carries its scopes, signed by a key in
//! the registry's directory. So it holds through a restart in the middle of a push, and there is no
//! table that could grow. Rights are not in it: they are looked up at each use, so that a token that
//! was removed opens nothing from then on. JSON web tokens were rejected: nobody but this registry
//! reads these, and a format with a choice of algorithms is a way to get them wrong.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

use super::{Authorizer, Scopes, hash, token};
use crate::refusal::{Code, Refusal};
use crate::server::{json, query};

/// The name by which clients ask for tokens of this registry.
pub(crate) const SERVICE: &str = "longshore";

/// More scopes than any client asks for at once.
const MAX_SCOPES: usize = 64;

/// What a passing token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    /// The hexadecimal SHA-256 of the token behind it.
    hash: String,
    /// Seconds since 1970 at which it ends.
    until: u64,
    scopes: Scopes,
}

/// Makes and reads passing tokens.
pub(crate) struct PassingTokens {
    key: Hmac<Sha256>,
    lifetime: Duration,
}

impl PassingTokens {
    /// With the key that the file keeps; a new one when there is none.
    pub(crate) fn open(file: &Path, lifetime: Duration) -> io::Result<Self> {
        let key = match fs::read(file) {
            // One that a power cut left short is as good as none.
            Ok(key) if key.len() == 32 => key,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => make_key(file)?,
        };
        let key = Hmac::new_from_slice(&key).expect("any length will do");
        Ok(Self { key, lifetime })
    }

    fn make(&self, hash: String, scopes: Scopes) -> String {
        let until = now().saturating_add(self.lifetime.as_secs());
        let claims = serde_json::to_vec(&Claims { hash, until, scopes });
        let claims = URL_SAFE_NO_PAD.encode(claims.expect("texts and numbers are valid JSON"));
        let mac = self.key.clone().chain_update(&claims).finalize().into_bytes();
        format!("{claims}.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// The hash of the token behind a passing token, and its scopes; `None` when it is not one, or
    /// no more.
    pub(super) fn read(&self, token: &str) -> Option<(String, Scopes)> {
        let (claims, mac) = token.split_once('.')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        self.key.clone().chain_update(claims).verify_slice(&mac).ok()?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let Claims { hash, until, scopes } = serde_json::from_slice(&claims).ok()?;
        (now() < until).then_some((hash, scopes))
    }
}

fn make_key(file: &Path) -> io::Result<Vec<u8>> {
    let mut key = vec![0; 32];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    let partial = file.with_extension("partial");
    fs::write(&partial, [])?;
    fs::set_permissions(&partial, Permissions::from_mode(0o600))?;
    fs::write(&partial, &key)?;
    fs::rename(&partial, file)?;
    Ok(key)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// `GET /token`: a passing token for whoever logs in with a token, limited to those of the asked
/// scopes that its rights cover. That may be none: `docker login` asks for none.
pub(crate) fn issue(
    authorizer: &dyn Authorizer,
    passing: &PassingTokens,
    parts: &Parts,
) -> Result<Response, Refusal> {
    // A passing token is no reason for another: it would never end.
    let hash = token(&parts.headers).map(|token| hash(&token));
    let found = hash.and_then(|hash| Some((authorizer.authorize_hash(&hash)?, hash)));
    let (rights, hash) = found.ok_or_else(Refusal::no_login)?;
    let query: Vec<(String, String)> = query(parts)?;
    let mut scopes = Scopes::default();
    let asked = query.iter().filter(|(name, _)| name == "scope");
    let asked = asked.flat_map(|(_, scopes)| scopes.split(' '));
    for (idx, scope) in asked.enumerate() {
        if idx == MAX_SCOPES {
            let message = format!("at most {MAX_SCOPES} scopes at once");
            return Err(Refusal::bad(Code::Unsupported, message));
        }
        scopes.add(scope, &rights);
    }
    let token = passing.make(hash, scopes);
    // Two names for it: clients of either protocol look for one of them.
    let mut response = json(&json!({
        "token": token,
        "access_token": token,
        "expires_in": passing.lifetime.as_secs(),
    }));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, lifetime: u64) -> PassingTokens {
        PassingTokens::open(&dir.join("key"), Duration::from_secs(lifetime)).unwrap()
    }

    #[test]
    fn it_holds_through_a_restart_and_not_past_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let scopes = Scopes::of_catalog();
        let token = open(dir.path(), 60).make("hash".to_owned(), scopes.clone());
        let read = open(dir.path(), 60).read(&token);
        assert_eq!(read, Some(("hash".to_owned(), scopes.clone())));
        let mode = fs::metadata(dir.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let passed = open(dir.path(), 0);
        assert_eq!(passed.read(&passed.make("hash".to_owned(), scopes)), None);
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(open(elsewhere.path(), 60).read(&token), None);
    }

    #[test]
    fn no_byte_of_it_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = open(dir.path(), 60);
        let token = tokens.make("hash".to_owned(), Scopes::default());
        for idx in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[idx] = if changed[idx] == b'A' { b'B' } else { b'A' };
            assert_eq!(tokens.read(std::str::from_utf8(&changed).unwrap()), None, "{idx}");
        }
        for bad in ["", ".", "a.b", &token[..token.len() - 1], &token.replace('.', "")] {
            assert_eq!(tokens.read(bad), None, "{bad}");
        }
    }
}
