//! `stopwatch [--all] TIMEOUT_MS COVER WITH PROGRAM ARG...`: runs a program and prints
//! `wall_ns user_us sys_us peak_kib (exit|signal|timeout) N` on one line.
//!
//! A process keeps the peak memory of the program image that it was before exec
//! (`exec_mmap` in the kernel), so whatever starts the measured program sets a lower
//! bound to what is measured. Hence this small program between `bench-launch` and it.
//!
//! What a program that fails or is killed leaves running is killed too.
//!
//! With `--all` it is over when everything has ended that the program has left running, and the resources are of all.
//!
//! The program gets /dev/null as stdin and stdout. When COVER is not `-`, it runs in a mount
//! namespace of its own in which the file WITH covers the file COVER.

#![allow(unsafe_code, reason = "wait4 and posix_spawn, see DECISIONS.md")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::ptr;

unsafe extern "C" {
    static environ: *const *mut c_char;
}

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("stopwatch: {message}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<String, String> {
    let words: Result<Vec<CString>, _> =
        std::env::args_os().skip(1).map(|a| CString::new(a.into_vec())).collect();
    let words = words.map_err(|e| e.to_string())?;
    let all = words.first().is_some_and(|word| word.as_bytes() == b"--all");
    let [timeout, cover, with, program @ ..] = &words[usize::from(all)..] else {
        return Err("usage: stopwatch [--all] TIMEOUT_MS COVER WITH PROGRAM ARG...".into());
    };
    let timeout = timeout.to_str().ok().and_then(|t| t.parse().ok()).ok_or("bad TIMEOUT_MS")?;
    if cover.as_bytes() != b"-" {
        cover_file(cover, with).map_err(|e| format!("cover {}: {e}", cover.to_string_lossy()))?;
    }
    let mut argv: Vec<*mut c_char> = program.iter().map(|a| a.as_ptr().cast_mut()).collect();
    argv.push(ptr::null_mut());
    measure(&argv, timeout, all)
}

fn measure(argv: &[*mut c_char], timeout_ms: c_int, all: bool) -> Result<String, String> {
    let actions = null_stdio()?;
    adopt_orphans();
    let began = now();
    let pid = spawn(argv, &actions)?;
    let mut in_time = wait_exit(pid, timeout_ms).map_err(|e| format!("wait for {pid}: {e}"))?;
    if !in_time {
        // SAFETY: `pid` is our child and not yet waited for, so nobody else has the number.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let (status, mut usage) = reap(pid).map_err(|e| format!("wait4 {pid}: {e}"))?;
    if all && in_time && status == 0 {
        let left = i64::from(timeout_ms) - (now() - began) / 1_000_000;
        in_time = reap_descendants(left).map_err(|e| format!("wait for descendants: {e}"))?;
        usage = of_children();
    }
    let wall = now() - began;
    if status != 0 || !in_time {
        kill_descendants();
    }
    let ending = match status {
        _ if !in_time => "timeout 0".into(),
        s if libc::WIFEXITED(s) => format!("exit {}", libc::WEXITSTATUS(s)),
        s => format!("signal {}", libc::WTERMSIG(s)),
    };
    let (user, sys) = (micros(usage.ru_utime), micros(usage.ru_stime));
    Ok(format!("{wall} {user} {sys} {} {ending}", usage.ru_maxrss))
}

/// Descendants whose parent ends become our children (PR_SET_CHILD_SUBREAPER, Linux 3.4).
fn adopt_orphans() {
    // SAFETY: takes integers only. It cannot fail on a kernel that has pidfd_open.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// False if there still are any after `left_ms`.
fn reap_descendants(left_ms: i64) -> io::Result<bool> {
    let end = now() + left_ms * 1_000_000;
    while let Some(pid) = children().first() {
        let left = c_int::try_from((end - now()) / 1_000_000).unwrap_or(c_int::MAX).max(0);
        if !wait_exit(*pid, left)? {
            return Ok(false);
        }
        reap(*pid)?;
    }
    Ok(true)
}

/// Those that became ours are among them.
fn children() -> Vec<libc::pid_t> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Of all that were waited for, and of all that those waited for.
fn of_children() -> libc::rusage {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for the call to fill; it cannot fail with this first argument.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    // SAFETY: rusage is integers only, zeroed above.
    unsafe { usage.assume_init() }
}

/// Kills children until there are none: killing one makes its own children ours.
fn kill_descendants() {
    while children().into_iter().filter(|pid| kill_and_reap(*pid)).count() > 0 {}
}

fn kill_and_reap(pid: libc::pid_t) -> bool {
    // SAFETY: `pid` is our child and not yet waited for, so nobody else has the number.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    reap(pid).is_ok()
}

fn micros(time: libc::timeval) -> i64 {
    time.tv_sec * 1_000_000 + time.tv_usec
}

fn null_stdio() -> Result<libc::posix_spawn_file_actions_t, String> {
    let mut actions = MaybeUninit::uninit();
    // SAFETY: the call initialises what it is given.
    let mut result = unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) };
    // SAFETY: glibc's init zeroes the structure and cannot fail (posix_spawn(3)).
    let mut actions = unsafe { actions.assume_init() };
    for fd in [0, 1] {
        let path = c"/dev/null".as_ptr();
        // SAFETY: `actions` is initialised and the path is a C string literal.
        result |= unsafe {
            libc::posix_spawn_file_actions_addopen(&raw mut actions, fd, path, libc::O_RDWR, 0)
        };
    }
    if result == 0 { Ok(actions) } else { Err("posix_spawn_file_actions".into()) }
}

fn spawn(
    argv: &[*mut c_char],
    actions: &libc::posix_spawn_file_actions_t,
) -> Result<libc::pid_t, String> {
    let mut pid = 0;
    // SAFETY: argv and environ are NULL-terminated arrays of C strings that outlive the
    // call, `actions` is initialised, and there is only this thread.
    let error = unsafe {
        libc::posix_spawn(&raw mut pid, argv[0], actions, ptr::null(), argv.as_ptr(), environ)
    };
    match error {
        0 => Ok(pid),
        n => Err(format!("posix_spawn: {}", io::Error::from_raw_os_error(n))),
    }
}

/// False if the child still runs after `timeout_ms`.
fn wait_exit(pid: libc::pid_t, timeout_ms: c_int) -> io::Result<bool> {
    // SAFETY: takes two integers; Linux 5.3, pidfd_open(2).
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut poll = libc::pollfd { fd: pidfd as c_int, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is given and `poll` is one.
    match unsafe { libc::poll(&raw mut poll, 1, timeout_ms) } {
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Ok(n > 0),
    }
}

fn reap(pid: libc::pid_t) -> io::Result<(c_int, libc::rusage)> {
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are valid for the call to fill.
    if unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: rusage is integers only, zeroed above and filled by wait4.
    Ok((status, unsafe { usage.assume_init() }))
}

fn cover_file(file: &CStr, with: &CStr) -> io::Result<()> {
    // SAFETY: takes flags only.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(with, file, libc::MS_BIND)
}

fn mount(source: &CStr, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let (source, target) = (source.as_ptr(), target.as_ptr());
    // SAFETY: both are C strings; mount(2) ignores type and data with these flags.
    done(unsafe { libc::mount(source, target, ptr::null(), flags, ptr::null()) })
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
