//! What the store holds, and what it gives up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Case, Test, Value, cases, json, wait_until};

use super::made::{Tar, busybox, layout};
use super::{import, run, run_words};
use crate::clients::image;

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_layout_as_folder_and_as_tar(Root, Busybox, Program("umoci"), FileSystem("overlay")),
        an_archive_of_docker(Root, Busybox, FileSystem("overlay")),
        a_root_file_system_as_tar(Root, Busybox, FileSystem("overlay")),
        layers_are_shared(Root, Busybox),
        many_imports_of_one_image_at_once(Root, Busybox),
        names_are_given_and_taken(Root, Busybox),
        a_pinned_name_is_kept(Root, Busybox),
        what_is_in_use_stays(Root, Busybox, FileSystem("overlay")),
        what_is_in_use_by_a_dead_runtime_stays(Root, Busybox, FileSystem("overlay")),
        an_export_is_read_by_others(Root, Busybox, Program("umoci")),
        fsck_finds_and_removes_what_is_wrong(Root, Busybox, FileSystem("overlay")),
    ]
}

const NAME: &str = "localhost/box:made";

fn small(t: &Test, name: &str) -> PathBuf {
    layout(t, name, &[busybox(t)], &json!({ "Cmd": ["/bin/echo", "here"] }))
}

fn entries(t: &Test, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(t.images().join(folder)).expect("a folder of the store");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn listed(t: &Test) -> Vec<String> {
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    let names = list.as_array().expect("a list").iter();
    names.map(|image| image["reference"].as_str().expect("a name").to_owned()).collect()
}

fn a_layout_as_folder_and_as_tar(t: &Test) {
    let folder = image::layout(t);
    import(t, &folder).ok();
    let words = ["image".as_ref(), "import".as_ref(), "--name".as_ref(), "packed:1".as_ref()];
    let tar = image::archive(t);
    t.hafen(words.into_iter().chain([tar.as_os_str()])).output().ok();
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    assert_eq!(list[0]["digest"], list[1]["digest"]);
    let words = ["--image", "packed:1", "--", "/bin/sh", "-c", "echo $FROM_IMAGE; cat /data/seed"];
    assert_eq!(run(t, &words).ok().stdout, "yes\nseed\n");
}

/// As `docker save` wrote it before it wrote layouts: layers by folder, one of them a link.
fn an_archive_of_docker(t: &Test) {
    let (low, high) = (busybox(t), Tar::new().file("high", "high\n").layer());
    let config = json!({ "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["/bin/cat", "/high"], "Env": null }, "created": null,
        "rootfs": { "type": "layers", "diff_ids": [low.diff_id, high.diff_id, high.diff_id] } });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["saved:1", "quay.io/me/saved:2"],
        "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"] }]);
    let tar = Tar::new()
        .file("config.json", config.to_string())
        .file("a/layer.tar", &low.packed)
        .file("b/layer.tar", &high.packed)
        .symlink("c/layer.tar", "../b/layer.tar")
        .file("manifest.json", manifest.to_string());
    let file = t.dir().join("saved.tar");
    fs::write(&file, tar.bytes()).expect("written");
    import(t, &file).ok();
    assert_eq!(listed(t), ["docker.io/library/saved:1", "quay.io/me/saved:2"]);
    assert_eq!(run(t, &["--image", "saved:1"]).ok().stdout, "high\n");
}

fn a_root_file_system_as_tar(t: &Test) {
    for (name, layer) in [("plain", busybox(t)), ("packed", busybox(t).gzip())] {
        let file = t.dir().join(format!("{name}.tar"));
        fs::write(&file, &layer.packed).expect("written");
        import(t, &file).error_with(["--name"]);
        let words = ["image", "import", "--name", name, &file.display().to_string()];
        t.hafen(words).output().ok();
        assert_eq!(
            run(t, &["--image", name, "--", "/bin/echo", name]).ok().stdout,
            format!("{name}\n")
        );
    }
    let nothing = t.dir().join("nothing");
    fs::write(&nothing, "no archive at all").expect("written");
    let words = ["image", "import", "--name", "x", &nothing.display().to_string()];
    let _ = t.hafen(words).output().error_line();
    assert_eq!(listed(t).len(), 2);
}

