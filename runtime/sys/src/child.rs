//! The script that runs between clone and exec, and the machine that runs it.
//!
//! Everything an [`Op`] needs is prepared before the clone: C strings, pointer arrays, compiled
//! filters. The machine allocates nothing, takes no lock and cannot panic (signal-safety(7): the
//! parent may have had other threads). When an operation fails it writes one [`Report`] to a
//! close-on-exec pipe and exits; the parent knows the plan and words the message.

mod attributes;
mod machine;
mod mounts;
mod notify;
mod paths;
mod terminal;

use std::ffi::{CStr, CString};

pub use attributes::{Attribute, SchedulerAttributes, give};
pub(crate) use machine::{Pipes, run};
pub(crate) use mounts::new_mount;
pub use notify::{Notify, Stack};
pub use paths::Chain;
pub use terminal::words as terminal_words;

use crate::mount::MountAttr;

/// A place for a descriptor that one operation makes and later ones use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub u8);

pub(crate) const SLOTS: usize = 8;

/// A descriptor that the parent opened, or one made on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Fd(i32),
    Slot(Slot),
}

/// What to make where a path does not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Nothing,
    Folder,
    /// An empty file, in folders that are made as well.
    File,
}

/// How a bind or mask is done: with the calls of Linux 5.2, or with mount(2) where those are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountCalls {
    New,
    Classic,
}

