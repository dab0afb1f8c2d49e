//! State folders on a disk that is full, and mounts where a container's files are to be removed.
//!
//! What must be mounted for this is mounted in a mount namespace of the test's own (`unshare -m`).

use std::fs;

use hafen_integration::{Bundle, Case, Output, Test, cases};

use super::{assert_gone, cgroups_of, delete_force, limited};

pub(super) fn trials() -> Vec<Case> {
    cases![
        disk_is_full_when_the_folder_is_made(Root, Busybox, Program("unshare")),
        disk_is_full_when_the_specification_is_saved(Root, Busybox, Program("unshare")),
        disk_is_full_when_the_plan_is_saved(Root, Busybox, Program("unshare")),
        disk_is_full_when_the_process_is_saved(Root, Busybox, Program("unshare")),
        disk_has_just_room_enough(Root, Busybox, Program("unshare")),
        a_mount_of_another_file_system_in_the_scratch_folder(Root, Busybox, Program("unshare")),
        a_bind_mount_in_the_scratch_folder(Root, Busybox, Program("unshare")),
        a_bind_mount_over_the_scratch_folder(Root, Busybox, Program("unshare")),
        a_symlink_in_the_scratch_folder(Root, Busybox),
    ]
}

/// `run` with its state on a tmpfs with the given number of free pages (or, with `inodes`, of inodes). Prints what
/// is left in the state folder.
fn run_on_a_small_disk(t: &Test, id: &str, bundle: &Bundle, options: &str, pages: u32) -> Output {
    let (oci, state) = (t.oci(), t.dir().join("small"));
    fs::create_dir_all(&state).expect("make the mount point");
    // The first page is for the filler, which takes all but the pages wanted.
    let script = r#"
        mount -n -t tmpfs -o "$OPTIONS" tmpfs "$STATE" || exit 99
        dd if=/dev/zero of="$STATE/filler" bs=4096 count="$FILL" 2>/dev/null || exit 98
        "$PROGRAM" --root "$STATE" run --bundle "$BUNDLE" "$ID"
        code=$?
        rm -f "$STATE/filler"
        find "$STATE" -mindepth 1
        exit $code"#;
    let call = t.program("unshare", ["-m", "sh", "-c", script]).env("STATE", state);
    let call = call.env("OPTIONS", options).env("FILL", (SIZE / 4096 - pages).to_string());
    call.env("PROGRAM", oci.program()).env("BUNDLE", bundle.path()).env("ID", id).output()
}

const SIZE: u32 = 64 << 10;
const PAGES: &str = "size=64k";

fn is_refused(t: &Test, options: &str, pages: u32, file: &str) {
    let id = t.id();
    let output = run_on_a_small_disk(t, &id, &limited(t, "echo ran"), options, pages);
    output.error_with([id.as_str(), file, "No space left on device"]);
    assert_eq!(output.stdout, "", "something was left, or the program ran: {output}");
    assert_gone(&t.oci(), &id, "full disk");
}

/// One inode for the folder at the top, one for the filler.
fn disk_is_full_when_the_folder_is_made(t: &Test) {
    is_refused(t, "size=64k,nr_inodes=2", 4, "mkdir");
}

fn disk_is_full_when_the_plan_is_saved(t: &Test) {
    is_refused(t, PAGES, 0, "plan.");
}

fn disk_is_full_when_the_specification_is_saved(t: &Test) {
    is_refused(t, PAGES, 1, "config.json");
}

fn disk_is_full_when_the_process_is_saved(t: &Test) {
    is_refused(t, PAGES, 2, "state.");
}

fn disk_has_just_room_enough(t: &Test) {
    let id = t.id();
    let output = run_on_a_small_disk(t, &id, &limited(t, "echo ran"), PAGES, 3).ok();
    assert_eq!(output.stdout, "ran\n");
}

/// A container on an overlay that goes on after its `run` was killed.
fn on_an_overlay(t: &Test, id: &str) {
    let lower = t.bundle().rootfs();
    let lower = lower.to_str().expect("a path in UTF-8");
    let script = "mkdir -p /a/b; echo x > /a/b/c; echo ready; sleep 300";
    let words = ["run", "--rootfs", lower, "--id", id, "--", "sh", "-c", script];
    let mut call = t.oci().spawn(words);
    call.await_text("ready");
    call.signal(nix::sys::signal::Signal::SIGKILL);
    call.wait();
}

/// `delete --force` where the scratch folder holds a mount: it must say so, remove nothing through it, and go once
/// the mount is away.
fn stays_whole(t: &Test, mount: &str) {
    let id = t.id();
    on_an_overlay(t, &id);
    let precious = t.dir().join("precious");
    fs::create_dir_all(precious.join("folder")).expect("make a folder");
    fs::write(precious.join("folder/file"), "keep").expect("write a file");
    let (oci, scratch) = (t.oci(), t.oci().root().join(&id).join("scratch"));
    let script = format!(
        r#"{mount} || exit 99
        "$PROGRAM" --root "$STATE" delete --force "$ID""#
    );
    let call = t.program("unshare", ["-m", "sh", "-c", &script]).env("SCRATCH", &scratch);
    let call = call.env("PRECIOUS", &precious).env("STATE", oci.root()).env("ID", &id);
    let output = call.env("PROGRAM", oci.program()).output();
    assert!(
        precious.join("folder/file").exists(),
        "what is mounted in the scratch folder was removed through the mount: {output}"
    );
    output.error_with(["mounted", "scratch"]);
    assert!(oci.root().join(&id).join("plan.json").exists(), "the record went before its claims");
    assert_eq!(cgroups_of(&id), Vec::<std::path::PathBuf>::new(), "one claim held up the others");
    delete_force(&oci, &id, "without the mount");
    assert!(precious.join("folder/file").exists());
}

fn a_mount_of_another_file_system_in_the_scratch_folder(t: &Test) {
    stays_whole(t, r#"mount -n -t tmpfs tmpfs "$SCRATCH/upper/a/b""#);
}

fn a_bind_mount_in_the_scratch_folder(t: &Test) {
    stays_whole(t, r#"mount -n --bind "$PRECIOUS" "$SCRATCH/upper/a/b""#);
}

fn a_bind_mount_over_the_scratch_folder(t: &Test) {
    stays_whole(t, r#"mount -n --bind "$PRECIOUS" "$SCRATCH""#);
}

/// The container chose its target.
fn a_symlink_in_the_scratch_folder(t: &Test) {
    let id = t.id();
    on_an_overlay(t, &id);
    let precious = t.dir().join("precious");
    fs::create_dir_all(&precious).expect("make a folder");
    fs::write(precious.join("file"), "keep").expect("write a file");
    let upper = t.oci().root().join(&id).join("scratch/upper");
    std::os::unix::fs::symlink(&precious, upper.join("link")).expect("make a symlink");
    std::os::unix::fs::symlink("../../../..", upper.join("a/up")).expect("make a symlink");
    delete_force(&t.oci(), &id, "with symlinks");
    assert!(precious.join("file").exists());
}
