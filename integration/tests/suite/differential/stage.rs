//! What a recipe finds on the host: the bundle, a process whose namespaces can be joined, folders to mount.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Bundle, Running, Test, cgroup, json, wait_until};

use super::recipes::Recipe;

/// Where a table's entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Any,
    Hybrid,
    Unified,
}

impl Layout {
    pub(super) fn holds(self) -> bool {
        let hybrid = cgroup::v1("memory").is_some();
        match self {
            Self::Any => true,
            Self::Hybrid => hybrid,
            Self::Unified => !hybrid,
        }
    }
}

/// One engine's run of one recipe.
pub(super) struct Stage<'t> {
    test: &'t Test,
    pub(super) id: String,
    pub(super) bundle: Bundle,
    /// A folder of the host with a file `f`, a folder `d` and a tmpfs-free tree, for bind mounts.
    pub(super) share: PathBuf,
    holder: OnceCell<Running>,
}

impl<'t> Stage<'t> {
    pub(super) fn new(test: &'t Test, id: &str, recipe: &Recipe) -> Self {
        let share = test.dir().join("share");
        fs::create_dir_all(share.join("d")).expect("mkdir share/d");
        fs::write(share.join("f"), "shared\n").expect("write share/f");
        let mut stage =
            Self { test, id: id.to_owned(), bundle: test.bundle(), share, holder: OnceCell::new() };
        // Without a cgroup namespace and with the host's hierarchies in sight, the process can read the limits
        // that hold for it.
        let mut words = vec!["/inside", "facts"];
        words.extend(&recipe.ask);
        if recipe.limits {
            words.extend(["--cgroups", "/host-cgroup"]);
        }
        let mut bundle = stage.bundle.clone().args(words);
        if recipe.limits {
            bundle = bundle.without_namespace("cgroup").without_mount("/sys/fs/cgroup").push(
                "/mounts",
                json!({ "destination": "/host-cgroup", "type": "bind", "source": "/sys/fs/cgroup",
                        "options": ["rbind", "ro"] }),
            );
        }
        stage.bundle = (recipe.edit)(bundle, &stage);
        stage
    }

    /// `/proc/PID/ns/..` of a process with namespaces of its own, which lives as long as the stage.
    pub(super) fn namespace_path(&self, name: &str) -> String {
        let holder = self.holder.get_or_init(|| self.hold());
        format!("/proc/{}/ns/{name}", holder.pid())
    }

    fn hold(&self) -> Running {
        let words =
            ["--net", "--ipc", "--uts", "--cgroup", "--mount", "--pid", "--fork", "sh", "-c"];
        let script = "hostname joined-name; echo ready; exec sleep 600";
        let mut holder = self.test.program("unshare", words.into_iter().chain([script])).spawn();
        holder.await_text("ready");
        // The runtime opens this one, and it exists only since the namespace has its first process.
        let path = format!("/proc/{}/ns/pid_for_children", holder.pid());
        wait_until(Duration::from_secs(5), || fs::read_link(&path).ok())
            .expect("the pid namespace is there");
        holder
    }

    /// Namespace type -> inode, of this process and of the holder.
    pub(super) fn known_namespaces(&self) -> [(&'static str, BTreeMap<String, u64>); 2] {
        let held = self.holder.get().map(|h| inodes(h.pid())).unwrap_or_default();
        let own = i32::try_from(std::process::id()).expect("a pid fits");
        [("the caller's", inodes(own)), ("joined", held)]
    }
}

fn inodes(pid: i32) -> BTreeMap<String, u64> {
    let entries =
        fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().filter_map(Result::ok);
    let mut found: BTreeMap<String, u64> = entries
        .filter_map(|e| {
            let link = fs::read_link(e.path()).ok()?;
            let inode = link.to_str()?.split_once('[')?.1.trim_end_matches(']').parse().ok()?;
            Some((e.file_name().into_string().ok()?, inode))
        })
        .collect();
    // A joined pid namespace is the one for the holder's children.
    if let Some(inode) = found.get("pid_for_children").copied() {
        found.insert("pid".to_owned(), inode);
    }
    found
}
