//! Who signs: the root for the global plane and for the authorities of locations; each of these for
//! the roles of its location, and for no other name whatever it signs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use longshore_types::{LocationName, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use sha2::Sha256;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::Fingerprint;
use crate::file::{self, IdentityFile};
use crate::identity::{Identity, NewKey, PublicKey};
use crate::name::{Name, subtree};

/// How long the root is good. To change it is to let everything join anew.
const ROOT: Duration = Duration::from_hours(10 * 365 * 24);
/// How long the authority of a location is good: so long it may be without the global plane.
pub const AUTHORITY: Duration = Duration::from_hours(90 * 24);
/// How long a certificate of a role is good.
pub const ROLE: Duration = Duration::from_hours(24);
/// How far the clocks of two machines may be apart.
const SKEW: Duration = Duration::from_secs(300);

/// Why an authority cannot be had, or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its file cannot be used.
    #[error("cannot use the authority in {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A location signs for its own alone.
    #[error("{location} does not sign for {name}")]
    NotOurs {
        /// Who was asked.
        location: LocationName,
        /// For whom.
        name: Box<Name>,
    },
    /// The root does not sign for roles of locations.
    #[error("the authority of location {0} signs for its roles")]
    OfLocation(LocationName),
    /// There is no randomness to be had.
    #[error("cannot read random bytes")]
    Random(#[source] io::Error),
}

/// What an authority says of a key, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Signed {
    /// The certificate and those above it, the root last, as PEM.
    pub certificates: String,
    /// From when on it is of no use.
    pub expires_at: Timestamp,
}

