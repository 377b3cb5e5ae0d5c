//! Reading what a later release says: what is not known here is passed over, where nothing depends on it.

use std::collections::BTreeMap;

use serde::de::value::{Error, StringDeserializer};
use serde::de::{Deserialize, Deserializer, IgnoredAny, IntoDeserializer};

/// What may be something that is not understood here.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Item<T> {
    Known(T),
    Other(IgnoredAny),
}

impl<T> Item<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Known(item) => Some(item),
            Self::Other(_) => None,
        }
    }
}

/// A value, or nothing where it is not understood here.
///
/// # Errors
///
/// When it is no value at all.
pub fn known<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Item<T>>::deserialize(deserializer)?.and_then(Item::known))
}

/// A map without the keys that are not known here.
///
/// # Errors
///
/// When it is no map.
pub fn known_keys<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'static> + Ord,
    V: Deserialize<'de>,
{
    let all = BTreeMap::<String, Item<V>>::deserialize(deserializer)?;
    let known = all.into_iter().filter_map(|(key, value)| {
        let key: StringDeserializer<Error> = key.into_deserializer();
        Some((K::deserialize(key).ok()?, value.known()?))
    });
    Ok(known.collect())
}

/// A list without the items that are not understood here.
///
/// # Errors
///
/// When it is no list.
pub fn known_items<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let all = Vec::<Item<T>>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(Item::known).collect())
}
