//! The places where an upstream is, asked one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use longshore_image::client::{RegistryClient, RegistryClientError};
use longshore_types::{Digest, Repository, chain};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::fetch::State;
use super::lock;
use crate::refusal::{Code, Refusal};

/// So many blobs come from an upstream at a time.
const MAX_FETCHES: usize = 16;

/// Another registry.
#[derive(Debug)]
pub(crate) struct Upstream {
    name: String,
    mirrors: Vec<Mirror>,
    /// How long a tag is believed to name what it named.
    pub(super) fresh: Duration,
    pass_over: Duration,
    /// The manifests that are being asked for.
    pub(super) manifests: Turns,
    /// The blobs that are on their way.
    pub(super) blobs: Mutex<HashMap<(Repository, Digest), watch::Receiver<State>>>,
    pub(super) fetches: Semaphore,
}

/// A place where an upstream is.
#[derive(Debug)]
pub(super) struct Mirror {
    /// Which of them it is.
    pub(super) idx: usize,
    url: String,
    client: RegistryClient,
    passed_over_until: Mutex<Option<Instant>>,
}

/// Why an upstream gave no answer, or none that helps.
#[derive(Debug, thiserror::Error)]
#[error("the upstream {upstream}")]
pub(super) struct Unanswered {
    upstream: String,
    #[source]
    source: RegistryClientError,
}

impl Upstream {
    pub(super) fn new(
        name: String,
        clients: Vec<(String, RegistryClient)>,
        fresh: Duration,
        pass_over: Duration,
    ) -> Self {
        let mirrors = clients.into_iter().enumerate().map(|(idx, (url, client))| {
            let passed_over_until = Mutex::default();
            Mirror { idx, url, client, passed_over_until }
        });
        Self {
            name,
            mirrors: mirrors.collect(),
            fresh,
            pass_over,
            manifests: Turns::default(),
            blobs: Mutex::default(),
            fetches: Semaphore::new(MAX_FETCHES),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was away a moment ago, wherever it is.
    pub(super) fn is_away(&self) -> bool {
        self.mirrors.iter().all(Mirror::is_passed_over)
    }

    /// Asks each place for something until one has an answer, and says which one that was. One that fails is passed
    /// over for a while, but the last, which is asked when nobody else knows; when all are, all are tried, for one of
    /// them may be back.
    pub(super) async fn ask<T, F: Future<Output = Result<T, RegistryClientError>>>(
        &self,
        ask: impl Fn(RegistryClient) -> F,
    ) -> Result<(T, &Mirror), Unanswered> {
        let ready = self.mirrors.iter().filter(|mirror| !mirror.is_passed_over());
        let mut to_ask: Vec<&Mirror> = ready.collect();
        let origin = self.mirrors.last();
        match origin {
            _ if to_ask.is_empty() => to_ask.extend(&self.mirrors),
            // What a mirror does not have it may have.
            Some(origin) if origin.is_passed_over() => to_ask.push(origin),
            _ => {}
        }
        let mut last = None;
        for mirror in to_ask {
            match ask(mirror.client.clone()).await {
                Ok(answer) => {
                    *lock(&mirror.passed_over_until) = None;
                    return Ok((answer, mirror));
                }
                Err(error) => {
                    match is_failure(&error) {
                        true => self.pass_over(mirror, &error),
                        // What is wrong with one thing is not with all of a place.
                        false if error.status().is_none() => {}
                        // A no is an answer.
                        false => *lock(&mirror.passed_over_until) = None,
                    }
                    last = Some(error);
                }
            }
        }
        let source = last.expect("an upstream is somewhere");
        Err(Unanswered { upstream: self.name.clone(), source })
    }

    /// The same with one of them, which gave wrong bytes.
    pub(super) fn pass_over_liar(&self, idx: usize, error: &dyn std::error::Error) {
        self.pass_over(&self.mirrors[idx], error);
    }

    /// Asks elsewhere first for some time.
    pub(super) fn pass_over(&self, mirror: &Mirror, error: &dyn std::error::Error) {
        let until = Instant::now() + self.pass_over;
        let before = lock(&mirror.passed_over_until).replace(until);
        // Told once, and not with each try while it lasts.
        if before.is_none() {
            let (upstream, url) = (&self.name, &mirror.url);
            tracing::warn!(upstream, url, error = chain(error), "an upstream does not do its part");
        }
    }
}

impl Mirror {
    fn is_passed_over(&self) -> bool {
        lock(&self.passed_over_until).is_some_and(|until| Instant::now() < until)
    }
}

/// Whether another place, or the same one later, might do better; a clear no is an answer.
fn is_failure(error: &RegistryClientError) -> bool {
    let is_passing = |status: StatusCode| {
        status.is_server_error()
            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
    };
    let is_of_one =
        matches!(error, RegistryClientError::Answer(_) | RegistryClientError::Digest { .. });
    !is_of_one && error.status().is_none_or(is_passing)
}

impl Unanswered {
    /// Whether it did not answer, or not sensibly; what was known before holds then.
    pub(super) fn is_away(&self) -> bool {
        is_failure(&self.source)
    }

    /// What a client is told; `unknown` when the upstream does not have it.
    pub(super) fn into_refusal(self, unknown: impl FnOnce() -> Refusal) -> Refusal {
        match self.source.status() {
            Some(StatusCode::NOT_FOUND) => unknown(),
            Some(status) if !self.is_away() => {
                tracing::debug!(error = chain(&self), "an upstream refused");
                let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
                let hint =
                    if refused { "; who may pull there, upstream_credentials says" } else { "" };
                let message = format!("{}{hint}", chain(&self));
                Refusal::new(StatusCode::FORBIDDEN, Code::Denied, message)
            }
            _ => Refusal::new(StatusCode::BAD_GATEWAY, Code::Unknown, chain(&self)),
        }
    }
}

/// Who asks for a manifest first; others wait for the answer.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(super) async fn take(&self, key: String) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.0);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(key).or_default())
        };
        turn.lock_owned().await
    }
}
