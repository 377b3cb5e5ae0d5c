//! How users of the API and the registry are spoken to: in the clear on loopback, else by TLS with a certificate
//! of the operator's, or with one that is made here for trying.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use longshore_link::{chain, now};
use longshore_trust::{
    CertificateFile, PublicCertificate, PublicCertificates, PublicFiles, UserAuthority,
    public_client_config,
};
use longshore_types::ManifestProblem;

use super::home::Home;
use crate::failure::{Failure, Kind, OrFail};
use crate::state_file;

/// How often the certificate that is made here is looked at.
const LOOK: Duration = Duration::from_hours(6);
/// How long before its end another takes the place of one that is made here.
const RENEW: Duration = Duration::from_hours(60 * 24);

/// What is said of that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificates of the operator.
    pub cert: Option<PathBuf>,
    /// The key of the first.
    pub key: Option<PathBuf>,
    /// By which commands of this machine believe them; those of the machine when absent.
    pub ca: Option<PathBuf>,
    /// Whether one is made here.
    pub self_signed: bool,
    /// What users call the platform, when it is said.
    pub host: Option<String>,
}

impl TlsSettings {
    /// Whether TLS is spoken.
    pub fn is_spoken(&self) -> bool {
        self.self_signed || self.cert.is_some()
    }

    /// All that is wrong, with what is to listen where; the first is what users call.
    pub fn problems(&self, listen: &[(&str, SocketAddr)]) -> Vec<ManifestProblem> {
        let mut problems = Vec::new();
        let mut wrong = |field: &str, value: String, allowed: String| {
            problems.push(ManifestProblem { field: field.to_owned(), value, allowed });
        };
        let path = |path: &Option<PathBuf>| match path {
            Some(path) => path.display().to_string(),
            None => "(none)".to_owned(),
        };
        if !self.is_spoken() {
            for &(field, address) in listen {
                if !address.ip().is_loopback() {
                    let allowed = "a loopback address and a port, such as 127.0.0.1:4600, until TLS is \
                                   configured: with tls_cert and tls_key, or for trying with \
                                   tls_self_signed = true";
                    wrong(field, format!("{:?}", address.to_string()), allowed.to_owned());
                }
            }
            for (field, given) in [("tls_key", &self.key), ("tls_ca", &self.ca)] {
                if given.is_some() {
                    let allowed = "nothing without tls_cert".to_owned();
                    wrong(field, path(given), allowed);
                }
            }
            if let Some(host) = &self.host {
                wrong("public_host", host.clone(), "nothing without TLS: tls_cert".to_owned());
            }
            return problems;
        }
        if self.self_signed && (self.cert.is_some() || self.ca.is_some()) {
            let allowed = "nothing beside tls_self_signed = true: one or the other".to_owned();
            let (field, given) = match &self.cert {
                Some(_) => ("tls_cert", &self.cert),
                None => ("tls_ca", &self.ca),
            };
            wrong(field, path(given), allowed);
            return problems;
        }
        if self.cert.is_some() && self.key.is_none() {
            wrong("tls_key", path(&None), "the file with the key of tls_cert".to_owned());
            return problems;
        }
        if let Some(ca) = &self.ca
            && let Err(error) = public_client_config(Some(ca))
        {
            wrong("tls_ca", path(&self.ca), format!("a file of certificates: {}", chain(&error)));
        }
        match self.read() {
            Err(unusable) => {
                for problem in unusable {
                    let field = match problem.file {
                        CertificateFile::Chain => "tls_cert",
                        CertificateFile::Key => "tls_key",
                    };
                    wrong(field, problem.path.display().to_string(), problem.allowed);
                }
            }
            Ok(certificate) => {
                let first = listen.first().expect("something listens").1;
                if let Err(allowed) = self.host(first, certificate.as_ref()) {
                    wrong(
                        "public_host",
                        format!("{:?}", self.host.clone().unwrap_or_default()),
                        allowed,
                    );
                }
            }
        }
        problems
    }

    /// The certificate of the operator, if that is one.
    fn read(&self) -> Result<Option<PublicCertificate>, Vec<longshore_trust::CertificateProblem>> {
        let pair = self.cert.as_deref().zip(self.key.as_deref());
        pair.map(|(cert, key)| PublicCertificate::read(cert, key)).transpose()
    }

    /// What users call the platform, or what they could.
    fn host(
        &self,
        listen: SocketAddr,
        certificate: Option<&PublicCertificate>,
    ) -> Result<String, String> {
        let own = (!listen.ip().is_unspecified()).then(|| listen.ip().to_string());
        let Some(certificate) = certificate else {
            let named = self.host.clone().or(own);
            return named.ok_or_else(|| {
                format!(
                    "the name or address by which users reach this machine, when it listens on {listen}"
                )
            });
        };
        let names = certificate.names();
        let allowed =
            || format!("one that the certificate in tls_cert is for: {}", names.join(", "));
        match &self.host {
            Some(host) if certificate.covers(host) => Ok(host.clone()),
            Some(_) => Err(allowed()),
            None => {
                let own = own.filter(|own| certificate.covers(own));
                let first = names.iter().find(|name| !name.starts_with('*')).cloned();
                own.or(first).ok_or_else(allowed)
            }
        }
    }
}

