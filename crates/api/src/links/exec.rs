//! What is said while a command runs in an instance, or a client is attached to its first process.
//!
//! The request is the query of a `GET` that turns the connection into a WebSocket, so that a browser
//! can ask as well, and the roles on the way only pass the bytes on. Each message is binary: a
//! [`Channel`], then its bytes; on the control channel they are JSON.
//!
//! The output waits for its reader, and the command for its output. The input must not hold up what
//! comes behind it (a signal, a resize, the end of the client), so a client sends no more of it than
//! [`INPUT_WINDOW`] beyond what it was told is taken.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The WebSocket subprotocol of all this.
pub const EXEC_PROTOCOL: &str = "exec.v1.longshore";
/// The most bytes of input that may be under way: sent, and not yet told to be taken.
pub const INPUT_WINDOW: usize = 256 << 10;
/// The longest message, its channel not counted.
pub const MAX_EXEC_MESSAGE: usize = 64 << 10;

/// A command to run in an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments; at least one.
    pub command: Vec<String>,
    /// `user[:group]` instead of the instance's.
    pub user: Option<String>,
    /// The working directory instead of the instance's.
    pub workdir: Option<String>,
    /// Variables added to the instance's environment, `NAME=value`.
    pub env: Vec<String>,
    /// Whether the command reads what is sent, or nothing.
    pub stdin: bool,
    /// The terminal that it runs in, if any.
    pub terminal: Option<TerminalSize>,
}

/// How many characters a terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for TerminalSize {
    /// What a terminal has that says nothing of its size.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// A client to be attached to an instance's first process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Whether the program reads what is sent, or nothing.
    pub stdin: bool,
    /// How large the client's terminal is, if it has one.
    pub terminal: Option<TerminalSize>,
}

impl AttachRequest {
    /// The request as a query.
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        self.append(&mut query);
        query.finish()
    }

    fn append(&self, query: &mut form_urlencoded::Serializer<'_, String>) {
        if self.stdin {
            query.append_pair("stdin", "true");
        }
        if let Some(TerminalSize { columns, rows }) = self.terminal {
            query.append_pair("tty", "true");
            query.append_pair("columns", &columns.to_string());
            query.append_pair("rows", &rows.to_string());
        }
    }

    /// Reads a query.
    ///
    /// # Errors
    ///
    /// Names the first parameter that is unknown or of a wrong value.
    pub fn from_query(query: &str) -> Result<Self, ExecQueryProblem> {
        let mut streams = AskedStreams::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if !streams.take(&key, &value)? {
                let allowed = "not a parameter: stdin, tty, columns and rows are";
                return Err(wrong(&key, &value, allowed));
            }
        }
        Ok(streams.done())
    }
}

/// What is asked of a client's streams, while it is read.
#[derive(Default)]
struct AskedStreams {
    stdin: bool,
    tty: bool,
    size: TerminalSize,
}

impl AskedStreams {
    /// Takes a parameter; false when it is another.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, ExecQueryProblem> {
        let flag = || match value {
            "" | "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(wrong(key, value, "true or false")),
        };
        let number = || match value.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(wrong(key, value, "a number from 1 to 65535")),
        };
        match key {
            "stdin" => self.stdin = flag()?,
            "tty" => self.tty = flag()?,
            "columns" => self.size.columns = number()?,
            "rows" => self.size.rows = number()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn done(self) -> AttachRequest {
        AttachRequest { stdin: self.stdin, terminal: self.tty.then_some(self.size) }
    }
}

fn wrong(key: &str, value: &str, allowed: &'static str) -> ExecQueryProblem {
    ExecQueryProblem { field: key.to_owned(), value: value.to_owned(), allowed }
}

/// A query that asks for no command, or for streams that there are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecQueryProblem {
    /// Which parameter.
    pub field: String,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl fmt::Display for ExecQueryProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}: {}", self.field, self.value, self.allowed)
    }
}

impl std::error::Error for ExecQueryProblem {}

impl ExecRequest {
    /// The request as a query: `command` once for each part, `env` once for each variable.
    pub fn to_query(&self) -> String {
        let Self { command, user, workdir, env, stdin, terminal } = self;
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(command.iter().map(|part| ("command", part)));
        query.extend_pairs(env.iter().map(|variable| ("env", variable)));
        query.extend_pairs(user.iter().map(|user| ("user", user)));
        query.extend_pairs(workdir.iter().map(|workdir| ("workdir", workdir)));
        AttachRequest { stdin: *stdin, terminal: *terminal }.append(&mut query);
        query.finish()
    }

    /// Reads a query.
    ///
    /// # Errors
    ///
    /// Names the first parameter that is unknown, of a wrong value, or missing.
    pub fn from_query(query: &str) -> Result<Self, ExecQueryProblem> {
        let mut request = Self::default();
        let mut streams = AskedStreams::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "command" => request.command.push(value.into_owned()),
                "env" if value.find('=').is_some_and(|end| end > 0) => {
                    request.env.push(value.into_owned());
                }
                "env" => return Err(wrong(&key, &value, "NAME=value")),
                "user" => request.user = Some(value.into_owned()),
                "workdir" => request.workdir = Some(value.into_owned()),
                _ if streams.take(&key, &value)? => {}
                _ => {
                    let allowed = "not a parameter: command, env, user, workdir, stdin, tty, \
                                   columns and rows are";
                    return Err(wrong(&key, &value, allowed));
                }
            }
        }
        if request.command.first().is_none_or(String::is_empty) {
            let (field, allowed) = ("command".to_owned(), "a program and its arguments");
            return Err(ExecQueryProblem { field, value: String::new(), allowed });
        }
        AttachRequest { stdin: request.stdin, terminal: request.terminal } = streams.done();
        Ok(request)
    }
}

