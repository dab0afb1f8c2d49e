//! Where a task runs: membership, placement, failover, drain, and nothing that a workload framework does better.

pub mod assign;
mod grid;
pub mod model;
