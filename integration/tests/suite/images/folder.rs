//! Images of a root file system as it lies there.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hafen_integration::{Case, Output, Test, cases};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::XattrFlags;

use super::collect::Mounted;
use super::facts::{assert_same, facts};
use super::run;

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_folder_is_as_it_was(Root, FileSystem("overlay")),
        a_folder_is_run(Root, Busybox, FileSystem("overlay")),
        what_is_no_part_of_a_folder(Root, FileSystem("tmpfs")),
        folders_that_are_no_image(Root),
    ]
}

fn import(t: &Test, folder: &Path, name: &str) -> Output {
    let words = ["image".as_ref(), "import".as_ref(), "--name".as_ref(), OsStr::new(name)];
    t.hafen(words.into_iter().chain([folder.as_os_str()])).output()
}

fn digest(output: &Output) -> String {
    output.stdout.trim().rsplit(' ').next().expect("a digest").to_owned()
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("an attribute");
}

/// As cap_net_bind_service=ep is stored (capabilities(7), VFS_CAP_REVISION_2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Everything that a root file system may have.
fn all_kinds(root: &Path) {
    let long = "long".repeat(60);
    fs::create_dir_all(root.join("a/b")).expect("mkdir");
    fs::create_dir_all(root.join(&long).join(&long)).expect("mkdir");
    fs::write(root.join("a/file"), "text").expect("written");
    fs::write(root.join("a/block"), [7; 512]).expect("written");
    fs::write(root.join("a/empty"), "").expect("written");
    fs::write(root.join(&long).join(&long).join("file"), "far").expect("written");
    fs::write(root.join(OsStr::from_bytes(b"name-\xff\xfe")), "no UTF-8").expect("written");
    fs::write(root.join(OsStr::from_bytes(&[0xfe; 200])), "long, and no UTF-8").expect("written");
    fs::write(root.join("line\nbreak"), "").expect("written");
    fs::hard_link(root.join("a/file"), root.join("a/b/same")).expect("linked");
    fs::hard_link(root.join("a/file"), root.join("zz")).expect("linked");
    symlink("nowhere", root.join("link")).expect("a link");
    symlink("x".repeat(3000), root.join("far")).expect("a link");
    symlink(OsStr::from_bytes(&[0xff; 120]), root.join("odd")).expect("a link");
    fs::hard_link(root.join("link"), root.join("link-too")).expect("linked");
    let node = |name: &str, kind, device| {
        mknod(&root.join(name), kind, Mode::from_bits_truncate(0o640), device).expect("a node");
    };
    node("fifo", SFlag::S_IFIFO, 0);
    node("char", SFlag::S_IFCHR, makedev(1, 3));
    node("block", SFlag::S_IFBLK, makedev(259, 0xf_ffff));
    let sparse = File::create(root.join("sparse")).expect("a file");
    sparse.write_all_at(b"middle", 3 << 20).expect("written");
    sparse.set_len(5 << 20).expect("a size");
    set(&root.join("a/file"), "user.text", b"a=b\0\n");
    set(&root.join("a/file"), "user.odd=%3D", b"value");
    set(&root.join("a/empty"), "security.capability", &CAPABILITY);
    set(&root.join("a"), "user.folder", b"");
    set(&root.join("link"), "trusted.link", b"of a link");
    owners_and_modes(root);
    times(root);
}

fn owners_and_modes(root: &Path) {
    chown(root.join("a/block"), Some(33), Some(4_000_000_000)).expect("chown");
    lchown(root.join("link"), Some(3_000_000), Some(7)).expect("chown");
    chown(root.join("a/b"), Some(1), Some(2)).expect("chown");
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).expect("chmod");
    };
    mode("a/block", 0o6755);
    mode("a/b", 0o1770);
    mode("fifo", 0o600);
    mode("", 0o750);
}

fn times(root: &Path) {
    let date = |name: &str, time: SystemTime| {
        let file = File::open(root.join(name)).expect("a file");
        file.set_times(FileTimes::new().set_modified(time)).expect("a time");
    };
    let epoch = SystemTime::UNIX_EPOCH;
    date("a/block", epoch + Duration::new(1_600_000_000, 0));
    date("sparse", epoch + Duration::new(1_600_000_000, 123_456_789));
    date("a/empty", epoch - Duration::new(5, 250_000_000));
    date("a/b", epoch + Duration::new(9_000_000_000, 1));
    date("", epoch + Duration::new(1, 1));
}

