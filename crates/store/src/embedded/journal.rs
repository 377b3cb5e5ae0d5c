//! The journal beside the file: what each batch changed, on the disk before anybody is told.
//!
//! For a commit of a few keys redb writes some eighty pages, wherever they lie. A record here is one run of
//! bytes after the one before it. redb gets the same changes in a transaction that goes on over many batches,
//! and has them on the disk a moment later; then the journal begins anew at its start.
//!
//! Each record is synced before the next is written, and bears the number of its batch. So what follows a
//! record that does not match was never acknowledged; if something with a higher number does, the disk has
//! lost what it had, and nothing is taken from such a journal.
//!
//! The file grows by zeros that are written ahead and is not cut, for a sync that has to write a length or to
//! allocate takes several times as long. Records begin at pages, so that none is written once more with the next.

use std::io;

use redb::StorageBackend;
use sha2::{Digest as _, Sha256};

const MAGIC: [u8; 8] = *b"lsjrnl\0\x01";
/// Magic, store, number, length, then the SHA-256 of those and of the content.
const HEADER: usize = 4 * 8 + 32;
const PAGE: usize = 4096;
/// So many bytes are written ahead.
const GROWTH: usize = 512 << 10;
/// With more than so many bytes it is cut when it begins anew.
const MOST_KEPT: usize = 16 << 20;

/// Why what a journal has cannot be taken from it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("reading it")]
    Read(#[source] io::Error),
    #[error("it is the journal of another store")]
    Another,
    #[error("it begins with batch {first}, and the store has those up to {has}")]
    Gap { first: u64, has: u64 },
    #[error("the batch after {last} is damaged, and {later} was written after it")]
    Damaged { last: u64, later: u64 },
}

/// The journal of one store.
#[derive(Debug)]
pub struct Journal {
    file: Box<dyn StorageBackend>,
    /// The store's own number, by which a journal of another is told apart.
    store: u64,
    /// Where the next record goes.
    end: usize,
    /// Bytes of the file.
    len: usize,
}

/// A record in the file.
struct Record<'a> {
    store: u64,
    number: u64,
    content: &'a [u8],
}

impl Record<'_> {
    fn read(bytes: &[u8]) -> Option<Record<'_>> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let (numbers, sum) = header.split_at(HEADER - 32);
        let (magic, numbers) = numbers.split_at(MAGIC.len());
        if magic != MAGIC {
            return None;
        }
        let (numbers, _) = numbers.as_chunks::<8>();
        let &[store, number, length] = numbers else { return None };
        let content = rest.get(..usize::try_from(u64::from_le_bytes(length)).ok()?)?;
        let [store, number] = [store, number].map(u64::from_le_bytes);
        (sum_of(&header[..HEADER - 32], content) == sum).then_some(Record {
            store,
            number,
            content,
        })
    }

    fn pages(&self) -> usize {
        (HEADER + self.content.len()).next_multiple_of(PAGE)
    }
}

fn sum_of(numbers: &[u8], content: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(numbers).chain_update(content).finalize().into()
}

impl Journal {
    /// The journal in a file; its next record will be the first.
    pub fn new(file: Box<dyn StorageBackend>, store: u64) -> io::Result<Self> {
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        Ok(Self { file, store, end: 0, len })
    }

    /// What the store lacks, in order, when it has the batches up to the one with the number `has`.
    pub fn after(&self, has: u64) -> Result<Vec<(u64, Vec<u8>)>, JournalError> {
        let mut bytes = vec![0; self.len];
        self.file.read(0, &mut bytes).map_err(JournalError::Read)?;
        let (mut found, mut at, mut last) = (Vec::new(), 0, None);
        while let Some(record) = Record::read(&bytes[at..]) {
            match last {
                None if record.store != self.store => return Err(JournalError::Another),
                None if record.number > has + 1 => {
                    return Err(JournalError::Gap { first: record.number, has });
                }
                None => {}
                // What was there before the journal began anew.
                Some(last) if record.store != self.store || record.number != last + 1 => break,
                Some(_) => {}
            }
            last = Some(record.number);
            if record.number > has {
                found.push((record.number, record.content.to_owned()));
            }
            at = (at + record.pages()).min(bytes.len());
        }
        let last = last.unwrap_or(has).max(has);
        let later = (at..bytes.len()).step_by(PAGE).filter_map(|at| Record::read(&bytes[at..]));
        let mut later = later.filter(|record| record.store == self.store && record.number > last);
        match later.next() {
            Some(record) => Err(JournalError::Damaged { last, later: record.number }),
            None => Ok(found),
        }
    }

    /// Writes what a batch changed, and waits until it is on the disk.
    pub fn append(&mut self, number: u64, content: &[u8]) -> io::Result<()> {
        let mut record = Vec::with_capacity((HEADER + content.len()).next_multiple_of(PAGE));
        record.extend(MAGIC);
        for number in [self.store, number, content.len() as u64] {
            record.extend(number.to_le_bytes());
        }
        let sum = sum_of(&record, content);
        record.extend(sum);
        record.extend(content);
        record.resize(record.len().next_multiple_of(PAGE), 0);
        let end = self.end + record.len();
        self.grow(end)?;
        self.file.write(self.end as u64, &record)?;
        self.file.sync_data()?;
        self.end = end;
        Ok(())
    }

