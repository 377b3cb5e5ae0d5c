//! Addresses of services.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a service is reached: `unix:/path`, `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A Unix socket. Who may connect is decided by the mode of its directory.
    Unix(PathBuf),
    /// A host and port, spoken to in plain HTTP.
    Tcp(String),
    /// A host and port, spoken to with certificates on both sides.
    Tls(String),
}

impl Endpoint {
    /// `host:port` as a Host header wants it.
    pub fn authority(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp(authority) | Self::Tls(authority) => authority,
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is not an endpoint: unix:/absolute/path, http://host:port or \
                 https://host:port"
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(refuse()) };
        }
        let (kind, authority): (fn(String) -> Self, _) = match text.strip_prefix("http://") {
            Some(authority) => (Self::Tcp, authority),
            None => (Self::Tls, text.strip_prefix("https://").ok_or_else(refuse)?),
        };
        let authority = authority.trim_end_matches('/');
        match authority.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => {
                Ok(kind(authority.to_owned()))
            }
            _ => Err(refuse()),
        }
    }
}

/// Whether it may be a name or an address, without a user, a path or whatever else an address on the web may have.
fn is_host(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || ".-_[]:%".contains(c);
    !text.is_empty() && text.chars().all(is_part)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Tls(authority) => write!(f, "https://{authority}"),
        }
    }
}

/// Where several services are of which one leads, as `ENDPOINT[,ENDPOINT ...]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// The one that is tried first.
    pub first: Endpoint,
    /// The others.
    pub rest: Vec<Endpoint>,
}

impl From<Endpoint> for Endpoints {
    fn from(first: Endpoint) -> Self {
        Self { first, rest: Vec::new() }
    }
}

impl FromStr for Endpoints {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, rest) = match text.split_once(',') {
            Some((first, rest)) => (first, rest.split(',').map(str::parse).collect()),
            None => (text, Ok(Vec::new())),
        };
        Ok(Self { first: first.parse()?, rest: rest? })
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.rest.iter().try_for_each(|other| write!(f, ",{other}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_round_trip() {
        for text in ["unix:/run/x.sock", "http://127.0.0.1:80", "http://[::1]:80", "https://a:1"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "unix:relative",
            "http://host",
            "http://:80",
            "tcp:1",
            "http://a:99999",
            "https://a//b:1",
            "http://me@a:1",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_of_endpoints_round_trip() {
        for text in ["unix:/run/x.sock", "http://a:80,unix:/x,http://b:80"] {
            assert_eq!(text.parse::<Endpoints>().unwrap().to_string(), text);
        }
        for bad in ["", "http://a:80,", ",http://a:80", "http://a:80,b"] {
            assert!(bad.parse::<Endpoints>().is_err(), "{bad}");
        }
    }
}
