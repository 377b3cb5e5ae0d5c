//! The streams and signals of this process.

use std::io::{self, Read as _, Write};
use std::thread;

use longshore_api::links::LogStream;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::oneshot;

use super::End;
use crate::failure::{Failure, Kind, OrFail as _};

/// The most that is read at once.
pub(super) const READ_AT_ONCE: usize = 16 << 10;
/// How many pieces wait between a thread and the connection.
const PIECES_AHEAD: usize = 4;

/// The standard input.
pub(super) struct Input(mpsc::Receiver<io::Result<Vec<u8>>>);

impl Input {
    /// Begins to read.
    pub fn start() -> Self {
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            loop {
                let mut buffer = vec![0; READ_AT_ONCE];
                let read = match stdin.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => {
                        buffer.truncate(length);
                        Ok(buffer)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = read.is_err();
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next bytes; absent at the end. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let next = self.0.recv().await.transpose();
        next.or_fail(Kind::Other, "cannot read the standard input")
    }
}

type Piece = (LogStream, Vec<u8>);

/// Standard output and standard error.
pub(super) struct Output {
    pieces: mpsc::Sender<Piece>,
    /// Ends with the thread.
    written: oneshot::Receiver<io::Result<()>>,
}

/// Room for one piece of output.
pub(super) struct Room(OwnedPermit<Piece>);

impl Room {
    pub fn send(self, stream: LogStream, bytes: &[u8]) {
        self.0.send((stream, bytes.to_vec()));
    }
}

impl Output {
    /// Begins to write.
    pub fn start() -> Self {
        let (pieces, mut receiver) = mpsc::channel::<Piece>(PIECES_AHEAD);
        let (done, written) = oneshot::channel();
        thread::spawn(move || {
            let mut write = || -> io::Result<()> {
                while let Some((stream, bytes)) = receiver.blocking_recv() {
                    match stream {
                        LogStream::Stdout => put(io::stdout().lock(), &bytes)?,
                        LogStream::Stderr => put(io::stderr().lock(), &bytes)?,
                    }
                }
                Ok(())
            };
            // Nobody waits for it when this process is about to end anyway.
            let _ = done.send(write());
        });
        Self { pieces, written }
    }

    /// Waits until a piece of output would be taken; an error when nobody reads any more. Cancel
    /// safe.
    pub async fn room(&self) -> Result<Room, ()> {
        self.pieces.clone().reserve_owned().await.map(Room).map_err(|_| ())
    }

    /// Waits until all is written.
    pub async fn finish(self, end: End) -> Result<End, Failure> {
        drop(self.pieces);
        match self.written.await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(end),
            Ok(Err(error)) => Err(error).or_fail(Kind::Other, "cannot write the output"),
            Ok(Ok(())) | Err(_) => Ok(end),
        }
    }
}

fn put(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// A signal to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// As by ctrl-c.
    Interrupt,
    /// To end.
    Terminate,
    /// The terminal is gone.
    HangUp,
    /// As by ctrl-\\.
    Quit,
    /// The terminal has another size.
    Resized,
}

impl Signal {
    /// Its name without `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "INT",
            Self::Terminate => "TERM",
            Self::HangUp => "HUP",
            Self::Quit => "QUIT",
            Self::Resized => "WINCH",
        }
    }

    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Quit => 3,
            Self::Terminate => 15,
            Self::Resized => 28,
        }
    }
}

/// The signals that are listened for.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
    quit: unix::Signal,
    resized: unix::Signal,
}

impl Signals {
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| unix::signal(kind).or_fail(Kind::Other, "cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
            resized: listen(SignalKind::window_change())?,
        })
    }

    /// The next one. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.hang_up.recv() => Signal::HangUp,
            _ = self.quit.recv() => Signal::Quit,
            _ = self.resized.recv() => Signal::Resized,
        }
    }
}
