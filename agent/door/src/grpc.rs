//! Calls of gRPC, as answers of ours.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tonic::{Response, Status, Streaming};

use crate::Flow;
use crate::failure::{Failure, Kind};

/// A stream that says nothing by then has forgotten what it wanted.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

pub type Answer<T> = Result<Response<T>, Status>;
pub type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// # Errors
/// The failure.
pub fn one<T>(result: Result<T, Failure>) -> Answer<T> {
    Ok(Response::new(result?))
}

/// # Errors
/// The failure, if there is one before the first.
pub fn many<T: Send + 'static>(result: Result<Flow<T>, Failure>) -> Answer<Told<T>> {
    Ok(Response::new(Box::pin(result?.map(|item| item.map_err(Status::from)))))
}

#[must_use]
pub fn missing(what: &str) -> Failure {
    Failure::new(Kind::Invalid, format!("{what} is missing"))
}

/// What a caller sends.
pub fn input<T: Send + 'static>(stream: Streaming<T>) -> Flow<T> {
    Box::pin(stream.map(|item| item.map_err(Failure::from)))
}

/// # Errors
/// None came in time.
pub async fn first<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let message = tokio::time::timeout(FIRST_MESSAGE, stream.message()).await;
    message.map_err(|_| Status::deadline_exceeded("the first message did not come"))?
}
