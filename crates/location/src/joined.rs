//! A location on another machine than the global plane's: how it joins, and as whom it speaks from then on.

use std::path::{Path, PathBuf};

use http::Method;
use longshore_link::{CallError, Client, Endpoint, Endpoints, Followed, now};
use longshore_trust::{
    AuthorityError, Credentials, Identity, JoinToken, LocationAuthority, LocationJoinRequest, Name,
    NewKey, Signed, client_config, joining_config,
};
use longshore_types::LocationName;

/// The file of a location's authority in its data directory.
pub(crate) const AUTHORITY_FILE: &str = "authority.json";

/// Why a location cannot join, or be one that has.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The file of its authority cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There is no such file.
    #[error("this location has not joined: there is no {0}")]
    NotJoined(PathBuf),
    /// The address of the global plane is none.
    #[error("the token is of no use: {0}")]
    Address(String),
    /// The global plane does not let it in, or cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no key to be had, or it signs for nobody.
    #[error(transparent)]
    Key(#[from] AuthorityError),
    /// What the global plane gave is of no use.
    #[error("the certificate is of no use")]
    Certificate(#[from] longshore_trust::TlsError),
}

/// Joins the global plane by a token: makes the key of an authority, has the root sign it, and keeps both in
/// `data_dir`.
///
/// # Errors
///
/// When the global plane cannot be reached or refuses, or the file cannot be written.
pub async fn join(token: &JoinToken, data_dir: &Path) -> Result<(), JoinError> {
    let endpoint = Endpoint::Tls(token.address.clone());
    let endpoint: Endpoint = endpoint.to_string().parse().map_err(JoinError::Address)?;
    let global = Client::secured(endpoint, joining_config(token.root)?, Name::Global);
    let key = NewKey::generate()?;
    let request = LocationJoinRequest {
        secret: token.secret.clone(),
        location: token.location.clone(),
        key: key.public(),
    };
    let signed: Signed = global.call(Method::POST, "/join", Some(&request)).await?;
    let file = data_dir.join(AUTHORITY_FILE);
    let failed = |source| JoinError::File { path: file.clone(), source };
    let identity = key.signed(&signed, now()).map_err(failed)?;
    identity.save(&file).map_err(failed)
}

/// What a location has by having joined.
pub(crate) struct Joined {
    pub authority: LocationAuthority,
    pub credentials: Credentials,
}

impl Joined {
    /// What is kept in the data directory of a location.
    pub fn open(location: &LocationName, data_dir: &Path) -> Result<Self, JoinError> {
        let file = data_dir.join(AUTHORITY_FILE);
        let loaded = Identity::load(&file);
        let loaded = loaded.map_err(|source| JoinError::File { path: file.clone(), source })?;
        let identity = loaded.ok_or(JoinError::NotJoined(file))?;
        let authority = LocationAuthority::new(location.clone(), &identity)?;
        let own = authority.identify(&Name::Location(location.clone()), now())?;
        Ok(Self { authority, credentials: Credentials::new(&own)? })
    }

    /// The global plane, called as this location.
    pub fn global(&self, endpoints: Endpoints) -> Result<Followed, JoinError> {
        Ok(Followed::secured(endpoints, client_config(&self.credentials)?, Name::Global))
    }
}
