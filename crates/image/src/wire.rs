//! What every JSON document of a stranger needs.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest part of a stranger's text that an error repeats, in characters.
const SHOWN: usize = 120;

/// The keys of an object that we do not know, collected with `#[serde(flatten)]`.
///
/// Programs written in Go match keys without regard to case, and the last of several wins. So a
/// document may say `layers` to us and `Layers` to them: two programs, two images. Such a key is
/// refused; keys that nobody could take for one of ours are none of our business.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct UnknownKeys(HashMap<String, IgnoredAny>);

/// A key that some programs take for another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key {found:?} is {known:?} to some programs and unknown to others")]
pub struct LookalikeKey {
    /// As written.
    pub found: String,
    /// What it would be taken for.
    pub known: &'static str,
}

impl UnknownKeys {
    /// Refuses keys that equal one of `known` but for case.
    pub fn check(&self, known: &[&'static str]) -> Result<(), LookalikeKey> {
        for found in self.0.keys() {
            let folded = fold(found);
            if let Some(known) = known.iter().find(|known| fold(known) == folded) {
                return Err(LookalikeKey { found: found.clone(), known });
            }
        }
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

    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "mediaSkin")]
        _known: Option<String>,
        #[serde(flatten)]
        unknown: UnknownKeys,
    }

    #[test]
    fn keys_that_differ_in_case_alone_are_refused() {
        let check = |text: &str| {
            let wire: Wire = serde_json::from_str(text).unwrap();
            wire.unknown.check(&["mediaSkin"])
        };
        assert_eq!(check(r#"{"mediaSkin": "x", "other": {"MEDIASKIN": 1}}"#), Ok(()));
        for key in ["MediaSkin", "mediaskin", "media\u{17f}kin", "mediaS\u{212a}in"] {
            let text = format!(r#"{{"mediaSkin": "x", "{key}": "y"}}"#);
            assert_eq!(check(&text).unwrap_err().found, key);
        }
        let twice = r#"{"mediaSkin": "x", "mediaSkin": "y"}"#;
        assert!(serde_json::from_str::<Wire>(twice).is_err());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(short("é"), "é");
        let long = "é".repeat(1000);
        assert_eq!(short(&long), format!("{}… (2000 bytes)", "é".repeat(SHOWN)));
    }
}
