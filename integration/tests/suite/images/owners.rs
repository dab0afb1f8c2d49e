//! Containers of images in user namespaces.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::{Case, Output, Test, cases, json};

use super::made::{Tar, busybox, layout};
use super::{import, run};

pub(super) fn trials() -> Vec<Case> {
    cases![
        layers_are_shown_with_mapped_owners(Root, Busybox, FileSystem("overlay")),
        what_is_written_belongs_to_the_mapped_user(Root, Busybox, FileSystem("overlay")),
        two_hundred_mapped_layers(Root, Busybox, FileSystem("overlay")),
        on_a_tmpfs_of_its_own(Root, Busybox, FileSystem("overlay")),
        volumes_have_mapped_owners(Root, Busybox, FileSystem("overlay")),
        where_nothing_can_be_mapped_all_is_copied(Root, Busybox, FileSystem("overlay")),
        a_folder_as_root_file_system(Root, Busybox, FileSystem("overlay")),
        wrong_maps(Root, Busybox),
    ]
}

const MAP: [&str; 2] = ["--uidmap", "0:100000:65536"];
const IMAGE: [&str; 2] = ["--image", "localhost/box:made"];

fn prepare(t: &Test) {
    let config =
        json!({ "Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"], "Volumes": { "/own": {} } });
    let low = Tar::new().folder("d/").file("d/low", "low").folder("own/").file("own/f", "own");
    let high = Tar::new().file("d/high", "high").folder("gone/").file("d/.wh.low", "");
    import(t, &layout(t, "box", &[busybox(t), low.layer(), high.layer()], &config)).ok();
}

fn mapped(t: &Test, words: &[&str], script: &str) -> Output {
    run(t, &[&MAP, &IMAGE, words, &["--", script]].concat())
}

fn layers_are_shown_with_mapped_owners(t: &Test) {
    prepare(t);
    let script = "cat /proc/self/uid_map; ls /d; stat -c '%u %g %n' / /bin/busybox /d /d/high; stat -f -c %T /";
    let output = mapped(t, &[], script).ok();
    let mut lines = output.stdout.lines();
    let map: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"]);
    let rest: Vec<&str> = lines.collect();
    assert_eq!(
        rest[..5],
        ["high", "0 0 /", "0 0 /bin/busybox", "0 0 /d", "0 0 /d/high"],
        "{output}"
    );
    // Nothing was changed below: without a user namespace they belong to root as before.
    assert_eq!(run(t, &[&IMAGE[..], &["--", "stat -c %u /d/high"]].concat()).ok().stdout, "0\n");
    let other = ["--uidmap", "0:300000:1000", "--gidmap", "0:400000:1000"];
    let script = "cat /proc/self/gid_map; stat -c '%u %g' /d/high; id -u";
    let output = run(t, &[&other, &IMAGE[..], &["--", script]].concat()).ok();
    assert!(output.stdout.contains("400000") && output.stdout.ends_with("0 0\n0\n"), "{output}");
}

