//! The differences that are meant, each with its reason.

use super::normal::Difference;
use super::stage::Layout;

/// A difference that is meant. Texts are patterns in which `*` stands for anything and `|` divides alternatives; `-` is
/// a fact that is missing.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) layout: Layout,
    recipe: &'static str,
    fact: &'static str,
    ours: &'static str,
    theirs: &'static str,
    #[expect(dead_code, reason = "printed by the Debug of a stale entry, and read by people")]
    why: &'static str,
}

impl Accepted {
    pub(super) fn matches(&self, recipe: &str, difference: &Difference) -> bool {
        self.layout.holds()
            && matches(self.recipe, recipe)
            && matches(self.fact, &difference.fact)
            && matches(self.ours, difference.ours.as_deref().unwrap_or("-"))
            && matches(self.theirs, difference.theirs.as_deref().unwrap_or("-"))
    }
}

/// A recipe that the reference engine cannot run.
#[derive(Debug)]
pub(super) struct KnownFailure {
    pub(super) layout: Layout,
    pub(super) recipe: &'static str,
    pub(super) why: &'static str,
}

pub(super) const KNOWN_FAILURES: &[KnownFailure] = &[
    KnownFailure {
        layout: Layout::Any,
        recipe: "environment_without_path",
        why: "it wants PATH also for a program that is named by its full path",
    },
    KnownFailure {
        layout: Layout::Any,
        recipe: "working_directory_is_made",
        why: "it does not make the working directory, as runc and crun do",
    },
    KnownFailure {
        layout: Layout::Any,
        recipe: "tmpfs_without_options",
        why: "it wants a mount's source, which the runtime specification leaves out for file systems without one",
    },
    KnownFailure { layout: Layout::Unified, recipe: "user_namespace", why: NO_SYSTEMD },
    KnownFailure { layout: Layout::Unified, recipe: "user_namespace_and_user", why: NO_SYSTEMD },
];

const NO_SYSTEMD: &str = "for a container in a user namespace it wants systemd to make the cgroup";

