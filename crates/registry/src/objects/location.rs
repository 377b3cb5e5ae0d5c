//! Where objects are, as people write it: `s3://BUCKET/PREFIX`, the URL of the store, its region.

use std::fmt;
use std::str::FromStr;

use axum::http::Uri;
use object_store::path::Path;

/// A bucket, and what the names of objects in it begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    bucket: String,
    prefix: String,
}

/// A text that is no such place.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no place for objects; {}", S3Location::ALLOWED)]
pub struct S3LocationError {
    text: String,
}

impl S3Location {
    /// What such a text may be.
    pub const ALLOWED: &str = "s3://BUCKET or s3://BUCKET/PREFIX, the bucket of 3 to 63 lower-case letters, \
        digits, '-' and '.', the prefix of up to 200 letters, digits, '.', '_', '-' and single '/'";

    /// The name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Where an object is in the bucket.
    pub(super) fn path(&self, key: &str) -> Path {
        let name = match self.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        };
        Path::parse(name).expect("such letters stand for themselves")
    }
}

impl FromStr for S3Location {
    type Err = S3LocationError;

    fn from_str(text: &str) -> Result<Self, S3LocationError> {
        let refuse = || S3LocationError { text: text.to_owned() };
        let rest = text.strip_prefix("s3://").ok_or_else(refuse)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_bucket = (3..=63).contains(&bucket.len())
            && bucket.chars().all(|c| is_outer(c) || c == '-' || c == '.')
            && bucket.starts_with(is_outer)
            && bucket.ends_with(is_outer);
        let is_part = |part: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !matches!(part, "" | "." | "..") && part.chars().all(is_plain)
        };
        let is_prefix = prefix.is_empty() || prefix.split('/').all(is_part);
        if !is_bucket || !is_prefix || prefix.len() > 200 {
            return Err(refuse());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, prefix } = self;
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{bucket}{slash}{prefix}")
    }
}

/// The URL of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Endpoint(String);

/// A text that is no such URL.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not the URL of an object store; {}", S3Endpoint::ALLOWED)]
pub struct S3EndpointError {
    text: String,
}

impl S3Endpoint {
    /// What such a text may be.
    pub const ALLOWED: &str =
        "https://HOST or https://HOST:PORT, or with http:// on a network that is trusted";

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for S3Endpoint {
    type Err = S3EndpointError;

    fn from_str(text: &str) -> Result<Self, S3EndpointError> {
        let refuse = || S3EndpointError { text: text.to_owned() };
        let url: Uri = text.parse().map_err(|_| refuse())?;
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        let is_host =
            url.authority().is_some_and(|at| !at.host().is_empty() && !at.as_str().contains('@'));
        if !is_http || !is_host || url.path() != "/" || url.query().is_some() || text.contains('#')
        {
            return Err(refuse());
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for S3Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The region of an object store, as its provider calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Region(String);

/// A text that is no such name.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no region; {}", S3Region::ALLOWED)]
pub struct S3RegionError {
    text: String,
}

impl S3Region {
    /// What such a text may be.
    pub const ALLOWED: &str = "1 to 40 letters, digits and '-', such as eu-central-1";

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for S3Region {
    type Err = S3RegionError;

    fn from_str(text: &str) -> Result<Self, S3RegionError> {
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        match is_plain && (1..=40).contains(&text.len()) {
            true => Ok(Self(text.to_owned())),
            false => Err(S3RegionError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for S3Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_alike() {
        for (text, shown, path) in [
            ("s3://images", "s3://images", "k"),
            ("s3://images/", "s3://images", "k"),
            ("s3://my.images-1/a/B_c-1.2/", "s3://my.images-1/a/B_c-1.2", "a/B_c-1.2/k"),
        ] {
            let location: S3Location = text.parse().unwrap();
            assert_eq!(location.to_string(), shown);
            assert_eq!(location.path("k").as_ref(), path);
        }
        let long = format!("s3://images/{}", "a".repeat(201));
        for bad in [
            "",
            "images",
            "s3:/images",
            "s3://",
            "s3://ab",
            "s3:///prefix",
            "s3://Images",
            "s3://-images",
            "s3://images.",
            "s3://images//a",
            "s3://images/a//b",
            "s3://images/../b",
            "s3://images/a b",
            "s3://images/a?b",
            "s3://user:key@images",
            "https://images",
            long.as_str(),
        ] {
            let error = bad.parse::<S3Location>().unwrap_err().to_string();
            assert!(error.contains("s3://BUCKET"), "{error}");
        }
    }

    #[test]
    fn urls_and_regions_are_read() {
        for good in ["https://s3.example.com", "http://127.0.0.1:9000", "https://[::1]:1/"] {
            let url: S3Endpoint = good.parse().unwrap();
            assert_eq!(url.to_string(), good.trim_end_matches('/'));
        }
        for bad in [
            "",
            "s3.example.com",
            "ftp://s3.example.com",
            "https://",
            "https://user:secret@s3.example.com",
            "https://s3.example.com/bucket",
            "https://s3.example.com?a=b",
            "https://s3.example.com#a",
            "unix:/run/s3",
        ] {
            let error = bad.parse::<S3Endpoint>().unwrap_err().to_string();
            assert!(error.contains("https://HOST:PORT"), "{error}");
        }
        assert_eq!("eu-central-1".parse::<S3Region>().unwrap().as_str(), "eu-central-1");
        for bad in ["", "eu central", "eu/1", "a\nb", &"a".repeat(41)] {
            assert!(bad.parse::<S3Region>().is_err(), "{bad:?}");
        }
    }
}
