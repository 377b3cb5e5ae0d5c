//! Reading `/etc/ld.so.cache`, the loader's table from a library's name to its path.
//!
//! The file and not the output of `ldconfig -p`, which shows the same for people, needs `ldconfig`
//! to be there, and drops the distinction between plain and processor-specific builds.

use std::path::PathBuf;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// The older format, after which some systems put the newer one.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const OLD_ENTRY: usize = 12;
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// The plain entries of the cache in its order; none when its format is not known, as if there were
/// no cache.
pub(super) fn parse(file: &[u8]) -> Vec<(String, PathBuf)> {
    entries(file).unwrap_or_default()
}

fn entries(file: &[u8]) -> Option<Vec<(String, PathBuf)>> {
    let cache = newer_part(file)?;
    let n_entries = number(cache, 20)?;
    let mut found = Vec::new();
    for idx in 0..n_entries {
        let at = HEADER + ENTRY * idx;
        let (key, value) = (number(cache, at + 4)?, number(cache, at + 8)?);
        // Builds for newer processors are preferred by a loader, but the image may run on an older
        // one; the plain build is always there too.
        let is_plain = cache.get(at + 16..at + 24)?.iter().all(|byte| *byte == 0);
        if is_plain {
            found.push((text(cache, key)?, text(cache, value)?.into()));
        }
    }
    Some(found)
}

fn newer_part(file: &[u8]) -> Option<&[u8]> {
    if file.starts_with(MAGIC) {
        return Some(file);
    }
    if !file.starts_with(OLD_MAGIC) {
        return None;
    }
    let old = number(file, 12)?.checked_mul(OLD_ENTRY)?.checked_add(16)?;
    let cache = file.get(old.next_multiple_of(8)..)?;
    cache.starts_with(MAGIC).then_some(cache)
}

/// A 32-bit number; the cache has the byte order of its machine.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_ne_bytes(four.try_into().ok()?)).ok()
}

fn text(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of (name, path, hwcap) in the newer format.
    fn cache(entries: &[(&str, &str, u64)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let base = HEADER + ENTRY * entries.len();
        for (name, path, hwcap) in entries {
            let mut add = |text: &str| {
                let at = u32::try_from(base + strings.len()).unwrap();
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                at
            };
            for word in [3, add(name), add(path), 0] {
                table.extend_from_slice(&word.to_ne_bytes());
            }
            table.extend_from_slice(&hwcap.to_ne_bytes());
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&u32::try_from(entries.len()).unwrap().to_ne_bytes());
        file.resize(HEADER, 0);
        [file, table, strings].concat()
    }

    #[test]
    fn reads_plain_entries_in_both_layouts() {
        let newer =
            cache(&[("liba.so.1", "/fast/liba.so.1", 2), ("liba.so.1", "/lib/liba.so.1", 0)]);
        let expected = vec![("liba.so.1".to_owned(), PathBuf::from("/lib/liba.so.1"))];
        assert_eq!(parse(&newer), expected);
        let mut older = OLD_MAGIC.to_vec();
        older.push(0);
        older.extend_from_slice(&1_u32.to_ne_bytes());
        older.resize(32, 0);
        older.extend_from_slice(&newer);
        assert_eq!(parse(&older), expected);
    }

    #[test]
    fn a_broken_cache_is_no_cache() {
        let whole = cache(&[("liba.so.1", "/lib/liba.so.1", 0)]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), [], "{length}");
        }
        assert_eq!(parse(b"something else"), []);
    }
}
