//! Descriptors of the runtime and of its caller.

use std::fs;

use hafen_integration::{Case, Test, cases, json};

use super::folder;

pub(super) fn trials() -> Vec<Case> {
    cases![
        cve_2024_21626_no_descriptor_of_the_caller_leaks(Root, Busybox, Weaken),
        cve_2024_21626_working_directory_through_a_descriptor(Root, Busybox, Weaken),
    ]
}

/// `run` of a bundle by a caller that left a folder of the host open as descriptor 9.
fn run_with_open_folder(t: &Test, weaken: &str, bundle: &hafen_integration::Bundle) -> String {
    let host = folder(t, "host");
    fs::write(host.join("secret"), "the host's\n").expect("write a file");
    let script = format!(
        "exec 9<{}; HAFEN_WEAKEN={weaken} $OCI run --bundle {} {} 2>&1",
        host.display(),
        bundle.path().display(),
        t.id()
    );
    t.shell(&script).output().stdout
}

fn cve_2024_21626_no_descriptor_of_the_caller_leaks(t: &Test) {
    let bundle = t.bundle().sh("cat /proc/self/fd/9/secret || ls /proc/self/fd");
    let output = run_with_open_folder(t, "", &bundle);
    assert!(!output.contains("the host's") && output.contains("0\n1\n2\n"), "{output}");
    let output = run_with_open_folder(t, "descriptors", &bundle);
    assert!(output.contains("the host's"), "without the defence: {output}");
}

/// Also where the image has a link of another name that leads there.
fn cve_2024_21626_working_directory_through_a_descriptor(t: &Test) {
    for cwd in ["/proc/self/fd/9", "/innocent"] {
        let bundle = t.bundle().sh("cat secret").set("/process/cwd", json!(cwd));
        let link = bundle.rootfs().join("innocent");
        std::os::unix::fs::symlink("/proc/self/fd/9", link).expect("make a link");
        let output = run_with_open_folder(t, "", &bundle);
        assert!(!output.contains("the host's") && output.contains(cwd), "{cwd}: {output}");
        let output = run_with_open_folder(t, "cwd", &bundle);
        assert!(output.contains("the host's"), "{cwd} without the defence: {output}");
    }
}
