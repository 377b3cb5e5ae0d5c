//! What of a repository is needed; decided without a look at the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use longshore_types::Digest;
use longshore_types::garbage::{GarbageReason, KeptReason};

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

/// By what a manifest is needed that nothing else leads to.
#[derive(Debug)]
pub(super) struct Needs<'a> {
    /// For which release.
    pub(super) pinned: &'a BTreeMap<Digest, String>,
    /// On what somebody counts.
    pub(super) leased: &'a BTreeSet<Digest>,
    /// Not being as old as this.
    pub(super) untagged: Duration,
    /// Of what the registry itself converted of an image: that somebody asked for it since.
    pub(super) unpulled: Duration,
}

/// The manifests that are needed, and what those that are not are about.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// With all that needs them, or with what leads to them.
    kept: BTreeMap<Digest, Vec<KeptReason>>,
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
        if self.kept.contains_key(digest) {
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

    /// Why a manifest is needed; for no reason when it is not.
    pub(super) fn reasons(&self, digest: &Digest) -> &[KeptReason] {
        self.kept.get(digest).map_or(&[], Vec::as_slice)
    }
}

impl Contents {
    /// What is needed: what something says of itself, what that leads to, and what is about any of it; of what the
    /// registry itself converted what an image has and somebody pulls.
    pub(super) fn kept(&self, needs: &Needs<'_>) -> Kept {
        let mut about: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        for (digest, kind) in &self.manifests {
            if let Some(subject) = kind.manifest.subject {
                about.entry(subject).or_default().push(*digest);
            }
        }
        let forms: BTreeMap<Digest, &Form> =
            self.forms.iter().map(|form| (form.artifact, form)).collect();
        let is_pulled = |artifact: &Digest| {
            forms.get(artifact).is_some_and(|form| form.unused < needs.unpulled)
        };
        let mut kept: BTreeMap<Digest, Vec<KeptReason>> =
            self.manifests.keys().map(|digest| (*digest, self.needed_by(digest, needs))).collect();
        kept.retain(|_, reasons| !reasons.is_empty());
        let mut to_follow: Vec<Digest> = kept.keys().copied().collect();
        let mut let_go = BTreeSet::new();
        while let Some(digest) = to_follow.pop() {
            // What names something need not have it.
            let Some(kind) = self.manifests.get(&digest) else { continue };
            let mut follow = |next: Digest, reason| {
                let reasons = kept.entry(next).or_default();
                if reasons.is_empty() {
                    to_follow.push(next);
                }
                reasons.push(reason);
            };
            for child in &kind.manifest.manifests {
                follow(child.digest, KeptReason::PartOf { manifest: digest });
            }
            for referrer in about.get(&digest).into_iter().flatten() {
                let is_converted =
                    self.manifests.get(referrer).is_some_and(|kind| kind.manifest.is_converted());
                if !is_converted || is_pulled(referrer) {
                    follow(*referrer, KeptReason::About { manifest: digest });
                } else {
                    let_go.insert(*referrer);
                }
            }
        }
        // Somebody may count on it; and what a crash left no image has.
        let unpulled = let_go.iter().filter(|digest| !kept.contains_key(*digest));
        let unpulled =
            unpulled.filter_map(|digest| Some((*digest, **forms.get(digest)?))).collect();
        let about = about.into_values().flatten();
        let about = about.filter(|digest| !kept.contains_key(digest) && !let_go.contains(digest));
        Kept { about: about.collect(), kept, unpulled }
    }

    /// All that needs a manifest for itself.
    fn needed_by(&self, digest: &Digest, needs: &Needs<'_>) -> Vec<KeptReason> {
        let Some(kind) = self.manifests.get(digest) else { return Vec::new() };
        let release = needs
            .pinned
            .get(digest)
            .map(|release| KeptReason::Release { release: release.clone() });
        let tagged = self.tagged.contains(digest).then_some(KeptReason::Tagged);
        let asked = needs.leased.contains(digest).then_some(KeptReason::Asked);
        // What the registry itself made of an image is there for that alone.
        let is_young = kind.age < needs.untagged && !kind.manifest.is_converted();
        let young = is_young.then(|| KeptReason::Young {
            left: longshore_types::Duration(needs.untagged - kind.age),
        });
        [release, tagged, asked, young].into_iter().flatten().collect()
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
        let pinned = [(digest(9), "web r1".to_owned()), (digest(77), "web r2".to_owned())].into();
        let needs = Needs {
            pinned: &pinned,
            leased: &[digest(3), digest(9)].into(),
            untagged: DAY,
            unpulled: DAY,
        };
        let kept = contents.kept(&needs);
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
        // And why.
        let release = KeptReason::Release { release: "web r1".to_owned() };
        let left = longshore_types::Duration(DAY / 2);
        for (n, reasons) in [
            (1, vec![KeptReason::Tagged]),
            (2, vec![KeptReason::PartOf { manifest: digest(1) }]),
            (3, vec![KeptReason::Asked, KeptReason::PartOf { manifest: digest(1) }]),
            (4, vec![KeptReason::About { manifest: digest(2) }]),
            (5, vec![KeptReason::About { manifest: digest(4) }]),
            (6, vec![]),
            (8, vec![KeptReason::Young { left }]),
            (9, vec![release, KeptReason::Asked]),
        ] {
            assert_eq!(kept.reasons(&digest(n)), reasons, "{n}");
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
        let leased = [digest(13)].into();
        let needs =
            Needs { pinned: &BTreeMap::new(), leased: &leased, untagged: DAY, unpulled: DAY };
        let kept = contents.kept(&needs);
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
