//! TLS to an etcd: who its members must be, and who we are to them.
//!
//! The files are read once, when a process starts. Every problem of them is told at once and before anything
//! is connected to; what the other side thinks of them is asked for when a store is connected to ([`distrust`]).

use std::error::Error;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use http::Uri;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::EtcdAddress;

/// The mode bits of a file by which others than its owner may use it.
const OTHERS: u32 = 0o077;

/// Where the certificates for an etcd are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdTlsFiles {
    /// The certificates of those who vouch for the members, in PEM.
    pub ca: Option<PathBuf>,
    /// Our own certificate and those between it and the root, in PEM.
    pub cert: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
}

/// One of those files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdTlsFile {
    /// [`EtcdTlsFiles::ca`]
    Ca,
    /// [`EtcdTlsFiles::cert`]
    Cert,
    /// [`EtcdTlsFiles::key`]
    Key,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTlsProblem {
    /// Which one.
    pub file: EtcdTlsFile,
    /// Its path, when it is named.
    pub path: Option<PathBuf>,
    /// What it has to be.
    pub allowed: String,
}

/// Certificates that are read.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    ca: Vec<u8>,
    /// Certificate and key.
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key is shown to nobody.
        f.debug_struct("EtcdTls").field("own", &self.own.is_some()).finish_non_exhaustive()
    }
}

impl EtcdTlsFiles {
    /// Reads them for an etcd; nothing for one that is spoken to without.
    ///
    /// # Errors
    ///
    /// With everything that is wrong.
    pub fn load(
        &self,
        address: Option<&EtcdAddress>,
    ) -> Result<Option<EtcdTls>, Vec<EtcdTlsProblem>> {
        let is_needed = address.is_some_and(EtcdAddress::is_secure);
        let mut problems = Vec::new();
        let mut problem = |file, path: Option<&PathBuf>, allowed: String| {
            problems.push(EtcdTlsProblem { file, path: path.cloned(), allowed });
        };
        let named = [
            (EtcdTlsFile::Ca, &self.ca),
            (EtcdTlsFile::Cert, &self.cert),
            (EtcdTlsFile::Key, &self.key),
        ];
        let (mut ca, mut cert, mut key) = (None, None, None);
        for (file, path) in named {
            let Some(path) = path else { continue };
            if !is_needed {
                problem(
                    file,
                    Some(path),
                    "nothing where the store is no etcd at https://".to_owned(),
                );
                continue;
            }
            match (read(file, path), file) {
                (Err(allowed), _) => problem(file, Some(path), allowed),
                (Ok(pem), EtcdTlsFile::Ca) => ca = Some(pem),
                (Ok(pem), EtcdTlsFile::Cert) => cert = Some(pem),
                (Ok(pem), EtcdTlsFile::Key) => key = Some(pem),
            }
        }
        if is_needed && self.ca.is_none() {
            let allowed = "a file with the certificates of those who vouch for the etcd";
            problem(EtcdTlsFile::Ca, None, allowed.to_owned());
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => {
                problem(
                    EtcdTlsFile::Key,
                    None,
                    "a file with the key of the certificate".to_owned(),
                );
            }
            (None, Some(_)) => {
                problem(
                    EtcdTlsFile::Cert,
                    None,
                    "a file with the certificate of the key".to_owned(),
                );
            }
            _ => {}
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let Some(tls) = ca.map(|ca| EtcdTls { ca, own: cert.zip(key) }) else { return Ok(None) };
        match tls.rustls_config() {
            Ok(_) => Ok(Some(tls)),
            Err(error) => {
                let allowed = format!("the key of the certificate in --store-cert: {error}");
                let (file, path) = (EtcdTlsFile::Key, self.key.clone());
                Err(vec![EtcdTlsProblem { file, path, allowed }])
            }
        }
    }
}

/// The bytes of a file that holds what it should, or what that is.
fn read(file: EtcdTlsFile, path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("a file that can be read: {error}"))?;
    if file != EtcdTlsFile::Key {
        let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        return match all {
            Ok(all) if !all.is_empty() => Ok(pem),
            _ => Err("a file with certificates in PEM".to_owned()),
        };
    }
    let mode = std::fs::metadata(path).map_or(OTHERS, |found| found.mode());
    if mode & OTHERS != 0 {
        let mode = mode & 0o777;
        return Err(format!("a file for its owner alone, of mode 600; this one has {mode:o}"));
    }
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(_) => Err("a file with a private key in PEM, without a password".to_owned()),
    }
}

impl EtcdTls {
    /// As the transport wants it.
    pub(super) fn config(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca));
        match &self.own {
            Some((cert, key)) => config.identity(Identity::from_pem(cert, key)),
            None => config,
        }
    }
}

/// What one says to a server of HTTP/2 first: that, and that there are no settings.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// How long a member may take to say what it thinks of us.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a member and we do not trust each other; nothing when we do, or when it cannot be reached, which may
/// pass. The transport tells of this only that the connection was closed: what a server thinks of a client's
/// certificate it says after the handshake.
pub(super) async fn distrust(member: &str, tls: &EtcdTls) -> Option<String> {
    let asked = tokio::time::timeout(ANSWER_WITHIN, greet(member, tls)).await;
    let error = asked.ok()?.err()?;
    let found = error.downcast_ref::<rustls::Error>();
    let io = error.downcast_ref::<io::Error>();
    found.or_else(|| io?.get_ref()?.downcast_ref()).map(explained)
}

/// Connects as the transport does, and waits for the first word of the other side.
async fn greet(member: &str, tls: &EtcdTls) -> Result<(), Box<dyn Error + Send + Sync>> {
    let member: Uri = member.parse()?;
    let authority = member.authority().ok_or("no authority")?;
    let name = ServerName::try_from(authority.host().trim_matches(['[', ']']).to_owned())?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    let connector = TlsConnector::from(Arc::new(tls.rustls_config()?));
    let mut stream = connector.connect(name, stream).await?;
    stream.write_all(GREETING).await?;
    stream.read_u8().await?;
    Ok(())
}

impl EtcdTls {
    fn rustls_config(&self) -> Result<ClientConfig, Box<dyn Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.ca) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>()?;
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn explained(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("the certificate of the etcd is not one that --store-ca vouches for: {why}")
        }
        rustls::Error::AlertReceived(alert) => format!(
            "the etcd does not take our certificate: --store-cert and --store-key must be of one that \
             it trusts ({alert:?})"
        ),
        other => other.to_string(),
    }
}
