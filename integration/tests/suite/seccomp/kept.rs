//! Filters that are kept between launches: taken when nobody else can have written them, and never otherwise.

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use hafen_integration::{Bundle, Case, Test, cases};

use super::profile;

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_filter_is_kept_and_taken_again(Launcher, Busybox),
        an_exec_takes_it_as_well(Launcher, Busybox),
        a_kept_filter_that_is_damaged(Launcher, Busybox),
        a_kept_filter_of_another_profile(Launcher, Busybox),
        a_kept_filter_that_others_may_write(Launcher, Busybox),
        a_kept_filter_of_somebody_else(Root, Busybox),
        a_folder_that_is_somebody_elses(Root, Busybox),
        a_folder_that_is_a_link(Launcher, Busybox),
        filters_of_many_profiles(Launcher, Busybox),
        a_filter_that_cannot_be_kept(Launcher, Busybox),
        an_explanation_keeps_nothing(Launcher, Busybox),
    ]
}

const ALLOWED: &str = "0\n";
const DENIED: &str = "1\n";

fn bundle(t: &Test, action: &str) -> Bundle {
    let action = profile(action, None);
    t.bundle().sh("mkdir /dev/shm/x 2> /dev/null; echo $?").set("/linux/seccomp", action)
}

fn run(t: &Test, action: &str) -> String {
    t.oci().run(&t.id(), &bundle(t, action)).ok().stdout
}

fn folder(t: &Test) -> PathBuf {
    t.oci().root().join("@seccomp")
}

fn kept(t: &Test) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(t)).into_iter().flatten();
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn only_one(t: &Test) -> PathBuf {
    let kept = kept(t);
    assert_eq!(kept.len(), 1, "{kept:?}");
    kept.into_iter().next().expect("one")
}

fn facts(path: &Path) -> Metadata {
    fs::metadata(path).expect("a kept filter")
}

/// Deny once, do something to the filter that was kept, and deny again: what was done must not count.
fn still_denies(t: &Test, tamper: impl FnOnce(&Path)) {
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    let path = only_one(t);
    let whole = fs::read(&path).expect("its bytes");
    tamper(&path);
    let tampered = facts(&path).ino();
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    // It was compiled again and put right.
    assert_ne!(facts(&path).ino(), tampered);
    assert_eq!(fs::read(&path).expect("its bytes"), whole);
    assert_eq!(facts(&path).mode() & 0o7777, 0o600);
}

fn a_filter_is_kept_and_taken_again(t: &Test) {
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    let path = only_one(t);
    assert_eq!(facts(&folder(t)).mode() & 0o7777, 0o700);
    assert_eq!(facts(&path).mode() & 0o7777, 0o600);
    let first = facts(&path).ino();
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    assert_eq!(facts(&path).ino(), first, "it was compiled again");
    // What is kept decides: here the verdict of every rule is made another one, and the sum is made right.
    let mut bytes = fs::read(&path).expect("its bytes");
    let (eperm, eexist) = (0x0005_0001_u32.to_le_bytes(), 0x0005_0011_u32.to_le_bytes());
    let found: Vec<usize> = (0..bytes.len() - 3).filter(|at| bytes[*at..at + 4] == eperm).collect();
    assert!(!found.is_empty(), "no verdict in {}", path.display());
    for at in found {
        bytes[at..at + 4].copy_from_slice(&eexist);
    }
    let sum = sum(&bytes[8..]).to_le_bytes();
    bytes[..8].copy_from_slice(&sum);
    fs::write(&path, bytes).expect("writable");
    let bundle = bundle(t, "SCMP_ACT_ERRNO").sh("mkdir /dev/shm/x");
    let output = t.oci().run(&t.id(), &bundle).code(1);
    assert!(output.stderr.contains("File exists"), "{output}");
    // The list does not take the folder for a container.
    assert_eq!(t.oci().call(["list", "--quiet"]).ok().stdout, "");
}

