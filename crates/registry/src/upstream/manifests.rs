//! Manifests of an upstream, as they are known here or as it has them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use longshore_image::client::Manifest as Fetched;
use longshore_types::{Digest, Repository};

use super::Theirs;
use crate::Registry;
use crate::manifest::Manifest;
use crate::manifests::{self, Name};
use crate::metrics::{Given, What};
use crate::refusal::{Code, Refusal};
use crate::storage::{Storage, StorageError, StoredManifest};

type Found = (Digest, StoredManifest);

/// What is known here.
enum Known {
    Nothing,
    /// A tag may name something else by now.
    Old(Found),
    Certain(Found),
}

/// What an upstream says of something that is known here.
enum Said {
    /// The tag still names the same.
    Same,
    Manifest(Fetched),
}

/// The manifest of this name, from here or from the upstream.
pub(crate) async fn find(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    name: &Name,
) -> Result<Found, Refusal> {
    let found = look_up(registry, theirs, repository, name).await;
    let given = found.as_ref().map_or_else(Given::not, |(_, given)| *given);
    registry.metrics.upstreams.gave(theirs.name(), What::Manifest, given);
    found.map(|(found, _)| found)
}

async fn look_up(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    name: &Name,
) -> Result<(Found, Given), Refusal> {
    if let Known::Certain(found) = known(registry, theirs, repository, name).await? {
        return Ok((found, Given::Here));
    }
    let _turn = theirs.upstream.manifests.take(format!("{repository} {}", name.wanted())).await;
    // Somebody else may have had the answer meanwhile.
    let old = match known(registry, theirs, repository, name).await? {
        Known::Certain(found) => return Ok((found, Given::Here)),
        Known::Old(found) => Some(found),
        Known::Nothing => None,
    };
    if let Some(old) = old {
        // Nobody waits each time for one that was away a moment ago.
        if theirs.upstream.is_away() {
            return Ok((old, Given::Last));
        }
        return renew(registry, theirs, repository, name, old).await;
    }
    let fetched = ask(theirs, name, None).await;
    let unknown = || Refusal::not_upstream(theirs.name(), repository, name.wanted());
    match fetched.map_err(|error| error.into_refusal(unknown))? {
        Said::Manifest(fetched) => {
            let kept = keep(registry, theirs, repository, name, fetched).await?;
            Ok((kept, Given::Fetched))
        }
        Said::Same => Err(unknown()),
    }
}

/// What a tag names now; what it named while the upstream is away.
async fn renew(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    name: &Name,
    old: Found,
) -> Result<(Found, Given), Refusal> {
    match ask(theirs, name, Some(old.0)).await {
        Ok(Said::Manifest(fetched)) => {
            match keep(registry, theirs, repository, name, fetched).await {
                // What is here can be had all the same.
                Err(refusal) if refusal.is_full_disk() => Ok((old, Given::Last)),
                kept => kept.map(|kept| (kept, Given::Fetched)),
            }
        }
        Ok(Said::Same) => {
            if let Name::Tag(tag) = name {
                let (of, tag, digest) = (repository.clone(), tag.clone(), old.0);
                let noted =
                    registry.blocking(move |storage| storage.put_tag(&of, &tag, &digest)).await;
                if let Err(error) = noted {
                    let error = longshore_types::chain(&error);
                    tracing::warn!(error, %repository, "a tag is asked for again sooner than it had to be");
                }
            }
            Ok((old, Given::Here))
        }
        Err(error) if error.is_away() => {
            tracing::debug!(%repository, name = name.wanted(), "giving what a tag named before");
            Ok((old, Given::Last))
        }
        Err(error) => {
            Err(error
                .into_refusal(|| Refusal::not_upstream(theirs.name(), repository, name.wanted())))
        }
    }
}

async fn known(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    name: &Name,
) -> Result<Known, StorageError> {
    let (repository, name, fresh) = (repository.clone(), name.clone(), theirs.upstream.fresh);
    registry.blocking(move |storage| look(storage, &repository, &name, fresh)).await
}

fn look(
    storage: &Storage,
    repository: &Repository,
    name: &Name,
    fresh: Duration,
) -> Result<Known, StorageError> {
    let (digest, is_certain) = match name {
        Name::Digest(digest) => (*digest, true),
        Name::Tag(tag) => match storage.found_tag(repository, tag.clone())? {
            // A clock that was put back makes nothing certain.
            Some(found) => {
                let age = SystemTime::now().duration_since(found.pushed);
                (found.digest, age.is_ok_and(|age| age < fresh))
            }
            None => return Ok(Known::Nothing),
        },
    };
    let Some(manifest) = manifests::by_digest(storage, repository, &digest)? else {
        return Ok(Known::Nothing);
    };
    storage.note_use(repository, &digest)?;
    let found = (digest, manifest);
    Ok(if is_certain { Known::Certain(found) } else { Known::Old(found) })
}

/// Asks what a name stands for. Where something is known the digest alone is asked for first, which costs an upstream
/// less and does not count against what it lets anybody pull.
async fn ask(
    theirs: &Theirs,
    name: &Name,
    old: Option<Digest>,
) -> Result<Said, super::mirrors::Unanswered> {
    let wanted = name.wanted();
    let (remote, wanted) = (&theirs.remote, &wanted);
    let asked = theirs.upstream.ask(|client| async move {
        if old.is_some() && client.said_digest(remote, wanted).await? == old {
            return Ok(Said::Same);
        }
        // With a digest, the bytes are checked against it.
        client.manifest(remote, wanted).await.map(Said::Manifest)
    });
    asked.await.map(|(said, _)| said)
}

async fn keep(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    name: &Name,
    fetched: Fetched,
) -> Result<Found, Refusal> {
    let Fetched { digest, media_type, bytes } = fetched;
    let refuse = |why: String| {
        let upstream = theirs.name();
        let message = format!("the upstream {upstream} gives {repository}@{digest}, {why}");
        Refusal::new(StatusCode::BAD_GATEWAY, Code::ManifestInvalid, message)
    };
    let manifest = Manifest::parse(Some(&media_type), &bytes);
    let manifest = manifest.map_err(|error| refuse(format!("which is refused: {error}")))?;
    if manifest.is_converted() {
        return Err(refuse("which only a registry itself makes of its images".to_owned()));
    }
    let (of, upstream, name) = (repository.clone(), theirs.name().to_owned(), name.clone());
    let kept = registry.blocking(move |storage| {
        storage.mark_upstream(&of, &upstream)?;
        let bytes = bytes.to_vec();
        manifests::keep_incomplete(storage, &of, &name, &digest, (manifest, bytes))?;
        manifests::by_digest(storage, &of, &digest)
    });
    let kept = kept.await?;
    let unknown = || Refusal::manifest_unknown(repository, digest);
    Ok((digest, kept.ok_or_else(unknown)?))
}
