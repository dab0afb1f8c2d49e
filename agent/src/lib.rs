//! The agent of a node, and what a person types to it.

pub mod amount;
pub mod api;
pub mod client;
pub mod config;
pub mod failure;
pub mod node;
pub mod time;
