//! Directories: blocks of entries that the kernel searches by halves.
//!
//! In each block stand the entries, then their names. Names are in the order of their bytes over the
//! whole directory, `.` and `..` among them.

use super::format::{self, BLOCK, DIRENT_BYTES};
use super::layout::Layout;
use super::{Kind, Tree};

/// A name and the place of its node in the tree.
pub(super) type Entry<'a> = (&'a [u8], usize);

/// What a directory lists, in its order.
pub(super) fn listing<'a>(entries: &[Entry<'a>], own: usize, parent: usize) -> Vec<Entry<'a>> {
    let mut listing = Vec::with_capacity(entries.len() + 2);
    listing.extend([(&b"."[..], own), (&b".."[..], parent)]);
    listing.extend_from_slice(entries);
    // Nearly sorted already: only the first two are out of their places.
    listing.sort_by_key(|(name, _)| *name);
    listing
}

/// The entries of each block, as many as it holds.
pub(super) fn blocks<'l, 'a>(listing: &'l [Entry<'a>]) -> impl Iterator<Item = &'l [Entry<'a>]> {
    let mut rest = listing;
    std::iter::from_fn(move || {
        let mut n_bytes = 0;
        let n_fitting = rest
            .iter()
            .take_while(|entry| {
                n_bytes += n_bytes_of(entry);
                n_bytes <= BLOCK
            })
            .count();
        let (block, left) = rest.split_at(n_fitting);
        rest = left;
        (!block.is_empty()).then_some(block)
    })
}

/// Length of a directory: whole blocks, and what is used of the last.
pub(super) fn size(listing: &[Entry<'_>]) -> u64 {
    let (mut n_whole, mut last) = (0, 0);
    for (idx, block) in blocks(listing).enumerate() {
        n_whole = idx as u64;
        last = block.iter().map(n_bytes_of).sum();
    }
    n_whole * BLOCK + last
}

fn n_bytes_of((name, _): &Entry<'_>) -> u64 {
    DIRENT_BYTES + name.len() as u64
}

/// A block, as far as it is used.
pub(super) fn encode(block: &[Entry<'_>], tree: &Tree<'_>, layout: &Layout) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    let mut name_at = block.len() as u64 * DIRENT_BYTES;
    for (name, idx) in block {
        let kind = match tree.nodes[*idx].kind {
            Kind::File { .. } => format::DIRENT_FILE,
            Kind::Directory(_) => format::DIRENT_DIRECTORY,
            Kind::Symlink(_) => format::DIRENT_SYMLINK,
        };
        bytes.extend(format::dirent(layout.places[*idx].number(), name_at as u16, kind));
        name_at += name.len() as u64;
    }
    block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
    bytes
}