fn layer(t: &Test) -> PathBuf {
    let layers = fs::read_dir(t.images().join("layers")).expect("layers");
    let all: Vec<PathBuf> = layers.map(|e| e.expect("an entry").path()).collect();
    let [one] = &all[..] else { panic!("{all:?}") };
    one.join("fs")
}

fn a_folder_is_as_it_was(t: &Test) {
    let root = t.dir().join("root");
    fs::create_dir(&root).expect("mkdir");
    all_kinds(&root);
    let before = facts(&root);
    let output = import(t, &root, "mine:1").ok();
    assert!(output.stdout.starts_with("docker.io/library/mine:1 sha256:"), "{output}");
    assert_eq!(output.stderr, "");
    assert_same(&facts(&layer(t)), &before);
    // The same for the same, from another place and by other inodes.
    assert_eq!(digest(&import(t, &root, "mine:2").ok()), digest(&output));
    let copy = t.dir().join("copy");
    let words = ["-a".as_ref(), root.as_os_str(), copy.as_os_str()];
    t.program("cp", words).output().ok();
    assert_same(&facts(&copy), &before);
    assert_eq!(digest(&import(t, &copy, "mine:3").ok()), digest(&output));
    fs::write(copy.join("a/block"), [8; 512]).expect("written");
    assert_ne!(digest(&import(t, &copy, "mine:3").ok()), digest(&output));
    // GNU tar reads it as well.
    let blobs = t.images().join("blobs/sha256");
    let tar = super::store::largest(&blobs).display().to_string();
    let listed = t.program("tar", ["-tf", &tar]).output().ok();
    assert!(listed.stdout.contains("a/b/same"), "{listed}");
    t.hafen(["image", "fsck"]).output().ok();
}

fn a_folder_is_run(t: &Test) {
    let root = t.bundle().rootfs();
    import(t, &root, "box").ok();
    let echo = ["--image", "box", "--", "/bin/echo", "from a folder"];
    assert_eq!(run(t, &echo).ok().stdout, "from a folder\n");
}

fn what_is_no_part_of_a_folder(t: &Test) {
    let root = t.dir().join("root");
    fs::create_dir_all(root.join("a/mounted")).expect("mkdir");
    fs::write(root.join("a/kept"), "kept").expect("written");
    fs::write(root.join("a/bound"), "").expect("written");
    let _socket = UnixListener::bind(root.join("socket")).expect("a socket");
    let _mounted = Mounted::new(&root.join("a/mounted"), "1m");
    fs::write(root.join("a/mounted/foreign"), "x").expect("written");
    // Of the same file system: its device says nothing.
    let _bound = Mounted::bind(&root.join("a/kept"), &root.join("a/bound"));
    let output = import(t, &root, "mine").ok();
    let told = |name: &str, why: &str| {
        let line = format!("{} is left out: {why}\n", root.join(name).display());
        assert!(output.stderr.contains(&line), "{output}");
    };
    told("a/mounted", "what is mounted there");
    told("a/bound", "a mount");
    told("socket", "a socket");
    let names: Vec<PathBuf> = facts(&layer(t)).into_keys().collect();
    assert_eq!(names, ["", "a", "a/kept", "a/mounted"].map(PathBuf::from));
}

fn folders_that_are_no_image(t: &Test) {
    let root = t.dir().join("root");
    fs::create_dir_all(root.join("etc")).expect("mkdir");
    t.hafen(["image".as_ref(), "import".as_ref(), root.as_os_str()])
        .output()
        .error_with(["root", "--name"]);
    // A layout without its index stays one.
    fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    import(t, &root, "mine").error_with(["index.json"]);
    fs::remove_file(root.join("oci-layout")).expect("removed");
    fs::write(root.join("etc/.wh.passwd"), "").expect("written");
    import(t, &root, "mine").error_with(["etc/.wh.passwd", "remove"]);
    fs::remove_file(root.join("etc/.wh.passwd")).expect("removed");
    set(&root.join("etc"), "trusted.overlay.opaque", b"y");
    import(t, &root, "mine").error_with(["etc", "trusted.overlay.opaque"]);
    let count = |folder: &str| fs::read_dir(t.images().join(folder)).map_or(0, Iterator::count);
    assert_eq!((count("layers"), count("refs"), count("tmp")), (0, 0, 0));
}
