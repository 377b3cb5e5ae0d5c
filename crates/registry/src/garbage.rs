//! What nobody needs any more, found and removed while pushes and pulls go on.
//!
//! In each repository the tags, the manifests of releases (pins) and what was pushed or lost its tag
//! not long ago are needed; so is what these lead to, and what is about something that is needed. A
//! blob is needed by a manifest of its own repository, for only there can it be had.
//!
//! Where the owners of a repository said how many tags it keeps, and for how long, those go that are
//! neither; not one whose manifest a release needs. They go last, and what they named is from then
//! on as if it were pushed without a tag: so whoever said too little has time to tag it again.
//!
//! What came from another registry nobody tagged here: a tag is what that one said, and needs nothing. It stays for
//! as long after its last use as other manifests do without a tag.
//!
//! What the registry converted of an image is needed for as long as somebody asks for it now and then; the image as it was
//! pushed stays. It shares parts with that of other images, and those stay with them.
//!
//! It is looked for without a lock, since reading all manifests takes long, and removed one by one. What
//! happened in between is known by the leases (`storage::leases`): whoever pushes, asks for, mounts
//! or names something renews its lease, and nothing goes whose lease holds. A manifest is kept under the
//! lock under which blobs are removed, and renews the leases of all that it names, so an acknowledged
//! manifest is always whole.
//!
//! Rejected: to refuse writes meanwhile, as docker-registry wants it, which ends every push of the
//! world for minutes; counting references, which a crash makes wrong for ever.

mod needed;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use longshore_types::garbage::{
    Garbage, GarbageForm, GarbageItem, GarbageReason, GarbageTag, KeptManifest,
};
use longshore_types::{ByteCount, Digest, Repository, Retention, Tag};

use crate::Registry;
use crate::manifest::Manifest;
use crate::pins::PinTable;
use crate::refusal::{Code, Refusal};
use crate::server::json;
use crate::storage::{Form, FoundTag, Lease, Storage, StorageError};
use crate::upstream::is_below;
use needed::{Contents, Kept, Lack, Needs};

/// The most that a report names; the rest is counted.
const MAX_ITEMS: usize = 1000;

/// For how long what nobody needs is kept, should somebody be about to need it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Since somebody pushed, mounted or asked for it.
    pub(crate) lease: Duration,
    /// Since a manifest was pushed, or lost a tag.
    pub(crate) untagged: Duration,
    /// Since somebody asked for what was converted of an image.
    pub(crate) unpulled: Duration,
}

/// `GET` tells what would be removed, `POST` removes it.
pub(crate) async fn answer(registry: &Arc<Registry>, parts: &Parts) -> Result<Response, Refusal> {
    let removes = match parts.method {
        Method::GET => false,
        Method::POST => true,
        _ => return Err(Refusal::method(&parts.method, "GET, POST")),
    };
    let garbage = registry.garbage(removes).await?.ok_or_else(unknown)?;
    Ok(json(&garbage))
}

/// `GET` tells of each manifest of a repository why it is there.
pub(crate) async fn answer_kept(
    registry: &Arc<Registry>,
    repository: Repository,
    parts: &Parts,
) -> Result<Response, Refusal> {
    if parts.method != Method::GET {
        return Err(Refusal::method(&parts.method, "GET"));
    }
    let of = repository.clone();
    if registry.blocking(move |storage| storage.tags(&of)).await?.is_none() {
        return Err(Refusal::name_unknown(&repository));
    }
    let kept = registry.kept(repository).await?.ok_or_else(unknown)?;
    Ok(json(&kept))
}

fn unknown() -> Refusal {
    let message = "the control plane is away, so what releases need is not known; nothing is \
        removed until it is back";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unknown, message)
}

/// Finds what nobody needs, and removes it when `removes`.
pub(crate) fn collect(
    storage: &Storage,
    pins: &PinTable,
    upstreams: &BTreeSet<String>,
    patience: Patience,
    removes: bool,
) -> Result<Garbage, StorageError> {
    let mut found = Found::default();
    let mut failed = None;
    for repository in storage.repositories()? {
        let look = Look::at(storage, &repository, pins, upstreams, patience);
        let swept = look.and_then(|look| {
            let sweep = Sweep { storage, repository: &repository, lease: look.lease, removes };
            sweep.run(&look.contents, &look.kept, &mut found)?;
            if look.is_theirs && removes {
                storage.drop_loose_tags(&repository)?;
            }
            sweep.tags(&look.retention, &look.pinned, &mut found)
        });
        // Nothing goes from where something cannot be read; from elsewhere it does.
        if let Err(error) = swept {
            failed.get_or_insert(error);
        }
    }
    failed.map_or_else(|| Ok(found.report(removes)), Err)
}

