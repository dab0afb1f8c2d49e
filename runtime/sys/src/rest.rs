//! Memory of a program that mostly waits.

use std::ffi::c_void;
use std::os::raw::c_int;

const PAGE: usize = 4096;

/// Give back what is mapped of our own program's code and constants, and what the stack has been: what is needed again is
/// mapped again out of the page cache, some pages at a time. For a program that has done much and waits now, and to be
/// called right before it does; all that ran once would count as its own otherwise, for as long as no other process runs
/// the same program.
/// Only the first thread's stack is forgotten.
pub fn forget() {
    forget_program();
    if nix::unistd::gettid() == nix::unistd::getpid() {
        forget_stack();
    }
}

fn forget_program() {
    // First all of them: each function that runs after the first call is mapped again.
    let mut found = Segments::default();
    // SAFETY: the callback has the type that is wanted, and what it is given outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(find_segments), (&raw mut found).cast()) };
    for (start, length) in found.list {
        // SAFETY: a private mapping of a file, of a segment that nobody may write to: its pages are those of the file,
        // which the kernel lets nobody write as long as it runs (ETXTBSY), and come back as they were.
        unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Where they are and how long; empty ones are none.
#[derive(Default)]
struct Segments {
    list: [(usize, usize); 4],
}

/// Below what is in use now, and below the frames of the call that does it.
fn forget_stack() {
    const MARGIN: usize = 16 << 10;
    const MOST: usize = 1 << 20;
    let here = 0_u8;
    let end = (&raw const here as usize - MARGIN) & !(PAGE - 1);
    // SAFETY: this is the first thread (`forget` has looked), whose stack grows downwards. Nothing is alive below the last
    // frame, which is less than the margin away. Below the stack the kernel leaves at least 128 MiB free of mappings of its
    // choice (mmap_base), and nobody here chooses addresses; what is not mapped is passed over.
    unsafe { libc::madvise((end - MOST) as *mut c_void, MOST, libc::MADV_DONTNEED) };
}

/// The first object is the program itself (`dl_iterate_phdr(3)`); the answer ends the walk.
unsafe extern "C" fn find_segments(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    found: *mut c_void,
) -> c_int {
    // SAFETY: `forget_program` gave it, which waits for us and looks at it after that.
    let found = unsafe { &mut *found.cast::<Segments>() };
    // SAFETY: the C library hands over a structure that lives across this call.
    let info = unsafe { &*info };
    // SAFETY: so many headers are there, in memory that is never changed.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let never_written =
        |h: &&libc::Elf64_Phdr| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0;
    for (place, header) in found.list.iter_mut().zip(headers.iter().filter(never_written)) {
        let from = usize::try_from(info.dlpi_addr + header.p_vaddr).unwrap_or_default();
        let start = from & !(PAGE - 1);
        *place = (start, from - start + usize::try_from(header.p_memsz).unwrap_or_default());
    }
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_forgotten_comes_back() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        super::forget_program();
        let after = resident();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
