//! A command that runs elsewhere, with the terminal, the pipes and the signals of this process.
//!
//! Two threads do what may block: one reads the standard input, one writes the output. They are not
//! tasks, because nothing can take back a `read` that waits, and the process must end all the same.
//! Between them and the connection are short queues, so that whoever is slow slows the others down.

mod detach;
mod local;
mod raw;

use std::process::ExitCode;

use longshore_api::links::{Channel, FromCommand, INPUT_WINDOW, LogStream, ToCommand};
use longshore_link::{WebSocket, WebSocketReceiver, WebSocketSender, chain};

use crate::failure::{Failure, Kind};
use crate::output;
pub use detach::DetachKeys;
use detach::{Detacher, Typed};
use local::{Input, Output, READ_AT_ONCE, Signal, Signals};
use raw::RawMode;
pub use raw::{is_terminal, size};

/// What of this process the command gets.
#[derive(Debug)]
pub struct Attachment {
    /// Whether it reads the standard input.
    pub stdin: bool,
    /// Whether it runs in a terminal.
    pub tty: bool,
    /// What leaves that.
    pub detach_keys: DetachKeys,
}

/// Talks to a running command until it ends, and gives its exit code.
pub async fn attach(socket: WebSocket, attachment: Attachment) -> Result<ExitCode, Failure> {
    let Attachment { stdin, tty, detach_keys } = attachment;
    let signals = Signals::listen()?;
    // The terminal is back as it was by the time that anything is said about the end.
    let raw = (stdin && tty).then(RawMode::enter).transpose()?;
    let (sender, receiver) = socket.split();
    let conversation = Conversation {
        sender,
        receiver,
        input: stdin.then(Input::start),
        output: Output::start(),
        window: INPUT_WINDOW,
        detacher: (stdin && tty).then(|| Detacher::new(detach_keys)),
        tty,
        interrupted: false,
    };
    let end = conversation.run(signals).await;
    drop(raw);
    match end? {
        // The codes of Unix fit into a byte; anything else is a failure all the same.
        End::Exit(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        End::Failed(message) => Err(Failure::new(Kind::Other, message)),
        End::Detached => {
            output::say("left the terminal; what ran in it is ended");
            Ok(ExitCode::SUCCESS)
        }
        End::Signalled(signal) => Ok(ExitCode::from(128 + signal.number())),
        End::NobodyReads => Ok(ExitCode::SUCCESS),
    }
}

enum End {
    Exit(i32),
    Failed(String),
    /// The user left by keys.
    Detached,
    /// This process was to end.
    Signalled(Signal),
    /// Whoever reads the output went away, as `head` does.
    NobodyReads,
}

struct Conversation {
    sender: WebSocketSender,
    receiver: WebSocketReceiver,
    /// Absent when there is none, or no more.
    input: Option<Input>,
    output: Output,
    /// How much input may be sent.
    window: usize,
    detacher: Option<Detacher>,
    tty: bool,
    /// Whether the command was asked to end already.
    interrupted: bool,
}

impl Conversation {
    async fn run(mut self, mut signals: Signals) -> Result<End, Failure> {
        loop {
            // With room for keys that were held back.
            let may_send = self.window >= 2 * READ_AT_ONCE;
            let input = async {
                match &mut self.input {
                    Some(input) if may_send => input.next().await,
                    _ => std::future::pending().await,
                }
            };
            let incoming = async {
                // A message is read when there is room for what it may say.
                let room = self.output.room().await;
                (room, self.receiver.receive().await)
            };
            let end = tokio::select! {
                (room, message) = incoming => {
                    let Ok(room) = room else { return self.output.finish(End::NobodyReads).await };
                    let message = message.map_err(|error| lost(&chain(&error)))?;
                    let message = message.ok_or_else(|| lost("it was closed"))?;
                    match Channel::split(&message) {
                        Some((Channel::Stdout, bytes)) => room.send(LogStream::Stdout, bytes),
                        Some((Channel::Stderr, bytes)) => room.send(LogStream::Stderr, bytes),
                        Some((Channel::Control, json)) => {
                            drop(room);
                            if let Some(end) = self.told(json)? {
                                return self.output.finish(end).await;
                            }
                        }
                        _ => return Err(lost("the platform sent what is not understood")),
                    }
                    None
                }
                typed = input => self.typed(typed?).await,
                signal = signals.next() => self.signalled(signal).await,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn told(&mut self, json: &[u8]) -> Result<Option<End>, Failure> {
        match serde_json::from_slice(json) {
            Ok(FromCommand::Taken { bytes }) => {
                self.window = self.window.saturating_add(bytes).min(INPUT_WINDOW);
                Ok(None)
            }
            Ok(FromCommand::Exit { code }) => Ok(Some(End::Exit(code))),
            Ok(FromCommand::Failed { message }) => Ok(Some(End::Failed(message))),
            Err(_) => Err(lost("the platform sent what is not understood")),
        }
    }

    /// Sends what was read. A connection that is broken says so where it is read.
    async fn typed(&mut self, bytes: Option<Vec<u8>>) -> Option<End> {
        let Some(bytes) = bytes else {
            self.input = None;
            if !self.tty {
                let _ = self.sender.send(Channel::control(&ToCommand::Eof {})).await;
            }
            return None;
        };
        let typed = match &mut self.detacher {
            None => Typed { keys: bytes, left: false },
            Some(detacher) => detacher.typed(&bytes),
        };
        if !typed.keys.is_empty() {
            self.window = self.window.saturating_sub(typed.keys.len());
            let _ = self.sender.send(Channel::Stdin.message(&typed.keys)).await;
        }
        typed.left.then_some(End::Detached)
    }

    /// Without a terminal the command is asked to end once, by the same signal, and left the second
    /// time, which ends it. With one, keys are not signals here, so this process is meant.
    async fn signalled(&mut self, signal: Signal) -> Option<End> {
        if signal == Signal::Resized {
            if self.tty {
                let _ = self.sender.send(Channel::control(&ToCommand::Resize(size()))).await;
            }
            return None;
        }
        if self.tty || std::mem::replace(&mut self.interrupted, true) {
            return Some(End::Signalled(signal));
        }
        let name = signal.name().to_owned();
        let _ = self.sender.send(Channel::control(&ToCommand::Signal { name })).await;
        None
    }
}

fn lost(why: &str) -> Failure {
    let message = format!("the connection ended before the command did: {why}");
    Failure::new(Kind::Unavailable, message)
}
