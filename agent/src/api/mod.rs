//! The node's API: gRPC and its twin of JSON over HTTP, on a unix socket and, with mutual TLS, on TCP.

pub mod answer;
mod caller;
mod door;
mod grpc;
mod http;
mod serve;
pub mod tls;

pub use caller::Caller;
pub use door::{Door, DoorError};
pub use serve::{Api, Options, ServeError};

/// Of one message or body. A task with many secrets is far below.
pub const MOST_BYTES: usize = 4 << 20;
