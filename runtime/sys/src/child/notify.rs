//! A seccomp filter that notifies (seccomp_unotify(2)), whose listener has to reach an agent.
//!
//! Any call that the filtered thread makes may wait for the agent, also the one that would hand the listener over.
//! So a second thread, which the filter does not hold, sends it; the first one waits for that without a call:
//!
//! ```text
//!   first thread                           courier
//!   clone ------------------------------>  looks at `listener`
//!   seccomp, `listener` = descriptor       sendmsg, close, `sent` = 1
//!   looks at `sent`                        exit
//!   execve
//! ```
//!
//! What fails in the courier ends the process with a report.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::{Event, Report, machine};
use crate::raw::{self, call, plain, reg};

const NEW_LISTENER: u32 = 1 << 3;
/// A thread beside us would get the filter as well; it has none to give it to otherwise.
const TSYNC: u32 = 1;
const NOT_YET: i32 = -1;
/// Looks before the processor is given away by a call, which the filter may hold: some 100 milliseconds.
const LOOKS: u32 = 1 << 22;

/// A filter, and how its listener gets to the agent.
#[derive(Debug)]
pub struct Notify {
    pub program: Vec<libc::sock_filter>,
    pub flags: u32,
    /// Connected to the agent.
    pub socket: i32,
    /// What is said with the listener: at most three parts, with the pid between them.
    pub message: Vec<Vec<u8>>,
    /// For the second thread.
    pub stack: Stack,
}

/// Memory for the few calls of the courier.
#[derive(Debug)]
pub struct Stack(Vec<UnsafeCell<u128>>);

impl Default for Stack {
    fn default() -> Self {
        const WORDS: usize = 2048;
        Self((0..WORDS).map(|_| UnsafeCell::new(0)).collect())
    }
}

/// A number as the procfs writes it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Digits {
    text: [u8; 16],
    length: usize,
}

/// Where failures go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) report: i32,
    pub(super) op: u32,
}

/// The link `self` of a procfs holds the reader's pid in the namespace of that procfs (proc(5)).
pub(super) fn own_pid(proc: i32) -> Result<Digits, i32> {
    let mut digits = Digits::default();
    let (buffer, size) = (digits.text.as_mut_ptr() as usize, digits.text.len());
    // SAFETY: a C string, and a buffer of the size given.
    let length =
        unsafe { call(libc::SYS_readlinkat, [reg(proc), raw::at(c"self"), buffer, size, 0, 0]) }?;
    digits.length = length as usize;
    Ok(digits)
}

struct Shared<'a> {
    listener: AtomicI32,
    sent: AtomicU32,
    notify: &'a Notify,
    pid: &'a Digits,
    way: Way,
}

pub(super) fn install(notify: &Notify, pid: &Digits, way: Way) -> Result<(), i32> {
    let (listener, sent) = (AtomicI32::new(NOT_YET), AtomicU32::new(0));
    let shared = Shared { listener, sent, notify, pid, way };
    // SAFETY: `shared` and the stack stay until the courier has set `sent`, after which it touches its stack only; that
    // lives until execve.
    unsafe { start(&notify.stack, &shared) }?;
    let flags = notify.flags & !TSYNC | NEW_LISTENER;
    let listener = machine::seccomp(&notify.program, flags)?;
    shared.listener.store(listener, Ordering::Release);
    let mut looks: u32 = 0;
    while shared.sent.load(Ordering::Acquire) == 0 {
        if looks < LOOKS {
            looks = looks.wrapping_add(1);
            spin_loop();
        } else {
            // On one processor and with a real-time policy the courier gets no turn otherwise.
            give_way();
        }
    }
    Ok(())
}

fn give_way() {
    let _ = plain(libc::SYS_sched_yield, [0; 6]);
}

