//! Nothing is allocated between clone and exec: an allocator ends any process but the test's own that tries.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use hafen_sys::child::{
    At, Attribute, Chain, Make, MountCalls, Notify, Op, SchedulerAttributes, Script, Slot, Stack,
    Strings,
};
use hafen_sys::file::open_proc;
use hafen_sys::pidfd;
use hafen_sys::spawn::{Birth, Outcome, launch};

const TRIPPED: i32 = 99;
static OWNER: AtomicI32 = AtomicI32::new(0);

struct Tripwire;

// SAFETY: every request goes to the system's allocator unchanged; a foreign process never gets an answer.
unsafe impl GlobalAlloc for Tripwire {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        check();
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Tripwire = Tripwire;

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn check() {
    let owner = OWNER.load(Ordering::Relaxed);
    if owner != 0 && owner != own_pid() {
        // SAFETY: ends this process at once; nothing of it is used any more.
        unsafe { libc::_exit(TRIPPED) };
    }
}

fn arm() {
    OWNER.store(own_pid(), Ordering::Relaxed);
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn strings(all: &[&str]) -> Strings {
    Strings::new(all.iter().map(|s| c(s)).collect())
}

fn program(path: &str, arguments: &[&str]) -> [Op; 2] {
    let candidates = vec![c("/nowhere/program"), c(path)];
    [
        Op::FindProgram { candidates: candidates.clone() },
        Op::Execute { candidates, arguments: strings(arguments), environment: strings(&["A=b"]) },
    ]
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

const BIRTH: Birth<'static> = Birth { namespaces: 0, cgroup: None, classic: false, joins: &[] };
/// CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET
const NAMESPACES: u64 = 0x0002_0000 | 0x0400_0000 | 0x4000_0000;

/// Of what the script has made, on the mount in its first slot.
fn more_mounts() -> Vec<Op> {
    let root = At::Slot(Slot(0));
    vec![
        Op::Resolve {
            root,
            chain: Chain::new("/a").unwrap(),
            make: Make::Folder,
            follow: false,
            into: Slot(2),
        },
        Op::NewMount {
            fstype: c("tmpfs"),
            source: c("tmpfs"),
            options: Vec::new(),
            attributes: 0,
            mode_of: Some(Slot(2)),
            into: Slot(1),
        },
        Op::Reconfigure { mount: At::Slot(Slot(0)), options: vec![(c("size"), Some(c("128k")))] },
        Op::MakeSymlink {
            root,
            folder: Chain::new("/x").unwrap(),
            name: c("link"),
            target: c("/a"),
            exact: true,
        },
    ]
}

/// Every kind of operation that needs no root file system to stand in.
fn long_script(proc: i32, null: i32) -> Vec<Op> {
    let root = At::Slot(Slot(0));
    let mut ops = vec![
        Op::Umask { mask: 0 },
        Op::ResetSignals,
        Op::NewSession,
        Op::JoinKeyring { name: c("tripwire") },
        Op::MountPath {
            source: None,
            target: c("/"),
            fstype: None,
            flags: (1 << 18) | libc::MS_REC,
            data: None,
        },
        Op::NewMount {
            fstype: c("tmpfs"),
            source: c("tmpfs"),
            options: vec![(c("mode"), Some(c("755"))), (c("size"), Some(c("64k")))],
            attributes: 0,
            mode_of: None,
            into: Slot(1),
        },
        Op::MoveMountTo { from: At::Slot(Slot(1)), path: c("/mnt") },
        Op::OpenTree { path: c("/mnt"), clone: false, recursive: false, into: Slot(0) },
        Op::Resolve {
            root,
            chain: Chain::new("/a/b/c").unwrap(),
            make: Make::Folder,
            follow: true,
            into: Slot(2),
        },
        Op::Label { folder: At::Slot(Slot(2)), label: c("a:b:c:s0") },
        Op::Resolve {
            root,
            chain: Chain::new("/a/b/file").unwrap(),
            make: Make::File,
            follow: false,
            into: Slot(2),
        },
        Op::Mask {
            root,
            chain: Chain::new("/a/b/file").unwrap(),
            empty: Slot(3),
            calls: MountCalls::New,
        },
        Op::Mask {
            root,
            chain: Chain::new("/a/b/c").unwrap(),
            empty: Slot(3),
            calls: MountCalls::New,
        },
        Op::ReadonlyPath { root, chain: Chain::new("/a").unwrap(), calls: MountCalls::New },
        Op::MakeSymlink {
            root,
            folder: Chain::new("/x").unwrap(),
            name: c("link"),
            target: c("/a"),
            exact: false,
        },
        Op::MakeNode {
            root,
            folder: Chain::new("/dev").unwrap(),
            name: c("null"),
            mode: libc::S_IFCHR | 0o666,
            device: libc::makedev(1, 3),
            uid: 0,
            gid: 0,
        },
        Op::LoopbackUp,
    ];
    ops.extend(more_mounts());
    ops.extend([
        Op::Hostname { name: b"tripwire".to_vec() },
        Op::WriteProc { proc, path: c("self/oom_score_adj"), data: b"1000".to_vec() },
        Op::Write { fd: null, data: b"0".to_vec() },
        Op::Attribute(Attribute::Nice(1)),
        Op::Attribute(Attribute::Scheduler(SchedulerAttributes::default())),
        Op::Attribute(Attribute::IoPriority { class: 2, level: 3 }),
        Op::Attribute(Attribute::Affinity { processors: vec![u64::MAX] }),
        Op::Attribute(Attribute::Personality { domain: 0 }),
        Op::Attribute(Attribute::MemoryPolicy { mode: 1, nodes: vec![1] }),
        Op::Rlimit { resource: 7, soft: 64, hard: 64 },
        Op::Prctl { option: libc::PR_SET_NO_NEW_PRIVS, arguments: [1, 0, 0, 0] },
        Op::DropBounding { capabilities: 0b110 },
        Op::Chdir { path: c("/"), lenient: false },
        Op::Ids { uid: 0, gid: 0, groups: Some(vec![1, 2]) },
        Op::SetCapabilities { effective: 0, permitted: 1, inheritable: 1 },
        Op::Ambient { raise: 1, last: 40 },
        Op::AwaitGo,
        Op::Umask { mask: 0o22 },
        Op::OwnPid { proc },
        Op::OwnStandard { uid: 0 },
        Op::CloseFrom { from: 3, keep: Vec::new() },
    ]);
    ops.extend(program("/bin/true", &["true"]));
    ops
}

fn run(ops: Vec<Op>, namespaces: u64) -> (Outcome, Option<i32>) {
    let script = Script { ops, die_before: None };
    let mut process = launch(&script, Birth { namespaces, ..BIRTH }).unwrap();
    let _ = process.go();
    let outcome = process.outcome().unwrap();
    let end = pidfd::wait(process.pid, true).unwrap().unwrap();
    (outcome, end.code)
}

#[test]
fn a_script_with_every_kind_of_operation_allocates_nothing() {
    arm();
    assert!(is_root(), "this test needs root");
    let proc = open_proc().unwrap();
    let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let (outcome, code) = run(long_script(proc.as_raw_fd(), null.as_raw_fd()), NAMESPACES);
    assert!(matches!(outcome, Outcome::Executed), "{outcome:?}");
    assert_eq!(code, Some(0));
}

/// Two threads at work, neither of which allocates.
#[test]
fn a_listener_reaches_its_agent_without_an_allocation() {
    use std::io::Read;
    arm();
    let proc = open_proc().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 };
    let notify = Notify {
        program: vec![allow],
        flags: 1,
        socket: theirs.as_raw_fd(),
        message: vec![b"<".to_vec(), b"|".to_vec(), b">".to_vec()],
        stack: Stack::default(),
    };
    let mut ops = vec![
        Op::Prctl { option: libc::PR_SET_NO_NEW_PRIVS, arguments: [1, 0, 0, 0] },
        Op::OwnPid { proc: proc.as_raw_fd() },
        Op::SeccompNotify(notify),
    ];
    ops.extend(program("/bin/true", &["true"]));
    let script = Script { ops, die_before: None };
    let mut process = launch(&script, BIRTH).unwrap();
    drop(theirs);
    let outcome = process.outcome().unwrap();
    assert!(matches!(outcome, Outcome::Executed), "{outcome:?}");
    let mut said = String::new();
    (&ours).read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("<{0}|{0}>", process.pid));
    assert_eq!(pidfd::wait(process.pid, true).unwrap().unwrap().code, Some(0));
}

/// The process in between joins, makes the first one as our child, and is gone; the first one goes into a time namespace.
#[test]
fn a_process_in_between_allocates_nothing() {
    use std::os::fd::AsFd;
    /// CLONE_NEWUTS, CLONE_NEWTIME
    const UTS: u64 = 0x0400_0000;
    const TIME: u64 = 0x80;
    arm();
    assert!(is_root(), "this test needs root");
    let proc = open_proc().unwrap();
    let own = std::fs::File::open("/proc/self/ns/uts").unwrap();
    let mut ops = vec![
        Op::Unshare { flags: TIME },
        Op::SetnsProc {
            proc: proc.as_raw_fd(),
            path: c("self/ns/time_for_children"),
            flag: i32::try_from(TIME).unwrap(),
        },
        Op::Keep { fd: own.as_raw_fd(), into: Slot(1) },
        Op::AwaitGo,
        Op::Ids { uid: 0, gid: 0, groups: None },
    ];
    ops.extend(program("/bin/true", &["true"]));
    let script = Script { ops, die_before: None };
    let joins = [(own.as_fd(), UTS)];
    for classic in [false, true] {
        let mut process = launch(&script, Birth { joins: &joins, classic, ..BIRTH }).unwrap();
        process.go().unwrap();
        let outcome = process.outcome().unwrap();
        assert!(matches!(outcome, Outcome::Executed), "{outcome:?}");
        assert_eq!(pidfd::wait(process.pid, true).unwrap().unwrap().code, Some(0));
    }
}

#[test]
fn a_join_that_fails_is_named() {
    use std::os::fd::AsFd;
    arm();
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let script = Script { ops: vec![Op::AwaitGo], die_before: None };
    let joins = [(file.as_fd(), 0x0400_0000)];
    let failure = launch(&script, Birth { joins: &joins, ..BIRTH }).unwrap_err();
    assert_eq!(failure.to_string(), "setns with flag 0x4000000");
    assert!(failure.is(nix::errno::Errno::EINVAL), "{failure:?}");
}

#[test]
fn the_tripwire_is_armed() {
    arm();
    // A child that allocates, as no operation does: the libc fork of a test, not of the product.
    // SAFETY: the child does nothing but allocate, which ends it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let text = std::hint::black_box(Box::new(0_u8));
        // SAFETY: not reached; ends the process.
        unsafe { libc::_exit(i32::from(*text)) };
    }
    assert_eq!(pidfd::wait(pid, true).unwrap().unwrap().code, Some(TRIPPED));
}

