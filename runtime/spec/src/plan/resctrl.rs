use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A step in the resctrl file system (Documentation/filesystems/resctrl.rst of the kernel).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Resctrl {
    /// Make a group: a new one if it is claimed, otherwise it may be there by now.
    Make { path: PathBuf, claimed: bool },
    /// Write all lines at once.
    Schemata { mount: PathBuf, group: PathBuf, lines: Vec<String> },
    /// Put the process into the group.
    Enter { group: PathBuf },
}

impl Resctrl {
    pub(super) fn makes(&self) -> Option<&Path> {
        match self {
            Self::Make { path, claimed: true } => Some(path),
            _ => None,
        }
    }
}

impl fmt::Display for Resctrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { path, .. } => write!(f, "make resctrl group {}", path.display()),
            Self::Schemata { group, lines, .. } => {
                write!(f, "write {:?} to {}/schemata", lines.join("\n"), group.display())
            }
            Self::Enter { group } => write!(f, "write the pid to {}/tasks", group.display()),
        }
    }
}
