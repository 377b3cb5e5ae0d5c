//! What a driver keeps in an instance's run directory: the bundle, and the runtime's own state.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::DriverProblem;
use crate::files;

pub(super) struct RunFiles {
    pub bundle: PathBuf,
    pub state: PathBuf,
}

impl RunFiles {
    /// `dir` is the instance's run directory.
    pub fn new(dir: &Path) -> Self {
        Self { bundle: dir.join("bundle"), state: dir.join("runtime") }
    }

    /// The configuration in the bundle.
    pub fn config(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    /// Makes the directories where they are missing.
    pub fn make(&self) -> Result<(), DriverProblem> {
        for dir in [&self.bundle, &self.state] {
            fs::create_dir_all(dir).map_err(prepare(dir))?;
        }
        Ok(())
    }

    /// Removes everything.
    pub fn remove(&self) -> Result<(), DriverProblem> {
        for dir in [&self.state, &self.bundle] {
            files::remove_if_present(dir).map_err(prepare(dir))?;
        }
        Ok(())
    }
}

/// Writes a document for the runtime to read.
pub(super) fn write(path: &Path, document: &Value) -> Result<(), DriverProblem> {
    fs::write(path, document.to_string()).map_err(prepare(path))
}

fn prepare(path: &Path) -> impl FnOnce(std::io::Error) -> DriverProblem {
    move |source| DriverProblem::Prepare { path: path.to_owned(), source }
}
