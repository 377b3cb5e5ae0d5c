//! What every JSON document of a stranger needs.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longest part of a stranger's text that an error repeats, in characters.
const SHOWN: usize = 120;

/// The keys that we know in a document, and what lies under them.
pub(crate) enum Shape {
    /// Anything, which is not looked into.
    Any,
    /// An object with these keys and others.
    Object(&'static [(&'static str, Shape)]),
    /// A list of one shape.
    List(&'static Shape),
}

/// A key that some programs take for another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key {found:?} is {known:?} to some programs and unknown to others")]
pub struct LookalikeKey {
    /// As written.
    pub found: String,
    /// What it would be taken for.
    pub known: &'static str,
}

impl Shape {
    /// Refuses keys that equal one of ours but for case.
    ///
    /// Programs written in Go match keys without regard to case, and the last of several wins. So a
    /// document may say `layers` to us and `Layers` to them: two programs, two images. Keys that
    /// nobody could take for one of ours are none of our business.
    ///
    /// The document is walked as far as the shape goes and no deeper: what is nested deeper than that
    /// costs no stack. What is not JSON passes; whoever parses it says so.
    pub fn check(&'static self, document: &[u8]) -> Result<(), LookalikeKey> {
        let mut found = None;
        let walk = Walk { shape: self, found: &mut found };
        // Whoever parses the document has more to say about its faults.
        let _ = walk.deserialize(&mut serde_json::Deserializer::from_slice(document));
        found.map_or(Ok(()), Err)
    }
}

struct Walk<'a> {
    shape: &'static Shape,
    found: &'a mut Option<LookalikeKey>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.shape {
            Shape::Any => IgnoredAny::deserialize(deserializer).map(|_| ()),
            Shape::Object(_) | Shape::List(_) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let keys = match self.shape {
            Shape::Object(keys) => keys,
            Shape::Any | Shape::List(_) => &[][..],
        };
        while let Some(key) = map.next_key::<String>()? {
            if let Some((_, shape)) = keys.iter().find(|(known, _)| *known == key) {
                map.next_value_seed(Walk { shape, found: &mut *self.found })?;
                continue;
            }
            let folded = fold(&key);
            if let Some((known, _)) = keys.iter().find(|(known, _)| fold(known) == folded) {
                self.found.get_or_insert(LookalikeKey { found: key, known });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let shape = match self.shape {
            Shape::List(shape) => shape,
            Shape::Any | Shape::Object(_) => &Shape::Any,
        };
        while list.next_element_seed(Walk { shape, found: &mut *self.found })?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Case folding as Go's `encoding/json` does it: two letters beyond ASCII fold into it.
fn fold(key: &str) -> String {
    let plain = |c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(plain).collect()
}

/// A stranger's text, cut to a length that a message can hold.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::Object(&[
        ("mediaSkin", Shape::Any),
        ("list", Shape::List(&Shape::Object(&[("size", Shape::Any)]))),
    ]);

    fn check(document: &str) -> Result<(), LookalikeKey> {
        static STATIC: Shape = SHAPE;
        STATIC.check(document.as_bytes())
    }

    #[test]
    fn keys_that_differ_in_case_alone_are_refused() {
        for fine in [
            r#"{"mediaSkin": {"MEDIASKIN": 1}, "other": {"List": 2}, "list": [null, {"size": 1}]}"#,
            r#"{"list": null}"#,
            "[]",
            "no document",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for key in ["MediaSkin", "mediaskin", "media\u{17f}kin", "mediaS\u{212a}in"] {
            let error = check(&format!(r#"{{"mediaSkin": "x", "{key}": "y"}}"#)).unwrap_err();
            assert_eq!((error.found.as_str(), error.known), (key, "mediaSkin"));
        }
        assert_eq!(check(r#"{"list": [{"size": 1}, {"Size": 2}]}"#).unwrap_err().known, "size");
    }

    #[test]
    fn what_is_nested_deep_costs_no_stack() {
        for deep in ["[".repeat(1 << 20), r#"{"a":"#.repeat(1 << 20)] {
            assert_eq!(check(&format!(r#"{{"mediaSkin": {deep}"#)), Ok(()));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(short("é"), "é");
        let long = "é".repeat(1000);
        assert_eq!(short(&long), format!("{}… (2000 bytes)", "é".repeat(SHOWN)));
    }
}
