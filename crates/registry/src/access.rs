//! Who is asking, and what may they do?
//!
//! docker, podman and skopeo log in with a user name and a password; the password is the token and
//! the name means nothing. Our own clients send the token as a bearer token. There is no anonymous
//! access. A token is looked up by its SHA-256, so the time of a lookup says nothing about how much
//! of a guessed token was right.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_types::Digest;
use longshore_types::token::Rights;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::refusal::Refusal;

/// Knows the rights of tokens. Called for every request, so it answers from memory.
pub trait Authorizer: Send + Sync {
    /// The rights of the bearer of `token`; `None` when there is no such token.
    fn authorize(&self, token: &str) -> Option<Rights>;
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
    fn authorize(&self, token: &str) -> Option<Rights> {
        let hash = Digest::from_sha256(Sha256::digest(token).into()).hex();
        self.tokens.borrow().get(&hash).cloned()
    }
}

/// The rights of whoever sent these headers.
pub(crate) fn rights(authorizer: &dyn Authorizer, headers: &HeaderMap) -> Result<Rights, Refusal> {
    token(headers).and_then(|token| authorizer.authorize(&token)).ok_or_else(Refusal::unauthorized)
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
        let rights = Rights { admin: true, registry: Vec::new() };
        let hash = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8";
        sender.send_replace(Arc::new([(hash.to_owned(), rights.clone())].into()));
        assert_eq!(table.authorize("t"), Some(rights));
        sender.send_replace(Arc::default());
        assert_eq!(table.authorize("t"), None);
    }
}
