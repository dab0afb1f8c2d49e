//! The start of a program without that of Rust's runtime.
//!
//! That one reads `/proc/self/maps` to find the end of the stack and installs handlers on a stack of their own, so that
//! an overflow is told in words: a fiftieth of a launch. What else it does is done here.

#[cfg(known_libc)]
pub mod c_library;

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::raw;

/// Where the kernel put the arguments (execve(2)); null where the program was started otherwise.
static ARGUMENTS: AtomicPtr<*const c_char> = AtomicPtr::new(std::ptr::null_mut());

/// Declare the function that the program begins with, which answers its exit code. The file needs `#![no_main]`.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        $crate::libc_start!();

        // SAFETY: the C library calls `main` once, with the arguments that the kernel gave, and nothing else has the name.
        #[unsafe(no_mangle)]
        extern "C" fn main(
            _: ::std::ffi::c_int,
            arguments: *mut *const ::std::ffi::c_char,
        ) -> ::std::ffi::c_int {
            $crate::start::run(arguments, $main)
        }
    };
}

/// For [`program!`]: what the C library has in the same file, so that the file is left out.
#[cfg(known_libc)]
#[doc(hidden)]
#[macro_export]
macro_rules! libc_start {
    () => {
        // SAFETY: the library's `_start` calls this function, and nothing else does.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn __libc_start_main(
            main: $crate::start::c_library::Main,
            count: ::std::ffi::c_int,
            arguments: *mut *const ::std::ffi::c_char,
            _: usize,
            _: usize,
            _: usize,
            stack: *mut ::std::ffi::c_void,
        ) -> ! {
            // SAFETY: our caller is that `_start`.
            unsafe { $crate::start::c_library::start(main, count, arguments, stack) }
        }
        $crate::libc_start! {
            __x86_data_cache_size = DATA_CACHE,
            __x86_data_cache_size_half = DATA_CACHE / 2,
            __x86_shared_cache_size = SHARED_CACHE,
            __x86_shared_cache_size_half = SHARED_CACHE / 2,
            __x86_shared_non_temporal_threshold = NON_TEMPORAL,
            __x86_rep_movsb_threshold = REPEATED,
            __x86_rep_stosb_threshold = REPEATED,
            __x86_rep_movsb_stop_threshold = NON_TEMPORAL,
            __x86_string_control = 0,
        }
    };
    ($($name:ident = $value:expr,)*) => {
        $(
            // SAFETY: the library's functions for strings read a word of this name.
            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals)]
            static $name: ::std::ffi::c_long = {
                #[allow(unused_imports)]
                use $crate::start::c_library::{DATA_CACHE, NON_TEMPORAL, REPEATED, SHARED_CACHE};
                $value
            };
        )*
    };
}

/// The C library starts by itself.
#[cfg(not(known_libc))]
#[doc(hidden)]
#[macro_export]
macro_rules! libc_start {
    () => {};
}

/// For [`program!`].
pub fn run(arguments: *mut *const c_char, main: fn() -> u8) -> c_int {
    ARGUMENTS.store(arguments, Ordering::Relaxed);
    hold_standard_descriptors();
    // Whoever reads what we print may go away: a write fails then, and is told like every failure.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // What is still to be printed is, and nothing is taken apart.
    std::process::exit(main().into())
}

/// The stack is about to be used as deep as a launch needs it: have memory for it in one call instead of a page fault for
/// each page (MADV_POPULATE_WRITE, Linux 5.14). Where it fails the page faults happen.
pub fn hasten_stack() {
    const PAGE: usize = 4096;
    // A stack begins with 128 KiB (setup_arg_pages, fs/exec.c), and grows by faults only.
    const DEPTH: usize = 96 << 10;
    let here = 0_u8;
    let end = &raw const here as usize & !(PAGE - 1);
    let arguments = [end - DEPTH, DEPTH, raw::reg(libc::MADV_POPULATE_WRITE), 0, 0, 0];
    // It changes no byte of the stack.
    let _ = raw::plain(libc::SYS_madvise, arguments);
}

/// A file that is opened later must not become stdin, stdout or stderr.
fn hold_standard_descriptors() {
    let mut all = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: three entries, which outlive the call.
    unsafe { libc::poll(all.as_mut_ptr(), 3, 0) };
    for _ in all.iter().filter(|one| one.revents & libc::POLLNVAL != 0) {
        // The lowest number that is free is the first that is missing.
        // SAFETY: a C string.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } < 0 {
            raw::exit(1);
        }
    }
}

/// Addresses that the kernel knows of the start of a program (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    pub(crate) start: usize,
    pub(crate) arguments: [usize; 2],
    pub(crate) environment: [usize; 2],
}

impl Stack {
    /// `None` where the kernel's arguments are not known.
    pub(crate) fn of_this_program() -> Option<Self> {
        let arguments = ARGUMENTS.load(Ordering::Relaxed);
        if arguments.is_null() {
            return None;
        }
        // SAFETY: a list of C strings that ends with null, at the start of the stack: the kernel's own, which live as long
        // as the process.
        let (first, end, after) = unsafe { span(arguments) }?;
        // SAFETY: the list of the environment begins behind the null of that of the arguments (x86-64 psABI, 3.4.1;
        // alike on all of Linux).
        let environment = unsafe { span(after) };
        let environment = environment.map_or([end, end], |(first, end, _)| [first, end]);
        // The number of arguments is before them, where the stack began.
        let start = arguments as usize - size_of::<usize>();
        Some(Self { start, arguments: [first, end], environment })
    }
}

/// Where the strings of a list begin and end, and what is behind the list; `None` for an empty one.
///
/// # Safety
/// The list ends with null, and its strings lie one after the other in memory that nobody writes to.
unsafe fn span(list: *mut *const c_char) -> Option<(usize, usize, *mut *const c_char)> {
    let (mut next, mut last) = (list, std::ptr::null());
    loop {
        // SAFETY: inside the list, or its null.
        let one = unsafe { *next };
        // SAFETY: the null is part of the list; what is behind it is not looked at here.
        next = unsafe { next.add(1) };
        if one.is_null() {
            break;
        }
        last = one;
    }
    if last.is_null() {
        return None;
    }
    // SAFETY: the list is not empty.
    let first = unsafe { *list };
    // SAFETY: a C string.
    let length = unsafe { std::ffi::CStr::from_ptr(last) }.count_bytes() + 1;
    Some((first as usize, last as usize + length, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_what_is_behind_their_list() {
        let text = *b"one\0two\0A=b\0";
        let at = |offset: usize| text[offset..].as_ptr().cast::<c_char>();
        let null = std::ptr::null();
        let mut list = [at(0), at(4), null, at(8), null, null];
        let start = list.as_mut_ptr();
        // SAFETY: lists that end with null, of strings in one array.
        let (first, end, after) = unsafe { span(start) }.unwrap();
        assert_eq!((first, end), (at(0) as usize, at(0) as usize + 8));
        // SAFETY: as above.
        let (first, end, after) = unsafe { span(after) }.unwrap();
        assert_eq!((first, end), (at(8) as usize, at(8) as usize + 4));
        // SAFETY: as above.
        assert!(unsafe { span(after) }.is_none());
    }
}
