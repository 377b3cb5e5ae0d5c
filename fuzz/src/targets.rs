//! The parsers and what must hold of every answer of theirs.

use std::io::Read;
use std::path::Path;

use longshore_image::Limits;
use longshore_image::config::ConfigFile;
use longshore_image::converted::artifact::{self, EMPTY_CONFIG};
use longshore_image::converted::{Table, metadata_of};
use longshore_image::manifest::{Descriptor, Document, INDEX_TYPES, MANIFEST_TYPES};
use longshore_types::{ByteCount, Digest, Manifest};
use sha2::{Digest as _, Sha256};

use crate::opinions;

/// A parser under test.
pub struct Target {
    /// By which it is chosen, and the name of its corpus.
    pub name: &'static str,
    /// Runs it and panics when something is wrong.
    pub run: fn(&[u8]),
    /// Whether blocks of an input carry the checksums of a tar archive.
    pub has_checksums: bool,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "tar", run: tar, has_checksums: true },
    Target { name: "manifest", run: manifest, has_checksums: false },
    Target { name: "config", run: config, has_checksums: false },
    Target { name: "toml", run: toml, has_checksums: false },
    Target { name: "index", run: index, has_checksums: false },
    Target { name: "table", run: table, has_checksums: false },
    Target { name: "artifact", run: artifact, has_checksums: false },
];

/// The target with a name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// The name and the bytes of every file of its committed corpus, in the order of their names.
    ///
    /// # Panics
    /// When it cannot be read or has less than ten files.
    #[must_use]
    pub fn corpus(&self) -> Vec<(String, Vec<u8>)> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let mut files: Vec<_> = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.expect("the corpus can be listed").path())
            .map(|path| {
                let bytes = std::fs::read(&path).expect("the corpus can be read");
                (path.display().to_string(), bytes)
            })
            .collect();
        files.sort();
        assert!(files.len() >= 10, "{}: only {} files", self.name, files.len());
        files
    }
}

/// Gives few bytes at a time, so that every boundary is met in the middle of something.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n_bytes = buffer.len().min(self.0.len()).min(509);
        let (now, later) = self.0.split_at(n_bytes);
        buffer[..n_bytes].copy_from_slice(now);
        self.0 = later;
        Ok(n_bytes)
    }
}

/// However the bytes arrive, they mean the same; and what we accept, another reader reads alike.
fn tar(bytes: &[u8]) {
    let whole = opinions::ours(bytes);
    let trickled = opinions::ours(Trickle(bytes));
    assert_eq!(whole, trickled, "it depends on how the bytes arrive");
    if let Some(difference) = opinions::difference_of_the_tar_crate(&whole, bytes) {
        panic!("the tar crate reads something else: {difference}");
    }
}

/// No document is a manifest to one reader and an index to another.
fn manifest(bytes: &[u8]) {
    let is_accepted = |kind: &str| Document::parse(bytes, kind).is_ok();
    let is_manifest = MANIFEST_TYPES.iter().any(|kind| is_accepted(kind));
    let is_index = INDEX_TYPES.iter().any(|kind| is_accepted(kind));
    assert!(!is_manifest || !is_index, "both a manifest and an index");
    for stated in ["", "text/plain", "application/vnd.oci.image.config.v1+json"] {
        assert!(Document::parse(bytes, stated).is_err(), "taken for an image as {stated:?}");
    }
}

/// What a config is accepted for can be handed to a kernel.
fn config(bytes: &[u8]) {
    let Ok(file) = ConfigFile::parse(bytes) else { return };
    let run = file.run;
    let no_nul = |text: &str| assert!(!text.contains('\0'), "NUL in {text:?}");
    run.entrypoint.iter().chain(&run.cmd).for_each(|text| no_nul(text));
    run.user.iter().for_each(|text| no_nul(text));
    let mut names = std::collections::HashSet::new();
    for (name, value) in &run.env {
        no_nul(name);
        no_nul(value);
        assert!(!name.is_empty() && !name.contains('='), "a variable named {name:?}");
        assert!(names.insert(name), "{name:?} is given twice");
    }
    no_nul(&run.working_dir);
    assert!(run.working_dir.starts_with('/'), "{:?} is relative", run.working_dir);
    let climbs = run.working_dir.split('/').any(|part| part == "..");
    assert!(!climbs, "{:?} climbs", run.working_dir);
}

/// A manifest that is accepted survives its own wire form; one that is refused says why.
fn toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let Ok(document) = serde_json::to_value(table) else { return };
    match Manifest::from_document(&document) {
        Ok(manifest) => {
            let wire = serde_json::to_value(&manifest).expect("a manifest has a wire form");
            let again: Manifest = serde_json::from_value(wire).expect("its wire form is read back");
            assert_eq!(again, manifest);
            assert!(manifest.resources.memory >= ByteCount(1), "no memory at all");
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));
        }
    }
}

/// The index of a layer with whiteouts, for others to be merged with.
const WHITEOUTS: &[u8] = include_bytes!("../corpus/index/whiteouts");

/// Whatever the index of a layer says, a kernel is given a file system whose every number is right and
/// whose files lie in the layer's contents, or nothing.
fn index(bytes: &[u8]) {
    let limits = Limits::default();
    // As if its checksum were right, or nothing but that would ever be looked at.
    let body = &bytes[..bytes.len().saturating_sub(32)];
    let sealed = &[body, &Sha256::digest(body)].concat()[..];
    assert!(sealed == bytes || metadata_of(&[bytes], &limits).is_err(), "the checksum is wrong");
    let Ok(metadata) = metadata_of(&[sealed], &limits) else { return };
    let n_blocks = u64::from(u32::from_le_bytes(body[12..16].try_into().expect("it was read")));
    let read = |metadata: &[u8]| {
        longshore_erofs_reader::read(metadata).unwrap_or_else(|wrong| panic!("{wrong}"))
    };
    let devices = read(&metadata).devices;
    assert!(devices.iter().all(|found| *found == n_blocks), "{devices:?}, not {n_blocks}");
    for layers in [[WHITEOUTS, sealed], [sealed, WHITEOUTS], [sealed, sealed]] {
        // More than fits in a file system is an error.
        if let Ok(metadata) = metadata_of(&layers, &limits) {
            read(&metadata);
        }
    }
}

/// A table that is read has one form alone, and its frames are as many and as long as it says.
fn table(bytes: &[u8]) {
    let Ok(table) = Table::decode(bytes, &Limits::default()) else { return };
    assert_eq!(table.encode(), bytes, "it is written in two ways");
    assert_eq!(table.frames.len() as u64, table.data.0.div_ceil(1 << 20));
    assert!(table.stored() <= table.data, "more is stored than there is");
    assert_eq!(table.difference(&table), None);
}

/// An artifact that is read is about the image that was asked about, and means the same written anew.
fn artifact(bytes: &[u8]) {
    let image = Digest::from_sha256([7; 32]);
    assert!(artifact::decode(bytes, &Digest::from_sha256([0xfe; 32])).is_err(), "of another image");
    let Ok(layers) = artifact::decode(bytes, &image) else { return };
    let config = Digest::from_sha256(Sha256::digest(EMPTY_CONFIG).into());
    let config = Descriptor { digest: config, size: ByteCount(EMPTY_CONFIG.len() as u64) };
    let subject = (MANIFEST_TYPES[0], Descriptor { digest: image, size: ByteCount(1) });
    let again = artifact::encode(subject, config, &layers);
    assert_eq!(artifact::decode(&again, &image).expect("we wrote it"), layers);
}
