//! Rights that come by inheritance.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use hafen_integration::{Bundle, Case, Oci, Test, cases, json};

use super::{folder, volume, weakened};

pub(super) fn trials() -> Vec<Case> {
    cases![
        cve_2022_24769_a_file_gives_no_inherited_capability(Root, Busybox, Weaken),
        groups_of_the_caller_are_gone(Root, Busybox, Weaken, Program("setpriv")),
        groups_of_the_caller_are_gone_in_a_user_namespace(
            Root,
            Busybox,
            Weaken,
            UserNamespaces,
            Program("setpriv")
        ),
    ]
}

/// `struct vfs_cap_data`, version 2, without the effective bit: the file offers all that its caller inherits (capabilities(7)).
const OFFERS_ALL: [u8; 20] = {
    let mut bytes = [0; 20];
    bytes[3] = 2;
    let mut i = 0;
    while i < 4 {
        bytes[8 + i] = 0xff;
        bytes[16 + i] = 0xff;
        i += 1;
    }
    bytes
};

/// An ordinary user, and a file of the image with inheritable file capabilities.
fn cve_2022_24769_a_file_gives_no_inherited_capability(t: &Test) {
    let sets = |oci: &Oci| {
        let bundle = t
            .bundle()
            .args(["/offers", "facts"])
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
            .set("/process/noNewPrivileges", json!(false))
            .set("/process/capabilities/permitted", json!([]))
            .set("/process/capabilities/effective", json!([]));
        let program = bundle.rootfs().join("offers");
        fs::copy(bundle.rootfs().join("inside"), &program).expect("copy a program");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&program, "security.capability", &OFFERS_ALL, flags)
            .expect("setxattr");
        let status = oci.facts(&t.id(), &bundle).status;
        (status.inheritable.len(), status.permitted.len())
    };
    assert_eq!(sets(&t.oci()), (0, 0));
    // The three of the bundle's bounding set.
    assert_eq!(sets(&weakened(t, "inheritable")), (3, 3), "without the defence");
}

fn groups_of_the_caller_are_gone(t: &Test) {
    caller_groups(t, |bundle| bundle);
}

/// There the group of the caller has no number, so that no program could see it, and it opens files all the same.
fn groups_of_the_caller_are_gone_in_a_user_namespace(t: &Test) {
    caller_groups(t, |bundle| bundle.user_namespace(100_000, 65_536));
}

/// What only a group of the caller's may read.
fn caller_groups(t: &Test, confined: impl Fn(Bundle) -> Bundle) {
    const GROUP: u32 = 4242;
    let shared = folder(t, "shared");
    let file = shared.join("file");
    fs::write(&file, "the group's\n").expect("write a file");
    chown(&file, Some(0), Some(GROUP)).expect("chown");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
    let bundle = confined(t.bundle())
        .sh("id -G; cat /vol/file")
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .push("/mounts", volume(&shared, "/vol"));
    let run = |weaken: &str| {
        let script = format!(
            "HAFEN_WEAKEN={weaken} setpriv --groups {GROUP} $OCI run --bundle {} {} 2>&1",
            bundle.path().display(),
            t.id()
        );
        t.shell(&script).output().stdout
    };
    let output = run("");
    assert!(output.starts_with("1000\n") && !output.contains("the group's"), "{output}");
    let output = run("setgroups");
    assert!(output.contains("the group's"), "without the defence: {output}");
}
