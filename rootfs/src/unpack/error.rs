use std::io;
use std::path::Path;

use hafen_sys::CallError;

/// A layer that cannot be unpacked. Names of entries are shortened and without control characters.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive says something that cannot or must not be done.
    #[error("{name}: {reason}")]
    Entry { name: String, reason: String },
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("read the layer's stream")]
    Stream(#[source] io::Error),
    #[error("the layer's stream ends within {name}")]
    Truncated { name: String },
    #[error("{name}: the layer has more than {bound} {what}")]
    TooLarge { name: String, what: &'static str, bound: u64 },
}

impl UnpackError {
    pub(super) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { name: shown(name), reason: reason.into() }
    }

    pub(super) fn at(path: &Path, reason: impl Into<String>) -> Self {
        Self::entry(path.as_os_str().as_encoded_bytes(), reason)
    }
}

/// A name from an archive, fit for a log.
pub(super) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 256;
    let cut = &name[..name.len().min(LONGEST)];
    let mut text = String::new();
    for c in String::from_utf8_lossy(cut).chars() {
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    if cut.len() < name.len() {
        text.push_str("...");
    }
    text
}
