//! The facts that a container's own process can see, as one JSON document.
//!
//! The program `hafen-inside` is copied into a root filesystem, runs there as the container's process and
//! prints [`Facts`]; the test suite reads them back into the same type, so that the two cannot drift apart.
//! Everything comes from `/proc`, `/sys`, `/dev` and plain system calls. What cannot be read (no `/proc` in the
//! container, a masked file) is empty or `None`, never an error: to see that a thing is missing is a fact, too.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

mod fields;
mod read;

pub use fields::{capability_names, parse_mountinfo_line};

/// What to look at beyond what [`Facts`] always holds.
#[derive(Debug, Default, Clone)]
pub struct Ask {
    /// Keys such as `net.ipv4.ip_forward`; read below `/proc/sys`.
    pub sysctls: Vec<String>,
    /// Paths that are opened, listed and written to, see [`Probe`].
    pub probes: Vec<String>,
    /// Folders that are listed with every entry's type and mode, in addition to `/dev`.
    pub lists: Vec<String>,
    /// Where this machine's `/sys/fs/cgroup` can be seen in the container; the limits that hold for this process
    /// are read there, see [`Facts::limits_held`].
    pub cgroups: Option<String>,
}

/// Everything that is known about the process and its surroundings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The whole argument vector of the process.
    pub argv: Vec<String>,
    /// The environment; bytes that are not UTF-8 are replaced.
    pub env: BTreeMap<String, String>,
    /// `getcwd(2)`.
    pub cwd: Option<String>,
    /// Process id as seen in its own pid namespace.
    pub pid: i32,
    /// Parent's id; 0 when the parent lives in another pid namespace.
    pub ppid: i32,
    /// Session id.
    pub sid: i32,
    /// Process group id.
    pub pgid: i32,
    /// `uname(2)` node name.
    pub hostname: String,
    /// `uname(2)` domain name; `(none)` unless set.
    pub domainname: String,
    /// Identity and privileges out of `/proc/self/status`.
    pub status: Status,
    /// `RLIMIT_NOFILE` and so on -> (soft, hard), each a decimal number or `unlimited`.
    pub rlimits: BTreeMap<String, (String, String)>,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// `/proc/self/personality`, hexadecimal.
    pub personality: Option<String>,
    /// Nice value.
    pub nice: Option<i32>,
    /// Scheduling policy by number (`sched(7)`).
    pub policy: Option<u32>,
    /// The security label in `/proc/self/attr/current`, where a security module gives one.
    pub label: Option<String>,
    /// The mount table of the process in the kernel's order.
    pub mounts: Vec<Mount>,
    /// Open descriptors -> what they point at. The one used for listing is left out.
    pub fds: BTreeMap<i32, String>,
    /// Type (`net`, `pid_for_children`, ...) -> inode number of the namespace.
    pub namespaces: BTreeMap<String, u64>,
    /// The lines of `/proc/self/cgroup`.
    pub cgroup: Vec<String>,
    /// Asked for: cgroup file -> the value that holds for this process. See [`Ask::cgroups`]. A limit set on an
    /// ancestor holds as well, so the nearest folder that has other than the kernel's default counts; files with the
    /// default everywhere are left out.
    pub limits_held: BTreeMap<String, String>,
    /// Asked for: sysctl key -> value.
    pub sysctls: BTreeMap<String, Option<String>>,
    /// The entries of `/dev` and of the folders asked for, by path. Not recursive.
    pub files: BTreeMap<String, File>,
    /// Asked for: path -> what happened when it was used.
    pub probes: BTreeMap<String, Probe>,
    /// Whether a file could be made in `/`: `ok` or the name of the error (`EROFS`).
    pub root_write: String,
    /// Network interfaces and whether each is up.
    pub interfaces: BTreeMap<String, bool>,
    /// Descriptions of session keyrings in `/proc/keys` (`_ses`, `_ses.ID`); `None` when that file is masked.
    pub session_keyrings: Option<Vec<String>>,
}

/// Fields of `/proc/self/status`, `proc_pid_status(5)`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Real, effective, saved, file system.
    pub uid: Vec<u32>,
    /// Real, effective, saved, file system.
    pub gid: Vec<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Octal, such as `0022`.
    pub umask: String,
    /// 1 when `no_new_privs` is set.
    pub no_new_privs: u32,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters (Linux 5.9).
    pub seccomp_filters: u32,
    /// Names such as `CAP_KILL`.
    pub inheritable: BTreeSet<String>,
    /// Names such as `CAP_KILL`.
    pub permitted: BTreeSet<String>,
    /// Names such as `CAP_KILL`.
    pub effective: BTreeSet<String>,
    /// Names such as `CAP_KILL`.
    pub bounding: BTreeSet<String>,
    /// Names such as `CAP_KILL`.
    pub ambient: BTreeSet<String>,
    /// Hexadecimal mask.
    pub sig_blocked: String,
    /// Hexadecimal mask.
    pub sig_ignored: String,
    /// Hexadecimal mask. The Rust run time of this program catches SIGSEGV and SIGBUS itself.
    pub sig_caught: String,
    /// List such as `0-1`.
    pub cpus_allowed: String,
    /// List such as `0`.
    pub mems_allowed: String,
}

/// One line of `/proc/self/mountinfo`, `proc_pid_mountinfo(5)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Mount id.
    pub id: u32,
    /// Id of the mount this one stands on.
    pub parent: u32,
    /// `major:minor` of the file system.
    pub device: String,
    /// The folder of the file system that is mounted.
    pub root: String,
    /// Mount point, relative to the process's root.
    pub target: String,
    /// Options of this mount.
    pub options: BTreeSet<String>,
    /// `shared:N`, `master:N`, `propagate_from:N`, `unbindable`; empty means private.
    pub propagation: Vec<String>,
    /// File system type.
    pub fstype: String,
    /// What was mounted.
    pub source: String,
    /// Options of the file system.
    pub super_options: BTreeSet<String>,
}

/// One folder entry, not followed when it is a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// `file`, `dir`, `link`, `char`, `block`, `fifo` or `socket`.
    pub kind: String,
    /// `major:minor` of a device.
    pub device: Option<String>,
    /// Octal permission bits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Where a symbolic link points.
    pub link: Option<String>,
}

/// What happens when a path is used. Errors are names such as `EACCES`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// As in [`File::kind`]; `missing` when there is none. Symbolic links are followed.
    pub kind: String,
    /// Octal permission bits.
    pub mode: Option<String>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// `empty`, `data`, or an error: what reading a file or listing a folder gave.
    pub read: String,
    /// `ok` or an error: opening a file for writing (nothing is written) or making a file in a folder (it is
    /// removed again). A device is not opened.
    pub write: String,
}

impl Facts {
    /// Looks at everything. `argv` is the caller's own.
    #[must_use]
    pub fn read(argv: Vec<String>, ask: &Ask) -> Self {
        read::facts(argv, ask)
    }

    /// The topmost mount on `target`.
    #[must_use]
    pub fn mount(&self, target: &str) -> Option<&Mount> {
        self.mounts.iter().rev().find(|m| m.target == target)
    }
}

/// Open descriptors of this process -> what they point at, without the one used for listing.
#[must_use]
pub fn open_descriptors() -> BTreeMap<i32, String> {
    read::descriptors()
}
