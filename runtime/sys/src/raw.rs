//! System calls without libc: they touch neither `errno` nor any other thread-local, so
//! they are fit for the time between clone and exec.

use std::ffi::CStr;

use nix::errno::Errno;

use crate::file::OpenHow;

/// The result of a raw call: the kernel answers a small negative number for an error.
pub(crate) type Answer = Result<i32, i32>;

#[cfg(target_arch = "x86_64")]
unsafe fn invoke(number: libc::c_long, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the syscall instruction clobbers rcx and r11 only (x86-64 psABI, A.2.1); what the
    // kernel does with the arguments is the caller's promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn invoke(number: libc::c_long, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: svc 0 preserves every register but x0; what the kernel does with the arguments
    // is the caller's promise.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number as isize,
            inlateout("x0") a[0] as isize => result,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack),
        );
    }
    result
}

/// No two living threads have the same; never 0. Where the C library keeps what belongs to a thread.
#[cfg(target_arch = "x86_64")]
pub(crate) fn thread() -> usize {
    let pointer;
    // SAFETY: the first word there is its own address (x86-64 psABI, TLS, variant 2).
    unsafe {
        std::arch::asm!(
            "mov {}, fs:[0]", out(reg) pointer, options(nostack, preserves_flags, readonly),
        );
    }
    pointer
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn thread() -> usize {
    let pointer;
    // SAFETY: it only reads a register.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}

/// # Safety
/// The arguments must be what the call takes: pointers valid for what the kernel reads or writes.
pub(crate) unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> Answer {
    const LAST_ERRNO: isize = 4095;
    // SAFETY: passed on to our caller.
    let result = unsafe { invoke(number, arguments) };
    if (-LAST_ERRNO..0).contains(&result) { Err(-result as i32) } else { Ok(result as i32) }
}

/// A call whose arguments are integers only: no memory of ours is touched by it.
pub(crate) fn plain(number: libc::c_long, arguments: [usize; 6]) -> Answer {
    // SAFETY: the callers in this crate pass integers (or null) only, which the kernel checks by itself.
    unsafe { call(number, arguments) }
}

/// A descriptor or other signed number as a register.
pub(crate) const fn reg(number: i32) -> usize {
    number as isize as usize
}

pub(crate) fn at(text: &CStr) -> usize {
    text.as_ptr() as usize
}

pub(crate) fn openat2(dir: i32, path: &CStr, how: &OpenHow) -> Result<i32, Errno> {
    open_how(dir, path, how).map_err(Errno::from_raw)
}

pub(crate) fn open_how(dir: i32, path: &CStr, how: &OpenHow) -> Answer {
    let size = size_of::<OpenHow>();
    let how = std::ptr::from_ref(how) as usize;
    // SAFETY: the path is a C string, `how` points to a struct of the size given; both outlive the call.
    unsafe { call(libc::SYS_openat2, [reg(dir), at(path), how, size, 0, 0]) }
}

pub(crate) fn close(fd: i32) -> Answer {
    plain(libc::SYS_close, [reg(fd), 0, 0, 0, 0, 0])
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = plain(libc::SYS_exit_group, [reg(code), 0, 0, 0, 0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::thread;

    #[test]
    fn a_thread_is_itself_and_no_other() {
        let other = std::thread::spawn(thread).join().unwrap();
        assert_eq!(thread(), thread());
        assert!(thread() != 0 && thread() != other);
    }
}
