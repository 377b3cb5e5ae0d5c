//! The registry, as a location calls it: that of this machine, or the one that the global plane names.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::{HeaderValue, Method};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Endpoint, Followed, Refusal};
use longshore_store::{Record, Store, Transaction};
use longshore_trust::{Name, RegistryAccess, RegistryTold, client_config};
use longshore_types::{Digest, Repository};
use serde::{Deserialize, Serialize};

use crate::LocationError;
use crate::elsewhere::KeepError;
use crate::trust::Trust;

/// How soon the global plane is asked again where the registry is, when it fell silent.
const HEAR_AGAIN: Duration = Duration::from_secs(1);

/// The path of a blob.
pub fn blob_path(repository: &Repository, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// A part of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// From which byte on.
    pub from: u64,
    /// How many; all that follow when it is not said.
    pub n_bytes: Option<NonZeroU64>,
}

impl Part {
    /// These bytes, if there are any.
    pub fn of(bytes: Range<u64>) -> Option<Self> {
        let n_bytes = NonZeroU64::new(bytes.end.checked_sub(bytes.start)?)?;
        Some(Self { from: bytes.start, n_bytes: Some(n_bytes) })
    }

    /// As the registry is asked for it; none for the whole.
    pub fn header(self) -> Option<(&'static str, HeaderValue)> {
        let range = match (self.from, self.n_bytes) {
            (0, None) => return None,
            (from, None) => format!("bytes={from}-"),
            (from, Some(n_bytes)) => {
                format!("bytes={from}-{}", from.saturating_add(n_bytes.get() - 1))
            }
        };
        Some(("range", HeaderValue::from_str(&range).expect("digits are fine in a header")))
    }

    /// Which bytes that are of a blob of this size; nothing when they are none.
    pub fn within(self, size: u64) -> Option<Range<u64>> {
        let end = self.n_bytes.map_or(size, |n_bytes| self.from.saturating_add(n_bytes.get()));
        (self.from < size).then_some(self.from..end.min(size))
    }
}

/// In the store, what the global plane said last of the registry.
const TOLD: &str = "/registry";

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct ToldRecord(RegistryTold);

impl Record for ToldRecord {
    const KIND: &'static str = "registry-told";
}

/// The registry.
pub enum Registry {
    /// On this machine.
    Here(Client),
    /// On another, which the global plane names.
    Elsewhere {
        /// Who names it.
        global: Followed,
        /// As whom it is called.
        trust: Arc<Trust>,
        /// Keeps what was named, for a start while the global plane is away.
        store: Arc<dyn Store>,
        /// What was named.
        named: Mutex<Named>,
    },
}

/// What the global plane said of the registry.
#[derive(Default)]
pub struct Named {
    /// What it tells now; nothing before it told anything, as one of an earlier release.
    told: Option<RegistryTold>,
    /// The registry, once it was called.
    client: Option<Called>,
}

/// The registry as it is called.
#[derive(Clone)]
pub struct Called {
    client: Client,
    /// Whether it is believed what it says that it converted.
    pub is_own: bool,
}

impl Registry {
    /// That of the global plane, where it was last while that says nothing.
    pub async fn elsewhere(
        global: Followed,
        trust: Arc<Trust>,
        store: Arc<dyn Store>,
    ) -> Result<Self, LocationError> {
        let stored = store.get(TOLD).await?;
        let told = stored.map(|stored| stored.decode::<ToldRecord>()).transpose()?;
        let named = Named { told: told.map(|ToldRecord(told)| told), client: None };
        Ok(Self::Elsewhere { global, trust, store, named: Mutex::new(named) })
    }

