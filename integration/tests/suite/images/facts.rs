//! What can be said of each file of a tree, to compare two of them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::made::digest;

/// Without what overlayfs keeps there for itself.
fn attributes(path: &Path) -> BTreeMap<String, String> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).expect("a list of attributes");
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.filter(|name| !name.starts_with(b"trusted.overlay."));
    let mut value = vec![0; 65536];
    names
        .map(|name| {
            let key = CString::new(name).expect("no NUL");
            let size =
                rustix::fs::lgetxattr(path, key.as_c_str(), &mut value[..]).expect("a value");
            (name.escape_ascii().to_string(), value[..size].escape_ascii().to_string())
        })
        .collect()
}

/// Type, mode, owner, device, time, content or target, attributes, and with which name it is one file.
fn fact(path: &Path, name: &Path, first: &mut HashMap<(u64, u64), PathBuf>) -> String {
    let stat = path.symlink_metadata().expect("stat");
    let kind = stat.file_type();
    let special = kind.is_char_device() || kind.is_block_device();
    let (size, content) = match kind.is_file() {
        true => (stat.size(), digest(&fs::read(path).expect("content"))),
        false => (0, String::new()),
    };
    let target = fs::read_link(path).map(|t| format!("{t:?}")).unwrap_or_default();
    let same = match stat.nlink() > 1 && !kind.is_dir() {
        true => first.entry((stat.dev(), stat.ino())).or_insert_with(|| name.to_owned()).clone(),
        false => PathBuf::new(),
    };
    format!(
        "{:o} {}:{} {size} {}.{:09} {} {target} {content} {:?} {}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
        stat.mtime_nsec(),
        if special { stat.rdev() } else { 0 },
        attributes(path),
        same.as_os_str().as_bytes().escape_ascii()
    )
}

/// By name, the tree itself with the empty one.
pub(super) fn facts(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut all, mut first) = (BTreeMap::new(), HashMap::new());
    let mut waiting = vec![PathBuf::new()];
    while let Some(name) = waiting.pop() {
        let path = if name.as_os_str().is_empty() { root.to_owned() } else { root.join(&name) };
        if path.symlink_metadata().expect("stat").is_dir() {
            let entries = fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry"));
            let mut below: Vec<PathBuf> = entries.map(|e| name.join(e.file_name())).collect();
            below.sort();
            waiting.extend(below.into_iter().rev());
        }
        let fact = fact(&path, &name, &mut first);
        all.insert(name, fact);
    }
    all
}

/// Every file is in both, and the same.
pub(super) fn assert_same(ours: &BTreeMap<PathBuf, String>, theirs: &BTreeMap<PathBuf, String>) {
    for (name, fact) in theirs {
        assert_eq!(ours.get(name), Some(fact), "{}", name.display());
    }
    let more: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
    assert!(more.is_empty(), "only one has {more:?}");
}
