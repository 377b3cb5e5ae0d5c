//! What a batch changed, step by step, as its record in the journal has it.

use crate::error::StoreError;
use crate::key_value::{LeaseId, Revision};

use super::fault;
use super::tables::{Position, take};

const EVENT: u8 = 1;
const GRANTED: u8 = 2;
const REVOKED: u8 = 3;
const COMPACTED: u8 = 4;

/// The steps of a batch so far.
#[derive(Debug, Default)]
pub struct Steps(Vec<u8>);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// A key was written or deleted.
    Event {
        position: Position,
        /// As the log has it.
        entry: &'a [u8],
    },
    Granted {
        lease: LeaseId,
        ttl_ms: u64,
    },
    /// The lease alone; the deletions of its keys follow.
    Revoked(LeaseId),
    /// All before that revision was dropped.
    Compacted(Revision),
}

#[derive(Debug, thiserror::Error)]
#[error("a record of the journal is damaged")]
struct DamagedRecord;

impl Steps {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, step: Step<'_>) {
        match step {
            Step::Event { position, entry } => {
                self.begin(EVENT, &[position.revision.0]);
                self.0.extend(position.index.to_le_bytes());
                self.0.extend((entry.len() as u64).to_le_bytes());
                self.0.extend(entry);
            }
            Step::Granted { lease, ttl_ms } => self.begin(GRANTED, &[lease.0, ttl_ms]),
            Step::Revoked(lease) => self.begin(REVOKED, &[lease.0]),
            Step::Compacted(to) => self.begin(COMPACTED, &[to.0]),
        }
    }

    fn begin(&mut self, kind: u8, numbers: &[u64]) {
        self.0.push(kind);
        self.0.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }

    /// All of them as a record, and nothing is left.
    pub fn take(&mut self) -> Vec<u8> {
        // The next batch is likely to be as large.
        let next = Vec::with_capacity(self.0.len());
        std::mem::replace(&mut self.0, next)
    }

    /// The steps of a record.
    pub fn of(record: &[u8]) -> impl Iterator<Item = Result<Step<'_>, StoreError>> {
        let mut rest = record;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let step = decode(&mut rest);
            if step.is_none() {
                rest = &[];
            }
            Some(step.ok_or(DamagedRecord).map_err(fault("reading the journal")))
        })
    }
}

fn decode<'a>(rest: &mut &'a [u8]) -> Option<Step<'a>> {
    let [kind] = take(rest)?;
    let number = |rest: &mut &'a [u8]| Some(u64::from_le_bytes(take(rest)?));
    Some(match kind {
        EVENT => {
            let revision = Revision(number(rest)?);
            let index = u32::from_le_bytes(take(rest)?);
            let length = usize::try_from(number(rest)?).ok()?;
            let (entry, after) = rest.split_at_checked(length)?;
            *rest = after;
            Step::Event { position: Position { revision, index }, entry }
        }
        GRANTED => Step::Granted { lease: LeaseId(number(rest)?), ttl_ms: number(rest)? },
        REVOKED => Step::Revoked(LeaseId(number(rest)?)),
        COMPACTED => Step::Compacted(Revision(number(rest)?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_back_as_they_were_written_and_cut_ones_do_not() {
        let position = Position { revision: Revision(5), index: 3 };
        let all = [
            Step::Granted { lease: LeaseId(1), ttl_ms: 2000 },
            Step::Event { position, entry: b"entry" },
            Step::Event { position, entry: b"" },
            Step::Revoked(LeaseId(1)),
            Step::Compacted(Revision(4)),
        ];
        let mut steps = Steps::default();
        assert!(steps.is_empty());
        all.iter().for_each(|step| steps.add(*step));
        let record = steps.take();
        assert!(steps.is_empty());
        let read: Vec<_> = Steps::of(&record).map(Result::unwrap).collect();
        assert_eq!(read, all);
        let ends: Vec<usize> = (1..=all.len())
            .map(|n| {
                let mut steps = Steps::default();
                all[..n].iter().for_each(|step| steps.add(*step));
                steps.take().len()
            })
            .collect();
        for cut in 1..record.len() {
            let whole = Steps::of(&record[..cut]).all(|step| step.is_ok());
            assert_eq!(whole, ends.contains(&cut), "cut after {cut} bytes");
        }
        assert!(Steps::of(&[9]).any(|step| step.is_err()));
    }
}
