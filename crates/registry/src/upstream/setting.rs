//! Upstreams as people write them: `NAME=URL`.

use std::fmt;
use std::str::FromStr;

use axum::http::Uri;
use longshore_types::{ProjectName, Repository};

/// A registry, and the name under which its images are had here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSource {
    name: String,
    url: String,
    host: String,
}

/// A text that is none.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no upstream; {}", UpstreamSource::ALLOWED)]
pub struct UpstreamSourceError {
    text: String,
}

impl UpstreamSource {
    /// What such a text may be.
    pub const ALLOWED: &str = "NAME=https://HOST or NAME=https://HOST:PORT, or with http:// on a network that is \
        trusted, the name such as docker.io: lower-case letters, digits, and '.', '_' or '-' between them, and none \
        that a project could have, so with a '.' or a '_'";

    /// What the names of repositories here begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same as credentials are kept for it: `host[:port]`.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl FromStr for UpstreamSource {
    type Err = UpstreamSourceError;

    fn from_str(text: &str) -> Result<Self, UpstreamSourceError> {
        let refuse = || UpstreamSourceError { text: text.to_owned() };
        let (name, url) = text.split_once('=').ok_or_else(refuse)?;
        // What is below the name of a project is that project's.
        let is_project = name.parse::<ProjectName>().is_ok();
        let is_name = !name.contains('/') && !is_project && name.parse::<Repository>().is_ok();
        let parsed: Uri = url.parse().map_err(|_| refuse())?;
        let is_http = matches!(parsed.scheme_str(), Some("http" | "https"));
        let host = parsed.authority().map(ToString::to_string).unwrap_or_default();
        let is_host = !parsed.host().unwrap_or_default().is_empty() && !host.contains('@');
        let is_bare = parsed.path() == "/" && parsed.query().is_none() && !url.contains('#');
        if !is_name || !is_http || !is_host || !is_bare {
            return Err(refuse());
        }
        Ok(Self { name: name.to_owned(), url: url.trim_end_matches('/').to_owned(), host })
    }
}

impl fmt::Display for UpstreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read_and_written_alike() {
        for (text, name, host) in [
            ("docker.io=https://registry-1.docker.io", "docker.io", "registry-1.docker.io"),
            ("hub.test=http://127.0.0.1:5000/", "hub.test", "127.0.0.1:5000"),
            ("my-mirror_2=https://[::1]:443", "my-mirror_2", "[::1]:443"),
        ] {
            let source: UpstreamSource = text.parse().unwrap();
            assert_eq!((source.name(), source.host()), (name, host));
            assert_eq!(source.to_string(), text.trim_end_matches('/'));
        }
        for bad in [
            "",
            "docker.io",
            "https://registry-1.docker.io",
            "=https://registry-1.docker.io",
            "docker.io=",
            "docker.io=registry-1.docker.io",
            "docker.io=ftp://registry-1.docker.io",
            "docker.io=https://",
            "docker.io=https://user:secret@registry-1.docker.io",
            "docker.io=https://registry-1.docker.io/v2",
            "docker.io=https://registry-1.docker.io?a=b",
            "docker.io=https://registry-1.docker.io#a",
            "docker.io/library=https://registry-1.docker.io",
            "host:5000=https://host:5000",
            "Docker=https://registry-1.docker.io",
            "docker=https://registry-1.docker.io",
            "_x=https://registry-1.docker.io",
        ] {
            let error = bad.parse::<UpstreamSource>().unwrap_err().to_string();
            assert!(error.contains("NAME=https://HOST"), "{error}");
        }
    }
}
