//! Running a command of the CLI to its end.

use std::process::Output;

use serde::de::DeserializeOwned;

/// What a command left.
#[derive(Debug)]
pub struct Finished {
    /// The arguments it was called with.
    pub arguments: Vec<String>,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// From the output of a process.
    pub fn new(arguments: &[&str], output: Output) -> Self {
        Self {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its standard output, once it is known to have succeeded.
    ///
    /// # Panics
    /// When it failed, with all it wrote.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }

    /// Its standard output as JSON, once it is known to have succeeded.
    ///
    /// # Panics
    /// When it failed or wrote something else.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(self) -> T {
        let stdout = self.ok();
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    /// Checks that it failed with this code and that its error has all of these texts in it.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn fails(self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self}");
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in: {self}");
        }
        assert_eq!(self.stdout, "", "data of a command that failed: {self}");
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { arguments, code, stdout, stderr } = self;
        write!(f, "longshore {} ended with {code:?}", arguments.join(" "))?;
        write!(f, "\nstdout: {stdout}\nstderr: {stderr}")
    }
}
