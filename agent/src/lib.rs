//! The agent of a node, and what a person types to it.

pub mod amount;
pub mod api;
pub mod artifact;
pub mod check;
pub mod client;
pub mod config;
pub mod events;
pub mod failure;
pub mod keeper;
pub mod network;
pub mod node;
pub mod records;
pub mod resolve;
pub mod secret;
pub mod time;
pub mod view;
