//! What the bearer of a token may do.

use serde::{Deserialize, Serialize};

use crate::Repository;

/// What may be done to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryAction {
    /// Read manifests, tags and blobs.
    Pull,
    /// Write manifests, tags and blobs.
    Push,
    /// Remove manifests, tags and blobs.
    Delete,
}

/// A right over the repositories that a pattern covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryRight {
    /// A repository, or `prefix/*` for all below a prefix, or `*` for all.
    pub repositories: String,
    /// What may be done there.
    pub actions: Vec<RegistryAction>,
}

/// The rights of a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rights {
    /// Everything everywhere: the token that `longshore up` makes.
    #[serde(default)]
    pub admin: bool,
    /// Rights in the registry.
    #[serde(default)]
    pub registry: Vec<RegistryRight>,
}

impl Rights {
    /// True when the bearer may do `action` to `repository`.
    pub fn allows(&self, repository: &Repository, action: RegistryAction) -> bool {
        self.admin
            || self.registry.iter().any(|right| {
                right.actions.contains(&action) && covers(&right.repositories, repository.as_str())
            })
    }
}

fn covers(pattern: &str, repository: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        Some(prefix) => prefix.ends_with('/') && repository.starts_with(prefix),
        None => pattern == repository,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_whole_parts() {
        for (pattern, repository, expected) in [
            ("*", "a/b", true),
            ("a/*", "a/b", true),
            ("a/*", "ab/c", false),
            ("a*", "ab/c", false),
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
        ] {
            assert_eq!(covers(pattern, repository), expected, "{pattern} {repository}");
        }
    }
}
