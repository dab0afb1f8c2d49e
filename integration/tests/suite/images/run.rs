//! Containers of images.

use std::fs;

use hafen_integration::{Case, Test, cases, json};

use super::facts::{assert_same, facts};
use super::made::{Layer, Tar, busybox, layout};
use super::{import, run};
use crate::clients::image;

pub(super) fn trials() -> Vec<Case> {
    cases![
        the_image_says_what_runs(Root, Busybox, FileSystem("overlay")),
        options_change_it(Root, Busybox, FileSystem("overlay")),
        users_by_name(Root, Busybox, FileSystem("overlay")),
        layers_lie_on_each_other(Root, Busybox, FileSystem("overlay")),
        two_hundred_layers(Root, Busybox, FileSystem("overlay")),
        what_is_written_stays_in_the_container(Root, Busybox, FileSystem("overlay")),
        missing_images_say_how_to_get_them(Root, Busybox),
        an_image_without_a_command(Root, Busybox, FileSystem("overlay")),
        files_are_as_umoci_unpacks_them(Root, Busybox, Program("umoci"), FileSystem("overlay")),
        explain_names_the_layers(Root, Busybox, FileSystem("overlay")),
    ]
}

fn the_image_says_what_runs(t: &Test) {
    let config = json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $A $HOME; pwd; exit 7"], "WorkingDir": "/tmp",
                         "Env": ["PATH=/bin", "A=image"], "Labels": { "a": "label" }, "ExposedPorts": { "80/tcp": {} } });
    let output = import(t, &layout(t, "box", &[busybox(t)], &config)).ok();
    assert!(output.stdout.starts_with("localhost/box:made sha256:"), "{output}");
    let output = run(t, &["--image", "localhost/box:made"]).code(7);
    assert_eq!(output.stdout, "image /root\n/tmp\n");
    // By the beginning of its digest as well.
    let listed = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    let digest = listed[0]["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(run(t, &["--image", &digest[..20]]).code(7).stdout, "image /root\n/tmp\n");
    let inspected = t.hafen(["image", "inspect", "localhost/box:made"]).output().ok().json();
    assert_eq!(inspected["config"]["exposedPorts"], json!(["80/tcp"]));
    assert_eq!(inspected["unpacked"], json!(true));
}

fn options_change_it(t: &Test) {
    let config = json!({ "Entrypoint": ["/bin/echo", "image"], "Cmd": ["usual"], "Env": ["PATH=/bin", "A=1"] });
    import(t, &layout(t, "box", &[busybox(t)], &config)).ok();
    let run =
        |words: &[&str]| run(t, &[&["--image", "localhost/box:made"], words].concat()).ok().stdout;
    assert_eq!(run(&[]), "image usual\n");
    assert_eq!(run(&["--", "mine"]), "image mine\n");
    assert_eq!(run(&["--entrypoint", "/bin/sh", "--env", "A=2", "--", "-c", "echo $A"]), "2\n");
    assert_eq!(run(&["--entrypoint", "", "--cwd", "/etc", "--", "/bin/pwd"]), "/etc\n");
    assert_eq!(
        run(&["--entrypoint", "", "--read-only", "--", "/bin/sh", "-c", "echo x > /x || echo no"]),
        "no\n"
    );
}

fn users_by_name(t: &Test) {
    let config = json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["id; echo $HOME"], "User": "web", "Env": ["PATH=/bin"] });
    import(t, &layout(t, "box", &[busybox(t)], &config)).ok();
    let image = ["--image", "localhost/box:made"];
    assert_eq!(run(t, &image).ok().stdout, "uid=33(web) gid=34 groups=4(log)\n/srv\n");
    let user = |user| run(t, &[&image[..], &["--user", user]].concat());
    assert_eq!(user("root:log").ok().stdout, "uid=0(root) gid=4(log)\n/root\n");
    assert_eq!(user("1000").ok().stdout, "uid=1000 gid=0(root)\n/\n");
    user("nobody-here").error_with(["--user", "nobody-here", "/etc/passwd"]);
    user("web:none").error_with(["--user", "none", "/etc/group"]);
}

