//! Logging in to a registry.
//!
//! A registry that wants to know who asks says so when it is asked, and how: with a password, or with a token for
//! what is about to be done, which somebody gives who knows the password. So nothing is shown that was not asked
//! for. A token is used until shortly before its end and got anew then, or once when the registry refuses it; that one
//! is got by one request however many wait for it. Where a token is given is the registry's word and believed as
//! far as [`places`] goes; a password goes there by TLS alone, or to the registry's own host.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::{Bearer, Challenge};
use super::error::{read_at_most, without_query};
use super::{RegistryClientError, places};

/// How long a token may take to be got.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer with a token that is read, in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// How long a token holds of which that is not said.
const USUAL: Duration = Duration::from_secs(60);
/// A token is used no longer, whatever is said of it.
const LONGEST: Duration = Duration::from_secs(3600);
/// As many tokens are remembered: each is for one repository.
const MAX_TOKENS: usize = 256;

/// With what a registry is logged in to.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// With nothing: what everybody may do.
    Anonymous,
    /// With a token that the registry takes as it is: one of Longshore's.
    Token(String),
    /// As somebody.
    Password {
        /// Who.
        user: String,
        /// By what that is believed.
        password: String,
    },
}

/// Without what opens anything.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Token(_) => f.write_str("Token"),
            Self::Password { user, .. } => write!(f, "Password({user})"),
        }
    }
}

/// What a request was for, and what it showed.
#[derive(Debug, Default)]
pub(super) struct Shown {
    purpose: String,
    header: Option<HeaderValue>,
}

/// Logs in to one registry.
#[derive(Debug)]
pub(super) struct Login {
    registry: Url,
    /// Asks for tokens; it goes nowhere else than it is told.
    http: reqwest::Client,
    password: Option<HeaderValue>,
    known: Mutex<Known>,
    /// One token is got at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// What every request has.
    always: Option<HeaderValue>,
    /// By what they are for.
    tokens: HashMap<String, Token>,
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
    /// Where it was got.
    from: Bearer,
}

impl Login {
    pub(super) fn new(
        registry: &Url,
        credentials: &Credentials,
        http: reqwest::Client,
    ) -> Result<Self, RegistryClientError> {
        let mut known = Known::default();
        let mut password = None;
        match credentials {
            Credentials::Anonymous => {}
            Credentials::Token(token) => known.always = Some(secret(format!("Bearer {token}"))?),
            Credentials::Password { user, password: word } => {
                let encoded = STANDARD.encode(format!("{user}:{word}"));
                password = Some(secret(format!("Basic {encoded}"))?);
            }
        }
        let (known, turn) = (Mutex::new(known), tokio::sync::Mutex::default());
        Ok(Self { registry: registry.clone(), http, password, known, turn })
    }

    /// Gives a request what opens the door for it, as far as that is known.
    pub(super) async fn show(&self, request: &mut Request) -> Shown {
        // A registry may send us to another host for the bytes; what opens this one is not for that one.
        if request.url().origin() != self.registry.origin() {
            return Shown::default();
        }
        let purpose = purpose(request.method(), request.url());
        let header = self.key(&purpose).await;
        if let Some(header) = &header {
            request.headers_mut().insert(AUTHORIZATION, header.clone());
        }
        Shown { purpose, header }
    }

    async fn key(&self, purpose: &str) -> Option<HeaderValue> {
        let old = {
            let known = self.known();
            match (&known.always, known.tokens.get(purpose)) {
                (Some(always), _) => return Some(always.clone()),
                (None, Some(token)) if Instant::now() < token.until => {
                    return Some(token.header.clone());
                }
                (None, token) => token.cloned()?,
            }
        };
        // One that is at its end is got anew where it came from. What is wrong with that the request will tell.
        self.token(purpose, &old.from, Some(&old.header)).await.ok()
    }

