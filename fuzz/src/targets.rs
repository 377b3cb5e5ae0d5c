//! The parsers and what must hold of every answer of theirs.

use std::io::Read;
use std::path::Path;

use longshore_image::config::ConfigFile;
use longshore_image::manifest::{Document, INDEX_TYPES, MANIFEST_TYPES};
use longshore_types::{ByteCount, Manifest};

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
pub const TARGETS: [Target; 4] = [
    Target { name: "tar", run: tar, has_checksums: true },
    Target { name: "manifest", run: manifest, has_checksums: false },
    Target { name: "config", run: config, has_checksums: false },
    Target { name: "toml", run: toml, has_checksums: false },
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
