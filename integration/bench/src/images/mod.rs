//! Images: what is made of them at set-up, who handles them, and what is said of it.

pub mod layer;
pub mod layout;
pub mod programs;
pub mod recipe;
pub mod registry;
pub mod report;

use std::io;
use std::path::Path;

/// An error that names the call and the file.
fn says(verb: &str, path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{verb} {}: {e}", path.display()))
}
