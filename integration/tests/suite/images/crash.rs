//! Ends at any moment, and no room left.

use std::fs;
use std::time::Duration;

use hafen_integration::{Case, Test, cases, json};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

use super::made::{Tar, busybox, layout};
use super::store::await_entry;
use super::{import, run};

pub(super) fn trials() -> Vec<Case> {
    cases![
        an_import_that_is_killed(Root, Busybox, FileSystem("overlay")),
        a_prune_that_is_killed(Root, Busybox),
        a_full_disk(Root, Busybox, FileSystem("tmpfs"), FileSystem("overlay")),
    ]
}

const NAME: &str = "localhost/box:made";

/// Many files, so that there is something to be killed in.
fn many_files(t: &Test) -> std::path::PathBuf {
    let many = |from: u32| {
        let tar = (from..from + 600)
            .fold(Tar::new().folder("f/"), |tar, n| tar.file(&format!("f/{n}"), n.to_string()));
        tar.layer().gzip()
    };
    let layers = [busybox(t), many(0), many(300)];
    layout(
        t,
        "box",
        &layers,
        &json!({ "Cmd": ["/bin/sh", "-c", "ls /f | wc -l"], "Env": ["PATH=/bin"] }),
    )
}

/// The store works, and what it has is whole.
fn works(t: &Test) {
    t.hafen(["image", "fsck"]).output().ok();
    t.hafen(["image", "prune"]).output().ok();
    let left = fs::read_dir(t.images().join("tmp")).expect("a folder").count();
    assert_eq!(left, 0, "in {}/tmp", t.images().display());
}

fn an_import_that_is_killed(t: &Test) {
    let folder = many_files(t);
    let words = ["image".as_ref(), "import".as_ref(), folder.as_os_str()];
    for pause in [0, 1, 2, 5, 10, 20, 40, 80, 160] {
        let import = t.hafen(words).spawn();
        std::thread::sleep(Duration::from_millis(pause));
        import.signal(Signal::SIGKILL);
        let _ = import.wait();
        if t.images().exists() {
            works(t);
        }
    }
    import(t, &folder).ok();
    works(t);
    assert_eq!(run(t, &["--image", NAME]).ok().stdout, "900\n");
}

fn a_prune_that_is_killed(t: &Test) {
    let folder = many_files(t);
    for pause in [0, 1, 2, 4, 8, 16, 32] {
        import(t, &folder).ok();
        assert!(await_entry(&t.images().join("layers")));
        let rm = t.hafen(["image", "rm", NAME]).spawn();
        std::thread::sleep(Duration::from_millis(pause));
        rm.signal(Signal::SIGKILL);
        let _ = rm.wait();
        works(t);
    }
}

fn a_full_disk(t: &Test) {
    let folder = many_files(t);
    fs::create_dir(t.images()).expect("mkdir");
    let mut fitted = false;
    for size in ["300k", "1m", "3m", "6m", "60m"] {
        // mount(8) would leave a folder in /run.
        let (flags, size) = (MsFlags::empty(), format!("size={size}"));
        mount(Some("none"), &t.images(), Some("tmpfs"), flags, Some(size.as_str()))
            .expect("a tmpfs");
        let output = import(t, &folder);
        fitted = output.exit == Some(0);
        if !fitted {
            output.error_with(["No space left on device"]);
            // What was begun can be removed although the disk is full.
            t.hafen(["image", "prune"]).output().ok();
            assert_eq!(fs::read_dir(t.images().join("layers")).expect("a folder").count(), 0);
        }
        umount(&t.images()).expect("unmounted");
    }
    assert!(fitted, "60 MB are enough");
}
