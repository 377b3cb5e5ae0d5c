//! Paths and queries of requests; what is wrong with them is answered as a problem.

use axum::extract::{FromRequestParts, Path as AxumPath, Query as AxumQuery};
use http::request::Parts;
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use serde::de::DeserializeOwned;

/// The parts of a path.
#[derive(Debug)]
pub struct Path<T>(pub T);

/// A query.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read = AxumPath::<T>::from_request_parts(parts, state).await;
        read.map(|AxumPath(value)| Self(value)).map_err(|error| invalid(&error.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read = AxumQuery::<T>::from_request_parts(parts, state).await;
        read.map(|AxumQuery(value)| Self(value)).map_err(|error| invalid(&error.body_text()))
    }
}

fn invalid(text: &str) -> Refusal {
    Problem::new(ProblemCode::InvalidRequest, text).into()
}
