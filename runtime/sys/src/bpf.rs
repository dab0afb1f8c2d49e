//! eBPF programs that decide about access to devices (bpf(2), Linux 4.15 for this kind).

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::CallError;

/// One instruction: `struct bpf_insn` of include/uapi/linux/bpf.h, on a little-endian machine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    pub code: u8,
    /// Destination in the low half, source in the high half.
    pub registers: u8,
    /// Of a jump: instructions to skip, counted from the next one. Of a load: bytes.
    pub offset: i16,
    pub immediate: i32,
}

/// Opcodes by what they do (Documentation/bpf/standardization/instruction-set.rst). The arithmetic and the
/// comparisons are those of 32 bits, so that numbers above `i32::MAX` compare as they are written.
pub mod code {
    /// `dst = *(u32 *)(src + offset)`
    pub const LOAD: u8 = 0x61;
    /// `dst = immediate`
    pub const SET: u8 = 0xb4;
    /// `dst = src`
    pub const COPY: u8 = 0xbc;
    /// `dst &= immediate`
    pub const AND: u8 = 0x54;
    /// `dst |= src`
    pub const OR: u8 = 0x4c;
    /// `dst <<= immediate`
    pub const SHIFT_LEFT: u8 = 0x64;
    /// `dst >>= immediate`
    pub const SHIFT_RIGHT: u8 = 0x74;
    /// Jump if `dst == immediate`
    pub const JUMP_EQUAL: u8 = 0x16;
    /// Jump if `dst != immediate`
    pub const JUMP_UNEQUAL: u8 = 0x56;
    /// Jump if `dst` and `immediate` have a bit in common
    pub const JUMP_COMMON: u8 = 0x46;
    /// Jump always (the 64-bit class: the 32-bit one of this opcode means something else).
    pub const JUMP: u8 = 0x05;
    /// Return register 0.
    pub const EXIT: u8 = 0x95;
}

impl Insn {
    /// With one register and a number.
    #[must_use]
    pub const fn number(code: u8, register: u8, immediate: u32) -> Self {
        Self { code, registers: register, offset: 0, immediate: immediate as i32 }
    }

    /// From one register to another; `offset` in bytes for a load.
    #[must_use]
    pub const fn between(code: u8, to: u8, from: u8, offset: i16) -> Self {
        Self { code, registers: to | from << 4, offset, immediate: 0 }
    }