fn what_is_written_belongs_to_the_mapped_user(t: &Test) {
    prepare(t);
    let id = t.id();
    let script = "echo more >> /d/high; touch /new; chmod 4755 /bin/busybox; sleep 1000";
    let words = [&["--detach", "--id", &id], &MAP[..], &IMAGE, &["--", script]].concat();
    run(t, &words).ok();
    let root = PathBuf::from(format!("/proc/{}/root", t.oci().pid(&id)));
    // The last thing that the script does.
    let mode = || fs::metadata(root.join("bin/busybox")).map_or(0, |found| found.mode());
    while mode() & 0o4000 == 0 {
        assert!(t.oci().status(&id).as_deref() == Some("running"), "the script has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let owner = |name: &str| {
        let found = fs::metadata(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        (found.uid(), found.gid())
    };
    assert_eq!(owner("d/high"), (100_000, 100_000));
    assert_eq!(owner("new"), (100_000, 100_000));
    assert_eq!(owner("bin/busybox"), (100_000, 100_000));
    t.oci().delete_force(&id).ok();
}

fn two_hundred_mapped_layers(t: &Test) {
    let small = |n: u32| Tar::new().file(&format!("n/{n}"), n.to_string()).layer();
    let layers: Vec<_> = std::iter::once(busybox(t)).chain((0..200).map(small)).collect();
    let config =
        json!({ "Cmd": ["/bin/sh", "-c", "ls /n | wc -l; stat -c %u /n/7"], "Env": ["PATH=/bin"] });
    import(t, &layout(t, "box", &layers, &config)).ok();
    assert_eq!(run(t, &[&MAP[..], &IMAGE].concat()).ok().stdout, "200\n0\n");
}

fn on_a_tmpfs_of_its_own(t: &Test) {
    prepare(t);
    let script = "echo x > /new && stat -c %u /new /own/f; dd if=/dev/zero of=/f bs=1M count=8 2>/dev/null || echo full";
    let output = mapped(t, &["--upper", "tmpfs:4M"], script).ok();
    assert_eq!(output.stdout, "0\n0\nfull\n");
}

fn volumes_have_mapped_owners(t: &Test) {
    prepare(t);
    let volumes = t.dir().join("volumes").display().to_string();
    let words = ["--volumes", &volumes, "-v", "mine:/d"];
    let script = "stat -c '%u %n' /d /d/high /own /own/f; echo x > /own/g && echo y > /d/new && echo written";
    let output = mapped(t, &words, script).ok();
    assert_eq!(output.stdout, "0 /d\n0 /d/high\n0 /own\n0 /own/f\nwritten\n");
    // On the disk they are root's: each container shows them with its own map.
    let on_disk = fs::metadata(t.dir().join("volumes/named/mine/data/new")).expect("the file");
    assert_eq!(on_disk.uid(), 0);
    assert_eq!(run(t, &[&IMAGE, &words[..], &["--", "cat /d/new"]].concat()).ok().stdout, "y\n");
}

/// An overlay is a file system whose owners cannot be mapped, and all the same a lower layer.
fn where_nothing_can_be_mapped_all_is_copied(t: &Test) {
    let bundle = t.bundle();
    for folder in ["low", "upper", "work", "merged"] {
        fs::create_dir(t.dir().join(folder)).unwrap();
    }
    let file = t.dir().join("low/file");
    fs::write(&file, "below ").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    chown(&file, Some(33), Some(70_000)).unwrap();
    let inside = "stat -c \"%u %g\" /etc/passwd /file; echo x >> /file && cat /file";
    let script = format!(
        "unshare -m sh -ec 'mount -n -t overlay -o lowerdir=low:{root},upperdir=upper,workdir=work overlay merged; \
         $OCI --log log run --rootfs merged --uidmap 0:100000:65536 -- /bin/sh -c \"$0\"' '{inside}'",
        root = bundle.rootfs().display()
    );
    let output = t.shell(&script).output().ok();
    assert_eq!(output.stdout, "0 0\n33 65534\nbelow x\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "below ");
    let said = fs::read_to_string(t.dir().join("log")).unwrap();
    assert!(said.contains("is copied") && said.contains("cannot be mapped"), "{said}");
}

fn a_folder_as_root_file_system(t: &Test) {
    let bundle = t.bundle();
    let words = ["run", "--rootfs", &bundle.rootfs().display().to_string(), MAP[0], MAP[1]]
        .map(str::to_owned);
    let script = ["--", "/bin/sh", "-c", "stat -c %u / /etc/passwd; echo x > /x && cat /x"]
        .map(str::to_owned);
    assert_eq!(t.oci().call(words.iter().chain(&script)).ok().stdout, "0\n0\nx\n");
    assert!(!bundle.rootfs().join("x").exists());
}

fn wrong_maps(t: &Test) {
    prepare(t);
    for (words, says) in [
        (vec!["--uidmap", "0:100000"], "INSIDE:OUTSIDE:SIZE"),
        (vec!["--uidmap", "0:100000:0"], "uidMappings"),
        (vec!["--uidmap", "0:0:10", "--uidmap", "5:20:10"], "uidMappings"),
        (vec!["--uidmap", "0:100000:10", "--gidmap", "x"], "--gidmap"),
    ] {
        run(t, &[&words, &IMAGE[..], &["--", "true"]].concat()).error_with([says]);
    }
}
