//! Images for nodes that do not reach the registry, which the location asks for in their place.
//!
//! A node is given the images of its assignments and nothing else: a manifest that an assignment names,
//! and what that refers to; and what the registry converted of these.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use longshore_api::links::{Assignment, ImageHolds};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, Service, relay_whole, whole_or_broken};
use longshore_types::{DIFF_ID_ANNOTATION, Digest, NodeImage, NodeName, Repository};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::keeper::{Event, Handle};
use crate::mirror::{Document, Given, Mirror, Of, What};
use crate::prewarm::Prewarm;
use crate::registry::{Called, Part, Registry, blob_path};

/// The largest manifest that is read, as in the registry.
const MAX_MANIFEST: usize = 4 << 20;
/// How many manifests' references are remembered.
const REMEMBERED: usize = 1024;
/// The most manifests of an index that are looked into.
const MAX_CHILDREN: usize = 64;
/// How long the registry may take to say what it converted of an image, where it is kept what it said last.
const SAYS_WITHIN: Duration = Duration::from_secs(2);
/// What is taken for the type of what has none.
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
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

    fn part(&self) -> Part {
        Part { from: self.from, n_bytes: self.n_bytes }
    }

    fn of(&self) -> Of {
        (self.repository.clone(), self.digest)
    }
}

/// The registry, as nodes see it that do not reach it.
pub struct Images {
    registry: Arc<Registry>,
    /// What is kept of it here, where anything is.
    mirror: Option<Arc<Mirror>>,
    handle: Handle,
    /// Which images nodes should have beforehand.
    pub prewarm: Arc<Prewarm>,
    /// What manifests refer to. They never change, so this is never wrong; but who may have one of a repository may
    /// not have that of another.
    references: Mutex<BTreeMap<Of, Arc<References>>>,
    /// What was converted of the image with a manifest, by the last that the registry said.
    converted: Mutex<BTreeMap<Of, Arc<Converted>>>,
}

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

/// What an image may name.
#[derive(Debug, Clone, Copy)]
enum Named {
    /// A manifest, as an index does.
    Manifest(Digest),
    /// A blob of it, of a child's, or that was converted of one of them.
    Blob(Digest),
    /// A layer that was converted.
    Layer(Digest),
}

impl Images {
    /// Those of a registry; a task of `service` keeps in mind where that is.
    pub fn of(
        (registry, mirror): (Arc<Registry>, Option<Arc<Mirror>>),
        handle: Handle,
        prewarm: Arc<Prewarm>,
        service: &Service,
    ) -> Arc<Self> {
        let (references, converted) = Default::default();
        let images = Arc::new(Self { registry, mirror, handle, prewarm, references, converted });
        let followed = Arc::clone(&images);
        service.spawn_until_shutdown("registry", async move { followed.registry.follow().await });
        images
    }

    /// A manifest that an assignment of the node needs.
    pub async fn manifest(&self, node: &NodeName, wanted: &Wanted) -> Result<Response, Refusal> {
        self.check_manifest(node, wanted).await?;
        let Document { media_type, bytes } = self.read_manifest(&wanted.of()).await?;
        let mut response = Response::new(bytes.into());
        let kind = HeaderValue::from_str(&media_type).unwrap_or(BYTES);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
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
        let assigned = self.assigned(node, repository);
        if assigned.contains(digest) {
            return Ok(());
        }
        let images = assigned.into_iter().map(|image| (repository.clone(), image));
        match self.is_named(images, Named::Manifest(*digest)).await? {
            true => Ok(()),
            false => Err(refuse(node, wanted)),
        }
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
        let (of, part) = (wanted.of(), wanted.part());
        let given = match &self.mirror {
            Some(mirror) => mirror.blob(&of, part).await?,
            None => {
                let path = blob_path(repository, digest);
                Given::Passed(self.registry.send(&path, part.header()).await?)
            }
        };
        Ok(match given {
            Given::Passed(answer) => relay_whole(answer, shutdown),
            Given::Bytes(bytes) => {
                let mut response = whole_or_broken(BYTES, bytes, shutdown);
                if part.header().is_some() {
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                }
                response
            }
        })
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
        self.is_named(self.all_assigned(node), Named::Layer(*layer)).await
    }

