//! TLS towards users, with certificates that are renewed while they are used.

use std::sync::Arc;
use std::time::Duration;

use longshore_trust::{
    CertificateNews, CertificateProblem, PublicCertificates, PublicFiles, ServedCertificates,
    TlsError, public_server_config,
};
use rustls::ServerConfig;
use tokio::time::Instant;

use crate::now;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often one that expires soon is complained of.
const COMPLAIN: Duration = Duration::from_hours(12);

/// Why users cannot be spoken to by TLS.
#[derive(Debug, thiserror::Error)]
pub enum PublicTlsError {
    /// The files cannot be used.
    #[error("{}", in_words(.0))]
    Files(Vec<CertificateProblem>),
    /// There is no cryptography for it.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

fn in_words(problems: &[CertificateProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// With what users are spoken to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PublicTls {
    certificates: Arc<PublicCertificates>,
    config: Arc<ServerConfig>,
}

impl PublicTls {
    /// With the certificates in these files. [`Self::keep_fresh`] is to run beside.
    ///
    /// # Errors
    ///
    /// When they cannot be used.
    pub fn open(files: PublicFiles) -> Result<Self, PublicTlsError> {
        let certificates = PublicCertificates::open(files).map_err(PublicTlsError::Files)?;
        let certificates = Arc::new(certificates);
        match certificates.refresh() {
            news if news.is_empty() => complain(&certificates),
            news => tell(news),
        }
        let config = public_server_config(Arc::clone(&certificates))?;
        Ok(Self { certificates, config })
    }

    /// The same for hosts alone of which `is_served` says that they are served here: who asks for another one is
    /// refused in the handshake, as if there were no certificate.
    pub fn of_served(&self, is_served: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        let certificates = Arc::clone(&self.certificates);
        let mut config = ServerConfig::clone(&self.config);
        config.cert_resolver =
            Arc::new(ServedCertificates::new(Arc::clone(&certificates), is_served));
        Self { certificates, config: Arc::new(config) }
    }

    /// How handshakes are made.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The certificates.
    pub fn certificates(&self) -> &Arc<PublicCertificates> {
        &self.certificates
    }

    /// Reads the files again when they change, and tells of what expires. Never ends.
    pub async fn keep_fresh(self) {
        let mut complained = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            tell(self.certificates.refresh());
            if complained.elapsed() > COMPLAIN {
                complained = Instant::now();
                complain(&self.certificates);
            }
        }
    }
}

fn tell(news: Vec<CertificateNews>) {
    for one in news {
        match one {
            CertificateNews::Shown(certificate) => {
                let names = certificate.names().join(", ");
                tracing::info!("users are shown a new certificate for {names}");
                if let Some(complaint) = certificate.complaint(now()) {
                    tracing::warn!("{complaint}");
                }
            }
            CertificateNews::Gone(certificate) => {
                let names = certificate.names().join(", ");
                tracing::info!("the certificate for {names} is gone and shown no more");
            }
            CertificateNews::Unusable(problem) => tracing::error!("{problem}"),
        }
    }
}

fn complain(certificates: &PublicCertificates) {
    let complaints = certificates.all().into_iter().filter_map(|one| one.complaint(now()));
    complaints.for_each(|complaint| tracing::warn!("{complaint}; renew it"));
}

#[cfg(test)]
mod tests;
