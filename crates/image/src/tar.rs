//! The reader of archives, which is not of images alone, with the tests that images need of it.

pub use longshore_archive::tar::*;

#[cfg(test)]
pub(crate) mod tests;
