//! What is pushed and pulled: bytes that do not compress, made and checked at little cost, so that the
//! times are those of the registries.

use std::sync::Arc;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

/// The length of what repeats: longer than any buffer on the way, so that a part in the wrong place
/// is not taken for the right one, and no multiple of a page.
const BLOCK: usize = (4 << 20) - 4093;

/// The content of a blob: a block of noise from some place in it, over and over.
#[derive(Debug, Clone)]
pub struct Content {
    block: Arc<[u8]>,
    begin: usize,
    /// In bytes.
    pub length: u64,
    /// As registries write it.
    pub digest: String,
}

/// Noise from which contents are cut.
pub struct Noise {
    block: Arc<[u8]>,
    used: usize,
}

impl Noise {
    /// The same for the same seed.
    pub fn new(seed: u64) -> Self {
        let mut block = vec![0; BLOCK];
        fastrand::Rng::with_seed(seed).fill(&mut block);
        Self { block: block.into(), used: 0 }
    }

    /// A content that was not there before.
    pub fn cut(&mut self, length: u64) -> Content {
        self.used += 1;
        let mut content = Content {
            block: Arc::clone(&self.block),
            // Odd steps through a block of an odd length come back late.
            begin: (self.used * 1021) % BLOCK,
            length,
            digest: String::new(),
        };
        let mut hasher = Sha256::new();
        content.pieces().for_each(|piece| hasher.update(piece));
        content.digest = digest_text(&hasher.finalize());
        content
    }
}

/// A text that is pushed as it is.
pub fn text_digest(text: &str) -> String {
    digest_text(&Sha256::digest(text))
}

fn digest_text(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Content {
    /// Its bytes, piece by piece.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let piece = self.at(at, usize::MAX);
            at += piece.len() as u64;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// The bytes from `at` on, as many as lie together and `most` at most.
    fn at(&self, at: u64, most: usize) -> &[u8] {
        let left = usize::try_from(self.length - at).unwrap_or(usize::MAX).min(most);
        let place = self.begin as u64 + at;
        let from = usize::try_from(place % BLOCK as u64).expect("below a block");
        let to = BLOCK.min(from.saturating_add(left));
        &self.block[from..to]
    }

    /// Compares what comes with it.
    pub fn check(&self) -> Check<'_> {
        Check { content: self, seen: 0 }
    }
}

/// How much of a content has come.
pub struct Check<'a> {
    content: &'a Content,
    seen: u64,
}

impl Check<'_> {
    /// Fails at the first byte that is wrong.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            ensure!(self.seen < self.content.length, "more bytes than were pushed");
            let expected = self.content.at(self.seen, bytes.len());
            let (piece, rest) = bytes.split_at(expected.len());
            ensure!(piece == expected, "other bytes than were pushed, after {}", self.seen);
            self.seen += piece.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Fails when bytes are missing.
    pub fn finish(self) -> Result<()> {
        let (seen, length) = (self.seen, self.content.length);
        ensure!(seen == length, "{seen} bytes of {length}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_what_it_says_and_nothing_else_passes_for_it() {
        let mut noise = Noise::new(1);
        let content = noise.cut(2 * BLOCK as u64 + 17);
        let bytes: Vec<u8> = content.pieces().flatten().copied().collect();
        assert_eq!(bytes.len() as u64, content.length);
        assert_eq!(digest_text(&Sha256::digest(&bytes)), content.digest);
        assert_ne!(noise.cut(content.length).digest, content.digest);

        let pass = |bytes: &[u8], step: usize| {
            let mut check = content.check();
            bytes.chunks(step).try_for_each(|piece| check.take(piece))?;
            check.finish()
        };
        pass(&bytes, 65_537).unwrap();
        pass(&bytes, BLOCK).unwrap();
        pass(&bytes[1..], BLOCK).unwrap_err();
        pass(&bytes[..bytes.len() - 1], BLOCK).unwrap_err();
        pass(&[&bytes[..], b"x"].concat(), BLOCK).unwrap_err();
    }
}