    fn grow(&mut self, end: usize) -> io::Result<()> {
        if end <= self.len {
            return Ok(());
        }
        let len = end.next_multiple_of(GROWTH);
        self.file.set_len(len as u64)?;
        self.file.write(self.len as u64, &vec![0; len - self.len])?;
        self.len = len;
        Ok(())
    }

    /// The number of the store that it is of.
    pub fn store(&self) -> u64 {
        self.store
    }

    /// Bytes since it began.
    pub fn n_bytes(&self) -> usize {
        self.end
    }

    /// The store has everything on the disk, so that the next record is the first. What one very large batch made
    /// of the file goes.
    pub fn begin_anew(&mut self) -> io::Result<()> {
        self.end = 0;
        if self.len > MOST_KEPT {
            self.file.set_len(MOST_KEPT as u64)?;
            self.len = MOST_KEPT;
        }
        Ok(())
    }

    /// Takes all that is there away: it is of another store.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.sync_data()?;
        (self.end, self.len) = (0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::tests::disk::Disk;

    const STORE: u64 = 7;

    fn journal(disk: &Disk) -> Journal {
        Journal::new(Box::new(disk.clone()), STORE).unwrap()
    }

    fn numbers(disk: &Disk, has: u64) -> Vec<u64> {
        journal(disk).after(has).unwrap().iter().map(|(number, _)| *number).collect()
    }

    /// Batches with so many bytes each, from the given number on.
    fn write(journal: &mut Journal, from: u64, sizes: &[usize]) {
        for (number, size) in (from..).zip(sizes) {
            journal.append(number, &vec![u8::try_from(number).unwrap(); *size]).unwrap();
        }
    }

    #[test]
    fn what_the_store_lacks_comes_back_in_order() {
        let disk = Disk::new();
        assert!(numbers(&disk, 0).is_empty());
        write(&mut journal(&disk), 1, &[10, PAGE, 3 * PAGE, 0, 2 * GROWTH]);
        assert_eq!(numbers(&disk, 0), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&disk, 3), [4, 5]);
        assert!(numbers(&disk, 5).is_empty());
        let found = journal(&disk).after(1).unwrap();
        assert_eq!(found[1], (3, vec![3; 3 * PAGE]));
    }

    #[test]
    fn what_was_there_before_it_began_anew_is_passed_over() {
        let disk = Disk::new();
        let mut written = journal(&disk);
        write(&mut written, 1, &[10, 10, 10, 10]);
        written.begin_anew().unwrap();
        // The store has them all, and nothing is written yet.
        assert!(numbers(&disk, 4).is_empty());
        write(&mut written, 5, &[10]);
        assert_eq!(numbers(&disk, 4), [5]);
        // One that ends where none of before begins.
        write(&mut written, 6, &[PAGE]);
        assert_eq!(numbers(&disk, 4), [5, 6]);
    }

    #[test]
    fn what_a_very_large_batch_took_is_given_back() {
        let disk = Disk::new();
        let mut written = journal(&disk);
        write(&mut written, 1, &[MOST_KEPT + 1]);
        assert!(disk.content().len() > MOST_KEPT);
        written.begin_anew().unwrap();
        assert_eq!(disk.content().len(), MOST_KEPT);
        write(&mut written, 2, &[10]);
        assert_eq!(numbers(&disk, 1), [2]);
    }

    #[test]
    fn a_record_that_was_cut_short_was_never_acknowledged() {
        let disk = Disk::new();
        let mut written = journal(&disk);
        write(&mut written, 1, &[10, 10]);
        let before = disk.content();
        write(&mut written, 3, &[2 * PAGE]);
        let after = disk.content();
        for cut in [1, HEADER - 1, HEADER, PAGE, 2 * PAGE] {
            let begins = 2 * PAGE;
            let mut torn = before.clone();
            torn.resize(after.len(), 0);
            torn[begins..begins + cut].copy_from_slice(&after[begins..begins + cut]);
            assert_eq!(numbers(&Disk::with(torn), 0), [1, 2], "{cut} bytes were written");
        }
        assert_eq!(numbers(&disk, 0), [1, 2, 3]);
    }

    #[test]
    fn what_the_disk_lost_is_told() {
        let disk = Disk::new();
        write(&mut journal(&disk), 1, &[10, 10, 10]);
        for (idx, told) in [
            (0, "the batch after 0 is damaged, and 2 was written after it"),
            (1, "the batch after 1 is damaged, and 3 was written after it"),
        ] {
            let mut content = disk.content();
            content[idx * PAGE + HEADER + 3] ^= 1;
            let error = journal(&Disk::with(content)).after(0).unwrap_err();
            assert_eq!(error.to_string(), told);
        }
        let error = Journal::new(Box::new(disk.clone()), 8).unwrap().after(0).unwrap_err();
        assert_eq!(error.to_string(), "it is the journal of another store");
        let mut written = journal(&disk);
        written.clear().unwrap();
        assert!(numbers(&disk, 0).is_empty());
        write(&mut written, 4, &[10]);
        let error = journal(&disk).after(2).unwrap_err();
        assert_eq!(error.to_string(), "it begins with batch 4, and the store has those up to 2");
    }
}
