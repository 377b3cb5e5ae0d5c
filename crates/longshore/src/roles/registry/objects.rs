//! Where the bytes of images are: on the registry's disk, or in an object store.

use std::path::{Path, PathBuf};

use longshore_link::chain;
use longshore_registry::{
    Objects, Registry, S3Credentials, S3Endpoint, S3Location, S3Options, S3Region,
};
use longshore_types::ManifestProblem;

use super::RegistryRoleError;
use crate::failure::Failure;

/// What is said of that, as flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ObjectSettings {
    /// Where the bytes of blobs are, as s3://BUCKET/PREFIX [default: in --data-dir, where all else is]
    #[arg(long, value_name = "URL")]
    pub storage: Option<S3Location>,
    /// The object store, as https://HOST:PORT [default: what AWS_ENDPOINT_URL says, else Amazon's]
    #[arg(long = "s3-endpoint", value_name = "URL")]
    pub endpoint: Option<S3Endpoint>,
    /// Its region [default: what AWS_REGION says, else us-east-1]
    #[arg(long = "s3-region", value_name = "NAME")]
    pub region: Option<S3Region>,
    /// The credentials for it, in a file like ~/.aws/credentials, for its owner alone [default: those of the
    /// environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY]
    #[arg(long = "s3-credentials", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
}

impl ObjectSettings {
    /// All that is wrong. `prefix` is what the names of the keys begin with.
    pub fn problems(&self, prefix: &str) -> Vec<ManifestProblem> {
        let Self { storage, endpoint, region, credentials } = self;
        let problem = |field: &str, value: String, allowed: String| ManifestProblem {
            field: format!("{prefix}{field}"),
            value,
            allowed,
        };
        if storage.is_none() {
            let given = [
                ("s3_endpoint", endpoint.as_ref().map(ToString::to_string)),
                ("s3_region", region.as_ref().map(ToString::to_string)),
                ("s3_credentials", credentials.as_ref().map(|path| path.display().to_string())),
            ];
            let allowed = format!("nothing without {prefix}storage");
            let given = given.into_iter().filter_map(|(field, value)| Some((field, value?)));
            return given.map(|(field, value)| problem(field, value, allowed.clone())).collect();
        }
        let Some(path) = credentials else { return Vec::new() };
        let wrong = S3Credentials::read(path).err().map(|error| {
            let allowed = format!("a file of credentials: {}", chain(&error));
            problem("s3_credentials", path.display().to_string(), allowed)
        });
        wrong.into_iter().collect()
    }

    /// What the registry is to connect to, if to anything.
    pub fn read(self) -> Result<Option<S3Options>, Failure> {
        let problems = self.problems("");
        if !problems.is_empty() {
            return Err(Failure::of_flags(problems));
        }
        let Self { storage, endpoint, region, credentials } = self;
        let credentials = credentials.map(|path| S3Credentials::read(&path)).transpose();
        let credentials = credentials.map_err(|error| {
            // It was readable a moment ago.
            Failure::new(crate::failure::Kind::Invalid, chain(&error))
        })?;
        Ok(storage.map(|location| S3Options {
            endpoint,
            region,
            credentials,
            ..S3Options::new(location)
        }))
    }
}

/// Connects to the store, if there is one, for the registry in a directory. One that it has used before
/// need not be there at this moment.
pub async fn connect(
    options: Option<S3Options>,
    images: &Path,
) -> Result<Option<Objects>, RegistryRoleError> {
    let Some(options) = options else { return Ok(None) };
    let location = options.location.clone();
    let objects = match Registry::has_used(images, &location) {
        true => Objects::connect_again(options).await?,
        false => Objects::connect(options).await?,
    };
    Registry::check_store(images, &objects).await?;
    tracing::info!(%location, "the bytes of images are in an object store");
    Ok(Some(objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_no_store_or_in_vain_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let credentials = Some(file.path().to_owned());
        let settings = ObjectSettings {
            region: Some("auto".parse().unwrap()),
            credentials: credentials.clone(),
            ..ObjectSettings::default()
        };
        let told = |settings: &ObjectSettings| {
            let problems = settings.problems("registry_");
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let without = told(&settings);
        for part in [
            "registry_s3_region = auto: nothing without registry_storage",
            "registry_s3_credentials = /",
        ] {
            assert!(without.contains(part), "{without}");
        }
        let storage = Some("s3://images".parse().unwrap());
        let settings = ObjectSettings { storage, ..settings };
        let empty = told(&settings);
        assert!(empty.contains("has no aws_access_key_id in [default]"), "{empty}");
        let none = ObjectSettings { credentials: Some("/none".into()), ..settings };
        assert!(told(&none).contains("registry_s3_credentials = /none"), "{}", told(&none));
        assert_eq!(told(&ObjectSettings { credentials: None, ..none }), "");
        assert_eq!(told(&ObjectSettings::default()), "");
    }
}
