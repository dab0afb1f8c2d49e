//! The container must never get hold of our own program for writing.
//!
//! Until it becomes the user's program, the first process of a container has ours as its `/proc/PID/exe`. Whoever
//! may look at it from inside could open that link, wait until we have ended and write to the file on the host
//! (CVE-2019-5736). So the program runs from a read-only copy of its mount that nobody else has: the link
//! then leads to a file that cannot be opened for writing. Where the kernel lets it the running program is mapped anew
//! from there; else it is executed once more.

mod remap;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::stat;
use nix::sys::statvfs::{FsFlags, fstatvfs, statvfs};

use crate::mount::{MountAttr, clone_tree, set_attributes};
use crate::weaken::{Defence, left_out};
use crate::{CallError, Context};

const OWN_PROGRAM: &str = "/proc/self/exe";
const MOUNT_ATTR_RDONLY: u64 = 1;
/// After stdin, stdout and stderr.
const FIRST_FREE: i32 = 3;

/// Tells the second run which descriptor holds its own copy.
const COPY: &str = "HAFEN_OCI_COPY";

/// The copy that this run went on from, until somebody asks for it.
static OWN: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Go on as the same program from a copy that cannot be written to. To be called before there is a second thread.
///
/// The answer is the copy, if it was made for this run: to be closed while nothing waits for us, since the kernel takes
/// a detached mount apart in a grace period of RCU. It stands above all `preserved` descriptors.
///
/// # Errors
/// Names the call; nothing has changed then.
pub fn run_from_read_only_copy(preserved: u32) -> Result<Option<OwnedFd>, CallError> {
    if left_out(Defence::SelfExe) {
        return Ok(None);
    }
    if let Some(copy) = OWN.lock().ok().and_then(|mut own| own.take()) {
        return Ok(Some(copy));
    }
    if is_read_only()? {
        return Ok(own_copy());
    }
    let own = stat(OWN_PROGRAM).call(|| format!("stat {OWN_PROGRAM}"))?;
    if is_out_of_reach(nix::unistd::geteuid().as_raw(), own.st_uid, own.st_mode) {
        return Ok(None);
    }
    let copy = match read_only_mount() {
        // Old kernels, or a seccomp filter around us.
        Err(e) if e.is(Errno::ENOSYS) || e.is(Errno::EPERM) => sealed_memory()?,
        answer => answer?,
    };
    // Most of what a second start of the program takes is saved.
    if remap::go_on_from(&copy).is_ok() && is_read_only()? {
        let held = fcntl(&copy, FcntlArg::F_DUPFD_CLOEXEC(first_free(preserved)));
        let held = held.call(|| "fcntl F_DUPFD_CLOEXEC".to_owned())?;
        // SAFETY: the descriptor was made just now, and nothing else owns it.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(held) }));
    }
    execute(&copy, preserved)?;
    Ok(None)
}

/// The same before the command line is understood, so that a first run does nothing twice. Whoever needs the copy
/// still asks for it with [`run_from_read_only_copy`], which tells what is wrong.
pub fn hasten_read_only_copy(preserved: u32) {
    if std::env::var_os(COPY).is_none()
        && let Ok(Some(copy)) = run_from_read_only_copy(preserved)
        && let Ok(mut own) = OWN.lock()
    {
        *own = Some(copy);
    }
}

/// Above the standard descriptors and those that the container keeps.
fn first_free(preserved: u32) -> i32 {
    i32::try_from(preserved).unwrap_or(0).saturating_add(FIRST_FREE)
}

/// The descriptor that the first run left open, if it is what it says.
fn own_copy() -> Option<OwnedFd> {
    let number: i32 = std::env::var(COPY).ok()?.parse().ok()?;
    let own = stat(OWN_PROGRAM).ok()?;
    // Opened anew rather than believed: the number is only a claim.
    let held = stat(format!("/proc/self/fd/{number}").as_str()).ok()?;
    if number < 3 || (own.st_dev, own.st_ino) != (held.st_dev, held.st_ino) {
        return None;
    }
    // SAFETY: the first run left exactly this descriptor to us, and nothing else in this run owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(copy)
}

/// Root's program in the hands of an ordinary user: the containers of that user are no more than the user is, and root
/// is in no user namespace that the user can make. A copy in memory would cost more than all of the launch.
const fn is_out_of_reach(user: u32, owner: u32, mode: u32) -> bool {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    user != 0 && owner == 0 && mode & OTHERS_MAY_WRITE == 0
}

fn is_read_only() -> Result<bool, CallError> {
    let mount = statvfs(OWN_PROGRAM).call(|| format!("statvfs {OWN_PROGRAM}"))?;
    if mount.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    let own = File::open(OWN_PROGRAM).call(|| format!("open {OWN_PROGRAM}"))?;
    // EINVAL: an ordinary file has no seals.
    let seals = fcntl(&own, FcntlArg::F_GET_SEALS).unwrap_or(0);
    Ok(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE))
}

fn read_only_mount() -> Result<OwnedFd, CallError> {
    let copy = clone_tree(Path::new(OWN_PROGRAM), false, true)?;
    set_attributes(&copy, &MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() }, false)?;
    let flags = fstatvfs(copy.as_fd()).call(|| "fstatvfs".to_owned())?.flags();
    if flags.contains(FsFlags::ST_RDONLY) {
        return Ok(copy);
    }
    Err(CallError::errno("make a read-only copy of our own mount", Errno::EROFS))
}

#[cold]
fn sealed_memory() -> Result<OwnedFd, CallError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(c"hafen-oci", flags).call(|| "memfd_create".to_owned())?;
    let mut own = File::open(OWN_PROGRAM).call(|| format!("open {OWN_PROGRAM}"))?;
    let mut copy = File::from(memory);
    std::io::copy(&mut own, &mut copy).call(|| "copy our own program".to_owned())?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals)).call(|| "fcntl F_ADD_SEALS".to_owned())?;
    Ok(copy.into())
}

#[cold]
fn execute(copy: &OwnedFd, preserved: u32) -> Result<(), CallError> {
    let nul = |e: std::ffi::NulError| CallError::new("execveat", e.into());
    let arguments: Result<Vec<_>, _> =
        std::env::args_os().map(|a| CString::new(a.into_vec())).collect();
    // Without close-on-exec: it stays open in the run that starts here.
    let above = FcntlArg::F_DUPFD(first_free(preserved));
    let held = fcntl(copy, above).call(|| "fcntl F_DUPFD".to_owned())?;
    let environment: Result<Vec<_>, _> = std::env::vars_os()
        .filter(|(key, _)| key != COPY)
        .map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat())
        .chain(std::iter::once(format!("{COPY}={held}").into_bytes()))
        .map(CString::new)
        .collect();
    let (arguments, environment) = (arguments.map_err(nul)?, environment.map_err(nul)?);
    nix::unistd::execveat(copy, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH)
        .call(|| "execveat our own program".to_owned())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_out_of_reach;

    #[test]
    fn only_what_a_user_cannot_write_is_out_of_reach() {
        assert!(is_out_of_reach(1000, 0, 0o100_755));
        assert!(!is_out_of_reach(0, 0, 0o100_755), "root writes what it wants");
        assert!(!is_out_of_reach(1000, 1000, 0o100_555), "an owner can change the mode");
        assert!(
            !is_out_of_reach(1000, 0, 0o100_775),
            "the group may be the user's, or stand for an ACL"
        );
        assert!(!is_out_of_reach(1000, 0, 0o100_757));
    }
}
