//! How a failure is told: as a status of gRPC, as a status of HTTP with a body, and back.

use std::error::Error;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::failure::{Failure, Kind};

/// Kind, gRPC's code, HTTP's status, and the name in JSON.
const TABLE: [(Kind, Code, StatusCode, &str); 12] = [
    (Kind::Invalid, Code::InvalidArgument, StatusCode::BAD_REQUEST, "invalid_argument"),
    (Kind::NotFound, Code::NotFound, StatusCode::NOT_FOUND, "not_found"),
    (Kind::Exists, Code::AlreadyExists, StatusCode::CONFLICT, "already_exists"),
    (Kind::State, Code::FailedPrecondition, StatusCode::CONFLICT, "failed_precondition"),
    (Kind::Conflict, Code::Aborted, StatusCode::CONFLICT, "aborted"),
    (Kind::Exhausted, Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, "resource_exhausted"),
    (Kind::Denied, Code::PermissionDenied, StatusCode::FORBIDDEN, "permission_denied"),
    (Kind::OutOfRange, Code::OutOfRange, StatusCode::RANGE_NOT_SATISFIABLE, "out_of_range"),
    (Kind::Deadline, Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
    (Kind::Unavailable, Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    (Kind::Unsupported, Code::Unimplemented, StatusCode::NOT_IMPLEMENTED, "unimplemented"),
    (Kind::Internal, Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, "internal"),
];

fn row(kind: Kind) -> (Code, StatusCode, &'static str) {
    let row = TABLE.iter().find(|row| row.0 == kind).unwrap_or(&TABLE[TABLE.len() - 1]);
    (row.1, row.2, row.3)
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self::new(row(failure.kind).0, failure.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let row = TABLE.iter().find(|row| row.1 == status.code());
        let kind = match status.code() {
            Code::Unauthenticated => Kind::Denied,
            // Not a word of the other side: the connection broke.
            Code::Unknown if status.source().is_some() => Kind::Unavailable,
            Code::Cancelled => Kind::Unavailable,
            _ => row.map_or(Kind::Internal, |row| row.0),
        };
        match status.source() {
            Some(cause) => Self::new(kind, format!("{}: {cause}", status.message())),
            None => Self::new(kind, status.message()),
        }
    }
}

/// A failure as JSON: for a body of its own, or as the last line of a flow.
#[must_use]
pub fn body(failure: &Failure) -> Value {
    json!({ "code": row(failure.kind).2, "message": failure.message })
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (row(self.kind).1, Json(body(&self))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_goes_there_and_back() {
        for (kind, code, ..) in TABLE {
            let status = Status::from(Failure::new(kind, "why"));
            assert_eq!((status.code(), status.message()), (code, "why"));
            assert_eq!(Failure::from(status), Failure::new(kind, "why"));
        }
    }

    #[test]
    fn what_is_told_fits_into_a_header() {
        let failure = Failure::new(Kind::Invalid, "\u{e4}".repeat(1 << 20));
        assert!((1..=4096).contains(&failure.message.len()), "{}", failure.message.len());
        assert!(Status::from(failure).message().starts_with('\u{e4}'));
    }

    #[test]
    fn http_tells_what_programs_expect() {
        let cases = [
            (Kind::Invalid, 400),
            (Kind::Denied, 403),
            (Kind::NotFound, 404),
            (Kind::Exists, 409),
            (Kind::State, 409),
            (Kind::Exhausted, 429),
            (Kind::Internal, 500),
            (Kind::Unsupported, 501),
            (Kind::Unavailable, 503),
        ];
        for (kind, status) in cases {
            assert_eq!(
                Failure::new(kind, "").into_response().status().as_u16(),
                status,
                "{kind:?}"
            );
        }
    }
}
