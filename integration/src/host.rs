//! What a test may not change: the host as far as a container runtime could touch it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup;

/// A snapshot. Two are compared by [`Host::difference`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Kind of thing -> the things, with how often each is there.
    things: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Host {
    /// Looks at the host. Zombies of this process are reaped first, so every `Child` must have been waited for.
    #[must_use]
    pub fn snapshot() -> Self {
        reap();
        let things = [
            ("mount", mounts()),
            ("cgroup", cgroups()),
            ("process", descendants(std::process::id()).into_values().collect()),
            ("file", scratch_files()),
            ("interface", names(Path::new("/sys/class/net"))),
            ("name", host_names()),
        ];
        Self { things: things.into_iter().map(|(kind, list)| (kind, count(list))).collect() }
    }

    /// One line for each thing that came (`+`) or went (`-`).
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let none = BTreeMap::new();
        let mut lines = Vec::new();
        for (kind, before) in &self.things {
            let now = after.things.get(kind).unwrap_or(&none);
            let all: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
            for thing in all {
                match before.get(thing).cmp(&now.get(thing)) {
                    std::cmp::Ordering::Less => lines.push(format!("+ {kind} {thing}")),
                    std::cmp::Ordering::Greater => lines.push(format!("- {kind} {thing}")),
                    std::cmp::Ordering::Equal => {}
                }
            }
        }
        lines
    }
}

fn count(list: Vec<String>) -> BTreeMap<String, usize> {
    list.into_iter().fold(BTreeMap::new(), |mut counts, thing| {
        *counts.entry(thing).or_default() += 1;
        counts
    })
}

fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Without the ids, which say nothing to a reader.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).map(str::to_owned).collect()
}

/// Mount points at and below `folder`, innermost first.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let all = table
        .lines()
        .filter_map(hafen_inside::parse_mountinfo_line)
        .map(|m| PathBuf::from(m.target));
    let mut found: Vec<PathBuf> = all.filter(|target| target.starts_with(folder)).collect();
    found.reverse();
    found
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in cgroup::hierarchies() {
        walk_cgroup(&hierarchy.mount, &mut found);
    }
    found
}

/// The folder with the controllers it gives to its children, so that a change of these shows, too.
fn walk_cgroup(folder: &Path, found: &mut Vec<String>) {
    let controllers = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    found.push(format!("{} [{}]", folder.display(), controllers.trim()));
    for child in folders(folder) {
        // The machine's own supervisor makes and removes folders there all the time.
        if child.file_name().is_none_or(|name| name != "process_api") {
            walk_cgroup(&child, found);
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|e| e.path().display().to_string()).collect()
}

fn host_names() -> Vec<String> {
    ["hostname", "domainname"]
        .iter()
        .filter_map(|name| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
            Some(format!("{name} {}", text.trim()))
        })
        .collect()
}

/// Where a runtime leaves things: what is in `/run`, in network namespace folders and in shared memory, and whatever
/// bears the product's name.
fn scratch_files() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["/run", "/run/netns", "/dev/shm", "/dev"] {
        // A hidden name is a temporary file of some program of the host's.
        found.extend(names(Path::new(folder)).into_iter().filter(|path| !path.contains("/.")));
    }
    for folder in ["/run", "/tmp", "/var/tmp", "/var/lib", "/var/run"] {
        let ours = names(Path::new(folder)).into_iter().filter(|path| is_ours(path));
        ours.for_each(|path| walk(Path::new(&path), &mut found));
    }
    found
}

/// The suite's own folder does not count, nor that of another suite that waits for its turn.
fn is_ours(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.contains("hafen") && !name.starts_with("hafen-suite")
}

/// Seccomp filters that the runtime keeps for its next launch, beside the folders of its containers.
pub(crate) fn is_kept(path: &Path) -> bool {
    path.ends_with("@seccomp")
}

fn walk(path: &Path, found: &mut Vec<String>) {
    if is_kept(path) {
        return;
    }
    found.push(path.display().to_string());
    if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        names(path).iter().for_each(|child| walk(Path::new(child), found));
    }
}

/// All processes below `ancestor`: pid -> a line that names it.
fn descendants(ancestor: u32) -> BTreeMap<i32, String> {
    let processes: Vec<(i32, i32, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, tail) = stat.rsplit_once(") ")?;
            let parent = tail.split(' ').nth(1)?.parse().ok()?;
            Some((
                pid,
                parent,
                format!("{pid} ({}) {}", head.split_once('(')?.1, tail.split(' ').next()?),
            ))
        })
        .collect();
    let mut found = BTreeMap::new();
    let mut heads = vec![i32::try_from(ancestor).unwrap_or_default()];
    while let Some(head) = heads.pop() {
        for (pid, _, line) in processes.iter().filter(|(_, parent, _)| *parent == head) {
            found.insert(*pid, line.clone());
            heads.push(*pid);
        }
    }
    found
}

/// Takes away what a test left behind, as far as it is certain to be the test's: mounts below `folder`, descendants
/// of this process, cgroup folders whose name holds `mark`.
pub(crate) fn sweep(folder: &Path, mark: &str) {
    for pid in descendants(std::process::id()).into_keys() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for target in mounts_below(folder) {
        let _ = umount2(&target, MntFlags::MNT_DETACH);
    }
    let _ = crate::wait_until(std::time::Duration::from_secs(3), || {
        reap();
        for hierarchy in cgroup::hierarchies() {
            remove_cgroups(&hierarchy.mount, mark, false);
        }
        descendants(std::process::id()).is_empty().then_some(())
    });
}

/// Post-order, since only an empty cgroup can be removed.
fn remove_cgroups(folder: &Path, mark: &str, below: bool) {
    for child in folders(folder) {
        let marked =
            below || child.file_name().is_some_and(|name| name.to_string_lossy().contains(mark));
        remove_cgroups(&child, mark, marked);
        if marked {
            let _ = fs::remove_dir(&child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(mounts: &[&str]) -> Host {
        let list = mounts.iter().map(|m| (*m).to_owned()).collect();
        Host { things: BTreeMap::from([("mount", count(list))]) }
    }

    #[test]
    fn what_came_and_went_is_named() {
        let difference = host(&["/a", "/b"]).difference(&host(&["/b", "/c"]));
        assert_eq!(difference, ["- mount /a", "+ mount /c"]);
    }

    #[test]
    fn a_second_thing_of_the_same_name_is_a_difference() {
        assert_eq!(host(&["/a"]).difference(&host(&["/a", "/a"])), ["+ mount /a"]);
        assert_eq!(host(&["/a"]).difference(&host(&["/a"])), Vec::<String>::new());
    }
}
