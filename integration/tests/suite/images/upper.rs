//! What containers without a bundle write: where it lies, what bounds it, and that it goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Case, Output, Running, Test, cases, json, wait_until};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::made::{Tar, busybox, layout};
use super::{import, run, run_words};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_tmpfs_is_full_at_its_size(Root, Busybox, FileSystem("overlay")),
        a_tmpfs_counts_as_memory(Root, Busybox, FileSystem("overlay"), Limit("memory")),
        a_tmpfs_under_the_layers_of_an_image(Root, Busybox, FileSystem("overlay")),
        on_disk_it_lies_in_the_store(Root, Busybox, FileSystem("overlay")),
        no_end_waits_for_the_disk(Root, Busybox, FileSystem("overlay")),
        prune_removes_what_other_boots_left(Root, Busybox, FileSystem("overlay")),
        a_killed_runtime_leaves_what_delete_removes(Root, Busybox, FileSystem("overlay")),
        a_size_without_quotas_is_refused(Root, Busybox, FileSystem("tmpfs"), FileSystem("overlay")),
        options_that_make_no_sense(Root, Busybox),
        explain_names_the_limit(Root, Busybox, ProjectQuota("ext4")),
        ext4_is_full_at_its_size(Root, Busybox, ProjectQuota("ext4"), FileSystem("overlay")),
        xfs_is_full_at_its_size(Root, Busybox, ProjectQuota("xfs"), FileSystem("overlay")),
        ext4_knows_containers_apart(
            Root,
            Busybox,
            ProjectQuota("ext4"),
            FileSystem("overlay"),
            Program("xfs_quota")
        ),
        xfs_knows_containers_apart(
            Root,
            Busybox,
            ProjectQuota("xfs"),
            FileSystem("overlay"),
            Program("xfs_quota")
        ),
        nobody_inside_leaves_the_project(
            Root,
            Busybox,
            ProjectQuota("ext4"),
            FileSystem("overlay"),
            Program("python3")
        ),
        a_size_without_the_mount_option_is_refused(
            Root,
            Busybox,
            ProjectQuota("ext4"),
            FileSystem("overlay")
        ),
    ]
}

const NAME: &str = "localhost/box:made";
const MIB: u64 = 1 << 20;
/// Writes more than fits, then says how much did.
const FILL: &str =
    "/bin/busybox dd if=/dev/zero of=/big bs=64k count=400 && echo all; stat -c %s /big";

fn take_in(t: &Test) {
    let config = json!({ "Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"] });
    let layers = [busybox(t), Tar::new().file("below", "low").layer()];
    import(t, &layout(t, "box", &layers, &config)).ok();
}

fn upper(t: &Test, upper: &str, script: &str) -> Output {
    run(t, &["--image", NAME, "--upper", upper, "--", script])
}

/// The container that begins with `--id`, when its script has said "ready".
fn begun(t: &Test, id: &str, upper: &str, script: &str) -> Running {
    let script = format!("{script}; echo ready; sleep 300");
    let words = ["--image", NAME, "--upper", upper, "--id", id, "--", &script];
    let mut call = t.oci().spawn(run_words(t, &words));
    call.await_text("ready");
    call
}

fn end(t: &Test, id: &str, call: Running) {
    t.oci().delete_force(id).ok();
    let _ = call.wait();
}

/// Folders of containers, of whichever boot.
fn folders(images: &Path) -> Vec<PathBuf> {
    let all = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).collect()
    };
    all(&images.join("upper")).iter().flat_map(|boot| all(boot)).collect()
}

fn no_folders(t: &Test) {
    assert_eq!(folders(&t.images()), Vec::<PathBuf>::new());
}

/// About `size` was written, and not all.
#[track_caller]
fn assert_full(output: &Output, size: u64, words: &str) {
    assert!(output.stderr.contains(words), "wanted {words:?}: {output}");
    let written: u64 = output.stdout.trim().parse().unwrap_or_else(|_| panic!("{output}"));
    assert!(written <= size && written > size - size / 4, "{written} of {size}: {output}");
}

fn a_tmpfs_is_full_at_its_size(t: &Test) {
    let rootfs = t.bundle().rootfs().display().to_string();
    let words = ["run", "--rootfs", &rootfs, "--upper", "tmpfs:8M", "--", "sh", "-c"];
    let output = t.oci().call(words.iter().copied().chain([FILL])).ok();
    assert_full(&output, 8 * MIB, "No space left on device");
    let output = t.oci().call(words.iter().copied().chain(["df -k / | tail -1"])).ok();
    assert_eq!(output.stdout.split_whitespace().nth(1), Some("8192"), "{output}");
}

