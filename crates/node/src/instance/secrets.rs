//! The secrets of an instance: had from its location, shown inside.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use longshore_api::links::{InstanceSecretsRequest, SecretValues};
use longshore_link::{CallError, chain};
use longshore_runtime::ReadOnlyFile;
use longshore_types::{SecretPlace, SecretValue};

use super::Actor;
use crate::disk::{Secrets, View};

/// How often a location that cannot be asked now is asked again before the start has failed, and the
/// time between.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_millis(500);

/// What a container gets of its secrets.
pub(super) struct ShownSecrets {
    pub env: BTreeMap<String, SecretValue>,
    pub files: Vec<ReadOnlyFile>,
}

impl Actor {
    /// The values of the secrets of its release. The location is asked first, for a value may have been
    /// lost here; while it is away, what it said last counts: a release has the same ones for ever.
    pub(super) async fn secrets(&self) -> Result<Secrets, String> {
        let release = &self.assignment.release;
        if release.secrets.is_empty() {
            return Ok(Secrets::new());
        }
        let instance = &self.assignment.instance;
        let is_whole =
            |values: &Secrets| release.secrets.keys().all(|name| values.contains_key(name));
        let kept = self.node.disk.kept_secrets(instance).map_err(|error| chain(&error))?;
        let kept = kept.filter(is_whole);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.ask_for_secrets().await {
                Ok(values) if is_whole(&values) => {
                    let saved = self.node.disk.keep_secrets(instance, &values);
                    saved.map_err(|error| chain(&error))?;
                    return Ok(values);
                }
                Ok(_) => return Err("the location did not give all secrets".to_owned()),
                Err(error) => match &kept {
                    Some(values) => return Ok(values.clone()),
                    None if error.retryable() && tries < TRIES => tokio::time::sleep(RETRY).await,
                    None => return Err(format!("the secrets cannot be had: {}", chain(&error))),
                },
            }
        }
    }

    async fn ask_for_secrets(&self) -> Result<Secrets, CallError> {
        let path = format!("/link/nodes/{}/secrets", self.node.name);
        let request = InstanceSecretsRequest { instance: self.assignment.instance.clone() };
        let answer: SecretValues =
            self.node.location.call(Method::POST, &path, Some(&request)).await?;
        Ok(answer.values)
    }

    /// Writes those that are shown as files, and gives all with their places.
    pub(super) fn show_secrets(
        &self,
        view: &View,
        secrets: Secrets,
    ) -> Result<ShownSecrets, String> {
        let mut shown = ShownSecrets { env: BTreeMap::new(), files: Vec::new() };
        let places = &self.assignment.release.manifest.secrets;
        for (idx, (place, name)) in places.iter().enumerate() {
            let value = secrets.get(name).ok_or_else(|| format!("secret {name} is missing"))?;
            match place {
                SecretPlace::Variable(variable) => {
                    shown.env.insert(variable.clone(), value.clone());
                }
                SecretPlace::File(path) => {
                    let file = format!("secret-{idx}");
                    view.show_secret(&file, value)
                        .map_err(|error| format!("cannot write secret {name}: {error}"))?;
                    let source = view.etc.join(file);
                    shown.files.push(ReadOnlyFile { source, destination: path.clone() });
                }
            }
        }
        Ok(shown)
    }
}
