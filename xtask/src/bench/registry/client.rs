//! A client of registries that does the same to each: as much of HTTP/1.1 as that takes, on one
//! connection that is kept open, with blocking sockets. It costs little, so that what is measured is
//! at the other end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::content::Content;

/// Nothing takes so long that works: a registry may sync gigabytes before it answers.
const PATIENCE: Duration = Duration::from_secs(180);
const BUFFER: usize = 256 << 10;
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Where a registry is, and the token with which it is asked.
#[derive(Debug, Clone)]
pub struct Place {
    /// On loopback.
    pub address: SocketAddr,
    /// None where nobody is asked who they are.
    pub token: Option<String>,
}

/// What a request carries.
#[derive(Clone, Copy)]
enum Sent<'a> {
    Nothing,
    Content(&'a Content),
    Manifest(&'a str),
}

struct Answer {
    status: u16,
    location: String,
}

/// A connection to a registry.
pub struct Client {
    place: Place,
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer was received and not used.
    filled: std::ops::Range<usize>,
}

impl Client {
    /// Connects.
    pub fn connect(place: &Place) -> Result<Self> {
        let stream = TcpStream::connect(place.address).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { place: place.clone(), stream, buffer: vec![0; BUFFER], filled: 0..0 })
    }

    /// True when the registry answers.
    pub fn is_answered(&mut self) -> bool {
        self.send("GET", "/v2/", Sent::Nothing, |_| Ok(())).is_ok_and(|answer| answer.status == 200)
    }

    /// Pushes a blob with the requests that docker and podman send.
    pub fn push_blob(&mut self, repository: &str, blob: &Content) -> Result<()> {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        self.expect(404, "HEAD", &path, Sent::Nothing)?;
        let path = format!("/v2/{repository}/blobs/uploads/");
        let upload = self.expect(202, "POST", &path, Sent::Nothing)?;
        let upload = self.expect(202, "PATCH", &upload, Sent::Content(blob))?;
        let separator = if upload.contains('?') { '&' } else { '?' };
        let finish = format!("{upload}{separator}digest={}", blob.digest);
        self.expect(201, "PUT", &finish, Sent::Nothing)?;
        Ok(())
    }

    /// Pushes a manifest.
    pub fn push_manifest(&mut self, repository: &str, tag: &str, manifest: &str) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.expect(201, "PUT", &path, Sent::Manifest(manifest))?;
        Ok(())
    }

    /// Pulls a blob and compares every byte.
    pub fn pull_blob(&mut self, repository: &str, blob: &Content) -> Result<()> {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        let mut check = blob.check();
        let answer = self.send("GET", &path, Sent::Nothing, |bytes| check.take(bytes))?;
        ensure!(answer.status == 200, "GET {path}: {}", answer.status);
        check.finish()
    }

    /// Pulls a manifest and compares it.
    pub fn pull_manifest(&mut self, repository: &str, tag: &str, manifest: &str) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let mut body = Vec::new();
        let answer = self.send("GET", &path, Sent::Nothing, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        ensure!(answer.status == 200, "GET {path}: {}", answer.status);
        ensure!(body == manifest.as_bytes(), "another manifest at {path}");
        Ok(())
    }

    /// Deletes a manifest or a blob.
    pub fn delete(&mut self, path: &str) -> Result<()> {
        self.expect(202, "DELETE", path, Sent::Nothing).map(drop)
    }

    /// Sends a request that must be answered so, and gives where the answer points to.
    fn expect(&mut self, status: u16, method: &str, path: &str, sent: Sent<'_>) -> Result<String> {
        let mut body = Vec::new();
        let answer = self
            .send(method, path, sent, |bytes| {
                body.extend_from_slice(bytes);
                Ok(())
            })
            .with_context(|| format!("{method} {path}"))?;
        if answer.status != status {
            bail!("{method} {path}: {}: {}", answer.status, String::from_utf8_lossy(&body));
        }
        Ok(answer.location)
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        sent: Sent<'_>,
        receive: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Answer> {
        let Place { address, token } = &self.place;
        let (kind, length) = match sent {
            Sent::Nothing => ("", 0),
            Sent::Content(content) => ("application/octet-stream", content.length),
            Sent::Manifest(text) => (IMAGE, text.len() as u64),
        };
        // docker-registry has no manifest for who does not say that they know its kind.
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\naccept: {IMAGE}, */*\r\n");
        if let Some(token) = token {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        if !matches!(method, "GET" | "HEAD") {
            head.push_str(&format!("content-type: {kind}\r\ncontent-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        let mut first = head.into_bytes();
        match sent {
            Sent::Nothing => self.stream.write_all(&first)?,
            Sent::Manifest(text) => {
                first.extend_from_slice(text.as_bytes());
                self.stream.write_all(&first)?;
            }
            Sent::Content(content) if content.length < BUFFER as u64 => {
                content.pieces().for_each(|piece| first.extend_from_slice(piece));
                self.stream.write_all(&first)?;
            }
            Sent::Content(content) => {
                self.stream.write_all(&first)?;
                content.pieces().try_for_each(|piece| self.stream.write_all(piece))?;
            }
        }
        self.receive(method, receive)
    }

    fn receive(
        &mut self,
        method: &str,
        mut receive: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut answer = Answer { status: status.context("no status")?, location: String::new() };
        let mut left = 0;
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => left = value.trim().parse::<u64>()?,
                "location" => answer.location = path_of(value.trim()),
                "transfer-encoding" => bail!("an answer in chunks, which no registry sends here"),
                _ => {}
            }
        }
        if method == "HEAD" {
            left = 0;
        }
        while left > 0 {
            self.fill()?;
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.filled.len());
            let taken = self.filled.start..self.filled.start + most;
            receive(&self.buffer[taken.clone()])?;
            self.filled.start = taken.end;
            left -= most as u64;
        }
        Ok(answer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        loop {
            self.fill()?;
            let new = &self.buffer[self.filled.clone()];
            let end = new.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(new.len(), |end| end + 1);
            line.extend_from_slice(&new[..taken]);
            self.filled.start += taken;
            if end.is_some() {
                return Ok(String::from_utf8(line)?.trim_end().to_owned());
            }
        }
    }

    /// Receives more when nothing is left.
    fn fill(&mut self) -> Result<()> {
        if self.filled.is_empty() {
            let n_bytes = self.stream.read(&mut self.buffer).context("cannot receive")?;
            ensure!(n_bytes > 0, "the registry closed the connection");
            self.filled = 0..n_bytes;
        }
        Ok(())
    }
}

/// The path and query of a location, which may be a whole URL.
fn path_of(location: &str) -> String {
    match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]).to_owned(),
        None => location.to_owned(),
    }
}
