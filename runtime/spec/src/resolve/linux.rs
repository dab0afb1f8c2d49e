use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Spec,
};

use super::check_nul;
use super::options::named_propagation;
use crate::Problems;
use crate::resolved::{Device, DeviceRule, DeviceType, Namespace, Namespaces, Propagation};

/// Longest host and domain name (uname(2): 65 bytes with the NUL).
const LONGEST_UTS_NAME: usize = 64;
/// NAME_MAX (limits.h).
const LONGEST_NAME: usize = 255;
/// PATH_MAX (limits.h) with room for the mount point before it and the file's name after it.
const LONGEST_CGROUP_PATH: usize = 3072;
const DEFAULT_DEVICE_MODE: u32 = 0o666;

pub(super) fn namespaces(spec: &Spec, problems: &mut Problems) -> Namespaces {
    let mut found = Namespaces::default();
    let listed = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    for (i, namespace) in listed.into_iter().flatten().enumerate() {
        let kind = kind(namespace.typ());
        if found.is_private(kind) {
            problems.add(
                format!("linux.namespaces[{i}].type"),
                format!("{} is listed twice", namespace.typ()),
            );
        }
        match namespace.path().as_deref().filter(|p| !p.as_os_str().is_empty()) {
            None => found.new.push(kind),
            Some(path) => {
                if !path.is_absolute() {
                    problems.add(
                        format!("linux.namespaces[{i}].path"),
                        format!("{} must be absolute", path.display()),
                    );
                }
                found.joined.push((kind, path.to_owned()));
            }
        }
    }
    found
}

/// Does the bundle want a user namespace, new or joined?
#[must_use]
pub fn has_user_namespace(spec: &Spec) -> bool {
    let listed = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    listed.into_iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User)
}

const fn kind(typ: LinuxNamespaceType) -> Namespace {
    match typ {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}

pub(super) fn uts_name(
    name: &Option<String>,
    field: &str,
    namespaces: &Namespaces,
    problems: &mut Problems,
) -> Option<String> {
    let name = name.as_ref().filter(|n| !n.is_empty())?;
    if !namespaces.is_private(Namespace::Uts) {
        problems.add(field, "needs a uts namespace of its own in linux.namespaces");
    }
    if name.len() > LONGEST_UTS_NAME {
        problems.add(field, format!("is longer than {LONGEST_UTS_NAME} bytes"));
    }
    check_nul(name, field, problems);
    Some(name.clone())
}

pub(super) fn rootfs_propagation(spec: &Spec, problems: &mut Problems) -> Option<Propagation> {
    let name = spec.linux().as_ref()?.rootfs_propagation().as_deref().filter(|n| !n.is_empty())?;
    let found = named_propagation(name);
    if found.is_none() {
        problems.add(
            "linux.rootfsPropagation",
            format!("{name:?} is none of shared, slave, private, unbindable"),
        );
    }
    found
}

pub(super) fn paths(spec: &Spec, which: &str, problems: &mut Problems) -> Vec<String> {
    let Some(linux) = spec.linux() else { return Vec::new() };
    let list = if which == "maskedPaths" { linux.masked_paths() } else { linux.readonly_paths() };
    let list = list.clone().unwrap_or_default();
    for (i, path) in list.iter().enumerate() {
        let field = format!("linux.{which}[{i}]");
        check_nul(path, &field, problems);
        if !path.starts_with('/') {
            problems.add(field, format!("{path:?} must be absolute"));
        }
    }
    list
}

pub(super) fn devices(spec: &Spec, problems: &mut Problems) -> Vec<Device> {
    let listed = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    let mut devices: Vec<Device> = Vec::new();
    for (i, device) in listed.into_iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.devices[{i}].{name}");
        let path = device.path().to_string_lossy().into_owned();
        check_nul(&path, &field("path"), problems);
        if !path.starts_with('/') || Path::new(&path).file_name().is_none() || path.contains("/../")
        {
            problems.add(field("path"), format!("{path:?} is not an absolute path of a file"));
        }
        if devices.iter().any(|d| d.path == path) {
            problems.add(field("path"), format!("{path:?} is listed twice"));
        }
        let Some(kind) = device_type(device.typ()) else {
            problems.add(field("type"), "must be one of c, b, u, p");
            continue;
        };
        let mut number = |n: i64, name: &str| {
            u32::try_from(n).unwrap_or_else(|_| {
                problems.add(field(name), format!("{n} is not a device number"));
                0
            })
        };
        devices.push(Device {
            kind,
            major: number(device.major(), "major"),
            minor: number(device.minor(), "minor"),
            mode: device.file_mode().unwrap_or(DEFAULT_DEVICE_MODE) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        });
    }
    devices
}

const fn device_type(typ: LinuxDeviceType) -> Option<DeviceType> {
    match typ {
        LinuxDeviceType::B => Some(DeviceType::Block),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(DeviceType::Char),
        LinuxDeviceType::P => Some(DeviceType::Fifo),
        LinuxDeviceType::A => None,
    }
}

/// A negative number stands for "any" in rules, as clients write them.
fn wildcard(number: Option<i64>) -> Option<u32> {
    number.and_then(|n| u32::try_from(n).ok())
}

pub(super) fn device_rules(spec: &Spec, problems: &mut Problems) -> Vec<DeviceRule> {
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    resources
        .and_then(|r| r.devices().as_ref())
        .map(|list| rules(list, problems))
        .unwrap_or_default()
}

