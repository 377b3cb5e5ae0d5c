//! Who is who in a world of machines: names, certificates, and what lets a machine join.
//!
//! The global plane has the root; each location has an authority of its own that can name roles of this
//! location and nothing else, and goes on signing while the global plane is away; each role has a certificate
//! that is good for a day. Who calls is known by the name in its certificate ([`Peer`]), and what it may do
//! is decided by who is called.
//!
//! - `name`: whom certificates speak for. `authority`: who signs them.
//! - `seal`: what was said before, known again. `identity`: a key and what is said of it. `tls`: connections made with one. `token`: what lets join.
//!   `wire`: what is said about that.
//! - `public`: TLS towards users, by certificates that have nothing to do with these.
//!
//! The crate opens no connection and knows no store. Test: `cargo nextest run -p longshore-trust`.

#![deny(missing_docs)]

mod authority;
mod file;
mod identity;
mod name;
mod public;
mod seal;
mod tls;
mod token;
mod wire;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a connection with certificates cannot be made.
pub use rustls::Error as TlsError;

pub use authority::{AUTHORITY, AuthorityError, LocationAuthority, ROLE, RootAuthority, Signed};
pub use identity::{Credentials, Identity, NewKey, PublicKey};
pub use name::{Name, ParseNameError};
pub use public::{
    CaError, CertificateFile, CertificateNews, CertificateProblem, PublicCertificate,
    PublicCertificates, PublicFiles, SOON, ServedCertificates, UserAuthority, public_client_config,
    public_name, public_server_config,
};
pub use seal::Seal;
pub(crate) use tls::provider;
pub use tls::{Peer, client_config, joining_config, server_config, server_name};
pub use token::{JoinAs, JoinRole, JoinToken};
pub use wire::{
    BeginRequest, Begun, CertificateRequest, JoinRequest, LocationJoinRequest, RedeemRequest,
    RegistryAccess, RegistryJoinRequest, RegistryPlace, RegistryTold,
};

/// A SHA-256 by which a certificate or a key is known; as text in hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// That of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || "a fingerprint is 64 hexadecimal digits".to_owned();
        if text.len() != 64 || !text.is_ascii() {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
