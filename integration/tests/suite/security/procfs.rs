//! Writes to procfs, and who may look into a process there.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use hafen_integration::{Case, Oci, Test, Value, cases, json, patience, wait_until};

use super::{beside, folder, volume, weakened};

pub(super) fn trials() -> Vec<Case> {
    cases![
        cve_2025_52881_a_setting_is_written_to_the_kernel_alone(Root, Busybox, Weaken),
        cve_2019_19921_a_volume_over_proc(Root, Busybox, Weaken),
        cve_2016_9962_a_container_looks_into_who_joins_it(Root, Busybox, Weaken),
        cve_2016_9962_a_neighbour_looks_into_a_process_on_its_way(Root, Busybox, Weaken),
    ]
}

const SYSCTL: &str = "net/ipv4/ip_unprivileged_port_start";

/// The image brings a `/proc` of its own whose files are links to what somebody would like to have written.
fn cve_2025_52881_a_setting_is_written_to_the_kernel_alone(t: &Test) {
    let host = folder(t, "host");
    let target = host.join("file");
    let attack = |oci: &Oci| {
        fs::write(&target, "untouched").expect("write a file");
        let bundle = t
            .bundle()
            .without_mount("/proc")
            .remove("/linux/maskedPaths")
            .remove("/linux/readonlyPaths")
            .set("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "777" }))
            .push("/mounts", volume(&host, "/vol"))
            .push("/mounts", json!({ "destination": "/mnt", "type": "proc", "source": "proc" }))
            .sh(&format!("cat /mnt/sys/{SYSCTL}"));
        let decoy = bundle.rootfs().join("proc/sys").join(SYSCTL);
        fs::create_dir_all(decoy.parent().expect("a folder")).expect("make folders");
        symlink("/vol/file", &decoy).expect("make a link");
        let set = oci.run(&t.id(), &bundle).ok().stdout;
        (set, fs::read_to_string(&target).expect("read"))
    };
    assert_eq!(attack(&t.oci()), ("777\n".into(), "untouched".into()));
    let (set, written) = attack(&weakened(t, "procfs-writes"));
    assert!(
        set != "777\n" && written.starts_with("777"),
        "without the defence: {set:?} {written:?}"
    );
}

/// Declared by an image, it would hide the kernel's files; and a link in the image may lead any other mount there.
fn cve_2019_19921_a_volume_over_proc(t: &Test) {
    let shared = folder(t, "shared");
    fs::create_dir_all(shared.join("self/attr")).expect("make folders");
    let tmpfs = |place: &str| json!({ "destination": place, "type": "tmpfs", "source": "tmpfs" });
    let refused = [
        (volume(&shared, "/proc"), "cannot be mounted because it is not of type proc"),
        (tmpfs("/proc"), "cannot be mounted because it is not of type proc"),
        (volume(&shared, "/proc/sys/kernel"), "cannot be mounted because it is inside /proc"),
        (tmpfs("/proc/self/attr"), "cannot be mounted because it is inside /proc"),
    ];
    for (mount, words) in refused {
        t.oci().run(&t.id(), &t.bundle().push("/mounts", mount)).error_with(["mounts[7]", words]);
    }
    let file = shared.join("uptime");
    fs::write(&file, "12.5 12.5\n").expect("write a file");
    let covered = t.bundle().sh("cat /proc/uptime").push("/mounts", volume(&file, "/proc/uptime"));
    assert_eq!(t.oci().run(&t.id(), &covered).ok().stdout, "12.5 12.5\n");

    let bundle = t.bundle().push("/mounts", volume(&shared, "/innocent")).sh("ls /proc/sys/kernel");
    symlink("/proc/sys/kernel", bundle.rootfs().join("innocent")).expect("make a link");
    t.oci().run(&t.id(), &bundle).error_with(["/innocent", "leads into procfs"]);
    let output = weakened(t, "root-symlink").run(&t.id(), &bundle).ok();
    assert_eq!(output.stdout, "self\nuptime\n", "without the defence: {output}");
}

/// A container of the same pod reads what the first process of another one holds, between its birth and its program.
fn cve_2016_9962_a_neighbour_looks_into_a_process_on_its_way(t: &Test) {
    let seen = looks(t, &t.oci());
    assert!(seen.contains("Permission denied") && !seen.contains("->"), "{seen}");
    let seen = looks(t, &weakened(t, "dumpable"));
    assert!(seen.contains("/start") && seen.contains("/hafen-oci"), "without the defence: {seen}");
}

/// What a neighbour finds about a process that is neither itself nor its child.
fn looks(t: &Test, oci: &Oci) -> String {
    const LOOK: &str = "until [ -e /vol/go ]; do sleep 0.02; done
        for p in /proc/[0-9]*; do
            [ ${p#/proc/} != 1 ] && [ ${p#/proc/} != $$ ] || continue
            grep -q '^PPid:.0$' $p/status && ls -l $p/fd/ $p/exe
        done >/vol/seen 2>&1
        echo >/vol/done; sleep 300";
    let shared = folder(t, "shared");
    let (neighbour, id) = (t.id(), t.id());
    let bundle = t.bundle().sh(LOOK).push("/mounts", volume(&shared, "/vol"));
    let _ = oci.create(&neighbour, &bundle).ok();
    let pid = oci.pid(&neighbour);
    let _ = oci.start(&neighbour).ok();
    let _ = oci.create(&id, &beside(t.bundle(), pid)).ok();
    fs::write(shared.join("go"), "").expect("write a file");
    let done = wait_until(Duration::from_secs(10), || shared.join("done").exists().then_some(()));
    let seen = fs::read_to_string(shared.join("seen")).unwrap_or_default();
    for id in [&id, &neighbour] {
        let _ = oci.delete_force(id).ok();
    }
    fs::remove_dir_all(&shared).expect("remove the shared folder");
    assert!(done.is_some(), "the neighbour never came to its end: {seen}");
    seen
}

/// A program of the container waits for `exec`, whose process has the container's rights and is not yet the program that
/// was asked for. It is held up there by a search through a very long PATH.
fn cve_2016_9962_a_container_looks_into_who_joins_it(t: &Test) {
    let host = folder(t, "host");
    let program = fs::metadata(t.oci().program()).expect("stat the program").ino();
    let look = |weaken: &str| {
        let id = t.id();
        let seconds = patience(Duration::from_millis(2500)).as_secs_f64().to_string();
        let bundle = t.bundle().args(["/inside", "peek", &seconds]);
        let oci = t.oci();
        let path = bundle.path().display().to_string();
        let mut container = oci.spawn(["run", "--bundle", &path, &id]);
        container.await_text("ready");
        let join = format!(
            "exec 9<{}; HAFEN_WEAKEN={weaken} $OCI exec --env PATH={}/bin {id} true",
            host.display(),
            "/n:".repeat(40_000)
        );
        for _ in 0..3 {
            let output = t.shell(&join).output();
            assert!(output.exit == Some(0) || container.has_ended(), "{weaken}: {}", output.stderr);
        }
        let output = container.wait().ok();
        let seen: Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())
            .unwrap_or_else(|e| panic!("{e}: {output}"));
        let has = |list: &str, wanted: Value| {
            seen[list].as_array().is_some_and(|all| all.contains(&wanted))
        };
        (has("exe", json!(program)), has("fd", json!(host.display().to_string())))
    };
    assert_eq!(look(""), (false, false));
    assert_eq!(look("dumpable"), (true, false), "the program, but nothing of the host's");
    assert_eq!(look("dumpable,descriptors"), (true, true), "without the defences");
}
