//! Requests in and answers out: JSON bodies, and problems as `application/problem+json`.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use banger_api::error::PROBLEM_MEDIA_TYPE;
use banger_api::operation::Operation;
use banger_api::{ErrorCode, Problem};
use bytes::Bytes;
use serde::de::DeserializeOwned;

/// A request that failed.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        response
    }
}

/// An operation that has begun: 202.
#[derive(Debug)]
pub struct Accepted(pub Operation);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, Json(self.0)).into_response()
    }
}

/// A JSON body, whatever its declared type. No body at all is JSON's `null`.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| refuse("the request's body cannot be read", error.to_string()))?;
        let json = if bytes.is_empty() { b"null".as_slice() } else { &bytes };
        serde_json::from_slice(json)
            .map(Self)
            .map_err(|error| refuse("the request's body makes no sense", error.to_string()))
    }
}

/// The query of a request.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Query::from_request_parts(parts, state)
            .await
            .map(|Query(query)| Self(query))
            .map_err(|error| refuse("the request's query makes no sense", error.to_string()))
    }
}

/// The part of the path that names what is meant.
#[derive(Debug)]
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Path::from_request_parts(parts, state)
            .await
            .map(|Path(name)| Self(name))
            .map_err(|error| refuse("the request's path makes no sense", error.to_string()))
    }
}

fn refuse(title: &str, cause: String) -> Failure {
    Failure(Problem::new(ErrorCode::InvalidArgument, title).cause(cause))
}
