//! `check-layers`: imports point down only.
//!
//! Every crate has a layer, and may use crates of lower layers alone, in tests too. So a service
//! never imports a service: they meet in `longshore-api`, and running them apart stays a matter of
//! wiring. A crate that is not in the table fails the check, so that its place is chosen, not drifted
//! into.

use anyhow::{Result, bail};

use crate::metadata::{self, Package};

/// The layers from the bottom to the top.
const LAYERS: &[&[&str]] = &[
    &["longshore-types"],
    &["longshore-planning"],
    &["longshore-api"],
    &["longshore-trust"],
    &["longshore-link", "longshore-archive", "longshore-loop", "longshore-erofs-reader"],
    &["longshore-telemetry"],
    &[
        "longshore-client",
        "longshore-store",
        "longshore-image",
        "longshore-runtime",
        "longshore-network",
        "longshore-disk",
        "longshore-secrets",
        "longshore-world",
    ],
    &[
        "longshore-global",
        "longshore-location",
        "longshore-node",
        "longshore-registry",
        "longshore-ingress",
    ],
    &["longshore-fuzz"],
    &["longshore"],
    &["longshore-e2e", "longshore-simulation"],
    &["xtask"],
];

/// Checks the workspace.
pub fn run() -> Result<()> {
    let faults = faults(&metadata::packages()?);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("crates depend on what is not below them:\n{}", faults.join("\n"));
}

fn layer_of(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// Every edge that does not point down, and every crate without a layer, as a line each.
fn faults(packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages {
        let Some(layer) = layer_of(&package.name) else {
            faults.push(format!("  {}: has no layer; give it one in xtask", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|other| other.path.is_some()) {
            // A dependency without a layer is a member and reported as such.
            if layer_of(&dependency.name).is_some_and(|below| below >= layer) {
                faults.push(format!("  {} -> {}", package.name, dependency.name));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn package(name: &str, ours: &[&str]) -> Package {
        let dependency =
            |name: &str, path: Option<String>| Dependency { name: name.to_owned(), path };
        let mut dependencies: Vec<_> =
            ours.iter().map(|name| dependency(name, Some(format!("crates/{name}")))).collect();
        dependencies.push(dependency("serde", None));
        Package { name: name.to_owned(), manifest_path: String::new(), dependencies }
    }

    #[test]
    fn only_edges_that_point_down_pass() {
        for (name, ours, n_faults) in [
            ("longshore-types", &[][..], 0),
            ("longshore-planning", &["longshore-types"], 0),
            ("longshore-types", &["longshore-planning"], 1),
            ("longshore-node", &["longshore-image", "longshore-link"], 0),
            ("longshore-node", &["longshore-location"], 1),
            ("longshore-image", &["longshore-network"], 1),
            ("longshore-store", &["longshore-global", "longshore-types"], 1),
            ("longshore", &["longshore-global", "longshore-node"], 0),
            ("longshore-new", &["longshore-types"], 1),
        ] {
            let faults = faults(&[package(name, ours)]);
            assert_eq!(faults.len(), n_faults, "{name} {ours:?}: {faults:?}");
        }
    }

    #[test]
    fn this_workspace_passes() {
        run().unwrap();
    }
}
