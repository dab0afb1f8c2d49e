//! The mount API of Linux 5.2 and later: numbers, structures and the calls that the runtime itself makes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::{CallError, Context, raw};

pub const OPEN_TREE_CLONE: u32 = 1;
pub const AT_RECURSIVE: u32 = 0x8000;
pub(crate) const AT_EMPTY_PATH: u32 = 0x1000;
pub(crate) const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
/// MOVE_MOUNT_F_EMPTY_PATH
pub(crate) const MOVE_FROM_DESCRIPTOR: u32 = 0x04;
/// The same and MOVE_MOUNT_T_EMPTY_PATH.
pub(crate) const MOVE_BETWEEN_DESCRIPTORS: u32 = 0x04 | 0x40;
pub(crate) const FSOPEN_CLOEXEC: u32 = 1;
pub(crate) const FSMOUNT_CLOEXEC: u32 = 1;
pub(crate) const FSCONFIG_SET_FLAG: u32 = 0;
pub(crate) const FSCONFIG_SET_STRING: u32 = 1;
pub(crate) const FSCONFIG_CMD_CREATE: u32 = 6;
pub(crate) const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
pub(crate) const FSPICK_CLOEXEC: u32 = 0x01;
pub(crate) const FSPICK_EMPTY_PATH: u32 = 0x08;
/// Show the owners through a user namespace (mount_setattr(2), Linux 5.12).
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` (mount_setattr(2), Linux 5.12).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE or 0.
    pub propagation: u64,
    pub userns_fd: u64,
}

impl MountAttr {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A detached copy of the mount at `path` (of a symlink there, unless it is to be followed), which only the holder of the descriptor can see (open_tree(2), Linux 5.2).
///
/// # Errors
/// Names the path.
pub fn clone_tree(path: &Path, recursive: bool, follow: bool) -> Result<OwnedFd, CallError> {
    let call = || format!("open_tree {}", path.display());
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from).call(call)?;
    let link = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW as u32 };
    open_tree(libc::AT_FDCWD, &name, recursive, link).call(call)
}

/// The same of what a descriptor stands for.
///
/// # Errors
/// Names the call.
pub fn clone_tree_at(place: impl AsFd, recursive: bool) -> Result<OwnedFd, CallError> {
    open_tree(place.as_fd().as_raw_fd(), c"", recursive, AT_EMPTY_PATH)
        .call(|| "open_tree".to_owned())
}

fn open_tree(dir: i32, path: &CStr, recursive: bool, more: u32) -> nix::Result<OwnedFd> {
    let tree = if recursive { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | more | tree;
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe {
        raw::call(libc::SYS_open_tree, [raw::reg(dir), raw::at(path), flags as usize, 0, 0, 0])
    };
    let fd = fd.map_err(Errno::from_raw)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Does an overlay take its lower layers one by one (`lowerdir+`, Linux 6.8)? Otherwise all of them stand in one text.
#[must_use]
pub fn takes_layers_one_by_one() -> bool {
    let flags = FSOPEN_CLOEXEC as usize;
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { raw::call(libc::SYS_fsopen, [raw::at(c"overlay"), flags, 0, 0, 0, 0]) };
    let Ok(fd) = fd else { return false };
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    let overlay = unsafe { OwnedFd::from_raw_fd(fd) };
    let (fs, command) = (raw::reg(overlay.as_raw_fd()), FSCONFIG_SET_STRING as usize);
    let (key, value) = (raw::at(c"lowerdir+"), raw::at(c"/"));
    // SAFETY: key and value are C strings that outlive the call.
    unsafe { raw::call(libc::SYS_fsconfig, [fs, command, key, value, 0, 0]) }.is_ok()
}

/// A new file system that only the holder of the descriptor can see.
///
/// # Errors
/// Names the type, the option that it did not take, and the kernel's words if it has any.
pub fn new_file_system(
    fstype: &CStr,
    source: &CStr,
    options: &[(CString, Option<CString>)],
    attributes: u64,
) -> Result<OwnedFd, CallError> {
    match crate::child::new_mount(fstype, source, options, attributes, None) {
        // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(fault) => {
            let option = (fault.detail as usize).checked_sub(1).and_then(|i| options.get(i));
            let option = option.map_or_else(String::new, |(key, value)| {
                let value = value.as_ref().map_or_else(String::new, |v| format!("={v:?}"));
                format!(" option {key:?}{value}")
            });
            // SAFETY: the context was made for this call and nobody else knows it.
            let log = fault.log.map(|log| unsafe { OwnedFd::from_raw_fd(log) });
            let call = format!("mount {}{option}{}", fstype.to_string_lossy(), words(log));
            Err(CallError::errno(call, Errno::from_raw(fault.errno)))
        }
    }
}

/// The first message in the log of a file-system context (fsopen(2)), in brackets.
fn words(log: Option<OwnedFd>) -> String {
    let mut text = [0; 200];
    let read = log.map_or(Ok(0), |log| io::Read::read(&mut std::fs::File::from(log), &mut text));
    let text = String::from_utf8_lossy(&text[..read.unwrap_or(0)]).into_owned();
    // The severity stands before it: "e tmpfs: ...".
    let text = text.trim().get(2..).unwrap_or_default();
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// Put a mount without a place at `path` (move_mount(2), Linux 5.2).
///
/// # Errors
/// Names the path.
pub fn attach(tree: impl AsFd, path: &Path) -> Result<(), CallError> {
    let call = || format!("move_mount to {}", path.display());
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from).call(call)?;
    let from = raw::reg(tree.as_fd().as_raw_fd());
    let (here, flags) = (raw::reg(libc::AT_FDCWD), MOVE_FROM_DESCRIPTOR as usize);
    // SAFETY: both names are C strings that outlive the call.
    let moved = unsafe {
        raw::call(libc::SYS_move_mount, [from, raw::at(c""), here, raw::at(&name), flags, 0])
    };
    moved.map(drop).map_err(Errno::from_raw).call(call)
}

/// Change attributes and propagation of the mount that a descriptor stands for.
///
/// # Errors
/// Names the attributes.
pub fn set_attributes(
    mount: impl AsFd,
    attributes: &MountAttr,
    recursive: bool,
) -> Result<(), CallError> {
    raw_set_attributes(mount.as_fd().as_raw_fd(), attributes, recursive)
        .map_err(Errno::from_raw)
        .call(|| {
        format!(
            "mount_setattr set {:#x} clear {:#x} propagation {:#x}",
            attributes.set, attributes.clear, attributes.propagation
        )
    })?;
    Ok(())
}

pub(crate) fn raw_set_attributes(fd: i32, attributes: &MountAttr, recursive: bool) -> raw::Answer {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let pointer = std::ptr::from_ref(attributes) as usize;
    // SAFETY: an empty C string and a struct of the size given, both alive across the call.
    unsafe {
        raw::call(
            libc::SYS_mount_setattr,
            [raw::reg(fd), raw::at(c""), flags as usize, pointer, size_of::<MountAttr>(), 0],
        )
    }
}
