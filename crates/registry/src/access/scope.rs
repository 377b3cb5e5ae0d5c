//! Scopes: what a passing token is asked for, `repository:team/app:pull,push` or
//! `registry:catalog:*`, and what it then allows.

use std::fmt;

use longshore_types::Repository;
use longshore_types::token::RegistryAction::{self, Delete, Pull, Push};
use longshore_types::token::{RegistryRight, Rights};
use serde::{Deserialize, Serialize};

const ALL: [RegistryAction; 3] = [Pull, Push, Delete];

/// A set of scopes; each names one repository, or the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scopes {
    catalog: bool,
    repositories: Vec<RegistryRight>,
}

impl Scopes {
    /// What a client must ask for to do this. Who pushes also looks at what is there.
    pub(crate) fn of(repository: &Repository, action: RegistryAction) -> Self {
        let actions = match action {
            Push => vec![Pull, Push],
            action => vec![action],
        };
        let repositories = vec![RegistryRight { repositories: repository.to_string(), actions }];
        Self { catalog: false, repositories }
    }

    /// What a client must ask for to see the catalog.
    pub(crate) fn of_catalog() -> Self {
        Self { catalog: true, repositories: Vec::new() }
    }

    /// Adds a scope as far as `rights` go. One of a kind that this registry does not know allows
    /// nothing, and is no error: clients ask for what other registries have.
    pub(crate) fn add(&mut self, scope: &str, rights: &Rights) {
        let mut parts = scope.split(':');
        let (kind, name, actions) = (parts.next(), parts.next(), parts.next());
        let (Some(kind), Some(name), Some(actions), None) = (kind, name, actions, parts.next())
        else {
            return;
        };
        match (kind, name.parse::<Repository>()) {
            ("registry", _) if name == "catalog" => self.catalog = true,
            ("repository", Ok(repository)) => {
                let asked =
                    |action| actions.split(',').any(|text| text == "*" || text == name_of(action));
                let actions: Vec<_> = ALL
                    .into_iter()
                    .filter(|action| asked(*action) && rights.allows(&repository, *action))
                    .collect();
                if !actions.is_empty() {
                    self.repositories
                        .push(RegistryRight { repositories: name.to_owned(), actions });
                }
            }
            _ => {}
        }
    }

    pub(crate) fn allow(&self, repository: &Repository, action: RegistryAction) -> bool {
        self.repositories.iter().any(|right| {
            right.repositories == repository.as_str() && right.actions.contains(&action)
        })
    }

    pub(crate) fn allow_catalog(&self) -> bool {
        self.catalog
    }
}

/// As a challenge and a request for a token write them.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.catalog {
            f.write_str("registry:catalog:*")?;
            separator = " ";
        }
        for RegistryRight { repositories, actions } in &self.repositories {
            let actions: Vec<_> = actions.iter().copied().map(name_of).collect();
            write!(f, "{separator}repository:{repositories}:{}", actions.join(","))?;
            separator = " ";
        }
        Ok(())
    }
}

fn name_of(action: RegistryAction) -> &'static str {
    match action {
        Pull => "pull",
        Push => "push",
        Delete => "delete",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_goes_no_further_than_the_rights() {
        let right = RegistryRight { repositories: "team/*".to_owned(), actions: vec![Pull, Push] };
        let rights = Rights { registry: vec![right], ..Rights::default() };
        for (asked, given) in [
            ("repository:team/app:pull", "repository:team/app:pull"),
            ("repository:team/app:push,pull", "repository:team/app:pull,push"),
            ("repository:team/app:*", "repository:team/app:pull,push"),
            ("repository:team/app:delete", ""),
            ("repository:other/app:pull", ""),
            ("repository:team/app:fly", ""),
            ("repository:team/app:", ""),
            ("repository:../app:pull", ""),
            ("repository:team/*:pull", ""),
            ("repository:team/app", ""),
            ("repository:host:5000/app:pull", ""),
            ("registry:catalog:*", "registry:catalog:*"),
            ("plugin:team/app:pull", ""),
            ("", ""),
        ] {
            let mut scopes = Scopes::default();
            scopes.add(asked, &rights);
            assert_eq!(scopes.to_string(), given, "{asked}");
        }
    }

    #[test]
    fn what_a_challenge_asks_for_is_what_is_needed() {
        let admin = Rights { admin: true, ..Rights::default() };
        let repository: Repository = "a/b".parse().unwrap();
        for action in ALL {
            let mut scopes = Scopes::default();
            scopes.add(&Scopes::of(&repository, action).to_string(), &admin);
            assert!(scopes.allow(&repository, action));
            assert!(!scopes.allow(&"a/c".parse().unwrap(), action));
            assert!(!scopes.allow_catalog());
        }
        let mut scopes = Scopes::default();
        scopes.add(&Scopes::of_catalog().to_string(), &admin);
        assert!(scopes.allow_catalog());
    }
}
