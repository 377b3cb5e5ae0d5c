//! What can go wrong between us and a registry.

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use longshore_types::Digest;
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::places::Misplaced;
use super::{STALL, body};

/// As much of a refusal is read, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// Why a request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryClientError {
    /// The address of the registry is not one.
    #[error("{url:?} is not the address of a registry; use http://host:port or https://host")]
    Url {
        /// The address as given.
        url: String,
    },
    /// No HTTP client could be made.
    #[error("cannot prepare for HTTP")]
    Build(#[source] reqwest::Error),
    /// The registry could not be reached, or the connection broke.
    #[error("cannot {action}")]
    Send {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing moved for a minute.
    #[error("cannot {action}: the registry was silent for {} s", STALL.as_secs())]
    Stalled {
        /// What was being done.
        action: &'static str,
    },
    /// The registry said no.
    #[error("cannot {action}: {message} ({code}, HTTP {})", status.as_u16())]
    Refused {
        /// What was being done.
        action: &'static str,
        /// The HTTP status.
        status: StatusCode,
        /// The registry's code, such as `DENIED`; `-` when it gave none.
        code: String,
        /// The registry's text, or the meaning of the status.
        message: String,
    },
    /// The bytes are not those that were asked for.
    #[error("the registry sent a manifest with the digest {found} in place of {wanted}")]
    Digest {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// The registry says that tokens are given where we do not go.
    #[error(
        "the registry says that {realm:?} is where tokens are given, and nothing is asked there"
    )]
    Realm {
        /// What it says.
        realm: String,
        /// Why not.
        #[source]
        misplaced: Misplaced,
    },
    /// A token or a password that no request can have.
    #[error("the credentials have letters that no HTTP header can have")]
    Unspeakable,
    /// The answer is not one that the protocol allows.
    #[error("the registry sent {0}")]
    Answer(&'static str),
    /// The bytes to push could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: String,
    #[serde(default)]
    message: String,
}

impl RegistryClientError {
    /// Reads a refusal.
    pub(super) async fn refused(action: &'static str, response: Response) -> Self {
        let status = response.status();
        let meaning = status.canonical_reason().unwrap_or("refused");
        // A refusal without the specified body is still a refusal; its status says enough.
        let body = read_at_most(response, MAX_REFUSAL, "a refusal of more than 64 KiB");
        let error = match tokio::time::timeout(STALL, body).await {
            Ok(Ok(body)) => serde_json::from_slice::<Errors>(&body).ok(),
            _ => None,
        }
        .and_then(|mut errors| errors.errors.pop());
        let (code, message) = match error {
            Some(error) if error.message.is_empty() => (error.code, meaning.to_owned()),
            Some(error) => (error.code, error.message),
            None => ("-".to_owned(), meaning.to_owned()),
        };
        Self::Refused { action, status, code, message }
    }

    /// The HTTP status, when the registry answered with a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The registry's code, such as `MANIFEST_UNKNOWN`, when it gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } if code != "-" => Some(code),
            _ => None,
        }
    }

    /// True when what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// True when the same request may succeed later without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Send { source, .. } => !source.is_builder() && !source.is_redirect(),
            Self::Stalled { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Url { .. }
            | Self::Build(_)
            | Self::Realm { .. }
            | Self::Unspeakable
            | Self::Digest { .. }
            | Self::Answer(_)
            | Self::Read { .. } => false,
        }
    }
}

/// The body of an answer that may have so many bytes; `what` says what is more.
pub(super) async fn read_at_most(
    response: Response,
    limit: usize,
    what: &'static str,
) -> Result<Bytes, RegistryClientError> {
    let mut body = body(response);
    let mut bytes = BytesMut::new();
    while let Some(part) = body.try_next().await? {
        bytes.extend_from_slice(&part);
        if bytes.len() > limit {
            return Err(RegistryClientError::Answer(what));
        }
    }
    Ok(bytes.freeze())
}

/// The same error without what an address has behind a `?`: where a registry sends us for bytes, that opens them.
pub(super) fn without_query(mut error: reqwest::Error) -> reqwest::Error {
    if let Some(url) = error.url_mut() {
        url.set_query(None);
    }
    error
}
