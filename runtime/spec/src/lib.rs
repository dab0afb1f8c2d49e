//! OCI text in, plain resolved data out.
//!
//! ```text
//! bytes --parse--> oci_spec::Spec --resolve(HostFacts, Options)--> Resolved --(isolator, rootfs, runtime)--> Plan
//! ```
//!
//! Nothing here opens a file, reads the environment or makes a system call: what
//! the host is like comes in as [`HostFacts`], and every problem found on the way is
//! collected in [`Problems`], so that a person mends a bundle in one round.
//! [`plan`] holds the documents that the other rooms fill and the runtime writes to disk.

pub mod facts;
pub mod image;
pub mod keep;
pub mod parse;
pub mod plan;
mod problem;
pub mod resolve;
pub mod resolved;
pub mod rights;
pub mod seccomp;
pub mod template;

pub use facts::HostFacts;
pub use problem::{Problem, Problems};
pub use resolved::Resolved;