    async fn is_blob_of_node(
        &self,
        node: &NodeName,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, Refusal> {
        let images = self.assigned(node, repository).into_iter();
        let images = images.map(|image| (repository.clone(), image));
        self.is_named(images, Named::Blob(*digest)).await
    }

    /// Whether any of some images names it. One whose manifest cannot be had may do so, and is no reason to refuse what
    /// another one names.
    async fn is_named(
        &self,
        images: impl IntoIterator<Item = Of, IntoIter: Send>,
        named: Named,
    ) -> Result<bool, Refusal> {
        let mut failed = None;
        for of in images {
            match self.references(&of.0, &of.1).await {
                Ok(references) if self.names(&of, &references, named).await => return Ok(true),
                Ok(_) => {}
                Err(refusal) => failed = Some(refusal),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    async fn names(&self, of: &Of, references: &References, named: Named) -> bool {
        match named {
            Named::Manifest(digest) => references.manifests.contains(&digest),
            Named::Blob(digest) => {
                references.blobs.contains(&digest)
                    || self.is_of_child(of, references, &digest).await
                    || self.is_converted(of, references, |one| one.blobs.contains(&digest)).await
            }
            Named::Layer(layer) => {
                self.is_converted(of, references, |one| one.layers.contains(&layer)).await
            }
        }
    }

    async fn is_of_child(
        &self,
        (repository, _): &Of,
        references: &References,
        blob: &Digest,
    ) -> bool {
        for child in references.manifests.iter().take(MAX_CHILDREN) {
            // An index may name what was never pushed.
            if let Ok(child) = self.references(repository, child).await
                && child.blobs.contains(blob)
            {
                return true;
            }
        }
        false
    }

    /// Whether something holds of what was converted of an image, or of a child.
    async fn is_converted(
        &self,
        (repository, image): &Of,
        references: &References,
        holds: impl Fn(&Converted) -> bool + Send + Sync,
    ) -> bool {
        for manifest in references.manifests.iter().take(MAX_CHILDREN).chain([image]) {
            let converted = self.converted_of(repository, manifest).await;
            if converted.is_some_and(|converted| holds(&converted)) {
                return true;
            }
        }
        false
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
    ) -> Result<(Bytes, Arc<Converted>), Refusal> {
        // One on a machine of its own could say what it likes, and nobody could tell.
        let called = self.registry.called().await?;
        if !called.is_own {
            let detail =
                "the registry is on a machine of its own, so nothing that it converted is used";
            return Err(Problem::new(ProblemCode::NotFound, detail).into());
        }
        let of = (repository.clone(), *manifest);
        let body = self.read_converted(called, &of).await?;
        let references = read_references(&body).map_err(|error| unusable(manifest, &error))?;
        let converted = Converted { blobs: references.blobs, layers: references.converted };
        Ok((body, self.remember_converted(of, converted)))
    }

    /// The same as the registry says it; as it said it last, while it is away.
    async fn read_converted(&self, called: Called, of: &Of) -> Result<Bytes, Refusal> {
        let (repository, manifest) = of;
        let path = format!("/v2/_longshore/converted/{repository}?manifest={manifest}");
        let asked = async {
            let answer = self.registry.send_by(called, &path, None).await?;
            read_whole(answer, manifest).await
        };
        let Some(mirror) = &self.mirror else { return asked.await };
        let kept = mirror.document(What::Converted, of).await;
        let said = match &kept {
            None => asked.await,
            Some(_) => tokio::time::timeout(SAYS_WITHIN, asked).await.unwrap_or_else(|_| {
                let why = "the registry does not say in time what it converted";
                Err(Problem::new(ProblemCode::Unavailable, why).into())
            }),
        };
        // What is not there any more may have been wrong: that is kept, too, as nothing.
        let said = match said {
            Err(Refusal(problem)) if problem.code == ProblemCode::NotFound => Ok(Bytes::new()),
            said => said,
        };
        let bytes = match (said, kept) {
            (Ok(bytes), kept) => {
                if kept.is_none_or(|kept| kept.bytes != bytes) {
                    let document = Document { media_type: String::new(), bytes: bytes.clone() };
                    mirror.keep_document(What::Converted, of, document).await;
                }
                bytes
            }
            (Err(_), Some(kept)) => kept.bytes,
            (Err(refusal), None) => return Err(refusal),
        };
        if bytes.is_empty() {
            let detail = "the registry converted nothing of it";
            return Err(Problem::new(ProblemCode::NotFound, detail).into());
        }
        Ok(bytes)
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
        let Document { bytes, .. } = self.read_manifest(&of).await?;
        let references = read_references(&bytes).map_err(|error| unusable(digest, &error))?;
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

    /// A manifest that is kept here, or the registry's.
    async fn read_manifest(&self, of: &Of) -> Result<Document, Refusal> {
        if let Some(mirror) = &self.mirror
            && let Some(kept) = mirror.document(What::Manifest, of).await
        {
            return Ok(kept);
        }
        let (repository, digest) = of;
        let accept = ("accept", HeaderValue::from_static(MANIFEST_TYPES));
        let path = format!("/v2/{repository}/manifests/{digest}");
        let answer = self.registry.send(&path, Some(accept)).await?;
        let kind = answer.headers().get(header::CONTENT_TYPE).cloned().unwrap_or(BYTES);
        let media_type = kind.to_str().unwrap_or_default().to_owned();
        let document = Document { media_type, bytes: read_whole(answer, digest).await? };
        if let Some(mirror) = &self.mirror {
            mirror.keep_document(What::Manifest, of, document.clone()).await;
        }
        Ok(document)
    }
}

/// The bytes of a document of the registry that is about the manifest with a digest.
async fn read_whole(
    answer: http::Response<hyper::body::Incoming>,
    manifest: &Digest,
) -> Result<Bytes, Refusal> {
    let body = Limited::new(answer.into_body(), MAX_MANIFEST).collect().await;
    Ok(body.map_err(|error| unusable(manifest, &error.to_string()))?.to_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> Digest {
        format!("sha256:{}", String::from(digit).repeat(64)).parse().unwrap()
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