fn layers_are_shared(t: &Test) {
    let low = busybox(t);
    for name in ["one", "two"] {
        let layers = [low.clone(), Tar::new().file("name", name).layer()];
        import(t, &layout(t, name, &layers, &json!({}))).ok();
    }
    assert_eq!(entries(t, "layers").len(), 3);
    // Once more changes nothing.
    let before = entries(t, "blobs/sha256");
    import(t, &t.dir().join("one")).ok();
    assert_eq!((entries(t, "blobs/sha256"), entries(t, "layers").len()), (before, 3));
}

fn many_imports_of_one_image_at_once(t: &Test) {
    let layers = [busybox(t), Tar::new().file("x", "x").layer(), Tar::new().file("y", "y").layer()];
    let folder = layout(t, "box", &layers, &json!({ "Cmd": ["/bin/true"] }));
    let words = ["image".as_ref(), "import".as_ref(), folder.as_os_str()];
    let calls: Vec<_> = (0..8).map(|_| t.hafen(words).spawn()).collect();
    for call in calls {
        call.wait().ok();
    }
    assert_eq!(entries(t, "layers").len(), 3);
    assert_eq!(entries(t, "tmp"), Vec::<String>::new());
    t.hafen(["image", "fsck"]).output().ok();
}

fn names_are_given_and_taken(t: &Test) {
    import(t, &small(t, "box")).ok();
    t.hafen(["image", "tag", NAME, "quay.io/other:1"]).output().ok();
    assert_eq!(listed(t), [NAME, "quay.io/other:1"]);
    t.hafen(["image", "rm", NAME]).output().ok();
    assert_eq!(listed(t), ["quay.io/other:1"]);
    assert_eq!(entries(t, "layers").len(), 1);
    t.hafen(["image", "rm", "quay.io/other:1"]).output().ok();
    for folder in ["layers", "blobs/sha256", "refs", "tmp", "uses"] {
        assert_eq!(entries(t, folder), Vec::<String>::new(), "{folder}");
    }
    t.hafen(["image", "rm", NAME]).output().error_with([NAME]);
    t.hafen(["image", "tag", NAME, "x"]).output().error_with([NAME]);
    t.hafen(["image", "inspect", "No Name"]).output().error_with(["No Name"]);
}

fn a_pinned_name_is_kept(t: &Test) {
    import(t, &small(t, "box")).ok();
    t.hafen(["image", "tag", NAME, "quay.io/other:1"]).output().ok();
    let output = t.hafen(["image", "pin", NAME]).output().ok();
    assert_eq!(output.stdout, format!("pinned {NAME}\n"));
    t.hafen(["image", "pin", "no/such:1"]).output().error_with(["no/such:1"]);
    let words = ["image", "rm", "quay.io/other:1", NAME];
    t.hafen(words).output().error_with([NAME, "hafen image unpin"]);
    assert_eq!(listed(t), [NAME, "quay.io/other:1"], "one of the names was taken");
    // Taken in once more it is pinned still.
    import(t, &t.dir().join("box")).ok();
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    assert_eq!((&list[0]["pinned"], &list[1]["pinned"]), (&json!(true), &json!(false)));
    let table = t.hafen(["image", "ls"]).output().ok().stdout;
    assert_eq!(table.matches(" yes ").count(), 1, "{table}");
    let inspected = t.hafen(["image", "inspect", NAME]).output().ok().json();
    assert_eq!(inspected["pinned"], json!(true));
    t.hafen(["image", "prune"]).output().ok();
    t.hafen(["image", "unpin", NAME]).output().ok();
    t.hafen(["image", "rm", NAME, "quay.io/other:1"]).output().ok();
    assert_eq!(entries(t, "blobs/sha256"), Vec::<String>::new());
}

fn what_is_in_use_stays(t: &Test) {
    import(t, &small(t, "box")).ok();
    let id = t.id();
    let words = run_words(t, &["--id", &id, "--image", NAME, "--", "/bin/sleep", "100"]);
    let container = t.oci().spawn(words);
    t.oci().await_status(&id, "running");
    t.hafen(["image", "rm", NAME]).output().ok();
    assert_eq!(entries(t, "layers").len(), 1, "its container stands on it");
    assert_eq!(entries(t, "blobs/sha256"), Vec::<String>::new());
    t.oci().kill(&id, "KILL").ok();
    container.wait().code(137);
    assert_eq!(entries(t, "uses"), Vec::<String>::new());
    t.hafen(["image", "prune"]).output().ok();
    assert_eq!(entries(t, "layers"), Vec::<String>::new());
}

