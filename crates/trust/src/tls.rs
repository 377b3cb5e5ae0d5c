//! How roles speak to each other over networks that are not theirs: TLS 1.3, with certificates on both
//! sides. Sessions are not resumed: every connection shows what it is now.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::{Credentials, Fingerprint, Name};

/// The cryptography of all that we do.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How a role is spoken to: it asks for a certificate of its world, and speaks also to who has none, for
/// whoever joins has none yet. Who may do what is decided by [`Peer`].
///
/// # Errors
///
/// When the certificates cannot be used.
pub fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(credentials.roots(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(credentials.clone()));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// How a role speaks to another.
///
/// # Errors
///
/// When the certificates cannot be used.
pub fn client_config(credentials: &Credentials) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(credentials.roots())
        .with_client_cert_resolver(Arc::new(credentials.clone()));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// How one that joins speaks to who lets it in: without a certificate of its own, to a world of which it
/// knows the fingerprint of the root.
///
/// # Errors
///
/// When there is no cryptography for it.
pub fn joining_config(root: Fingerprint) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedRoot(root)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// What a name is called in a handshake.
pub fn server_name(name: &Name) -> ServerName<'static> {
    ServerName::try_from(name.to_string()).expect("our names are DNS names")
}

/// Checks a server as usual, against the root that it sends itself, when that is the right one.
#[derive(Debug)]
struct PinnedRoot(Fingerprint);

impl PinnedRoot {
    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let root = chain.iter().find(|certificate| Fingerprint::of(certificate) == self.0);
        let root = root.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.verifier(intermediates)?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Only TLS 1.3 is spoken.
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A role of this machine, by a socket that only such can open.
    Local,
    /// Who showed a certificate of this world.
    Known {
        /// Whom it names.
        name: Name,
        /// Its key.
        key: Fingerprint,
        /// The key of the authority of its location, when one signed it.
        authority: Option<Fingerprint>,
    },
    /// Who was dialled, showed to be that, and asks over the connection in return.
    Dialled(Name),
    /// Who showed none.
    Stranger,
}

impl Peer {
    /// Who showed these certificates, which the handshake has verified.
    pub fn of(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let known = || {
            let (first, above) = chain?.split_first()?;
            let end = webpki::EndEntityCert::try_from(first).ok()?;
            // One that names several roles is none that we made.
            let mut names = end.valid_dns_names();
            let (name, None) = (names.next()?.parse::<Name>().ok()?, names.next()) else {
                return None;
            };
            let authority = match name.location() {
                None => None,
                Some(_) => Some(key_of(above.first()?)?),
            };
            Some(Self::Known { name, key: key_of(first)?, authority })
        };
        known().unwrap_or(Self::Stranger)
    }

    /// Whom the peer's certificate names.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Known { name, .. } | Self::Dialled(name) => Some(name),
            Self::Local | Self::Stranger => None,
        }
    }
}

fn key_of(certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(Fingerprint::of(&certificate.subject_public_key_info()))
}
