//! A key, and the certificates that say whose it is.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_types::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};

use crate::authority::{AuthorityError, Signed};
use crate::file::{self, IdentityFile};
use crate::{Fingerprint, Name, Peer, provider};

/// A public key, in base 64: an uncompressed point of P-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(Vec<u8>);

/// The length of such a point, and its first byte.
const POINT: (usize, u8) = (65, 4);

impl PublicKey {
    pub(crate) fn of(key: &KeyPair) -> Self {
        Self(key.public_key_raw().to_vec())
    }

    /// By which the key is known wherever certificates show it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.subject_public_key_info())
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match STANDARD.decode(&text) {
            Ok(bytes) if bytes.len() == POINT.0 && bytes[0] == POINT.1 => Ok(Self(bytes)),
            _ => Err("a public key is the base 64 of an uncompressed point of P-256".to_owned()),
        }
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        STANDARD.encode(key.0)
    }
}

/// A key that nothing is said of yet.
pub struct NewKey(KeyPair);

impl NewKey {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When there is no randomness to be had.
    pub fn generate() -> Result<Self, AuthorityError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// What an authority is asked to sign.
    pub fn public(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    /// The identity that an authority made of it.
    ///
    /// # Errors
    ///
    /// When what it sent has no certificates.
    pub fn signed(&self, signed: &Signed, now: Timestamp) -> io::Result<Identity> {
        Ok(Identity::new(file::from_pem(&signed.certificates)?, &self.0, now, signed.expires_at))
    }
}

/// A key and the certificates that say whose it is.
pub struct Identity {
    /// Its own certificate first, the root last.
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(expires at {})", self.expires_at.0)
    }
}

/// True once a third of the time is left.
pub(crate) fn is_due(issued_at: Timestamp, expires_at: Timestamp, now: Timestamp) -> bool {
    let whole = expires_at.0.saturating_sub(issued_at.0);
    expires_at.0.saturating_sub(now.0) <= whole / 3
}

impl Identity {
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
        issued_at: Timestamp,
        expires_at: Timestamp,
    ) -> Self {
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Self { chain, key, issued_at, expires_at }
    }

    /// That of a file; none when there is no file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or understood.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        let Some(stored) = file::load(path)? else { return Ok(None) };
        let (chain, key) = stored.open()?;
        Ok(Some(Self::new(chain, &key, stored.issued_at, stored.expires_at)))
    }

    /// Keeps it in a file that its owner alone can read.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let key = self.key_pair().map_err(io::Error::other)?;
        file::save(path, &IdentityFile::new(&self.chain, &key, self.issued_at, self.expires_at))
    }

    /// The same key with what an authority said of it anew.
    ///
    /// # Errors
    ///
    /// When what it sent has no certificates.
    pub fn renewed(&self, signed: &Signed, now: Timestamp) -> io::Result<Self> {
        let (chain, key) = (file::from_pem(&signed.certificates)?, self.key.clone_key());
        Ok(Self { chain, key, issued_at: now, expires_at: signed.expires_at })
    }

    /// The key that is said something of.
    ///
    /// # Errors
    ///
    /// When the key cannot be used.
    pub fn public_key(&self) -> Result<PublicKey, AuthorityError> {
        Ok(PublicKey::of(&self.key_pair()?))
    }

    /// When what is said of the key was said.
    pub fn issued_at(&self) -> Timestamp {
        self.issued_at
    }

    /// From when on it is of no use.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// True once it is of no use.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// True once it should be renewed: a third of its time is left.
    pub fn is_due(&self, now: Timestamp) -> bool {
        is_due(self.issued_at, self.expires_at, now)
    }

    /// Whom it speaks for; nobody, when it is an authority's.
    pub fn name(&self) -> Option<Name> {
        Peer::of(Some(&self.chain)).name().cloned()
    }

    /// The root that it goes back to.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("a chain has a certificate")
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn key_pair(&self) -> Result<KeyPair, AuthorityError> {
        let key = PrivateKeyDer::from(self.key.clone_key());
        Ok(KeyPair::from_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256)?)
    }

    fn certified(&self) -> Result<CertifiedKey, rustls::Error> {
        let key = PrivateKeyDer::from(self.key.clone_key());
        CertifiedKey::from_der(self.chain.clone(), key, &provider())
    }
}

/// The identity of a process, which is renewed while connections are made with it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Credentials {
    now: Arc<RwLock<Arc<CertifiedKey>>>,
    roots: Arc<RootCertStore>,
}

impl Credentials {
    /// Those of an identity.
    ///
    /// # Errors
    ///
    /// When its key does not fit its certificate.
    pub fn new(identity: &Identity) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(identity.root().clone())?;
        let now = Arc::new(RwLock::new(Arc::new(identity.certified()?)));
        Ok(Self { now, roots: Arc::new(roots) })
    }

    /// Shows another identity of the same world from now on.
    ///
    /// # Errors
    ///
    /// When its key does not fit its certificate; then nothing is changed.
    pub fn replace(&self, identity: &Identity) -> Result<(), rustls::Error> {
        let certified = Arc::new(identity.certified()?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
