//! Files: kernel knobs, documents that survive a crash, paths that cannot lead out.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::{CallError, Context, raw};

/// Write a value to a file of the kernel in one call: the kernel parses each write by itself.
///
/// # Errors
/// Names the value and the file.
pub fn write_knob(file: &Path, value: &str) -> Result<(), CallError> {
    let write = || {
        fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(file)?
            .write_all(value.as_bytes())
    };
    write().call(|| format!("write {value:?} to {}", file.display()))
}

/// Read a small text file of the kernel.
///
/// # Errors
/// Names the file.
pub fn read_text(file: &Path) -> Result<String, CallError> {
    fs::read_to_string(file).call(|| format!("read {}", file.display()))
}

/// The name of this boot: what it began ends with it.
///
/// # Errors
/// Names the file.
pub fn boot_id() -> Result<String, CallError> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let id = read_text(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_owned();
    Ok(KNOWN.get_or_init(|| id).clone())
}

/// Replace a file as a whole: readers see the old or the new content, never a part.
/// `durable` also brings it to the disk before anyone is told (fsync of file and folder).
///
/// # Errors
/// Names the step and the file; the old content is still there then.
pub fn replace(file: &Path, content: &[u8], durable: bool) -> Result<(), CallError> {
    // A name of our own: a file beside it that looks like a draft may be anybody's.
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let draft = file.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let result = write_draft(&draft, content, durable)
        .call(|| format!("write {}", file.display()))
        .and_then(|()| {
            fs::rename(&draft, file)
                .call(|| format!("rename {} to {}", draft.display(), file.display()))
        });
    if result.is_err() {
        // The draft is of no use to anyone, and the first failure is the one to tell.
        let _ = fs::remove_file(&draft);
        return result;
    }
    match file.parent() {
        // The parent of a bare name is the empty path.
        Some(folder) if durable && folder.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(folder) if durable => sync_folder(folder),
        _ => Ok(()),
    }
}

fn write_draft(draft: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let mut file = File::create(draft)?;
    file.write_all(content)?;
    if durable { file.sync_all() } else { Ok(()) }
}

/// # Errors
/// Names the folder.
pub fn sync_folder(folder: &Path) -> Result<(), CallError> {
    File::open(folder).and_then(|f| f.sync_all()).call(|| format!("fsync {}", folder.display()))
}

/// The root of this machine's procfs, for writes that must go nowhere else.
///
/// # Errors
/// What stands on `/proc` is no procfs, or not its root.
pub fn open_proc() -> Result<OwnedFd, CallError> {
    const ROOT_INODE: u64 = 1;
    let call = || "open /proc".to_owned();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open("/proc", flags, Mode::empty()).call(call)?;
    let kind = nix::sys::statfs::fstatfs(&root).call(call)?.filesystem_type();
    let inode = nix::sys::stat::fstat(&root).call(call)?.st_ino;
    if kind != nix::sys::statfs::PROC_SUPER_MAGIC || inode != ROOT_INODE {
        return Err(CallError::new(call(), io::Error::other("is not the root of a procfs")));
    }
    Ok(root)
}

/// `struct open_how` (openat2(2), Linux 5.6).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenHow {
    pub flags: u64,
    pub mode: u64,
    pub resolve: u64,
}

/// Values of [`OpenHow::resolve`] (include/uapi/linux/openat2.h).
pub mod resolve {
    pub const NO_XDEV: u64 = 0x01;
    pub const NO_MAGICLINKS: u64 = 0x02;
    pub const NO_SYMLINKS: u64 = 0x04;
    pub const BENEATH: u64 = 0x08;
    pub const IN_ROOT: u64 = 0x10;
}

/// openat2(2). Interrupted resolutions (EAGAIN after a racing rename, Linux openat2(2) NOTES) are tried again.
///
/// # Errors
/// Names the path.
pub fn open_how(dir: impl AsFd, path: &Path, how: OpenHow) -> Result<OwnedFd, CallError> {
    const TRIES: u32 = 32;
    let dir = dir.as_fd().as_raw_fd();
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(io::Error::from)
        .call(|| format!("open {}", path.display()))?;
    let how = OpenHow { flags: how.flags | libc::O_CLOEXEC as u64, ..how };
    for _ in 0..TRIES {
        match raw::openat2(dir, &name, &how) {
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(CallError::errno(format!("open {}", path.display()), e)),
            // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }
    Err(CallError::errno(format!("open {}", path.display()), Errno::EAGAIN))
}
