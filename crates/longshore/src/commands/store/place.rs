//! Where a store is, and opening it while no control plane does.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use longshore_global::STORE_FILE;
use longshore_store::{EtcdAddress, EtcdStore, OpenStoreError, Page, RedbStore, Store};

use crate::failure::{Failure, Kind, OrFail};
use crate::store_tls::StoreTlsOptions;

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An etcd.
    Etcd(EtcdAddress),
    /// The file of an embedded store.
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(address) => address.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains("://") {
            true => etcd(text),
            false => directory(text),
        }
    }
}

/// The place that the address of an etcd names.
pub fn etcd(text: &str) -> Result<Place, String> {
    text.parse().map(Place::Etcd).map_err(|error| format!("{error}"))
}

/// The place that a data directory names: that of `up` has one of `global` in it.
pub fn directory(text: &str) -> Result<Place, String> {
    let dir = Path::new(text);
    let is_of_global = !dir.join("global").is_dir()
        && [STORE_FILE, "lock"].iter().any(|file| dir.join(file).exists());
    let dir = if is_of_global { dir.to_owned() } else { dir.join("global") };
    Ok(Place::File(dir.join(STORE_FILE)))
}

impl Place {
    /// Opens a store that is there.
    pub async fn open_existing(&self, tls: &StoreTlsOptions) -> Result<Arc<dyn Store>, Failure> {
        match self {
            Self::File(path) if !path.exists() => {
                let message = format!("there is no store {}", path.display());
                Err(Failure::new(Kind::NotFound, message)
                    .hint("name the data directory of `longshore up`, or of `longshore global`"))
            }
            _ => self.open(tls).await,
        }
    }

    /// Opens a store that may not be there yet.
    pub async fn open_or_make(&self, tls: &StoreTlsOptions) -> Result<Arc<dyn Store>, Failure> {
        if let Self::File(path) = self {
            let dir = path.parent().unwrap_or(Path::new("."));
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.or_fail(Kind::Other, format!("cannot make {}", dir.display()))?;
        }
        self.open(tls).await
    }

    async fn open(&self, tls: &StoreTlsOptions) -> Result<Arc<dyn Store>, Failure> {
        match self {
            Self::Etcd(address) => {
                // Of two stores only one may be at https.
                let tls = match address.is_secure() {
                    true => tls.clone().load(Some(address))?,
                    false => None,
                };
                let store = EtcdStore::connect(address, tls.as_ref()).await;
                let store = store.or_fail(Kind::Unavailable, format!("cannot reach {address}"))?;
                Ok(Arc::new(store))
            }
            Self::File(path) => match RedbStore::open(path) {
                Ok(store) => Ok(Arc::new(store)),
                Err(error @ OpenStoreError::Held { .. }) => {
                    let hint =
                        "end the control plane first; a backup needs no --data-dir while it runs";
                    Err(error)
                        .or_fail(Kind::Other, "its control plane runs")
                        .map_err(|it| it.hint(hint))
                }
                Err(error) => Err(error).or_fail(Kind::Other, "cannot open the store"),
            },
        }
    }
}

/// The keys that somebody who runs holds in a store, in words.
pub async fn held(store: &dyn Store) -> Result<Option<String>, Failure> {
    let listing = store.list("/", Page::default()).await;
    let listing = listing.or_fail(Kind::Unavailable, "cannot read the store")?;
    let held = listing.items.into_iter().filter(|item| item.lease.is_some()).map(|item| item.key);
    let held: Vec<_> = held.collect();
    Ok((!held.is_empty()).then(|| held.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_etcd_or_a_data_directory_of_either_role() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        let place = |text: &str| text.parse::<Place>().map(|place| place.to_string());
        assert_eq!(place("http://a:1/x"), Ok("http://a:1/x".to_owned()));
        assert!(place("ftp://a:1").unwrap_err().contains("is not http[s]://HOST:PORT"));
        // One that is not there yet will be that of `up`.
        assert_eq!(place(&root), Ok(format!("{root}/global/store.redb")));
        std::fs::write(dir.path().join("lock"), "").unwrap();
        assert_eq!(place(&root), Ok(format!("{root}/store.redb")));
        std::fs::create_dir(dir.path().join("global")).unwrap();
        assert_eq!(place(&root), Ok(format!("{root}/global/store.redb")));
    }
}
