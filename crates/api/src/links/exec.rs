//! What is said while a command runs in an instance.
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

/// A query that asks for no command.
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
        if *stdin {
            query.append_pair("stdin", "true");
        }
        if let Some(TerminalSize { columns, rows }) = terminal {
            query.append_pair("tty", "true");
            query.append_pair("columns", &columns.to_string());
            query.append_pair("rows", &rows.to_string());
        }
        query.finish()
    }

    /// Reads a query.
    ///
    /// # Errors
    ///
    /// Names the first parameter that is unknown, of a wrong value, or missing.
    pub fn from_query(query: &str) -> Result<Self, ExecQueryProblem> {
        let mut request = Self::default();
        let (mut tty, mut size) = (false, TerminalSize::default());
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let wrong = |allowed| ExecQueryProblem {
                field: key.to_string(),
                value: value.to_string(),
                allowed,
            };
            let flag = || match &*value {
                "" | "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(wrong("true or false")),
            };
            let number = || match value.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(wrong("a number from 1 to 65535")),
            };
            match &*key {
                "command" => request.command.push(value.into_owned()),
                "env" if value.find('=').is_some_and(|end| end > 0) => {
                    request.env.push(value.into_owned());
                }
                "env" => return Err(wrong("NAME=value")),
                "user" => request.user = Some(value.into_owned()),
                "workdir" => request.workdir = Some(value.into_owned()),
                "stdin" => request.stdin = flag()?,
                "tty" => tty = flag()?,
                "columns" => size.columns = number()?,
                "rows" => size.rows = number()?,
                _ => {
                    return Err(wrong(
                        "not a parameter: command, env, user, workdir, stdin, tty, columns and rows are",
                    ));
                }
            }
        }
        if request.command.first().is_none_or(String::is_empty) {
            let (field, allowed) = ("command".to_owned(), "a program and its arguments");
            return Err(ExecQueryProblem { field, value: String::new(), allowed });
        }
        request.terminal = tty.then_some(size);
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
