//! Side-by-side measurements of container runtimes.
//!
//! Every benchmark runs the programs it compares interleaved, on the same bundle
//! and under one stopwatch ([`measure`]), and gives ratios to a *floor*: a program
//! that makes the same system calls the kernel cannot be spared, and no others
//! ([`assembler`], [`launch_plan`], `src/bin/floor.rs`).

pub mod agent;
pub mod assembler;
pub mod bounds;
pub mod bundle;
pub mod cluster;
pub mod device_program;
pub mod enforcement;
pub mod format;
pub mod host;
pub mod images;
pub mod launch_plan;
pub mod limits;
pub mod measure;
pub mod phases;
pub mod profile;
pub mod programs;
pub mod report;
pub mod sheet;
pub mod stats;
pub mod stdio;
pub mod steps;
pub mod tracer;
