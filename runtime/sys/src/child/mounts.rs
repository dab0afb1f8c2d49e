//! New file systems (fsopen(2), Linux 5.2).

use std::ffi::{CStr, CString};

use super::machine::{
    Fault, RDONLY, make_file, make_folder, move_mount, open_path, open_tree, stat,
};
use crate::mount::{
    AT_EMPTY_PATH, FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE, FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC, FSPICK_CLOEXEC, FSPICK_EMPTY_PATH,
};
use crate::raw::{self, Answer, at, call, plain, reg};

const LONGEST_TARGET: usize = 4096;
const LONGEST_DATA: usize = 4096;
const MODE_BITS: u32 = 0o7777;
const PRIVATE: usize = 0o700;

/// A mount that nobody sees yet. `folder` gives it its mode.
pub(crate) fn new_mount(
    fstype: &CStr,
    source: &CStr,
    options: &[(CString, Option<CString>)],
    attributes: u64,
    folder: Option<i32>,
) -> Result<i32, Fault> {
    let context = fs_context(fstype)?;
    // On failure the context stays open for its message log; the process ends then anyway.
    let failed = |detail| move |errno| Fault { detail, errno, log: Some(context) };
    if !source.is_empty() {
        set_parameter(context, c"source", Some(source)).map_err(failed(0))?;
    }
    if let Some(folder) = folder {
        let mode = Octal::new(stat(folder, c"", AT_EMPTY_PATH)?.st_mode & MODE_BITS);
        set_parameter(context, c"mode", Some(mode.as_c_str())).map_err(failed(0))?;
    }
    set_parameters(context, options)?;
    let mount = create_mount(context, attributes).map_err(failed(0))?;
    let _ = raw::close(context);
    Ok(mount)
}

/// Other parameters for a file system that is mounted already.
pub(super) fn reconfigure(mount: i32, options: &[(CString, Option<CString>)]) -> Result<(), Fault> {
    let flags = (FSPICK_CLOEXEC | FSPICK_EMPTY_PATH) as usize;
    // SAFETY: an empty C string.
    let context = unsafe { call(libc::SYS_fspick, [reg(mount), at(c""), flags, 0, 0, 0]) }?;
    set_parameters(context, options)?;
    let command = FSCONFIG_CMD_RECONFIGURE as usize;
    plain(libc::SYS_fsconfig, [reg(context), command, 0, 0, 0, 0]).map_err(|errno| Fault {
        detail: 0,
        errno,
        log: Some(context),
    })?;
    let _ = raw::close(context);
    Ok(())
}

/// Only what is attached can be copied, so mounts are attached here for a moment: in a tmpfs on a folder of the host's
/// procfs, in the process's own mount namespace, which is let go of with the host's root. Each in a place of its own:
/// one on the other it would go where the lower one is shared with.
pub(super) struct Shelf {
    folder: i32,
    used: u32,
}

impl Shelf {
    pub(super) const fn new() -> Self {
        Self { folder: -1, used: 0 }
    }

    pub(super) fn renew(&mut self, from: i32, is_folder: bool) -> Answer {
        if self.folder < 0 {
            self.folder = put_up()?;
        }
        self.used = self.used.wrapping_add(1);
        let name = Octal::new(self.used);
        let name = name.as_c_str();
        if is_folder {
            make_folder(self.folder, name, PRIVATE)?;
        } else {
            make_file(self.folder, name)?;
        }
        let place = open_path(self.folder, name)?;
        let moved = move_mount(from, place);
        let _ = raw::close(place);
        moved?;
        open_tree(from, c"", true, true)
    }
}

fn put_up() -> Answer {
    let tmpfs = new_mount(c"tmpfs", c"tmpfs", &[], 0, None).map_err(|fault| fault.errno)?;
    let place = open_path(libc::AT_FDCWD, c"/proc/driver")?;
    let moved = move_mount(tmpfs, place);
    let _ = raw::close(place);
    moved.map(|_| tmpfs)
}

/// What covers masked folders.
pub(super) fn empty_tmpfs() -> Answer {
    let context = fs_context(c"tmpfs")?;
    set_parameter(context, c"ro", None)?;
    let mounted = create_mount(context, RDONLY);
    let _ = raw::close(context);
    mounted
}

fn fs_context(fstype: &CStr) -> Answer {
    // SAFETY: the name is a C string that outlives the call.
    unsafe { call(libc::SYS_fsopen, [at(fstype), FSOPEN_CLOEXEC as usize, 0, 0, 0, 0]) }
}

