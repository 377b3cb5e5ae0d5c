//! Errors as RFC 9457 problem documents.

use std::fmt;

use longshore_types::{ManifestProblem, ParseError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The stable code of a kind of error. Clients and scripts branch on it, never on texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// A value in the request is not allowed; `problems` names each one.
    InvalidRequest,
    /// No token, or one that is not known.
    Unauthenticated,
    /// The token lacks the right.
    Forbidden,
    /// What the path names does not exist.
    NotFound,
    /// The state of what the path names does not allow this now.
    Conflict,
    /// A request with the same idempotency key is under way.
    RequestUnderWay,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// What the path names is not as the request's preconditions expect it.
    PreconditionFailed,
    /// The body is larger than allowed.
    TooLarge,
    /// The sender asks too often; `Retry-After` says when there is room.
    TooManyRequests,
    /// The image named in the manifest is not in the registry.
    ImageNotFound,
    /// A part of the platform that is needed cannot be reached now; trying again can help.
    Unavailable,
    /// No control plane leads now, or the one that does cannot be reached; `Retry-After` says when to
    /// come back.
    NoLeader,
    /// Said to locations and registries: this control plane does not lead. `leader` says which does.
    NotLeader,
    /// Said to locations: the store of this control plane was restored or moved, and they heard from the
    /// newer one.
    Superseded,
    /// Said to locations and nodes: the location was recovered since, and who speaks is of a life before that.
    Recovered,
    /// Longshore's own fault; the log of the service has the details.
    Internal,
    /// A code that this version does not know, from a newer peer.
    #[serde(other)]
    Unknown,
}

impl ProblemCode {
    /// Every code that this version has.
    pub const ALL: [Self; 17] = [
        Self::InvalidRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::RequestUnderWay,
        Self::MethodNotAllowed,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::TooManyRequests,
        Self::ImageNotFound,
        Self::Unavailable,
        Self::NoLeader,
        Self::NotLeader,
        Self::Superseded,
        Self::Recovered,
        Self::Internal,
    ];

    /// The code as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid-request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::RequestUnderWay => "request-under-way",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::PreconditionFailed => "precondition-failed",
            Self::TooLarge => "too-large",
            Self::TooManyRequests => "too-many-requests",
            Self::ImageNotFound => "image-not-found",
            Self::Unavailable => "unavailable",
            Self::NoLeader => "no-leader",
            Self::NotLeader => "not-leader",
            Self::Superseded => "superseded",
            Self::Recovered => "recovered",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// The page of the code, in Markdown.
    pub fn page(self) -> &'static str {
        match self {
            Self::InvalidRequest => include_str!("../../../docs/errors/invalid-request.md"),
            Self::Unauthenticated => include_str!("../../../docs/errors/unauthenticated.md"),
            Self::Forbidden => include_str!("../../../docs/errors/forbidden.md"),
            Self::NotFound => include_str!("../../../docs/errors/not-found.md"),
            Self::Conflict => include_str!("../../../docs/errors/conflict.md"),
            Self::RequestUnderWay => include_str!("../../../docs/errors/request-under-way.md"),
            Self::MethodNotAllowed => include_str!("../../../docs/errors/method-not-allowed.md"),
            Self::PreconditionFailed => include_str!("../../../docs/errors/precondition-failed.md"),
            Self::TooLarge => include_str!("../../../docs/errors/too-large.md"),
            Self::TooManyRequests => include_str!("../../../docs/errors/too-many-requests.md"),
            Self::ImageNotFound => include_str!("../../../docs/errors/image-not-found.md"),
            Self::Unavailable => include_str!("../../../docs/errors/unavailable.md"),
            Self::NoLeader => include_str!("../../../docs/errors/no-leader.md"),
            Self::NotLeader => include_str!("../../../docs/errors/not-leader.md"),
            Self::Superseded => include_str!("../../../docs/errors/superseded.md"),
            Self::Recovered => include_str!("../../../docs/errors/recovered.md"),
            Self::Internal | Self::Unknown => include_str!("../../../docs/errors/internal.md"),
        }
    }

    /// The HTTP status that goes with the code.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ImageNotFound => 422,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::RequestUnderWay | Self::Superseded | Self::Recovered => 409,
            Self::MethodNotAllowed => 405,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::NotLeader => 421,
            Self::TooManyRequests => 429,
            Self::Unavailable | Self::NoLeader => 503,
            Self::Internal | Self::Unknown => 500,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "The request is not valid",
            Self::Unauthenticated => "A valid token is needed",
            Self::Forbidden => "The token does not allow this",
            Self::NotFound => "Not found",
            Self::Conflict => "Not possible in the present state",
            Self::RequestUnderWay => "The same request is under way",
            Self::MethodNotAllowed => "The path has not this method",
            Self::PreconditionFailed => "Not as expected",
            Self::TooLarge => "The request is too large",
            Self::TooManyRequests => "Too many requests",
            Self::ImageNotFound => "The image is not in the registry",
            Self::Unavailable => "A needed service cannot be reached",
            Self::NoLeader => "No control plane leads now",
            Self::NotLeader => "Another control plane leads",
            Self::Superseded => "The store was restored or moved",
            Self::Recovered => "The location was recovered",
            Self::Internal | Self::Unknown => "Internal error",
        }
    }
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Where the page of the code is, relative to the API; RFC 9457 calls it the type.
    #[serde(rename = "type", default)]
    pub page: String,
    /// The stable code.
    pub code: ProblemCode,
    /// A short text that is the same for every problem of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, for a person.
    pub detail: String,
    /// Every value that was not allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ManifestProblem>,
    /// Where the control plane that leads listens for who was refused here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Box<str>>,
}

impl Problem {
    /// A problem of this code with a text for a person.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            page: format!("/v1/errors/{}", code.as_str()),
            code,
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            problems: Vec::new(),
            leader: None,
        }
    }

    /// A request with values that are not allowed.
    pub fn invalid(problems: Vec<ManifestProblem>) -> Self {
        let count = problems.len();
        let noun = if count == 1 { "value is" } else { "values are" };
        let detail = format!("{count} {noun} not allowed");
        Self { problems, ..Self::new(ProblemCode::InvalidRequest, detail) }
    }

    /// One value of a request that is not allowed.
    pub fn invalid_value(
        field: &str,
        value: impl fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        let (field, value, allowed) = (field.to_owned(), value.to_string(), allowed.into());
        Self::invalid(vec![ManifestProblem { field, value, allowed }])
    }

    /// The same of a text that cannot be read as what it should be.
    pub fn invalid_field(field: &str, error: &ParseError) -> Self {
        Self::invalid_value(field, format_args!("{:?}", error.value), error.allowed)
    }

    /// Something of this kind and name does not exist.
    pub fn not_found(kind: &str, name: impl fmt::Display) -> Self {
        Self::new(ProblemCode::NotFound, format!("there is no {kind} {name}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_in_one_way_and_has_a_page_of_its_own() {
        for code in ProblemCode::ALL {
            let written = serde_json::to_value(code).expect("a code can be written");
            assert_eq!(written, code.as_str());
            let head = format!("# {}\n\nHTTP status {}", code.as_str(), code.status());
            assert!(code.page().starts_with(&head), "{}", code.page());
        }
        let problem = serde_json::to_value(Problem::not_found("app", "web"));
        assert_eq!(problem.expect("a problem can be written")["type"], "/v1/errors/not-found");
    }
}
