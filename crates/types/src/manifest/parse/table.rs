//! A table of a document, whose values are taken out one by one; what is wrong is collected.

use serde_json::{Map, Value};

use super::ManifestProblem;
use crate::{ByteCount, MilliCpu, ParseError, Portion, nearest};

pub(super) fn problem(field: &str, value: &Value, allowed: &str) -> ManifestProblem {
    ManifestProblem {
        field: field.to_owned(),
        value: value.to_string(),
        allowed: allowed.to_owned(),
    }
}

/// One table of the document, or none where the key is absent; collects what is wrong.
pub(super) struct Table<'a> {
    pub(super) prefix: &'static str,
    pub(super) map: Option<&'a Map<String, Value>>,
    pub(super) problems: &'a mut Vec<ManifestProblem>,
}

impl<'a> Table<'a> {
    fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.and_then(|map| map.get(key)).filter(|value| !value.is_null())
    }

    pub(super) fn refuse(&mut self, key: &str, value: &Value, allowed: &str) {
        self.problems.push(problem(&self.path(key), value, allowed));
    }

    pub(super) fn missing(&mut self, key: &str, allowed: &str) {
        let field = self.path(key);
        self.problems.push(ManifestProblem {
            field,
            value: String::new(),
            allowed: allowed.to_owned(),
        });
    }

    pub(super) fn refuse_unknown(&mut self, known: &[&str]) {
        for (key, value) in self.map.into_iter().flatten() {
            if known.contains(&key.as_str()) {
                continue;
            }
            let allowed = match nearest(known.iter().copied(), key) {
                Some(name) => format!("unknown key; did you mean {name:?}?"),
                None => format!("unknown key; known keys: {}", known.join(", ")),
            };
            self.refuse(key, value, &allowed);
        }
    }

    pub(super) fn table(&mut self, key: &'static str) -> Table<'_> {
        self.table_within(key, key)
    }

    /// The same of a table that is within another, with the whole path to it.
    pub(super) fn table_within(&mut self, key: &str, path: &'static str) -> Table<'_> {
        let value = self.get(key);
        if let Some(value) = value.filter(|value| !value.is_object()) {
            self.refuse(key, value, "a table");
        }
        Table { prefix: path, map: value.and_then(Value::as_object), problems: self.problems }
    }

    /// A value that is written as text. Amounts may also be numbers, so that `cpu = 0.5` works.
    pub(super) fn text<T: FromText>(&mut self, key: &str) -> Option<T> {
        let value = self.get(key)?;
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) if T::IS_AMOUNT => number.to_string(),
            _ => {
                self.refuse(key, value, "a text");
                return None;
            }
        };
        T::from_text(&text).map_err(|allowed| self.refuse(key, value, &allowed)).ok()
    }

    pub(super) fn required<T: FromText>(&mut self, key: &str) -> Option<T> {
        if self.get(key).is_none() {
            self.missing(key, "is required");
        }
        self.text(key)
    }

    pub(super) fn number(&mut self, key: &str, min: u32, max: u32) -> Option<u32> {
        let value = self.get(key)?;
        let number =
            value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (min..=max).contains(n));
        if number.is_none() {
            self.refuse(key, value, &format!("a whole number from {min} to {max}"));
        }
        number
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        if !value.is_boolean() {
            self.refuse(key, value, "true or false");
        }
        value.as_bool()
    }

    pub(super) fn choice<T: Clone>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.get(key)?;
        let found = choices.iter().find(|(name, _)| value.as_str() == Some(name));
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            self.refuse(key, value, &format!("one of {}", names.join(", ")));
        }
        found.map(|(_, choice)| choice.clone())
    }

    pub(super) fn list<T: FromText>(&mut self, key: &str) -> Vec<T> {
        self.optional_list(key).unwrap_or_default()
    }

    pub(super) fn optional_list<T: FromText>(&mut self, key: &str) -> Option<Vec<T>> {
        let value = self.get(key)?;
        let Some(items) = value.as_array() else {
            self.refuse(key, value, "a list of texts");
            return None;
        };
        let mut list = Vec::with_capacity(items.len());
        for (idx, item) in items.iter().enumerate() {
            let parsed = item.as_str().ok_or_else(|| "a text".to_owned()).and_then(T::from_text);
            match parsed {
                Ok(parsed) => list.push(parsed),
                Err(allowed) => self.refuse(&format!("{key}[{idx}]"), item, &allowed),
            }
        }
        Some(list)
    }
}

/// What a text of a document can be parsed into; the error is what is allowed.
pub(super) trait FromText: Sized {
    /// True for what can also be written as a bare number.
    const IS_AMOUNT: bool = false;

    fn from_text(text: &str) -> Result<Self, String>;
}

impl FromText for String {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.contains('\0') {
            Err("a text without a zero byte".to_owned())
        } else {
            Ok(text.to_owned())
        }
    }
}

impl FromText for crate::Jurisdiction {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_: ParseError| Self::instead_of(text))
    }
}

macro_rules! from_text {
    ($($name:ty: $is_amount:literal),* $(,)?) => {$(
        impl FromText for $name {
            const IS_AMOUNT: bool = $is_amount;

            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error: ParseError| error.allowed.to_owned())
            }
        }
    )*};
}
from_text!(
    crate::AppName: false,
    crate::ProjectName: false,
    crate::ImageReference: false,
    crate::HostName: false,
    crate::EgressRule: false,
    crate::Duration: false,
    crate::ReplaceLost: false,
    crate::Label: false,
    crate::PlaceMatch: false,
    crate::Near: false,
    crate::ReachAddress: false,
    crate::Percent: false,
    crate::GpuModel: false,
    super::SignalName: false,
    ByteCount: true,
    MilliCpu: true,
    Portion: true,
);