extern "C" fn courier(shared: &Shared<'_>) -> ! {
    let listener = loop {
        match shared.listener.load(Ordering::Acquire) {
            NOT_YET => give_way(),
            listener => break listener,
        }
    };
    if let Err(errno) = send(shared, listener) {
        fail(shared.way, errno);
    }
    let _ = raw::close(shared.notify.socket);
    shared.sent.store(1, Ordering::Release);
    loop {
        let _ = plain(libc::SYS_exit, [0; 6]);
    }
}

fn fail(way: Way, errno: i32) -> ! {
    let mut report = Report::new(Event::Failed, way.op);
    // Told from a failure of seccomp(2).
    report.detail = 1;
    report.errno = errno;
    let bytes = report.encode();
    let arguments = [reg(way.report), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
    // SAFETY: the buffer lives across the call and has the size given.
    let _ = unsafe { call(libc::SYS_write, arguments) };
    raw::exit(1)
}

/// One SCM_RIGHTS message with one descriptor, padded as CMSG_SPACE(3) has it on 64 bits.
#[repr(C, align(8))]
struct Rights {
    header: libc::cmsghdr,
    descriptor: i32,
    padding: i32,
}

fn send(shared: &Shared<'_>, listener: i32) -> Result<(), i32> {
    let pid = shared.pid.text.get(..shared.pid.length).unwrap_or_default();
    let parts = shared.notify.message.iter().flat_map(|part| [pid, part]).skip(1);
    let mut total: usize = 0;
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 5];
    for (vector, part) in vectors.iter_mut().zip(parts) {
        *vector = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        total = total.wrapping_add(part.len());
    }
    let mut rights = Rights {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>().wrapping_add(size_of::<i32>()),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        descriptor: listener,
        padding: 0,
    };
    // SAFETY: a struct msghdr of zeros is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message.msg_control = (&raw mut rights).cast();
    message.msg_controllen = size_of::<Rights>();
    let pointer = std::ptr::from_ref(&message) as usize;
    let flags = libc::MSG_NOSIGNAL as usize;
    let socket = reg(shared.notify.socket);
    // SAFETY: a message whose parts and control data live across the call.
    let sent = unsafe { call(libc::SYS_sendmsg, [socket, pointer, flags, 0, 0, 0]) }?;
    if sent as usize == total { Ok(()) } else { Err(libc::EMSGSIZE) }
}

/// Start a thread that runs [`courier`]. It shares everything, thread-local storage as well, which it must not touch.
///
/// # Safety
/// `stack` and `shared` must stay in place for as long as the thread uses them.
unsafe fn start(stack: &Stack, shared: &Shared<'_>) -> Result<(), i32> {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let top = stack.0.as_ptr_range().end as usize;
    let argument = std::ptr::from_ref(shared) as usize;
    let function = courier as extern "C" fn(&Shared<'_>) -> !;
    // SAFETY: the stack is ours and empty, aligned as the ABI wants it; the rest is our caller's promise.
    let answer = unsafe { clone(FLAGS as usize, top, function as usize, argument) };
    if answer < 0 { Err(-answer as i32) } else { Ok(()) }
}

/// # Safety
/// As [`start`]; `function` takes one pointer and does not return.
#[cfg(target_arch = "x86_64")]
unsafe fn clone(flags: usize, stack: usize, function: usize, argument: usize) -> isize {
    let result: isize;
    // SAFETY: in the caller's thread only rcx and r11 change (x86-64 psABI, A.2.1); the new one goes on its own stack.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone as isize => result,
            in("rdi") flags, in("rsi") stack, in("rdx") 0, in("r10") 0, in("r8") 0,
            in("r12") argument, in("r13") function,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// # Safety
/// As [`start`]; `function` takes one pointer and does not return.
#[cfg(target_arch = "aarch64")]
unsafe fn clone(flags: usize, stack: usize, function: usize, argument: usize) -> isize {
    let result: isize;
    // SAFETY: in the caller's thread only x0 changes; the new one goes on its own stack.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone,
            inlateout("x0") flags as isize => result,
            in("x1") stack, in("x2") 0, in("x3") 0, in("x4") 0,
            in("x20") argument, in("x21") function,
            options(nostack),
        );
    }
    result
}