fn a_tmpfs_counts_as_memory(t: &Test) {
    let rootfs = t.bundle().rootfs().display().to_string();
    let words = ["--rootfs", &rootfs, "--upper", "tmpfs", "--memory", "8M", "--memory-swap", "8M"];
    let script = ["--", "sh", "-c", FILL];
    let words: Vec<&str> = ["run"].into_iter().chain(words).chain(script).collect();
    // The OOM killer ends dd; the shell goes on, or is ended with it.
    let output = t.oci().call(words);
    assert!(!output.stdout.contains("all"), "{output}");
    let killed = output.exit == Some(137) || output.stderr.contains("Killed");
    assert!(killed, "{output}");
}

fn a_tmpfs_under_the_layers_of_an_image(t: &Test) {
    take_in(t);
    let output = upper(t, "tmpfs:8M", FILL).ok();
    assert_full(&output, 8 * MIB, "No space left on device");
    assert_eq!(upper(t, "tmpfs", "cat /below; echo x > /below; cat /below").ok().stdout, "lowx\n");
    assert_eq!(upper(t, "tmpfs", "cat /below").ok().stdout, "low");
    assert!(!t.images().join("upper").exists(), "a tmpfs takes nothing from the store");
}

fn on_disk_it_lies_in_the_store(t: &Test) {
    take_in(t);
    let id = t.id();
    let call = begun(t, &id, "disk", "cat /below; echo much > /file");
    let found = folders(&t.images());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(fs::read_to_string(found[0].join("upper/file")).expect("a file"), "much\n");
    assert!(!t.oci().root().join(&id).join("scratch").exists(), "nothing lies beside the state");
    // Collection takes nothing from a container that lives.
    t.hafen(["image", "prune"]).output().ok();
    assert_eq!(folders(&t.images()), found);
    end(t, &id, call);
    no_folders(t);
    let rootfs = t.bundle().rootfs().display().to_string();
    let words = ["--rootfs", &rootfs, "--upper", "disk", "--", "sh", "-c", "echo x > /x; cat /x"];
    assert_eq!(run(t, &words).ok().stdout, "x\n");
    no_folders(t);
}

/// Whichever way the overlay is put together.
fn no_end_waits_for_the_disk(t: &Test) {
    take_in(t);
    let rootfs = t.bundle().rootfs().display().to_string();
    let image = ["--image", NAME];
    let map = ["--uidmap", "0:100000:65536"];
    let root = "while read -r line; do case $line in *' / / '*) echo $line; esac; done < /proc/self/mountinfo";
    let of_folder = ["--rootfs", &rootfs, "--upper", "disk", "--", "sh", "-c", root];
    let all = [
        [&image[..], &["--upper", "disk", "--", root]].concat(),
        [&image[..], &["--upper", "tmpfs", "--", root]].concat(),
        [&image[..], &map, &["--", root]].concat(),
        of_folder.to_vec(),
        [&map[..], &of_folder].concat(),
    ];
    for words in all {
        let output = run(t, &words).ok();
        let is_so = |line: &str| line.contains(" - overlay ") && line.ends_with("volatile");
        assert!(output.stdout.lines().any(is_so), "{words:?}: {output}");
    }
}

fn prune_removes_what_other_boots_left(t: &Test) {
    take_in(t);
    let id = t.id();
    let call = begun(t, &id, "disk", "true");
    let old = t.images().join("upper/00000000-0000-0000-0000-000000000000/run%x");
    fs::create_dir_all(old.join("upper/a/b")).expect("mkdir");
    fs::write(old.join("upper/a/file"), "x").expect("written");
    t.hafen(["image", "prune"]).output().ok();
    assert!(!old.exists() && folders(&t.images()).len() == 1, "{:?}", folders(&t.images()));
    end(t, &id, call);
    no_folders(t);
}

fn a_killed_runtime_leaves_what_delete_removes(t: &Test) {
    take_in(t);
    for medium in ["disk", "tmpfs:8M"] {
        let id = t.id();
        let call = begun(t, &id, medium, "mkdir -p /a/b; echo x > /a/b/c");
        call.signal(Signal::SIGKILL);
        let _ = call.wait();
        t.oci().delete_force(&id).ok();
        no_folders(t);
    }
}

