use std::path::Path;

use oci_spec::runtime::{Mount as OciMount, Spec};

use super::options::attr;
use super::{MountOptions, Options, check_nul};
use crate::Problems;
use crate::resolved::{Mount, MountKind};

pub(super) fn mounts(spec: &Spec, options: &Options, problems: &mut Problems) -> Vec<Mount> {
    spec.mounts()
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(i, mount)| resolve(mount, i, options, problems))
        .collect()
}

fn resolve(
    mount: &OciMount,
    index: usize,
    options: &Options,
    problems: &mut Problems,
) -> Option<Mount> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    for (name, mappings) in
        [("uidMappings", mount.uid_mappings()), ("gidMappings", mount.gid_mappings())]
    {
        if mappings.as_ref().is_some_and(|m| !m.is_empty()) {
            problems.add(field(name), "is not supported yet");
        }
    }
    let given = mount.options().clone().unwrap_or_default();
    let sorted = MountOptions::sort(&given);
    for option in &sorted.unsupported {
        problems.add(field("options"), format!("{option} is not supported yet"));
    }
    let destination = destination(mount, &field("destination"), problems)?;
    let kind = kind(mount, &sorted, options, &field, problems)?;
    check_procfs(&destination, &kind, &field("destination"), problems);
    Some(Mount {
        destination,
        kind,
        attrs: sorted.attrs,
        recursive_attrs: sorted.recursive_attrs,
        propagation: sorted.propagation,
    })
}

fn destination(mount: &OciMount, field: &str, problems: &mut Problems) -> Option<String> {
    let path = mount.destination().to_string_lossy();
    check_nul(&path, field, problems);
    // Before 1.0 a destination could be relative, and clients still write it so.
    let absolute = format!("/{}", path.trim_start_matches('/'));
    let clean: Vec<&str> =
        absolute.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if path.is_empty() || clean.is_empty() {
        problems.add(field, "must name a place below /");
        return None;
    }
    if clean.contains(&"..") {
        problems.add(field, format!("{path:?} must not contain \"..\""));
        return None;
    }
    Some(format!("/{}", clean.join("/")))
}

/// Files of procfs that clients cover to show a container its own share of the machine (as runc has it).
const COVERED: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// An image may declare volumes: one over procfs would hide from the container's programs, and from those who enter it,
/// what the kernel says and enforces there (CVE-2019-16884, CVE-2019-19921). The words are runc's.
fn check_procfs(destination: &str, kind: &MountKind, field: &str, problems: &mut Problems) {
    let host = |source: &Path| source == Path::new("/proc");
    match kind {
        MountKind::New { fstype, .. } if fstype == "proc" => {}
        MountKind::Bind { source, .. } if destination == "/proc" && host(source) => {}
        _ if destination == "/proc" => {
            problems.add(field, "\"/proc\" cannot be mounted because it is not of type proc");
        }
        _ if destination.starts_with("/proc/") && !COVERED.contains(&destination) => {
            let why = format!("{destination:?} cannot be mounted because it is inside /proc");
            problems.add(field, why);
        }
        _ => {}
    }
}

fn kind(
    mount: &OciMount,
    sorted: &MountOptions,
    options: &Options,
    field: &dyn Fn(&str) -> String,
    problems: &mut Problems,
) -> Option<MountKind> {
    let fstype = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().as_ref().map(|s| s.to_string_lossy().into_owned());
    if let Some(source) = &source {
        check_nul(source, &field("source"), problems);
    }
    match (sorted.bind, fstype) {
        (Some(_), _) | (None, "bind" | "rbind") => {
            if let Some((key, _)) = sorted.data.first() {
                problems.add(field("options"), format!("{key:?} is no option of a bind mount"));
            }
            let Some(source) = source.filter(|s| !s.is_empty()) else {
                problems.add(field("source"), "is missing: a bind mount needs one");
                return None;
            };
            Some(MountKind::Bind {
                source: options.bundle.join(source),
                recursive: sorted.bind.unwrap_or(fstype == "rbind"),
            })
        }
        (None, "cgroup" | "cgroup2") => Some(MountKind::Cgroup),
        (None, "" | "none") => {
            problems.add(field("type"), "is missing: name a file system, or bind in the options");
            None
        }
        (None, fstype) => {
            if !sorted.recursive_attrs.is_empty() {
                problems.add(field("options"), "recursive attributes are for bind mounts");
            }
            Some(MountKind::New {
                fstype: fstype.to_owned(),
                source: source.unwrap_or_else(|| fstype.to_owned()),
                options: parameters(sorted),
            })
        }
    }
}

/// A new file system asked for read-only is read-only itself, not only this mount of it.
fn parameters(sorted: &MountOptions) -> Vec<(String, Option<String>)> {
    let mut all = sorted.data.clone();
    if sorted.attrs.set & attr::RDONLY != 0 {
        all.push(("ro".to_owned(), None));
    }
    all
}
