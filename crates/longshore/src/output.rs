//! Where commands write: data on standard output, everything else on standard error.

use std::io::{self, IsTerminal, Write};

use crate::commands::schema::Stated;
use crate::failure::{Failure, Kind, OrFail};
use crate::table::{Table, WIDTH};

/// How a command shows its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables and sentences.
    Text,
    /// JSON, the API's own types.
    Json,
}

/// The two streams of a command.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Writes data in `format`.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// In which format data is written.
    pub fn format(self) -> Format {
        self.format
    }

    /// Shows `data` as JSON, or as the text that `text` makes of it.
    pub fn data<T: Stated>(self, data: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Text => self.raw(text(data).as_bytes()),
            Format::Json => {
                let mut json = serde_json::to_vec_pretty(data)
                    .or_fail(Kind::Other, "cannot write the answer as JSON")?;
                json.push(b'\n');
                self.raw(&json)
            }
        }
    }

    /// Shows `data` as JSON in one line, or as the text that `text` makes of it: for streams.
    pub fn item<T: Stated>(self, data: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let mut line = match self.format {
            Format::Text => text(data).into_bytes(),
            Format::Json => {
                serde_json::to_vec(data).or_fail(Kind::Other, "cannot write the answer as JSON")?
            }
        };
        line.push(b'\n');
        self.raw(&line)
    }

    /// Writes bytes to standard output and flushes. A reader that went away, as `head` does, is
    /// no failure worth a message: the command ends quietly.
    pub fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            outcome => outcome.or_fail(Kind::Other, "cannot write to standard output"),
        }
    }

    /// Says something to the person in front of the terminal.
    pub fn say(self, text: impl AsRef<str>) {
        say(text);
    }
}

/// A table as a text for [`Output::data`].
pub fn table_text(table: &Table) -> String {
    table.render(WIDTH)
}

/// Writes a line to standard error. A failure is dropped: there is nowhere left to report it.
pub fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// True when a person watches standard error, so that progress may be drawn in place.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}
