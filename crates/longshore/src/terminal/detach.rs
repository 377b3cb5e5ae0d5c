//! The keys by which a terminal is left.

use std::str::FromStr;

/// Keys that are pressed one after the other; none at all never leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    /// Reads keys as docker writes them: a character, or `ctrl-` and a letter or one of `@[\]^_`,
    /// with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        let key = |name: &str| -> Option<u8> {
            let (held, name) = match name.strip_prefix("ctrl-") {
                Some(name) => (true, name),
                None => (false, name),
            };
            match (held, name.as_bytes()) {
                (false, [key]) if key.is_ascii_graphic() => Some(*key),
                (true, [key]) if key.is_ascii_lowercase() || (b'@'..=b'_').contains(key) => {
                    Some(key & 0x1f)
                }
                _ => None,
            }
        };
        let keys = text.split(',').filter(|_| !text.is_empty());
        let keys = keys.map(|name| {
            let wrong = || {
                format!(
                    "{name:?} is no key: give a character or ctrl-a to ctrl-z, with commas between"
                )
            };
            key(name).ok_or_else(wrong)
        });
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }
}

/// What is left of what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Typed {
    /// The keys for the command.
    pub keys: Vec<u8>,
    /// Whether the terminal is left.
    pub left: bool,
}

/// Looks for the keys in what is typed. The first of them are held back until the next tells whether
/// they are meant.
#[derive(Debug)]
pub(super) struct Detacher {
    keys: Vec<u8>,
    n_held: usize,
}

impl Detacher {
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, n_held: 0 }
    }

    pub fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut keys = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.is_empty() {
                keys.push(byte);
                continue;
            }
            // What was held may still end with the beginning of the sequence.
            while self.n_held > 0 && self.keys[self.n_held] != byte {
                let shorter = self.longest_beginning_again();
                keys.extend_from_slice(&self.keys[..self.n_held - shorter]);
                self.n_held = shorter;
            }
            if self.keys[self.n_held] != byte {
                keys.push(byte);
                continue;
            }
            self.n_held += 1;
            if self.n_held == self.keys.len() {
                self.n_held = 0;
                return Typed { keys, left: true };
            }
        }
        Typed { keys, left: false }
    }

    /// The most keys, fewer than are held, with which the held ones end and the sequence begins.
    fn longest_beginning_again(&self) -> usize {
        let held = &self.keys[..self.n_held];
        (0..self.n_held).rev().find(|length| held.ends_with(&held[..*length])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &str, parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut detacher = Detacher::new(keys.parse().unwrap());
        let mut all = Vec::new();
        for part in parts {
            let Typed { keys, left } = detacher.typed(part);
            all.extend(keys);
            if left {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![16, 17]));
        assert_eq!(keys("a,ctrl-@,ctrl-[,ctrl-_"), Ok(vec![b'a', 0, 27, 31]));
        assert_eq!(keys(""), Ok(vec![]));
        for bad in ["ctrl-", "ctrl-P,", "ab", ",", "ctrl-1", "é", "ctrl p"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_sequence_leaves_wherever_it_is_cut() {
        for parts in [&[&b"x\x10\x11y"[..]][..], &[b"x\x10", b"\x11y"], &[b"x", b"\x10", b"\x11"]] {
            assert_eq!(typed("ctrl-p,ctrl-q", parts), (b"x".to_vec(), true), "{parts:?}");
        }
        // What only began like it is for the command, in order.
        assert_eq!(
            typed("ctrl-p,ctrl-q", &[b"a\x10", b"b\x11\x10\x10", b"\x10c"]),
            (b"a\x10b\x11\x10\x10\x10c".to_vec(), false)
        );
        assert_eq!(typed("ctrl-p,ctrl-q", &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(typed("a,a,b", &[b"aaab"]), (b"a".to_vec(), true));
        assert_eq!(typed("a,b,a,c", &[b"ababac"]), (b"ab".to_vec(), true));
        assert_eq!(typed("a,b,a,c", &[b"abad"]), (b"abad".to_vec(), false));
        assert_eq!(typed("", &[b"\x10\x11"]), (b"\x10\x11".to_vec(), false));
    }
}