    /// How it is called now.
    pub async fn called(&self) -> Result<Called, Refusal> {
        let (global, trust, named) = match self {
            Self::Here(client) => return Ok(Called { client: client.clone(), is_own: true }),
            Self::Elsewhere { global, trust, named, .. } => (global, trust, named),
        };
        let (told, known) = {
            let named = named.lock().unwrap_or_else(PoisonError::into_inner);
            (named.told.clone(), named.client.clone())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let access = match told.as_ref().and_then(|told| told.access.clone()) {
            Some(access) => access,
            // It says why there is none.
            None => ask(global, trust).await?,
        };
        let none = || {
            let detail = "this location has no certificate yet; try again";
            Refusal(Problem::new(ProblemCode::Unavailable, detail))
        };
        let config = client_config(&trust.credentials().ok_or_else(none)?).map_err(|_| none())?;
        let client = Client::secured(Endpoint::Tls(access.address), config, Name::Registry);
        let client = client.with_token(access.token.as_str());
        let called = Called { client, is_own: access.is_own };
        let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
        // What it is told meanwhile may be that this one was removed.
        if named.told == told {
            named.client = Some(called.clone());
        }
        Ok(called)
    }

    /// Has it called anew: it may have moved, or know its tokens no more.
    fn forget(&self) {
        if let Self::Elsewhere { named, .. } = self {
            named.lock().unwrap_or_else(PoisonError::into_inner).client = None;
        }
    }

    /// Hears from the global plane where the registry is, and at once when that changes: one that was removed is not
    /// called any more. While the global plane is away, what it said last holds. Never ends.
    pub async fn follow(&self) {
        let Self::Elsewhere { global, trust, store, named } = self else { return };
        let path = format!("/link/locations/{}/registry/told", trust.location);
        let mut kept = named.lock().unwrap_or_else(PoisonError::into_inner).told.clone();
        loop {
            match global.watch::<RegistryTold>(&path).await {
                Ok(mut news) => {
                    while let Some(Ok(told)) = news.next().await {
                        take(named, &told);
                        // Where that fails it is heard once more, and tried again.
                        if kept.as_ref() != Some(&told) {
                            match keep(store.as_ref(), &told).await {
                                Ok(()) => kept = Some(told),
                                Err(error) => {
                                    let error = &error as &dyn std::error::Error;
                                    tracing::warn!(error, "where the registry is is not kept");
                                    break;
                                }
                            }
                        }
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "it is not told where the registry is");
                }
            }
            tokio::time::sleep(HEAR_AGAIN).await;
        }
    }

    /// Asks for what is at a path.
    pub async fn send(
        &self,
        path: &str,
        header: Option<(&'static str, HeaderValue)>,
    ) -> Result<http::Response<hyper::body::Incoming>, Refusal> {
        self.send_by(self.called().await?, path, header).await
    }

    /// The same of one that is known how to call.
    pub async fn send_by(
        &self,
        called: Called,
        path: &str,
        header: Option<(&'static str, HeaderValue)>,
    ) -> Result<http::Response<hyper::body::Incoming>, Refusal> {
        self.exchange(Method::GET, called, path, header).await
    }

    /// Refuses a blob that it would not give of a repository.
    pub async fn check_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let path = blob_path(repository, digest);
        self.exchange(Method::HEAD, self.called().await?, &path, None).await.map(drop)
    }

    async fn exchange(
        &self,
        method: Method,
        Called { mut client, .. }: Called,
        path: &str,
        header: Option<(&'static str, HeaderValue)>,
    ) -> Result<http::Response<hyper::body::Incoming>, Refusal> {
        if let Some((name, value)) = header {
            client = client.with_header(name, value);
        }
        let answer = client.send(method, path, None::<&()>).await;
        answer
            .inspect_err(|error| match error {
                // It is still there: this it has not.
                CallError::Status { status: 404, .. } => {}
                _ => self.forget(),
            })
            .map_err(failed)
    }
}

/// Takes over what was told of the registry. It holds from now on, whether it can be kept or not.
fn take(named: &Mutex<Named>, told: &RegistryTold) {
    let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
    if named.told.as_ref() != Some(told) {
        *named = Named { told: Some(told.clone()), client: None };
    }
}

async fn keep(store: &dyn Store, told: &RegistryTold) -> Result<(), KeepError> {
    let value = longshore_store::record::encode(&ToldRecord(told.clone()))?;
    store.commit(Transaction::new().put(TOLD, value)).await?;
    Ok(())
}

/// Asks the global plane where the registry is.
async fn ask(global: &Followed, trust: &Trust) -> Result<RegistryAccess, Refusal> {
    let path = format!("/link/locations/{}/registry", trust.location);
    global.call(Method::GET, &path, None::<&()>).await.map_err(failed)
}

fn failed(error: CallError) -> Refusal {
    let (code, detail) = match error {
        CallError::Status { status: 404, .. } => {
            (ProblemCode::NotFound, "the registry does not have it".to_owned())
        }
        error => (ProblemCode::Unavailable, format!("the registry does not give it: {error}")),
    };
    Problem::new(code, detail).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_asked_of_the_registry_as_it_was_asked_for() {
        let last = u64::MAX;
        for (from, n_bytes, header, of_ten) in [
            (0, 0, None, Some(0..10)),
            (5, 0, Some("bytes=5-"), Some(5..10)),
            (5, 3, Some("bytes=5-7"), Some(5..8)),
            (0, 1, Some("bytes=0-0"), Some(0..1)),
            (9, 5, Some("bytes=9-13"), Some(9..10)),
            (10, 1, Some("bytes=10-10"), None),
            (last, 2, Some("bytes=18446744073709551615-18446744073709551615"), None),
        ] {
            let part = Part { from, n_bytes: NonZeroU64::new(n_bytes) };
            let found = part.header().map(|(_, range)| range.to_str().unwrap().to_owned());
            assert_eq!((found.as_deref(), part.within(10)), (header, of_ten), "{part:?}");
        }
        assert_eq!(Part::of(5..8).unwrap().header().unwrap().1, "bytes=5-7");
        assert_eq!((Part::of(5..5), Part { from: 0, n_bytes: None }.within(0)), (None, None));
    }
}
