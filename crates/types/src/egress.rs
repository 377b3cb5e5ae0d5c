//! What an instance may reach beyond the public internet: `10.0.0.0/8:5432/tcp`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::{ParseError, Port, text_type};

/// An IPv4 network in CIDR form with no host bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpNet {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl IpNet {
    /// What is not the public internet. The documentation networks (192.0.2.0/24 and the like) are not
    /// listed: nothing that needs protection lives there, and labs use them to stand for the internet.
    pub const NOT_PUBLIC: [Self; 11] = [
        Self::of([0, 0, 0, 0], 8),
        Self::of([10, 0, 0, 0], 8),
        Self::of([100, 64, 0, 0], 10),
        Self::of([127, 0, 0, 0], 8),
        Self::of([169, 254, 0, 0], 16),
        Self::of([172, 16, 0, 0], 12),
        Self::of([192, 0, 0, 0], 24),
        Self::of([192, 168, 0, 0], 16),
        Self::of([198, 18, 0, 0], 15),
        Self::of([224, 0, 0, 0], 4),
        Self::of([240, 0, 0, 0], 4),
    ];

    const fn of([a, b, c, d]: [u8; 4], prefix_len: u8) -> Self {
        Self { address: Ipv4Addr::new(a, b, c, d), prefix_len }
    }

    /// Whether an address is of the public internet.
    pub fn is_public(address: Ipv4Addr) -> bool {
        Self::NOT_PUBLIC.iter().all(|net| !net.contains(address))
    }

    /// The network `address/prefix_len`, unless the prefix is over 32 or host bits are set.
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        let net = Self { address, prefix_len };
        (prefix_len <= 32 && u32::from(address) & !net.mask() == 0).then_some(net)
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    /// The first address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The number of leading bits that are fixed.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The number of addresses in the network.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix_len))
    }

    /// The `idx`-th address, when the network has that many.
    pub fn nth(self, idx: u32) -> Option<Ipv4Addr> {
        (u64::from(idx) < self.size()).then(|| Ipv4Addr::from(u32::from(self.address) + idx))
    }

    /// True when `address` lies in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.address)
    }

    /// True when the two networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for IpNet {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || {
            ParseError::new(
                "network",
                text,
                "an IPv4 address, '/' and 0 to 32, with no host bits set",
            )
        };
        let (address, prefix_len) = text.split_once('/').unwrap_or((text, "32"));
        let address = address.parse().map_err(|_| refuse())?;
        Self::new(address, prefix_len.parse().map_err(|_| refuse())?).ok_or_else(refuse)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.prefix_len))
    }
}

text_type!(IpNet);

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One line of `[egress] allow`: a network, and when stated only one port and protocol of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EgressRule {
    /// Where to.
    pub network: IpNet,
    /// Only this port and protocol; everything when absent.
    pub port: Option<(Port, Protocol)>,
}

impl FromStr for EgressRule {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || {
            ParseError::new(
                "egress rule",
                text,
                "an IPv4 network, and optionally ':port/tcp' or ':port/udp', such as 10.0.0.0/8:5432/tcp",
            )
        };
        let Some((network, port)) = text.split_once(':') else {
            return Ok(Self { network: text.parse().map_err(|_| refuse())?, port: None });
        };
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(refuse()),
        };
        let port = port.parse().map_err(|_| refuse())?;
        Ok(Self { network: network.parse().map_err(|_| refuse())?, port: Some((port, protocol)) })
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some((port, protocol)) => write!(f, "{}:{port}/{protocol}", self.network),
            None => write!(f, "{}", self.network),
        }
    }
}

text_type!(EgressRule);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_round_trip() {
        for text in ["10.0.0.0/8", "10.0.0.0/8:5432/tcp", "192.168.1.7/32:53/udp", "0.0.0.0/0"] {
            assert_eq!(text.parse::<EgressRule>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3".parse::<EgressRule>().unwrap().to_string(), "10.1.2.3/32");
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/8:0", "10.0.0.0/8:1/icmp", "db:5432"]
        {
            assert!(bad.parse::<EgressRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_overlap() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(net("10.0.0.0/8").overlaps(net("10.2.0.0/16")));
        assert!(net("10.2.0.0/16").overlaps(net("0.0.0.0/0")));
        assert!(!net("10.0.0.0/9").overlaps(net("10.128.0.0/9")));
        assert_eq!(net("10.0.0.0/30").nth(3), Some(Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(net("10.0.0.0/30").nth(4), None);
    }
}
