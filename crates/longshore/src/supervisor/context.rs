//! Offering a platform that was just started as the one that later commands mean.

use std::path::Path;

use super::readiness;
use crate::context_file::{self, Context, Endpoints};

/// Writes the context file, unless it names another platform that still answers. A failure is only
/// told: the platform runs, and is reached with flags.
pub async fn offer(endpoints: &Endpoints, token_file: &Path) {
    let Some(path) = context_file::path() else {
        tracing::debug!("no home directory, so no context file");
        return;
    };
    let ours = Context { endpoints: endpoints.clone(), token_file: token_file.to_owned() };
    let present = match context_file::read(&path) {
        Ok(present) => present,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the context file cannot be read; replacing it");
            None
        }
    };
    if present.as_ref() == Some(&ours) {
        return;
    }
    let other = present.filter(|present| present.endpoints.api != endpoints.api);
    if let Some(Context { endpoints, .. }) = &other {
        let Endpoints { api, socket, .. } = endpoints;
        let at = socket.as_ref().map(|socket| format!("unix:{}", socket.display()));
        if readiness::answers(at.as_ref().unwrap_or(api)).await {
            tracing::info!(
                "commands go on to mean the platform at {api}; for this one say --api {} --token-file {}",
                ours.endpoints.api,
                token_file.display()
            );
            return;
        }
        tracing::info!(
            "the platform at {api} no longer answers; commands mean this one from now on"
        );
    }
    if let Err(error) = context_file::write(&path, &ours) {
        tracing::warn!(path = %path.display(), %error, "cannot write the context file");
    }
}
