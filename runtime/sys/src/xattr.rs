//! Marks on folders of the kernel's file systems (xattr(7)).

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::raw::{at, call};

/// `trusted` is for root alone; `user` is for everybody, and cgroup2 has it since Linux 5.7.
const SPACES: [&str; 2] = ["trusted", "user"];

/// Set a mark without a value, where the file system and the caller's rights allow it.
pub fn set(path: &Path, name: &str) {
    let _ = SPACES.iter().any(|space| {
        with_names(path, space, name, |path, name| {
            // SAFETY: two C strings that outlive the call, and no value.
            unsafe { call(libc::SYS_lsetxattr, [path, name, 0, 0, 0, 0]) }.is_ok()
        })
    });
}

/// Is the mark there?
#[must_use]
pub fn is_set(path: &Path, name: &str) -> bool {
    SPACES.iter().any(|space| {
        with_names(path, space, name, |path, name| {
            // SAFETY: two C strings that outlive the call; a size of 0 only asks.
            unsafe { call(libc::SYS_lgetxattr, [path, name, 0, 0, 0, 0]) }.is_ok()
        })
    })
}

fn with_names(
    path: &Path,
    space: &str,
    name: &str,
    ask: impl FnOnce(usize, usize) -> bool,
) -> bool {
    let names =
        (CString::new(path.as_os_str().as_bytes()), CString::new(format!("{space}.{name}")));
    let (Ok(path), Ok(name)) = names else { return false };
    ask(at(&path), at(&name))
}