/// The manifests of a repository, and why each is there.
pub(crate) fn kept(
    storage: &Storage,
    repository: &Repository,
    pins: &PinTable,
    upstreams: &BTreeSet<String>,
    patience: Patience,
) -> Result<Vec<KeptManifest>, StorageError> {
    let look = Look::at(storage, repository, pins, upstreams, patience)?;
    let mut tags: BTreeMap<Digest, Vec<Tag>> = BTreeMap::new();
    for FoundTag { tag, digest, pushed: _ } in storage.tags_by_age(repository)? {
        tags.entry(digest).or_default().push(tag);
    }
    let kept = look.contents.manifests.iter().map(|(digest, kind)| {
        let mut tags = tags.remove(digest).unwrap_or_default();
        tags.sort();
        let kept = look.kept.reasons(digest).to_vec();
        KeptManifest { digest: *digest, tags, size: ByteCount(kind.size), kept }
    });
    Ok(kept.collect())
}

/// What a repository has and what of it is needed.
struct Look {
    contents: Contents,
    kept: Kept,
    lease: Lease,
    retention: Retention,
    pinned: BTreeMap<Digest, String>,
    /// Whether it is one of an upstream.
    is_theirs: bool,
}

impl Look {
    fn at(
        storage: &Storage,
        repository: &Repository,
        pins: &PinTable,
        upstreams: &BTreeSet<String>,
        patience: Patience,
    ) -> Result<Self, StorageError> {
        let pinned = pins.iter().filter(|((name, _), _)| name == repository);
        let pinned: BTreeMap<Digest, String> =
            pinned.map(|((_, digest), release)| (*digest, release.clone())).collect();
        let longer = storage.oldest_upload(Some(repository))?.unwrap_or_default();
        let lease = Lease { length: patience.lease + longer, looked: Instant::now() };
        let retention = storage.retention(repository)?.unwrap_or_default();
        let untagged = retention.keep_untagged.map_or(patience.untagged, |keep| keep.0);
        let mut contents = contents(storage, repository)?;
        let is_theirs = is_below(upstreams, repository);
        if is_theirs {
            contents.tagged.clear();
        }
        // What somebody counts on stays with all that it leads to.
        let leased = contents.manifests.keys();
        let leased = leased.filter(|digest| storage.is_leased(repository, digest, lease));
        let leased: BTreeSet<Digest> = leased.copied().collect();
        let unpulled = patience.unpulled;
        let kept = contents.kept(&Needs { pinned: &pinned, leased: &leased, untagged, unpulled });
        Ok(Self { contents, kept, lease, retention, pinned, is_theirs })
    }
}

/// What the repository has now.
fn contents(storage: &Storage, repository: &Repository) -> Result<Contents, StorageError> {
    let mut contents = Contents { tagged: storage.tagged(repository)?, ..Contents::default() };
    // The blobs first: what is named by a manifest that comes now was touched since.
    contents.blobs = storage.blobs(repository)?;
    contents.forms = storage.forms(repository)?;
    for digest in storage.manifests(repository)? {
        let Some(age) = storage.manifest_age(repository, &digest)? else { continue };
        let Some(stored) = storage.manifest(repository, &digest)? else { continue };
        // It was read in the same way before it was kept.
        let parsed = Manifest::parse(Some(&stored.media_type), &stored.bytes);
        let manifest = parsed.map_err(|error| StorageError::unreadable(&digest, error))?;
        let size = stored.bytes.len() as u64;
        contents.manifests.insert(digest, needed::Kind { age, size, manifest });
    }
    Ok(contents)
}

/// The sweep of one repository.
struct Sweep<'a> {
    storage: &'a Storage,
    repository: &'a Repository,
    lease: Lease,
    removes: bool,
}

