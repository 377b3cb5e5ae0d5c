//! A location on another machine than the global plane's: how it joins, and as whom it speaks from then on.

use std::path::Path;

use longshore_link::{Endpoints, Followed, JoinError, expired_config, joined_identity, now};
use longshore_trust::{
    Credentials, Identity, JoinToken, LocationAuthority, LocationJoinRequest, Name, client_config,
};
use longshore_types::LocationName;

/// The file of a location's authority in its data directory.
pub(crate) const AUTHORITY_FILE: &str = "authority.json";

/// Joins the global plane as `location` by a token for that: makes the key of an authority, has the root sign it, and keeps both in
/// `data_dir`.
///
/// # Errors
///
/// When the global plane cannot be reached or refuses, or the file cannot be written.
pub async fn join(
    token: &JoinToken,
    location: LocationName,
    data_dir: &Path,
) -> Result<(), JoinError> {
    let server = (Name::Global, "/join");
    longshore_link::join(token, server, &data_dir.join(AUTHORITY_FILE), |key| LocationJoinRequest {
        secret: token.secret.clone(),
        location,
        key,
    })
    .await
}

/// What a location has by having joined.
pub(crate) struct Joined {
    pub authority: LocationAuthority,
    pub credentials: Credentials,
    identity: Identity,
}

impl Joined {
    /// What is kept in the data directory of a location.
    pub fn open(location: &LocationName, data_dir: &Path) -> Result<Self, JoinError> {
        let identity = joined_identity(&data_dir.join(AUTHORITY_FILE))?;
        let authority = LocationAuthority::new(location.clone(), &identity)?;
        let own = authority.identify(&Name::Location(location.clone()), now())?;
        Ok(Self { authority, credentials: Credentials::new(&own)?, identity })
    }

    /// The global plane, called as this location.
    pub fn global(&self, endpoints: Endpoints) -> Result<Followed, JoinError> {
        Ok(Followed::secured(endpoints, client_config(&self.credentials)?, Name::Global))
    }

    /// The same, showing nothing.
    pub fn bare(&self, endpoints: Endpoints) -> Result<Followed, JoinError> {
        Ok(Followed::secured(endpoints, expired_config(&self.identity)?, Name::Global))
    }
}
