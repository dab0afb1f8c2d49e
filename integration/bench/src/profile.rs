//! A seccomp profile of the kind that Podman and Docker give every container: a list of what is allowed.

use std::fs;
use std::io::{self, Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpFilterContext, ScmpSyscall};
use serde_json::{Value, json};

/// Of the package linux-libc-dev, which a C compiler brings.
const HEADER: &str = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";

/// What such profiles leave out: calls on the whole machine.
const DENIED: [&str; 24] = [
    "acct",
    "add_key",
    "bpf",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "move_mount",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "swapon",
    "umount2",
    "unshare",
];

const ARCHITECTURES: [(&str, ScmpArch); 3] = [
    ("SCMP_ARCH_X86_64", ScmpArch::X8664),
    ("SCMP_ARCH_X86", ScmpArch::X86),
    ("SCMP_ARCH_X32", ScmpArch::X32),
];

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn names() -> io::Result<Vec<String>> {
    let text = fs::read_to_string(HEADER)?;
    let names =
        text.lines().filter_map(|line| line.strip_prefix("#define __NR_")?.split(' ').next());
    Ok(names.filter(|n| !DENIED.contains(n)).map(str::to_owned).collect())
}

/// `linux.seccomp`.
pub fn profile() -> io::Result<Value> {
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ARCHITECTURES.map(|(name, _)| name),
        "syscalls": [{ "names": names()?, "action": "SCMP_ACT_ALLOW" }],
    }))
}

/// The same as the kernel takes it.
pub fn compiled() -> Result<Vec<u8>, CompileError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(38))?;
    // A binary tree, which the kernel takes in less time than a list.
    filter.set_ctl_optimize(2)?;
    for (_, arch) in &ARCHITECTURES[1..] {
        filter.add_arch(*arch)?;
    }
    for name in names()? {
        let Ok(call) = ScmpSyscall::from_name(&name) else { continue };
        filter.add_rule(ScmpAction::Allow, call)?;
    }
    let mut file = tempfile::tempfile()?;
    filter.export_bpf(&file)?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
