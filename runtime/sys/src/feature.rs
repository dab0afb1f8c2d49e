//! Which kernel calls the runtime stands on, since when they exist, what stands in where one is
//! missing (an old kernel, or a seccomp filter around us), and what is lost then.
//!
//! The floor is Linux 5.15. Fallbacks are tested by taking the call away with a filter that answers ENOSYS.

use crate::raw;

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// Name used in `HostFacts::missing_calls`.
    pub name: &'static str,
    pub since: &'static str,
    pub used_for: &'static str,
    /// `None`: the runtime refuses to launch without it.
    pub fallback: Option<&'static str>,
    pub lost: &'static str,
    probe: fn() -> bool,
}

/// Every call that is probed, each by arguments that can only fail.
pub const FEATURES: [Feature; 10] = [
    Feature {
        name: "clone3",
        since: "5.3",
        used_for: "making the first process with its namespaces and a pidfd",
        fallback: Some("clone(2) and pidfd_open(2)"),
        lost: "birth inside the cgroup: the process is moved there before it goes on",
        probe: || !missing(libc::SYS_clone3, [0, 0, 0, 0, 0, 0]),
    },
    Feature {
        name: "openat2",
        since: "5.6",
        used_for: "opening paths inside a root file system without being led out of it",
        fallback: None,
        lost: "",
        probe: || !missing(libc::SYS_openat2, [raw::reg(-1), 0, 0, 0, 0, 0]),
    },
    Feature {
        name: "fsopen",
        since: "5.2",
        used_for: "mounting file systems (with fsconfig and fsmount)",
        fallback: Some("mount(2)"),
        lost: "the kernel's own words about a wrong mount option",
        probe: || !missing(libc::SYS_fsopen, [0, usize::MAX, 0, 0, 0, 0]),
    },
    Feature {
        name: "open_tree",
        since: "5.2",
        used_for: "bind mounts as descriptors, resolved before anything of the container's exists",
        fallback: Some("mount(2) with MS_BIND"),
        lost: "sources are looked up by path once more",
        probe: || !missing(libc::SYS_open_tree, [raw::reg(-1), 0, usize::MAX, 0, 0, 0]),
    },
    Feature {
        name: "move_mount",
        since: "5.2",
        used_for: "attaching those mounts",
        fallback: Some("mount(2)"),
        lost: "nothing more than with fsopen and open_tree",
        probe: || !missing(libc::SYS_move_mount, [raw::reg(-1), 0, raw::reg(-1), 0, usize::MAX, 0]),
    },
    Feature {
        name: "mount_setattr",
        since: "5.12",
        used_for: "mount flags, also for whole trees",
        fallback: Some("mount(2) with MS_REMOUNT"),
        lost: "recursive attributes (rro, rnosuid, ...), which are refused then",
        probe: || !missing(libc::SYS_mount_setattr, [raw::reg(-1), 0, usize::MAX, 0, 0, 0]),
    },
    Feature {
        name: "close_range",
        since: "5.9",
        used_for: "closing every descriptor that the container must not get",
        fallback: None,
        lost: "",
        probe: || !missing(libc::SYS_close_range, [2, 1, 0, 0, 0, 0]),
    },
    Feature {
        name: "pidfd_open",
        since: "5.3",
        used_for: "signals and waiting that can never meet another process of the same pid",
        fallback: None,
        lost: "",
        probe: || !missing(libc::SYS_pidfd_open, [raw::reg(-1), usize::MAX, 0, 0, 0, 0]),
    },
    Feature {
        name: "bpf",
        since: "4.15",
        used_for: "device rules, as a program on the container's cgroup2 folder",
        fallback: Some("the v1 devices controller, where one is mounted"),
        lost: "device rules on a unified host, which are refused then",
        probe: || !missing(libc::SYS_bpf, [usize::MAX, 0, 0, 0, 0, 0]),
    },
    Feature {
        name: "faccessat2",
        since: "5.8",
        used_for: "looking for the program with the rights of its user before `create` returns",
        fallback: Some("the look-up is left to execve(2)"),
        lost: "a program without execute permission is reported by `start`, not by `create`",
        probe: || !missing(libc::SYS_faccessat2, [raw::reg(-1), 0, 0, usize::MAX, 0, 0]),
    },
];

/// Calls that the kernel may have in part only, so that no probe tells; named for the table.
pub const PARTIAL: [(&str, &str, &str, &str); 3] = [
    (
        "CLONE_INTO_CGROUP",
        "5.7",
        "birth inside the cgroup",
        "pid written to cgroup.procs before the go signal",
    ),
    (
        "cgroup.kill",
        "5.14",
        "killing all of a container at once",
        "freeze and SIGKILL each, until none is left",
    ),
    (
        "overlay lowerdir+",
        "6.8",
        "the layers of an image, one by one",
        "one lowerdir= string with short names from the scratch folder",
    ),
];

const ENOSYS: i32 = libc::ENOSYS;

/// A filter may also answer EPERM for what it does not know; only ENOSYS means "not there" for sure.
fn missing(number: libc::c_long, arguments: [usize; 6]) -> bool {
    raw::plain(number, arguments) == Err(ENOSYS)
}

/// Names of the calls that are missing here.
#[must_use]
pub fn missing_calls() -> Vec<String> {
    FEATURES.iter().filter(|f| !(f.probe)()).map(|f| f.name.to_owned()).collect()
}

/// The first call that is missing and has no fallback.
#[must_use]
pub fn indispensable(missing: &[String]) -> Option<&'static Feature> {
    FEATURES.iter().find(|f| f.fallback.is_none() && missing.iter().any(|m| m == f.name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn probes_find_every_call_on_a_current_kernel_and_harm_nothing() {
        assert_eq!(super::missing_calls(), Vec::<String>::new());
    }
}
