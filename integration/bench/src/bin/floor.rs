//! `floor BUNDLE [--steps]`: the cost of one container to the kernel.
//!
//! Executes `BUNDLE/floor.plan`, a list of system calls that `bench-launch` wrote
//! (format: `src/format.rs`), and ends with the exit code of the container. It reads no
//! configuration, keeps no state and handles no failure: a runtime cannot be faster
//! than this without asking the kernel for less.
//!
//! With `--steps` the times of the calls are left in the plan file.

#![allow(unsafe_code, reason = "raw system calls are what is measured, see DECISIONS.md")]
#![no_main]

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::ptr;

use hafen_bench::format::{BASE, CALL_SIZE, CALLS, Call, Header, MAGIC, RETRY_BUSY, SIZE};

// Called by the C library: the start-up of Rust's runtime (signal handlers, an
// alternate stack, checks of the standard streams) would be measured too.
//
// SAFETY: the C library calls `main` once, and nothing else here has that name.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let timed = argc == 3;
    let result = if argc == 2 || timed {
        // SAFETY: argc says that argv[1] exists.
        let bundle = unsafe { argv.add(1) };
        // SAFETY: as above; it points to a string of the process's arguments.
        let bundle = unsafe { *bundle };
        map_plan(bundle, timed).map_err(|e| format!("floor.plan: {e}")).and_then(|()| run(timed))
    } else {
        Err("usage: floor BUNDLE [--steps]".into())
    };
    let Err(message) = result;
    eprintln!("floor: {message}");
    124
}

/// Never returns `Ok`: the last call of parent and child replaces or ends the process.
fn run(timed: bool) -> Result<std::convert::Infallible, String> {
    // SAFETY: `map_plan` has mapped SIZE bytes at BASE, which is aligned to a page.
    let header = unsafe { ptr::read(BASE as *const Header) };
    if header.magic != MAGIC {
        return Err("floor.plan: not a plan of this version".into());
    }
    let mut index = 0;
    while index < header.calls {
        let call = (BASE as usize + CALLS + index as usize * CALL_SIZE) as *mut Call;
        let result = perform(call, timed)?;
        index += 1;
        if index == header.child && result != 0 {
            index = header.parent;
        }
    }
    Err("floor.plan: the last call returned".into())
}

fn map_plan(bundle: *const c_char, timed: bool) -> io::Result<()> {
    // SAFETY: `bundle` is argv[1], a C string that lives as long as the process.
    done(unsafe { libc::chdir(bundle) })?;
    let (mode, sharing) = match timed {
        true => (libc::O_RDWR, libc::MAP_SHARED),
        false => (libc::O_RDONLY, libc::MAP_PRIVATE),
    };
    // SAFETY: the path is a C string literal.
    let file = unsafe { libc::open(c"floor.plan".as_ptr(), mode | libc::O_CLOEXEC) };
    done(file)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = sharing | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE (Linux 4.17) fails rather than touch what is mapped.
    let at = unsafe { libc::mmap(BASE as *mut _, SIZE, protection, flags, file, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes one call of the plan. `call` points into the mapping made by `map_plan`.
fn perform(call: *mut Call, timed: bool) -> Result<i64, String> {
    // SAFETY: `run` computes `call` from an index below the count in the header, and
    // the assembler leaves room for that many calls in the file.
    let todo = unsafe { ptr::read(call) };
    let began = if timed { now() } else { 0 };
    let (result, retries) = issue(&todo);
    if timed {
        // A call that does not return (exec, exit) keeps the zero it had: `bench-launch`
        // takes its start from the end of the call before it.
        let done = Call { began, ended: now(), retries, ..todo };
        // SAFETY: as above, and the mapping is writable; parent and child write
        // different calls.
        unsafe { ptr::write(call, done) };
    }
    if result < 0 {
        return Err(describe(&todo));
    }
    if todo.store != 0 {
        // SAFETY: the assembler stores into cells and structures of the plan, at fields
        // of this size, which are aligned.
        unsafe { ptr::write(todo.store as *mut i32, result as i32) };
    }
    Ok(result)
}

fn issue(call: &Call) -> (i64, u64) {
    let [a, b, c, d, e, f] = std::array::from_fn(|n| argument(call, n));
    let mut retries = 0;
    loop {
        // SAFETY: the plan is written by `bench-launch` for this run. Every pointer in it
        // is an address inside the mapping, and the kernel writes only into cells of
        // the plan; no memory that Rust owns is reachable from the arguments.
        let result = unsafe { libc::syscall(call.number, a, b, c, d, e, f) };
        let busy = result < 0 && last_error().raw_os_error() == Some(libc::EBUSY);
        if !busy || call.flags & RETRY_BUSY == 0 {
            return (result, retries);
        }
        retries += 1;
    }
}

fn argument(call: &Call, n: usize) -> u64 {
    let value = call.arguments[n];
    if call.loads & (1 << n) == 0 {
        return value;
    }
    // SAFETY: the assembler sets the bit only for cells of the plan, which are aligned.
    i64::from(unsafe { ptr::read(value as *const i32) }) as u64
}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

fn describe(call: &Call) -> String {
    let error = last_error();
    // SAFETY: the assembler gives every call a label, a C string inside the plan.
    let label = unsafe { CStr::from_ptr(call.label as *const c_char) };
    format!("{}: {error}", label.to_string_lossy())
}
