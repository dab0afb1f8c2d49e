//! Volumes of containers without a bundle.

use std::fs;

use hafen_integration::{Case, Output, Test, cases, json};
use nix::sys::signal::Signal;

use super::made::{Tar, busybox, layout};
use super::{import, run};

pub(super) fn trials() -> Vec<Case> {
    cases![
        named_volumes_outlive_their_containers(Root, Busybox, FileSystem("overlay")),
        a_volume_in_use_stays(Root, Busybox, FileSystem("overlay")),
        folders_of_the_host(Root, Busybox, FileSystem("overlay")),
        tmpfs_of_a_given_size(Root, Busybox, FileSystem("overlay")),
        volumes_of_the_image(Root, Busybox, FileSystem("overlay")),
        a_launch_that_is_killed_leaves_no_half_volume(Root, Busybox, FileSystem("overlay")),
        wrong_words(Root, Busybox),
    ]
}

const IMAGE: [&str; 2] = ["--image", "localhost/box:made"];

/// With two layers that fill `/data`, and a volume of its own at `/own`.
fn prepare(t: &Test) -> String {
    let low =
        Tar::new().folder("data/").file("data/low", "low").folder("own/").file("own/f", "own");
    let high = Tar::new().file("data/high", "high").file("data/.wh.low", "").file("data/low2", "2");
    let layers = [busybox(t), low.layer(), high.layer()];
    let config =
        json!({ "Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"], "Volumes": { "/own": {} } });
    import(t, &layout(t, "box", &layers, &config)).ok();
    t.dir().join("volumes").display().to_string()
}

fn with(t: &Test, volumes: &str, words: &[&str], script: &str) -> Output {
    run(t, &[&IMAGE, &["--volumes", volumes], words, &["--", script]].concat())
}

fn volume(t: &Test, volumes: &str, words: &[&str]) -> Output {
    t.hafen([&["--volumes", volumes, "volume"], words].concat()).output()
}

fn named_volumes_outlive_their_containers(t: &Test) {
    let volumes = prepare(t);
    let mine = |script| with(t, &volumes, &["-v", "mine:/data"], script);
    // It begins with what the layers together have there.
    assert_eq!(mine("ls /data; echo more > /data/more").ok().stdout, "high\nlow2\n");
    assert_eq!(mine("ls /data; rm /data/low2").ok().stdout, "high\nlow2\nmore\n");
    assert_eq!(mine("ls /data").ok().stdout, "high\nmore\n");
    let other =
        with(t, &volumes, &["-v", "mine:/elsewhere:ro"], "cat /elsewhere/more; touch /elsewhere/x");
    other.failed_with(1, ["Read-only file system"]);
    assert_eq!(other.stdout, "more\n");
    let listed = volume(t, &volumes, &["ls", "--format", "json"]).ok().json();
    assert_eq!((&listed[0]["name"], &listed[0]["usedBy"]), (&json!("mine"), &json!([])));
    assert_eq!(volume(t, &volumes, &["rm", "mine"]).ok().stdout, "mine\n");
    assert_eq!(mine("ls /data").ok().stdout, "high\nlow2\n");
    volume(t, &volumes, &["create", "empty"]).ok();
    volume(t, &volumes, &["create", "empty"]).error_with(["empty", "already"]);
    let empty = with(t, &volumes, &["--volume", "empty:/data"], "ls /data");
    assert_eq!(empty.ok().stdout, "", "a volume that was there keeps what it has");
    assert_eq!(volume(t, &volumes, &["prune"]).ok().stdout, "empty\nmine\n");
}

fn a_volume_in_use_stays(t: &Test) {
    let volumes = prepare(t);
    let id = t.id();
    let words = [
        &["--id", &id, "--volumes", &volumes, "-v", "mine:/data"],
        &IMAGE[..],
        &["--", "sleep 1000"],
    ];
    let running = t.oci().spawn(super::run_words(t, &words.concat()));
    t.oci().await_status(&id, "running");
    volume(t, &volumes, &["rm", "mine"]).error_with(["mine", "in use by", &id]);
    assert_eq!(volume(t, &volumes, &["prune"]).ok().stdout, "");
    let inspected = volume(t, &volumes, &["inspect", "mine"]).ok().json();
    assert!(inspected["usedBy"][0].as_str().is_some_and(|user| user.ends_with(&id)), "{inspected}");
    running.signal(Signal::SIGKILL);
    running.wait();
    t.oci().delete_force(&id).ok();
    volume(t, &volumes, &["rm", "mine"]).ok();
    volume(t, &volumes, &["inspect", "mine"]).error_with(["no volume", "mine"]);
}

