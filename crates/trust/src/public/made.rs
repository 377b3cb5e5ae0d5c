//! An authority for those who want TLS and have no certificate: users trust it by a file.
//!
//! It is none of the world's: whoever trusts it trusts no role by that, and who has its key can be no role.
//! Its certificates are made anew as often as one likes, so that only one file ever has to be carried to users.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use longshore_types::Timestamp;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::authority::{AuthorityError, authority_params, called, stored_root, valid};
use crate::{Fingerprint, file};

/// How long a certificate is good: as long as clients take one at all.
const SERVER: Duration = Duration::from_hours(397 * 24);
/// What the authority is called where users look at it.
const CALLED: &str = "Longshore, made for trying";

/// The authority.
pub struct UserAuthority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl UserAuthority {
    /// The one in a file, which is made when it is not there.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, understood or made.
    pub fn open(path: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let (key, certificate) = stored_root(path, authority_params(CALLED.to_owned()), now)?;
        Ok(Self { key, certificate })
    }

    /// Its certificate in PEM: what users trust.
    pub fn certificate(&self) -> String {
        file::to_pem(std::slice::from_ref(&self.certificate))
    }

    /// By which people know that certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A certificate for names and addresses, and its key, both in PEM.
    ///
    /// # Errors
    ///
    /// When one of them is neither, or the certificate cannot be made.
    pub fn issue(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<(String, Zeroizing<String>), AuthorityError> {
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(authority_params(CALLED.to_owned()), &self.key);
        let params = valid(server_params(names)?, now, SERVER)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let chain = file::to_pem(&[certificate.der().clone()]);
        Ok((chain, Zeroizing::new(key.serialize_pem())))
    }
}

fn server_params(names: &[String]) -> Result<CertificateParams, AuthorityError> {
    let mut params = called(names.first().cloned().unwrap_or_default());
    let name = |name: &String| match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok::<_, rcgen::Error>(SanType::DnsName(name.as_str().try_into()?)),
    };
    params.subject_alt_names = names.iter().map(name).collect::<Result<_, _>>()?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}
