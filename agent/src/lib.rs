//! The agent of a node, and what a person types to it.

pub mod artifact;
pub mod check;
pub mod failure;
pub mod network;
pub mod node;
pub mod secret;
