//! The registry for locations of other machines: the same, over TLS, with a certificate from the global plane.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use http::Method;
use longshore_link::{CallError, Followed, Listener, Service, now};
use longshore_trust::{AuthorityError, CertificateRequest, Credentials, Identity, NewKey, Signed};

/// How often to look whether the certificate should be renewed, and how long to wait before a first one is
/// asked for again.
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("the global plane does not give one")]
    Call(#[from] CallError),
    #[error(transparent)]
    Key(#[from] AuthorityError),
    #[error("its file cannot be used")]
    File(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] longshore_trust::TlsError),
}

/// Serves `router` from when there is a certificate, which is kept in `file` and kept good. Never ends.
pub async fn serve(
    listener: Listener,
    router: Router,
    global: Followed,
    file: PathBuf,
    service: Service,
) {
    let mut waiting = Some((listener, router));
    let mut shown: Option<Credentials> = None;
    loop {
        let wait = match identity(&global, &file, shown.is_some()).await {
            Ok(Some(identity)) => match show(&mut shown, &identity) {
                Ok(()) => LOOK,
                Err(error) => failed(&error, shown.is_some()),
            },
            Ok(None) => LOOK,
            Err(error) => failed(&error, shown.is_some()),
        };
        if let Some(credentials) = &shown
            && let Some((listener, router)) = waiting.take()
        {
            let served = listener.serve_with(credentials.clone(), router, service.shutdown());
            service.spawn("locations", served);
        }
        tokio::time::sleep(wait).await;
    }
}

fn failed(error: &CertificateError, has_one: bool) -> Duration {
    tracing::warn!(error = error as &dyn std::error::Error, "no new certificate for now");
    if has_one { LOOK } else { RETRY }
}

fn show(shown: &mut Option<Credentials>, identity: &Identity) -> Result<(), CertificateError> {
    match shown {
        Some(credentials) => credentials.replace(identity)?,
        None => *shown = Some(Credentials::new(identity)?),
    }
    Ok(())
}

/// The identity to show, when it is another than what is shown already.
async fn identity(
    global: &Followed,
    file: &std::path::Path,
    is_shown: bool,
) -> Result<Option<Identity>, CertificateError> {
    let kept = Identity::load(file)?;
    if let Some(kept) = kept.filter(|kept| !kept.is_due(now())) {
        return Ok((!is_shown).then_some(kept));
    }
    let key = NewKey::generate()?;
    let request = CertificateRequest { key: key.public() };
    let path = "/link/registry/certificate";
    let signed: Signed = global.call(Method::POST, path, Some(&request)).await?;
    let identity = key.signed(&signed, now())?;
    identity.save(file)?;
    Ok(Some(identity))
}
