//! Files of the host and volumes in a container, and files in and out of it.

use std::fs;

use hafen_integration::Case;

use super::super::Peer;
use super::{BOX, Podman, case};

pub(super) fn scenarios() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    vec![
        case("volumes", vec![], peer, volumes),
        case("tmpfs", vec![], peer, tmpfs),
        case("copy_commit_export", vec![], peer, copy_commit_export),
        case("build", vec![], peer, build),
    ]
}

fn volumes(p: &Podman<'_>) {
    let share = p.folder.join("share");
    fs::create_dir_all(share.join("deep")).expect("mkdir share");
    fs::write(share.join("f"), "shared\n").expect("write share/f");
    let path = share.display().to_string();
    let seen = p.sh(&["--volume", &format!("{path}:/mnt")], "cat /mnt/f; echo new >/mnt/deep/g");
    assert_eq!(seen, "shared\n");
    assert_eq!(fs::read_to_string(share.join("deep/g")).expect("written by it"), "new\n");
    let seen = p.sh(
        &["--volume", &format!("{path}:/a/new/place:ro,noexec")],
        "touch /a/new/place/x 2>&1; grep -c ' /a/new/place .*ro,.*noexec' /proc/mounts",
    );
    assert!(seen.contains("Read-only file system") && seen.ends_with("1\n"), "{seen}");
    let seen = p.sh(&["--volume", &format!("{path}/f:/file:ro")], "cat /file");
    assert_eq!(seen, "shared\n");
    let seen = p.sh(&["--volume", &format!("{path}:/mnt:O")], "echo mine >/mnt/f; cat /mnt/f");
    assert_eq!(seen, "mine\n");
    assert_eq!(fs::read_to_string(share.join("f")).expect("kept"), "shared\n");
    // A fresh volume takes what the image has below it, and keeps what is written.
    assert_eq!(
        p.sh(&["--volume", "kept:/data"], "cat /data/seed; echo more >/data/more"),
        "seed\n"
    );
    assert_eq!(p.sh(&["--volume", "kept:/data:ro"], "cat /data/more"), "more\n");
}

fn tmpfs(p: &Podman<'_>) {
    let seen = p.sh(
        &["--tmpfs", "/scratch:size=1m,mode=1777,noexec"],
        "touch /scratch/x; grep ' /scratch ' /proc/mounts",
    );
    assert!(seen.contains("size=1024k") && seen.contains("noexec"), "{seen}");
    // Podman asks for `tmpcopyup` by itself.
    assert_eq!(p.sh(&["--tmpfs", "/data"], "cat /data/seed"), "seed\n");
    assert_eq!(p.sh(&["--mount", "type=tmpfs,destination=/data,notmpcopyup"], "ls /data"), "");
    assert_eq!(
        p.sh(
            &["--mount", "type=tmpfs,destination=/data,ro"],
            "touch /data/x 2>/dev/null || echo kept"
        ),
        "kept\n"
    );
}

fn copy_commit_export(p: &Podman<'_>) {
    fs::write(p.folder.join("in"), "copied\n").expect("write a file");
    p.start("one", &[], "echo own >/own; exec sleep 60");
    p.ok(["cp", &p.folder.join("in").display().to_string(), "one:/tmp/in"]);
    assert_eq!(p.ok(["exec", "one", "cat", "/tmp/in"]), "copied\n");
    let out = p.folder.join("out");
    p.ok(["cp", "one:/own", &out.display().to_string()]);
    assert_eq!(fs::read_to_string(&out).expect("copied out"), "own\n");
    assert!(p.ok(["diff", "one"]).contains("A /own"));
    p.ok(["commit", "--quiet", "--pause", "one", "two"]);
    assert_eq!(p.ok(["run", "--rm", "two", "cat", "/own"]), "own\n");
}

/// RUN goes through the runtime, too.
fn build(p: &Podman<'_>) {
    let folder = p.folder.join("context");
    fs::create_dir_all(&folder).expect("mkdir context");
    let lines = format!(
        "FROM {BOX}\nENV HERE=1\nWORKDIR /work\nRUN echo $HERE $(pwd) >/made\nUSER app\nRUN id -u >/tmp/id\n"
    );
    fs::write(folder.join("Containerfile"), lines).expect("write Containerfile");
    let path = folder.display().to_string();
    p.ok(["build", "--isolation=oci", "--network=none", "--tag", "built", &path]);
    assert_eq!(p.ok(["run", "--rm", "built", "cat", "/made", "/tmp/id"]), "1 /work\n1000\n");
    fs::write(folder.join("Containerfile"), format!("FROM {BOX}\nRUN exit 3\n")).expect("write it");
    let failed = p.call(["build", "--isolation=oci", "--network=none", &path]);
    assert!(failed.exit != Some(0) && failed.stderr.contains("exit status 3"), "{failed}");
}
