//! What this host can enforce, what each lack costs, and how to get the rest.

use std::path::Path;

use caps::Capability;
use hafen_spec::HostFacts;
use hafen_spec::facts::Home;
use hafen_sys::feature::{FEATURES, PARTIAL};
use hafen_sys::file::read_text;
use serde::Serialize;

use super::{print, print_json};
use crate::cli::TextFormat;
use crate::{Error, facts};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    found: String,
    /// What is lost, and how to get it; empty where nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    cost: String,
}

fn fine(what: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding { what: what.into(), ok: true, found: found.into(), cost: String::new() }
}

fn lacking(what: impl Into<String>, found: impl Into<String>, cost: impl Into<String>) -> Finding {
    Finding { what: what.into(), ok: false, found: found.into(), cost: cost.into() }
}

pub(super) fn doctor(format: TextFormat) -> Result<u8, Error> {
    let facts = facts::gather()?;
    let mut findings = vec![fine("kernel", read("/proc/sys/kernel/osrelease"))];
    findings.push(privilege(&facts));
    findings.push(tree(&facts));
    findings.extend(CONTROLLERS.iter().map(|(name, limits)| controller(&facts, name, limits)));
    findings.push(devices(&facts));
    findings.push(overlay());
    findings.push(user_namespaces());
    if facts.rootless {
        findings.push(delegated(&facts));
        findings.push(subordinate_ids(&facts));
    }
    findings.push(seccomp());
    findings.push(calls(&facts));
    match format {
        TextFormat::Json => print_json(&findings)?,
        TextFormat::Text => print(&text(&findings)),
    }
    Ok(0)
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.what.len()).max().unwrap_or(0);
    let line = |f: &Finding| {
        let mark = if f.ok { "ok     " } else { "lacking" };
        let cost = if f.cost.is_empty() {
            String::new()
        } else {
            format!("\n{:w$}{}", "", f.cost, w = width + 9)
        };
        format!("{:width$} {mark} {}{cost}", f.what, f.found)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn read(path: &str) -> String {
    read_text(Path::new(path)).map_or_else(|_| "unknown".to_owned(), |t| t.trim().to_owned())
}

fn privilege(facts: &HostFacts) -> Finding {
    if facts.rootless {
        let who = if facts.enters() { "uid" } else { "root of a user namespace, uid" };
        return lacking(
            "privilege",
            format!("{who} {}", facts.euid),
            "bundles need a user namespace, as \"spec --rootless\" writes it; device rules, hard rlimits above one's own and a lower \
             oom_score_adj need root of the machine",
        );
    }
    if facts.has_capability(Capability::CAP_SYS_RESOURCE) {
        return fine("privilege", "root");
    }
    lacking(
        "privilege",
        "root without CAP_SYS_RESOURCE",
        "hard rlimits cannot be raised and oom_score_adj not lowered: both are clamped to the runtime's own",
    )
}

/// cgroups(7), "Cgroup delegation".
fn delegated(facts: &HostFacts) -> Finding {
    let granted = facts.cgroup.granted.as_ref();
    match granted.and_then(|g| g.base.as_deref()) {
        Some(base) => fine(
            "delegated cgroup",
            format!("/{} with {}", base.display(), facts.cgroup.unified.join(" ")),
        ),
        None => lacking(
            "delegated cgroup",
            "none",
            "containers run without a cgroup, and bundles with limits are refused: log in through systemd, or use \"systemd-run --user --scope -p Delegate=yes\"",
        ),
    }
}

/// subuid(5).
fn subordinate_ids(facts: &HostFacts) -> Finding {
    const WHAT: &str = "subordinate ids";
    const COST: &str = "only one's own id can be mapped";
    let uid = facts.euid.to_string();
    // Not through the C library: a static program must not load its plug-ins.
    let accounts = read_text(Path::new("/etc/passwd")).unwrap_or_default();
    let own = |line: &&str| line.split(':').nth(2) == Some(uid.as_str());
    let name = accounts.lines().find(own).and_then(|l| l.split(':').next()).unwrap_or(&uid);
    let range = |file: &str| {
        let text = read_text(Path::new(file)).unwrap_or_default();
        let of_user = |line: &&str| {
            let owner = line.split(':').next().unwrap_or_default();
            owner == name || owner == uid
        };
        text.lines().find(of_user).map(|line| format!("{file} {line}"))
    };
    let programs = ["newuidmap", "newgidmap"].map(on_path);
    match (range("/etc/subuid").zip(range("/etc/subgid")), programs) {
        (_, [false, _] | [_, false]) => {
            lacking(WHAT, "no newuidmap or newgidmap", format!("{COST}: install package uidmap"))
        }
        (None, _) => lacking(
            WHAT,
            "no range in /etc/subuid and /etc/subgid",
            format!("{COST}: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"),
        ),
        (Some((uids, gids)), _) => fine(WHAT, format!("{uids}, {gids}")),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Controllers with the limits that stand on each.
const CONTROLLERS: [(&str, &str); 7] = [
    ("cpu", "cpu shares, quota, burst"),
    ("memory", "memory limit, reservation, swap"),
    ("pids", "pids limit"),
    ("cpuset", "cpus and mems"),
    ("io", "block I/O"),
    ("hugetlb", "huge pages"),
    ("rdma", "RDMA"),
];

fn tree(facts: &HostFacts) -> Finding {
    match &facts.cgroup.tree {
        Some(path) => fine("cgroup2", format!("mounted on {}", path.display())),
        None => lacking(
            "cgroup2",
            "mounted nowhere",
            "no container can be run: mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

fn controller(facts: &HostFacts, name: &str, limits: &str) -> Finding {
    let what = format!("cgroup {name}");
    // The one controller whose name is another in v1.
    let old = name == "io" && facts.cgroup.home("blkio") == Home::Legacy;
    let name = if old && facts.cgroup.home(name) == Home::Absent { "blkio" } else { name };
    match facts.cgroup.home(name) {
        Home::Unified => fine(what, format!("cgroup2: {limits} hold")),
        Home::Legacy => {
            let path =
                facts.cgroup.legacy.get(name).map_or_else(String::new, |p| p.display().to_string());
            lacking(
                what,
                format!("v1 hierarchy on {path}: {limits} hold"),
                format!("{}; for all of it boot with cgroup_no_v1={name}", v1_cost(name)),
            )
        }
        Home::Absent => lacking(
            what,
            "not there",
            format!(
                "{limits} are refused: boot without cgroup_disable={name}, or mount the hierarchy"
            ),
        ),
    }
}

fn v1_cost(name: &str) -> &'static str {
    match name {
        "memory" => "no memory.high, memory.oom.group or pressure",
        "cpu" => "entering costs a migration at each start",
        _ => "the process is moved into it before it goes on, not born in it",
    }
}

/// The program is attached to the cgroup2 folder (Linux 4.15).
fn devices(facts: &HostFacts) -> Finding {
    if facts.has_capability(Capability::CAP_SYS_ADMIN) {
        if facts.cgroup.home("devices") == Home::Legacy {
            let how = "v1 devices controller; an eBPF program for rules that it cannot say";
            return fine("device rules", how);
        }
        return fine("device rules", "eBPF program on the container's cgroup2 folder");
    }
    lacking("device rules", "eBPF needs CAP_SYS_ADMIN", "bundles with device rules are refused")
}

fn overlay() -> Finding {
    let known = read_text(Path::new("/proc/filesystems")).unwrap_or_default();
    if known.lines().any(|l| l.trim_start_matches("nodev").trim() == "overlay") {
        return fine("overlay", "known to the kernel");
    }
    lacking("overlay", "not loaded", "run --rootfs needs it: modprobe overlay")
}

fn user_namespaces() -> Finding {
    let most = read("/proc/sys/user/max_user_namespaces");
    if most.parse::<u64>().is_ok_and(|n| n > 0) {
        return fine("user namespaces", format!("up to {most}"));
    }
    lacking(
        "user namespaces",
        most,
        "bundles with one are refused: sysctl user.max_user_namespaces",
    )
}

fn seccomp() -> Finding {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    if actions == "unknown" {
        return lacking(
            "seccomp",
            "not in this kernel",
            "bundles with a profile are refused: CONFIG_SECCOMP_FILTER",
        );
    }
    fine("seccomp", actions)
}

fn calls(facts: &HostFacts) -> Finding {
    let missing: Vec<String> = FEATURES
        .iter()
        .filter(|f| facts.lacks(f.name))
        .map(|f| {
            format!(
                "{} (Linux {}): {} instead; lost: {}",
                f.name,
                f.since,
                f.fallback.unwrap_or("nothing"),
                f.lost
            )
        })
        .collect();
    if missing.is_empty() {
        let all: Vec<&str> =
            FEATURES.iter().map(|f| f.name).chain(PARTIAL.iter().map(|p| p.0)).collect();
        return fine("kernel calls", all.join(" "));
    }
    lacking("kernel calls", "some are missing", missing.join("; "))
}
