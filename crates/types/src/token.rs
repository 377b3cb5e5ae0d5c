//! What the bearer of a token may do.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ParseError, ProjectName, Repository};

/// What may be done to a repository.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryRight {
    /// A repository, or `prefix/*` for all below a prefix, or `*` for all.
    pub repositories: String,
    /// What may be done there.
    pub actions: Vec<RegistryAction>,
}

/// What somebody may do in a project; each may what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at apps, instances and logs; pull images.
    Read,
    /// Deploy and remove apps, run commands inside, set secrets; push images.
    Deploy,
    /// Make tokens for others; delete images.
    Admin,
}

impl Role {
    /// Every role, the weakest first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Deploy, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }

    fn may(self, action: RegistryAction) -> bool {
        let least = match action {
            RegistryAction::Pull => Self::Read,
            RegistryAction::Push => Self::Deploy,
            RegistryAction::Delete => Self::Admin,
        };
        self >= least
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| ParseError::new("role", text, "read, deploy or admin"))
    }
}

/// A role in a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectRole {
    /// The project; every one when it is absent.
    pub project: Option<ProjectName>,
    /// What may be done there.
    pub role: Role,
}

impl ProjectRole {
    fn is_in(&self, project: &ProjectName) -> bool {
        self.project.as_ref().is_none_or(|of| of == project)
    }
}

/// The rights of a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rights {
    /// Everything everywhere: the token that `longshore up` makes.
    #[serde(default)]
    pub admin: bool,
    /// Roles in projects, and over the repositories that begin with a project's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<ProjectRole>,
    /// Rights in the registry alone.
    #[serde(default)]
    pub registry: Vec<RegistryRight>,
}

impl Rights {
    /// The strongest role of the bearer in a project.
    pub fn role_in(&self, project: &ProjectName) -> Option<Role> {
        self.strongest(|role| role.is_in(project))
    }

    /// The strongest role of the bearer anywhere.
    pub fn role_anywhere(&self) -> Option<Role> {
        self.strongest(|_| true)
    }

    fn strongest(&self, counts: impl Fn(&&ProjectRole) -> bool) -> Option<Role> {
        let roles = self.roles.iter().filter(counts).map(|role| role.role);
        roles.chain(self.admin.then_some(Role::Admin)).max()
    }

    /// True when the bearer may do `action` to `repository`.
    pub fn allows(&self, repository: &Repository, action: RegistryAction) -> bool {
        let (project, _) = repository.as_str().split_once('/').unwrap_or_default();
        self.admin
            || self.roles.iter().any(|role| {
                let is_there = role.project.as_ref().is_none_or(|of| of.as_str() == project);
                is_there && role.role.may(action)
            })
            || self.registry.iter().any(|right| {
                right.actions.contains(&action) && covers(&right.repositories, repository.as_str())
            })
    }

    /// True when the bearer, who is an administrator of projects, may give these rights to others: they
    /// are in these projects.
    pub fn may_give(&self, given: &Self) -> bool {
        let administers = |project: Option<&ProjectName>| match project {
            Some(project) => self.role_in(project) == Some(Role::Admin),
            None => self.roles.iter().any(|own| own.project.is_none() && own.role == Role::Admin),
        };
        let in_project = |pattern: &str| {
            let project = pattern.split_once('/').and_then(|(first, _)| first.parse().ok());
            project.is_some_and(|project: ProjectName| administers(Some(&project)))
        };
        self.admin
            || !given.admin
                && given.roles.iter().all(|role| administers(role.project.as_ref()))
                && given
                    .registry
                    .iter()
                    .all(|right| administers(None) || in_project(&right.repositories))
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

    fn role(project: Option<&str>, role: Role) -> Rights {
        let project = project.map(|name| name.parse().unwrap());
        Rights { roles: vec![ProjectRole { project, role }], ..Rights::default() }
    }

    #[test]
    fn a_role_holds_in_its_project_and_over_its_repositories() {
        let (mine, other) = ("mine".parse().unwrap(), "other".parse().unwrap());
        let deploy = role(Some("mine"), Role::Deploy);
        assert_eq!((deploy.role_in(&mine), deploy.role_in(&other)), (Some(Role::Deploy), None));
        assert_eq!(role(None, Role::Read).role_in(&other), Some(Role::Read));
        assert_eq!(Rights::default().role_anywhere(), None);
        for (repository, action, allowed) in [
            ("mine/web", RegistryAction::Pull, true),
            ("mine/web", RegistryAction::Push, true),
            ("mine/web", RegistryAction::Delete, false),
            ("mine", RegistryAction::Pull, false),
            ("mine2/web", RegistryAction::Pull, false),
            ("other/web", RegistryAction::Pull, false),
        ] {
            let repository = repository.parse().unwrap();
            assert_eq!(deploy.allows(&repository, action), allowed, "{repository} {action:?}");
        }
    }

    #[test]
    fn nobody_gives_more_than_they_administer() {
        let registry = |pattern: &str| Rights {
            registry: vec![RegistryRight {
                repositories: pattern.to_owned(),
                actions: vec![RegistryAction::Push],
            }],
            ..Rights::default()
        };
        let platform = Rights { admin: true, ..Rights::default() };
        let mine = role(Some("mine"), Role::Admin);
        for (giver, given, expected) in [
            (&platform, &platform, true),
            (&mine, &platform, false),
            (&mine, &role(Some("mine"), Role::Admin), true),
            (&mine, &role(Some("other"), Role::Read), false),
            (&mine, &role(None, Role::Read), false),
            (&mine, &registry("mine/*"), true),
            (&mine, &registry("mine/web"), true),
            (&mine, &registry("*"), false),
            (&mine, &registry("mine2/*"), false),
            (&role(None, Role::Admin), &role(None, Role::Admin), true),
            (&role(None, Role::Admin), &registry("*"), true),
            (&role(None, Role::Admin), &platform, false),
            (&role(Some("mine"), Role::Deploy), &role(Some("mine"), Role::Read), false),
        ] {
            assert_eq!(giver.may_give(given), expected, "{giver:?} {given:?}");
        }
    }
}
