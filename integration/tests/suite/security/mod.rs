//! Defences that no other module meets on its way, and attacks.
//!
//! An attack is made twice: against the program as it is, where it fails, and with the one defence left out that it is
//! about (`HAFEN_WEAKEN`, see `hafen_sys::weaken`), where it succeeds. So the test is known to be able to fail.

mod descriptors;
mod paths;
mod procfs;
mod program;
mod rights;

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hafen_integration::{Bundle, Case, Oci, Test, Value, cases, json};
use nix::fcntl::OFlag;

pub(crate) fn trials() -> Vec<Case> {
    let own = cases![
        own_program_cannot_be_opened_for_writing(Root, Busybox),
        seccomp_filter_is_in_force(Root, Busybox),
        state_folder_is_private(Root, Busybox),
        writes_to_procfs_cannot_be_redirected(Root, Busybox),
    ];
    own.into_iter()
        .chain(program::trials())
        .chain(descriptors::trials())
        .chain(paths::trials())
        .chain(procfs::trials())
        .chain(rights::trials())
        .collect()
}

/// CVE-2019-5736: who holds `/proc/PID/exe` waits until nothing runs from it any more, and writes.
fn own_program_cannot_be_opened_for_writing(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    // A program of the test's own, which no other process runs.
    let program = t.dir().join("program");
    fs::copy(oci.program(), &program).expect("copy the program");
    let bundle = t.bundle();
    let create = format!(
        "{} --root {} create --bundle {} {id}",
        program.display(),
        oci.root().display(),
        bundle.path().display()
    );
    let _ = t.shell(&create).output().ok();
    let flags = (OFlag::O_PATH | OFlag::O_CLOEXEC).bits();
    let link = format!("/proc/{}/exe", oci.pid(&id));
    let held =
        OpenOptions::new().read(true).custom_flags(flags).open(&link).expect("open the link");
    let _ = oci.delete_force(&id).ok();
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let answer = OpenOptions::new().write(true).open(&path).map(|_| ());
    assert_eq!(answer.map_err(|e| e.raw_os_error()), Err(Some(nix::errno::Errno::EROFS as i32)));
    assert!(
        OpenOptions::new().write(true).open(&program).is_ok(),
        "the program itself is not writable"
    );
}

/// With and without no_new_privs: the filter goes in at another place.
fn seccomp_filter_is_in_force(t: &Test) {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }]
    });
    for (no_new_privs, user) in [(true, 1000), (false, 0), (false, 1000)] {
        let bundle = t
            .bundle()
            .sh("grep Seccomp: /proc/self/status; mkdir /tmp/x")
            .set("/process/noNewPrivileges", json!(no_new_privs))
            .set("/process/user", json!({ "uid": user, "gid": user }))
            .set("/linux/seccomp", profile.clone());
        let output = t.oci().run(&t.id(), &bundle).code(1);
        assert_eq!(output.stdout, "Seccomp:\t2\n", "{output}");
        assert!(output.stderr.contains("Function not implemented"), "{output}");
    }
}

fn state_folder_is_private(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &t.bundle()).ok();
    let mode = |path| fs::metadata(path).expect("a folder").permissions().mode() & 0o7777;
    assert_eq!((mode(oci.root().to_owned()), mode(oci.root().join(&id))), (0o711, 0o700));
    let _ = oci.delete_force(&id).ok();
}

/// CVE-2025-52881: settings and labels written through a `/proc` that somebody else has laid there.
fn writes_to_procfs_cannot_be_redirected(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let owner = t
        .bundle()
        .set("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN"]))
        .set("/process/capabilities/effective", json!(["CAP_SYS_ADMIN"]))
        .set("/process/capabilities/permitted", json!(["CAP_SYS_ADMIN"]))
        .sh("mount -t tmpfs fake /proc && mkdir -p /proc/self /proc/sys/net/ipv4 && \
             echo untouched > /proc/self/oom_score_adj && \
             echo untouched > /proc/sys/net/ipv4/ip_forward && echo ready && exec sleep 60");
    let words = ["run".as_ref(), "--bundle".as_ref(), owner.path().as_os_str(), id.as_ref()];
    let mut run = oci.spawn(words);
    run.await_text("ready");
    let namespace = format!("/proc/{}/ns/mnt", oci.pid(&id));
    let visitor = t
        .bundle()
        .edit(|config| {
            config["mounts"] = json!([]);
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
            config["root"] = json!({ "path": "/" });
        })
        .namespace("mount", Some(&namespace))
        .set("/process/oomScoreAdj", json!(777))
        .set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))
        .sh("cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward; mount -t proc proc /mnt; \
             cat /mnt/self/oom_score_adj /mnt/sys/net/ipv4/ip_forward")
        .set("/process/capabilities", owner.config()["process"]["capabilities"].clone());
    let seen = oci.run(&t.id(), &visitor).ok();
    assert_eq!(seen.stdout, "untouched\nuntouched\n777\n1\n", "{seen}");
    let _ = oci.kill(&id, "KILL").ok();
    run.wait().code(128 + 9);
}

/// The runtime without one of its defences.
fn weakened(t: &Test, defence: &str) -> Oci {
    t.oci().env("HAFEN_WEAKEN", defence)
}

/// A folder of the host's, shared with a container.
fn volume(source: &Path, destination: &str) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"] })
}

/// A folder in the test's own.
fn folder(t: &Test, name: &str) -> std::path::PathBuf {
    let path = t.dir().join(name);
    fs::create_dir_all(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
    path
}

/// In the pid namespace of a running process, as the containers of a pod are.
fn beside(bundle: Bundle, pid: i32) -> Bundle {
    bundle.namespace("pid", Some(&format!("/proc/{pid}/ns/pid")))
}