fn what_is_in_use_by_a_dead_runtime_stays(t: &Test) {
    import(t, &small(t, "box")).ok();
    let id = t.id();
    let words =
        run_words(t, &["--detach", "--id", &id, "--image", NAME, "--", "/bin/sleep", "100"]);
    t.oci().call(words).ok();
    t.hafen(["image", "rm", NAME]).output().ok();
    let exec = ["exec", &id, "/bin/echo", "still here"];
    assert_eq!(t.oci().call(exec).ok().stdout, "still here\n");
    t.oci().delete_force(&id).ok();
    t.hafen(["image", "prune"]).output().ok();
    assert_eq!(entries(t, "layers"), Vec::<String>::new());
    // A use of an earlier boot is none.
    import(t, &small(t, "box")).ok();
    let old = json!({ "bootId": "another", "container": "/x", "image": NAME, "layers": [], "digest": digest_of(t) });
    fs::write(t.images().join("uses/x.json"), old.to_string()).expect("written");
    t.hafen(["image", "prune"]).output().ok();
    assert_eq!(entries(t, "uses"), Vec::<String>::new());
    assert_eq!(entries(t, "layers").len(), 1);
}

fn digest_of(t: &Test) -> Value {
    t.hafen(["image", "inspect", NAME]).output().ok().json()["digest"].clone()
}

fn an_export_is_read_by_others(t: &Test) {
    let layers = [busybox(t).gzip(), Tar::new().file("more", "more").layer()];
    import(t, &layout(t, "box", &layers, &json!({}))).ok();
    let file = t.dir().join("exported.tar");
    t.hafen(["image".as_ref(), "export".as_ref(), NAME.as_ref(), file.as_os_str()]).output().ok();
    let folder = t.dir().join("exported");
    fs::create_dir(&folder).expect("mkdir");
    let words = ["-xf".as_ref(), file.as_os_str(), "-C".as_ref(), folder.as_os_str()];
    t.program("tar", words).output().ok();
    let tags = t.program("umoci", ["ls", "--layout", &folder.display().to_string()]).output().ok();
    assert_eq!(tags.stdout.trim(), NAME);
    let before = digest_of(t);
    t.hafen(["image", "rm", NAME]).output().ok();
    import(t, &file).ok();
    assert_eq!(digest_of(t), before);
}

fn fsck_finds_and_removes_what_is_wrong(t: &Test) {
    let folder = small(t, "box");
    import(t, &folder).ok();
    t.hafen(["image", "fsck"]).output().ok();
    let blob = largest(&t.images().join("blobs/sha256"));
    let mut bytes = fs::read(&blob).expect("a blob");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&blob, bytes).expect("written");
    let output = t.hafen(["image", "fsck"]).output().code(1);
    assert!(output.stdout.contains("its content is another one"), "{output}");
    assert!(output.stdout.contains(&format!("{NAME}: ")), "{output}");
    let _ = t.hafen(["image", "fsck", "--repair"]).output().code(1);
    import(t, &folder).ok();
    t.hafen(["image", "fsck"]).output().ok();
    assert_eq!(run(t, &["--image", NAME]).ok().stdout, "here\n");
    // A layer that an earlier boot may have left half-written is unpacked again.
    let layer = t.images().join("layers").join(&entries(t, "layers")[0]);
    let record = layer.join("layer.json");
    let mut known: Value = serde_json_of(&record);
    known["bootId"] = json!("another");
    known["synced"] = json!(false);
    fs::write(&record, known.to_string()).expect("written");
    // As is what that boot's launches knew.
    let stack = t.images().join("stacks").join(&entries(t, "stacks")[0]);
    let mut known: Value = serde_json_of(&stack);
    known["bootId"] = json!("another");
    fs::write(&stack, known.to_string()).expect("written");
    fs::remove_file(layer.join("fs/bin/echo")).expect("removed");
    assert_eq!(run(t, &["--image", NAME]).ok().stdout, "here\n");
    assert!(layer.join("fs/bin/echo").exists());
}

fn serde_json_of(path: &Path) -> Value {
    fs::read_to_string(path).expect("a record").parse().expect("JSON")
}

pub(super) fn largest(folder: &Path) -> PathBuf {
    let blobs = fs::read_dir(folder).expect("blobs").map(|e| e.expect("an entry").path());
    blobs.max_by_key(|path| path.metadata().expect("stat").len()).expect("a blob")
}

pub(super) fn await_entry(folder: &Path) -> bool {
    let found = || fs::read_dir(folder).ok()?.next().map(|_| ());
    wait_until(Duration::from_secs(10), found).is_some()
}
