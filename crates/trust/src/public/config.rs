//! How TLS is spoken with users, and how our own clients speak it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};

use super::PublicCertificates;
use crate::provider;

/// What is spoken above TLS, the better first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How users are spoken to: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
///
/// # Errors
///
/// When there is no cryptography for it.
pub fn public_server_config(
    certificates: Arc<PublicCertificates>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Arc::new(config))
}

/// Why a client cannot tell whom to trust.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file cannot be read.
    #[error("cannot read the certificates in {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no certificate in it.
    #[error("{0} is not a file of certificates in PEM")]
    None(PathBuf),
    /// The machine has none of its own.
    #[error("this machine trusts nobody: it has no certificates of authorities (ca-certificates)")]
    Machine,
    /// There is no cryptography for it.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// How a client of ours speaks to a server of users: it trusts those in the file `ca` and nobody else, without
/// one those whom the machine trusts. It speaks HTTP/1.1, in which everything of ours can be said.
///
/// # Errors
///
/// When nobody is left to trust.
pub fn public_client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, CaError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let read = |source| CaError::Read { path: path.to_owned(), source };
            let pem = fs::read(path).map_err(read)?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|_| CaError::None(path.to_owned()))?;
                roots.add(certificate).map_err(|_| CaError::None(path.to_owned()))?;
            }
            if roots.is_empty() {
                return Err(CaError::None(path.to_owned()));
            }
        }
        None => {
            // Some of a machine's may be of no use; what counts is that there are others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(CaError::Machine);
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOLS[1].to_vec()];
    Ok(Arc::new(config))
}

/// What a host, as an authority has it, is called in a handshake; none where it is neither a name nor an address.
pub fn public_name(authority: &str) -> Option<ServerName<'static>> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()
}
