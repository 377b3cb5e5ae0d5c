//! Certificates and keys as text and on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_types::Timestamp;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The version of the file.
const VERSION: u32 = 1;

/// A key and what is said of it, as a file holds them.
#[derive(Serialize, Deserialize)]
pub(crate) struct IdentityFile {
    v: u32,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    /// As PEM, so that other tools can show them.
    certificates: String,
    key: Zeroizing<String>,
}

impl IdentityFile {
    pub fn new(
        chain: &[CertificateDer<'static>],
        key: &KeyPair,
        issued_at: Timestamp,
        expires_at: Timestamp,
    ) -> Self {
        let (certificates, key) = (to_pem(chain), Zeroizing::new(key.serialize_pem()));
        Self { v: VERSION, issued_at, expires_at, certificates, key }
    }

    /// The certificates and the key.
    pub fn open(&self) -> io::Result<(Vec<CertificateDer<'static>>, KeyPair)> {
        let key = KeyPair::from_pem(&self.key).map_err(invalid)?;
        Ok((from_pem(&self.certificates)?, key))
    }
}

/// What a file holds; none when there is no file.
pub(crate) fn load(path: &Path) -> io::Result<Option<IdentityFile>> {
    let text = match fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stored: IdentityFile = serde_json::from_slice(&text).map_err(invalid)?;
    if stored.v != VERSION {
        return Err(invalid(format!("version {} is not known here", stored.v)));
    }
    Ok(Some(stored))
}

/// Writes a file that is whole or absent, and that its owner alone can read.
pub(crate) fn save(path: &Path, stored: &IdentityFile) -> io::Result<()> {
    let text = Zeroizing::new(serde_json::to_vec_pretty(stored)?);
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Certificates as text, in their order.
pub(crate) fn to_pem(chain: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// The certificates of a text.
pub(crate) fn from_pem(text: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| invalid(error.to_string()))?;
    if chain.is_empty() { Err(invalid("there is no certificate")) } else { Ok(chain) }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
