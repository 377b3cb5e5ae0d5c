//! Images made to do harm, each pulled and mounted beside a canary.
//!
//! One table of named cases, so that there is one place to add the next. Whatever a case does, the
//! canary must neither be changed nor read. A refusal must say what is wrong and where.

mod archives;
mod documents;
mod foreign;
mod layers;
mod tree;

use std::collections::BTreeSet;

use crate::mount::tests::Scratch;

use super::*;
use converted::convert_what_may_be;
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
    let cases = [layers::cases(), archives::cases(), documents::cases(), foreign::cases()];
    cases.into_iter().flatten().collect()
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

/// How an image comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As it was pushed, to be mounted so.
    Plain(KernelPath),
    /// Its layers as a registry converts them, but for those that it refuses.
    Converted,
}

impl Way {
    fn kernel(self) -> KernelPath {
        match self {
            Self::Plain(kernel) => kernel,
            Self::Converted => KernelPath::Loop,
        }
    }
}

impl Case {
    /// The error names what is not as expected.
    async fn run(&self, way: Way) -> Result<(), String> {
        let Self { name, image, expected } = self;
        let scratch = Scratch::new();
        let canary = Canary::new(&scratch.path().join("outside"));
        let root = scratch.path().join("store");
        let store = ImageStore::open_with(&root, limits(), Some(way.kernel())).unwrap();
        let source = Arc::new(FakeSource::default());
        let digest = match image {
            Made::Parts(parts) => {
                let parts = parts(canary.path());
                let digest = parts.clone().publish(&source);
                if way == Way::Converted {
                    let n_taken = convert_what_may_be(&parts, (&source, &digest), &limits());
                    if let Expected::Inside(_) = expected {
                        assert_eq!(n_taken, parts.n_layers(), "{name}");
                        (0..n_taken)
                            .for_each(|idx| source.replace_blob(&parts.blob(idx), Vec::clear));
                    }
                }
                digest
            }
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
    assert!(cases.len() >= 190, "{} cases; the list must not shrink", cases.len());
    let host = tree::host_files();
    let mut wrong = Vec::new();
    for way in [KernelPath::Directories, KernelPath::Loop].map(Way::Plain) {
        for case in &cases {
            let outcome = case.run(way).await;
            wrong.extend(outcome.err().map(|error| format!("{way:?}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(tree::host_files(), host, "files of the machine changed");
}

/// What a registry makes of a layer is no way around what a node refuses.
#[tokio::test]
async fn hostile_layers_are_refused_or_stay_inside_when_they_are_converted_too() {
    let host = tree::host_files();
    let mut wrong = Vec::new();
    for case in layers::cases().iter().chain(&archives::cases()).chain(&foreign::cases()) {
        wrong.extend(case.run(Way::Converted).await.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(tree::host_files(), host, "files of the machine changed");
}
