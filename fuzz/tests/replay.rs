//! The committed corpus, and changes of it that are the same in every run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use fastrand::Rng;
use longshore_fuzz::mutate::mutate;
use longshore_fuzz::targets::{TARGETS, Target, by_name};
use longshore_fuzz::{cases, seed};

/// Every file of a target's corpus, in the order of their names.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(target.corpus())
        .unwrap_or_else(|error| panic!("{}: {error}", target.corpus().display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{}: only {} files", target.name, files.len());
    files
}

#[test]
fn the_corpus_of_every_target_passes() {
    for target in &TARGETS {
        for (name, bytes) in corpus(target) {
            println!("{name}");
            (target.run)(&bytes);
        }
    }
}

fn mutations(name: &str) {
    let target = by_name(name).unwrap();
    let corpus = corpus(target);
    let mut rng = Rng::with_seed(seed());
    for _ in cases(4000) {
        let [one, other] = [0, 1].map(|_| &corpus[rng.usize(..corpus.len())].1);
        let bytes = mutate(&mut rng, one, other, target.has_checksums);
        let run = std::panic::AssertUnwindSafe(|| (target.run)(&bytes));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let path = std::env::temp_dir().join(format!("longshore-fuzz-{name}"));
            std::fs::write(&path, &bytes).unwrap();
            eprintln!("the input is in {}", path.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn mutated_archives_pass() {
    mutations("tar");
}

#[test]
fn mutated_manifests_pass() {
    mutations("manifest");
}

#[test]
fn mutated_configs_pass() {
    mutations("config");
}

#[test]
fn mutated_toml_passes() {
    mutations("toml");
}