impl Sweep<'_> {
    fn run(&self, contents: &Contents, kept: &Kept, found: &mut Found) -> Result<(), StorageError> {
        let mut named = BTreeSet::new();
        // What leads to others comes before them: somebody may count on it only since the look.
        let (indexes, images): (Vec<_>, Vec<_>) =
            contents.manifests.iter().partition(|(_, kind)| !kind.manifest.manifests.is_empty());
        for (digest, manifest) in indexes.into_iter().chain(images) {
            let lacks = kept.lacks(digest).filter(|_| !named.contains(digest));
            let lacks = match lacks {
                Some(lacks) if self.manifest_goes(digest, &lacks)? => lacks,
                // Kept, also by a lease: then with all that it is made of.
                _ => {
                    let made_of = &manifest.manifest;
                    let parts = made_of.blobs.iter().chain(&made_of.manifests);
                    named.extend(parts.map(|part| part.digest));
                    found.stays(digest);
                    continue;
                }
            };
            match lacks {
                Lack::Needed(reason) => found.goes(self.repository, digest, manifest.size, reason),
                Lack::Pulled(form) => found.form_goes(self.repository, &form, manifest.size),
            }
        }
        for (digest, size) in &contents.blobs {
            if !named.contains(digest) && self.goes(digest, Storage::collect_blob)? {
                found.goes(self.repository, digest, *size, GarbageReason::Unreferenced);
            } else {
                found.stays(digest);
            }
        }
        Ok(())
    }

    /// The tags that the repository need not keep.
    fn tags(
        &self,
        retention: &Retention,
        pinned: &BTreeMap<Digest, String>,
        found: &mut Found,
    ) -> Result<(), StorageError> {
        if *retention == Retention::default() {
            return Ok(());
        }
        let Self { storage, repository, removes, .. } = *self;
        for (n_newer, tag) in storage.tags_by_age(repository)?.into_iter().enumerate() {
            let age = longshore_types::Duration(tag.age());
            // Whoever has just pushed it may be about to deploy it.
            let is_new = age.0 < self.lease.length;
            if is_new || !retention.lets_go(n_newer, age) || pinned.contains_key(&tag.digest) {
                continue;
            }
            if removes {
                if !storage.collect_tag(repository, &tag)? {
                    continue;
                }
                let (tag, digest) = (&tag.tag, &tag.digest);
                tracing::info!(%repository, %tag, %digest, n_newer, "a tag went, as was asked for");
            }
            let FoundTag { tag, digest, pushed: _ } = tag;
            let (repository, n_newer) = (repository.clone(), n_newer as u64);
            found.tags.push(GarbageTag { repository, tag, digest, n_newer, age });
        }
        Ok(())
    }

    fn manifest_goes(&self, digest: &Digest, lacks: &Lack) -> Result<bool, StorageError> {
        match lacks {
            Lack::Pulled(form) if self.removes => {
                self.storage.collect_form(self.repository, form, self.lease)
            }
            Lack::Pulled(_) | Lack::Needed(_) => self.goes(digest, Storage::collect_manifest),
        }
    }

    /// Whether it goes, by its lease; it is gone then, unless this only looks.
    fn goes(
        &self,
        digest: &Digest,
        collect: fn(&Storage, &Repository, &Digest, Lease) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        if self.removes {
            return collect(self.storage, self.repository, digest, self.lease);
        }
        Ok(!self.storage.is_leased(self.repository, digest, self.lease))
    }
}

/// What was found in all repositories.
#[derive(Default)]
struct Found {
    items: Vec<GarbageItem>,
    tags: Vec<GarbageTag>,
    converted: Vec<GarbageForm>,
    manifests: u64,
    blobs: u64,
    /// The sizes of what goes, and what stays somewhere.
    going: HashMap<Digest, u64>,
    staying: BTreeSet<Digest>,
}

impl Found {
    fn goes(&mut self, repository: &Repository, digest: &Digest, size: u64, reason: GarbageReason) {
        match reason.is_of_manifest() {
            true => self.manifests += 1,
            false => self.blobs += 1,
        }
        self.going.insert(*digest, size);
        if self.items.len() < MAX_ITEMS {
            let (repository, digest) = (repository.clone(), *digest);
            self.items.push(GarbageItem { repository, digest, size: ByteCount(size), reason });
        }
    }

    fn form_goes(&mut self, repository: &Repository, form: &Form, size: u64) {
        self.manifests += 1;
        self.going.insert(form.artifact, size);
        if self.converted.len() < MAX_ITEMS {
            let (repository, image) = (repository.clone(), form.image);
            let unused = longshore_types::Duration(form.unused);
            self.converted.push(GarbageForm { repository, image, unused });
        }
    }

    fn stays(&mut self, digest: &Digest) {
        self.staying.insert(*digest);
    }

    fn report(self, removed: bool) -> Garbage {
        let Self { items, mut tags, converted, manifests, blobs, going, staying } = self;
        tags.truncate(MAX_ITEMS);
        let freed = going.iter().filter(|(digest, _)| !staying.contains(digest));
        let bytes = ByteCount(freed.map(|(_, size)| size).sum());
        Garbage { removed, manifests, blobs, bytes, items, tags, converted }
    }
}
