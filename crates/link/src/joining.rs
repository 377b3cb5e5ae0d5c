//! How a machine joins: the same exchange for a node, a location and the registry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use longshore_trust::{
    AuthorityError, CertificateRequest, Credentials, Fingerprint, Identity, JoinToken, Name,
    NewKey, PublicKey, Signed, TlsError, joining_config,
};
use rustls::ClientConfig;
use serde::Serialize;

use crate::{CallError, Client, Endpoint, now};

/// How often to look whether a certificate should be renewed, and how soon again when it has expired.
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// Why a machine cannot join, or be what it joined as.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The file of what it has by having joined cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no such file.
    #[error("this machine has not joined: there is no {0}")]
    NotJoined(PathBuf),
    /// The file is about another role.
    #[error("{path} is not about {name}")]
    Another {
        /// Which file.
        path: PathBuf,
        /// Whom it should be about.
        name: String,
    },
    /// The address of who lets it in is none.
    #[error("the token is of no use: {0}")]
    Address(String),
    /// Who is asked does not let it in, or cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no key to be had, or it signs for nobody.
    #[error(transparent)]
    Key(#[from] AuthorityError),
    /// What was given is of no use.
    #[error("the certificate is of no use")]
    Certificate(#[from] TlsError),
}

/// Joins by a token: makes a key, has `server` sign it at `path`, and keeps both in `file`. `request` is what
/// is asked with the key.
///
/// # Errors
///
/// When the server cannot be reached or refuses, or the file cannot be written.
pub async fn join<R: Serialize + Sync>(
    token: &JoinToken,
    (server, path): (Name, &str),
    file: &Path,
    request: impl FnOnce(PublicKey) -> R,
) -> Result<(), JoinError> {
    let endpoint = Endpoint::Tls(token.address.clone());
    let endpoint: Endpoint = endpoint.to_string().parse().map_err(JoinError::Address)?;
    let server = Client::secured(endpoint, joining_config(token.root)?, server);
    let key = NewKey::generate()?;
    let signed: Signed = server.call(Method::POST, path, Some(&request(key.public()))).await?;
    let failed = |source| JoinError::File { path: file.to_owned(), source };
    let identity = key.signed(&signed, now()).map_err(failed)?;
    Credentials::new(&identity)?;
    identity.save(file).map_err(failed)
}

/// With what a machine speaks whose certificate has expired: it shows nothing, and knows its world by the
/// root that it has had.
///
/// # Errors
///
/// When there is no cryptography for it.
pub fn expired_config(identity: &Identity) -> Result<Arc<ClientConfig>, JoinError> {
    Ok(joining_config(Fingerprint::of(identity.root()))?)
}

/// What a machine has by having joined.
///
/// # Errors
///
/// When the file is not there or cannot be understood.
pub fn joined_identity(file: &Path) -> Result<Identity, JoinError> {
    let loaded = Identity::load(file);
    let loaded = loaded.map_err(|source| JoinError::File { path: file.to_owned(), source })?;
    loaded.ok_or_else(|| JoinError::NotJoined(file.to_owned()))
}

/// The identity of a machine that joined: kept in a file, shown to who connects, and renewed in time.
#[derive(Debug)]
pub struct KeptIdentity {
    file: PathBuf,
    credentials: Credentials,
}

impl KeptIdentity {
    /// The one that `file` has.
    ///
    /// # Errors
    ///
    /// When it cannot be shown.
    pub fn new(file: PathBuf, identity: &Identity) -> Result<Self, JoinError> {
        Ok(Self { file, credentials: Credentials::new(identity)? })
    }

    /// What is shown.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Keeps the certificate good. Never ends. The next is had by `ask`, which is told whether this one has expired, so
    /// that nobody lets in who shows it.
    pub async fn keep<F>(&self, ask: impl Fn(CertificateRequest, bool) -> F)
    where
        F: Future<Output = Result<Signed, CallError>>,
    {
        loop {
            let wait = match self.renew_when_due(&ask).await {
                Ok(()) => LOOK,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the certificate is not renewed");
                    if self.has_expired() { RETRY } else { LOOK }
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn has_expired(&self) -> bool {
        joined_identity(&self.file).is_ok_and(|identity| identity.has_expired(now()))
    }

    async fn renew_when_due<F>(
        &self,
        ask: &impl Fn(CertificateRequest, bool) -> F,
    ) -> Result<(), JoinError>
    where
        F: Future<Output = Result<Signed, CallError>>,
    {
        let identity = joined_identity(&self.file)?;
        if !identity.is_due(now()) {
            return Ok(());
        }
        let request = CertificateRequest { key: identity.public_key()? };
        let expired = identity.has_expired(now());
        let signed = ask(request, expired).await?;
        let failed = |source| JoinError::File { path: self.file.clone(), source };
        let renewed = identity.renewed(&signed, now()).map_err(failed)?;
        self.credentials.replace(&renewed)?;
        renewed.save(&self.file).map_err(failed)?;
        tracing::info!(expired, "this machine was named anew");
        Ok(())
    }
}
