//! How programs of ours are called on: sockets, callers, connections, and how a failure is told.

pub mod answer;
mod caller;
mod connection;
mod door;
pub mod failure;
pub mod files;
pub mod grpc;
pub mod lock;
pub mod news;
pub mod words;

use std::pin::Pin;

use futures_util::Stream;

pub use caller::{Caller, Party, Seat, Seats};
pub use connection::{FIRST_WORDS, Host, rest};
pub use door::{Door, DoorError};
use failure::Failure;

/// Of one message or body. A task with many secrets is far below.
pub const MOST_BYTES: usize = 4 << 20;

/// What goes on until it ends or fails.
pub type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>;
