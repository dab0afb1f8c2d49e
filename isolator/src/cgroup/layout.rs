use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use hafen_spec::facts::CgroupLayout;
use hafen_sys::{CallError, Context};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};

use super::folder::{Folder, read_whole};

const MOUNTS: &str = "/proc/self/mountinfo";

/// The controllers that a v1 hierarchy may carry (cgroups(7)); the other options of its mount are flags.
const V1_CONTROLLERS: [&str; 14] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
];

/// Find out where the controllers of this machine are: the mount table is read once, and the list of what the cgroup2
/// tree offers.
///
/// # Errors
/// Names the file that cannot be read.
pub fn discover() -> Result<CgroupLayout, CallError> {
    // Not as text: paths may hold any bytes.
    let table =
        open(MOUNTS, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).and_then(read_whole);
    let table = table.call(|| format!("read {MOUNTS}"))?;
    let found = parse(&table);
    let mut layout =
        CgroupLayout { legacy: found.legacy, named: found.named, ..Default::default() };
    let hierarchies = layout.legacy.values().collect::<BTreeSet<_>>().into_iter();
    let is_closed = |hierarchy: &Path| {
        faccessat(AT_FDCWD, hierarchy, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_err()
    };
    layout.closed = hierarchies.filter(|h| is_closed(h)).cloned().collect();
    let mut failure = None;
    for tree in found.trees {
        let list = Folder::open(&tree).and_then(|f| f.read("cgroup.controllers"));
        match list.call(|| format!("read {}/cgroup.controllers", tree.display())) {
            Ok(list) => {
                layout.unified = list.split_whitespace().map(str::to_owned).collect();
                layout.tree = Some(tree);
                return Ok(layout);
            }
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    failure.map_or(Ok(layout), Err)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Mounts of the cgroup2 tree, the best first.
    trees: Vec<PathBuf>,
    legacy: BTreeMap<String, PathBuf>,
    named: BTreeMap<String, PathBuf>,
}

/// One line of mountinfo (proc_pid_mountinfo(5)); paths as they are written there.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    id: u32,
    parent: u32,
    root: &'a [u8],
    point: &'a [u8],
    readonly: bool,
    fstype: &'a [u8],
    options: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `None` for a line that makes no sense: it is not ours then.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let (root, point) = (fields.nth(1)?, fields.next()?);
        let flags = fields.next()?;
        let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
        let fstype = rest.next()?;
        let options = rest.nth(1).unwrap_or_default();
        let readonly = flags.split(|b| *b == b',').any(|f| f == b"ro");
        Some(Self { id, parent, root, point, readonly, fstype, options })
    }

    /// A mount that shows the whole hierarchy is better than a part of it, a writable one better than another.
    fn rank(&self) -> (bool, bool) {
        (self.root != b"/", self.readonly)
    }
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn parse(table: &[u8]) -> Found {
    let all: Vec<Entry<'_>> = table.split(|b| *b == b'\n').filter_map(Entry::parse).collect();
    let is_cgroup = |e: &&Entry<'_>| matches!(e.fstype, b"cgroup" | b"cgroup2");
    let mut mounts: Vec<Entry<'_>> =
        all.iter().filter(is_cgroup).filter(|e| !is_hidden(e, &all)).copied().collect();
    // Stable: among equals the first mount is taken.
    mounts.sort_by_key(Entry::rank);

    let mut found = Found::default();
    for mount in mounts {
        let point = unescape(mount.point);
        if mount.fstype == b"cgroup2" {
            found.trees.push(point);
        } else {
            found.add_legacy(mount.options, &point);
        }
    }
    found
}

impl Found {
    /// The best mount of a hierarchy comes first, so what is known already stays.
    fn add_legacy(&mut self, options: &[u8], point: &Path) {
        for option in String::from_utf8_lossy(options).split(',') {
            if let Some(name) = option.strip_prefix("name=") {
                self.named.entry(name.to_owned()).or_insert_with(|| point.to_owned());
            } else if V1_CONTROLLERS.contains(&option) {
                self.legacy.entry(option.to_owned()).or_insert_with(|| point.to_owned());
            }
        }
    }
}

/// Does another mount lie over this one, or over a folder on the way to it? Its path leads elsewhere then.
fn is_hidden(mount: &Entry<'_>, all: &[Entry<'_>]) -> bool {
    let way = way_to(mount, all);
    all.iter().any(|other| {
        other.id != mount.id
            && !way.contains(&other.id)
            && (other.parent == mount.id || way.contains(&other.parent))
            && is_above(other.point, mount.point)
    })
}

/// The mounts that a path passes through on its way to this one.
fn way_to(mount: &Entry<'_>, all: &[Entry<'_>]) -> Vec<u32> {
    let mut way: Vec<u32> = Vec::new();
    let mut next = mount.parent;
    while let Some(entry) = all.iter().find(|e| e.id == next && !way.contains(&e.id)) {
        way.push(entry.id);
        next = entry.parent;
    }
    way
}

