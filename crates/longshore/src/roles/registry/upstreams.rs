//! Which other registries' images the registry gives as its own.

use std::path::PathBuf;

use longshore_image::client::DockerConfig;
use longshore_link::chain;
use longshore_registry::{UpstreamOptions, UpstreamSource};
use longshore_trust::public_client_config;
use longshore_types::ManifestProblem;

use crate::failure::{Failure, Kind};

/// What is said of them, as flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct UpstreamSettings {
    /// Another registry, whose images are had here below its name, such as docker.io=https://registry-1.docker.io;
    /// they come when somebody pulls them. May be given several times; those of one name are tried in their order
    #[arg(long = "upstream", value_name = "NAME=URL")]
    pub upstreams: Vec<UpstreamSource>,
    /// Who this one is to them, in a file as `docker login` writes it, for its owner alone [default: nobody]
    #[arg(id = "upstream_credentials", long = "upstream-credentials", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Certificates, in PEM, by which they are believed beside those that this machine trusts
    #[arg(id = "upstream_ca", long = "upstream-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl UpstreamSettings {
    /// All that is wrong.
    pub fn problems(&self) -> Vec<ManifestProblem> {
        let Self { upstreams, credentials, ca } = self;
        let problem = |field: &str, path: &PathBuf, allowed: String| ManifestProblem {
            field: field.to_owned(),
            value: path.display().to_string(),
            allowed,
        };
        let named = [("upstream_credentials", credentials), ("upstream_ca", ca)];
        let given = named.into_iter().filter_map(|(field, path)| Some((field, path.as_ref()?)));
        if upstreams.is_empty() {
            let allowed = "nothing without upstream".to_owned();
            return given.map(|(field, path)| problem(field, path, allowed.clone())).collect();
        }
        let mut problems = Vec::new();
        if let Some(path) = credentials {
            let wrong = match DockerConfig::read_private(path) {
                Ok(config) => {
                    let each = upstreams.iter().map(|upstream| config.credentials(upstream.host()));
                    each.filter_map(Result::err).next()
                }
                Err(error) => Some(error),
            };
            problems.extend(wrong.map(|error| {
                let allowed = format!("a file of credentials: {}", chain(&error));
                problem("upstream_credentials", path, allowed)
            }));
        }
        if let Some(path) = ca
            && let Err(error) = public_client_config(Some(path))
        {
            let allowed = format!("a file of certificates in PEM: {}", chain(&error));
            problems.push(problem("upstream_ca", path, allowed));
        }
        problems
    }

    /// What the registry is to do.
    pub fn read(self) -> Result<UpstreamOptions, Failure> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(Failure::of_flags(problems));
        }
        let Self { upstreams, credentials, ca } = self;
        let credentials = credentials.map(|path| DockerConfig::read_private(&path)).transpose();
        // It was readable a moment ago.
        let credentials =
            credentials.map_err(|error| Failure::new(Kind::Invalid, chain(&error)))?;
        Ok(UpstreamOptions { sources: upstreams, credentials, ca, ..UpstreamOptions::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_said_of_none_or_cannot_be_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        fs::write(&file, r#"{"auths": {"a.test": {"auth": "?"}}}"#).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let told = |settings: &UpstreamSettings| {
            let problems = settings.problems();
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let ca = Some(file.clone());
        let none = UpstreamSettings { credentials: ca.clone(), ca, ..UpstreamSettings::default() };
        let text = told(&none);
        assert_eq!(text.matches("nothing without upstream").count(), 2, "{text}");
        let upstreams = vec!["a.test=https://a.test".parse().unwrap()];
        let text = told(&UpstreamSettings { upstreams, ..none.clone() });
        assert!(text.contains("upstream_credentials = /") && text.contains("of a.test"), "{text}");
        assert!(text.contains("upstream_ca = /"), "{text}");
        let upstreams = vec!["b.test=https://b.test".parse().unwrap()];
        let other = UpstreamSettings { upstreams, ca: None, ..none };
        assert_eq!(told(&other), "");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert!(told(&other).contains("for its owner alone"), "{}", told(&other));
        assert_eq!(told(&UpstreamSettings::default()), "");
    }
}