    /// Over the next `skip` instructions, by comparing a register with a number.
    #[must_use]
    pub const fn branch(code: u8, register: u8, immediate: u32, skip: i16) -> Self {
        Self { code, registers: register, offset: skip, immediate: immediate as i32 }
    }
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Other programs, above or beside, keep their say: access needs the consent of all.
const ALLOW_MULTI: u32 = 1 << 1;
/// Exchange a program for another in one step (Linux 5.6).
const REPLACE: u32 = 1 << 2;
/// The kernel attaches no more to one cgroup (`BPF_CGROUP_MAX_PROGS`, include/linux/bpf-cgroup.h).
const MOST_PROGRAMS: usize = 64;
/// The program calls no helper, so any licence will do for the kernel.
const LICENCE: &CStr = c"Apache-2.0";
const NAME: &[u8; 16] = b"hafen_devices\0\0\0";
/// What the verifier has to say about a refused program; its last line is the reason.
const LOG_BYTES: usize = 1 << 16;

/// `union bpf_attr` for BPF_PROG_LOAD, as far as it is used here.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
struct Attach {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
    replaced: i32,
}

/// `union bpf_attr` for BPF_PROG_QUERY.
#[repr(C)]
struct Query {
    target: i32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct Ask {
    program: i32,
    length: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    before: [u64; 8],
    name: [u8; 16],
}

/// Load a program of type BPF_PROG_TYPE_CGROUP_DEVICE. Its context is `struct bpf_cgroup_dev_ctx`; it returns 1 to
/// allow, 0 to deny. Needs CAP_BPF, or CAP_SYS_ADMIN (capabilities(7)).
///
/// # Errors
/// EPERM without the capability; EINVAL or EACCES, with the verifier's words, for a program it refuses.
pub fn load_device_program(program: &[Insn]) -> Result<OwnedFd, CallError> {
    let call = || format!("load a device program of {} instructions", program.len());
    match load(program, &mut []) {
        Ok(fd) => Ok(fd),
        Err(e @ (Errno::EINVAL | Errno::EACCES | Errno::E2BIG)) => {
            let mut log = vec![0; LOG_BYTES];
            load(program, &mut log)
                .map_err(|_| CallError::errno(format!("{} ({})", call(), last_line(&log)), e))
        }
        Err(e) => Err(CallError::errno(call(), e)),
    }
}

fn load(program: &[Insn], log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        instructions: program.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(|_| Errno::E2BIG)?,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        name: *NAME,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        ..Load::default()
    };
    let size = size_of::<Load>();
    // SAFETY: the kernel reads `size` bytes of the struct and, through it, the instructions and a C string, and
    // writes at most `log_size` bytes to the log; all of them are borrowed for the whole call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The log ends with a few lines of statistics ("processed 3 insns ...") after the reason.
fn last_line(log: &[u8]) -> String {
    let text = log.split(|b| *b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let reason = text.lines().rfind(|l| !l.is_empty() && !l.starts_with("processed "));
    reason.unwrap_or("the verifier is silent").to_owned()
}

/// Attach a device program to a cgroup of the cgroup2 tree, beside those that are there already. It stays as long as
/// the cgroup does; the descriptor may be closed.
///
/// # Errors
/// Of the kernel.
pub fn attach(program: impl AsFd, cgroup: impl AsFd) -> Result<(), CallError> {
    let mut attach = Attach::new(&program, &cgroup, ALLOW_MULTI);
    call(PROG_ATTACH, &mut attach, "attach the device program to a cgroup")
}

/// Exchange one attached device program for another: at no moment is there neither.
///
/// # Errors
/// Of the kernel; ENOENT if `old` is not attached there.
pub fn replace(old: impl AsFd, new: impl AsFd, cgroup: impl AsFd) -> Result<(), CallError> {
    let mut attach = Attach::new(&new, &cgroup, ALLOW_MULTI | REPLACE);
    attach.replaced = old.as_fd().as_raw_fd();
    call(PROG_ATTACH, &mut attach, "replace the device program of a cgroup")
}

/// Take a device program off a cgroup.
///
/// # Errors
/// Of the kernel; ENOENT if it is not attached there.
pub fn detach(program: impl AsFd, cgroup: impl AsFd) -> Result<(), CallError> {
    let mut attach = Attach::new(&program, &cgroup, 0);
    call(PROG_DETACH, &mut attach, "detach the device program from a cgroup")
}

/// The device program that [`attach`] put on a cgroup, told by its name from those of others.
///
/// # Errors
/// Of the kernel.
pub fn attached(cgroup: impl AsFd) -> Result<Option<OwnedFd>, CallError> {
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut query = Query {
        target: cgroup.as_fd().as_raw_fd(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        padding: 0,
    };
    call(PROG_QUERY, &mut query, "list the device programs of a cgroup")?;
    for id in ids.into_iter().take_while(|id| *id != 0) {
        match by_id(id) {
            Ok(program) if is_ours(&program)? => return Ok(Some(program)),
            // Gone by now.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(CallError::errno(format!("open BPF program {id}"), e)),
        }
    }
    Ok(None)
}

fn by_id(id: u32) -> Result<OwnedFd, Errno> {
    // `union bpf_attr` for BPF_PROG_GET_FD_BY_ID: id, next id, open flags.
    let attributes = [id, 0, 0];
    // SAFETY: the kernel reads as many bytes as the array has.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_GET_FD_BY_ID,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_ours(program: &OwnedFd) -> Result<bool, CallError> {
    let mut info = Info::default();
    let mut ask = Ask {
        program: program.as_raw_fd(),
        length: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut ask, "ask for the name of a BPF program")?;
    Ok(info.name == *NAME)
}

impl Attach {
    fn new(program: &impl AsFd, cgroup: &impl AsFd, flags: u32) -> Self {
        Self {
            target: cgroup.as_fd().as_raw_fd(),
            program: program.as_fd().as_raw_fd(),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            flags,
            replaced: 0,
        }
    }
}

/// What a pointer inside `attributes` leads to must be as large as they say, and outlive the call.
fn call<T>(command: libc::c_int, attributes: &mut T, what: &str) -> Result<(), CallError> {
    // SAFETY: the kernel reads (and, of a query, writes) `size_of::<T>` bytes of a struct that lives across the call;
    // what it points to is a local array or struct of the caller's, whose length it says.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        Err(e) => Err(CallError::errno(what, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_layout() {
        assert_eq!(size_of::<Insn>(), 8);
        assert_eq!(std::mem::offset_of!(Load, log), 32);
        assert_eq!(std::mem::offset_of!(Load, name), 48);
        assert_eq!(std::mem::offset_of!(Load, attach_type), 68);
        assert_eq!(size_of::<Load>(), 72);
        assert_eq!(size_of::<Attach>(), 20);
        assert_eq!(std::mem::offset_of!(Query, count), 24);
        assert_eq!(size_of::<Ask>(), 16);
        assert_eq!(size_of::<Info>(), 80);
    }

    #[test]
    fn the_reason_is_the_last_line_before_the_statistics() {
        let log = b"0: (95) exit\nR0 !read_ok\nprocessed 1 insns (limit 1000000)\n\0\0\0";
        assert_eq!(last_line(log), "R0 !read_ok");
        assert_eq!(last_line(b"\0"), "the verifier is silent");
    }
}
