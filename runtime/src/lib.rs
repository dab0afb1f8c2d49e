//! One launch, from the bundle to nothing left behind.
//!
//! ```text
//! bundle --parse, resolve--> Resolved --plan--> Plan --journal--> disk
//!        --launch--> Running --supervise--> ExitRecord --release--> nothing
//! ```
//!
//! [`plan`] is the only place where order lives; [`launch`] carries a plan out and holds the
//! drawing of the handshake; [`journal`] is what survives our death; [`release`] is the one
//! clean-up path, for failures, ends and crashes alike.

mod activation;
mod apart;
pub mod cli;
pub mod commands;
mod encode;
mod error;
mod facts;
mod fault;
mod filters;
mod guest;
mod hooks;
mod join;
mod journal;
mod keep;
mod launch;
mod listener;
pub mod log;
mod notify;
mod patch;
mod plan;
mod prepare;
mod privilege;
mod process;
mod release;
mod rootless;
mod size;
mod sources;
mod state;
mod supervise;
mod terminal;
mod upper;
mod volumes;

pub use error::Error;
