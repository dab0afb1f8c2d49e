//! Where this host's cgroup hierarchies are, and what a process's folder in them says.
//!
//! Functions panic when a file that must be there is not, with its path: they are for tests.

use std::path::{Path, PathBuf};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Version 1: its controllers, or `name=systemd`. Empty for the cgroup2 tree.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether this is the cgroup2 tree.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }
}

/// All mounted hierarchies, in the order of the mount table, each one once.
#[must_use]
pub fn hierarchies() -> Vec<Hierarchy> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in
        table.lines().filter_map(hafen_inside::parse_mountinfo_line).filter(|m| m.root == "/")
    {
        let controllers: Vec<String> = match mount.fstype.as_str() {
            "cgroup2" => Vec::new(),
            "cgroup" => mount
                .super_options
                .into_iter()
                .filter(|o| !matches!(&**o, "rw" | "ro" | "xattr"))
                .collect(),
            _ => continue,
        };
        if !found.iter().any(|h| h.controllers == controllers) {
            found.push(Hierarchy { mount: mount.target.into(), controllers });
        }
    }
    found
}

/// Mount point of the cgroup2 tree.
#[must_use]
pub fn tree() -> Option<PathBuf> {
    hierarchies().into_iter().find(Hierarchy::is_unified).map(|h| h.mount)
}

/// Mount point of the version 1 hierarchy that `controller` is bound to.
#[must_use]
pub fn v1(controller: &str) -> Option<PathBuf> {
    hierarchies()
        .into_iter()
        .find(|h| h.controllers.iter().any(|c| c == controller))
        .map(|h| h.mount)
}

/// The controllers that the cgroup2 tree has.
#[must_use]
pub fn v2_controllers() -> Vec<String> {
    let text = tree()
        .and_then(|t| std::fs::read_to_string(t.join("cgroup.controllers")).ok())
        .unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Whether limits of `controller` can be set here, in either version.
#[must_use]
pub fn has(controller: &str) -> bool {
    v1(controller).is_some() || v2_controllers().iter().any(|c| c == controller)
}

/// The folder that a process is in: of the version 1 hierarchy of `controller` where there is one, else of the
/// cgroup2 tree. An empty `controller` means the tree.
///
/// # Panics
/// When the process or the hierarchy does not exist.
#[must_use]
pub fn folder(pid: i32, controller: &str) -> PathBuf {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let bound = v1(controller);
    let line = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, folder) = (parts.next()?, parts.next()?);
        let ours = if bound.is_some() {
            names.split(',').any(|n| n == controller)
        } else {
            names.is_empty()
        };
        ours.then(|| folder.trim_start_matches('/').to_owned())
    });
    let mount = bound.or_else(tree).expect("no cgroup2 tree is mounted");
    mount.join(line.unwrap_or_else(|| panic!("{path} has no line for {controller:?}: {text}")))
}

/// A cgroup file without the final newline.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn value(folder: &Path, file: &str) -> String {
    let path = folder.join(file);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .trim()
        .to_owned()
}

/// May this process make cgroups? Root may; an ordinary user where the folder above its own is the user's.
#[must_use]
pub fn is_ours() -> bool {
    nix::unistd::geteuid().is_root() || delegated().is_some()
}

/// The folder above our own, if it was given to this user.
#[must_use]
pub fn delegated() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let pid = i32::try_from(std::process::id()).ok()?;
    let above = folder(pid, "").parent()?.to_owned();
    let owner = std::fs::metadata(above.join("cgroup.procs")).ok()?.uid();
    (owner == nix::unistd::geteuid().as_raw()).then_some(above)
}
