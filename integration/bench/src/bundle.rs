//! The bundles that are measured.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::host::Host;
use crate::profile;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A process in new pid, mount, ipc and uts namespaces with /proc and /dev
    Minimal,
    /// What `runc spec` writes, without a terminal: network namespace, seven mounts, masked paths
    Default,
    /// `default` with a seccomp profile that allows some 300 calls on three architectures, as Podman gives it
    Podman,
    /// `default` with memory, cpu and pids limits
    Limits,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Default => "default",
            Self::Podman => "podman",
            Self::Limits => "limits",
        }
    }
}

/// Memory in bytes, CPU quota and period in microseconds, number of processes.
pub const MEMORY: u64 = 64 << 20;
pub const QUOTA: u64 = 50_000;
pub const PERIOD: u64 = 100_000;
pub const PIDS: u64 = 32;

/// The controllers that `limits` needs.
pub const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Writes the bundle: a root file system that holds busybox, and config.json.
pub fn make(folder: &Path, config: &Value) -> io::Result<()> {
    let root = folder.join("rootfs");
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .map_err(|e| io::Error::new(e.kind(), format!("/bin/busybox: {e}")))?;
    for name in ["true", "sleep"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(folder.join("config.json"), format!("{config:#}"))
}

/// config.json. The cgroup is named so that what a killed runtime leaves can be found.
pub fn config(kind: Kind, cgroup: &str, host: &Host) -> io::Result<Value> {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process(),
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": mounts(kind),
        "linux": {
            "cgroupsPath": format!("/{cgroup}"),
            "resources": resources(kind),
            "namespaces": namespaces(kind, host),
        }
    });
    if kind != Kind::Minimal {
        config["linux"]["maskedPaths"] = json!([
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi"
        ]);
        config["linux"]["readonlyPaths"] =
            json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    }
    if kind == Kind::Podman {
        config["linux"]["seccomp"] = profile::profile()?;
    }
    Ok(config)
}

fn process() -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": ["/bin/true"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
    })
}

fn mounts(kind: Kind) -> Value {
    let all = json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs",
          "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
          "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
    ]);
    match kind {
        Kind::Minimal => json!([all[0], all[1]]),
        Kind::Default | Kind::Podman | Kind::Limits => all,
    }
}

fn resources(kind: Kind) -> Value {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if kind == Kind::Limits {
        resources["memory"] = json!({ "limit": MEMORY });
        resources["cpu"] = json!({ "quota": QUOTA, "period": PERIOD });
        resources["pids"] = json!({ "limit": PIDS });
    }
    resources
}

/// `runc spec` asks for a cgroup namespace on unified hosts only.
fn namespaces(kind: Kind, host: &Host) -> Value {
    let mut types = vec!["pid", "ipc", "uts", "mount"];
    if kind != Kind::Minimal {
        types.push("network");
        if !host.is_hybrid() {
            types.push("cgroup");
        }
    }
    types.into_iter().map(|t| json!({ "type": t })).collect()
}