/// Is `upper` the same path as `lower`, or a folder above it?
fn is_above(upper: &[u8], lower: &[u8]) -> bool {
    let upper = upper.strip_suffix(b"/").unwrap_or(upper);
    lower.strip_prefix(upper).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = if first == b'\\' { octal(tail) } else { None };
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits.get(..3)?).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use hafen_spec::facts::Home;

    use super::*;

    fn layout(found: Found, unified: &[&str]) -> CgroupLayout {
        CgroupLayout {
            closed: Default::default(),
            tree: found.trees.into_iter().next(),
            unified: unified.iter().map(|c| (*c).to_owned()).collect(),
            legacy: found.legacy,
            named: found.named,
            granted: None,
        }
    }

    const HYBRID: &[u8] = b"23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 23 0:22 / /sys rw,relatime - sysfs sysfs rw
31 25 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host() {
        let layout = layout(parse(HYBRID), &["hugetlb"]);
        assert_eq!(layout.tree, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(layout.legacy["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.legacy["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.legacy.len(), 3);
        assert_eq!(layout.named["systemd"], Path::new("/sys/fs/cgroup/systemd"));
        assert_eq!(layout.home("memory"), Home::Legacy);
        assert_eq!(layout.home("hugetlb"), Home::Unified);
        // Active in a hierarchy that is mounted nowhere, or unknown to the kernel: nothing to write to.
        assert_eq!(layout.home("pids"), Home::Absent);
    }

    #[test]
    fn a_unified_host() {
        let found = parse(
            b"24 1 8:1 / / rw - ext4 /dev/sda1 rw
41 24 0:34 / /sys/fs/cgroup rw,nosuid shared:14 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
        );
        assert_eq!(found.trees, [Path::new("/sys/fs/cgroup")]);
        assert!(found.legacy.is_empty());
    }

    #[test]
    fn a_host_without_cgroup2() {
        assert_eq!(parse(b"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), Found::default());
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_is_preferred() {
        let found = parse(
            b"24 1 8:1 / / rw - ext4 /dev/sda1 rw
50 24 0:32 /docker/x /srv/part rw - cgroup cgroup rw,memory
51 24 0:32 / /srv/looking\\040only ro - cgroup cgroup rw,memory
52 24 0:32 / /srv/whole\\134mount rw - cgroup cgroup rw,memory
60 24 0:34 /../.. /srv/above rw - cgroup2 cgroup2 rw
61 24 0:34 / /srv/one\\040tree rw master:3 propagate_from:1 - cgroup2 cgroup2 rw
",
        );
        assert_eq!(found.legacy["memory"], Path::new("/srv/whole\\mount"));
        assert_eq!(found.trees, [Path::new("/srv/one tree"), Path::new("/srv/above")]);
    }

    #[test]
    fn a_mount_under_another_is_not_used() {
        let hidden = [
            &b"70 25 0:50 / /sys/fs rw - tmpfs tmpfs rw\n"[..],
            b"70 41 0:50 / /sys/fs/cgroup/unified rw - tmpfs tmpfs rw\n",
            b"70 31 0:50 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n",
        ];
        for line in hidden {
            let table = [HYBRID, line].concat();
            assert!(parse(&table).trees.is_empty(), "{}", String::from_utf8_lossy(line));
        }
        let beside = b"70 31 0:50 / /sys/fs/cgroup/uni rw - tmpfs tmpfs rw\n";
        assert_eq!(parse(&[HYBRID, beside].concat()).trees.len(), 1);
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let table = [b"\n\nx y z\n1 2 3\n7 1 0:1 / /a rw - cgroup2\n".as_slice(), HYBRID].concat();
        assert_eq!(parse(&table).legacy, parse(HYBRID).legacy);
    }

    #[test]
    fn what_is_found_on_this_machine_is_there() {
        let layout = discover().unwrap();
        for folder in layout.tree.iter().chain(layout.legacy.values()) {
            assert!(folder.join("cgroup.procs").exists(), "{}", folder.display());
        }
    }
}
