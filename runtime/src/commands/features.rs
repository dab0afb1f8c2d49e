use hafen_isolator::seccomp;
use hafen_spec::resolve::{
    COPY_UP, FILE_SYSTEM_FLAGS, FLAG_OPTIONS, MEMORY_FLAGS, MEMORY_MODES, OWN_OPTIONS,
};
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
        "ociVersionMax": "1.3.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
                ],
                "archs": seccomp::architectures(),
                "knownFlags": seccomp::known_flags(),
                "supportedFlags": seccomp::supported_flags(),
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "memoryPolicy": { "modes": names(&MEMORY_MODES), "flags": names(&MEMORY_FLAGS) },
            "netDevices": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "mountExtensions": { "idmap": { "enabled": true } }
        },
        "annotations": {},
        "potentiallyUnsafeConfigAnnotations": []
    }))?;
    Ok(0)
}

fn names(table: &[(&'static str, u32)]) -> Vec<&'static str> {
    table.iter().map(|(name, _)| *name).collect()
}

fn mount_options() -> Vec<String> {
    let own = OWN_OPTIONS.iter().chain(&FILE_SYSTEM_FLAGS).chain(&[COPY_UP]);
    let mut all: Vec<String> = own.map(|name| (*name).to_owned()).collect();
    all.extend(FLAG_OPTIONS.iter().flat_map(|(name, ..)| [(*name).to_owned(), format!("r{name}")]));
    for propagation in ["shared", "slave", "private", "unbindable"] {
        all.extend([propagation.to_owned(), format!("r{propagation}")]);
    }
    all.sort();
    all.dedup();
    all
}
