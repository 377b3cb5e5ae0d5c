//! The registry on another machine than the control plane's: as whom it speaks, and that its certificate stays good.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use longshore_api::ProblemCode;
use longshore_link::{
    CallError, Endpoints, Followed, JoinError, KeptIdentity, expired_config, joined_identity,
};
use longshore_trust::{
    CertificateRequest, Credentials, JoinToken, Name, RegistryJoinRequest, RegistryPlace, Signed,
    client_config,
};

/// How often to say where it is: a store that was restored may know of an earlier place.
const TELL: Duration = Duration::from_secs(10);
/// How soon again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Joins the control plane by a token: makes a key, has the root sign it, and keeps both in `file`.
///
/// # Errors
///
/// When the control plane cannot be reached or refuses, or the file cannot be written.
pub async fn join(token: &JoinToken, file: &Path) -> Result<(), JoinError> {
    let server = (Name::Global, "/registry/join");
    longshore_link::join(token, server, file, |key| RegistryJoinRequest {
        secret: token.secret.clone(),
        key,
    })
    .await
}

/// What a registry has by having joined.
pub struct Joined {
    identity: KeptIdentity,
    global: Followed,
    /// The same, showing nothing.
    bare: Followed,
}

impl Joined {
    /// What is kept in `file`, for speaking to the control planes at `endpoints`.
    pub fn open(file: PathBuf, endpoints: Endpoints) -> Result<Self, JoinError> {
        let identity = joined_identity(&file)?;
        if identity.name() != Some(Name::Registry) {
            return Err(JoinError::Another { path: file, name: "a registry".to_owned() });
        }
        let kept = KeptIdentity::new(file, &identity)?;
        let config = client_config(kept.credentials())?;
        let global = Followed::secured(endpoints.clone(), config, Name::Global);
        let bare = Followed::secured(endpoints, expired_config(&identity)?, Name::Global);
        Ok(Self { identity: kept, global, bare })
    }

    /// The control plane, called as the registry.
    pub fn global(&self) -> Followed {
        self.global.clone()
    }

    /// What is shown to who connects.
    pub fn credentials(&self) -> Credentials {
        self.identity.credentials().clone()
    }

    /// Keeps the certificate good. Never ends.
    pub async fn keep(self: Arc<Self>) {
        let this = &self;
        let ask = |request, expired| async move {
            let (global, path) = match expired {
                false => (&this.global, "/link/registry/certificate"),
                // Nobody lets in who shows this.
                true => (&this.bare, "/registry/renew"),
            };
            global.call::<CertificateRequest, Signed>(Method::POST, path, Some(&request)).await
        };
        self.identity.keep(ask).await;
    }

    /// Says where this registry is, again and again. Never ends.
    pub async fn tell_place(self: Arc<Self>, place: RegistryPlace) {
        let path = "/link/registry/place";
        loop {
            let wait = match self.global.call::<_, ()>(Method::POST, path, Some(&place)).await {
                Ok(()) => TELL,
                Err(CallError::Refused(problem)) if problem.code == ProblemCode::Forbidden => {
                    tracing::error!(
                        "the control plane knows this registry no more, so nothing is pushed and no \
                         location pulls: {problem}"
                    );
                    TELL
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "cannot say where this registry is");
                    RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}
