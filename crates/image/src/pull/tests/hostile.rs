//! Images made to do harm, each pulled and mounted beside a canary.
//!
//! One table of named cases, so that there is one place to add the next. Whatever a case does, the
//! canary must neither be changed nor read. A refusal must say what is wrong and where.

mod archives;
mod documents;
mod layers;
mod tree;

use std::collections::BTreeSet;

use crate::mount::tests::Scratch;

use super::*;
use tree::{Canary, Tree};

/// An image and what must come of it.
pub(super) struct Case {
    name: &'static str,
    image: Made,
    expected: Expected,
}

enum Made {
    /// From the path of the canary.
    Parts(fn(&str) -> ImageParts),
    /// Straight into the source.
    Source(fn(&FakeSource) -> Digest),
}

enum Expected {
    /// The error and its causes have all of these texts.
    Refused(&'static [&'static str]),
    /// It is pulled, and what it does is seen in its own tree alone.
    Inside(fn(&Tree)),
}

fn refused(
    name: &'static str,
    image: fn(&str) -> ImageParts,
    texts: &'static [&'static str],
) -> Case {
    Case { name, image: Made::Parts(image), expected: Expected::Refused(texts) }
}

fn refused_source(
    name: &'static str,
    source: fn(&FakeSource) -> Digest,
    texts: &'static [&'static str],
) -> Case {
    Case { name, image: Made::Source(source), expected: Expected::Refused(texts) }
}

fn inside(name: &'static str, image: fn(&str) -> ImageParts, check: fn(&Tree)) -> Case {
    Case { name, image: Made::Parts(image), expected: Expected::Inside(check) }
}

fn cases() -> Vec<Case> {
    [layers::cases(), archives::cases(), documents::cases()].into_iter().flatten().collect()
}

/// The default limits, but for those that would take long to reach.
fn limits() -> Limits {
    Limits {
        entries: 2000,
        layer_bytes: ByteCount::mib(32),
        ratio: 100,
        ratio_from: ByteCount::mib(1),
        ..Limits::default()
    }
}

fn layer(archive: Archive) -> ImageParts {
    ImageParts::default().plain(archive)
}

fn two(lower: Archive, upper: Archive) -> ImageParts {
    ImageParts::default().gzip(lower).zstd(upper)
}

impl Case {
    /// The error names what is not as expected.
    async fn run(&self, kernel: KernelPath) -> Result<(), String> {
        let Self { name, image, expected } = self;
        let scratch = Scratch::new();
        let canary = Canary::new(&scratch.path().join("outside"));
        let root = scratch.path().join("store");
        let store = ImageStore::open_with(&root, limits(), Some(kernel)).unwrap();
        let source = Arc::new(FakeSource::default());
        let digest = match image {
            Made::Parts(parts) => parts(canary.path()).publish(&source),
            Made::Source(publish) => publish(&source),
        };
        let pulled = pull(&store, &source, &digest).await;
        match (pulled, expected) {
            (Ok((image, _)), Expected::Inside(check)) => {
                let target = scratch.path().join("rootfs");
                image.mount(&scratch.path().join("base"), &target, None).unwrap();
                let tree = Tree::of(&target);
                canary.assert_not_in(&tree, name);
                check(&tree);
            }
            (Err(error), Expected::Refused(texts)) => {
                let told = longshore_types::chain(&error);
                if let Some(text) = texts.iter().find(|text| !told.contains(*text)) {
                    return Err(format!("{name}: no {text:?} in {told:?}"));
                }
                assert!(told.len() < 2000, "{name}: {} bytes: {told}", told.len());
                assert_eq!(store.list_images(), [], "{name}");
                assert_eq!(entries(&root, "images"), [""; 0], "{name}");
            }
            (result, _) => return Err(format!("{name}: {result:?}")),
        }
        eventually(|| entries(&root, "staging").is_empty()).await;
        canary.assert_untouched(name);
        Ok(())
    }
}

#[tokio::test]
async fn hostile_images_are_refused_or_stay_inside() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    assert!(cases.len() >= 100, "{} cases; the list must not shrink", cases.len());
    let host = tree::host_files();
    let mut wrong = Vec::new();
    for kernel in [KernelPath::Directories, KernelPath::Loop] {
        for case in &cases {
            let outcome = case.run(kernel).await;
            wrong.extend(outcome.err().map(|error| format!("{kernel}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(tree::host_files(), host, "files of the machine changed");
}