fn sum(bytes: &[u8]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn an_exec_takes_it_as_well(t: &Test) {
    let (id, oci) = (t.id(), t.oci());
    let waiting = bundle(t, "SCMP_ACT_ERRNO").args(["sleep", "60"]);
    oci.create(&id, &waiting).ok();
    oci.start(&id).ok();
    let path = only_one(t);
    let exec = |want: &str| {
        let output = oci.call(["exec", &id, "sh", "-c", "mkdir /dev/shm/x 2> /dev/null; echo $?"]);
        assert_eq!(output.ok().stdout, want);
    };
    let first = facts(&path).ino();
    exec(DENIED);
    assert_eq!(facts(&path).ino(), first);
    // Without one it is compiled, and kept for the next.
    fs::remove_file(&path).expect("removed");
    exec(DENIED);
    assert!(path.exists());
    oci.delete_force(&id).ok();
}

fn a_kept_filter_that_is_damaged(t: &Test) {
    still_denies(t, |path| fs::write(path, "").expect("written"));
    still_denies(t, |path| {
        let mut bytes = fs::read(path).expect("its bytes");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).expect("written");
    });
    still_denies(t, |path| {
        let file = fs::OpenOptions::new().write(true).open(path).expect("opened");
        file.set_len(facts(path).len() / 2).expect("cut");
    });
}

/// Under the right name lies the filter of a profile that allows.
fn a_kept_filter_of_another_profile(t: &Test) {
    assert_eq!(run(t, "SCMP_ACT_LOG"), ALLOWED);
    let allowing = only_one(t);
    let aside = t.dir().join("allowing");
    fs::rename(allowing, &aside).expect("moved");
    still_denies(t, |path| {
        fs::copy(&aside, path).expect("copied");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("its own");
    });
}

fn a_kept_filter_that_others_may_write(t: &Test) {
    for mode in [0o620, 0o602, 0o666] {
        still_denies(t, |path| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("opened to others");
        });
    }
}

fn a_kept_filter_of_somebody_else(t: &Test) {
    still_denies(t, |path| chown(path, Some(1000), None).expect("given away"));
}

fn a_folder_that_is_somebody_elses(t: &Test) {
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    let path = only_one(t);
    fs::write(&path, "not a filter").expect("written");
    for (owner, mode) in [(1000, 0o700), (0, 0o777), (0, 0o720)] {
        chown(folder(t), Some(owner), None).expect("given away");
        fs::set_permissions(folder(t), Permissions::from_mode(mode)).expect("opened to others");
        assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
        let found = fs::read(&path).expect("its bytes");
        assert_eq!(found, b"not a filter", "owner {owner}, mode {mode:o}: it was written to");
    }
    chown(folder(t), Some(0), None).expect("taken back");
}

fn a_folder_that_is_a_link(t: &Test) {
    let elsewhere = t.dir().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    fs::create_dir_all(t.oci().root()).expect("a folder");
    symlink(&elsewhere, folder(t)).expect("a link");
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    let written = fs::read_dir(&elsewhere).expect("a folder").count();
    assert_eq!(written, 0);
}

fn filters_of_many_profiles(t: &Test) {
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    let first = only_one(t);
    for n in 0..50 {
        fs::write(folder(t).join(format!("{n:016x}")), "of another profile").expect("written");
    }
    assert_eq!(run(t, "SCMP_ACT_LOG"), ALLOWED);
    assert_eq!(kept(t).len(), 32);
    assert!(!first.exists(), "the oldest went first");
}

fn a_filter_that_cannot_be_kept(t: &Test) {
    fs::create_dir_all(t.oci().root()).expect("a folder");
    fs::write(folder(t), "a file").expect("written");
    assert_eq!(run(t, "SCMP_ACT_ERRNO"), DENIED);
    assert_eq!(fs::read(folder(t)).expect("a file"), b"a file");
}

fn an_explanation_keeps_nothing(t: &Test) {
    let bundle = bundle(t, "SCMP_ACT_ERRNO");
    t.oci().call(["explain".as_ref(), bundle.path().as_os_str()]).ok();
    assert_eq!(kept(t), Vec::<PathBuf>::new());
}