fn layers_lie_on_each_other(t: &Test) {
    let below = Tar::new()
        .folder("d/")
        .file("d/kept", "low")
        .file("d/replaced", "low")
        .file("d/removed", "low")
        .folder("o/")
        .file("o/hidden", "low")
        .file("t", "a file")
        .layer();
    let above = Tar::new()
        .file("d/replaced", "high")
        .file("d/.wh.removed", "")
        .folder("o/")
        .file("o/.wh..wh..opq", "")
        .file("o/new", "high")
        .folder("t/")
        .file("t/inside", "high")
        .link("d/same", "d/kept");
    let layers = [busybox(t), below.gzip(), above.layer().gzip()];
    let script = "cd /; find d o t -type f | while read f; do echo $f $(cat $f); done; stat -c %h d/kept d/same";
    let config = json!({ "Cmd": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"] });
    import(t, &layout(t, "box", &layers, &config)).ok();
    let output = run(t, &["--image", "localhost/box:made"]).ok();
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let wanted =
        ["2", "2", "d/kept low", "d/replaced high", "d/same low", "o/new high", "t/inside high"];
    assert_eq!(lines, wanted, "{output}");
}

fn two_hundred_layers(t: &Test) {
    let small = |n: u32| {
        Tar::new().file(&format!("n/{n}"), n.to_string()).file("last", n.to_string()).layer()
    };
    let layers: Vec<Layer> = std::iter::once(busybox(t)).chain((0..200).map(small)).collect();
    let config =
        json!({ "Cmd": ["/bin/sh", "-c", "ls /n | wc -l; cat /last"], "Env": ["PATH=/bin"] });
    import(t, &layout(t, "deep", &layers, &config)).ok();
    assert_eq!(run(t, &["--image", "localhost/deep:made"]).ok().stdout, "200\n199");
}

fn what_is_written_stays_in_the_container(t: &Test) {
    let config = json!({ "Cmd": ["/bin/sh", "-c", "cat /etc/passwd | grep -c . ; echo more >> /etc/passwd"], "Env": ["PATH=/bin"] });
    import(t, &layout(t, "box", &[busybox(t)], &config)).ok();
    for _ in 0..2 {
        assert_eq!(run(t, &["--image", "localhost/box:made"]).ok().stdout, "2\n");
    }
}

fn missing_images_say_how_to_get_them(t: &Test) {
    run(t, &["--image", "no/such:image"])
        .error_with(["docker.io/no/such:image", "hafen image pull"]);
    assert!(!t.images().exists(), "a store was made for a look");
    run(t, &["--image", "No/Such"]).error_with(["No/Such", "no name of an image"]);
    run(t, &["--image", "x", "--rootfs", "host", "--", "true"]).error_with(["--rootfs"]);
    run(t, &["--images", "/x", "id"]).error_with(["--image"]);
}

fn an_image_without_a_command(t: &Test) {
    import(t, &layout(t, "box", &[busybox(t)], &json!({ "Env": ["PATH=/bin"] }))).ok();
    run(t, &["--image", "localhost/box:made"]).error_with(["COMMAND", "image names none"]);
    assert_eq!(run(t, &["--image", "localhost/box:made", "--", "echo", "x"]).ok().stdout, "x\n");
    run(t, &["--image", "localhost/box:made", "--", "/no/such"]).error_with(["/no/such"]);
}

fn files_are_as_umoci_unpacks_them(t: &Test) {
    let layout = image::layout(t);
    import(t, &layout).ok();
    let bundle = t.dir().join("umoci");
    let tag = format!("{}:box", layout.display());
    t.program("umoci", ["unpack", "--image", &tag, &bundle.display().to_string()]).output().ok();
    let layers = t.images().join("layers");
    let layer = fs::read_dir(layers).expect("layers").next().expect("one").expect("an entry");
    let (ours, theirs) = (facts(&layer.path().join("fs")), facts(&bundle.join("rootfs")));
    assert!(ours.len() > 50, "{} files", ours.len());
    assert_same(&ours, &theirs);
}

fn explain_names_the_layers(t: &Test) {
    let layers = [busybox(t), Tar::new().file("x", "x").layer()];
    import(t, &layout(t, "box", &layers, &json!({ "Cmd": ["/bin/true"] }))).ok();
    let store = t.images().display().to_string();
    let words = ["explain", "--images", &store, "--image", "localhost/box:made"];
    let output = t.oci().call(words).ok();
    for text in ["use written down in", "and 1 below it", &store] {
        assert!(output.stdout.contains(text), "{text}: {output}");
    }
    assert_eq!(fs::read_dir(t.images().join("uses")).expect("a folder").count(), 0);
}
