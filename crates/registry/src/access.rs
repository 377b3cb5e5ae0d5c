//! Who is asking, and what may they do?
//!
//! docker, podman and skopeo log in with a user name and a password; the password is the token and
//! the name means nothing. They are told to fetch a passing token for what they are about to do
//! (see [`passing`]); a client that sends its password with each request is answered as well. Our
//! own clients send the token as a bearer token. There is no anonymous access. A token is looked up
//! by its SHA-256, so the time of a lookup says nothing about how much of a guessed token was right.

pub(crate) mod passing;
mod scope;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_types::token::{RegistryAction, Rights};
use longshore_types::{Digest, Repository};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::refusal::Refusal;
use passing::PassingTokens;
pub(crate) use scope::Scopes;

/// Knows the rights of tokens. Called for every request, so it answers from memory.
pub trait Authorizer: Send + Sync {
    /// The rights of the bearer of the token with this hexadecimal SHA-256; `None` when there is no
    /// such token.
    fn authorize_hash(&self, hash: &str) -> Option<Rights>;

    /// The rights of the bearer of `token`; `None` when there is no such token.
    fn authorize(&self, token: &str) -> Option<Rights> {
        self.authorize_hash(&hash(token))
    }
}

fn hash(token: &str) -> String {
    Digest::from_sha256(Sha256::digest(token).into()).hex()
}

/// Rights by the hexadecimal SHA-256 of the token, as another service keeps them current.
#[derive(Debug, Clone)]
pub struct TokenTable {
    tokens: watch::Receiver<Arc<BTreeMap<String, Rights>>>,
}

impl TokenTable {
    /// A table that always shows the newest value of `tokens`.
    pub fn new(tokens: watch::Receiver<Arc<BTreeMap<String, Rights>>>) -> Self {
        Self { tokens }
    }
}

impl Authorizer for TokenTable {
    fn authorize_hash(&self, hash: &str) -> Option<Rights> {
        self.tokens.borrow().get(hash).cloned()
    }
}

/// What whoever sent a request may do: the rights of their token as they are now, and, when they
/// came with a passing token, what that was made for.
#[derive(Debug)]
pub(crate) struct Access {
    rights: Rights,
    scopes: Option<Scopes>,
}

impl Access {
    /// Finds out by the headers of a request.
    pub(crate) fn of(
        authorizer: &dyn Authorizer,
        passing: &PassingTokens,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let token = token(headers)?;
        match passing.read(&token) {
            // The rights behind it are looked up anew: one that was taken away is gone at once.
            Some((hash, scopes)) => {
                Some(Self { rights: authorizer.authorize_hash(&hash)?, scopes: Some(scopes) })
            }
            None => Some(Self { rights: authorizer.authorize(&token)?, scopes: None }),
        }
    }

    /// Refuses what is not allowed. Where only the scope is missing, the client is told to fetch
    /// another passing token; where the right is, that would not help.
    pub(crate) fn check(
        &self,
        repository: &Repository,
        action: RegistryAction,
    ) -> Result<(), Refusal> {
        if !self.rights.allows(repository, action) {
            return Err(Refusal::denied(action, repository));
        }
        match &self.scopes {
            Some(scopes) if !scopes.allow(repository, action) => {
                Err(Refusal::insufficient_scope(Scopes::of(repository, action)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses who may not do everything in every repository.
    pub(crate) fn check_all(&self) -> Result<(), Refusal> {
        match &self.scopes {
            None if self.rights.admin => Ok(()),
            _ => Err(Refusal::not_for_all()),
        }
    }

    /// The rights that decide which repositories a catalog may show.
    pub(crate) fn for_catalog(&self) -> Result<&Rights, Refusal> {
        match &self.scopes {
            Some(scopes) if !scopes.allow_catalog() => {
                Err(Refusal::insufficient_scope(Scopes::of_catalog()))
            }
            _ => Ok(&self.rights),
        }
    }
}

fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    let credentials = credentials.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    let (_user, password) = decoded.split_once(':')?;
    Some(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_token_in_either_scheme() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (header, expected) in [
            ("Bearer secret".to_owned(), Some("secret")),
            ("bearer  secret".to_owned(), Some("secret")),
            (basic("anyone:secret"), Some("secret")),
            (basic(":with:colons"), Some("with:colons")),
            (basic("no-colon"), None),
            ("Basic ???".to_owned(), None),
            ("Digest secret".to_owned(), None),
            ("secret".to_owned(), None),
        ] {
            let headers = [(header::AUTHORIZATION, header.parse().unwrap())];
            let found = token(&headers.into_iter().collect());
            assert_eq!(found.as_deref(), expected, "{header}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }

    #[test]
    fn a_table_follows_its_sender() {
        let (sender, receiver) = watch::channel(Arc::default());
        let table = TokenTable::new(receiver);
        assert_eq!(table.authorize("t"), None);
        let rights = Rights { admin: true, ..Rights::default() };
        let hash = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";
        sender.send_replace(Arc::new([(hash.to_owned(), rights.clone())].into()));
        assert_eq!(table.authorize("t"), Some(rights));
        sender.send_replace(Arc::default());
        assert_eq!(table.authorize("t"), None);
    }
}
