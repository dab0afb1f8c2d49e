//! What this kernel knows of seccomp(2).

use crate::raw::{call, plain};

const SET_MODE_FILTER: usize = 1;
const GET_ACTION_AVAIL: usize = 2;
const NEW_LISTENER: u32 = 1 << 3;
/// Taken together with the flag above only.
const WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Does the kernel know all these SECCOMP_FILTER_FLAG_* bits? Nothing is installed: there is no program.
#[must_use]
pub fn knows_flags(flags: u32) -> bool {
    let with = if flags & WAIT_KILLABLE_RECV == 0 { 0 } else { NEW_LISTENER };
    let flags = (flags | with) as usize;
    // A null program is looked at after the flags.
    plain(libc::SYS_seccomp, [SET_MODE_FILTER, flags, 0, 0, 0, 0]) == Err(libc::EFAULT)
}

/// Does the kernel know this SECCOMP_RET_* action (Linux 4.14)?
#[must_use]
pub fn knows_action(action: u32) -> bool {
    let pointer = std::ptr::from_ref(&action) as usize;
    // SAFETY: a 32-bit number, alive across the call.
    let answer = unsafe { call(libc::SYS_seccomp, [GET_ACTION_AVAIL, 0, pointer, 0, 0, 0]) };
    answer == Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown() {
        assert!(knows_flags(0) && knows_flags(1 << 1));
        assert!(!knows_flags(1 << 30));
        assert!(knows_action(0x7fff_0000));
        assert!(!knows_action(0x1234_0000));
    }
}
