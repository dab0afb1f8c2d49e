//! Ends at any moment, and no room left.

use std::fs;
use std::time::Duration;

use hafen_integration::{Case, Test, cases, json};
use nix::sys::signal::Signal;

use super::collect::Mounted;
use super::made::{Tar, busybox, layout};
use super::server::{Fault, Server};
use super::store::await_entry;
use super::{import, run};

pub(super) fn trials() -> Vec<Case> {
    cases![
        an_import_that_is_killed(Root, Busybox, FileSystem("overlay")),
        a_prune_that_is_killed(Root, Busybox),
        a_collection_that_is_killed(Root, Busybox),
        a_pull_onto_a_full_disk(Root, Busybox, FileSystem("tmpfs")),
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

/// It takes names away, too.
fn a_collection_that_is_killed(t: &Test) {
    let folder = many_files(t);
    for pause in [0, 1, 2, 4, 8, 16, 32] {
        import(t, &folder).ok();
        t.hafen(["image", "tag", NAME, "quay.io/other:1"]).output().ok();
        let prune = t.hafen(["image", "prune", "--high", "0", "--low", "0"]).spawn();
        std::thread::sleep(Duration::from_millis(pause));
        prune.signal(Signal::SIGKILL);
        let _ = prune.wait();
        works(t);
    }
    t.hafen(["image", "prune", "--high", "0", "--low", "0"]).output().ok();
    assert_eq!(fs::read_dir(t.images().join("layers")).expect("a folder").count(), 0);
}

/// What does not fit takes no room when it is known not to.
fn a_pull_onto_a_full_disk(t: &Test) {
    let layers = [Tar::new().file("noise", vec![7; 3_000_000]).layer()];
    let folder = layout(t, "large", &layers, &json!({}));
    let server = Server::start(&folder, |_| Fault::None);
    let name = format!("{}/me/large:1", server.host);
    let pull = || t.hafen(["image", "pull", "--plain-http", &server.host, &name]).output();
    {
        let _store = Mounted::new(&t.images(), "2m");
        pull().error_with(["No space left on device"]);
        // The configuration may be on its way still.
        let left = fs::read_dir(t.images().join("partial")).expect("a folder");
        let left: u64 = left.map(|e| e.expect("an entry").metadata().expect("stat").len()).sum();
        assert!(left < 4096, "{left} bytes");
        works(t);
    }
    let _store = Mounted::new(&t.images(), "20m");
    pull().ok();
    works(t);
}

fn a_full_disk(t: &Test) {
    let folder = many_files(t);
    let mut fitted = false;
    for size in ["300k", "1m", "3m", "6m", "60m"] {
        let _store = Mounted::new(&t.images(), size);
        let output = import(t, &folder);
        fitted = output.exit == Some(0);
        if !fitted {
            output.error_with(["No space left on device"]);
            // What was begun can be removed although the disk is full.
            t.hafen(["image", "prune"]).output().ok();
            assert_eq!(fs::read_dir(t.images().join("layers")).expect("a folder").count(), 0);
        }
    }
    assert!(fitted, "60 MB are enough");
}
