//! How much an archive may ask for.

/// What a reader of an archive accepts; past any of these it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarLimits {
    /// Entries, those that are left out included.
    pub entries: u64,
    /// Bytes of all files, with the holes of sparse files counted as if written.
    pub file_bytes: u64,
    /// Extended headers (pax, GNU long names) of one entry, in bytes.
    pub header_bytes: u32,
    /// Regions of data in one sparse file.
    pub sparse_regions: usize,
    /// Length of a path or link target in bytes.
    pub path_bytes: u32,
    /// Directories above an entry.
    pub depth: u32,
    /// Extended attributes of one entry.
    pub xattrs: usize,
    /// Names and values of the extended attributes of one entry together, in bytes.
    pub xattr_bytes: usize,
}

impl TarLimits {
    /// For trees that are copied: what bounds memory is bounded, how much is copied is not.
    pub fn copying() -> Self {
        Self {
            entries: u64::MAX,
            file_bytes: u64::MAX,
            header_bytes: 1 << 20,
            sparse_regions: 10_000,
            path_bytes: 4095,
            depth: MAX_DEPTH,
            xattrs: 64,
            xattr_bytes: 64 << 10,
        }
    }
}

/// How deep a tree may be that is copied: one directory is open for each level.
pub(crate) const MAX_DEPTH: u32 = 255;

/// A limit that was passed: which, and its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("more than {allowed} {what}")]
pub struct LimitExceeded {
    /// What there is too much of, as a plural: `entries`.
    pub what: &'static str,
    /// The highest number that would have been accepted.
    pub allowed: u64,
}

impl LimitExceeded {
    /// Refuses more than is allowed.
    ///
    /// # Errors
    ///
    /// When there is more.
    pub fn check(what: &'static str, found: u64, allowed: u64) -> Result<(), LimitExceeded> {
        if found > allowed { Err(Self { what, allowed }) } else { Ok(()) }
    }
}
