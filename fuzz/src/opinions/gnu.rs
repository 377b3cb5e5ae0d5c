//! GNU tar, which is asked what it would take out.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{Item, Kind, Opinion, normal};

/// What GNU tar says of an archive; of the contents of files it says nothing.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn of_gnu_tar(archive: &[u8]) -> Opinion {
    let listing = ["--list", "--verbose", "--numeric-owner", "--quoting-style=c", "--file=-"];
    let mut process = Command::new("tar")
        .args(listing)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tar runs (Debian's package tar)");
    let mut input = process.stdin.take().expect("it is piped");
    // By a thread, for it may wait until somebody reads what it says.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may have seen enough before the end, or refuse all of it.
            let _ = input.write_all(archive);
        });
        process.wait_with_output().expect("tar ends")
    });
    if !output.status.success() {
        return Opinion::Refused(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Opinion::Read(lines.map(item).collect())
}

/// `-rw-r--r-- 0/0 5 1970-01-01 00:00 "name" -> "target"`, or `link to`.
fn item(line: &[u8]) -> Item {
    let text = std::str::from_utf8(line).expect("what is no ASCII is escaped");
    let (head, rest) = text.split_once('"').expect("a name is quoted");
    let mut words = head.split_ascii_whitespace();
    let kind = match words.next().and_then(|mode| mode.chars().next()) {
        Some('-' | 'C') => Kind::File,
        Some('d') => Kind::Directory,
        Some('l') => Kind::Symlink,
        Some('h') => Kind::HardLink,
        _ => Kind::Special,
    };
    let size = words.nth(1).and_then(|size| size.parse().ok()).unwrap_or_default();
    let (path, rest) = unquoted(rest);
    let target = rest.split_once('"').map(|(_, rest)| unquoted(rest).0);
    Item {
        path: normal(&path),
        kind,
        size: if kind == Kind::File { size } else { 0 },
        contents: None,
        target: match kind {
            Kind::HardLink => target.map(|target| normal(&target)),
            _ => target,
        },
    }
}

/// The bytes up to the quote that ends them, and what follows.
fn unquoted(text: &str) -> (Vec<u8>, &str) {
    let mut bytes = Vec::new();
    let mut rest = text;
    loop {
        let (now, later) = rest.split_at_checked(1).expect("a quote ends it");
        rest = later;
        match now {
            "\"" => return (bytes, rest),
            "\\" => {
                let (escaped, later) = match rest.as_bytes() {
                    [b'0'..=b'7', ..] => {
                        let digits = &rest[..3];
                        (u8::from_str_radix(digits, 8).expect("three digits"), &rest[3..])
                    }
                    [letter, ..] => {
                        let byte = match letter {
                            b'a' => 7,
                            b'b' => 8,
                            b'f' => 12,
                            b'n' => b'\n',
                            b'r' => b'\r',
                            b't' => b'\t',
                            b'v' => 11,
                            other => *other,
                        };
                        (byte, &rest[1..])
                    }
                    [] => panic!("half an escape"),
                };
                bytes.push(escaped);
                rest = later;
            }
            other => bytes.extend_from_slice(other.as_bytes()),
        }
    }
}