/// One thing for the first process to do.
#[derive(Debug)]
pub enum Op {
    Close(i32),
    ResetSignals,
    NewSession,
    /// keyctl(2) KEYCTL_JOIN_SESSION_KEYRING.
    JoinKeyring {
        name: CString,
    },
    Setns {
        fd: i32,
        flag: i32,
    },
    /// setns(2) into the namespace behind a link of the procfs with the root `proc`.
    SetnsProc {
        proc: i32,
        path: CString,
        flag: i32,
    },
    Unshare {
        flags: u64,
    },
    Umask {
        mask: u32,
    },
    /// Bring the loopback interface of a new network namespace up (netdevice(7)).
    LoopbackUp,
    /// Write to a file of the procfs with the root `proc` once, wherever `/proc` leads by then.
    WriteProc {
        proc: i32,
        path: CString,
        data: Vec<u8>,
    },
    /// Write to a descriptor once, and close it.
    Write {
        fd: i32,
        data: Vec<u8>,
    },
    Attribute(Attribute),
    Hostname {
        name: Vec<u8>,
    },
    Domainname {
        name: Vec<u8>,
    },
    /// mount(2) as it is; `target` is a path of the host.
    MountPath {
        source: Option<CString>,
        target: CString,
        fstype: Option<CString>,
        flags: u64,
        data: Option<CString>,
    },
    /// mount(2) on a descriptor, through `/proc/self/fd`.
    MountOn {
        source: Option<CString>,
        target: At,
        fstype: Option<CString>,
        flags: u64,
        data: Option<CString>,
        /// The target gives the parameter `mode`, as for [`Op::NewMount`].
        mode_of: bool,
    },
    /// Change flags of a mount with mount(2), keeping those it has (statfs(2)).
    RemountOn {
        target: At,
        set: u64,
        clear: u64,
    },
    /// fsopen, fsconfig for each option, fsmount.
    NewMount {
        fstype: CString,
        source: CString,
        options: Vec<(CString, Option<CString>)>,
        attributes: u64,
        /// The folder that it will stand on: where the last [`Op::Resolve`] found it, it gives the parameter `mode`.
        mode_of: Option<Slot>,
        into: Slot,
    },
    /// fspick, fsconfig for each option, and reconfigure, of the file system that is mounted there.
    Reconfigure {
        mount: At,
        options: Vec<(CString, Option<CString>)>,
    },
    /// open_tree(2) of a path of the host; `clone` makes a detached copy.
    OpenTree {
        path: CString,
        clone: bool,
        recursive: bool,
        into: Slot,
    },
    /// Have a slot stand for what a descriptor of the parent's stands for.
    Keep {
        fd: i32,
        into: Slot,
    },
    /// A copy of a mount, which is younger than what was mounted meanwhile: since Linux 6.8 mountinfo is sorted by
    /// age. Where none can be made it is the mount itself.
    RenewMount {
        from: At,
        folder: bool,
        into: Slot,
    },
    SetAttributes {
        mount: At,
        attributes: MountAttr,
        recursive: bool,
    },
    /// Find a path inside `root`, never outside of it, and make what is missing.
    Resolve {
        root: At,
        chain: Chain,
        make: Make,
        /// Whether a symlink at the end is followed; otherwise a folder to be made must not be one.
        follow: bool,
        into: Slot,
    },
    /// Find a folder inside `root` where no part of the path is a symlink.
    ResolveWithoutLinks {
        root: At,
        chain: Chain,
        into: Slot,
    },
    /// Fail where the file lies on procfs.
    RefuseProcfs {
        at: At,
    },
    /// move_mount(2) between two descriptors.
    MoveMount {
        from: At,
        to: At,
    },
    /// move_mount(2) onto a path of the host.
    MoveMountTo {
        from: At,
        path: CString,
    },
    /// Set the extended attribute with the SELinux label.
    Label {
        folder: At,
        label: CString,
    },
    MakeNode {
        root: At,
        folder: Chain,
        name: CString,
        mode: u32,
        device: u64,
        uid: u32,
        gid: u32,
    },
    MakeSymlink {
        root: At,
        folder: Chain,
        name: CString,
        target: CString,
        /// What is there already must be the same link.
        exact: bool,
    },
    MakeFolderPath {
        path: CString,
        mode: u32,
    },
    /// Hide what is at the path, if anything is: `/dev/null` over files, the mount in `empty` over folders.
    Mask {
        root: At,
        chain: Chain,
        empty: Slot,
        calls: MountCalls,
    },
    /// Make the path read-only with all below it, if it exists.
    ReadonlyPath {
        root: At,
        chain: Chain,
        calls: MountCalls,
    },
    PivotRoot {
        root: At,
    },
    /// Move the mount `root` over `/` and chroot into it.
    MoveRoot {
        root: At,
        calls: MountCalls,
    },
    Chroot {
        root: At,
    },
    /// Change folder; where `lenient`, a refusal is left for a later try with other rights.
    Chdir {
        path: CString,
        lenient: bool,
    },
    Rlimit {
        resource: u32,
        soft: u64,
        hard: u64,
    },
    Prctl {
        option: i32,
        arguments: [usize; 4],
    },
    /// Drop these capabilities from the bounding set.
    DropBounding {
        capabilities: u64,
    },
    Ids {
        uid: u32,
        gid: u32,
        /// `None`: those it has stay.
        groups: Option<Vec<u32>>,
    },
    SetCapabilities {
        effective: u64,
        permitted: u64,
        inheritable: u64,
    },
    Ambient {
        raise: u64,
        last: u32,
    },
    /// Install a compiled filter (seccomp(2) SECCOMP_SET_MODE_FILTER).
    Seccomp {
        program: Vec<libc::sock_filter>,
        flags: u32,
    },
    /// The same for a filter that notifies; see [`Notify`].
    SeccompNotify(Notify),
    /// What is our pid where the procfs with the root `proc` belongs to? Kept for [`Op::SeccompNotify`].
    OwnPid {
        proc: i32,
    },
    /// Close all descriptors from `from` on, but the pipes of the launch and those in `keep`.
    CloseFrom {
        from: i32,
        keep: Vec<i32>,
    },
    /// dup3(2), without close-on-exec.
    Duplicate {
        from: i32,
        to: i32,
    },
    /// Give the three standard descriptors to the user, so that `/dev/stdout` can be opened again; what cannot be
    /// given is left as it is.
    OwnStandard {
        uid: u32,
    },
    /// Make a pseudoterminal (pty(7)), send its master away, and stand on the other end.
    Terminal(Terminal),
    /// Wait for the parent's byte; end of file means that it died: exit.
    AwaitGo,
    /// Say that this point is reached, and wait as [`Op::AwaitGo`] does.
    Pause,
    /// Say that the container is created; wait for a byte in the descriptor `start`; from then on report to `report`.
    AwaitStart {
        start: i32,
        report: i32,
    },
    /// Which of the programs can be executed? The answer is kept for [`Op::Execute`].
    FindProgram {
        candidates: Vec<CString>,
    },
    Execute {
        candidates: Vec<CString>,
        arguments: Strings,
        environment: Strings,
    },
}