    /// Learns from a refusal what would have opened the door in place of what was shown; nothing when nothing that
    /// there is would.
    pub(super) async fn learn(
        &self,
        shown: &Shown,
        refusal: &Response,
    ) -> Result<Option<HeaderValue>, RegistryClientError> {
        let is_ours = refusal.url().origin() == self.registry.origin();
        let is_final = self.known().always.is_some();
        if refusal.status() != StatusCode::UNAUTHORIZED || !is_ours || is_final {
            return Ok(None);
        }
        match (Challenge::best(refusal.headers()), &self.password) {
            (Some(Challenge::Bearer(bearer)), _) => {
                self.token(&shown.purpose, &bearer, shown.header.as_ref()).await.map(Some)
            }
            (Some(Challenge::Basic), Some(password)) => {
                self.known().always = Some(password.clone());
                Ok(Some(password.clone()))
            }
            _ => Ok(None),
        }
    }

    /// A token for a purpose, other than the one that did not do.
    async fn token(
        &self,
        purpose: &str,
        from: &Bearer,
        not: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryClientError> {
        let _turn = self.turn.lock().await;
        let got = self.known().tokens.get(purpose).cloned();
        if let Some(got) = got
            && not != Some(&got.header)
            && Instant::now() < got.until
        {
            return Ok(got.header);
        }
        let token = self.ask(purpose, from).await;
        let mut known = self.known();
        match token {
            Ok(token) => {
                if known.tokens.len() >= MAX_TOKENS {
                    known.tokens.retain(|_, token| Instant::now() < token.until);
                }
                // There are as many that hold: then one more or less is got again.
                if known.tokens.len() >= MAX_TOKENS {
                    known.tokens.clear();
                }
                let header = token.header.clone();
                known.tokens.insert(purpose.to_owned(), token);
                Ok(header)
            }
            Err(error) => {
                known.tokens.remove(purpose);
                Err(error)
            }
        }
    }

    async fn ask(&self, purpose: &str, from: &Bearer) -> Result<Token, RegistryClientError> {
        const ACTION: &str = "get a token for the registry";
        let url = self.address(purpose, from)?;
        let shows_password = url.scheme() == "https" || url.host() == self.registry.host();
        let mut request = Request::new(Method::GET, url);
        if let Some(password) = self.password.as_ref().filter(|_| shows_password) {
            request.headers_mut().insert(AUTHORIZATION, password.clone());
        }
        let asked_at = Instant::now();
        let asked = async {
            let sent = self.http.execute(request).await;
            let answer = sent.map_err(|source| RegistryClientError::Send {
                action: ACTION,
                source: without_query(source),
            })?;
            if !answer.status().is_success() {
                return Err(RegistryClientError::refused(ACTION, answer).await);
            }
            read_at_most(answer, MAX_ANSWER, "a token of more than 256 KiB").await
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        let bytes = answer.map_err(|_| RegistryClientError::Stalled { action: ACTION })??;
        let malformed = || RegistryClientError::Answer("no token where it said that there is one");
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let header = secret(format!("Bearer {}", token.ok_or_else(malformed)?))?;
        let lifetime = answer.expires_in.map_or(USUAL, Duration::from_secs).min(LONGEST);
        // It has to hold until the registry has the request.
        Ok(Token { header, until: asked_at + lifetime * 9 / 10, from: from.clone() })
    }

    /// Where a token is asked for, and with which question.
    fn address(&self, purpose: &str, from: &Bearer) -> Result<Url, RegistryClientError> {
        let Bearer { realm, service, scope } = from;
        let refuse = |misplaced| RegistryClientError::Realm {
            realm: realm.chars().take(200).collect(),
            misplaced,
        };
        let mut url = Url::parse(realm).map_err(|_| refuse(places::Misplaced::Scheme))?;
        places::check(&self.registry, &url).map_err(refuse)?;
        url.set_fragment(None);
        let scopes = scope.as_deref().unwrap_or(purpose).split(' ').filter(|one| !one.is_empty());
        let service = service.iter().map(|service| ("service", service.as_str()));
        url.query_pairs_mut().extend_pairs(service.chain(scopes.map(|scope| ("scope", scope))));
        Ok(url)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // It holds texts, which a panic leaves as they are.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    /// In seconds.
    expires_in: Option<u64>,
}

/// A header that is shown in no log.
fn secret(text: String) -> Result<HeaderValue, RegistryClientError> {
    let header = HeaderValue::try_from(text);
    let mut header = header.map_err(|_| RegistryClientError::Unspeakable)?;
    header.set_sensitive(true);
    Ok(header)
}

/// What a request is for, as a scope says it. Where a registry wants another one it says so.
fn purpose(method: &Method, url: &Url) -> String {
    let path = url.path();
    let Some(rest) = path.strip_prefix("/v2/") else { return String::new() };
    if rest == "_catalog" {
        return "registry:catalog:*".to_owned();
    }
    let ends = ["/blobs/uploads/", "/manifests/", "/blobs/", "/tags/list", "/referrers/"];
    let found = ends.iter().filter_map(|end| Some((rest.rfind(end)?, *end)));
    // Names may have such words in them: the last one counts.
    let Some((at, end)) = found.max_by_key(|(at, end)| (*at, end.len())) else {
        return String::new();
    };
    let actions = match (method, end) {
        (&Method::GET | &Method::HEAD, end) if end != "/blobs/uploads/" => "pull",
        (&Method::DELETE, end) if end != "/blobs/uploads/" => "delete",
        _ => "pull,push",
    };
    format!("repository:{}:{actions}", &rest[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_is_for() {
        for (method, path, expected) in [
            (Method::GET, "/v2/library/nginx/manifests/1.27", "repository:library/nginx:pull"),
            (Method::HEAD, "/v2/a/blobs/sha256:ab", "repository:a:pull"),
            (Method::GET, "/v2/a/b/tags/list", "repository:a/b:pull"),
            (Method::PUT, "/v2/a/manifests/1", "repository:a:pull,push"),
            (Method::POST, "/v2/a/blobs/uploads/", "repository:a:pull,push"),
            (Method::GET, "/v2/a/blobs/uploads/7", "repository:a:pull,push"),
            (Method::DELETE, "/v2/a/blobs/uploads/7", "repository:a:pull,push"),
            (Method::DELETE, "/v2/a/manifests/1", "repository:a:delete"),
            (Method::GET, "/v2/a/blobs/b/manifests/1", "repository:a/blobs/b:pull"),
            (Method::GET, "/v2/_catalog", "registry:catalog:*"),
            (Method::GET, "/v2/", ""),
            (Method::GET, "/elsewhere", ""),
        ] {
            let url = format!("https://registry.test{path}").parse().unwrap();
            assert_eq!(purpose(&method, &url), expected, "{method} {path}");
        }
    }

    fn login(registry: &str, credentials: &Credentials) -> Login {
        // Only the first call of a process can set it, and all set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Login::new(&registry.parse().unwrap(), credentials, reqwest::Client::new()).unwrap()
    }

    #[test]
    fn a_token_is_asked_for_where_the_registry_may_send_us() {
        let login = login("https://registry.test", &Credentials::Anonymous);
        let from = |realm: &str, scope: Option<&str>| Bearer {
            realm: realm.to_owned(),
            service: Some("a b".to_owned()),
            scope: scope.map(str::to_owned),
        };
        let address = |from: &Bearer| login.address("repository:a:pull", from);
        let own = from("https://auth.test/token?x=1#y", None);
        let asked = "https://auth.test/token?x=1&service=a+b&scope=repository%3Aa%3Apull";
        assert_eq!(address(&own).unwrap().as_str(), asked);
        let two = address(&from("https://auth.test/t", Some("a:b:c d:e:f"))).unwrap();
        assert!(two.as_str().ends_with("&scope=a%3Ab%3Ac&scope=d%3Ae%3Af"), "{two}");
        for bad in ["http://auth.test/t", "https://10.0.0.1/t", "file:///etc", "", "/token"] {
            let error = address(&from(bad, None)).unwrap_err().to_string();
            assert!(error.contains("where tokens are given"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_opens_a_door_is_shown_nowhere() {
        let (user, password) = ("u".to_owned(), "hidden".to_owned());
        let credentials = Credentials::Password { user, password };
        let login = login("https://registry.test", &credentials);
        for shown in [format!("{credentials:?}"), format!("{login:?}")] {
            assert!(!shown.contains("hidden") && !shown.contains("dTpoaWRkZW4"), "{shown}");
        }
        assert!(!format!("{:?}", Credentials::Token("hidden".to_owned())).contains("hidden"));
        let bad = Credentials::Token("a\nb".to_owned());
        let url = "https://registry.test".parse().unwrap();
        let refused = Login::new(&url, &bad, reqwest::Client::new());
        assert!(matches!(refused, Err(RegistryClientError::Unspeakable)));
    }
}
