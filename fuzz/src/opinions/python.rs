//! Python's `tarfile`, in a process of its own that reads one archive after another.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::{Item, Kind, Opinion, normal};

/// A running interpreter.
pub struct Python {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no Python.
    #[must_use]
    pub fn start() -> Self {
        let mut process = Command::new("python3")
            .args(["-I", "-c", include_str!("tarfile_worker.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs (Debian's package python3)");
        let input = process.stdin.take().expect("it is piped");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, input, output }
    }

    /// What it says of an archive.
    ///
    /// # Panics
    /// When it died or answers something else.
    pub fn opinion(&mut self, archive: &[u8]) -> Opinion {
        let length = u32::try_from(archive.len()).expect("an archive of a test is small");
        let sent = self.input.write_all(&length.to_le_bytes());
        sent.and_then(|()| self.input.write_all(archive))
            .and_then(|()| self.input.flush())
            .expect("python takes the archive");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("python answers");
        let answer: Value = serde_json::from_str(&line).expect("python answers in JSON");
        match answer {
            Value::String(why) => Opinion::Refused(why),
            Value::Array(items) => Opinion::Read(items.iter().map(item).collect()),
            other => panic!("python answered {other}"),
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn item(item: &Value) -> Item {
    let bytes = |key: &str| item[key].as_str().map(from_hex);
    let kind = match item["kind"].as_str() {
        Some("file") => Kind::File,
        Some("directory") => Kind::Directory,
        Some("symlink") => Kind::Symlink,
        Some("link") => Kind::HardLink,
        _ => Kind::Special,
    };
    let target = bytes("target");
    Item {
        path: normal(&bytes("path").unwrap_or_default()),
        kind,
        size: item["size"].as_u64().unwrap_or_default(),
        contents: bytes("sha256").and_then(|hash| hash.try_into().ok()),
        target: if kind == Kind::HardLink { target.map(|path| normal(&path)) } else { target },
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
