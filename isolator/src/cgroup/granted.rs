//! What an ordinary user may use of the cgroup2 tree (cgroups(7), "Cgroup delegation").

use std::path::{Path, PathBuf};

use hafen_spec::facts::{CgroupLayout, Granted};
use hafen_sys::CallError;
use hafen_sys::file::read_text;
use nix::unistd::{AccessFlags, access};

use super::folder::Folder;

const OWN: &str = "/proc/self/cgroup";

/// Take out of a layout what is not for this runtime: v1 hierarchies, and all of the tree but what was delegated.
///
/// # Errors
/// Names the file that cannot be read.
pub fn restrict(layout: &mut CgroupLayout) -> Result<(), CallError> {
    layout.legacy.clear();
    let Some(tree) = layout.tree.clone() else { return Ok(()) };
    let own = own_folder(&read_text(Path::new(OWN))?);
    let base = base(&tree, &own);
    let offered = base.as_deref().map(|base| tree.join(base)).and_then(|path| {
        let folder = Folder::open(&path).ok()?;
        folder.read("cgroup.controllers").ok()
    });
    layout.unified = offered.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    layout.granted = Some(Granted { own, base });
    Ok(())
}

/// The line of the cgroup2 tree (proc_pid_cgroup(5)).
fn own_folder(text: &str) -> PathBuf {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    // Outside of our cgroup namespace: nothing of it can be reached.
    if path.starts_with("..") { PathBuf::new() } else { PathBuf::from(path) }
}

/// The own folder or the nearest above it that is ours and holds no processes, which alone can pass controllers on. Where
/// there is none the own folder, if it is ours: containers can be told apart there, though not limited.
fn base(tree: &Path, own: &Path) -> Option<PathBuf> {
    let mut ours = own.ancestors().take_while(|folder| is_ours(&tree.join(folder))).peekable();
    let first = ours.peek().map(|folder| (*folder).to_owned());
    ours.find(|folder| is_free(&tree.join(folder))).map(Path::to_owned).or(first)
}

/// To move a process needs `cgroup.procs` of the folder above both places.
fn is_ours(folder: &Path) -> bool {
    [folder.to_owned(), folder.join("cgroup.procs")]
        .iter()
        .all(|path| access(path, AccessFlags::W_OK).is_ok())
}

fn is_free(folder: &Path) -> bool {
    let folder = Folder::open(folder);
    folder.and_then(|f| f.read("cgroup.procs")).is_ok_and(|pids| pids.is_empty())
}

/// Where a container's folder is, relative to the tree: as the bundle says where the user may make it there, otherwise
/// below what was delegated.
#[must_use]
pub fn place(name: &str, layout: &CgroupLayout) -> String {
    let granted = layout.granted.as_ref().and_then(|g| g.base.as_deref());
    let (Some(base), Some(tree)) = (granted, layout.tree.as_deref()) else {
        return name.to_owned();
    };
    let above = Path::new(name).ancestors().skip(1).map(|folder| tree.join(folder));
    if above.into_iter().find(|f| f.exists()).is_some_and(|f| f != tree && is_ours(&f)) {
        return name.to_owned();
    }
    base.join(name).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_folder_is_that_of_the_tree() {
        assert_eq!(own_folder("4:pids:/x\n0::/user.slice/a b\n"), Path::new("user.slice/a b"));
        assert_eq!(own_folder("0::/\n"), Path::new(""));
        assert_eq!(own_folder("0::/../elsewhere\n"), Path::new(""));
    }
}
