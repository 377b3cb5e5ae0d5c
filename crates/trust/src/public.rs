//! TLS towards users, who know nothing of our names: certificates that an operator brings as files, or that
//! are made here for trying.
//!
//! They are files because whoever renews them writes files, certbot as well as a secret store. What a file must
//! be is checked when it is read, and every problem told at once. One that has expired is no problem of
//! these: it is shown all the same, so that a platform which is started a day too late still serves those who
//! look over it, and it is told wherever an operator looks. Rejected: refusing to start, which makes of a
//! late renewal the end of every app.
//!
//! - `kept`: which one is shown to whom, and how they are read again when the files change.
//! - `made`: an authority of our own for those who have none.
//! - `config`: how TLS is spoken with them, by us and by our own clients.

mod config;
mod kept;
mod made;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_types::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::X509Name;

use crate::{Fingerprint, provider};

pub use config::{CaError, public_client_config, public_name, public_server_config};
pub use kept::{CertificateNews, PublicCertificates, PublicFiles, ServedCertificates};
pub use made::UserAuthority;

/// The mode bits of a file by which others than its owner may use it.
const OTHERS: u32 = 0o077;
/// A certificate that is good for less than this should have been renewed by now.
pub const SOON: Duration = Duration::from_hours(14 * 24);

/// Which of the two files of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFile {
    /// That with the certificates.
    Chain,
    /// That with the key.
    Key,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not {allowed}", path.display())]
pub struct CertificateProblem {
    /// Which one.
    pub file: CertificateFile,
    /// Its path.
    pub path: PathBuf,
    /// What it has to be.
    pub allowed: String,
}

/// A certificate for users, with its key.
pub struct PublicCertificate {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    begins_at: Timestamp,
    expires_at: Timestamp,
    fingerprint: Fingerprint,
}

impl std::fmt::Debug for PublicCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A key is shown to nobody.
        write!(f, "PublicCertificate({}, until {})", self.names.join(", "), self.expires_at.0)
    }
}

impl PublicCertificate {
    /// Reads one: `chain` is a file of certificates, its own first and each followed by that of who signed it,
    /// `key` one with its key, both in PEM.
    ///
    /// # Errors
    ///
    /// With everything that is wrong.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, Vec<CertificateProblem>> {
        let problem = |file, path: &Path, allowed: String| {
            vec![CertificateProblem { file, path: path.to_owned(), allowed }]
        };
        let read = read_chain(chain).map_err(|why| problem(CertificateFile::Chain, chain, why));
        let own = read_key(key).map_err(|why| problem(CertificateFile::Key, key, why));
        let ((certificates, facts), own) = match (read, own) {
            (Ok(read), Ok(own)) => (read, own),
            (read, own) => {
                return Err([read.err(), own.err()].into_iter().flatten().flatten().collect());
            }
        };
        let fingerprint = Fingerprint::of(&certificates[0]);
        let certified =
            CertifiedKey::from_der(certificates, own, &provider()).map_err(|error| {
                let why =
                    format!("the key of the first certificate in {}: {error}", chain.display());
                problem(CertificateFile::Key, key, why)
            })?;
        let Facts { names, begins_at, expires_at } = facts;
        Ok(Self { certified: Arc::new(certified), names, begins_at, expires_at, fingerprint })
    }

    /// What it is for: names in lower case, `*.` before one that stands for all one label longer, and addresses.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether who calls a server by this name or address finds it right.
    pub fn covers(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let above = host.split_once('.').map(|(_, above)| above);
        let is_address = host.parse::<IpAddr>().is_ok();
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(name) => !is_address && above == Some(name),
            None => *name == host,
        })
    }

    /// From when on it is good.
    pub fn begins_at(&self) -> Timestamp {
        self.begins_at
    }

    /// Until when it is good.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// By which people know it.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// What an operator should know of its time, if anything.
    pub fn complaint(&self, now: Timestamp) -> Option<String> {
        let left = self.expires_at.0.saturating_sub(now.0);
        let days = left / 86_400_000;
        let names = self.names.join(", ");
        if self.begins_at.0 > now.0 {
            Some(format!("the certificate for {names} is not good yet"))
        } else if left == 0 {
            Some(format!("the certificate for {names} has expired"))
        } else if u128::from(left) < SOON.as_millis() {
            Some(format!("the certificate for {names} expires in {days} days"))
        } else {
            None
        }
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// What a certificate says of itself.
struct Facts {
    names: Vec<String>,
    begins_at: Timestamp,
    expires_at: Timestamp,
}

fn read_chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Facts), String> {
    let pem = fs::read(path).map_err(|error| format!("a file that can be read: {error}"))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| format!("a file of certificates in PEM: {error}"))?;
    if chain.is_empty() {
        return Err("a file of certificates in PEM: there is none in it".to_owned());
    }
    let parsed: Result<Vec<X509Certificate<'_>>, _> = chain
        .iter()
        .map(|one| x509_parser::parse_x509_certificate(one).map(|(_, one)| one))
        .collect();
    let parsed = parsed.map_err(|error| format!("a file of certificates: {error}"))?;
    if let Some([lower, upper]) = parsed
        .array_windows()
        .find(|[lower, upper]| lower.issuer().as_raw() != upper.subject().as_raw())
    {
        let (lower, upper) = (called(lower.subject()), called(upper.subject()));
        return Err(format!(
            "certificates in their order, each followed by that of who signed it: {upper} has not \
             signed {lower}"
        ));
    }
    let facts = facts(&parsed[0])?;
    Ok((chain, facts))
}

fn called(name: &X509Name<'_>) -> String {
    match name.to_string() {
        name if name.is_empty() => "one without a name".to_owned(),
        name => format!("{name:?}"),
    }
}

fn facts(certificate: &X509Certificate<'_>) -> Result<Facts, String> {
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
    let names: Vec<String> = names.iter().filter_map(name).collect();
    if names.is_empty() {
        // What the common name says counts nowhere any more.
        return Err("a certificate that names hosts as subject alternative names".to_owned());
    }
    let moment = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    let validity = certificate.validity();
    Ok(Facts {
        names,
        begins_at: moment(validity.not_before.timestamp()),
        expires_at: moment(validity.not_after.timestamp()),
    })
}

/// A name or address as text; none of what is neither.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let unreadable = |error| format!("a file that can be read: {error}");
    let pem = zeroize::Zeroizing::new(fs::read(path).map_err(unreadable)?);
    let mode = fs::metadata(path).map_err(unreadable)?.mode();
    if mode & OTHERS != 0 {
        return Err("a file that nobody but its owner may read: chmod 600".to_owned());
    }
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| format!("a file with a key in PEM, without a passphrase: {error}"))
}

#[cfg(test)]
mod tests;
