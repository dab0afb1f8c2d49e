//! Names of entries, and what an image's layer means by them (image-spec, layer.md, "Whiteouts").

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const WHITEOUT: &[u8] = b".wh.";
const INTERNAL: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// PATH_MAX counts the NUL.
const LONGEST: usize = 4095;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The layer's own folder.
    Top,
    Plain(PathBuf),
    /// What the layers below have there is gone.
    Whiteout(PathBuf),
    /// What the layers below have in this folder is gone.
    Opaque(PathBuf),
    /// Of aufs, and nothing of the image's.
    Internal,
}

/// # Errors
/// Says why the name cannot be one of an image.
pub(super) fn meaning(raw: &[u8]) -> Result<Name, String> {
    let mut parts = parts(raw)?;
    if parts.iter().any(|part| part.starts_with(INTERNAL) && *part != OPAQUE) {
        return Ok(Name::Internal);
    }
    let Some(last) = parts.pop() else { return Ok(Name::Top) };
    if let Some(part) = parts.iter().find(|part| part.starts_with(WHITEOUT)) {
        return Err(format!("is in the whiteout {}", part.escape_ascii()));
    }
    if last == OPAQUE {
        return Ok(Name::Opaque(joined(&parts)));
    }
    let Some(hidden) = last.strip_prefix(WHITEOUT) else {
        parts.push(last);
        return Ok(Name::Plain(joined(&parts)));
    };
    if matches!(hidden, b"" | b"." | b"..") {
        return Err("is a whiteout of no name".to_owned());
    }
    parts.push(hidden);
    Ok(Name::Whiteout(joined(&parts)))
}

/// Where a hard link leads to, in the layer; the empty path is its own folder.
///
/// # Errors
/// Says why nothing can be there.
pub(super) fn target(raw: &[u8]) -> Result<PathBuf, String> {
    Ok(joined(&parts(raw)?))
}

/// Without a leading "/" or "./".
fn parts(raw: &[u8]) -> Result<Vec<&[u8]>, String> {
    if raw.contains(&0) {
        return Err("has a NUL in its name".to_owned());
    }
    if raw.len() > LONGEST {
        return Err(format!("has a name of {} bytes", raw.len()));
    }
    let parts: Vec<_> =
        raw.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    match parts.iter().any(|part| *part == b"..") {
        true => Err("leads upwards by \"..\"".to_owned()),
        false => Ok(parts),
    }
}

fn joined(parts: &[&[u8]]) -> PathBuf {
    parts.iter().map(|part| OsStr::from_bytes(part)).collect()
}
