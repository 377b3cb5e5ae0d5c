//! What has to answer where the instances of an app may be.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{EgressRule, IpNet, ParseError, Port, Protocol, Timestamp, text_type};

/// An address that takes TCP connections: `db.example.com:5432`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReachAddress {
    host: String,
    port: Port,
}

impl ReachAddress {
    /// What a text of one looks like.
    pub const ALLOWED: &str =
        "a host name or IPv4 address, ':' and a port, such as db.example.com:5432";

    /// The name or the address of the host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Whether these rules keep instances from it: it is an address beside the public internet that none of
    /// them opens. What a name stands for nobody knows before it is asked for.
    pub fn is_closed_by(&self, egress: &[EgressRule]) -> bool {
        let Ok(address) = self.host.parse::<Ipv4Addr>() else { return false };
        let opens = |rule: &EgressRule| {
            let port = rule.port.is_none_or(|port| port == (self.port, Protocol::Tcp));
            rule.network.contains(address) && port
        };
        !IpNet::is_public(address) && !egress.iter().any(opens)
    }
}

impl FromStr for ReachAddress {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("address to reach", text, Self::ALLOWED);
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let is_label = |label: &str| {
            let inside = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            (1..=63).contains(&label.len()) && inside && !label.starts_with('-')
        };
        // What ends in a number can only be an address.
        let is_number =
            host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let is_address = host.parse::<Ipv4Addr>().is_ok();
        if host.len() > 253 || !host.split('.').all(is_label) || is_number != is_address {
            return Err(refuse());
        }
        let port = port.parse().map_err(|_| refuse())?;
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for ReachAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

text_type!(ReachAddress);

/// What a node's last try to reach an address came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reached {
    /// The address.
    pub address: ReachAddress,
    /// When, by the node's clock.
    pub at: Timestamp,
    /// Why not; absent when a connection was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The first of these that a node with these tries does not reach, and why.
pub fn unreached<'a>(
    wanted: impl IntoIterator<Item = &'a ReachAddress>,
    tries: &[Reached],
) -> Option<String> {
    wanted.into_iter().find_map(|address| match tries.iter().find(|one| one.address == *address) {
        None => Some(format!("nobody has tried {address} there yet")),
        Some(Reached { error: Some(error), .. }) => {
            Some(format!("{address} does not answer there: {error}"))
        }
        Some(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in ["db.example.com:5432", "localhost:1", "10.0.0.5:65535", "a_b-c:80"] {
            assert_eq!(text.parse::<ReachAddress>().unwrap().to_string(), text);
        }
        assert_eq!("DB:1".parse::<ReachAddress>().unwrap().host(), "db");
        for bad in [
            "",
            "db",
            "db:",
            ":80",
            "db:0",
            "db:65536",
            "a b:1",
            "10.0.0.256:1",
            "1.2.3:4",
            "-a:1",
            "a..b:1",
            "[::1]:80",
            "http://db:80",
        ] {
            assert!(bad.parse::<ReachAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_that_instances_may_not_speak_to_is_closed() {
        let rules = |text: &str| text.parse::<EgressRule>().into_iter().collect::<Vec<_>>();
        for (address, rule, closed) in [
            ("10.0.0.5:5432", "", true),
            ("10.0.0.5:5432", "10.0.0.0/8", false),
            ("10.0.0.5:5432", "10.0.0.0/8:5432/tcp", false),
            ("10.0.0.5:5432", "10.0.0.0/8:5432/udp", true),
            ("100.64.0.1:1", "10.0.0.0/8", true),
            ("198.18.0.5:80", "", true),
            ("240.0.0.1:80", "", true),
            ("127.0.0.1:1", "", true),
            ("203.0.113.5:443", "", false),
            ("db.internal:5432", "", false),
        ] {
            let address: ReachAddress = address.parse().unwrap();
            assert_eq!(address.is_closed_by(&rules(rule)), closed, "{address} {rule}");
        }
    }
}
