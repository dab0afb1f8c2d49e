//! The node's API: gRPC and its twin of JSON over HTTP, on a unix socket and, with mutual TLS, on TCP.

mod grpc;
mod http;
mod serve;
pub mod tls;

pub use hafen_door::{Caller, Door, DoorError, MOST_BYTES, answer};
pub use serve::{Api, Options, ServeError};