fn a_size_without_quotas_is_refused(t: &Test) {
    let rootfs = t.bundle().rootfs().display().to_string();
    let words = ["--rootfs", &rootfs, "--upper", "disk:8M", "--", "true"];
    fs::create_dir(t.images()).expect("mkdir");
    let mounted = Mounted::new(t, "mount -n -t tmpfs none images");
    let way_out = ["--upper disk:8388608", "prjquota", "--upper tmpfs:SIZE", "images is on tmpfs"];
    run(t, &words).error_with(way_out);
    drop(mounted);
    let folders = "mkdir lower changes work";
    let overlay = "mount -n -t overlay -o lowerdir=lower,upperdir=changes,workdir=work none images";
    let mounted = Mounted::new(t, &format!("{folders} && {overlay}"));
    run(t, &words).error_with(["images is on overlay", "--upper tmpfs:SIZE"]);
    assert!(!t.images().join("upper").exists(), "something was made before the refusal");
    drop(mounted);
}

fn options_that_make_no_sense(t: &Test) {
    let bundle = t.bundle();
    let rootfs = bundle.rootfs().display().to_string();
    let call = |words: &[&str]| t.oci().call(["run"].iter().chain(words));
    call(&["--rootfs", &rootfs, "--upper", "ram", "--", "true"])
        .error_with(["--upper", "must be tmpfs"]);
    call(&["--rootfs", &rootfs, "--upper", "disk:-1", "--", "true"])
        .error_with(["--upper", "is not a size"]);
    call(&["--rootfs", &rootfs, "--upper", "disk", "--read-only", "--", "true"])
        .error_with(["--upper", "--read-only"]);
    call(&["--rootfs", &rootfs, "--images", "/x", "--", "true"])
        .error_with(["--images", "--upper disk"]);
    let path = bundle.path().display().to_string();
    call(&["--bundle", &path, "--upper", "tmpfs", "id"]).error_with(["--upper", "needs --rootfs"]);
    let inside = bundle.rootfs().join("images").display().to_string();
    call(&["--rootfs", &rootfs, "--images", &inside, "--upper", "disk", "--", "true"])
        .error_with(["lies inside", &rootfs, "--images"]);
}

