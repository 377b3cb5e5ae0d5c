//! The tables of the file, format version 2, and how their rows are encoded.
//!
//! Version 1 had the same tables and no journal: everything was in them when it was acknowledged. A release that
//! knows of no journal must not open a file that has one.
//!
//! Values live once, in `log`, ordered by revision, which makes replaying a watch one sequential
//! scan; `current` says where in the log the newest value of each key is. Each log entry points to
//! the entry that it superseded. Those chains make a listing at an old revision a walk instead of a
//! search, and compaction a single pass over the revisions it drops: what an entry points to is
//! exactly what that entry made obsolete. The alternative, values in `current` and a copy of each
//! in the history, would write every value twice.
//!
//! Rows are fixed-width tuples or bytes of our own layout, never redb's variable-width tuples, whose
//! encoding has changed between its major versions.

use bytes::Bytes;
use redb::TableDefinition;

use crate::error::StoreError;
use crate::key_value::{Event, KeyValue, LeaseId, Revision};

use super::fault;

/// The version of everything in this module. A change to any row raises it, and then `open` must
/// read the older one too.
pub const FORMAT_VERSION: u64 = 2;

/// Numbers of the whole store, by the names below.
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// In `META`: the [`FORMAT_VERSION`] of the file.
pub const META_FORMAT: &str = "format";
/// In `META`: the newest revision.
pub const META_REVISION: &str = "revision";
/// In `META`: the oldest revision that can be read; 0 when nothing was ever compacted.
pub const META_COMPACTED: &str = "compacted";
/// In `META`: the id of the lease to be granted next.
pub const META_NEXT_LEASE: &str = "next-lease";
/// In `META`: a number of the store's own, drawn when it was made, by which its journal is told from that of
/// another.
pub const META_STORE: &str = "store";
/// In `META`: the number of the newest batch that is in the tables; the journal has those after it.
pub const META_BATCH: &str = "batch";
/// In `META`: 1 when the store was closed, so that everything is in the tables, and 0 while it is open.
pub const META_CLOSED: &str = "closed";

/// Live keys: key to [`Head`].
pub const CURRENT: TableDefinition<&str, HeadRow> = TableDefinition::new("current");
/// Deleted keys whose deletion is not compacted yet: key to the position of the deletion.
pub const TOMBSTONES: TableDefinition<&str, PositionRow> = TableDefinition::new("tombstones");
/// Every change that is kept: position to [`Entry`].
pub const LOG: TableDefinition<PositionRow, &[u8]> = TableDefinition::new("log");
/// Leases: id to time to live in milliseconds.
pub const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
/// The live keys of each lease: [`lease_key_row`] to nothing.
pub const LEASE_KEYS: TableDefinition<&[u8], ()> = TableDefinition::new("lease-keys");

/// A [`Position`] as stored: revision, index.
pub type PositionRow = (u64, u32);
/// A [`Head`] as stored: revision, index, create revision, version, lease or 0.
pub type HeadRow = (u64, u32, u64, u64, u64);

/// Where a change is in the log: the how-manieth change of which revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub revision: Revision,
    pub index: u32,
}

impl Position {
    pub fn row(self) -> PositionRow {
        (self.revision.0, self.index)
    }

    pub fn from_row((revision, index): PositionRow) -> Self {
        Self { revision: Revision(revision), index }
    }
}

/// What conditions need to know of a live key, without reading its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub position: Position,
    pub create_revision: Revision,
    pub version: u64,
    pub lease: Option<LeaseId>,
}

impl Head {
    pub fn row(self) -> HeadRow {
        let (revision, index) = self.position.row();
        let lease = self.lease.map_or(0, |lease| lease.0);
        (revision, index, self.create_revision.0, self.version, lease)
    }

    pub fn from_row((revision, index, create, version, lease): HeadRow) -> Self {
        Self {
            position: Position::from_row((revision, index)),
            create_revision: Revision(create),
            version,
            lease: lease_from(lease),
        }
    }
}

fn lease_from(stored: u64) -> Option<LeaseId> {
    (stored != 0).then_some(LeaseId(stored))
}

/// A change in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The change to the same key before this one; compaction may have dropped it.
    pub previous: Option<Position>,
    pub event: Event,
}

