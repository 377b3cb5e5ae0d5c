//! As much of HTTP/1.1 as asking a server on loopback takes: one request per connection.
//!
//! A client library would retry, pool and follow; a test of what happens to single connections, and
//! a measurement in milliseconds, want none of that.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::on_network;

/// A request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// The path with its query.
    pub path: &'a str,
    /// The Host header.
    pub host: &'a str,
    /// The bearer token, if any.
    pub token: Option<&'a str>,
    /// A body of JSON, if any.
    pub body: Option<&'a [u8]>,
    /// How long connecting, and each wait for bytes, may take.
    pub timeout: Duration,
}

impl<'a> Request<'a> {
    /// Sends it from another network, on a thread of its own, which then is there for good.
    pub fn send_from(self, network: &File, address: SocketAddr) -> Result<Response> {
        on_network(network, || self.send(address))
    }

    /// A GET of `path` with a patience that suits tests.
    pub fn get(host: &'a str, path: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            host,
            token: None,
            body: None,
            timeout: Duration::from_secs(30),
        }
    }

    /// Sends it to `address` and reads the whole answer.
    pub fn send(&self, address: SocketAddr) -> Result<Response> {
        let stream = self.open(address)?;
        Response::read(BufReader::new(stream)).context("cannot read the response")
    }

    /// Sends it to `address` and leaves the answer, its head included, to the caller.
    pub fn open(&self, address: SocketAddr) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&address, self.timeout)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.write_all(&self.bytes()).context("cannot send the request")?;
        Ok(stream)
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { method, path, host, .. } = self;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        if let Some(token) = self.token {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        if let Some(body) = self.body {
            let length = body.len();
            head.push_str(&format!(
                "content-type: application/json\r\ncontent-length: {length}\r\n"
            ));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.unwrap_or_default());
        bytes
    }
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn read(mut reader: impl BufRead) -> Result<Self> {
        let line = read_line(&mut reader)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("{line:?} is not a status line"))?;
        let mut length = None;
        let mut chunked = false;
        loop {
            let line = read_line(&mut reader)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(value.trim().parse::<usize>()?),
                "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
                _ => {}
            }
        }
        let mut body = Vec::new();
        if chunked {
            read_chunks(&mut reader, &mut body)?;
        } else if let Some(length) = length {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        } else {
            reader.read_to_end(&mut body)?;
        }
        Ok(Self { status, body })
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("the connection ended within the response");
    }
    Ok(line.trim_end().to_owned())
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let line = read_line(reader)?;
        let length = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
            .with_context(|| format!("{line:?} is not the length of a chunk"))?;
        let begin = body.len();
        body.resize(begin + length, 0);
        reader.read_exact(&mut body[begin..])?;
        read_line(reader)?;
        if length == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_end_in_three_ways() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloGARBAGE",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nServer: x\r\n\r\nhello",
        ] {
            let response = Response::read(text.as_bytes()).unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "hello"), "{text:?}");
        }
        for bad in ["", "HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"] {
            assert!(Response::read(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