/// Something mounted on the store's folder, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(t: &Test, script: &str) -> Self {
        t.program("sh", ["-c", script]).output().ok();
        Self(t.images())
    }

    /// A disk of its own; mount(8) frees the loop device with the mount.
    fn disk(t: &Test, kind: &str, options: &str) -> Self {
        let features = if kind == "ext4" { "-O project,quota -E quotatype=prjquota" } else { "" };
        let make =
            format!("mkdir images && truncate -s 320M disk && mkfs.{kind} -q {features} disk");
        Self::new(t, &format!("{make} && mount -n -t {kind} -o {options} disk images"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn with_quotas(t: &Test, kind: &str) -> Mounted {
    let mounted = Mounted::disk(t, kind, "loop,prjquota");
    take_in(t);
    mounted
}

fn explain_names_the_limit(t: &Test) {
    let _mounted = with_quotas(t, "ext4");
    let words = run_words(t, &["--image", NAME, "--upper", "disk:64M", "--", "true"]);
    let words = ["explain".to_owned()].into_iter().chain(words.into_iter().skip(1));
    let output = t.oci().call(words).ok();
    let line = output.stdout.lines().find(|line| line.contains("project quota"));
    let line = line.unwrap_or_else(|| panic!("{output}"));
    assert!(line.contains("limit ") && line.contains(" to 67108864 bytes"), "{line}");
    let place = |text: &str| output.stdout.find(text).unwrap_or_else(|| panic!("{text}: {output}"));
    assert!(
        place("make folder") < place("limit ") && place("limit ") < place("make upper and work")
    );
    assert!(!t.images().join("upper").exists());
}

fn is_full_at_its_size(t: &Test, kind: &str, words: &str) {
    let _mounted = with_quotas(t, kind);
    let output = upper(t, "disk:8M", FILL).ok();
    assert_full(&output, 8 * MIB, words);
    let output = upper(t, "disk:8M", "/bin/busybox df -k / | grep overlay").ok();
    assert_eq!(output.stdout.split_whitespace().nth(1), Some("8192"), "{output}");
    // The whole of it is the container's: what it moves and copies up counts, and what it removes does not.
    let again = "cat /bin/busybox > /a; /bin/busybox rm /a; echo x >> /below; cat /below";
    assert_eq!(upper(t, "disk:8M", again).ok().stdout, "lowx\n");
    no_folders(t);
}

fn ext4_is_full_at_its_size(t: &Test) {
    is_full_at_its_size(t, "ext4", "Disk quota exceeded");
}

fn xfs_is_full_at_its_size(t: &Test) {
    is_full_at_its_size(t, "xfs", "No space left on device");
}

/// What projects take and may take, in KiB, as the kernel has it written down; without those that have neither.
fn projects(t: &Test) -> Vec<[u64; 2]> {
    let images = t.images().display().to_string();
    let words = ["-f", "-x", "-c", "report -p -n -N -b", &images];
    let output = t.program("xfs_quota", words).output().ok();
    let number = |word: Option<&str>| word.and_then(|w| w.parse().ok()).unwrap_or(0);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        [number(words.get(1).copied()), number(words.get(3).copied())]
    };
    let of_containers =
        output.stdout.lines().filter(|l| l.starts_with('#') && !l.starts_with("#0 "));
    of_containers.map(line).filter(|numbers| *numbers != [0, 0]).collect()
}

fn knows_containers_apart(t: &Test, kind: &str) {
    let _mounted = with_quotas(t, kind);
    let script = |count: u32| {
        format!("/bin/busybox dd if=/dev/zero of=/big bs=64k count={count}; /bin/busybox sync")
    };
    let (a, b) = (t.id(), t.id());
    let first = begun(t, &a, "disk:8M", &script(400));
    let second = begun(t, &b, "disk:4M", &script(16));
    let mut found = projects(t);
    found.sort_by_key(|[_, most]| *most);
    assert_eq!(found.iter().map(|[_, most]| *most).collect::<Vec<_>>(), [4096, 8192], "{found:?}");
    assert!((1024..1200).contains(&found[0][0]) && found[1][0] > 8000, "{found:?}");
    // One is released although its runtime was killed, and the other goes on.
    first.signal(Signal::SIGKILL);
    let _ = first.wait();
    t.oci().delete_force(&a).ok();
    let left = wait_until(Duration::from_secs(10), || {
        let now = projects(t);
        (now.len() == 1 && now[0][1] == 4096).then_some(())
    });
    assert!(left.is_some(), "{:?}", projects(t));
    assert_eq!(folders(&t.images()).len(), 1);
    end(t, &b, second);
    no_folders(t);
    let gone = wait_until(Duration::from_secs(10), || projects(t).is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", projects(t));
}

fn ext4_knows_containers_apart(t: &Test) {
    knows_containers_apart(t, "ext4");
}

fn xfs_knows_containers_apart(t: &Test) {
    knows_containers_apart(t, "xfs");
}

/// The owner of a file may give it another project, unless that is kept from it.
fn nobody_inside_leaves_the_project(t: &Test) {
    const SCRIPT: &str = "
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
fd = os.open('/', os.O_RDONLY)
room = ctypes.create_string_buffer(64)
ioctl, file_setattr = (16 if os.uname().machine == 'x86_64' else 29), 469
for request in (0x401c5820, 0x40086602, 0x40046602, 0x1401c5820):
    print(call(ioctl, fd, ctypes.c_ulong(request), room), ctypes.get_errno())
print(call(file_setattr, fd, b'', room, 24, 0x1000), ctypes.get_errno())
";
    let _mounted = Mounted::disk(t, "ext4", "loop,prjquota");
    let said = |profile: &str| {
        let words = ["--rootfs", "host", "--upper", "disk:8M", "--seccomp", profile];
        run(t, &[&words, &["--", "python3", "-c", SCRIPT][..]].concat()).ok().stdout
    };
    assert_eq!(said("none"), "-1 1\n".repeat(5));
    // A call that is newer than the list does not exist.
    assert_eq!(said("default"), format!("{}-1 38\n", "-1 1\n".repeat(4)));
}

fn a_size_without_the_mount_option_is_refused(t: &Test) {
    let _mounted = Mounted::disk(t, "ext4", "loop");
    take_in(t);
    upper(t, "disk:8M", "true").error_with(["images is on ext4", "prjquota", "--upper tmpfs:SIZE"]);
    assert!(!t.images().join("upper").exists(), "something was made before the refusal");
    assert_eq!(fs::read_dir(t.images().join("uses")).expect("a folder").count(), 0);
    upper(t, "disk", "true").ok();
}
