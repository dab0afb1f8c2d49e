//! Devices and links that every container gets (runtime-spec, config-linux, "Default Devices").

use std::collections::BTreeSet;

use hafen_spec::plan::ChildStep;
use hafen_spec::resolved::{Device, DeviceType, MountKind, Resolved};

/// Path, major, minor (Linux admin-guide/devices.txt).
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    // devpts is mounted with an instance of its own, whose ptmx is inside it.
    ("/dev/ptmx", "pts/ptmx"),
];

/// Nothing is made in a `/dev` that the bundle binds from the host: it is the host's.
pub(crate) fn steps(resolved: &Resolved) -> Vec<ChildStep> {
    let bound = |m: &hafen_spec::resolved::Mount| {
        m.destination == "/dev" && matches!(m.kind, MountKind::Bind { .. })
    };
    if resolved.mounts.iter().any(bound) {
        return Vec::new();
    }
    let named: BTreeSet<&str> = resolved.devices.iter().map(|d| d.path.as_str()).collect();
    let defaults = DEFAULT_DEVICES.iter().filter(|(path, ..)| !named.contains(path)).map(
        |(path, major, minor)| Device {
            path: (*path).to_owned(),
            kind: DeviceType::Char,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        },
    );
    let listed = resolved.devices.iter().cloned();
    let links = LINKS.iter().filter(|(path, _)| !named.contains(path)).map(|(path, target)| {
        ChildStep::Symlink { path: (*path).to_owned(), target: (*target).to_owned() }
    });
    // Device nodes are made by the host's root only (mknod(2), EPERM): in a user namespace the host's own are shown.
    let shown = |device: &Device| {
        resolved.in_user_namespace() && matches!(device.kind, DeviceType::Block | DeviceType::Char)
    };
    let step = |device: Device| {
        if shown(&device) { ChildStep::BindDevice(device) } else { ChildStep::Device(device) }
    };
    defaults.chain(listed).map(step).chain(links).collect()
}
