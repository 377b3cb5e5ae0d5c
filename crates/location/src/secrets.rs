//! The secrets of the instances that run here.
//!
//! They come from the global plane when allotments that need them do, and are kept, sealed with a key
//! of the location's own, until no allotment and no instance needs them: so that instances are started
//! also while the global plane is away. A node is given those of its own instances.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use http::Method;
use longshore_api::links::{AllotmentSet, AppRef, SecretValues, SecretsRequest};
use longshore_link::{CallError, Followed};
use longshore_secrets::{Keyring, KeyringError, Sealed};
use longshore_store::{MAX_OPERATIONS, Page, Record, Store, StoreError, Transaction};
use longshore_types::{LocationName, ProjectName, Release, SecretName, SecretValue, SecretVersion};
use serde::{Deserialize, Serialize};

/// Below this, one record per version of a secret.
const SECRETS: &str = "/secrets/";

/// A version of a secret as it is kept here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct SecretRecord(Sealed);

impl Record for SecretRecord {
    const KIND: &'static str = "secret";
}

/// Why the secrets of a release cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The global plane does not give them.
    #[error("asking the global plane for secrets")]
    Global(#[from] CallError),
    /// The global plane left one out.
    #[error("the global plane did not give secret {0}")]
    Missing(SecretName),
    /// The store cannot be read.
    #[error("reading secrets")]
    Store(#[from] StoreError),
    /// They cannot be sealed.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

/// What keeps them.
pub struct Secrets {
    global: Followed,
    location: LocationName,
    store: Arc<dyn Store>,
    keyring: Keyring,
}

fn key(project: &ProjectName, name: &SecretName, version: SecretVersion) -> String {
    format!("{SECRETS}{project}/{name}/{}", version.0)
}

/// The releases with secrets that are allotted, by app.
#[derive(Debug, Default)]
pub struct Needing(BTreeMap<AppRef, Vec<Arc<Release>>>);

impl Needing {
    /// Takes over a set, or a change; true when there may be something to do.
    pub fn take(&mut self, set: &AllotmentSet) -> bool {
        let is_whole = set.since.is_none();
        if is_whole {
            self.0.clear();
        }
        let mut any = is_whole;
        for app in &set.gone {
            any |= self.0.remove(app).is_some();
        }
        for allotment in &set.allotments {
            let (project, app) = (allotment.project().clone(), allotment.app().clone());
            let releases = allotment.releases();
            let with_secrets: Vec<_> =
                releases.filter(|release| !release.secrets.is_empty()).cloned().collect();
            let app = AppRef { project, app };
            any |= match with_secrets.is_empty() {
                true => self.0.remove(&app).is_some(),
                false => self.0.insert(app, with_secrets.clone()) != Some(with_secrets),
            };
        }
        any
    }
}

impl Secrets {
    /// Those of a location, with its keys in a file of `data_dir`.
    pub fn open(
        global: Followed,
        location: LocationName,
        store: Arc<dyn Store>,
        data_dir: &Path,
    ) -> Result<Self, KeyringError> {
        let keyring = Keyring::open(&data_dir.join("secret-keys.json"))?;
        Ok(Self { global, location, store, keyring })
    }

    /// The values of a release, from here or from the global plane.
    pub async fn of(
        &self,
        release: &Release,
    ) -> Result<BTreeMap<SecretName, SecretValue>, SecretsError> {
        let project = &release.manifest.project;
        let mut values = BTreeMap::new();
        for (name, version) in &release.secrets {
            if let Some(value) = self.kept(&key(project, name, *version)).await? {
                values.insert(name.clone(), value);
            }
        }
        let mut missing = release.secrets.clone();
        missing.retain(|name, _| !values.contains_key(name));
        if !missing.is_empty() {
            values.extend(self.fetch(project, missing).await?);
        }
        Ok(values)
    }

    async fn kept(&self, key: &str) -> Result<Option<SecretValue>, StoreError> {
        let Some(stored) = self.store.get(key).await? else { return Ok(None) };
        let opened = stored
            .decode::<SecretRecord>()
            .map_err(|error| error.to_string())
            .and_then(|record| self.keyring.unseal(key, &record.0).map_err(|e| e.to_string()));
        // What cannot be used is as good as not there.
        Ok(opened.inspect_err(|why| tracing::warn!(key, why, "a kept secret is of no use")).ok())
    }

    async fn fetch(
        &self,
        project: &ProjectName,
        secrets: BTreeMap<SecretName, SecretVersion>,
    ) -> Result<BTreeMap<SecretName, SecretValue>, SecretsError> {
        let request = SecretsRequest { project: project.clone(), secrets };
        let path = format!("/link/locations/{}/secrets", self.location);
        let answer: SecretValues = self.global.call(Method::POST, &path, Some(&request)).await?;
        let mut values = answer.values;
        values.retain(|name, _| request.secrets.contains_key(name));
        for (name, version) in &request.secrets {
            let value = values.get(name).ok_or_else(|| SecretsError::Missing(name.clone()))?;
            let key = key(project, name, *version);
            let record = SecretRecord(self.keyring.seal(&key, value)?);
            let encoded = longshore_store::record::encode(&record);
            let encoded = encoded.expect("our records have no failing serializers");
            // On a full disk it is asked for again by the next one who needs it.
            if let Err(error) = self.store.commit(Transaction::new().put(key, encoded)).await {
                tracing::warn!(%name, error = &error as &dyn std::error::Error, "a secret is not kept");
            }
        }
        Ok(values)
    }

    /// Fetches what allotments will need, so that no start has to wait for it, and forgets what nothing needs
    /// that is in `needing`. `running` gives the releases of the instances that there are.
    pub async fn prepare(&self, needing: &Needing, running: impl FnOnce() -> Vec<Arc<Release>>) {
        let releases: Vec<&Arc<Release>> = needing.0.values().flatten().collect();
        for release in &releases {
            if let Err(error) = self.of(release).await {
                let app = &release.manifest.app;
                tracing::warn!(%app, error = &error as &dyn std::error::Error, "secrets are late");
            }
        }
        let running = running();
        let all = releases.into_iter().chain(&running);
        let needed = all.flat_map(|release| {
            let versions = release.secrets.iter();
            versions.map(|(name, version)| key(&release.manifest.project, name, *version))
        });
        if let Err(error) = self.forget_all_but(&needed.collect()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "old secrets are kept");
        }
    }

    async fn forget_all_but(&self, needed: &BTreeSet<String>) -> Result<(), StoreError> {
        let kept = self.store.list(SECRETS, Page::default()).await?.items;
        let past = kept.iter().filter(|stored| !needed.contains(&stored.key)).take(MAX_OPERATIONS);
        let past: Vec<_> = past.map(|stored| stored.key.clone()).collect();
        if !past.is_empty() {
            let change = past.into_iter().fold(Transaction::new(), Transaction::delete);
            self.store.commit(change).await?;
        }
        Ok(())
    }
}
