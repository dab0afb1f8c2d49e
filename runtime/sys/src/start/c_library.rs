//! The start of the C library without its questions to the processor.
//!
//! A static program of glibc 2.36 asks CPUID some seventy times what the processor and its caches are, to choose among
//! its functions for strings. Each time a virtual machine is left, which takes 1 to 10 us: up to a tenth of a launch,
//! which copies little. Here everything else of `__libc_start_main` (csu/libc-start.c) is done in the same order, and the
//! library takes its plain functions, as on a processor that it does not know. `build.rs` says where the library is that
//! one; elsewhere it starts by itself.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ptr;

pub type Main = extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// What the library itself would take where a cache has an unknown size (sysdeps/x86/cacheinfo.h), in bytes.
pub const DATA_CACHE: c_long = 32 << 10;
pub const SHARED_CACHE: c_long = 1 << 20;
/// From here on the cache is passed by.
pub const NON_TEMPORAL: c_long = SHARED_CACHE / 4 * 3;
pub const REPEATED: c_long = 2 << 10;

/// Of elf(5): what the library takes its functions by.
#[repr(C)]
struct Relocation {
    place: *mut usize,
    _kind: u64,
    choose: extern "C" fn() -> usize,
}

/// What is called before `main`.
type Begin = unsafe extern "C" fn(c_int, *mut *const c_char, *mut *const c_char);
type End = unsafe extern "C" fn();

unsafe extern "C" {
    static mut environ: *mut *const c_char;
    static mut __libc_stack_end: *mut c_void;
    static _dl_random: *const usize;
    static __libc_enable_secure: c_int;
    // The linker's names for where lists begin and end.
    static __rela_iplt_start: u8;
    static __rela_iplt_end: u8;
    static __preinit_array_start: u8;
    static __preinit_array_end: u8;
    static __init_array_start: u8;
    static __init_array_end: u8;
    static __fini_array_start: u8;
    static __fini_array_end: u8;

    fn _dl_aux_init(auxiliary: *mut *const c_char);
    fn __tunables_init(environment: *mut *const c_char);
    fn __libc_setup_tls();
    fn __libc_early_init(first: bool);
    fn __libc_init_first(
        count: c_int,
        arguments: *mut *const c_char,
        environment: *mut *const c_char,
    );
    fn __libc_check_standard_fds();
    fn __cxa_atexit(act: extern "C" fn(*mut c_void), with: *mut c_void, of: *mut c_void) -> c_int;
    fn _init();
    fn _fini();
}

/// `__libc_start_main`. Until there is thread-local storage nothing here may use it.
///
/// # Safety
/// Called once and before all else, by the `_start` of the library, with what the kernel left on the stack.
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "only as a whole is it right or wrong")]
pub unsafe fn start(
    main: Main,
    count: c_int,
    arguments: *mut *const c_char,
    stack: *mut c_void,
) -> ! {
    // SAFETY: the library's own functions in the library's own order; arguments, environment and auxiliary vector are
    // lists that end with null and lie one behind the other.
    unsafe {
        let environment = after(arguments);
        environ = environment;
        __libc_stack_end = stack;
        _dl_aux_init(after(environment));
        __tunables_init(environment);
        for one in between::<Relocation>(&raw const __rela_iplt_start, &raw const __rela_iplt_end) {
            *one.place = (one.choose)();
        }
        __libc_setup_tls();
        // Sixteen bytes that the kernel put anywhere.
        guard(_dl_random.read_unaligned(), _dl_random.add(1).read_unaligned());
        __libc_early_init(true);
        __libc_init_first(count, arguments, environment);
        __cxa_atexit(end, ptr::null_mut(), ptr::null_mut());
        if __libc_enable_secure != 0 {
            __libc_check_standard_fds();
        }
        for begin in
            between::<Begin>(&raw const __preinit_array_start, &raw const __preinit_array_end)
        {
            begin(count, arguments, environment);
        }
        _init();
        for begin in between::<Begin>(&raw const __init_array_start, &raw const __init_array_end) {
            begin(count, arguments, environment);
        }
        libc::exit(main(count, arguments))
    }
}

#[expect(clippy::multiple_unsafe_ops_per_block, reason = "as above")]
extern "C" fn end(_: *mut c_void) {
    // SAFETY: the linker's list of functions without arguments, last to first.
    unsafe {
        for end in
            between::<End>(&raw const __fini_array_start, &raw const __fini_array_end).iter().rev()
        {
            end();
        }
        _fini();
    }
}

/// What follows the null of a list.
///
/// # Safety
/// The list has one.
unsafe fn after(mut list: *mut *const c_char) -> *mut *const c_char {
    // SAFETY: inside the list.
    while !unsafe { *list }.is_null() {
        // SAFETY: there is at least the null behind it.
        list = unsafe { list.add(1) };
    }
    // SAFETY: one behind the last is not looked at here.
    unsafe { list.add(1) }
}

/// # Safety
/// From `first` to `end` there is an array of `T`.
unsafe fn between<T>(first: *const u8, end: *const u8) -> &'static [T] {
    let count = (end as usize - first as usize) / size_of::<T>();
    // SAFETY: by our caller's promise.
    unsafe { std::slice::from_raw_parts(first.cast(), count) }
}

/// What functions of the library put below their return address, and what it hides pointers with (tcbhead_t,
/// sysdeps/x86_64/nptl/tls.h).
///
/// # Safety
/// There is thread-local storage, and nothing that was called since looks at its guards again.
unsafe fn guard(stack: usize, pointer: usize) {
    // A string cannot have the zero byte, so it cannot be copied over this.
    let stack = stack & !0xff;
    // SAFETY: both are words of the thread's own header.
    unsafe {
        std::arch::asm!(
            "mov fs:[0x28], {}", "mov fs:[0x30], {}", in(reg) stack, in(reg) pointer,
            options(nostack, preserves_flags),
        );
    }
}
