//! The committed corpus, and changes of it that are the same in every run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use fastrand::Rng;
use longshore_fuzz::mutate::mutate;
use longshore_fuzz::targets::{TARGETS, by_name};
use longshore_fuzz::{cases, seed};

#[test]
fn the_corpus_of_every_target_passes() {
    for target in &TARGETS {
        for (name, bytes) in target.corpus() {
            println!("{name}");
            (target.run)(&bytes);
        }
    }
}

fn mutations(name: &str) {
    let target = by_name(name).unwrap();
    let corpus = target.corpus();
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

#[test]
fn mutated_indexes_pass() {
    mutations("index");
}

#[test]
fn mutated_tables_pass() {
    mutations("table");
}

#[test]
fn mutated_artifacts_pass() {
    mutations("artifact");
}
