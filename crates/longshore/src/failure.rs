//! Why a command failed, in words for a person and as an exit code for a script.

use std::error::Error;
use std::fmt::{self, Display};
use std::process::ExitCode;

use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, chain};
use longshore_types::ManifestProblem;

/// The kinds of failure that a script may want to tell apart. The number is the exit code; clap
/// itself uses 2 for a command line that it cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None of the others.
    Other = 1,
    /// The command line does not fit together.
    Usage = 2,
    /// A value is not allowed: of a manifest, a config file, a flag.
    Invalid = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// No token, or one that does not allow this.
    Denied = 5,
    /// A part of the platform cannot be reached.
    Unavailable = 6,
    /// It did not happen in the time given.
    TimedOut = 7,
}

/// The exit codes as `--help` shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for a reason not listed here
  2  the command line cannot be understood
  3  a value is not allowed (manifest, config file, flag)
  4  what was named does not exist
  5  no token, or one that does not allow this
  6  a part of the platform cannot be reached
  7  it did not happen in the time given
  8  a deploy would change something (`plan --exit-code`)
`exec`, `run` and `attach` end with the exit code of what they run.";

/// What the error says when a server is not who it should be.
pub const DISTRUST: &str = "invalid peer certificate";
/// What to do about that.
pub const TRUST: &str = "--ca names the file of the certificates that vouch for it; `longshore up` with \
                         --tls-self-signed says which that is";

/// A failed command.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which exit code.
    pub kind: Kind,
    /// What happened, with every cause.
    pub message: String,
    /// What to try next.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a cause below it.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same failure with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// That these flags have values that are not allowed; each problem names its flag as a key is named.
    pub fn of_flags(problems: impl IntoIterator<Item = ManifestProblem>) -> Self {
        let named =
            |problem: ManifestProblem| ManifestProblem { field: flag(&problem.field), ..problem };
        Problem::invalid(problems.into_iter().map(named).collect()).into()
    }

    /// The exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

/// The flag that is called as a key is.
pub fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(problem) => problem.into(),
            CallError::Unreachable { .. } => {
                let message = chain(&error);
                let hint = match message.contains(DISTRUST) {
                    true => TRUST,
                    false => {
                        "is the platform running? `longshore up` starts it; --api names another one"
                    }
                };
                Self::new(Kind::Unavailable, message).hint(hint)
            }
            CallError::TimedOut { .. } => Self::new(Kind::TimedOut, chain(&error)),
            CallError::Malformed { .. } | CallError::Status { .. } => {
                Self::new(Kind::Other, chain(&error))
                    .hint("is that the address of a Longshore API?")
            }
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let (kind, hint) = match problem.code {
            ProblemCode::InvalidRequest | ProblemCode::TooLarge => (Kind::Invalid, None),
            ProblemCode::ImageNotFound => (
                Kind::Invalid,
                Some("`longshore image ls` shows what the registry has; `image push` adds to it"),
            ),
            ProblemCode::NotFound => (Kind::NotFound, None),
            ProblemCode::Unauthenticated => {
                (Kind::Denied, Some("give a token with --token, --token-file or LONGSHORE_TOKEN"))
            }
            ProblemCode::Forbidden => (Kind::Denied, None),
            ProblemCode::Unavailable
            | ProblemCode::NoLeader
            | ProblemCode::NotLeader
            | ProblemCode::TooManyRequests => (Kind::Unavailable, None),
            ProblemCode::Internal => (Kind::Other, Some("the log of `longshore up` says more")),
            ProblemCode::Conflict
            | ProblemCode::RequestUnderWay
            | ProblemCode::Superseded
            | ProblemCode::Recovered
            | ProblemCode::PreconditionFailed
            | ProblemCode::MethodNotAllowed
            | ProblemCode::Unknown => (Kind::Other, None),
        };
        let mut failure = Self::new(kind, problem.to_string());
        failure.hint = hint.map(str::to_owned);
        failure
    }
}

/// Turns an error of a library into a [`Failure`] that says what was being done.
pub trait OrFail<T> {
    /// Fails with `doing` and the causes of the error.
    fn or_fail(self, kind: Kind, doing: impl Display) -> Result<T, Failure>;
}

impl<T, E: Error> OrFail<T> for Result<T, E> {
    fn or_fail(self, kind: Kind, doing: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(kind, format!("{doing}: {}", chain(&error))))
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::ManifestProblem;

    use super::*;

    #[test]
    fn problems_become_kinds() {
        for (code, kind) in [
            (ProblemCode::InvalidRequest, Kind::Invalid),
            (ProblemCode::ImageNotFound, Kind::Invalid),
            (ProblemCode::Unauthenticated, Kind::Denied),
            (ProblemCode::Forbidden, Kind::Denied),
            (ProblemCode::NotFound, Kind::NotFound),
            (ProblemCode::Conflict, Kind::Other),
            (ProblemCode::Unavailable, Kind::Unavailable),
            (ProblemCode::TooManyRequests, Kind::Unavailable),
            (ProblemCode::Internal, Kind::Other),
        ] {
            assert_eq!(Failure::from(Problem::new(code, "x")).kind, kind, "{code:?}");
        }
    }

    #[test]
    fn every_wrong_value_is_shown() {
        let problem = |field: &str| ManifestProblem {
            field: field.to_owned(),
            value: "-1".to_owned(),
            allowed: "a whole number".to_owned(),
        };
        let failure = Failure::from(Problem::invalid(vec![problem("count"), problem("max")]));
        assert_eq!(
            failure.to_string(),
            "error: 2 values are not allowed\n  count = -1: a whole number\n  max = -1: a whole number"
        );
    }
}
