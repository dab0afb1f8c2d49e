//! Where a task runs: membership, placement, failover, drain, and nothing that a workload framework does better.

pub mod assign;
pub mod cluster;
mod grid;
pub mod model;
pub mod service;
pub mod state;
pub mod wire;
