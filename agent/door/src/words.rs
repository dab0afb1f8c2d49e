//! What is said over HTTP beside gRPC: words behind the "?", bodies, and lines of JSON.

use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::failure::{Failure, Kind};
use crate::{Flow, MOST_BYTES, answer};

/// For a whole body.
const SLOWEST: Duration = Duration::from_secs(30);

/// A caller that sends still when it is refused may lose the answer with its connection, so the rest is heard for
/// a while, and forgotten.
const LINGER: Duration = Duration::from_secs(2);
const MOST_FORGOTTEN: usize = 8 * MOST_BYTES;

/// All that stands behind the "?", in order.
pub type Asked = Query<Vec<(String, String)>>;

/// What stands behind the "?", each word once unless it is taken as a list.
#[derive(Debug)]
pub struct Words(pub Vec<(String, String)>);

impl Words {
    pub fn all(&mut self, name: &str) -> Vec<String> {
        let (found, rest) =
            std::mem::take(&mut self.0).into_iter().partition(|(word, _)| word == name);
        self.0 = rest;
        let found: Vec<(String, String)> = found;
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// # Errors
    /// There twice, or no such value.
    pub fn one<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        let wrong = |value: &str| {
            Failure::new(Kind::Invalid, format!("?{name}={value}: that is no value for it"))
        };
        match self.all(name).as_slice() {
            [] => Ok(None),
            [value] => value.parse().map(Some).map_err(|_| wrong(value)),
            [_, second, ..] => Err(wrong(second)),
        }
    }

    /// `?all` is `?all=true`.
    ///
    /// # Errors
    /// Neither true nor false.
    pub fn flag(&mut self, name: &str) -> Result<bool, Failure> {
        for (word, value) in &mut self.0 {
            if word == name && matches!(value.as_str(), "" | "1") {
                "true".clone_into(value);
            }
        }
        Ok(self.one(name)?.unwrap_or_default())
    }

    /// # Errors
    /// Words that nobody has asked for.
    pub fn done(self) -> Result<(), Failure> {
        match self.0.first() {
            None => Ok(()),
            Some((word, _)) => {
                Err(Failure::new(Kind::Invalid, format!("?{word}: is not known here")))
            }
        }
    }
}

/// No body is an empty one.
///
/// # Errors
/// Too long, too slow, or not what it must be.
pub async fn body<T: DeserializeOwned + Default>(request: Request) -> Result<T, Failure> {
    let bytes = read(request).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    let mut reader = serde_json::Deserializer::from_slice(&bytes);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|e| e.to_string());
    let all = read.and_then(|read| reader.end().map(|()| read).map_err(|e| e.to_string()));
    all.map_err(|why| Failure::new(Kind::Invalid, format!("body: {why}")))
}

async fn read(request: Request) -> Result<Bytes, Failure> {
    let mut body = request.into_body().into_data_stream();
    let reading = tokio::time::timeout(SLOWEST, gather(&mut body)).await;
    let Ok(read) = reading else {
        return Err(Failure::new(
            Kind::Deadline,
            format!("the body did not come within {} s", SLOWEST.as_secs()),
        ));
    };
    if let Some(whole) = read? {
        return Ok(whole.freeze());
    }
    let _ = tokio::time::timeout(LINGER, forget(body)).await;
    Err(Failure::new(Kind::Exhausted, format!("body: {MOST_BYTES} bytes are the most")))
}

/// `None`: it is too much.
async fn gather(body: &mut BodyDataStream) -> Result<Option<BytesMut>, Failure> {
    let mut whole = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| Failure::new(Kind::Invalid, format!("body: {e}")))?;
        if whole.len() + piece.len() > MOST_BYTES {
            return Ok(None);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Some(whole))
}

async fn forget(mut body: BodyDataStream) {
    let mut forgotten = 0;
    while let Some(Ok(piece)) = body.next().await {
        forgotten += piece.len();
        if forgotten > MOST_FORGOTTEN {
            return;
        }
    }
}

/// A line of JSON for each item; a failure is the last.
pub fn lines<T: Serialize + Send + 'static>(flow: Flow<T>) -> Response {
    let lines = flow.map(|item| {
        let value = match item {
            Ok(item) => serde_json::to_string(&item),
            Err(failure) => Ok(json!({ "error": answer::body(&failure) }).to_string()),
        };
        value.map(|line| Bytes::from(line + "\n"))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Whether a call is one of gRPC.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// For paths that take another method.
pub async fn not_so() -> Response {
    let failure = Failure::new(Kind::Invalid, "this path takes another method");
    (StatusCode::METHOD_NOT_ALLOWED, Json(answer::body(&failure))).into_response()
}
