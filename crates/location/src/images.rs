//! Images for nodes that do not reach the registry, which the location asks for in their place.
//!
//! A node is given the images of its assignments and nothing else: a manifest that an assignment names,
//! and what that refers to; and what the registry converted of these.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use futures_util::StreamExt as _;
use http::{HeaderValue, Method};
use http_body_util::{BodyExt as _, Limited};
use longshore_api::links::{Assignment, ImageHolds};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, Endpoint, Followed, Refusal, Service, relay_whole};
use longshore_store::{Record, Store, Transaction};
use longshore_trust::{Name, RegistryAccess, RegistryTold, client_config};
use longshore_types::{DIFF_ID_ANNOTATION, Digest, NodeImage, NodeName, Repository};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::LocationError;
use crate::elsewhere::KeepError;
use crate::keeper::{Event, Handle};
use crate::prewarm::Prewarm;
use crate::trust::Trust;

/// How soon the global plane is asked again where the registry is, when it fell silent.
const HEAR_AGAIN: Duration = Duration::from_secs(1);
/// The largest manifest that is read, as in the registry.
const MAX_MANIFEST: usize = 4 << 20;
/// How many manifests' references are remembered.
const REMEMBERED: usize = 1024;
/// The most manifests of an index that are looked into.
const MAX_CHILDREN: usize = 64;
/// What may be answered instead of one media type.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// What a node asks for.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    repository: Repository,
    digest: Digest,
    /// From which byte on.
    #[serde(default)]
    from: u64,
    /// How many; all that follow when it is not said, as nodes of the release before do not.
    n_bytes: Option<NonZeroU64>,
}

