//! What is collected, and what stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Case, Output, Test, cases, json, wait_until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use super::made::{Tar, busybox, layout};
use super::server::{Fault, Server};
use super::{import, run, run_words};

pub(super) fn trials() -> Vec<Case> {
    cases![
        who_was_used_longest_ago_goes_first(
            Root,
            Busybox,
            FileSystem("tmpfs"),
            FileSystem("overlay")
        ),
        what_is_young_stays(Root, Busybox),
        watermarks_that_make_no_sense(Root),
        a_prune_waits_for_a_pull(Root, Busybox),
        a_repair_leaves_what_is_in_use(Root, Busybox, FileSystem("overlay")),
        what_is_mounted_in_a_layer_stays(Root, Busybox, FileSystem("tmpfs"), FileSystem("overlay")),
    ]
}

/// A mount, for as long as the test runs.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    /// By the call: mount(8) would leave a folder in /run.
    pub(super) fn new(place: &Path, size: &str) -> Self {
        fs::create_dir_all(place).expect("mkdir");
        let size = format!("size={size}");
        mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .expect("a tmpfs");
        Self(place.to_owned())
    }

    /// Layers as a container sees them, the topmost first.
    pub(super) fn layers(layers: &[PathBuf], place: &Path) -> Self {
        fs::create_dir_all(place).expect("mkdir");
        let layers: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        mount(Some("none"), place, Some("overlay"), MsFlags::MS_RDONLY, Some(lower.as_str()))
            .expect("an overlay");
        Self(place.to_owned())
    }

    /// A file on another one.
    pub(super) fn bind(from: &Path, place: &Path) -> Self {
        mount(Some(from), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("a bind mount");
        Self(place.to_owned())
    }

    /// It has gone with the folder that it is in.
    fn moved_to(&mut self, place: PathBuf) {
        self.0 = place;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn prune(t: &Test, words: &[&str]) -> Output {
    t.hafen([&["image", "prune"], words].concat()).output()
}

fn names(t: &Test) -> Vec<String> {
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    let short = |name: &str| name.replace("localhost/", "").replace(":made", "");
    let names = list.as_array().expect("a list").iter();
    names.map(|image| short(image["reference"].as_str().expect("a name"))).collect()
}

fn full_name(name: &str) -> String {
    format!("localhost/{name}:made")
}

/// All stand on one layer; each has 3 MB of its own, packed and unpacked.
fn take_in(t: &Test, name: &str) {
    let noise = Tar::new().file("noise", name.repeat(3_000_000)).layer();
    let config = json!({ "Cmd": ["/bin/true"], "Env": ["PATH=/bin"] });
    import(t, &layout(t, name, &[busybox(t), noise], &config)).ok();
}

/// So much of the store's file system, as df(1) counts.
fn percent(t: &Test) -> u64 {
    let stat = nix::sys::statvfs::statvfs(&t.images()).expect("statvfs");
    let used = stat.blocks() - stat.blocks_free();
    used * 100 / (used + stat.blocks_available())
}

fn who_was_used_longest_ago_goes_first(t: &Test) {
    let _store = Mounted::new(&t.images(), "40m");
    ["a", "b", "c", "d"].into_iter().for_each(|name| take_in(t, name));
    let id = t.id();
    let words = ["--detach", "--id", &id, "--image", &full_name("a"), "--", "/bin/sleep", "100"];
    t.oci().call(run_words(t, &words)).ok();
    t.hafen(["image", "pin", &full_name("b")]).output().ok();
    // Younger than d now.
    run(t, &["--image", &full_name("c")]).ok();
    let full = percent(t);
    assert!((50..100).contains(&full), "{full} per cent");
    let marks = |high: u64, low: u64| {
        vec!["--high".to_owned(), high.to_string(), "--low".to_owned(), low.to_string()]
    };
    let collect = |marks: &[String], more: &[&str]| {
        let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
        prune(t, &[&marks[..], more].concat()).ok().stdout
    };
    let nothing = "removed 0 blobs and 0 layers, 0 B\n";
    assert_eq!(collect(&marks(full + 1, 1), &[]), nothing);
    assert_eq!(collect(&marks(full, 1), &["--min-age", "1h"]), nothing);
    let some = marks(full, full - 3);
    let would = collect(&some, &["--dry-run"]);
    assert!(
        would.starts_with("would untag localhost/d:made\nwould remove 3 blobs and 1 "),
        "{would}"
    );
    assert_eq!((names(t).len(), percent(t)), (4, full));
    let did = collect(&some, &[]);
    assert!(did.starts_with("untagged localhost/d:made\nremoved 3 blobs and 1 layers"), "{did}");
    assert_eq!(names(t), ["a", "b", "c"]);
    assert!(percent(t) < full - 3);
    // Whatever the use is, it does not get lower.
    collect(&marks(0, 0), &[]);
    assert_eq!(names(t), ["a", "b"]);
    let exec = ["exec", &id, "/bin/cat", "/etc/group"];
    assert!(t.oci().call(exec).ok().stdout.starts_with("root:"));
    t.oci().delete_force(&id).ok();
    collect(&marks(0, 0), &[]);
    assert_eq!(names(t), ["b"]);
    t.hafen(["image", "fsck"]).output().ok();
    run(t, &["--image", &full_name("b")]).ok();
}

fn what_is_young_stays(t: &Test) {
    take_in(t, "a");
    fs::rename(t.dir().join("a"), t.dir().join("first")).expect("renamed");
    // The same name, and nothing leads to what it meant.
    import(t, &layout(t, "a", &[busybox(t)], &json!({}))).ok();
    assert!(prune(t, &["--min-age", "1h"]).ok().stdout.starts_with("removed 0 blobs and 0 layers"));
    let would = prune(t, &["--dry-run"]).ok().stdout;
    assert!(would.starts_with("would remove 3 blobs and 1 layers"), "{would}");
    assert!(prune(t, &[]).ok().stdout.starts_with("removed 3 blobs and 1 layers"));
    t.hafen(["image", "fsck"]).output().ok();
}

fn watermarks_that_make_no_sense(t: &Test) {
    prune(t, &["--high", "80", "--low", "90"]).error_with(["--low 90", "--high 80"]);
    let _ = prune(t, &["--high", "80"]).code(2);
    let _ = prune(t, &["--high", "101", "--low", "1"]).code(2);
    let _ = prune(t, &["--min-age", "soon"]).code(2);
}

fn a_prune_waits_for_a_pull(t: &Test) {
    take_in(t, "a");
    take_in(t, "b");
    t.hafen(["image", "rm", &full_name("a")]).output().ok();
    let server = Server::start(&t.dir().join("a"), |asked| {
        if asked.path.contains("/blobs/") { Fault::StallAfter(2_900_000) } else { Fault::None }
    });
    let name = format!("{}/me/box:1", server.host);
    let pull = t.hafen(["image", "pull", "--plain-http", &server.host, &name]).spawn();
    let partial = t.images().join("partial");
    let begun = || fs::read_dir(&partial).ok()?.next().map(|_| ());
    assert!(wait_until(Duration::from_secs(20), begun).is_some());
    let waiting = t.hafen(["image", "prune", "--min-age", "1h"]).spawn();
    let output = t.hafen(["image", "rm", &full_name("b")]).output().ok();
    assert!(output.stdout.contains("somebody is at work"), "{output}");
    std::thread::sleep(Duration::from_millis(500));
    assert!(begun().is_some(), "a part was removed while its pull runs");
    pull.signal(Signal::SIGKILL);
    let _ = pull.wait();
    let output = waiting.wait().ok();
    assert!(output.stderr.contains("somebody is at work"), "{output}");
    // Left a moment ago.
    assert!(begun().is_some());
    let output = prune(t, &[]).ok();
    assert!(output.stdout.contains(" and 1 parts of blobs, "), "{output}");
    assert!(begun().is_none());
}

fn a_repair_leaves_what_is_in_use(t: &Test) {
    take_in(t, "a");
    let id = t.id();
    let words = ["--detach", "--id", &id, "--image", &full_name("a"), "--", "/bin/sleep", "100"];
    t.oci().call(run_words(t, &words)).ok();
    let layers = fs::read_dir(t.images().join("layers")).expect("layers");
    let layers: Vec<PathBuf> = layers.map(|e| e.expect("an entry").path()).collect();
    layers.iter().for_each(|l| fs::remove_file(l.join("layer.json")).expect("removed"));
    let inode = |layer: &PathBuf| {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(layer.join("fs")).expect("stat"))
    };
    let before: Vec<u64> = layers.iter().map(inode).collect();
    let fsck = |words: &[&str]| t.hafen([&["image", "fsck"], words].concat()).output();
    assert!(fsck(&[]).code(1).stdout.contains("not whole\n"));
    let output = fsck(&["--repair"]).code(1);
    assert_eq!(output.stdout.matches("not whole, and in use by ").count(), 2, "{output}");
    assert!(output.stdout.contains(&id), "{output}");
    let output = fsck(&["--repair", "--fetch", "--retries", "0"]).code(1);
    assert!(output.stderr.contains("stands on it") && output.stderr.contains(&id), "{output}");
    // Nobody else puts another one in its place either.
    run(t, &["--image", &full_name("a")]).error_with([id.as_str(), "stands on it"]);
    assert_eq!(layers.iter().map(inode).collect::<Vec<_>>(), before);
    let exec = ["exec", &id, "/bin/cat", "/etc/group"];
    assert!(t.oci().call(exec).ok().stdout.starts_with("root:"));
    t.oci().delete_force(&id).ok();
    fsck(&["--repair", "--fetch", "--retries", "0"]).ok();
    run(t, &["--image", &full_name("a")]).ok();
}

fn what_is_mounted_in_a_layer_stays(t: &Test) {
    take_in(t, "a");
    take_in(t, "b");
    let inspected = t.hafen(["image", "inspect", &full_name("a")]).output().ok().json();
    let chain = inspected["layers"][1]["chainId"].as_str().expect("a digest").to_owned();
    let layer = t.images().join("layers").join(chain.replace(':', "-"));
    let mut mounted = Mounted::new(&layer.join("fs/mounted"), "1m");
    fs::write(layer.join("fs/mounted/kept"), "kept").expect("written");
    let output = t.hafen(["image", "rm", &full_name("a")]).output().code(1);
    let away = t.images().join("tmp").join(chain.replace("sha256:", "removed-")).join("fs/mounted");
    mounted.moved_to(away.clone());
    let place = format!("remove {}: something is mounted there", away.display());
    assert!(output.stderr.contains(&place), "{output}");
    assert_eq!(fs::read_to_string(away.join("kept")).expect("the file"), "kept");
    // Its blobs are gone, the other image is whole, and each prune tells of the place.
    assert!(output.stdout.contains("removed 3 blobs and 0 layers"), "{output}");
    t.hafen(["image", "fsck"]).output().ok();
    run(t, &["--image", &full_name("b")]).ok();
    assert!(prune(t, &[]).code(1).stderr.contains(&place));
    assert_eq!(fs::read_to_string(away.join("kept")).expect("the file"), "kept");
    // The image can be taken in again meanwhile.
    import(t, &t.dir().join("a")).ok();
    run(t, &["--image", &full_name("a")]).ok();
    drop(mounted);
    prune(t, &[]).ok();
    assert_eq!(fs::read_dir(t.images().join("tmp")).expect("a folder").count(), 0);
}