pub(super) fn rules(list: &[LinuxDeviceCgroup], problems: &mut Problems) -> Vec<DeviceRule> {
    let mut resolved = Vec::new();
    for (i, rule) in list.iter().enumerate() {
        let access =
            rule.access().clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "rwm".to_owned());
        if let Some(c) = access.chars().find(|c| !"rwm".contains(*c)) {
            problems.add(
                format!("linux.resources.devices[{i}].access"),
                format!("{c:?} is none of r, w, m"),
            );
        }
        if rule.typ() == Some(LinuxDeviceType::P) {
            problems.add(format!("linux.resources.devices[{i}].type"), "must be one of a, b, c");
        }
        resolved.push(DeviceRule {
            allow: rule.allow(),
            kind: rule.typ().and_then(device_type),
            major: wildcard(rule.major()),
            minor: wildcard(rule.minor()),
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        });
    }
    resolved
}

pub(super) fn seccomp(spec: &Spec, problems: &mut Problems) -> Option<LinuxSeccomp> {
    let mut seccomp = spec.linux().as_ref()?.seccomp().clone()?;
    let notifies = seccomp.default_action() == LinuxSeccompAction::ScmpActNotify
        || seccomp
            .syscalls()
            .iter()
            .flatten()
            .any(|s| s.action() == LinuxSeccompAction::ScmpActNotify);
    let path =
        seccomp.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty()).cloned();
    let mut wrong = |field: &str, reason: &str| {
        problems.add(format!("linux.seccomp.{field}"), reason);
    };
    match &path {
        None if notifies => wrong("listenerPath", "is needed with SCMP_ACT_NOTIFY"),
        None if seccomp.listener_metadata().is_some() => {
            wrong("listenerMetadata", "must not be set without listenerPath");
        }
        Some(path) if !path.is_absolute() => wrong("listenerPath", "must be absolute"),
        _ => {}
    }
    // Nobody would be heard there.
    seccomp.set_listener_path(path.filter(|_| notifies));
    Some(seccomp)
}

pub(super) fn sysctl(
    spec: &Spec,
    namespaces: &Namespaces,
    problems: &mut Problems,
) -> BTreeMap<String, String> {
    let listed = spec.linux().as_ref().and_then(|l| l.sysctl().as_ref());
    let all: BTreeMap<String, String> =
        listed.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    for (key, value) in &all {
        let field = format!("linux.sysctl[{key:?}]");
        check_nul(key, &field, problems);
        check_nul(value, &field, problems);
        if let Err(reason) = check_sysctl(key, namespaces) {
            problems.add(field, reason);
        }
    }
    all
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same setting (sysctl.d(5)).
#[must_use]
pub fn sysctl_path(key: &str) -> String {
    let slash_first = key.find('/').is_some_and(|s| key.find('.').is_none_or(|d| s < d));
    if slash_first {
        return key.to_owned();
    }
    key.chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect()
}

const IPC_SYSCTLS: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Only settings that a namespace of the container's own holds may be changed: others are the host's.
fn check_sysctl(key: &str, namespaces: &Namespaces) -> Result<(), String> {
    let path = sysctl_path(key);
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("is not the name of a setting".to_owned());
    }
    let needed = if IPC_SYSCTLS.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
        Namespace::Ipc
    } else if path.starts_with("net/") {
        Namespace::Network
    } else if path == "kernel/domainname" {
        Namespace::Uts
    } else if path == "kernel/hostname" {
        return Err("use the field hostname".to_owned());
    } else {
        return Err("belongs to the whole machine, to no namespace".to_owned());
    };
    if namespaces.is_private(needed) {
        return Ok(());
    }
    Err(format!("needs a {} namespace of its own in linux.namespaces", needed.file()))
}

pub(super) fn cgroup(spec: &Spec, id: &str, problems: &mut Problems) -> String {
    let given = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    let Some(path) = given.filter(|p| !p.as_os_str().is_empty()) else {
        return format!("hafen/{id}");
    };
    let text = path.to_string_lossy();
    check_nul(&text, "linux.cgroupsPath", problems);
    let parts: Vec<&str> =
        text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        problems.add(
            "linux.cgroupsPath",
            format!("{text:?} must name a folder below the root of the cgroup tree"),
        );
    }
    // cgroup file systems make folders with longer names, which nothing can list or remove by path afterwards.
    if parts.iter().any(|part| part.len() > LONGEST_NAME) || text.len() > LONGEST_CGROUP_PATH {
        problems.add(
            "linux.cgroupsPath",
            format!(
                "is longer than {LONGEST_CGROUP_PATH} bytes, or a name in it than {LONGEST_NAME}"
            ),
        );
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_setting_lead_to_one_file() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.100/forwarding"),
            "net/ipv4/conf/eth0.100/forwarding"
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/100.forwarding"),
            "net/ipv4/conf/eth0.100/forwarding"
        );
    }

    #[test]
    fn settings_of_the_machine_are_refused() {
        let own = Namespaces {
            new: vec![Namespace::Ipc, Namespace::Network, Namespace::Uts],
            joined: Vec::new(),
        };
        assert!(check_sysctl("net.ipv4.ip_forward", &own).is_ok());
        assert!(check_sysctl("kernel.shmmax", &own).is_ok());
        assert!(check_sysctl("fs.mqueue.msg_max", &own).is_ok());
        for key in [
            "kernel.core_pattern",
            "vm.swappiness",
            "kernel.hostname",
            "net..x",
            "net.../../kernel",
        ] {
            assert!(check_sysctl(key, &own).is_err(), "{key}");
        }
        assert!(check_sysctl("net.ipv4.ip_forward", &Namespaces::default()).is_err());
    }
}
