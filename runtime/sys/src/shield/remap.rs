//! The running program, mapped anew from another file with the same content.
//!
//! A process may change what its `/proc/PID/exe` leads to (PR_SET_MM_MAP, prctl(2), Linux 3.18 with
//! CONFIG_CHECKPOINT_RESTORE) once nothing of the old file is mapped any more: the kernel looks through all mappings
//! itself. Code is mapped again from the new file, at the same addresses; data, which may have been written to, is moved
//! into memory that belongs to no file.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use crate::file::read_text;
use crate::raw::{plain, reg};
use crate::start::Stack;
use crate::{CallError, Context};

const STAT: &str = "/proc/self/stat";
const CALL: &str = "map our own program anew";

#[cfg(target_pointer_width = "64")]
type Header = libc::Elf64_Phdr;

/// Part of the program in memory, in whole pages.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    length: usize,
    offset: usize,
    protection: i32,
}

/// Go on from the file behind `copy`, which must be a mount of the same inode. After an error the program runs on as it
/// did, or from memory.
///
/// # Errors
/// EPERM without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, EINVAL where the kernel cannot do it or a second thread runs.
pub(super) fn go_on_from(copy: &OwnedFd) -> Result<(), CallError> {
    let layout = Layout::read()?;
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let file = File::open(&path).call(|| format!("open {path}"))?;
    for part in parts()? {
        if part.protection & libc::PROT_WRITE == 0 { map(&file, part) } else { lift(part) }
            .call(|| CALL.to_owned())?;
    }
    seal()?;
    layout.set(&file)
}

/// `prctl_mm_map` of linux/prctl.h.
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    /// Code, data, start of the heap: as proc_pid_stat(5) has them.
    code: [u64; 2],
    data: [u64; 2],
    heap: [u64; 2],
    stack: u64,
    arguments: [u64; 2],
    environment: [u64; 2],
    auxv: u64,
    auxv_size: u32,
    exe: i32,
}

impl Layout {
    /// What the kernel knows already, to be said again with another program file.
    fn read() -> Result<Self, CallError> {
        // With another thread beside this one it is refused (unshare(2)); else nothing is done.
        plain(libc::SYS_unshare, [libc::CLONE_THREAD as usize, 0, 0, 0, 0, 0]).map_err(|e| {
            CallError::errno(format!("{CALL} beside another thread"), Errno::from_raw(e))
        })?;
        Stack::of_this_program().map_or_else(Self::from_procfs, Self::from_headers)
    }

    /// As the kernel counts it when it loads a program: all of its parts are data, some are code as well.
    fn from_headers(stack: Stack) -> Result<Self, CallError> {
        let (mut code, mut data) = ([u64::MAX, 0], [0, 0]);
        for header in headers()?.iter().filter(|h| h.p_type == libc::PT_LOAD) {
            let (from, to) = (header.p_vaddr, header.p_vaddr + header.p_filesz);
            data = [data[0].max(from), data[1].max(to)];
            if header.p_flags & libc::PF_X != 0 {
                code = [code[0].min(from), code[1].max(to)];
            }
        }
        let pair = |pair: [usize; 2]| pair.map(|address| address as u64);
        let end = end_of_heap();
        Ok(Self {
            code,
            data,
            // Where it began nobody has noted: what is there now is not given back to the kernel.
            heap: [end, end],
            stack: stack.start as u64,
            arguments: pair(stack.arguments),
            environment: pair(stack.environment),
            ..Self::default()
        })
    }

    /// For whoever has a `main` of another kind.
    fn from_procfs() -> Result<Self, CallError> {
        let text = read_text(STAT.as_ref())?;
        // The second field is a name, which may hold blanks.
        let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<u64> =
            rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        Ok(Self {
            code: [field(26), field(27)],
            stack: field(28),
            data: [field(45), field(46)],
            heap: [field(47), end_of_heap()],
            arguments: [field(48), field(49)],
            environment: [field(50), field(51)],
            ..Self::default()
        })
    }

    fn set(mut self, program: &File) -> Result<(), CallError> {
        self.exe = program.as_raw_fd();
        let (number, size) = (libc::SYS_prctl, size_of::<Self>());
        let option = [libc::PR_SET_MM, libc::PR_SET_MM_MAP].map(reg);
        let arguments = [option[0], option[1], ptr::from_ref(&self) as usize, size, 0, 0];
        // SAFETY: `self` is a struct of the size given and outlives the call, which reads it.
        let answer = unsafe { crate::raw::call(number, arguments) };
        answer.map(drop).map_err(|e| CallError::errno("prctl PR_SET_MM_MAP", Errno::from_raw(e)))
    }
}

