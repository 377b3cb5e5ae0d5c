//! Problems as answers.

use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use longshore_api::problem::{MEDIA_TYPE, Problem, ProblemCode};
use serde::de::DeserializeOwned;

/// A problem as the answer of a handler.
#[derive(Debug)]
pub struct Refusal(pub Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], axum::Json(self.0)).into_response()
    }
}

/// A JSON body; what is wrong with it is answered as a problem.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;
    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        read(request, state).await.map(Self).map_err(|rejection| Refusal(body_problem(&rejection)))
    }
}

async fn read<S: Send + Sync, T: DeserializeOwned>(
    request: Request,
    state: &S,
) -> Result<T, JsonRejection> {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    // Of others axum says what is wrong with them, where anything is.
    if !kind.is_some_and(|kind| kind.starts_with(b"application/json")) {
        return axum::Json::from_request(request, state).await.map(|axum::Json(value)| value);
    }
    let bytes = Bytes::from_request(request, state).await?;
    // To know where in a document something is takes as long as to read it, so that is found out where something is wrong.
    serde_json::from_slice(&bytes)
        .or_else(|_| axum::Json::from_bytes(&bytes).map(|axum::Json(value)| value))
}

fn body_problem(rejection: &JsonRejection) -> Problem {
    let code = match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ProblemCode::TooLarge,
        _ => ProblemCode::InvalidRequest,
    };
    Problem::new(code, rejection.body_text())
}
