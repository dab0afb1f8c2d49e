//! The agent of a node, and what a person types to it.

pub mod address;
pub mod amount;
pub mod api;
pub mod artifact;
pub mod check;
pub mod client;
pub mod config;
mod connection;
pub mod container;
pub mod driver;
pub mod events;
pub mod housekeeping;
pub mod jobfile;
pub mod keeper;
pub mod link;
pub mod logs;
pub mod metrics;
pub mod network;
pub mod node;
pub mod pull;
pub mod records;
pub mod resolve;
pub mod sandbox;
pub mod secret;
pub mod stats;
pub mod streams;
pub mod traces;
pub mod view;
pub mod watch;

pub use hafen_door::{failure, lock};
pub use hafen_protocol::time;
