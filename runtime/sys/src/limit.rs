//! Resource limits of another process (prlimit(2)).

use nix::errno::Errno;

use crate::{CallError, raw};

/// Raise a hard limit to `hard` if it is below; the soft limit stays.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE.
pub fn raise_hard(pid: i32, resource: u32, hard: u64) -> Result<(), CallError> {
    let call = || format!("prlimit {pid} resource {resource} hard {hard}");
    let failed = |errno| CallError::errno(call(), Errno::from_raw(errno));
    let mut limit = [0_u64; 2];
    let old = limit.as_mut_ptr() as usize;
    let which = resource as usize;
    // SAFETY: struct rlimit64 is two 64-bit numbers, soft first; the kernel fills it.
    unsafe { raw::call(libc::SYS_prlimit64, [raw::reg(pid), which, 0, old, 0, 0]) }
        .map_err(failed)?;
    if limit[1] >= hard {
        return Ok(());
    }
    limit[1] = hard;
    let new = limit.as_ptr() as usize;
    // SAFETY: as above; the kernel reads it.
    unsafe { raw::call(libc::SYS_prlimit64, [raw::reg(pid), which, new, 0, 0, 0]) }
        .map_err(failed)?;
    Ok(())
}