/// The fault's detail is the number of the option, from 1.
fn set_parameters(context: i32, options: &[(CString, Option<CString>)]) -> Result<(), Fault> {
    let mut detail: u32 = 0;
    for (key, value) in options {
        detail = detail.wrapping_add(1);
        set_parameter(context, key, value.as_deref()).map_err(|errno| Fault {
            detail,
            errno,
            log: Some(context),
        })?;
    }
    Ok(())
}

fn set_parameter(context: i32, key: &CStr, value: Option<&CStr>) -> Answer {
    let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
    // SAFETY: null or C strings that outlive the call.
    unsafe {
        call(
            libc::SYS_fsconfig,
            [reg(context), command as usize, at(key), value.map_or(0, at), 0, 0],
        )
    }
}

fn create_mount(context: i32, attributes: u64) -> Answer {
    plain(libc::SYS_fsconfig, [reg(context), FSCONFIG_CMD_CREATE as usize, 0, 0, 0, 0])?;
    plain(libc::SYS_fsmount, [reg(context), FSMOUNT_CLOEXEC as usize, attributes as usize, 0, 0, 0])
}

/// Whether the symlink holds exactly this target.
#[inline(never)]
pub(super) fn leads_to(folder: i32, name: &CStr, target: &CStr) -> bool {
    let mut buffer = [0_u8; LONGEST_TARGET];
    let (pointer, length) = (buffer.as_mut_ptr() as usize, buffer.len());
    // SAFETY: a C string, and a buffer of the length given; both outlive the call.
    match unsafe { call(libc::SYS_readlinkat, [reg(folder), at(name), pointer, length, 0, 0]) } {
        Ok(length) => buffer.get(..length.unsigned_abs() as usize) == Some(target.to_bytes()),
        Err(_) => false,
    }
}

/// Data for mount(2) with the mode of a folder before it, without an allocation.
pub(super) struct Data([u8; LONGEST_DATA]);

impl Data {
    pub(super) fn new(given: &CStr, folder: Option<i32>) -> Result<Self, i32> {
        let mut all = [0; LONGEST_DATA];
        let mode = match folder {
            Some(folder) => Some(Octal::new(stat(folder, c"", AT_EMPTY_PATH)?.st_mode & MODE_BITS)),
            None => None,
        };
        let mode = mode.as_ref().map_or(c"", Octal::as_c_str).to_bytes();
        let (name, comma): (&[u8], &[u8]) = match (mode, given.is_empty()) {
            ([], _) => (b"", b""),
            (_, true) => (b"mode=", b""),
            (_, false) => (b"mode=", b","),
        };
        let parts = [name, mode, comma, given.to_bytes()];
        // One byte stays 0; the kernel cuts longer data itself (a page).
        let places = all.iter_mut().take(LONGEST_DATA - 1);
        for (place, byte) in places.zip(parts.iter().flat_map(|part| part.iter())) {
            *place = *byte;
        }
        Ok(Self(all))
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// A mode as text, without an allocation.
struct Octal([u8; 8]);

impl Octal {
    fn new(mode: u32) -> Self {
        let mut text = [b'0'; 8];
        let mut rest = mode;
        for place in text.iter_mut().rev().skip(1) {
            *place = b'0'.wrapping_add((rest & 7) as u8);
            rest >>= 3;
        }
        if let Some(end) = text.last_mut() {
            *end = 0;
        }
        Self(text)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_written_in_octal() {
        assert_eq!(Octal::new(0o1777).as_c_str(), c"0001777");
        assert_eq!(Octal::new(0o7777).as_c_str(), c"0007777");
        assert_eq!(Octal::new(0).as_c_str(), c"0000000");
    }

    #[test]
    fn data_of_mount_has_the_folders_mode_first() {
        let folder = std::fs::File::open("/proc").unwrap();
        let fd = Some(std::os::fd::AsRawFd::as_raw_fd(&folder));
        assert_eq!(Data::new(c"size=1m", fd).unwrap().as_c_str(), c"mode=0000555,size=1m");
        assert_eq!(Data::new(c"", fd).unwrap().as_c_str(), c"mode=0000555");
        assert_eq!(Data::new(c"size=1m", None).unwrap().as_c_str(), c"size=1m");
        assert_eq!(Data::new(c"", None).unwrap().as_c_str(), c"");
    }
}
