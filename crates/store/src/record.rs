//! Records: the values that Longshore's own services keep in a store, each with its version.
//!
//! A value is JSON, `{"v": 1, "data": …}`, so that an operator can read it with any tool. The
//! version stands outside the data: a program can tell a record that a newer release wrote from a
//! damaged one, and refuses it instead of dropping the fields that it does not know on the next
//! write. The other way round each kind reads its older versions itself.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::key_value::KeyValue;

/// A type that is kept in a store.
pub trait Record: Serialize + DeserializeOwned {
    /// What such a record is, for people: `app`, `release`.
    const KIND: &'static str;

    /// The version that is written, from 1; raised with every change to the stored shape that an
    /// older release would misread.
    const VERSION: u32 = 1;

    /// Reads the data of a record of an older `version`. The default reads it as if it were of the
    /// newest, which is right as long as every later field has a default.
    fn from_older(version: u32, data: serde_json::Value) -> Result<Self, serde_json::Error> {
        let _ = version;
        serde_json::from_value(data)
    }
}

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The value cannot be put into JSON.
    #[error("a record of kind {kind} could not be encoded")]
    Encode {
        /// The kind of record.
        kind: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The stored bytes are not a record of this kind.
    #[error("{key} holds no readable record of kind {kind}")]
    Decode {
        /// Where it is stored.
        key: String,
        /// The kind of record expected.
        kind: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A newer release wrote the record; this one must not touch it.
    #[error(
        "{key} holds a record of kind {kind} in version {found}, written by a newer release; this \
         one reads up to version {supported}"
    )]
    Newer {
        /// Where it is stored.
        key: String,
        /// The kind of record.
        kind: &'static str,
        /// Its version.
        found: u32,
        /// The newest version that this release reads.
        supported: u32,
    },
}

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    v: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// The value to store for `record`.
pub fn encode<T: Record>(record: &T) -> Result<Bytes, RecordError> {
    let envelope = EnvelopeRef { v: T::VERSION, data: record };
    serde_json::to_vec(&envelope)
        .map(Bytes::from)
        .map_err(|source| RecordError::Encode { kind: T::KIND, source })
}

/// The record in a stored value; `key` is where it was found, for the error.
pub fn decode<T: Record>(key: &str, value: &[u8]) -> Result<T, RecordError> {
    let unreadable = |source| RecordError::Decode { key: key.to_owned(), kind: T::KIND, source };
    // The version is read by itself first: the data of a newer one may have any shape.
    let Version { v } = serde_json::from_slice(value).map_err(unreadable)?;
    if v > T::VERSION {
        return Err(RecordError::Newer {
            key: key.to_owned(),
            kind: T::KIND,
            found: v,
            supported: T::VERSION,
        });
    }
    if v == T::VERSION {
        return serde_json::from_slice(value).map(|Envelope { data }| data).map_err(unreadable);
    }
    let Envelope { data } = serde_json::from_slice(value).map_err(unreadable)?;
    T::from_older(v, data).map_err(unreadable)
}

impl KeyValue {
    /// The record in this key's value.
    pub fn decode<T: Record>(&self) -> Result<T, RecordError> {
        decode(&self.key, &self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct App {
        name: String,
        count: u32,
    }

    impl Record for App {
        const KIND: &'static str = "app";
        const VERSION: u32 = 3;

        fn from_older(
            version: u32,
            mut data: serde_json::Value,
        ) -> Result<Self, serde_json::Error> {
            if version == 1 {
                data["count"] = 1.into();
            }
            serde_json::from_value(data)
        }
    }

    fn web(count: u32) -> App {
        App { name: "web".to_owned(), count }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let stored = encode(&web(2)).unwrap();
        assert_eq!(stored, r#"{"v":3,"data":{"name":"web","count":2}}"#);
        assert_eq!(decode::<App>("/apps/web", &stored).unwrap(), web(2));
    }

    #[test]
    fn older_versions_are_read_by_their_kind() {
        let cases = [
            (r#"{"v":1,"data":{"name":"web"}}"#, web(1)),
            (r#"{"v":2,"data":{"name":"web","count":7}}"#, web(7)),
        ];
        for (stored, expected) in cases {
            assert_eq!(decode::<App>("/a", stored.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let cases = [
            (
                r#"{"v":4,"data":[1]}"#,
                "/apps/web holds a record of kind app in version 4, written by a newer release; \
                 this one reads up to version 3",
            ),
            ("{}", "/apps/web holds no readable record of kind app"),
            ("", "/apps/web holds no readable record of kind app"),
            (
                r#"{"v":3,"data":{"name":5,"count":1}}"#,
                "/apps/web holds no readable record of kind app",
            ),
        ];
        for (stored, expected) in cases {
            let error = decode::<App>("/apps/web", stored.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{stored}");
        }
    }
}