/// The first byte of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// To the command: what it reads.
    Stdin = 0,
    /// From the command: what it writes, also when that is a terminal.
    Stdout = 1,
    /// From the command: its errors.
    Stderr = 2,
    /// To the command a [`ToCommand`], from it a [`FromCommand`].
    Control = 3,
}

impl Channel {
    /// A message on this channel.
    pub fn message(self, bytes: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(self as u8);
        message.extend_from_slice(bytes);
        message
    }

    /// A message on the control channel.
    pub fn control<T: Serialize>(value: &T) -> Vec<u8> {
        let json = serde_json::to_vec(value).expect("wire types have string keys only");
        Self::Control.message(&json)
    }

    /// The channel and the bytes of a message; absent when it has no channel that is known.
    pub fn split(message: &[u8]) -> Option<(Self, &[u8])> {
        let (channel, bytes) = message.split_first()?;
        let known = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Control];
        Some((known.into_iter().find(|known| *known as u8 == *channel)?, bytes))
    }
}

/// What a client tells beside the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToCommand {
    /// The terminal has this size now.
    Resize(TerminalSize),
    /// The command and its process group get a signal.
    Signal {
        /// Its name, such as `INT`, or its number.
        name: String,
    },
    /// No input follows. A terminal has no end.
    Eof {},
    /// The program goes on without its client; only of one that is attached.
    Detach {},
}

/// What a client is told beside the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromCommand {
    /// The command has taken some of its input, so that as much may follow.
    Taken {
        /// How many bytes since this was said last.
        bytes: usize,
    },
    /// The command ended; the last message. 128 + signal when a signal ended it.
    Exit {
        /// Its status.
        code: i32,
    },
    /// The command was lost, or the client did what it must not; the last message.
    Failed {
        /// Why.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_query() {
        let request = ExecRequest {
            command: ["sh", "-c", "echo \"a b\" & echo ä=+%\n", ""].map(str::to_owned).into(),
            user: Some("web:log".to_owned()),
            workdir: Some("/srv/a b".to_owned()),
            env: vec!["A=1".to_owned(), "B==&".to_owned()],
            stdin: true,
            terminal: Some(TerminalSize { columns: 7, rows: 65535 }),
        };
        assert_eq!(ExecRequest::from_query(&request.to_query()), Ok(request));
        let plain = ExecRequest { command: vec!["true".to_owned()], ..ExecRequest::default() };
        assert_eq!(plain.to_query(), "command=true");
        assert_eq!(ExecRequest::from_query("command=true&stdin=false"), Ok(plain));
        let terminal = ExecRequest::from_query("command=true&tty=").unwrap().terminal;
        assert_eq!(terminal, Some(TerminalSize { columns: 80, rows: 24 }));
    }

    #[test]
    fn what_is_wrong_with_a_query_is_named() {
        for (query, field) in [
            ("", "command"),
            ("command=", "command"),
            ("user=web", "command"),
            ("command=true&env=A", "env"),
            ("command=true&env==A", "env"),
            ("command=true&tty=maybe", "tty"),
            ("command=true&columns=0", "columns"),
            ("command=true&rows=70000", "rows"),
            ("command=true&colour=red", "colour"),
        ] {
            assert_eq!(ExecRequest::from_query(query).unwrap_err().field, field, "{query}");
        }
    }

    #[test]
    fn who_is_attached_asks_for_streams_alone() {
        let terminal = Some(TerminalSize { columns: 7, rows: 9 });
        for request in [
            AttachRequest { stdin: true, terminal },
            AttachRequest { stdin: false, terminal: None },
        ] {
            assert_eq!(AttachRequest::from_query(&request.to_query()), Ok(request));
        }
        for (query, field) in [("command=true", "command"), ("stdin=2", "stdin"), ("rows=", "rows")]
        {
            assert_eq!(AttachRequest::from_query(query).unwrap_err().field, field, "{query}");
        }
    }

    #[test]
    fn messages_have_a_channel() {
        let message = Channel::Stdin.message(b"text");
        assert_eq!(Channel::split(&message), Some((Channel::Stdin, &b"text"[..])));
        assert_eq!(Channel::split(&[1]), Some((Channel::Stdout, &[][..])));
        assert_eq!((Channel::split(&[]), Channel::split(&[4, 1])), (None, None));
        let resize = ToCommand::Resize(TerminalSize { columns: 80, rows: 24 });
        let text = b"\x03{\"resize\":{\"columns\":80,\"rows\":24}}";
        assert_eq!(Channel::control(&resize), text);
        assert_eq!(Channel::control(&ToCommand::Eof {}), b"\x03{\"eof\":{}}");
        assert_eq!(
            Channel::control(&FromCommand::Exit { code: 7 }),
            b"\x03{\"exit\":{\"code\":7}}"
        );
    }
}
