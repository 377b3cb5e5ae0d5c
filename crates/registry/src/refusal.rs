//! Refusals as OCI distribution writes them: a status, a code and a text.

use std::fmt::Display;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use longshore_types::token::RegistryAction;
use longshore_types::{Digest, Repository};
use serde::Serialize;

use crate::StorageError;
use crate::access::Scopes;
use crate::access::passing::SERVICE;
use crate::server::Scheme;

/// The codes of the specification; `Unknown` is what its predecessor has for failures of the
/// registry itself, and clients show the text beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    SizeInvalid,
    Unauthorized,
    Unknown,
    Unsupported,
}

/// An answer that says no.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: Code,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    challenge: Option<Challenge>,
}

/// What would help a client that is refused for who it is.
#[derive(Debug, Clone)]
enum Challenge {
    /// To send a user name and a password.
    Basic,
    /// To fetch a passing token for these scopes.
    Bearer { scopes: Option<Scopes>, error: Option<&'static str> },
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new(), challenge: None }
    }

    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// A request that no change on the server would make right.
    pub(crate) fn bad(code: Code, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message.to_string())
    }

    /// True when the reason is a full disk.
    pub(crate) fn is_full_disk(&self) -> bool {
        self.status == StatusCode::INSUFFICIENT_STORAGE
    }

    /// True when the client did nothing wrong.
    pub(crate) fn is_servers(&self) -> bool {
        self.status.is_server_error()
    }

    /// True when an upload cannot be gone on with.
    pub(crate) fn is_unknown_upload(&self) -> bool {
        self.code == Code::BlobUploadUnknown
    }

    /// True when the client stopped in the middle of its request.
    pub(crate) fn is_stalled_body(&self) -> bool {
        self.status == StatusCode::REQUEST_TIMEOUT
    }

    /// Nobody that the registry knows; `scopes` are what the request needs.
    pub(crate) fn unauthorized(scopes: Option<Scopes>) -> Self {
        let mut refusal = Self::no_login();
        refusal.challenge = Some(Challenge::Bearer { scopes, error: None });
        refusal
    }

    /// A passing token that was made for something else.
    pub(crate) fn insufficient_scope(scopes: Scopes) -> Self {
        let message = format!("the token was not made for this; ask for one with scope {scopes}");
        let mut refusal = Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, message);
        let error = Some("insufficient_scope");
        refusal.challenge = Some(Challenge::Bearer { scopes: Some(scopes), error });
        refusal
    }

    /// No user name and password, or wrong ones.
    pub(crate) fn no_login() -> Self {
        let mut refusal = Self::new(
            StatusCode::UNAUTHORIZED,
            Code::Unauthorized,
            "a Longshore token is needed: as the password of any user name, or as a bearer token",
        );
        refusal.challenge = Some(Challenge::Basic);
        refusal
    }

    /// Tells the client where to log in: at the host by which it called us. Without one, as in
    /// HTTP/1.0, there is no such address, and it may send its password with each request.
    pub(crate) fn challenge_at(mut self, scheme: Scheme, host: Option<&Authority>) -> Self {
        let value = match (self.challenge.take(), host) {
            (None, _) => return self,
            (Some(Challenge::Bearer { scopes, error }), Some(host)) => {
                let scope = scopes.map(|scopes| format!(",scope=\"{scopes}\"")).unwrap_or_default();
                let error = error.map(|error| format!(",error=\"{error}\"")).unwrap_or_default();
                let realm = format!("{}://{host}/token", scheme.as_str());
                format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\"{scope}{error}")
            }
            (Some(_), _) => format!("Basic realm=\"{SERVICE}\""),
        };
        let value =
            HeaderValue::try_from(value).expect("hosts, names and scopes are visible ASCII");
        self.with(WWW_AUTHENTICATE, value)
    }

    pub(crate) fn denied(action: RegistryAction, repository: &Repository) -> Self {
        let action = match action {
            RegistryAction::Pull => "pull from",
            RegistryAction::Push => "push to",
            RegistryAction::Delete => "delete from",
        };
        Self::new(
            StatusCode::FORBIDDEN,
            Code::Denied,
            format!("the token has no right to {action} {repository}"),
        )
    }

    /// The object store does not do what it should.
    pub(crate) fn objects_away() -> Self {
        let message = "the object store of the registry does not do its part; try again later, and ask the \
            registry's log for the cause";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unknown, message)
    }

    /// What is about all repositories, asked by who has some.
    pub(crate) fn not_for_all() -> Self {
        let message = "only a token of an administrator of the platform may do this";
        Self::new(StatusCode::FORBIDDEN, Code::Denied, message)
    }

    pub(crate) fn method(method: &Method, allowed: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Code::Unsupported,
            format!("{method} does nothing here; use {allowed}"),
        )
        .with(ALLOW, HeaderValue::from_static(allowed))
    }

    /// Nothing was ever pushed to it.
    pub(crate) fn name_unknown(repository: &Repository) -> Self {
        let message = format!("there is no repository {repository}");
        Self::new(StatusCode::NOT_FOUND, Code::NameUnknown, message)
    }

    pub(crate) fn blob_unknown(repository: &Repository, digest: &Digest) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Code::BlobUnknown,
            format!("{repository} has no blob {digest}"),
        )
    }

    pub(crate) fn manifest_unknown(repository: &Repository, reference: impl Display) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Code::ManifestUnknown,
            format!("{repository} has no manifest {reference}"),
        )
    }

    /// Neither here nor where it would come from.
    pub(crate) fn not_upstream(
        upstream: &str,
        repository: &Repository,
        reference: impl Display,
    ) -> Self {
        let message = format!("{repository} has no manifest {reference}: {upstream} has none");
        Self::new(StatusCode::NOT_FOUND, Code::ManifestUnknown, message)
    }

    /// The name of a repository that is not here begins like that of a registry elsewhere.
    pub(crate) fn no_upstream(repository: &Repository, reference: impl Display) -> Self {
        let host = repository.project();
        let message = format!(
            "{repository} has no manifest {reference}, and {host} is no upstream here; `longshore up --upstream \
             {host}=https://{}` makes it one",
            if host == "docker.io" { "registry-1.docker.io" } else { host }
        );
        Self::new(StatusCode::NOT_FOUND, Code::ManifestUnknown, message)
    }

    /// Somebody pushes to where the images of another registry are.
    pub(crate) fn of_upstream(upstream: &str) -> Self {
        let message = format!(
            "{upstream} is another registry, of which this one gives the images; push to a repository whose name \
             begins otherwise"
        );
        Self::new(StatusCode::FORBIDDEN, Code::Denied, message)
    }

    pub(crate) fn upload_unknown(repository: &Repository, upload: impl Display) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Code::BlobUploadUnknown,
            format!("{repository} has no upload {upload}; begin a new one"),
        )
    }
}

impl From<StorageError> for Refusal {
    /// Logs the cause, of which the client is told only what it can act on.
    fn from(error: StorageError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        if error.is_unknown_object() {
            tracing::error!(%error, cause, "the object store has forgotten an upload");
            let message = "the object store of the registry has lost the upload; begin a new one";
            return Self::new(StatusCode::NOT_FOUND, Code::BlobUploadUnknown, message);
        }
        if error.is_of_objects() {
            tracing::error!(%error, cause, "the object store refused an operation");
            return Self::objects_away();
        }
        tracing::error!(%error, cause, "the registry's disk refused an operation");
        if error.is_full() {
            Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                Code::Unknown,
                "the registry's disk is full",
            )
        } else {
            Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::Unknown,
                "the registry's disk refused an operation; the registry's log has the cause",
            )
        }
    }
}

#[derive(Serialize)]
struct Errors<'a> {
    errors: [OneError<'a>; 1],
}

#[derive(Serialize)]
struct OneError<'a> {
    code: Code,
    message: &'a str,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&Errors {
            errors: [OneError { code: self.code, message: &self.message }],
        })
        .expect("two texts are valid JSON");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response
    }
}
