//! Secrets: their names, where a release shows them, and their values on the way.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::{ParseError, text_type};

/// The version of a secret's value; each `set` makes the next one.
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
pub struct SecretVersion(pub u64);

impl fmt::Display for SecretVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Where the instances of a release see a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretPlace {
    /// In this environment variable.
    Variable(String),
    /// In the file of this absolute path.
    File(String),
}

impl FromStr for SecretPlace {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_name = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let is_file = |text: &str| {
            let mut parts = text.split('/').skip(1);
            text.starts_with('/')
                && parts.all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
        };
        match text {
            _ if is_name(text) => Ok(Self::Variable(text.to_owned())),
            _ if is_file(text) && text.len() <= 255 => Ok(Self::File(text.to_owned())),
            _ => Err(ParseError::new(
                "place of a secret",
                text,
                "the name of an environment variable, or an absolute path without '.', '..' and '//'",
            )),
        }
    }
}

impl fmt::Display for SecretPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(text) | Self::File(text) => f.pad(text),
        }
    }
}

text_type!(SecretPlace);

/// The value of a secret. It shows itself to nobody: what prints it prints that it is one. On a wire
/// it is base 64; its memory is emptied when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// The most bytes of a value.
    pub const MAX: usize = 64 << 10;

    /// A value of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes. Whoever asks takes care of where they go.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value as an environment variable can hold it: text without a zero byte.
    pub fn as_variable(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok().filter(|text| !text.contains('\0'))
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

impl JsonSchema for SecretValue {
    fn schema_name() -> Cow<'static, str> {
        "SecretValue".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "contentEncoding": "base64", "writeOnly": true})
    }
}

impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        // The decoder's error would name a byte of it.
        let bytes = STANDARD.decode(text.as_bytes());
        bytes.map(Self::new).map_err(|_| D::Error::custom("a secret is in base 64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_variable_or_a_file() {
        for (text, place) in [
            ("DATABASE_URL", SecretPlace::Variable("DATABASE_URL".to_owned())),
            ("_a1", SecretPlace::Variable("_a1".to_owned())),
            ("/run/secrets/key.pem", SecretPlace::File("/run/secrets/key.pem".to_owned())),
        ] {
            let read: SecretPlace = text.parse().unwrap();
            assert_eq!((read.to_string().as_str(), read), (text, place));
        }
        for bad in ["", "1A", "A-B", "A=B", "a/b", "/", "//a", "/a/", "/a/../b", "/a\0b", "./a"] {
            let error = bad.parse::<SecretPlace>().unwrap_err();
            assert!(error.to_string().contains("absolute path"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_value_shows_itself_to_nobody_and_survives_the_wire() {
        let value = SecretValue::new(b"tell nobody".to_vec());
        assert_eq!(format!("{value:?} {:?}", Some(&value)), "SecretValue(…) Some(SecretValue(…))");
        let wire = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<SecretValue>(&wire).unwrap(), value);
        let error = serde_json::from_str::<SecretValue>("\"dGVsbA=\"").unwrap_err();
        assert_eq!(error.to_string(), "a secret is in base 64");
        assert_eq!(value.as_variable(), Some("tell nobody"));
        for bytes in [vec![0xff], b"a\0b".to_vec()] {
            assert_eq!(SecretValue::new(bytes).as_variable(), None);
        }
    }
}
