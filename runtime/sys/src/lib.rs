//! Every system call that `nix` does not cover safely, and the child script.
//!
//! The only crate in which `unsafe` is not forbidden. [`child`] is the machine that runs
//! between clone and exec: it executes prepared [`child::Op`]s, allocates nothing, takes no
//! lock and cannot panic. [`spawn`] makes the process that runs it and reads its reports.
//! [`feature`] says which kernel calls are needed, since when they exist and what stands in.

pub mod bpf;
pub mod capability;
pub mod child;
pub mod clock;
mod error;
pub mod feature;
pub mod file;
pub mod handed;
pub mod heap;
pub mod limit;
pub mod mount;
pub mod pidfd;
pub mod quota;
mod raw;
pub mod rest;
pub mod seccomp;
pub mod shield;
pub mod signal;
pub mod socket;
pub mod spawn;
pub mod start;
pub mod terminal;
pub mod userns;
pub mod weaken;
pub mod xattr;

pub use error::{CallError, Context};
