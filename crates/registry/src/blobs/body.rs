//! The bytes of a file as the body of an answer.
//!
//! What the kernel has in memory is read where it is sent, in pieces that stay in a processor's
//! cache between the two: with pieces of 512 KiB, read by another thread and each in memory of its
//! own, sixteen clients at once made the copies wait for the memory. What has to come from the disk
//! is read by a thread that may wait.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use futures_util::{StreamExt as _, stream};
use rustix::io::{Errno, ReadWriteFlags};

/// How much is read and sent at a time: a fraction of a usual second-level cache.
const SEGMENT: u64 = 128 << 10;

/// How far the disk is told to read ahead of what is being sent.
const AHEAD: u64 = 4 << 20;

/// So many segments are used again: one is read while others are still being sent.
const SPARE: usize = 4;

/// A part of a file as a body; the file must have it.
pub(crate) fn of_file(file: File, part: Range<u64>) -> Body {
    let reader = Reader { file: Arc::new(file), left: part, spare: Vec::new() };
    let segments = stream::try_unfold(reader, async |mut reader: Reader| {
        let segment = reader.next().await?;
        Ok::<_, io::Error>(segment.map(|segment| (segment, reader)))
    });
    Body::from_stream(segments.boxed())
}

struct Reader {
    file: Arc<File>,
    left: Range<u64>,
    /// Segments that were handed out. Their memory is used again once they are sent.
    spare: Vec<Bytes>,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let offset = self.left.start;
        let n_wanted = (self.left.end - offset).min(SEGMENT) as usize;
        let mut buffer = self.buffer();
        let n_read = match read_cached(&self.file, &mut buffer[..n_wanted], offset)? {
            Some(n_read) => n_read,
            None => {
                let file = Arc::clone(&self.file);
                let read = tokio::task::spawn_blocking(move || {
                    read_ahead(&file, offset);
                    file.read_exact_at(&mut buffer[..n_wanted], offset).map(|()| buffer)
                });
                buffer = read.await.map_err(io::Error::other)??;
                n_wanted
            }
        };
        if n_read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left.start += n_read as u64;
        let segment = buffer.freeze();
        if self.spare.len() < SPARE {
            self.spare.push(segment.clone());
        }
        Ok(Some(segment.slice(..n_read)))
    }

    fn buffer(&mut self) -> BytesMut {
        let sent = self.spare.iter().position(Bytes::is_unique);
        let again = sent.and_then(|idx| self.spare.swap_remove(idx).try_into_mut().ok());
        again.unwrap_or_else(|| BytesMut::zeroed(SEGMENT as usize))
    }
}

/// Reads what the kernel has in memory, maybe less than was asked for; `None` when it would have to
/// wait for the disk, or cannot tell.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    let buffers = &mut [IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(n_read) => Ok(Some(n_read)),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Has the disk begin with what comes next. Failing changes nothing but the time that it takes.
fn read_ahead(file: &File, offset: u64) {
    let length = std::num::NonZeroU64::new(AHEAD);
    let _ = rustix::fs::fadvise(file, offset, length, rustix::fs::Advice::WillNeed);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use http_body_util::BodyExt as _;

    use super::*;

    fn content(n_bytes: usize) -> (File, Vec<u8>) {
        let content: Vec<u8> = (0..n_bytes).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (file, content)
    }

    #[tokio::test]
    async fn every_part_is_what_the_file_has_cached_or_not() {
        let segment = SEGMENT as usize;
        let (file, content) = content(5 * segment + 3);
        let parts = [0..1, 0..content.len(), 7..segment + 7, segment..2 * segment, 5..5];
        for is_cached in [true, false] {
            for part in parts.clone() {
                if !is_cached {
                    file.sync_all().unwrap();
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                }
                let range = part.start as u64..part.end as u64;
                let body = of_file(file.try_clone().unwrap(), range);
                let sent = body.collect().await.unwrap().to_bytes();
                assert!(sent == content[part.clone()], "{part:?}, cached {is_cached}");
            }
        }
    }

    #[tokio::test]
    async fn memory_is_used_again_only_when_nobody_has_it() {
        let (file, content) = content(9 * SEGMENT as usize);
        let length = content.len() as u64;
        let mut reader = Reader { file: Arc::new(file), left: 0..length, spare: Vec::new() };
        let mut held = Vec::new();
        while let Some(segment) = reader.next().await.unwrap() {
            held.push(segment);
        }
        assert!(held.concat() == content);
        drop(held);
        reader.left = 0..SEGMENT;
        assert_eq!(reader.spare.len(), SPARE);
        let again = reader.next().await.unwrap().unwrap();
        assert_eq!(reader.spare.len(), SPARE, "one was taken and given back");
        assert!(again == content[..again.len()]);
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_ends_in_an_error() {
        let (file, _) = content(10);
        assert!(of_file(file, 0..11).collect().await.is_err());
    }
}
