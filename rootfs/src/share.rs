use std::path::{Path, PathBuf};

use hafen_spec::plan::{ChildStep, Claim, HostStep, Tmpfs};
use hafen_spec::resolve::attr;
use hafen_spec::resolved::{Attrs, Mount, MountKind, Namespace, Resolved, SourceLink};

use crate::devices;

/// What the root file system adds to a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    pub claims: Vec<Claim>,
    pub before: Vec<HostStep>,
    pub child: Vec<ChildStep>,
    /// When all is made that belongs into it.
    pub last: Vec<ChildStep>,
}

/// The folders that a `cgroup` mount shows: the container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupView {
    /// Empty where it has none, and is in the root of all cgroups.
    pub tree: PathBuf,
    /// v1 controllers with a folder of the container's own.
    pub legacy: Vec<(String, PathBuf)>,
    /// Some controller of this host is bound to a v1 hierarchy.
    pub hybrid: bool,
}

/// Where the upper layer of an overlay lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scratch {
    pub path: PathBuf,
    /// On the path's own file system: what it may take.
    pub limit: Option<u64>,
    /// In memory instead.
    pub tmpfs: Option<Tmpfs>,
    /// The kernel takes all layers in one text, for which they need short names.
    pub short_names: bool,
}

/// The root file system and everything in it, in the order of the bundle. Pure.
///
/// `rootless`: the runtime is in a user namespace itself.
#[must_use]
pub fn share(resolved: &Resolved, cgroup: &CgroupView, scratch: &Scratch, rootless: bool) -> Share {
    let mut share = Share::default();
    if resolved.root.overlay {
        overlay(&mut share, resolved, scratch);
    } else {
        share.child.push(ChildStep::RootBind {
            path: resolved.root.path.clone(),
            over_root: resolved.in_user_namespace(),
        });
    }
    for mount in &resolved.mounts {
        match mount.kind {
            MountKind::Cgroup { unified } => {
                share.child.extend(cgroup_mounts(mount, cgroup, unified));
            }
            _ => {
                let mut mount = shown(mount, resolved, rootless);
                share.last.extend(lock_later(&mut mount).map(ChildStep::Mount));
                share.child.push(ChildStep::Mount(mount));
            }
        }
    }
    share.child.extend(devices::steps(resolved));
    share
}

fn overlay(share: &mut Share, resolved: &Resolved, scratch: &Scratch) {
    let (root, path) = (&resolved.root, &scratch.path);
    let layers = if scratch.short_names { root.layers() } else { Vec::new() };
    share.claims.push(Claim::Scratch { path: path.clone() });
    share.before.push(HostStep::MakeScratch { path: path.clone() });
    // What is made in the folder belongs to its project only if that is there before.
    let limit = scratch.limit.map(|bytes| HostStep::LimitScratch { path: path.clone(), bytes });
    share.before.extend(limit);
    share.before.push(HostStep::FillScratch {
        path: path.clone(),
        layers,
        owner: resolved.outer_root(),
    });
    share.child.push(ChildStep::RootOverlay {
        lower: root.path.clone(),
        below: root.below.clone(),
        scratch: path.clone(),
        tmpfs: scratch.tmpfs,
        owners: root.owners,
    });
}

/// A read-only `/dev` of the container's own becomes so when its devices and its terminal are in it.
fn lock_later(mount: &mut Mount) -> Option<Mount> {
    let MountKind::New { options, .. } = &mut mount.kind else { return None };
    if mount.destination != "/dev" || mount.attrs.set & attr::RDONLY == 0 {
        return None;
    }
    options.retain(|(name, _)| name != "ro");
    let kind = MountKind::Remount { options: Vec::new() };
    let later = Mount { kind, propagation: Vec::new(), ..mount.clone() };
    mount.attrs.set &= !attr::RDONLY;
    Some(later)
}

/// sysfs shows a network namespace and proc a pid namespace, and each is mounted by who owns that (EPERM otherwise): a
/// container in a user namespace that shares somebody else's sees the host's, as crun has it. Without what is mounted
/// below it, unless the runtime stands in a user namespace itself, where nobody may look behind mounts
/// (mount_namespaces(7)).
fn shown(mount: &Mount, resolved: &Resolved, rootless: bool) -> Mount {
    let MountKind::New { fstype, .. } = &mount.kind else { return mount.clone() };
    let spaces = &resolved.namespaces;
    let (host, own) = match fstype.as_str() {
        "sysfs" => ("/sys", spaces.is_new(Namespace::Network)),
        "proc" => ("/proc", spaces.is_new(Namespace::Pid) || spaces.is_joined(Namespace::Pid)),
        _ => return mount.clone(),
    };
    if own || !resolved.in_user_namespace() {
        return mount.clone();
    }
    Mount {
        kind: MountKind::Bind {
            source: PathBuf::from(host),
            recursive: rootless,
            link: SourceLink::Follow,
        },
        recursive_attrs: if rootless { mount.attrs } else { mount.recursive_attrs },
        ..mount.clone()
    }
}

/// On a unified host, and as `cgroup2`, the container sees its own folder of the one tree; on a hybrid one a tmpfs with its folder of
/// each hierarchy in which it has one. Folders of others, and of the host, are never shown.
fn cgroup_mounts(mount: &Mount, view: &CgroupView, unified: bool) -> Vec<ChildStep> {
    let show = |source: &Path, destination: String| {
        ChildStep::Mount(Mount {
            destination,
            kind: MountKind::Bind {
                source: source.to_owned(),
                recursive: false,
                link: SourceLink::Follow,
            },
            ..mount.clone()
        })
    };
    if view.tree.as_os_str().is_empty() {
        // Nothing is the container's own: an empty folder.
        let folder = hierarchy_folder(&Mount { attrs: Attrs::default(), ..mount.clone() });
        let attrs = mount.attrs;
        return vec![folder, ChildStep::SetAttributes { path: mount.destination.clone(), attrs }];
    }
    if unified || !view.hybrid {
        return vec![show(&view.tree, mount.destination.clone())];
    }
    let mut steps = vec![hierarchy_folder(mount)];
    for (controller, folder) in &view.legacy {
        steps.push(show(folder, format!("{}/{controller}", mount.destination)));
    }
    steps.push(show(&view.tree, format!("{}/unified", mount.destination)));
    if mount.attrs.set & attr::RDONLY != 0 {
        steps.push(ChildStep::SetAttributes {
            path: mount.destination.clone(),
            attrs: Attrs { set: attr::RDONLY, clear: 0 },
        });
    }
    steps
}

/// Writable until the mount points in it are made.
fn hierarchy_folder(mount: &Mount) -> ChildStep {
    ChildStep::Mount(Mount {
        destination: mount.destination.clone(),
        kind: MountKind::New {
            fstype: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            options: vec![("mode".to_owned(), Some("755".to_owned()))],
            copy_up: false,
        },
        on_link: false,
        id_map: None,
        attrs: Attrs { set: mount.attrs.set & !attr::RDONLY, clear: mount.attrs.clear },
        recursive_attrs: Attrs::default(),
        propagation: mount.propagation.clone(),
    })
}
