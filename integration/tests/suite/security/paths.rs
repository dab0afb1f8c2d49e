//! Paths in the container, in the bundle and in the cgroup tree.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hafen_integration::{Bundle, Case, Oci, Test, cases, cgroup, json};

use super::{folder, volume, weakened};

pub(super) fn trials() -> Vec<Case> {
    cases![
        cve_2021_30465_a_volume_that_is_exchanged_for_a_link_during_the_mounts(
            Root, Busybox, Weaken
        ),
        cve_2025_31133_masked_paths_when_dev_null_is_a_link(Root, Busybox, Weaken),
        cve_2025_52565_the_console_is_a_link(Root, Busybox, Weaken),
        cve_2023_28642_proc_of_the_image_is_a_link(Root, Busybox, Weaken),
        cve_2023_27561_sys_of_the_image_is_a_link(Root, Busybox, Weaken),
        the_root_filesystem_is_a_link(Root, Busybox, Weaken),
        the_cgroup_path_leads_out_of_its_folder(Root, Busybox, Weaken),
    ]
}

/// One container exchanges a folder of a shared volume for a link that names a folder of the host, over and over, while
/// others are launched with a mount below that folder.
fn cve_2021_30465_a_volume_that_is_exchanged_for_a_link_during_the_mounts(t: &Test) {
    const LAUNCHES: usize = 16;
    let (oci, attacker) = (t.oci(), t.id());
    let (shared, host) = (folder(t, "shared"), folder(t, "host"));
    fs::create_dir(shared.join("door")).expect("make a folder");
    symlink(&host, shared.join("trap")).expect("make a link");
    let swap = ["/inside", "swap", "/vol/door", "/vol/trap"];
    let bundle = t.bundle().args(swap).push("/mounts", volume(&shared, "/vol"));
    let mut running =
        oci.spawn(["run", "--bundle", &bundle.path().display().to_string(), &attacker]);
    running.await_text("ready");

    let listed = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    let mut last = None;
    let mut launch = |oci: &Oci, number| {
        let output = oci.run(&t.id(), &victim(t, &shared, number));
        assert!(!output.timed_out, "{output}");
        last = Some(output);
        listed(&host)
    };
    let reached: usize = (0..LAUNCHES).map(|n| launch(&oci, n)).sum();
    // Either name is the folder at any moment.
    let inside =
        (0..1000).flat_map(|_| ["door", "trap"]).map(|name| listed(&shared.join(name))).max();
    let weak = weakened(t, "resolve-in-root");
    let without = (0..LAUNCHES).map(|n| launch(&weak, n)).find(|found| *found > 0);
    drop(running);
    let _ = oci.delete_force(&attacker).ok();
    assert_eq!(reached, 0, "mounts were made on the host");
    assert!(inside > Some(0), "no launch met the folder: there was no race; {last:?}");
    assert!(without.is_some(), "without the defence nothing was reached");
}

/// A mount point that does not exist yet is made: where it is then, the mount went.
fn victim(t: &Test, shared: &Path, number: usize) -> Bundle {
    let inner =
        json!({ "destination": format!("/vol/door/{number}"), "type": "tmpfs", "source": "tmpfs" });
    let bundle = t.bundle().args(["/inside", "exit", "0"]);
    bundle.push("/mounts", volume(shared, "/vol")).push("/mounts", inner)
}

/// What covers a masked file must be the null device itself: the container's own may be a link to what a neighbour, or
/// the image, would like to have mounted there; or it may be missing.
fn cve_2025_31133_masked_paths_when_dev_null_is_a_link(t: &Test) {
    let shared = folder(t, "shared");
    fs::write(shared.join("chosen"), "the attacker's\n").expect("write a file");
    let bundle = |null: Option<&str>| {
        let _ = fs::remove_file(shared.join("null"));
        if let Some(target) = null {
            symlink(target, shared.join("null")).expect("make a link");
        }
        t.bundle()
            .without_mount("/dev/pts")
            .without_mount("/dev/shm")
            .without_mount("/dev/mqueue")
            .edit(|config| {
                let mounts = config["mounts"].as_array_mut().expect("an array");
                let dev = mounts.iter_mut().find(|m| m["destination"] == "/dev").expect("/dev");
                *dev = volume(&shared, "/dev");
            })
            .file("/secret", "secret\n")
            .push("/linux/maskedPaths", json!("/secret"))
            .sh("cat /secret; stat -c %t:%T /secret")
    };
    for null in [Some("/dev/chosen"), Some("/secret"), Some("/no/such/file"), None] {
        let output = t.oci().run(&t.id(), &bundle(null)).ok();
        assert_eq!(output.stdout, "1:3\n", "{null:?}: {output}");
    }
    let oci = weakened(t, "mask-source");
    let output = oci.run(&t.id(), &bundle(Some("/dev/chosen"))).ok();
    assert!(output.stdout.starts_with("the attacker's\n"), "without the defence: {output}");
}

