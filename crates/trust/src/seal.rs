//! What was said before, known again by who said it, whoever kept it meanwhile.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::Fingerprint;

/// Marks texts so that nobody without the same secret can mark another.
#[derive(Clone)]
pub struct Seal(Hmac<Sha256>);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl Seal {
    /// The seal of a secret.
    pub fn new(secret: &str) -> Self {
        let key = Hmac::new_from_slice(secret.as_bytes());
        Self(key.expect("a key may have any length"))
    }

    /// The mark of a text, in hexadecimal digits.
    pub fn mark(&self, text: &str) -> String {
        let mark = self.0.clone().chain_update(text).finalize().into_bytes();
        Fingerprint(mark.into()).to_string()
    }

    /// Whether a mark is the one of a text.
    pub fn is_mark(&self, text: &str, mark: &str) -> bool {
        // In a time that says nothing of where two marks differ.
        let is_it =
            |mark: Fingerprint| self.0.clone().chain_update(text).verify_slice(&mark.0).is_ok();
        mark.parse().is_ok_and(is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_for_one_text_and_one_secret() {
        let seal = Seal::new("secret");
        let mark = seal.mark("text");
        assert_eq!(mark.len(), 64);
        assert!(seal.is_mark("text", &mark));
        assert!(!seal.is_mark("texu", &mark) && !Seal::new("other").is_mark("text", &mark));
        for wrong in ["", "0", "x", &mark[2..], &mark[1..], &format!("{mark}00")] {
            assert!(!seal.is_mark("text", wrong), "{wrong}");
        }
        assert_eq!(format!("{seal:?}"), "Seal(..)");
    }
}