impl Default for Layout {
    /// No program, and the auxiliary vector as it is.
    fn default() -> Self {
        Self {
            code: [0; 2],
            data: [0; 2],
            heap: [0; 2],
            stack: 0,
            arguments: [0; 2],
            environment: [0; 2],
            auxv: 0,
            auxv_size: 0,
            exe: -1,
        }
    }
}

fn end_of_heap() -> u64 {
    // SAFETY: an increment of 0 only asks.
    unsafe { libc::sbrk(0) as u64 }
}

/// What the kernel has mapped of the program's file (elf(5), PT_LOAD).
fn parts() -> Result<Vec<Part>, CallError> {
    let loaded = headers()?.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_filesz > 0);
    Ok(loaded.map(Part::of).collect())
}

fn headers() -> Result<&'static [Header], CallError> {
    let (table, count) = (auxiliary(libc::AT_PHDR), auxiliary(libc::AT_PHNUM));
    if table == 0 {
        return Err(CallError::errno("getauxval AT_PHDR", Errno::ENOENT));
    }
    // SAFETY: the kernel gives the address and the number of the headers that it loaded the program by; they are part of
    // it, and nobody writes to them.
    let all = unsafe { std::slice::from_raw_parts(table as *const Header, count as usize) };
    let stays = |h: &&Header| h.p_type == libc::PT_PHDR && h.p_vaddr == table;
    match all.iter().find(stays) {
        Some(_) => Ok(all),
        None => {
            Err(CallError::errno(format!("{CALL} at other addresses than its own"), Errno::EINVAL))
        }
    }
}

impl Part {
    /// Without a base: the program stands at the addresses that its headers name.
    fn of(header: &Header) -> Self {
        let (from, to) = (header.p_vaddr as usize, (header.p_vaddr + header.p_filesz) as usize);
        let start = floor(from);
        let flag = |bit, protection| if header.p_flags & bit == 0 { 0 } else { protection };
        Self {
            start,
            length: floor(to + page() - 1) - start,
            offset: floor(header.p_offset as usize),
            protection: flag(libc::PF_R, libc::PROT_READ)
                | flag(libc::PF_W, libc::PROT_WRITE)
                | flag(libc::PF_X, libc::PROT_EXEC),
        }
    }
}

/// 0 for what the kernel did not say (getauxval(3)).
fn auxiliary(kind: u64) -> u64 {
    // SAFETY: it only looks.
    unsafe { libc::getauxval(kind) }
}

fn page() -> usize {
    auxiliary(libc::AT_PAGESZ) as usize
}

fn floor(address: usize) -> usize {
    address & !(page() - 1)
}

/// In place of the old mapping, in one step: there is no moment without code.
fn map(file: &File, part: Part) -> nix::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    let (start, offset) = (part.start as *mut c_void, part.offset as libc::off_t);
    // SAFETY: the pages hold the same bytes before and after: they are read-only parts of the program, and the file is
    // the one that they were loaded from.
    let mapped =
        unsafe { libc::mmap(start, part.length, part.protection, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Copy to memory of its own and move that to the old place.
fn lift(part: Part) -> nix::Result<()> {
    // All of it is written to.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping, wherever there is room.
    let copy = unsafe { libc::mmap(ptr::null_mut(), part.length, part.protection, flags, -1, 0) };
    if copy == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let old = part.start as *mut c_void;
    // SAFETY: both are `length` bytes long, the old ones as part of the program, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(old.cast::<u8>(), copy.cast::<u8>(), part.length) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the pages hold the same bytes before and after: there is no other thread, and this one has written to none
    // of them since they were copied.
    let moved = unsafe { libc::mremap(copy, part.length, part.length, flags, old) };
    if moved == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// Relocated data is read-only again, as the C library had left it (PT_GNU_RELRO).
fn seal() -> Result<(), CallError> {
    for header in headers()?.iter().filter(|h| h.p_type == libc::PT_GNU_RELRO) {
        let start = floor(header.p_vaddr as usize);
        let length = floor((header.p_vaddr + header.p_memsz) as usize) - start;
        let arguments = [start, length, reg(libc::PROT_READ), 0, 0, 0];
        plain(libc::SYS_mprotect, arguments)
            .map_err(|e| CallError::errno("mprotect", Errno::from_raw(e)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_kernel_tell_the_same() {
        let stack = Stack { start: 1, arguments: [2, 3], environment: [4, 5] };
        let (ours, kernels) =
            (Layout::from_headers(stack).unwrap(), Layout::from_procfs().unwrap());
        assert_eq!((ours.code, ours.data), (kernels.code, kernels.data));
        assert_eq!((ours.stack, ours.arguments, ours.environment), (1, [2, 3], [4, 5]));
    }

    #[test]
    fn refused_beside_another_thread() {
        // The harness runs each test in a thread beside its own.
        let refused = Layout::read().unwrap_err();
        assert!(refused.is(Errno::EINVAL), "{refused}");
    }
}
