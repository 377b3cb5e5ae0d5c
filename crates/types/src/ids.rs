//! One type per kind of name or id. Mixing kinds does not compile:
//!
//! ```compile_fail
//! use longshore_types::{AppName, ProjectName};
//! let app: AppName = "web".parse::<ProjectName>().unwrap();
//! ```
//!
//! Names and ids are keys of most maps, and are copied wherever something is told of what they name. So up to 23 bytes
//! of one lie in itself: a copy costs no allocation, and a comparison no look elsewhere.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smol_str::{SmolStr, format_smolstr};

use crate::{ParseError, text_type};

const LABEL_RULE: &str = "use 1 to 40 lower-case letters, digits and single '-', beginning with a letter and not ending in '-'";

/// True for what every name of ours must be: a DNS label of at most 40 bytes.
fn is_label(text: &str) -> bool {
    (1..=40).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && !text.as_bytes().windows(2).any(|pair| pair == b"--")
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                if is_label(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(ParseError::new($what, text, LABEL_RULE))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        text_type!(as_str $name, { "pattern": "^[a-z](-?[a-z0-9])*$", "maxLength": 40 });
    };
}

label!(
    /// The owner of apps, tokens and repositories.
    ProjectName,
    "project name"
);
label!(
    /// What a user deploys, unique within its project.
    AppName,
    "app name"
);
label!(
    /// A place with its own machines and its own scheduler.
    LocationName,
    "location name"
);
label!(
    /// Something that the instances of a project may know and nobody else.
    SecretName,
    "secret name"
);
label!(
    /// A machine of a location.
    NodeName,
    "node name"
);

impl Default for ProjectName {
    /// The project that exists until a user makes more.
    fn default() -> Self {
        Self(SmolStr::new_static("default"))
    }
}

/// One running or sleeping container of a release, unique in the world: an app's name as a reader's
/// aid, and eight random base-32 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(SmolStr);

/// The alphabet of the random part: Crockford's base 32 in lower case.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const RANDOM_CHARS: usize = 8;

impl InstanceId {
    /// Makes an id from 40 random bits (the low ones of `random`).
    pub fn mint(app: &AppName, random: u64) -> Self {
        let tail: String = (0..RANDOM_CHARS)
            .map(|idx| char::from(BASE32[(random >> (5 * idx)) as usize & 31]))
            .collect();
        Self(format_smolstr!("{app}-{tail}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The random part alone, eight characters: short enough for the name of a network link.
    pub fn random_part(&self) -> &str {
        &self.0[self.0.len() - RANDOM_CHARS..]
    }
}

impl FromStr for InstanceId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let valid = text.rsplit_once('-').is_some_and(|(app, tail)| {
            is_label(app) && tail.len() == RANDOM_CHARS && tail.bytes().all(|b| BASE32.contains(&b))
        });
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(ParseError::new("instance id", text, "an app's name, '-' and eight characters"))
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(as_str InstanceId, { "pattern": "^[a-z](-?[a-z0-9])*-[0-9a-hjkmnp-tv-z]{8}$" });

/// The number of a release within its app: 1, 2, 3...
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u64);

impl ReleaseNumber {
    /// The number of the release after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl FromStr for ReleaseNumber {
    type Err = ParseError;
    /// Reads `r3`, as it is shown, and `3`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = text.strip_prefix('r').unwrap_or(text);
        let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        let wrong =
            || ParseError::new("release number", text, "a number as `releases` shows it, r3");
        number.filter(|number| *number > 0).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r{}", self.0))
    }
}

/// A number that only grows, shown as it is.
macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug,
            Clone,
            Copy,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            Default,
            Serialize,
            Deserialize,
            JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter! {
    /// The age of an intent: a receiver refuses one older than what it has.
    Generation
}

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

counter! {
    /// Which life of the global store an intent is of: each restore and migration of it raises this, and what
    /// is of an earlier one is older whatever its [`Generation`].
    Epoch
}

counter! {
    /// Which life of a location an intent is of: each time that its store is lost and made anew this is raised, and
    /// what is of an earlier one is older whatever its [`Generation`]. The first is 0.
    LocationEpoch
}

impl LocationEpoch {
    /// The first of all lives.
    pub const FIRST: Self = Self(0);

    /// The life after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A DNS name by which users reach an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name as text, in lower case, without a final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.len() <= 253 && name.split('.').all(label_ok) {
            Ok(Self(name))
        } else {
            Err(ParseError::new(
                "host name",
                text,
                "DNS labels of letters, digits and '-', joined by dots, 253 bytes at most",
            ))
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(HostName);

/// A repository of the registry, `project/name`, by the grammar of OCI distribution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

impl Repository {
    /// The repository as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The project that owns the repository: its first part.
    pub fn project(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl FromStr for Repository {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() <= 255 && text.split('/').all(is_repository_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new(
                "repository",
                text,
                "parts of lower-case letters and digits, inner '.', '_', '__' or '-', joined by '/', 255 bytes at most",
            ))
        }
    }
}

/// One path component: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_repository_part(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    bytes
        .split(|b| alnum(*b))
        .all(|sep| matches!(sep, b"" | b"." | b"_" | b"__") || sep.iter().all(|b| *b == b'-'))
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(Repository);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["web", "a", "my-app2"] {
            assert_eq!(good.parse::<AppName>().unwrap().as_str(), good);
        }
        for bad in ["", "Web", "-a", "a-", "a--b", "1a", "a_b", "a.b", &"a".repeat(41)] {
            let error = bad.parse::<AppName>().unwrap_err();
            assert!(error.to_string().contains("lower-case letters"), "{error}");
        }
    }

    #[test]
    fn release_numbers_are_read_as_they_are_shown() {
        for (text, number) in [("r3", 3), ("3", 3), ("r18446744073709551615", u64::MAX)] {
            assert_eq!(text.parse::<ReleaseNumber>().unwrap(), ReleaseNumber(number));
        }
        for bad in ["", "r", "r0", "0", "-1", "+1", "rr1", "r1x", "v1", "18446744073709551616"] {
            let error = bad.parse::<ReleaseNumber>().unwrap_err();
            assert!(error.to_string().contains("release number"), "{error}");
        }
    }

    #[test]
    fn instance_ids_round_trip() {
        let app: AppName = "my-app".parse().unwrap();
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc] {
            let id = InstanceId::mint(&app, random);
            assert_eq!(id.as_str().parse::<InstanceId>().unwrap(), id);
            assert_eq!(id.random_part().len(), 8);
        }
        for bad in ["web", "web-1", "web-IIIIIIII", "-01234567", "../a-01234567"] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn repositories_follow_the_distribution_grammar() {
        for good in ["default/web", "a", "a/b/c", "a.b/c_d", "a__b", "a---b"] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "A", "a..b", "a___b", "-a", "a-", "a/../b", "_a"] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_are_normalised() {
        assert_eq!("WWW.Example.com.".parse::<HostName>().unwrap().as_str(), "www.example.com");
        for bad in ["", "a..b", "-a.b", "a b", "a/b"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }
}
