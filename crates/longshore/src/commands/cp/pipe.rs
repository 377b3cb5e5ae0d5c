//! Between what waits for the network and the threads that wait for the disk.
//!
//! Both ways are bounded, and the end is said: a way that is merely dropped is not the end of an
//! archive, so that nobody takes half of one for the whole.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

/// How many pieces may be under way.
const AHEAD: usize = 4;
/// How much is sent at once.
const AT_ONCE: usize = 64 << 10;

/// A piece, or the end.
type Piece = Option<Bytes>;

/// Starts work on a thread of its own, which tells its outcome unless it panics. Whoever ends the process
/// does not wait for it.
pub fn thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (done, outcome) = oneshot::channel();
    // Nobody may want to know any more.
    thread::spawn(move || done.send(work()).is_ok());
    outcome
}

/// A way out: what is written to the one comes out of the other.
pub fn outgoing(n_bytes: Arc<AtomicU64>) -> (Outlet, BoxStream<'static, io::Result<Bytes>>) {
    let (pieces, receiver) = mpsc::channel::<Piece>(AHEAD);
    let stream = stream::unfold(Some((receiver, n_bytes)), |state| async {
        let (mut receiver, n_bytes) = state?;
        match receiver.recv().await {
            Some(Some(piece)) => {
                n_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Some((Ok(piece), Some((receiver, n_bytes))))
            }
            Some(None) => None,
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    });
    (Outlet { pieces, buffer: BytesMut::new() }, stream.boxed())
}

/// Where a thread writes.
pub struct Outlet {
    pieces: mpsc::Sender<Piece>,
    buffer: BytesMut,
}

impl Outlet {
    /// Has `work` write, and says the end when it went well.
    pub fn fill<T, E: Display>(
        mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let outcome = work(&mut self);
        if outcome.is_ok() && self.flush().is_ok() {
            // Whoever is gone has said why.
            let _ = self.pieces.blocking_send(None);
        }
        outcome
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= AT_ONCE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        let sent = self.pieces.blocking_send(Some(piece));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A way in: what is sent to the one is read from the other.
pub fn incoming() -> (Inlet, Input) {
    let (pieces, receiver) = mpsc::channel(AHEAD);
    (Inlet(pieces), Input { receiver, piece: Bytes::new(), is_over: false })
}

/// Where pieces go in.
pub struct Inlet(mpsc::Sender<Piece>);

impl Inlet {
    /// Sends a piece; false when nobody reads any more.
    pub async fn send(&self, piece: Bytes) -> bool {
        self.0.send(Some(piece)).await.is_ok()
    }

    /// Says that this was all.
    pub async fn end(&self) {
        // Whoever reads no more has no use for the end.
        let _ = self.0.send(None).await;
    }
}

/// Where a thread reads.
pub struct Input {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    is_over: bool,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.is_over = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_comes_out_and_its_end_is_told_from_a_break() {
        for is_whole in [true, false] {
            let n_bytes = Arc::new(AtomicU64::new(0));
            let (outlet, mut stream) = outgoing(Arc::clone(&n_bytes));
            let written = thread(move || {
                outlet.fill(|out| {
                    out.write_all(&[7; 200_000])?;
                    if is_whole { Ok(()) } else { Err(io::Error::other("broken")) }
                })
            });
            let read = async {
                let mut n_read = 0;
                while let Some(piece) = stream.next().await {
                    n_read += piece?.len();
                }
                Ok::<_, io::Error>(n_read)
            };
            let (written, read) = tokio::join!(written, read);
            assert_eq!((written.unwrap().is_ok(), read.is_ok()), (is_whole, is_whole));
            assert!(
                !is_whole || read.unwrap() == 200_000 && n_bytes.load(Ordering::Relaxed) == 200_000
            );
        }
    }

    #[tokio::test]
    async fn what_is_sent_is_read_and_its_end_is_told_from_a_break() {
        for is_whole in [true, false] {
            let (inlet, mut input) = incoming();
            let read = thread(move || {
                let mut bytes = Vec::new();
                input.read_to_end(&mut bytes).map(|_| bytes)
            });
            let send = async {
                for _ in 0..10 {
                    assert!(inlet.send(Bytes::from_static(b"abc")).await);
                }
                if is_whole {
                    inlet.end().await;
                }
                drop(inlet);
            };
            let (read, ()) = tokio::join!(read, send);
            match read.unwrap() {
                Ok(bytes) => assert!(is_whole && bytes == b"abc".repeat(10)),
                Err(error) => assert!(!is_whole && error.kind() == io::ErrorKind::UnexpectedEof),
            }
        }
    }
}