const KIND_DELETE: u8 = 0;
const KIND_PUT: u8 = 1;
/// Kind, previous revision and index, create revision, version, lease, length of the key.
const ENTRY_HEADER_BYTES: usize = 1 + 8 + 4 + 8 + 8 + 8 + 2;

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, create, version, lease, value) = match &self.event {
            Event::Put(kv) => (
                KIND_PUT,
                kv.create_revision.0,
                kv.version,
                kv.lease.map_or(0, |lease| lease.0),
                &kv.value[..],
            ),
            Event::Delete { .. } => (KIND_DELETE, 0, 0, 0, &[][..]),
        };
        let key = self.event.key();
        let key_len = u16::try_from(key.len()).expect("keys are limited to 1024 bytes");
        let (previous_revision, previous_index) = self.previous.map_or((0, 0), Position::row);
        let mut out = Vec::with_capacity(ENTRY_HEADER_BYTES + key.len() + value.len());
        out.push(kind);
        out.extend(previous_revision.to_le_bytes());
        out.extend(previous_index.to_le_bytes());
        out.extend(create.to_le_bytes());
        out.extend(version.to_le_bytes());
        out.extend(lease.to_le_bytes());
        out.extend(key_len.to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(value);
        out
    }

    pub fn decode(position: Position, stored: &[u8]) -> Result<Self, StoreError> {
        Self::decode_fields(position.revision, stored)
            .ok_or(DamagedEntry(position))
            .map_err(fault("reading the history"))
    }

    fn decode_fields(revision: Revision, mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let [kind] = take(rest)?;
        let previous = (u64::from_le_bytes(take(rest)?), u32::from_le_bytes(take(rest)?));
        let create_revision = Revision(u64::from_le_bytes(take(rest)?));
        let version = u64::from_le_bytes(take(rest)?);
        let lease = lease_from(u64::from_le_bytes(take(rest)?));
        let key_len = usize::from(u16::from_le_bytes(take(rest)?));
        let (key, value) = rest.split_at_checked(key_len)?;
        let key = std::str::from_utf8(key).ok()?.to_owned();
        let event = match kind {
            KIND_PUT => Event::Put(KeyValue {
                key,
                value: Bytes::copy_from_slice(value),
                create_revision,
                mod_revision: revision,
                version,
                lease,
            }),
            KIND_DELETE => Event::Delete { key, revision },
            _ => return None,
        };
        Some(Self { previous: (previous.0 != 0).then(|| Position::from_row(previous)), event })
    }
}

/// The first bytes of what is left, which they no longer are.
pub fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

#[derive(Debug, thiserror::Error)]
#[error("the log entry at revision {}, index {}, is damaged", .0.revision, .0.index)]
struct DamagedEntry(Position);

/// The row that says that `lease` owns `key`; the rows of a lease lie together.
pub fn lease_key_row(lease: LeaseId, key: &str) -> Vec<u8> {
    let mut row = lease.0.to_be_bytes().to_vec();
    row.extend(key.as_bytes());
    row
}

/// The key of a [`lease_key_row`].
pub fn key_of_lease_row(row: &[u8]) -> Result<String, StoreError> {
    row.get(size_of::<u64>()..)
        .and_then(|key| std::str::from_utf8(key).ok())
        .map(str::to_owned)
        .ok_or(DamagedLeaseKey)
        .map_err(fault("reading the keys of a lease"))
}

#[derive(Debug, thiserror::Error)]
#[error("a row of the lease keys is damaged")]
struct DamagedLeaseKey;

#[cfg(test)]
mod tests {
    use super::*;

    fn position(revision: u64, index: u32) -> Position {
        Position::from_row((revision, index))
    }

    #[test]
    fn entries_come_back_as_they_were_written() {
        let put = Event::Put(KeyValue {
            key: "/ä".to_owned(),
            value: Bytes::from_static(b"\0value"),
            create_revision: Revision(3),
            mod_revision: Revision(9),
            version: 4,
            lease: Some(LeaseId(7)),
        });
        let delete = Event::Delete { key: "/k".to_owned(), revision: Revision(9) };
        for event in [put, delete] {
            for previous in [None, Some(position(5, 127))] {
                let entry = Entry { previous, event: event.clone() };
                let stored = entry.encode();
                assert_eq!(Entry::decode(position(9, 1), &stored).unwrap(), entry);
            }
        }
    }

    #[test]
    fn a_damaged_entry_is_reported_with_its_place() {
        let stored = Entry {
            previous: None,
            event: Event::Delete { key: "/key".to_owned(), revision: Revision(9) },
        }
        .encode();
        let mut wrong_kind = stored.clone();
        wrong_kind[0] = 9;
        for damaged in [&stored[..stored.len() - 1], &stored[..20], &[], &wrong_kind] {
            let StoreError::Storage { source, .. } =
                Entry::decode(position(9, 2), damaged).unwrap_err()
            else {
                panic!("expected a storage error");
            };
            assert_eq!(source.to_string(), "the log entry at revision 9, index 2, is damaged");
        }
    }
}
