//! The agent of a node, and what a person types to it.

pub mod failure;
pub mod node;
