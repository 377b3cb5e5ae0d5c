//! A WebSocket client for tests: what RFC 6455 asks of one, for whole messages below 4 GiB.
//!
//! By hand, because it is small, and what is tested is what lies between it and the server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long each wait for bytes may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Any key will do that is 16 bytes in base64: it only shows that the answer is no stored one.
const KEY: &str = "bG9uZ3Nob3JlIHRlc3RzIQ==";
/// Hides nothing: it keeps what a client sends from looking like another protocol.
const MASK: [u8; 4] = [0x5a, 0x3c, 0x96, 0x69];

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
    /// The end, with its code.
    Close(Option<u16>),
}

/// An open connection.
pub struct WebSocket(BufReader<TcpStream>);

impl WebSocket {
    /// Asks `address` for `path` of `host` and turns the connection into a WebSocket.
    pub fn connect(address: SocketAddr, host: &str, path: &str) -> Result<Self> {
        Self::connect_with(address, host, path, &[])
    }

    /// The same with more headers.
    pub fn connect_with(
        address: SocketAddr,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self> {
        let more: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n{more}\r\n"
        );
        reader.get_mut().write_all(request.as_bytes())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "the connection ended within {head:?}");
        }
        ensure!(head.starts_with("HTTP/1.1 101 "), "{host}{path} is no WebSocket: {head}");
        Ok(Self(reader))
    }

    /// Sends text.
    pub fn send_text(&mut self, text: &str) -> Result<()> {
        self.send(1, text.as_bytes())
    }

    /// Sends bytes.
    pub fn send_binary(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(2, bytes)
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80 | opcode];
        // In as few bytes as it takes, or a server may refuse it.
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length), _) if length < 126 => frame.push(0x80 | length),
            (_, Ok(length)) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend(u64::try_from(payload.len())?.to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.get_mut().write_all(&frame).context("cannot send a message")
    }

    /// Waits for a whole message.
    pub fn receive(&mut self) -> Result<Message> {
        let (mut opcode, mut message) = (0, Vec::new());
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).context("the connection ended without a close")?;
            let length = match head[1] {
                126 => u64::from(u16::from_be_bytes(self.bytes()?)),
                127 => u64::from_be_bytes(self.bytes()?),
                short if short < 126 => u64::from(short),
                _ => bail!("a server must not mask"),
            };
            let begin = message.len();
            message.resize(begin + usize::try_from(length)?, 0);
            self.0.read_exact(&mut message[begin..])?;
            opcode = if head[0] & 0xf == 0 { opcode } else { head[0] & 0xf };
            if head[0] & 0x80 != 0 {
                break;
            }
        }
        match opcode {
            // A sign of life.
            9 => self.receive(),
            1 => Ok(Message::Text(String::from_utf8(message)?)),
            2 => Ok(Message::Binary(message)),
            8 => {
                let code = message.first_chunk().map(|code| u16::from_be_bytes(*code));
                Ok(Message::Close(code))
            }
            other => bail!("a message of kind {other}"),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