/// How the ingress speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressTls {
    /// The directory of the certificates; nothing is spoken without.
    pub dir: Option<PathBuf>,
    /// Where.
    pub listen: SocketAddr,
    /// Whether those who come in the clear are sent there.
    pub redirects: bool,
}

impl Default for IngressTls {
    fn default() -> Self {
        Self { dir: None, listen: ([127, 0, 0, 1], 8443).into(), redirects: false }
    }
}

impl IngressTls {
    /// What is wrong with it. What is wrong with single certificates keeps nobody from using the others, and
    /// is told in the log.
    pub fn problem(&self) -> Option<ManifestProblem> {
        let (field, value, allowed) = match &self.dir {
            None if self.redirects => {
                ("ingress_redirect", "true".to_owned(), "false without ingress_tls".to_owned())
            }
            None => return None,
            Some(dir) => {
                let read = PublicCertificates::open(PublicFiles::Directory(dir.clone()));
                let problem = read.err()?.into_iter().next()?;
                ("ingress_tls", dir.display().to_string(), problem.allowed)
            }
        };
        Some(ManifestProblem { field: field.to_owned(), value, allowed })
    }
}

/// By which certificate users are spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsersTls {
    /// The certificates.
    pub cert: PathBuf,
    /// The key of the first.
    pub key: PathBuf,
    /// By which they are believed, where the machine alone does not.
    pub ca: Option<PathBuf>,
    /// What users call the platform.
    host: String,
    /// What a certificate that is made here is for.
    names: Vec<String>,
    /// Whether the certificate was made here.
    pub made: bool,
}

impl UsersTls {
    /// As the settings say, with a certificate that is made where it has to be; the first of what listens is what
    /// users call.
    pub fn prepare(
        settings: &TlsSettings,
        listen: &[SocketAddr],
        home: &Home,
    ) -> Result<Option<Self>, Failure> {
        let TlsSettings { cert, key, ca, self_signed, .. } = settings;
        let first = *listen.first().expect("something listens");
        let refused =
            |allowed| Failure::new(Kind::Invalid, format!("public_host: it must be {allowed}"));
        if *self_signed {
            let host = settings.host(first, None).map_err(refused)?;
            let ((cert, key), ca) = (home.tls_made_files(), Some(home.tls_ca_file()));
            let names = names(&host, listen);
            let tls = Self { cert, key, ca, host, names, made: true };
            let doing = "cannot make a certificate for users";
            let fingerprint = tls.make(home).or_fail(Kind::Other, doing)?;
            tracing::info!(
                "TLS by a certificate that is made here; users trust it by {} (SHA-256 {fingerprint})",
                home.tls_ca_file().display()
            );
            return Ok(Some(tls));
        }
        let Some((cert, key)) = cert.clone().zip(key.clone()) else { return Ok(None) };
        // They were looked at with the settings.
        let certificate = settings.read().map_err(|problems| {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Failure::new(Kind::Invalid, all.join("; "))
        })?;
        let host = settings.host(first, certificate.as_ref()).map_err(refused)?;
        Ok(Some(Self { cert, key, ca: ca.clone(), host, names: Vec::new(), made: false }))
    }

    /// The host with a port.
    pub fn authority(&self, port: &str) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{port}", self.host),
            false => format!("{}:{port}", self.host),
        }
    }

    /// Makes a certificate, unless there is one for all names that is good for long; the fingerprint of what
    /// users trust.
    fn make(&self, home: &Home) -> io::Result<String> {
        let authority = UserAuthority::open(&home.tls_authority_file(), now());
        let authority = authority.map_err(|error| io::Error::other(chain(&error)))?;
        let fingerprint = authority.fingerprint().to_string();
        let ca = home.tls_ca_file();
        state_file::replace(&ca, authority.certificate().as_bytes())?;
        // It is for everyone to read, as far as they may pass the data directory.
        fs::set_permissions(&ca, fs::Permissions::from_mode(0o644))?;
        if let Ok(present) = PublicCertificate::read(&self.cert, &self.key) {
            let left = present.expires_at().0.saturating_sub(now().0);
            let is_for_all = self.names.iter().all(|name| present.covers(name));
            if is_for_all && u128::from(left) > RENEW.as_millis() {
                return Ok(fingerprint);
            }
        }
        let made = authority.issue(&self.names, now());
        let (chain_of, key) = made.map_err(|error| io::Error::other(chain(&error)))?;
        // Who reads them in between finds that they do not belong together, and looks again.
        state_file::replace(&self.key, key.as_bytes())?;
        state_file::replace(&self.cert, chain_of.as_bytes())?;
        Ok(fingerprint)
    }
}

/// What a certificate that is made here is for.
fn names(host: &str, listen: &[SocketAddr]) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    let listen = listen
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_string());
    names.extend(listen);
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Makes the certificate anew before it ends, or when it is no more. Never ends.
pub async fn keep_made(tls: &UsersTls, home: &Home) {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error) = tls.make(home) {
            tracing::error!(%error, "cannot make the certificate for users anew");
        }
    }
}

#[cfg(test)]
mod tests;