pub(super) const ACCEPTED: &[Accepted] = &[
    // Seen only where the host's own mounts are shared, as systemd makes them; the native machine's are private.
    Accepted {
        layout: Layout::Unified,
        recipe: "*",
        fact: "mount * propagation",
        ours: "master",
        theirs: "private",
        why: "without an option a bind stays a slave of the host's mount, as with runc: what the host mounts below its source later appears; the reference makes it private",
    },
    Accepted {
        layout: Layout::Unified,
        recipe: "joined_cgroup",
        fact: "mount /sys/fs/cgroup root",
        ours: "*hafen*",
        theirs: "*",
        why: "a cgroup mount always shows the container's own folder, also beside a joined namespace; the reference shows the root of that namespace",
    },
    Accepted {
        layout: Layout::Unified,
        recipe: "propagation_shared",
        fact: "mount / propagation",
        ours: "shared,master",
        theirs: "shared",
        why: "a shared root still is a slave of the host's mount that it was bound from, as with runc",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "env HOME",
        ours: "*/*",
        theirs: "-",
        why: "a program without HOME gets its user's from the container's passwd, or /, as with runc and crun; the reference asks the C library, which in a static program finds accounts only sometimes",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "mount * options",
        ours: "*ro",
        theirs: "nodev,noexec,nosuid,*ro",
        why: "a read-only path keeps the flags of the mount it is on, as with runc and crun; the reference adds nodev, noexec and nosuid",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "mount /sys file system|mount /mnt/t file system",
        ours: "*ro*",
        theirs: "*rw*",
        why: "the option ro makes the file system itself read-only, too, as with runc; the reference makes only the mount so",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "mount * type|mount * source",
        ours: "dev*",
        theirs: "tmpfs",
        why: "a masked file is covered by the host's null device, which nothing in the container can have replaced; the reference takes the one in the container's /dev",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "mount * file system",
        ours: "*mode=755,nr_inodes=*,rw,size=*",
        theirs: "*mode=755,rw,size=65536k",
        why: "a masked file is covered by the host's null device, which nothing in the container can have replaced; the reference takes the one in the container's /dev",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "mount * options",
        ours: "relatime,rw",
        theirs: "nosuid,rw",
        why: "a masked file is covered by the host's null device, which nothing in the container can have replaced; the reference takes the one in the container's /dev",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "mount * source",
        ours: "none",
        theirs: "tmpfs",
        why: "the name of the empty file system over a masked folder means nothing",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "capabilities_absent",
        fact: "capabilities permitted|capabilities effective|capabilities bounding",
        ours: "",
        theirs: "CAP_*",
        why: "a process without the field gets no capabilities, as with runc and crun; the reference leaves it those of the caller",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "mount_propagation|bind_with_flags",
        fact: "mount /mnt/* propagation",
        ours: "*",
        theirs: "*",
        why: "the reference does not apply a mount's propagation option",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "devices",
        fact: "file /dev/deep",
        ours: "dir 0755*",
        theirs: "dir 0777*",
        why: "folders that are made on the way to a device have the usual mode; the reference makes them with a umask of zero",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "nothing_masked_or_readonly",
        fact: "session keyrings",
        ours: "_ses.ID",
        theirs: "",
        why: "the container gets a session keyring of its own, as with runc and crun",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "*",
        fact: "interface lo",
        ours: "up true",
        theirs: "up false",
        why: "the loopback interface of a new network namespace is brought up, as with runc and crun",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "*",
        fact: "cgroup tree",
        ours: "/hafen/ID|/ID/*",
        theirs: "/",
        why: "processes live in the cgroup2 tree, which the reference does not use on a hybrid host",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "*",
        fact: "cgroup *",
        ours: "*",
        theirs: "/:youki:ID",
        why: "without a path in the bundle each engine has its own; only controllers that count, or have a limit, get a version 1 folder",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "*cgroups_path",
        fact: "cgroup *",
        ours: "*",
        theirs: "/ID/box|/ID/outer/box",
        why: "only controllers that count, or have a limit, get a version 1 folder",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "joined_cgroup",
        fact: "cgroup memory",
        ours: "*",
        theirs: "*:youki:ID",
        why: "as without the namespace, seen from a root that is the holder's folder",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "cgroup_mount_without_its_namespace|joined_cgroup",
        fact: "mount /sys/fs/cgroup/* root",
        ours: "*/hafen/ID",
        theirs: "/*",
        why: "a cgroup mount shows the container's own folder, whose path is each engine's choice",
    },
    Accepted {
        layout: Layout::Any,
        recipe: "caller_network_and_its_sysfs",
        fact: "mount /sys/fs/cgroup* root|mount /sys/fs/cgroup/* options",
        ours: "*",
        theirs: "*",
        why: "the host's hierarchies, seen from a namespace whose root is each engine's own folder",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "*",
        fact: "mount /sys/fs/cgroup/* *|file /sys/fs/cgroup/*",
        ours: "*",
        theirs: "-",
        why: "the cgroup2 tree is shown; the reference shows version 1 hierarchies only",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "*",
        fact: "mount /sys/fs/cgroup/* *|file /sys/fs/cgroup/*",
        ours: "-",
        theirs: "*",
        why: "a version 1 hierarchy is shown when it counts for the container, or has a limit of it",
    },
    Accepted {
        layout: Layout::Hybrid,
        recipe: "*",
        fact: "mount /sys/fs/cgroup* options",
        ours: "*ro",
        theirs: "*rw",
        why: "the option ro holds for what is below the cgroup mount, too",
    },
    Accepted {
        layout: Layout::Unified,
        recipe: "*",
        fact: "file /dev/kcore",
        ours: "-",
        theirs: "link *",
        why: "the runtime specification has no such file, and what it would show is masked",
    },
    Accepted {
        layout: Layout::Unified,
        recipe: "*",
        fact: "cgroup tree",
        ours: "*/hafen/ID",
        theirs: "*/:youki:ID",
        why: "without a path in the bundle each engine has its own",
    },
    Accepted {
        layout: Layout::Unified,
        recipe: "*",
        fact: "mount /sys/fs/cgroup* source",
        ours: "cgroup2",
        theirs: "cgroup",
        why: "the name under which the tree is mounted means nothing",
    },
    Accepted {
        layout: Layout::Unified,
        recipe: "cgroup_mount_writable",
        fact: "file /sys/fs/cgroup/*",
        ours: "-",
        theirs: "file *",
        why: "a container's folder has the controllers that hold limits; the reference enables all that there are",
    },
];

fn matches(alternatives: &str, text: &str) -> bool {
    alternatives.split('|').any(|pattern| matches_one(pattern, text))
}

fn matches_one(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}