#[test]
fn a_failure_names_its_operation_and_error() {
    arm();
    let mut ops = vec![Op::Umask { mask: 0 }];
    ops.push(Op::Chdir { path: c("/no/such/folder"), lenient: false });
    ops.extend(program("/bin/true", &["true"]));
    let (outcome, code) = run(ops, 0);
    let Outcome::Failed(report) = outcome else { panic!("{outcome:?}") };
    assert_eq!((report.op, report.errno, code), (1, libc::ENOENT, Some(1)));
}

#[test]
fn the_kernels_words_about_a_mount_option_come_through() {
    arm();
    assert!(is_root(), "this test needs root");
    let mount = Op::NewMount {
        fstype: c("tmpfs"),
        source: c("tmpfs"),
        options: vec![(c("nonsense"), Some(c("1")))],
        attributes: 0,
        mode_of: None,
        into: Slot(1),
    };
    let (outcome, _) = run(vec![mount], NAMESPACES);
    let Outcome::Failed(report) = outcome else { panic!("{outcome:?}") };
    assert_eq!(report.detail, 1);
    assert!(report.words().is_some_and(|w| w.contains("nonsense")), "{report:?}");
}

#[test]
fn when_the_parent_is_gone_nothing_runs() {
    arm();
    let mut ops = vec![Op::AwaitGo];
    ops.extend(program("/bin/true", &["true"]));
    let script = Script { ops, die_before: None };
    let process = launch(&script, BIRTH).unwrap();
    let pid = process.pid;
    // Closes the go pipe without a byte, as the kernel does for a dead parent.
    drop(process);
    assert_eq!(pidfd::wait(pid, true).unwrap().unwrap().code, Some(1));
}

#[test]
fn two_hundred_launches_while_other_threads_allocate() {
    static STOP: AtomicBool = AtomicBool::new(false);
    arm();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    std::hint::black_box(vec![0_u8; 4096].len());
                }
            })
        })
        .collect();
    for _ in 0..200 {
        let (outcome, code) = run(program("/bin/true", &["true"]).into(), 0);
        assert!(matches!(outcome, Outcome::Executed), "{outcome:?}");
        assert_eq!(code, Some(0));
    }
    STOP.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
}
