//! What the benchmark has to know of the machine: its cgroup trees and the kind of
//! file system below a path.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// One line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub root: PathBuf,
    pub point: PathBuf,
    pub fs_type: String,
    /// Options of the file system, which for a v1 hierarchy name its controllers.
    pub options: Vec<String>,
}

/// Lines that cannot be read are left out.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (first, second) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(3);
    let mut second = second.split(' ');
    Some(Mount {
        root: unescape(first.next()?),
        point: unescape(first.next()?),
        fs_type: second.next()?.to_owned(),
        options: second.nth(1)?.split(',').map(str::to_owned).collect(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    plain.iter().fold(path.to_owned(), |p, (from, to)| p.replace(from, to)).into()
}

#[derive(Debug, Clone)]
pub struct Host {
    mounts: Vec<Mount>,
    /// Where the cgroup2 tree is mounted.
    pub unified: PathBuf,
    /// The controllers of the cgroup2 tree.
    pub controllers: Vec<String>,
}

impl Host {
    pub fn read() -> io::Result<Self> {
        let mounts = parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?);
        let whole = |m: &&Mount| m.fs_type == "cgroup2" && m.root == Path::new("/");
        let unified = mounts.iter().find(whole).map(|m| m.point.clone());
        let unified = unified.ok_or_else(|| io::Error::other("no cgroup2 tree is mounted"))?;
        let controllers = fs::read_to_string(unified.join("cgroup.controllers"))?;
        let controllers = controllers.split_whitespace().map(str::to_owned).collect();
        Ok(Self { mounts, unified, controllers })
    }

    /// Mount points of the v1 hierarchies.
    pub fn legacy(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().filter(|m| m.fs_type == "cgroup").map(|m| m.point.as_path())
    }

    /// The v1 hierarchy that has `controller`, if one does.
    pub fn legacy_of(&self, controller: &str) -> Option<&Path> {
        let has = |m: &&Mount| m.fs_type == "cgroup" && m.options.iter().any(|o| o == controller);
        self.mounts.iter().find(has).map(|m| m.point.as_path())
    }

    pub fn is_hybrid(&self) -> bool {
        self.legacy().next().is_some()
    }

    /// What every report says of it.
    pub fn facts(&self) -> Vec<(&'static str, Value)> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = thread::available_parallelism().map_or(1, usize::from);
        vec![
            ("kernel", kernel.trim().into()),
            ("processors", processors.into()),
            ("cgroups", if self.is_hybrid() { "hybrid" } else { "unified" }.into()),
        ]
    }

    /// crun refuses a hybrid host whose cgroup2 tree has controllers. It then runs where an empty file, in `folder`,
    /// covers that list.
    pub fn cover_for(
        &self,
        program: &str,
        folder: &Path,
    ) -> io::Result<Option<(PathBuf, PathBuf)>> {
        if program != "crun" || !self.is_hybrid() || self.controllers.is_empty() {
            return Ok(None);
        }
        let empty = folder.join("empty");
        fs::write(&empty, "")?;
        Ok(Some((self.unified.join("cgroup.controllers"), empty)))
    }

    /// Type of the file system that `path` is on.
    pub fn fs_type(&self, path: &Path) -> &str {
        let below = self.mounts.iter().filter(|m| path.starts_with(&m.point));
        // Of two mounts at one point the later one is on top, and `max_by_key` takes it.
        let deepest = below.max_by_key(|m| m.point.components().count());
        deepest.map_or("unknown", |m| m.fs_type.as_str())
    }

    /// Runtimes keep their state on a tmpfs; where /run is none, it would measure the disk.
    pub fn folder_of_state(&self) -> PathBuf {
        let usual = ["/run", "/dev/shm"].map(PathBuf::from);
        let tmpfs = usual.into_iter().find(|p| self.fs_type(p) == "tmpfs");
        tmpfs.unwrap_or_else(std::env::temp_dir)
    }

    /// Kills what is left in the cgroup `name` of any hierarchy and removes it there.
    /// Returns the folders that were found.
    pub fn sweep(&self, name: &str) -> Vec<PathBuf> {
        let trees = self.legacy().chain([self.unified.as_path()]);
        let left: Vec<PathBuf> = trees.map(|t| t.join(name)).filter(|p| p.exists()).collect();
        for folder in &left {
            remove_cgroup(folder);
        }
        left
    }
}

fn remove_cgroup(folder: &Path) {
    for _ in 0..100 {
        if remove_tree(folder).is_ok() {
            return;
        }
        // The members of a killed cgroup take a moment to leave it.
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    let procs = fs::read_to_string(folder.join("cgroup.procs"))?;
    for pid in procs.lines().filter_map(|l| l.parse().ok()).filter(|p| *p > 0) {
        // Fails only if the process has ended, which is what is wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Lets the children of the cgroup2 root have the controllers that limits need, as every
/// runtime does when it makes its first cgroup, and takes back on drop what it gave.
#[derive(Debug)]
pub struct Delegation {
    file: PathBuf,
    given: Vec<String>,
}

impl Delegation {
    pub fn new(host: &Host, wanted: &[&str]) -> io::Result<Self> {
        let file = host.unified.join("cgroup.subtree_control");
        let now = fs::read_to_string(&file)?;
        let missing = |c: &&String| {
            wanted.contains(&c.as_str()) && !now.split_whitespace().any(|n| n == c.as_str())
        };
        let given: Vec<String> = host.controllers.iter().filter(missing).cloned().collect();
        for controller in &given {
            fs::write(&file, format!("+{controller}"))?;
        }
        Ok(Self { file, given })
    }
}

impl Drop for Delegation {
    fn drop(&mut self) {
        for controller in &self.given {
            // Refused if somebody uses it by now: then it is theirs.
            let _ = fs::write(&self.file, format!("-{controller}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw,size=1k
35 31 0:32 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 master:1 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 27 0:40 /a\\040b /mnt/a\\040b rw - ext4 /dev/vdb rw";

    fn host() -> Host {
        Host {
            mounts: parse_mountinfo(INFO),
            unified: "/sys/fs/cgroup/unified".into(),
            controllers: vec![],
        }
    }

    #[test]
    fn optional_fields_and_escapes() {
        let mounts = parse_mountinfo(INFO);
        assert_eq!(mounts.len(), 6);
        assert_eq!(mounts[3].options, ["rw", "cpu", "cpuacct"]);
        assert_eq!(mounts[5].root, Path::new("/a b"));
    }

    #[test]
    fn controllers_are_found_in_their_hierarchy() {
        let host = host();
        assert!(host.is_hybrid());
        assert_eq!(host.legacy_of("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(host.legacy_of("pids"), None);
        assert_eq!(host.legacy().count(), 2);
    }

    #[test]
    fn a_path_is_on_its_deepest_mount() {
        let host = host();
        assert_eq!(host.fs_type(Path::new("/dev/shm/x")), "tmpfs");
        assert_eq!(host.fs_type(Path::new("/dev/shmx")), "ext4");
    }
}