impl Wanted {
    /// What is asked for.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The part of a blob, as the registry is asked for it; none for the whole.
    fn range(&self) -> Option<HeaderValue> {
        let range = match (self.from, self.n_bytes) {
            (0, None) => return None,
            (from, None) => format!("bytes={from}-"),
            (from, Some(n_bytes)) => {
                format!("bytes={from}-{}", from.saturating_add(n_bytes.get() - 1))
            }
        };
        Some(HeaderValue::from_str(&range).expect("digits are fine in a header"))
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
struct Called {
    client: Client,
    /// Whether it is believed what it says that it converted.
    is_own: bool,
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

    async fn called(&self) -> Result<Called, Refusal> {
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
    async fn follow(&self) {
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

    async fn send(
        &self,
        path: &str,
        header: Option<(&'static str, HeaderValue)>,
    ) -> Result<http::Response<hyper::body::Incoming>, Refusal> {
        self.send_by(self.called().await?, path, header).await
    }

    async fn send_by(
        &self,
        Called { mut client, .. }: Called,
        path: &str,
        header: Option<(&'static str, HeaderValue)>,
    ) -> Result<http::Response<hyper::body::Incoming>, Refusal> {
        if let Some((name, value)) = header {
            client = client.with_header(name, value);
        }
        let answer = client.send(Method::GET, path, None::<&()>).await;
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

/// The registry, as nodes see it that do not reach it.
pub struct Images {
    registry: Registry,
    handle: Handle,
    /// Which images nodes should have beforehand.
    pub prewarm: Arc<Prewarm>,
    /// What manifests refer to. They never change, so this is never wrong; but who may have one of a repository may
    /// not have that of another.
    references: Mutex<BTreeMap<Of, Arc<References>>>,
    /// What was converted of the image with a manifest, by the last that the registry said.
    converted: Mutex<BTreeMap<Of, Arc<Converted>>>,
}

/// A manifest of a repository.
type Of = (Repository, Digest);

/// What was converted of an image.
#[derive(Debug, Default)]
struct Converted {
    /// The parts of its layers.
    blobs: BTreeSet<Digest>,
    /// The DiffIDs of those layers.
    layers: BTreeSet<Digest>,
}

/// What a manifest refers to.
#[derive(Debug, Default)]
struct References {
    manifests: BTreeSet<Digest>,
    blobs: BTreeSet<Digest>,
    /// The layers that its blobs are parts of, where it names what was converted.
    converted: BTreeSet<Digest>,
}

impl Images {
    /// Those of a registry; a task of `service` keeps in mind where that is.
    pub fn of(
        registry: Registry,
        handle: Handle,
        prewarm: Arc<Prewarm>,
        service: &Service,
    ) -> Arc<Self> {
        let (references, converted) = Default::default();
        let images = Arc::new(Self { registry, handle, prewarm, references, converted });
        let followed = Arc::clone(&images);
        service.spawn_until_shutdown("registry", async move { followed.registry.follow().await });
        images
    }

    /// A manifest that an assignment of the node needs.
    pub async fn manifest(
        &self,
        node: &NodeName,
        wanted: &Wanted,
        shutdown: CancellationToken,
    ) -> Result<Response, Refusal> {
        let Wanted { repository, digest, .. } = wanted;
        self.check_manifest(node, wanted).await?;
        let answer = self.ask_manifest(repository, digest).await?;
        Ok(relay_whole(answer, shutdown))
    }

    /// What the registry converted of an image that an assignment of the node needs.
    pub async fn converted(&self, node: &NodeName, wanted: &Wanted) -> Result<Response, Refusal> {
        let Wanted { repository, digest, .. } = wanted;
        self.check_manifest(node, wanted).await?;
        let (bytes, _) = self.ask_converted(repository, digest).await?;
        Ok(Response::new(bytes.into()))
    }

    /// Refuses a manifest that no assignment of the node needs.
    pub async fn check_manifest(&self, node: &NodeName, wanted: &Wanted) -> Result<(), Refusal> {
        let Wanted { repository, digest, .. } = wanted;
        for image in self.assigned(node, repository) {
            let is_child = || async {
                Ok::<_, Refusal>(
                    self.references(repository, &image).await?.manifests.contains(digest),
                )
            };
            if image == *digest || is_child().await? {
                return Ok(());
            }
        }
        Err(refuse(node, wanted))
    }

    /// A blob that an assignment of the node needs.
    pub async fn blob(
        &self,
        node: &NodeName,
        wanted: &Wanted,
        shutdown: CancellationToken,
    ) -> Result<Response, Refusal> {
        let Wanted { repository, digest, .. } = wanted;
        if !self.is_blob_of_node(node, repository, digest).await? {
            return Err(refuse(node, wanted));
        }
        let range = wanted.range().map(|range| ("range", range));
        let path = format!("/v2/{repository}/blobs/{digest}");
        Ok(relay_whole(self.registry.send(&path, range).await?, shutdown))
    }

    /// What keeps images on a node.
    pub async fn holds(&self, node: NodeName, images: Vec<Digest>) -> Result<ImageHolds, Refusal> {
        let (sender, answer) = oneshot::channel();
        let event = Event::Holds(node.clone(), images.clone(), sender);
        let asked = self.handle.events.send(event).await;
        let ending = || Problem::new(ProblemCode::Unavailable, "the location is shutting down");
        asked.map_err(|_| ending())?;
        let told = answer.await.map_err(|_| ending())?;
        let unknown = || {
            let detail = "the location has just begun, and does not know yet what is needed";
            Problem::new(ProblemCode::Unavailable, detail)
        };
        let mut told = told.ok_or_else(unknown)?;
        for image in images {
            let wished = self.prewarm.holds(&node, &image).ok_or_else(unknown)?;
            if !wished.is_empty() {
                told.holds.entry(image).or_default().extend(wished);
            }
        }
        Ok(told)
    }

    /// Images of a node with what keeps each.
    pub async fn with_holds(
        &self,
        node: NodeName,
        mut images: Vec<NodeImage>,
    ) -> Result<Vec<NodeImage>, Refusal> {
        let digests = images.iter().map(|image| image.digest).collect();
        let mut holds = self.holds(node, digests).await?.holds;
        for image in &mut images {
            image.holds = holds.remove(&image.digest).unwrap_or_default();
        }
        Ok(images)
    }

    /// The images of a repository that the node should run, or have beforehand.
    fn assigned(&self, node: &NodeName, repository: &Repository) -> BTreeSet<Digest> {
        let all = self.all_assigned(node).into_iter();
        all.filter(|(of, _)| of == repository).map(|(_, image)| image).collect()
    }

    /// All of them.
    fn all_assigned(&self, node: &NodeName) -> BTreeSet<(Repository, Digest)> {
        let assigned = self.handle.assignments.of(node);
        let image = |assignment: &Arc<Assignment>| {
            let release = &assignment.release;
            (release.manifest.image.repository.clone(), release.image_digest)
        };
        let wished = self.prewarm.orders(node).unwrap_or_default().images.into_iter();
        let wished = wished.map(|order| (order.repository, order.digest));
        let assigned = assigned.iter().flat_map(|assigned| assigned.assignments.values());
        assigned.map(image).chain(wished).collect()
    }

    /// Whether a node should run an image, or have it beforehand.
    pub fn is_assigned(&self, node: &NodeName, image: &Digest) -> bool {
        self.all_assigned(node).iter().any(|(_, assigned)| assigned == image)
    }

    /// Whether a layer was converted of an image that the node should run, or have beforehand.
    pub async fn is_layer_of_node(&self, node: &NodeName, layer: &Digest) -> Result<bool, Refusal> {
        let mut failed = None;
        for (repository, image) in self.all_assigned(node) {
            let references = match self.references(&repository, &image).await {
                Ok(references) => references,
                // It may be one of the others'.
                Err(refusal) => {
                    failed = Some(refusal);
                    continue;
                }
            };
            for manifest in references.manifests.iter().take(MAX_CHILDREN).chain([&image]) {
                let converted = self.converted_of(&repository, manifest).await;
                if converted.is_some_and(|converted| converted.layers.contains(layer)) {
                    return Ok(true);
                }
            }
        }
        failed.map_or(Ok(false), Err)
    }

    async fn is_blob_of_node(
        &self,
        node: &NodeName,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, Refusal> {
        for image in self.assigned(node, repository) {
            let references = self.references(repository, &image).await?;
            if references.blobs.contains(digest) {
                return Ok(true);
            }
            for child in references.manifests.iter().take(MAX_CHILDREN) {
                // An index may name what was never pushed.
                if let Ok(child) = self.references(repository, child).await
                    && child.blobs.contains(digest)
                {
                    return Ok(true);
                }
            }
            for manifest in references.manifests.iter().take(MAX_CHILDREN).chain([&image]) {
                if self.is_converted_of(repository, manifest, digest).await {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a blob is one that was converted of an image.
    async fn is_converted_of(
        &self,
        repository: &Repository,
        manifest: &Digest,
        blob: &Digest,
    ) -> bool {
        let converted = self.converted_of(repository, manifest).await;
        converted.is_some_and(|converted| converted.blobs.contains(blob))
    }

    /// What was converted of an image. A node asks for that after it was told of it, and so is what is
    /// remembered; after a restart in between the registry is asked again, once. Without an answer it is what the
    /// node may not have, for now.
    async fn converted_of(
        &self,
        repository: &Repository,
        manifest: &Digest,
    ) -> Option<Arc<Converted>> {
        let of = (repository.clone(), *manifest);
        let known = self.remembered_converted().get(&of).cloned();
        match known {
            Some(known) => Some(known),
            None => match self.ask_converted(repository, manifest).await {
                Ok((_, converted)) => Some(converted),
                Err(Refusal(problem)) if problem.code == ProblemCode::NotFound => {
                    Some(self.remember_converted(of, Converted::default()))
                }
                Err(_) => None,
            },
        }
    }

    /// The artifact that names what was converted of an image, and what it names.
    async fn ask_converted(
        &self,
        repository: &Repository,
        manifest: &Digest,
    ) -> Result<(bytes::Bytes, Arc<Converted>), Refusal> {
        // One on a machine of its own could say what it likes, and nobody could tell.
        let called = self.registry.called().await?;
        if !called.is_own {
            let detail =
                "the registry is on a machine of its own, so nothing that it converted is used";
            return Err(Problem::new(ProblemCode::NotFound, detail).into());
        }
        let path = format!("/v2/_longshore/converted/{repository}?manifest={manifest}");
        let answer = self.registry.send_by(called, &path, None).await?;
        let body = Limited::new(answer.into_body(), MAX_MANIFEST).collect().await;
        let body = body.map_err(|error| unusable(manifest, &error.to_string()))?.to_bytes();
        let references = read_references(&body).map_err(|error| unusable(manifest, &error))?;
        let converted = Converted { blobs: references.blobs, layers: references.converted };
        Ok((body, self.remember_converted((repository.clone(), *manifest), converted)))
    }

    fn remember_converted(&self, of: Of, converted: Converted) -> Arc<Converted> {
        let converted = Arc::new(converted);
        let mut remembered = self.remembered_converted();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(of, Arc::clone(&converted));
        converted
    }

    fn remembered_converted(&self) -> MutexGuard<'_, BTreeMap<Of, Arc<Converted>>> {
        self.converted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn references(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Arc<References>, Refusal> {
        let of = (repository.clone(), *digest);
        let known = self.remembered().get(&of).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let answer = self.ask_manifest(repository, digest).await?;
        let body = Limited::new(answer.into_body(), MAX_MANIFEST).collect().await;
        let body = body.map_err(|error| unusable(digest, &error.to_string()))?.to_bytes();
        let references = read_references(&body).map_err(|error| unusable(digest, &error))?;
        let references = Arc::new(references);
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(of, Arc::clone(&references));
        Ok(references)
    }

    fn remembered(&self) -> MutexGuard<'_, BTreeMap<Of, Arc<References>>> {
        self.references.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<http::Response<hyper::body::Incoming>, Refusal> {
        let accept = ("accept", HeaderValue::from_static(MANIFEST_TYPES));
        let path = format!("/v2/{repository}/manifests/{digest}");
        self.registry.send(&path, Some(accept)).await
    }
}

/// Reads what a manifest or an index refers to.
fn read_references(bytes: &[u8]) -> Result<References, String> {
    #[derive(Deserialize)]
    struct Descriptor {
        digest: Digest,
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    #[derive(Deserialize)]
    struct Parts {
        #[serde(default)]
        manifests: Vec<Descriptor>,
        config: Option<Descriptor>,
        #[serde(default)]
        layers: Vec<Descriptor>,
    }
    let parts: Parts = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let digests = |descriptors: Vec<Descriptor>| descriptors.into_iter().map(|one| one.digest);
    // What others annotate is theirs.
    let layer = |one: &Descriptor| one.annotations.as_ref()?.get(DIFF_ID_ANNOTATION)?.parse().ok();
    let converted = parts.layers.iter().filter_map(layer).collect();
    let blobs = digests(parts.layers).chain(parts.config.map(|config| config.digest));
    let (manifests, blobs) = (digests(parts.manifests).collect(), blobs.collect());
    Ok(References { manifests, blobs, converted })
}

fn refuse(node: &NodeName, wanted: &Wanted) -> Refusal {
    let Wanted { repository, digest, .. } = wanted;
    let detail = format!("no assignment of node {node} needs {digest} of {repository}");
    Problem::new(ProblemCode::Forbidden, detail).into()
}

fn unusable(digest: &Digest, why: &str) -> Refusal {
    let detail = format!("the registry's manifest {digest} cannot be used: {why}");
    Problem::new(ProblemCode::Unavailable, detail).into()
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

    fn digest(digit: char) -> Digest {
        format!("sha256:{}", String::from(digit).repeat(64)).parse().unwrap()
    }

    #[test]
    fn a_part_is_asked_of_the_registry_as_it_was_asked_for() {
        let range = |part: &str| {
            let query = format!("repository=default/web&digest={}{part}", digest('a'));
            let uri = format!("/images/blob?{query}").parse().unwrap();
            let wanted = axum::extract::Query::<Wanted>::try_from_uri(&uri).unwrap();
            wanted.range().map(|range| range.to_str().unwrap().to_owned())
        };
        for (part, expected) in [
            ("", None),
            ("&from=0", None),
            ("&from=5", Some("bytes=5-")),
            ("&from=5&n_bytes=3", Some("bytes=5-7")),
            ("&from=0&n_bytes=1", Some("bytes=0-0")),
            (
                "&from=18446744073709551615&n_bytes=2",
                Some("bytes=18446744073709551615-18446744073709551615"),
            ),
        ] {
            assert_eq!(range(part).as_deref(), expected, "{part}");
        }
    }

    #[test]
    fn a_manifest_refers_to_its_layers_and_an_index_to_manifests() {
        let (a, b, c) = (digest('a'), digest('b'), digest('c'));
        let manifest = format!(
            r#"{{"config":{{"digest":"{a}"}},"layers":[{{"digest":"{b}"}},{{"digest":"{c}"}}]}}"#
        );
        let read = read_references(manifest.as_bytes()).unwrap();
        assert_eq!((read.manifests.len(), read.blobs), (0, BTreeSet::from([a, b, c])));
        let index = format!(r#"{{"manifests":[{{"digest":"{a}"}},{{"digest":"{b}"}}]}}"#);
        let read = read_references(index.as_bytes()).unwrap();
        assert_eq!((read.manifests, read.blobs.len()), (BTreeSet::from([a, b]), 0));
        let annotated = |text: &str| format!(r#"{{"{DIFF_ID_ANNOTATION}":"{text}"}}"#);
        let artifact = format!(
            r#"{{"layers":[{{"digest":"{a}","annotations":{}}},{{"digest":"{b}","annotations":{}}},
                {{"digest":"{c}","annotations":null}}]}}"#,
            annotated(&c.to_string()),
            annotated("x"),
        );
        let read = read_references(artifact.as_bytes()).unwrap();
        assert_eq!((read.converted, read.blobs.len()), (BTreeSet::from([c]), 3));
        for bad in ["", "[]", r#"{"layers":[{"digest":"x"}]}"#] {
            read_references(bad.as_bytes()).unwrap_err();
        }
    }
}
