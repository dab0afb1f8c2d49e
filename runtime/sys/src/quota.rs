//! Project quotas: files that carry the number of a project take no more together than it may have. The same calls serve
//! ext4 and XFS (quotactl_fd(2), Linux 5.14; FS_IOC_FSSETXATTR).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use crate::{CallError, Context, raw};

/// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR (linux/fs.h).
const GET_ATTRIBUTES: usize = 0x801c_581f;
const SET_ATTRIBUTES: usize = 0x401c_5820;
/// FS_XFLAG_PROJINHERIT: what is made in a folder belongs to its project.
const INHERIT: u32 = 0x200;
/// The same number on every architecture (asm-generic/unistd.h).
const QUOTACTL_FD: libc::c_long = 443;
/// PRJQUOTA, the lowest byte of a command (QCMD in linux/quota.h).
const OF_PROJECTS: usize = 2;
const GET_QUOTA: usize = (0x0080_0007 << 8) | OF_PROJECTS;
const SET_QUOTA: usize = (0x0080_0008 << 8) | OF_PROJECTS;
/// Q_XGETQSTATV (linux/dqblk_xfs.h).
const GET_STATE: usize = (0x5808 << 8) | OF_PROJECTS;
/// FS_QSTATV_VERSION1
const STATE_VERSION: i8 = 1;
/// FS_QUOTA_PDQ_ENFD
const ENFORCED: u16 = 0x20;
/// QIF_BLIMITS
const LIMIT_OF_BLOCKS: u32 = 1;
/// QIF_DQBLKSIZE
const BLOCK: u64 = 1024;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

/// `struct if_dqblk` (linux/quota.h).
#[repr(C)]
#[derive(Debug, Default)]
struct Quota {
    most_blocks: u64,
    soft_blocks: u64,
    bytes: u64,
    most_files: u64,
    soft_files: u64,
    files: u64,
    times: [u64; 2],
    valid: u32,
}

/// `struct fs_quota_statv` (linux/dqblk_xfs.h).
#[repr(C)]
#[derive(Debug)]
struct State {
    version: i8,
    pad: u8,
    flags: u16,
    rest: [u32; 39],
}

/// What a project takes, and whether anything bounds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    /// Folders among them.
    pub files: u64,
    pub limited: bool,
}

/// The project that whatever is made in a folder will belong to; none where the file system has no projects.
///
/// # Errors
/// Names the call.
pub fn project(folder: impl AsFd) -> Result<Option<u32>, CallError> {
    match attributes(&folder) {
        Ok(found) => Ok((found.flags & INHERIT != 0).then_some(found.project).filter(|p| *p != 0)),
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => Ok(None),
        Err(e) => Err(CallError::errno("FS_IOC_FSGETXATTR", e)),
    }
}

/// Make a folder, and what will be made in it, belong to a project.
///
/// # Errors
/// Names the call.
pub fn set_project(folder: impl AsFd, project: u32) -> Result<(), CallError> {
    let old = attributes(&folder).call(|| "FS_IOC_FSGETXATTR".to_owned())?;
    let new = Attributes { project, flags: old.flags | INHERIT, ..old };
    attributes_call(&folder, SET_ATTRIBUTES, (&raw const new) as usize)
        .call(|| format!("FS_IOC_FSSETXATTR project {project}"))
}

fn attributes(folder: &impl AsFd) -> Result<Attributes, Errno> {
    let mut found = Attributes::default();
    attributes_call(folder, GET_ATTRIBUTES, (&raw mut found) as usize).map(|()| found)
}

/// `at` is the address of [`Attributes`] of the caller's, which live longer than the call.
fn attributes_call(folder: &impl AsFd, request: usize, at: usize) -> Result<(), Errno> {
    let fd = raw::reg(folder.as_fd().as_raw_fd());
    // SAFETY: both callers pass the address of a struct fsxattr, writable where the kernel writes.
    unsafe { raw::call(libc::SYS_ioctl, [fd, request, at, 0, 0, 0]) }
        .map(drop)
        .map_err(Errno::from_raw)
}

/// Does the file system of this folder hold projects to their limits?
#[must_use]
pub fn is_enforced(folder: impl AsFd) -> bool {
    let mut state = State { version: STATE_VERSION, pad: 0, flags: 0, rest: [0; 39] };
    let asked = quotactl(&folder, GET_STATE, 0, (&raw mut state) as usize);
    asked.is_ok() && state.flags & ENFORCED != 0
}

/// Of the file system that the folder is on.
///
/// # Errors
/// Names the call.
pub fn usage(folder: impl AsFd, project: u32) -> Result<Usage, CallError> {
    let mut quota = Quota::default();
    match quotactl(&folder, GET_QUOTA, project, (&raw mut quota) as usize) {
        // XFS has never heard of it.
        Err(Errno::ENOENT) => return Ok(Usage::default()),
        answer => answer.call(|| format!("quotactl Q_GETQUOTA of project {project}"))?,
    }
    let limits = [quota.most_blocks, quota.soft_blocks, quota.most_files, quota.soft_files];
    let limited = limits != [0; 4];
    Ok(Usage { bytes: quota.bytes, files: quota.files, limited })
}

/// Bound what a project may take; 0 is no bound.
///
/// # Errors
/// Names the call. ESRCH or ENOSYS where no limits are enforced.
pub fn limit(folder: impl AsFd, project: u32, bytes: u64) -> Result<(), CallError> {
    let most_blocks = bytes.div_ceil(BLOCK);
    let quota = Quota { most_blocks, valid: LIMIT_OF_BLOCKS, ..Quota::default() };
    quotactl(&folder, SET_QUOTA, project, (&raw const quota) as usize)
        .call(|| format!("quotactl Q_SETQUOTA of project {project} to {bytes} bytes"))
}

/// `at` is the address of the structure that the command takes, which lives longer than the call.
fn quotactl(folder: &impl AsFd, command: usize, project: u32, at: usize) -> Result<(), Errno> {
    let (fd, project) = (raw::reg(folder.as_fd().as_raw_fd()), project as usize);
    // SAFETY: each caller passes the structure of its own command, writable where the kernel writes.
    unsafe { raw::call(QUOTACTL_FD, [fd, command, project, at, 0, 0]) }
        .map(drop)
        .map_err(Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<Quota>(), 72);
        assert_eq!(size_of::<State>(), 160);
    }

    #[test]
    fn procfs_has_no_projects() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(!is_enforced(&proc));
        assert_eq!(project(&proc).unwrap(), None);
        assert!(set_project(&proc, 7).is_err());
    }
}