/// What [`Op::Terminal`] needs.
#[derive(Debug)]
pub struct Terminal {
    /// The root in which devpts is mounted on `/dev/pts`.
    pub root: At,
    /// A connected stream socket: the master goes through it (SCM_RIGHTS), with the name of the other end as data.
    pub socket: i32,
    /// Rows and columns.
    pub size: Option<(u16, u16)>,
    /// Gets the other end.
    pub uid: u32,
    /// Mount the other end on `/dev/console` as well.
    pub console: Option<MountCalls>,
}

/// C strings with the null-terminated array of pointers that execve(2) wants.
#[derive(Debug)]
pub struct Strings {
    /// Keeps alive what `pointers` points to; never changed after construction.
    _owned: Vec<CString>,
    pointers: Vec<usize>,
}

impl Strings {
    #[must_use]
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers =
            strings.iter().map(|s| s.as_ptr() as usize).chain(std::iter::once(0)).collect();
        Self { _owned: strings, pointers }
    }

    pub(crate) fn pointer(&self) -> usize {
        self.pointers.as_ptr() as usize
    }
}

/// What kind of message a [`Report`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Operation `op` failed with `errno`.
    Failed,
    /// [`Op::Pause`] is reached.
    Ready,
    /// execve(2) failed with `errno`.
    Refused,
    /// Everything is done but the wait for `start`.
    Created,
    /// Next come the filter and execve: silence after this is success.
    Executing,
}

/// [`Report::detail`] of [`Op::RefuseProcfs`].
pub const IN_PROCFS: u32 = u32::MAX;

pub(crate) const WORDS: usize = 200;

/// One message of the child, written in one piece (shorter than PIPE_BUF).
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub event: Event,
    /// Index into the script.
    pub op: u32,
    /// Which part of the operation: an option, a path component, a capability.
    pub detail: u32,
    pub errno: i32,
    words: [u8; WORDS],
}

impl Report {
    pub(crate) const SIZE: usize = 16 + WORDS;

    pub(crate) const fn new(event: Event, op: u32) -> Self {
        Self { event, op, detail: 0, errno: 0, words: [0; WORDS] }
    }

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let kind: u32 = match self.event {
            Event::Failed => 1,
            Event::Created => 2,
            Event::Executing => 3,
            Event::Ready => 4,
            Event::Refused => 5,
        };
        let numbers = [kind, self.op, self.detail, self.errno.cast_unsigned()];
        let words = numbers.iter().flat_map(|n| n.to_ne_bytes()).chain(self.words);
        for (to, from) in bytes.iter_mut().zip(words) {
            *to = from;
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let number = |i: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[i * 4..i * 4 + 4]);
            u32::from_ne_bytes(word)
        };
        let event = match number(0) {
            1 => Event::Failed,
            2 => Event::Created,
            3 => Event::Executing,
            4 => Event::Ready,
            5 => Event::Refused,
            _ => return None,
        };
        let mut words = [0; WORDS];
        words.copy_from_slice(&bytes[16..]);
        Some(Self {
            event,
            op: number(1),
            detail: number(2),
            errno: number(3).cast_signed(),
            words,
        })
    }

    /// The kernel's own words about the failure (fsopen(2) message log), if it had any.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        let text = CStr::from_bytes_until_nul(&self.words).ok()?.to_string_lossy();
        // The kernel puts the severity before the message: "e overlay: ...".
        let text = text.trim().trim_start_matches(|c| "ewi".contains(c)).trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Everything the first process does.
#[derive(Debug)]
pub struct Script {
    pub ops: Vec<Op>,
    /// Die before this operation (tests of clean-up).
    pub die_before: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_way_through_the_pipe() {
        let mut report = Report::new(Event::Failed, 14);
        report.detail = 3;
        report.errno = libc::EINVAL;
        report.words[..11].copy_from_slice(b"e bad thing");
        let read = Report::decode(&report.encode()).unwrap();
        assert_eq!(
            (read.event, read.op, read.detail, read.errno),
            (Event::Failed, 14, 3, libc::EINVAL)
        );
        assert_eq!(read.words().as_deref(), Some("bad thing"));
        assert!(Report::decode(&[0; Report::SIZE]).is_none());
    }
}