fn folders_of_the_host(t: &Test) {
    let volumes = prepare(t);
    let place = t.dir().join("host folder");
    fs::create_dir(&place).unwrap();
    let bind = format!("{}:/data", place.display());
    with(t, &volumes, &["-v", &bind], "ls /data; echo x > /data/written").ok();
    assert_eq!(fs::read_to_string(place.join("written")).unwrap(), "x\n");
    let file = format!("{}:/etc/thing:ro,noexec", place.join("written").display());
    let output =
        with(t, &volumes, &["-v", &file], "cat /etc/thing; grep /etc/thing /proc/self/mountinfo");
    assert!(output.stdout.starts_with("x\n") && output.stdout.contains(" ro,noexec"), "{output}");
    assert!(!t.dir().join("volumes/named").exists(), "nobody asked for a volume");
    let missing = with(t, &volumes, &["-v", "/nowhere/at/all:/data"], "true");
    missing.error_with(["--volume", "/nowhere/at/all"]);
}

fn tmpfs_of_a_given_size(t: &Test) {
    let volumes = prepare(t);
    let script = "grep ' /t ' /proc/self/mountinfo; dd if=/dev/zero of=/t/f bs=1M count=8 2>&1 | tail -1; stat -c %s /t/f";
    let output = with(t, &volumes, &["--tmpfs", "/t:size=4m,mode=1777"], script).ok();
    assert!(output.stdout.contains("size=4096k") && output.stdout.contains("nosuid"), "{output}");
    assert!(output.stdout.ends_with("4194304\n"), "{output}");
}

fn volumes_of_the_image(t: &Test) {
    let volumes = prepare(t);
    let script = "cat /own/f; echo mine > /own/f; grep -c ' /own ' /proc/self/mountinfo";
    for _ in 0..2 {
        assert_eq!(with(t, &volumes, &[], script).ok().stdout, "own1\n");
    }
    let read_only = with(t, &volumes, &["--read-only"], "echo x > /own/new && ls /own").ok();
    assert_eq!(read_only.stdout, "f\nnew\n");
    let covered = with(t, &volumes, &["-v", "named:/own/"], "cat /own/f; echo kept > /own/f").ok();
    assert_eq!(covered.stdout, "own");
    assert_eq!(with(t, &volumes, &["-v", "named:/own"], "cat /own/f").ok().stdout, "kept\n");
}

fn a_launch_that_is_killed_leaves_no_half_volume(t: &Test) {
    let volumes = prepare(t);
    for point in 1..200 {
        let id = format!("{}-{point}", t.id());
        let words = [
            &["--id", &id, "--volumes", &volumes, "-v", "mine:/data"],
            &IMAGE[..],
            &["--", "true"],
        ];
        let oci = t.oci().env("HAFEN_FAULT", point.to_string());
        let died = oci.call(super::run_words(t, &words.concat()));
        t.oci().delete_force(&id).ok();
        let whole = with(t, &volumes, &["-v", "mine:/data"], "ls /data").ok();
        assert_eq!(whole.stdout, "high\nlow2\n", "killed at {point}: {died}");
        volume(t, &volumes, &["rm", "mine"]).ok();
        if died.exit == Some(0) {
            return;
        }
    }
    panic!("a launch has fewer than 200 points to die at");
}

fn wrong_words(t: &Test) {
    let volumes = prepare(t);
    for (words, says) in [
        (["-v", "data"], "--volume"),
        (["-v", "da ta:/x"], "name of a volume"),
        (["-v", "data:relative"], "--volume"),
        (["--tmpfs", "relative"], "--tmpfs"),
    ] {
        with(t, &volumes, &words, "true").error_with([says]);
    }
    volume(t, &volumes, &["create", "../x"]).error_with(["../x", "name of a volume"]);
    assert!(!t.dir().join("volumes/named").exists(), "nothing was made");
}
