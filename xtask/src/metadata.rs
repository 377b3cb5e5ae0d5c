//! The members of the workspace as `cargo metadata` names them.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command;

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The path of its Cargo.toml.
    pub manifest_path: String,
    /// Everything it depends on, also for tests and build scripts.
    pub dependencies: Vec<Dependency>,
}

/// A dependency of a package.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The name of the package.
    pub name: String,
    /// Where it lies, when it is one of ours.
    pub path: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// Reads the members of the workspace.
pub fn packages() -> Result<Vec<Package>> {
    let arguments = ["metadata", "--format-version=1", "--no-deps", "--offline"];
    let text = command::output(&mut command::cargo(arguments))?;
    let metadata: Metadata =
        serde_json::from_str(&text).context("cannot read the output of cargo metadata")?;
    Ok(metadata.packages)
}
