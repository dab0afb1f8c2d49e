use hafen_spec::resolve::FLAG_OPTIONS;
use serde_json::json;

use super::print_json;
use crate::Error;

/// What this runtime honours (runtime-spec, features). Only what is true today.
pub(super) fn features() -> Result<u8, Error> {
    let capabilities: Vec<String> = {
        let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
        all.sort_by_key(caps::Capability::index);
        all.iter().map(ToString::to_string).collect()
    };
    print_json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": [],
        "mountOptions": mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
                ],
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
                ],
                "supportedFlags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } }
        },
        "annotations": {},
        "potentiallyUnsafeConfigAnnotations": []
    }))?;
    Ok(0)
}

fn mount_options() -> Vec<String> {
    let mut all: Vec<String> = ["bind", "rbind", "defaults"].map(str::to_owned).to_vec();
    all.extend(FLAG_OPTIONS.iter().flat_map(|(name, ..)| [(*name).to_owned(), format!("r{name}")]));
    for propagation in ["shared", "slave", "private", "unbindable"] {
        all.extend([propagation.to_owned(), format!("r{propagation}")]);
    }
    all.sort();
    all.dedup();
    all
}