/// The root of a world.
pub struct RootAuthority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl RootAuthority {
    /// The root in a file, which is made when it is not there.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, understood or made.
    pub fn open(path: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let (key, certificate) = stored_root(path, root_params(), now)?;
        Ok(Self { key, certificate })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Lets a location sign for its roles with a key of its own.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be made.
    pub fn sign_location(
        &self,
        location: &LocationName,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<Signed, AuthorityError> {
        let params = valid(location_params(location), now, AUTHORITY)?;
        let issuer = Issuer::new(root_params(), &self.key);
        let certificate = params.signed_by(key, &issuer)?;
        let chain = [certificate.der().clone(), self.certificate.clone()];
        Ok(Signed { certificates: file::to_pem(&chain), expires_at: after(now, AUTHORITY) })
    }

    /// Says of a key that it is that of a role which belongs to no location.
    ///
    /// # Errors
    ///
    /// When the role is one of a location, or the certificate cannot be made.
    pub fn sign(
        &self,
        name: &Name,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<Signed, AuthorityError> {
        if let Some(location) = name.location() {
            return Err(AuthorityError::OfLocation(location.clone()));
        }
        let issuer = Issuer::new(root_params(), &self.key);
        let certificate = valid(role_params(name), now, ROLE)?.signed_by(key, &issuer)?;
        let chain = [certificate.der().clone(), self.certificate.clone()];
        Ok(Signed { certificates: file::to_pem(&chain), expires_at: after(now, ROLE) })
    }

    /// A new identity of such a role that lives in this process.
    ///
    /// # Errors
    ///
    /// As of [`Self::sign`].
    pub fn identify(&self, name: &Name, now: Timestamp) -> Result<Identity, AuthorityError> {
        let key = NewKey::generate()?;
        let signed = self.sign(name, &key.public(), now)?;
        Ok(key.signed(&signed, now).expect("what we signed has certificates"))
    }

    /// A secret for a purpose, the same for ever, that says nothing of the root or of others.
    pub fn secret_for(&self, purpose: &str) -> Zeroizing<String> {
        let key = Zeroizing::new(self.key.serialize_der());
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key may have any length");
        mac.update(b"longshore secret for ");
        mac.update(purpose.as_bytes());
        let hex = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Zeroizing::new(hex)
    }
}

/// The authority of a location.
pub struct LocationAuthority {
    location: LocationName,
    key: KeyPair,
    /// Its certificate and the root.
    chain: Vec<CertificateDer<'static>>,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

impl LocationAuthority {
    /// That of a location with the identity that the root gave to its key.
    ///
    /// # Errors
    ///
    /// When its key cannot be used.
    pub fn new(location: LocationName, identity: &Identity) -> Result<Self, AuthorityError> {
        let key = identity.key_pair()?;
        let chain = identity.chain().to_vec();
        let (issued_at, expires_at) = (identity.issued_at(), identity.expires_at());
        Ok(Self { location, key, chain, issued_at, expires_at })
    }

    /// Whose it is.
    pub fn location(&self) -> &LocationName {
        &self.location
    }

    /// By which its key is known to those who see what it signed.
    pub fn key(&self) -> Fingerprint {
        PublicKey::of(&self.key).fingerprint()
    }

    /// True once it should be renewed: a third of its time is left.
    pub fn is_due(&self, now: Timestamp) -> bool {
        crate::identity::is_due(self.issued_at, self.expires_at, now)
    }

    /// Says of a key that it is that of a role of this location. Good for a day, or less when the
    /// authority itself ends sooner.
    ///
    /// # Errors
    ///
    /// When the role is not one of this location, or the certificate cannot be made.
    pub fn sign(
        &self,
        name: &Name,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<Signed, AuthorityError> {
        if name.location() != Some(&self.location) {
            let (location, name) = (self.location.clone(), Box::new(name.clone()));
            return Err(AuthorityError::NotOurs { location, name });
        }
        self.sign_any(name, key, now)
    }

    fn sign_any(
        &self,
        name: &Name,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<Signed, AuthorityError> {
        let expires_at = after(now, ROLE).min(self.expires_at);
        let issuer = Issuer::new(location_params(&self.location), &self.key);
        let certificate =
            valid_until(role_params(name), now, expires_at)?.signed_by(key, &issuer)?;
        let chain: Vec<_> =
            [certificate.der().clone()].into_iter().chain(self.chain.iter().cloned()).collect();
        Ok(Signed { certificates: file::to_pem(&chain), expires_at })
    }

    /// A new identity of a role of this location that lives in this process.
    ///
    /// # Errors
    ///
    /// As of [`Self::sign`].
    pub fn identify(&self, name: &Name, now: Timestamp) -> Result<Identity, AuthorityError> {
        let key = NewKey::generate()?;
        let signed = self.sign(name, &key.public(), now)?;
        Ok(key.signed(&signed, now).expect("what we signed has certificates"))
    }

    /// What one that obeys nobody would do.
    #[cfg(test)]
    pub(crate) fn forge(&self, name: &Name, now: Timestamp) -> Identity {
        let key = NewKey::generate().unwrap();
        key.signed(&self.sign_any(name, &key.public(), now).unwrap(), now).unwrap()
    }
}

/// The key and the certificate of an authority that nobody is above, in a file that is made when it is not
/// there.
pub(crate) fn stored_root(
    path: &Path,
    params: CertificateParams,
    now: Timestamp,
) -> Result<(KeyPair, CertificateDer<'static>), AuthorityError> {
    let failed = |source| AuthorityError::File { path: path.to_owned(), source };
    let stored = match file::load(path).map_err(failed)? {
        Some(stored) => stored,
        None => {
            let key = KeyPair::generate()?;
            let certificate = valid(params, now, ROOT)?.self_signed(&key)?;
            let expires_at = after(now, ROOT);
            let stored = IdentityFile::new(&[certificate.der().clone()], &key, now, expires_at);
            file::save(path, &stored).map_err(failed)?;
            stored
        }
    };
    let (chain, key) = stored.open().map_err(failed)?;
    let certificate = chain.into_iter().next().ok_or_else(|| {
        failed(io::Error::new(io::ErrorKind::InvalidData, "it has no certificate"))
    })?;
    Ok((key, certificate))
}

fn after(now: Timestamp, span: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
}

pub(crate) fn valid(
    params: CertificateParams,
    now: Timestamp,
    span: Duration,
) -> Result<CertificateParams, AuthorityError> {
    valid_until(params, now, after(now, span))
}

fn valid_until(
    mut params: CertificateParams,
    now: Timestamp,
    end: Timestamp,
) -> Result<CertificateParams, AuthorityError> {
    let begin = Timestamp(now.0.saturating_sub(u64::try_from(SKEW.as_millis()).unwrap_or(0)));
    (params.not_before, params.not_after) = (moment(begin), moment(end));
    let mut serial: [u8; 16] = crate::random().map_err(AuthorityError::Random)?;
    serial[0] &= 0x7f; // A serial number is positive.
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn moment(at: Timestamp) -> OffsetDateTime {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    // Times that a certificate cannot say are none that a clock shows.
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

pub(crate) fn called(name: String) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn root_params() -> CertificateParams {
    authority_params("Longshore root".to_owned())
}

/// Of an authority that nobody is above.
pub(crate) fn authority_params(name: String) -> CertificateParams {
    let mut params = called(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Of an authority that signs no further authorities, and no name outside of its location's.
fn location_params(location: &LocationName) -> CertificateParams {
    let mut params = called(format!("Longshore location {location}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(subtree(location))],
        excluded_subtrees: Vec::new(),
    });
    params
}

fn role_params(name: &Name) -> CertificateParams {
    let mut params = called("Longshore role".to_owned());
    let dns = name.to_string().try_into().expect("our names are plain letters");
    params.subject_alt_names = vec![rcgen::SanType::DnsName(dns)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}
