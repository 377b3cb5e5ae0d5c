//! What of a repository is needed; decided without a look at the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longshore_types::Digest;
use longshore_types::garbage::GarbageReason;

use crate::manifest::Manifest;
use crate::storage::Form;

/// What a repository has.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The manifests that tags name.
    pub(super) tagged: BTreeSet<Digest>,
    pub(super) manifests: BTreeMap<Digest, Kind>,
    /// The blobs and their sizes in bytes.
    pub(super) blobs: BTreeMap<Digest, u64>,
    /// What is converted of its images.
    pub(super) forms: Vec<Form>,
}

/// A manifest of the repository.
#[derive(Debug)]
pub(super) struct Kind {
    /// Since it was pushed, or lost a tag.
    pub(super) age: Duration,
    /// In bytes.
    pub(super) size: u64,
    pub(super) manifest: Manifest,
}

/// The manifests that are needed, and what those that are not are about.
#[derive(Debug, Default)]
pub(super) struct Kept {
    kept: BTreeSet<Digest>,
    /// Those about something that is not kept.
    about: BTreeSet<Digest>,
    /// Those that name what was converted of an image that is kept, and that nobody asks for.
    unpulled: BTreeMap<Digest, Form>,
}

/// What a manifest lacks that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    /// Somebody who needs it.
    Needed(GarbageReason),
    /// Somebody who pulls the image in this form.
    Pulled(Form),
}

impl Kept {
    /// Why a manifest is not needed, when it is not.
    pub(super) fn lacks(&self, digest: &Digest) -> Option<Lack> {
        if self.kept.contains(digest) {
            return None;
        }
        if let Some(form) = self.unpulled.get(digest) {
            return Some(Lack::Pulled(*form));
        }
        Some(Lack::Needed(match self.about.contains(digest) {
            true => GarbageReason::SubjectGone,
            false => GarbageReason::Untagged,
        }))
    }
}

