//! A command that runs elsewhere, with the terminal, the pipes and the signals of this process.
//!
//! Two threads do what may block: one reads the standard input, one writes the output. They are not
//! tasks, because nothing can take back a `read` that waits, and the process must end all the same.
//! Between them and the connection are short queues, so that whoever is slow slows the others down.

mod detach;
mod local;
mod raw;

use std::process::ExitCode;
use std::time::Duration;

use longshore_api::links::{Channel, FromCommand, INPUT_WINDOW, LogStream, ToCommand};
use longshore_link::{WebSocket, WebSocketReceiver, WebSocketSender, chain};

use crate::failure::{Failure, Kind};
use detach::DetachKeys;
use detach::{Detacher, Typed};
pub use local::Signal;
use local::{Input, Output, READ_AT_ONCE, Signals};
use raw::RawMode;
use raw::is_terminal;
pub use raw::size;

/// What of this process the command gets.
#[derive(Debug)]
pub struct Attachment {
    /// Whether it reads the standard input.
    pub stdin: bool,
    /// Whether it runs in a terminal.
    pub tty: bool,
    /// What leaves that.
    pub detach_keys: DetachKeys,
    /// Whether it goes on when it is left by these keys.
    pub goes_on: bool,
}

/// The options of a command that attaches.
#[derive(Debug, clap::Args)]
pub struct AttachmentOptions {
    /// Pass the standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Run it in a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// The keys that leave the terminal; none with an empty text
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
}

impl AttachmentOptions {
    /// Refuses what cannot be; otherwise what is wanted.
    pub fn check(&self, goes_on: bool) -> Result<Attachment, Failure> {
        if self.interactive && self.tty && !is_terminal() {
            let message = "-t needs a terminal, and the standard input is none";
            return Err(Failure::new(Kind::Usage, message).hint("leave -t away to pipe into it"));
        }
        let (stdin, tty, detach_keys) = (self.interactive, self.tty, self.detach_keys.clone());
        Ok(Attachment { stdin, tty, detach_keys, goes_on })
    }
}

/// Programs draw by the kind of terminal that the user has, if nothing else is said.
pub fn with_term(mut env: Vec<String>) -> Vec<String> {
    if !env.iter().any(|variable| variable.starts_with("TERM=")) {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        env.push(format!("TERM={term}"));
    }
    env
}

/// How long the platform may take to know that the user left.
const LEAVING: Duration = Duration::from_secs(5);

/// Talks to a running command until it ends, or this does.
pub async fn attach(socket: WebSocket, attachment: Attachment) -> Result<End, Failure> {
    let Attachment { stdin, tty, detach_keys, goes_on } = attachment;
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
        goes_on,
        interrupted: false,
    };
    let end = conversation.run(signals).await;
    drop(raw);
    end
}

/// How a conversation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command did, with this code.
    Exit(i32),
    /// It was lost.
    Failed(String),
    /// The user left by keys.
    Detached,
    /// This process was to end.
    Signalled(Signal),
    /// Whoever reads the output went away, as `head` does.
    NobodyReads,
}

impl End {
    /// With what this process ends.
    pub fn code(self) -> Result<ExitCode, Failure> {
        match self {
            // The codes of Unix fit into a byte; anything else is a failure all the same.
            Self::Exit(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
            Self::Failed(message) => Err(Failure::new(Kind::Other, message)),
            Self::Signalled(signal) => Ok(ExitCode::from(128 + signal.number())),
            Self::Detached | Self::NobodyReads => Ok(ExitCode::SUCCESS),
        }
    }
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
    /// Whether what is left by keys does.
    goes_on: bool,
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
        if typed.left && self.goes_on {
            let _ = self.sender.send(Channel::control(&ToCommand::Detach {})).await;
            // Closed once it is known everywhere. What comes until then is in the log.
            let closed = async { while let Ok(Some(_)) = self.receiver.receive().await {} };
            let _ = tokio::time::timeout(LEAVING, closed).await;
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
