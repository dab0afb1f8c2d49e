use super::*;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Everything of a file that an archive keeps.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    stat: [u64; 5],
    modified: (i64, i64),
    /// Content of a file, target of a link.
    content: Vec<u8>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first name of the same file.
    first: Option<PathBuf>,
}

fn walk(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let mut names: Vec<_> = fs::read_dir(top.join(&folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(name);
            let stat = fs::symlink_metadata(top.join(&path)).unwrap();
            if stat.is_dir() {
                open.push(path.clone());
            }
            let mut one = look(&top.join(&path), &stat);
            if !stat.is_dir() {
                one.first = Some(inodes.entry(stat.ino()).or_insert(path.clone()).clone());
            }
            seen.insert(path, one);
        }
    }
    seen
}

fn look(path: &Path, stat: &fs::Metadata) -> Seen {
    let content = if stat.is_file() {
        fs::read(path).unwrap()
    } else if stat.is_symlink() {
        fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
    } else {
        Vec::new()
    };
    let mut names = [0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let attributes = names.map(|name| {
        let mut value = [0; 4096];
        let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        (name.to_vec(), value[..size].to_vec())
    });
    let size = if stat.is_dir() { 0 } else { stat.len() };
    Seen {
        stat: [stat.mode().into(), stat.uid().into(), stat.gid().into(), stat.rdev(), size],
        modified: (stat.mtime(), stat.mtime_nsec()),
        content,
        attributes: attributes.collect(),
        first: None,
    }
}

fn round_trip(from: &Path) -> usize {
    let mut tar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--format=pax", "-C"])
        .args([from, Path::new("-c"), Path::new(".")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let place = place();
    let mut stream = tar.stdout.take().unwrap();
    let unpacked = unpack(&mut stream, &open(place.path()), PLENTY).unwrap();
    // The last record is longer than the end marker.
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    assert!(tar.wait().unwrap().success());
    let (was, is) = (walk(from), walk(place.path()));
    assert!(was.keys().eq(is.keys()), "other names");
    for (path, seen) in &was {
        assert!(is[path] == *seen, "{}", path.display());
    }
    assert_eq!((unpacked.implied, unpacked.entries), (Vec::new(), was.len() as u64 + 1));
    was.len()
}

#[test]
fn system_folders_survive() {
    for folder in ["/usr/bin", "/usr/share/doc"] {
        assert!(round_trip(Path::new(folder)) > 10);
    }
}

#[test]
fn odd_things_survive() {
    let place = place();
    let path = |name: &str| place.path().join(name);
    fs::create_dir(path("sticky")).unwrap();
    fs::set_permissions(path("sticky"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    fs::write(path("sticky/file"), "x").unwrap();
    fs::hard_link(path("sticky/file"), path("linked")).unwrap();
    fs::write(path("attributes"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::chown(path("attributes"), Some(3_000_000), Some(4_000_000_000)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [("user.a=b%3D", &b"\0\n="[..]), ("user.e", b"")] {
        rustix::fs::lsetxattr(path("attributes"), name, value, flags).unwrap();
    }
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("l".repeat(300), path("s".repeat(200).as_str())).unwrap();
    assert_eq!(round_trip(place.path()), 6);
}
