//! Other registries, whose images this one gives as if they were its own: with an upstream `docker.io`, users,
//! nodes and docker pull `docker.io/library/nginx` from here.
//!
//! What is not here is fetched when somebody asks for it: manifests by digest or tag, blobs whole, handed on while
//! they come ([`fetch`]). All of it is kept in repositories like others, so rights, pins, leases, the converter and
//! an object store have to do with it as with any image; what nobody has pulled for as long as an image without a tag
//! is kept goes. What a tag names is believed for a minute and asked for anew then; while the upstream is away the last
//! answer holds, and what is here is given.
//!
//! An upstream is a stranger. It decides what its own repositories are made of and nothing else: nothing is linked from
//! what other repositories have because it says that it has the same, and bytes get their name when they have their
//! digest. Whoever may pull from a repository below its name may have us fetch there; nobody pushes there.
//!
//! Rejected: a cache of its own beside the repositories, which would need its own collection, its own rights and a
//! second way for nodes; to relay without keeping, with which an image of a release would be gone with its upstream;
//! redirects to the upstream, with which every node would need its credentials and a way there.

mod fetch;
mod manifests;
mod mirrors;
mod setting;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_image::client::{
    Credentials, DockerConfig, DockerConfigError, RegistryClient, RegistryClientError, Trust,
};
use longshore_types::{Digest, Repository};
use tokio::task::JoinSet;

use crate::refusal::Refusal;
use crate::storage::{Storage, StorageError};

pub(crate) use fetch::{Coming, Joined, join};
pub(crate) use manifests::find as find_manifest;
use mirrors::Upstream;
pub use setting::{UpstreamSource, UpstreamSourceError};

/// Which registries are asked for what is not here, and how.
#[derive(Debug, Clone)]
pub struct UpstreamOptions {
    /// Each under its name; several of one name are tried in their order.
    pub sources: Vec<UpstreamSource>,
    /// Who we are to them. Default: nobody.
    pub credentials: Option<DockerConfig>,
    /// Certificates, in PEM, by which they are believed beside those that the machine trusts.
    pub ca: Option<PathBuf>,
    /// How long a tag is believed to name what it named. Default: 60 s.
    pub fresh: Duration,
    /// How long one that fails is passed over. Default: 60 s.
    pub pass_over: Duration,
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { sources: Vec::new(), credentials: None, ca: None, fresh: minute, pass_over: minute }
    }
}

/// Why a registry cannot have an upstream.
#[derive(Debug, thiserror::Error)]
pub enum OpenUpstreamError {
    /// What is said of who we are to it is not understood.
    #[error("logging in to {upstream}")]
    Credentials {
        /// Which one.
        upstream: UpstreamSource,
        /// What is wrong.
        #[source]
        source: Box<DockerConfigError>,
    },
    /// Nobody could speak with it.
    #[error("speaking to {upstream}")]
    Client {
        /// Which one.
        upstream: UpstreamSource,
        /// What is wrong.
        #[source]
        source: Box<RegistryClientError>,
    },
    /// The repositories below its name are looked at.
    #[error("looking for what was pushed")]
    Look(#[source] StorageError),
    /// Somebody pushed to where its images would be.
    #[error(
        "images were pushed to {repository}, so no other registry can be {name} here; give it another name"
    )]
    Taken {
        /// The name.
        name: String,
        /// The repository.
        repository: Repository,
    },
}

/// All upstreams, and what is on its way from them.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    by_name: BTreeMap<String, Arc<Upstream>>,
    names: Arc<BTreeSet<String>>,
    /// What is being fetched; it ends with the registry.
    tasks: Mutex<JoinSet<()>>,
}

/// A repository here that is one of an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Theirs {
    upstream: Arc<Upstream>,
    /// What the upstream calls it.
    remote: Repository,
}

impl Theirs {
    /// The name of the upstream.
    pub(crate) fn name(&self) -> &str {
        self.upstream.name()
    }

    /// The size in bytes of a blob as the upstream says it.
    pub(crate) async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, Refusal> {
        let remote = &self.remote;
        let asked =
            self.upstream.ask(|client| async move { client.blob_length(remote, digest).await });
        let unknown = || Refusal::blob_unknown(repository, digest);
        let (size, _) = asked.await.map_err(|error| error.into_refusal(unknown))?;
        Ok(size)
    }
}

impl Upstreams {
    /// Prepares to speak with them. Nothing is asked yet.
    pub(crate) fn open(
        options: UpstreamOptions,
        storage: &Storage,
    ) -> Result<Self, OpenUpstreamError> {
        let UpstreamOptions { sources, credentials, ca, fresh, pass_over } = options;
        let mut clients: BTreeMap<String, Vec<(String, RegistryClient)>> = BTreeMap::new();
        for upstream in sources {
            let (name, url) = (upstream.name().to_owned(), upstream.url().to_owned());
            let found = credentials.as_ref().map(|known| known.credentials(upstream.host()));
            let found = match found.transpose() {
                Ok(found) => found.unwrap_or(Credentials::Anonymous),
                Err(error) => {
                    let source = Box::new(error);
                    return Err(OpenUpstreamError::Credentials { upstream, source });
                }
            };
            let trust = ca.as_deref().map_or(Trust::Machine, Trust::Also);
            match RegistryClient::connect(&url, &found, trust) {
                Ok(client) => clients.entry(name).or_default().push((url, client)),
                Err(error) => {
                    let source = Box::new(error);
                    return Err(OpenUpstreamError::Client { upstream, source });
                }
            }
        }
        let names: Arc<BTreeSet<String>> = Arc::new(clients.keys().cloned().collect());
        refuse_taken(storage, &names)?;
        let upstreams = clients.into_iter().map(|(name, clients)| {
            (name.clone(), Arc::new(Upstream::new(name, clients, fresh, pass_over)))
        });
        Ok(Self { by_name: upstreams.collect(), names, tasks: Mutex::default() })
    }

    /// The upstream whose repository this is, when it is one.
    pub(crate) fn of(&self, repository: &Repository) -> Option<Theirs> {
        let (name, rest) = repository.as_str().split_once('/')?;
        let upstream = Arc::clone(self.by_name.get(name)?);
        // What is behind the first part of a repository's name is one.
        Some(Theirs { upstream, remote: rest.parse().ok()? })
    }

    /// By which a repository is known to be of an upstream.
    pub(crate) fn names(&self) -> Arc<BTreeSet<String>> {
        Arc::clone(&self.names)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// Whether a repository is below one of these names.
pub(crate) fn is_below(names: &BTreeSet<String>, repository: &Repository) -> bool {
    let first = repository.as_str().split_once('/').map(|(first, _)| first);
    first.is_some_and(|first| names.contains(first))
}

fn refuse_taken(storage: &Storage, names: &BTreeSet<String>) -> Result<(), OpenUpstreamError> {
    if names.is_empty() {
        return Ok(());
    }
    for repository in storage.catalog().map_err(OpenUpstreamError::Look)? {
        let is_taken = is_below(names, &repository)
            && !storage.is_of_upstream(&repository).map_err(OpenUpstreamError::Look)?;
        if is_taken {
            let name = repository.project().to_owned();
            return Err(OpenUpstreamError::Taken { name, repository });
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // They hold handles, which a panic leaves as they are.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