impl Contents {
    /// What is needed: what is tagged, one of `roots` or not older than `untagged`, what that leads to, and
    /// what is about any of it; of what the registry itself converted what an image has and somebody asked for since
    /// `unpulled`.
    pub(super) fn kept(
        &self,
        roots: &BTreeSet<Digest>,
        untagged: Duration,
        unpulled: Duration,
    ) -> Kept {
        let forms: BTreeMap<Digest, &Form> =
            self.forms.iter().map(|form| (form.artifact, form)).collect();
        let is_pulled =
            |artifact: &Digest| forms.get(artifact).is_some_and(|form| form.unused < unpulled);
        let mut about: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        for (digest, kind) in &self.manifests {
            if let Some(subject) = kind.manifest.subject {
                about.entry(subject).or_default().push(*digest);
            }
        }
        let is_root = |(digest, kind): &(&Digest, &Kind)| {
            // What the registry itself made of an image is there for that alone.
            let is_young = kind.age < untagged && !kind.manifest.is_converted();
            self.tagged.contains(*digest) || roots.contains(*digest) || is_young
        };
        let needed = self.manifests.iter().filter(is_root);
        let mut to_follow: Vec<Digest> = needed.map(|(digest, _)| *digest).collect();
        let (mut kept, mut let_go) = (BTreeSet::new(), BTreeSet::new());
        while let Some(digest) = to_follow.pop() {
            // A pin may name what was never pushed here.
            let Some(kind) = self.manifests.get(&digest) else { continue };
            if !kept.insert(digest) {
                continue;
            }
            to_follow.extend(kind.manifest.manifests.iter().map(|child| child.digest));
            for referrer in about.get(&digest).into_iter().flatten() {
                let is_converted =
                    self.manifests.get(referrer).is_some_and(|kind| kind.manifest.is_converted());
                if !is_converted || is_pulled(referrer) {
                    to_follow.push(*referrer);
                } else {
                    let_go.insert(*referrer);
                }
            }
        }
        // Somebody may count on it, or a crash may have left it, which no image has.
        let unpulled = let_go.iter().filter(|digest| !kept.contains(*digest));
        let unpulled =
            unpulled.filter_map(|digest| Some((*digest, **forms.get(digest)?))).collect();
        let about = about.into_values().flatten();
        let about = about.filter(|digest| !kept.contains(digest) && !let_go.contains(digest));
        Kept { about: about.collect(), kept, unpulled }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn digest(n: u8) -> Digest {
        Digest::from_sha256([n; 32])
    }

    fn reference(n: u8) -> Value {
        json!({"mediaType": "m", "digest": digest(n).to_string(), "size": 1})
    }

    fn kind(document: Value, age: Duration) -> Kind {
        let bytes = document.to_string();
        let manifest = Manifest::parse(None, bytes.as_bytes()).unwrap();
        Kind { age, size: bytes.len() as u64, manifest }
    }

    fn image(subject: Option<u8>) -> Value {
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": reference(100), "layers": [], "subject": subject.map(reference)})
    }

    fn index(children: &[u8]) -> Value {
        let manifests: Vec<_> = children.iter().map(|child| reference(*child)).collect();
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests})
    }

    #[test]
    fn what_leads_to_or_is_about_what_is_needed_is_needed() {
        use GarbageReason::{SubjectGone, Untagged};
        let old = |document| kind(document, 2 * DAY);
        let manifests = [
            (1, old(index(&[2, 3]))),
            (2, old(image(None))),
            (3, old(image(None))),
            (4, old(image(Some(2)))),
            (5, old(image(Some(4)))),
            (6, old(image(None))),
            (7, old(image(Some(6)))),
            (8, kind(image(None), DAY / 2)),
            (9, old(image(None))),
            (10, old(image(Some(99)))),
        ];
        let contents = Contents {
            tagged: [digest(1)].into(),
            manifests: manifests.map(|(n, kind)| (digest(n), kind)).into(),
            ..Contents::default()
        };
        let kept = contents.kept(&[digest(9), digest(77)].into(), DAY, DAY);
        for (n, lacks) in [
            (1, None),
            (2, None),
            (3, None),
            (4, None),
            (5, None),
            (6, Some(Untagged)),
            (7, Some(SubjectGone)),
            (8, None),
            (9, None),
            (10, Some(SubjectGone)),
        ] {
            assert_eq!(kept.lacks(&digest(n)), lacks.map(Lack::Needed), "{n}");
        }
    }

    #[test]
    fn what_was_converted_is_needed_while_somebody_pulls_it() {
        let converted = |subject| {
            let mut document = image(Some(subject));
            document["artifactType"] = json!(longshore_image::converted::artifact::ARTIFACT_TYPE);
            kind(document, Duration::ZERO)
        };
        let old = |document| kind(document, 2 * DAY);
        let manifests = [
            (1, old(image(None))),
            (2, old(image(None))),
            (3, old(image(None))),
            (4, old(image(None))),
            (11, converted(1)),
            (12, converted(2)),
            (13, converted(3)),
            (14, converted(4)),
            // Of an image that has another one, and about what goes.
            (21, converted(1)),
            (22, old(image(Some(12)))),
        ];
        let form = |n: u8, unused| Form { image: digest(n), artifact: digest(10 + n), unused };
        let contents = Contents {
            tagged: [1, 2, 3].map(digest).into(),
            manifests: manifests.map(|(n, kind)| (digest(n), kind)).into(),
            forms: vec![form(1, DAY / 2), form(2, DAY), form(3, 5 * DAY), form(4, DAY / 2)],
            ..Contents::default()
        };
        // Somebody was told of 13 a moment ago.
        let kept = contents.kept(&[digest(13)].into(), DAY, DAY);
        let needed = |reason| Some(Lack::Needed(reason));
        for (n, lacks) in [
            (2, None),
            (11, None),
            (12, Some(Lack::Pulled(form(2, DAY)))),
            (13, None),
            (14, needed(GarbageReason::SubjectGone)),
            (21, needed(GarbageReason::Untagged)),
            (22, needed(GarbageReason::SubjectGone)),
        ] {
            assert_eq!(kept.lacks(&digest(n)), lacks, "{n}");
        }
    }
}
