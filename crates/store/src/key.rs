//! Keys and prefixes, checked once where they enter.

use crate::error::StoreError;

/// The longest key, in bytes. etcd sets no limit below that of a request; ours keeps rows small
/// enough that several fit a page of the embedded store.
pub const MAX_KEY_BYTES: usize = 1024;

/// A key that has passed the check: a path beginning with `/`, of at most [`MAX_KEY_BYTES`], without
/// control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key<'a>(&'a str);

impl<'a> Key<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, StoreError> {
        check(text).map(|()| Self(text))
    }

    /// The key as text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// The beginning of keys: bytes, not path segments, so that `/a` takes in `/ab` and `/a/` does not.
/// The same check as for a [`Key`]; `/` takes in every key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix<'a>(&'a str);

impl<'a> Prefix<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, StoreError> {
        check(text).map(|()| Self(text))
    }

    /// The prefix as text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

fn check(text: &str) -> Result<(), StoreError> {
    let problem = if !text.starts_with('/') {
        "must begin with '/'"
    } else if text.len() > MAX_KEY_BYTES {
        "is longer than 1024 bytes"
    } else if text.chars().any(char::is_control) {
        "must not hold control characters"
    } else {
        return Ok(());
    };
    let shown: String = text.chars().take(80).collect();
    Err(StoreError::InvalidKey { key: shown, problem })
}
