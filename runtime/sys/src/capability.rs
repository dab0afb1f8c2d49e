//! Our own capabilities, as masks (capabilities(7)).

use crate::raw;

/// Nothing where the kernel does not say.
#[must_use]
pub fn effective() -> u64 {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; twice: the second time for the higher numbers.
    let mut data = [0_u32; 6];
    let arguments = [header.as_ptr() as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: header and data as capget(2) wants them for version 3, alive across the call.
    let _ = unsafe { raw::call(libc::SYS_capget, arguments) };
    u64::from(data[0]) | u64::from(data[3]) << 32
}

/// The bounding set, and the last capability that this kernel knows.
#[must_use]
pub fn bounding() -> (u64, u32) {
    let (mut mask, mut last) = (0, 0);
    for cap in 0..u64::BITS {
        match raw::plain(
            libc::SYS_prctl,
            [libc::PR_CAPBSET_READ as usize, cap as usize, 0, 0, 0, 0],
        ) {
            Ok(holds) => mask |= u64::from(holds == 1) << cap,
            Err(_) => break,
        }
        last = cap;
    }
    (mask, last)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_same_as_in_procfs() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field = |name| status.lines().find_map(|l: &str| l.strip_prefix(name)).unwrap();
        let mask = |name| u64::from_str_radix(field(name).trim(), 16).unwrap();
        let (bounding, last) = super::bounding();
        assert_eq!((super::effective(), bounding), (mask("CapEff:"), mask("CapBnd:")));
        let known = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert_eq!(last.to_string(), known.trim());
    }
}
