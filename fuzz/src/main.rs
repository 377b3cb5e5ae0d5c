//! The program that libFuzzer drives: its own `main` calls the target that the environment names.

#![no_main]

use std::sync::OnceLock;

use longshore_fuzz::targets::{self, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("LONGSHORE_FUZZ_TARGET").unwrap_or_default();
        targets::by_name(&name).unwrap_or_else(|| panic!("LONGSHORE_FUZZ_TARGET={name:?}"))
    });
    (target.run)(bytes);
});
