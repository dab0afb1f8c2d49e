//! A bundle on any host: resolved and planned, or refused by field; never a panic. Sixteen bytes say what the host is
//! like, the rest is `config.json`.

#![no_main]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use hafen_rootfs::{CgroupView, Scratch};
use hafen_spec::HostFacts;
use hafen_spec::facts::CgroupLayout;
use hafen_spec::parse::parse;
use hafen_spec::plan::Tmpfs;
use hafen_spec::resolve::{Options, resolve};
use libfuzzer_sys::fuzz_target;

const HOST: usize = 16;

/// What the sixteen bytes say.
#[derive(Debug, Arbitrary)]
struct Host {
    unified: u16,
    legacy: u16,
    bounding: u32,
    effective: u32,
    has_tree: bool,
    lacks: u8,
    security: u8,
    user: bool,
}

fuzz_target!(|bytes: &[u8]| {
    let Some((host, text)) = bytes.split_at_checked(HOST) else { return };
    let Ok(host) = Host::arbitrary(&mut Unstructured::new(host)) else { return };
    let Ok(spec) = parse(text) else { return };
    let (facts, options) = (facts(&host), options(&host));
    let resolved = match resolve(&spec, &facts, &options) {
        Ok(resolved) => resolved,
        Err(problems) => {
            assert!(!problems.0.is_empty(), "refused without a reason");
            return;
        }
    };
    assert!(
        !resolved.cgroup.split('/').any(|part| part == ".."),
        "a cgroup outside: {}",
        resolved.cgroup
    );
    for mount in &resolved.mounts {
        assert!(mount.destination.starts_with('/') && !mount.destination.contains("/../"));
    }
    let view =
        CgroupView { tree: PathBuf::from("/tree"), hybrid: host.has_tree, ..CgroupView::default() };
    let tmpfs = host.user.then(Tmpfs::default);
    let scratch = Scratch { path: PathBuf::from("/scratch"), tmpfs, ..Scratch::default() };
    let _ = hafen_rootfs::share(&resolved, &view, &scratch, facts.rootless);
});

fn facts(host: &Host) -> HostFacts {
    const CONTROLLERS: [&str; 12] = [
        "cpu", "cpuset", "memory", "pids", "io", "blkio", "devices", "hugetlb", "rdma", "net_cls",
        "net_prio", "freezer",
    ];
    const CALLS: [&str; 8] = [
        "clone3",
        "fsopen",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "openat2",
        "clone_into_cgroup",
        "faccessat2",
    ];
    let chosen = |bits: u16| {
        CONTROLLERS
            .into_iter()
            .enumerate()
            .filter(move |(i, _)| bits >> i & 1 == 1)
            .map(|(_, name)| name)
    };
    let unified: Vec<String> = chosen(host.unified).map(str::to_owned).collect();
    let legacy: BTreeMap<String, PathBuf> = chosen(host.legacy)
        .filter(|name| !unified.iter().any(|u| u == name))
        .map(|name| (name.to_owned(), Path::new("/v1").join(name)))
        .collect();
    let lacks = CALLS.into_iter().enumerate().filter(|(i, _)| host.lacks >> i & 1 == 1);
    HostFacts {
        cgroup: CgroupLayout {
            tree: host.has_tree.then(|| PathBuf::from("/tree")),
            unified,
            legacy,
            ..CgroupLayout::default()
        },
        euid: if host.user { 1000 } else { 0 },
        rootless: host.user,
        bounding: u64::from(host.bounding) << 9 | 0x1ff,
        effective: u64::from(host.effective) << 9 | 0x1ff,
        last_cap: 40,
        missing_calls: lacks.map(|(_, name)| name.to_owned()).collect(),
        apparmor: host.security & 1 == 1,
        selinux: host.security & 2 == 2,
        ..HostFacts::default()
    }
}

fn options(host: &Host) -> Options {
    Options {
        id: "fuzz".to_owned(),
        bundle: PathBuf::from("/bundle"),
        no_pivot: host.security & 4 == 4,
        no_new_keyring: host.security & 8 == 8,
        overlay: host.security & 16 == 16,
        ..Options::default()
    }
}
