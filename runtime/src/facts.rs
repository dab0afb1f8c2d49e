//! What this machine is like, asked once.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::Capability;
use hafen_isolator::cgroup;
use hafen_spec::HostFacts;
use hafen_spec::resolve::RLIMITS;
use hafen_sys::file::read_text;
use hafen_sys::{CallError, capability, feature};
use nix::sys::resource::{Resource, getrlimit};

use crate::Error;

/// # Errors
/// Names what could not be read, or the kernel call without which nothing goes.
pub(crate) fn gather() -> Result<HostFacts, Error> {
    let missing_calls = feature::missing_calls();
    if let Some(feature) = feature::indispensable(&missing_calls) {
        return Err(Error::Refused(format!(
            "this kernel, or a seccomp filter around this process, lacks {} (Linux {}), needed for {}",
            feature.name, feature.since, feature.used_for
        )));
    }
    let effective = capability::effective();
    let (bounding, last_cap) = capability::bounding();
    let has = |cap: Capability| effective & cap.bitmask() != 0;
    let euid = nix::unistd::geteuid().as_raw();
    let rootless = euid != 0 || !has(Capability::CAP_SYS_ADMIN) || !in_first_user_namespace();
    let may_raise = !rootless && has(Capability::CAP_SYS_RESOURCE);
    let mut layout = cgroup::discover()?;
    if rootless {
        cgroup::restrict(&mut layout)?;
    }
    Ok(HostFacts {
        cgroup: layout,
        euid,
        egid: nix::unistd::getegid().as_raw(),
        rootless,
        bounding,
        effective,
        last_cap,
        // Asked for only where they bind us.
        oom_score_adj: if may_raise { -1000 } else { own_oom_score_adj()? },
        hard_limits: if may_raise { std::collections::BTreeMap::new() } else { hard_limits() },
        missing_calls,
        apparmor: apparmor(),
        // Mounted by whoever loads a policy.
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        filesystems: Vec::new(),
    })
}

/// The first user namespace always has this number (PROC_USER_INIT_INO, include/linux/proc_ns.h).
fn in_first_user_namespace() -> bool {
    const FIRST: u64 = 0xeffffffd;
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|m| m.ino() == FIRST)
}

fn apparmor() -> bool {
    let enabled = Path::new("/sys/module/apparmor/parameters/enabled");
    std::fs::read_to_string(enabled).is_ok_and(|text| text.trim() == "Y")
}

fn own_oom_score_adj() -> Result<i32, CallError> {
    let text = read_text(Path::new("/proc/self/oom_score_adj"))?;
    Ok(text.trim().parse().unwrap_or(0))
}

fn hard_limits() -> std::collections::BTreeMap<String, u64> {
    const ALL: [Resource; 16] = [
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_STACK,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_AS,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_RTPRIO,
        Resource::RLIMIT_RTTIME,
    ];
    let read = |(resource, (name, _)): (Resource, (&str, u32))| {
        getrlimit(resource).ok().map(|(_, hard)| (name.to_owned(), hard))
    };
    ALL.into_iter().zip(RLIMITS).filter_map(read).collect()
}