/// The terminal would cover what the link names.
fn cve_2025_52565_the_console_is_a_link(t: &Test) {
    let shared = folder(t, "shared");
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(shared.join(name)).expect("make a folder");
    }
    for link in ["null", "tty"] {
        symlink(format!("/proc/self/fd/{link}"), shared.join(link)).expect("make a link");
    }
    symlink("/etc/passwd", shared.join("console")).expect("make a link");
    let bundle = t
        .bundle()
        .edit(|config| {
            let mounts = config["mounts"].as_array_mut().expect("an array");
            let dev = mounts.iter_mut().find(|m| m["destination"] == "/dev").expect("/dev");
            *dev = volume(&shared, "/dev");
        })
        .set("/process/terminal", json!(true))
        .sh("[ -c /etc/passwd ] && echo covered");
    t.oci().run(&t.id(), &bundle).error_with(["mount it on /dev/console"]);
    let output = weakened(t, "console-target").run(&t.id(), &bundle).ok();
    assert!(output.stdout.contains("covered"), "without the defence: {output}");
}

/// Masks, labels and settings would go to where the link leads, and programs would read what the image put at `/proc`.
fn cve_2023_28642_proc_of_the_image_is_a_link(t: &Test) {
    linked(t, "proc", "self/status");
}

fn cve_2023_27561_sys_of_the_image_is_a_link(t: &Test) {
    linked(t, "sys", "kernel/mm");
}

fn linked(t: &Test, name: &str, file: &str) {
    let script = format!("[ -e /elsewhere/{file} ] && echo mounted elsewhere");
    let bundle = t.bundle().sh(&script).without_mount("/sys/fs/cgroup");
    fs::create_dir(bundle.rootfs().join("elsewhere")).expect("make a folder");
    let place = bundle.rootfs().join(name);
    fs::remove_dir(&place).expect("remove a folder");
    symlink("elsewhere", &place).expect("make a link");
    let output = t.oci().run(&t.id(), &bundle);
    output.error_with(["must be mounted on ordinary directory"]);
    let output = weakened(t, "root-symlink").run(&t.id(), &bundle).ok();
    assert_eq!(output.stdout, "mounted elsewhere\n", "without the defence: {output}");
}

/// Who makes the link chooses what the container stands on.
fn the_root_filesystem_is_a_link(t: &Test) {
    let other = t.bundle().file("/owner", "somebody else\n");
    let bundle = t.bundle().sh("cat /owner").set("/root/path", json!("link"));
    symlink(other.rootfs(), bundle.path().join("link")).expect("make a link");
    t.oci().run(&t.id(), &bundle).error_with(["root.path"]);
    let output = weakened(t, "root-symlink").run(&t.id(), &bundle).ok();
    assert_eq!(output.stdout, "somebody else\n", "without the defence: {output}");
}

/// A path that is checked by how it begins must not lead elsewhere. (Cgroup file systems have no links.)
fn the_cgroup_path_leads_out_of_its_folder(t: &Test) {
    let (id, other) = (t.id(), t.id());
    let path = format!("/{id}/../{other}/inner");
    let bundle = t
        .bundle()
        .sh("cat /proc/self/cgroup")
        .without_namespace("cgroup")
        .set("/linux/cgroupsPath", json!(path));
    t.oci().run(&id, &bundle).error_with(["linux.cgroupsPath", &path]);
    let output = weakened(t, "cgroup-path").run(&id, &bundle).ok();
    // The way there was made as well, and is on nobody's list.
    for hierarchy in cgroup::hierarchies() {
        let _ = fs::remove_dir(hierarchy.mount.join(&id));
    }
    assert!(output.stdout.contains(&format!("/{other}/inner\n")), "without the defence: {output}");
}
