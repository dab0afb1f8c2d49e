//! What each mount option does, as it is seen from inside.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use hafen_integration::{Bundle, Case, Facts, Test, cases, json};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        recursive_attributes_hold_for_the_whole_tree(Root, Busybox),
        recursive_attributes_hold_for_new_file_systems(Root, Busybox),
        copied_up_folders_are_the_images(Root, Busybox),
        copied_up_folders_are_the_containers_own(Root, Busybox),
        copy_up_of_what_an_earlier_mount_shows(Root, Busybox),
        copy_up_that_does_not_fit(Root, Busybox),
        owners_are_mapped(Root, Busybox, FileSystem("ext4")),
        owners_of_the_whole_tree_are_mapped(Root, Busybox, FileSystem("ext4")),
        id_maps_that_cannot_be(Root, Busybox),
        links_as_sources_and_destinations(Root, Busybox),
        copied_links_must_be_the_same(Root, Busybox),
        sources_that_are_no_folders(Root, Busybox),
        remounts_change_what_the_bundle_mounted(Root, Busybox),
        remounts_of_anything_else_are_refused(Root, Busybox),
        flags_of_file_systems(Root, Busybox),
        propagation_of_every_kind(Root, Busybox),
        mounts_stand_in_their_order(Root, Busybox),
        a_tmpfs_is_as_open_as_its_place(Root, Busybox),
        parameters_of_binds_are_passed_over(Root, Busybox),
        options_of_another_kind_are_refused(Root, Busybox),
        a_missing_source_in_the_words_that_clients_know(Root, Busybox),
        masked_and_read_only_twice(Root, Busybox),
        cgroup2_is_the_one_tree(Root, Busybox),
        the_hosts_sysfs_where_none_can_be_mounted(Root, Busybox, UserNamespaces),
        a_read_only_dev_has_its_devices(Root, Busybox),
    ]
}

fn a_read_only_dev_has_its_devices(t: &Test) {
    let bundle = t.bundle().edit(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        let dev = mounts.iter_mut().find(|m| m["destination"] == "/dev").expect("/dev");
        dev["options"].as_array_mut().expect("options").push(json!("ro"));
    });
    let facts = facts(t, &bundle);
    assert!(words(&facts, "/dev").contains("ro"), "{}", words(&facts, "/dev"));
    assert!(facts.mount("/dev/pts").is_some());
    let script = "echo x >/dev/null && head -c 1 /dev/zero | wc -c; touch /dev/x";
    let output = t.oci().run(&t.id(), &bundle.clone().sh(script)).code(1);
    assert_eq!(output.stdout, "1\n", "{output}");
    assert!(output.stderr.contains("Read-only file system"), "{output}");
    let bundle = bundle.set("/process/terminal", json!(true)).sh("test -c /dev/console");
    let _ = t.oci().run(&t.id(), &bundle).ok();
}

fn mount(bundle: Bundle, to: &str, kind: &str, source: &str, options: &[&str]) -> Bundle {
    let entry = json!({ "destination": to, "type": kind, "source": source, "options": options });
    bundle.push("/mounts", entry)
}

fn bind(bundle: Bundle, source: &std::path::Path, to: &str, options: &[&str]) -> Bundle {
    mount(bundle, to, "bind", &source.display().to_string(), options)
}

fn facts(t: &Test, bundle: &Bundle) -> Facts {
    t.oci().facts(&t.id(), bundle)
}

/// The words of the mount on `target`.
fn words(facts: &Facts, target: &str) -> String {
    let mount = facts.mount(target).unwrap_or_else(|| panic!("nothing is mounted on {target}"));
    mount.options.iter().cloned().collect::<Vec<_>>().join(",")
}

/// A folder of the host's in the test's own, with what `script` makes in it.
fn share(t: &Test, name: &str) -> PathBuf {
    let path = t.dir().join(name);
    fs::create_dir(&path).expect("make a folder");
    path
}

/// Option, word in mountinfo, whether it is to be there.
const RECURSIVE: [(&str, &str, bool); 19] = [
    ("rro", "ro", true),
    ("rrw", "rw", true),
    ("rnosuid", "nosuid", true),
    ("rsuid", "nosuid", false),
    ("rnodev", "nodev", true),
    ("rdev", "nodev", false),
    ("rnoexec", "noexec", true),
    ("rexec", "noexec", false),
    ("rnoatime", "noatime", true),
    ("ratime", "relatime", true),
    ("rrelatime", "relatime", true),
    ("rnorelatime", "relatime", false),
    ("rstrictatime", "relatime", false),
    ("rnostrictatime", "relatime", true),
    ("rnodiratime", "nodiratime", true),
    ("rdiratime", "nodiratime", false),
    ("rnosymfollow", "nosymfollow", true),
    ("rsymfollow", "nosymfollow", false),
    ("rro", "nosuid", false),
];

/// `/dev/pts` and `/dev/shm` of the host are below its `/dev`; what is cleared was set by the entry before.
fn recursive_attributes_hold_for_the_whole_tree(t: &Test) {
    let mut bundle = t.bundle();
    for (i, (option, ..)) in RECURSIVE.iter().enumerate() {
        bundle = mount(bundle, &format!("/mnt/{i}"), "bind", "/dev", &["rbind", "rslave", option]);
    }
    let bundle = bundle.set("/root/readonly", json!(false));
    let facts = facts(t, &bundle);
    for (i, (option, word, wanted)) in RECURSIVE.iter().enumerate() {
        for target in [format!("/mnt/{i}"), format!("/mnt/{i}/pts"), format!("/mnt/{i}/shm")] {
            let has = words(&facts, &target);
            assert_eq!(has.split(',').any(|w| w == *word), *wanted, "{option} on {target}: {has}");
        }
    }
}

fn recursive_attributes_hold_for_new_file_systems(t: &Test) {
    let all = ["rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnosymfollow"];
    let bundle = mount(t.bundle(), "/mnt", "tmpfs", "tmpfs", &all);
    let bundle = mount(bundle, "/tmp", "tmpfs", "tmpfs", &["ro", "nosuid", "rrw", "rsuid"]);
    let facts = facts(t, &bundle);
    assert_eq!(words(&facts, "/mnt"), "noatime,nodev,noexec,nosuid,nosymfollow,ro");
    assert_eq!(words(&facts, "/tmp"), "relatime,rw");
}

/// A folder of the image with everything that a folder can hold.
fn image_with_a_folder(t: &Test) -> Bundle {
    let bundle = t.bundle().file("/var/data/sub/file", "from the image");
    let data = bundle.rootfs().join("var/data");
    fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o2770)).expect("chmod");
    chown(data.join("sub"), Some(7), Some(8)).expect("chown");
    fs::hard_link(data.join("sub/file"), data.join("same")).expect("link");
    symlink("/etc/passwd", data.join("link")).expect("symlink");
    drop(UnixListener::bind(data.join("socket")).expect("make a socket"));
    bundle
}

const LOOK: &str = "cd /var/data; stat -c '%n %a %u %g %F' . sub sub/file same link socket; cat sub/file; echo; \
    readlink link; stat -c %h same; [ $(stat -c %i same) = $(stat -c %i sub/file) ] && echo one file";

fn copied_up_folders_are_the_images(t: &Test) {
    let bundle = image_with_a_folder(t).sh(LOOK);
    let plain = t.oci().run(&t.id(), &bundle).ok().stdout;
    let copied = mount(bundle, "/var/data", "tmpfs", "tmpfs", &["tmpcopyup", "size=1m"]);
    assert_eq!(t.oci().run(&t.id(), &copied).ok().stdout, plain);
    assert!(plain.contains("one file") && plain.contains("sub/file 4751"), "{plain}");
}

fn copied_up_folders_are_the_containers_own(t: &Test) {
    let script = "echo changed >/var/data/sub/file; rm /var/data/same; \
        stat -c '%a %u' /var/data /var/ro /var/new; touch /var/ro/x 2>&1; cat /var/ro/kept; mount";
    let bundle = image_with_a_folder(t).file("/var/ro/kept", "kept\n").sh(script);
    let bundle = bundle.set("/root/readonly", json!(false));
    let options = ["tmpcopyup", "mode=700", "uid=5", "nosuid", "nodev"];
    let bundle = mount(bundle, "/var/data", "tmpfs", "tmpfs", &options);
    let bundle = mount(bundle, "/var/ro", "tmpfs", "tmpfs", &["tmpcopyup", "ro"]);
    let bundle = mount(bundle, "/var/new", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let output = t.oci().run(&t.id(), &bundle).ok();
    assert!(output.stdout.starts_with("700 5\n755 0\n"), "{output}");
    assert!(output.stdout.contains("Read-only file system\nkept\n"), "{output}");
    assert!(output.stdout.contains("on /var/data type tmpfs (rw,nosuid,nodev"), "{output}");
    let file = bundle.rootfs().join("var/data/sub/file");
    assert_eq!(fs::read_to_string(file).expect("read"), "from the image");
    assert!(bundle.rootfs().join("var/data/same").exists());
}

/// The place is looked up as it is by then, not as the image has it.
fn copy_up_of_what_an_earlier_mount_shows(t: &Test) {
    let host = share(t, "host");
    fs::create_dir(host.join("inner")).expect("make a folder");
    fs::write(host.join("inner/file"), "of the host").expect("write");
    let bundle =
        t.bundle().file("/mnt/inner/file", "of the image").sh("cat /mnt/inner/file; ls /tmp/a");
    let bundle = bind(bundle, &host, "/mnt", &["bind"]);
    let bundle = mount(bundle, "/mnt/inner", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let bundle = mount(bundle.file("/tmp/a/hidden", ""), "/tmp", "tmpfs", "tmpfs", &[]);
    let bundle = mount(bundle, "/tmp/a", "tmpfs", "tmpfs", &["tmpcopyup"]);
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "of the host");
}

fn copy_up_that_does_not_fit(t: &Test) {
    let bundle = t.bundle().file("/var/data/large", vec![1; 1 << 20]);
    let bundle = mount(bundle, "/var/data", "tmpfs", "tmpfs", &["tmpcopyup", "size=64k"]);
    let output = t.oci().run(&t.id(), &bundle);
    output.error_with(["/var/data/large", "tmpcopyup", "No space left on device"]);
    let bundle = mount(t.bundle(), "/mnt", "tmpfs", "tmpfs", &["tmpcopyup", "nonsense=1"]);
    t.oci().run(&t.id(), &bundle).error_with(["/mnt", "nonsense"]);
}

fn owned(t: &Test, name: &str) -> PathBuf {
    let host = share(t, name);
    fs::write(host.join("root"), "").expect("write");
    fs::write(host.join("user"), "").expect("write");
    chown(host.join("user"), Some(1000), Some(1001)).expect("chown");
    host
}

fn owners_are_mapped(t: &Test) {
    let host = owned(t, "owned");
    let map = |id: u32| json!([{ "containerID": id, "hostID": id + 4000, "size": 2 }]);
    let given = json!({
        "destination": "/mnt/a", "source": host, "options": ["bind"],
        "uidMappings": [map(0)[0], map(1000)[0]], "gidMappings": [map(0)[0], map(1000)[0]],
    });
    let script =
        "stat -c '%u:%g' /mnt/a/root /mnt/a/user /mnt/b/root /mnt/b/user; touch /mnt/b/new";
    let bundle = t.bundle().set("/root/readonly", json!(false)).push("/mounts", given).sh(script);
    let options = ["bind", "idmap=uids=0-0-1#1000-7-1;gids=0-0-1#1001-8-1"];
    let bundle = bind(bundle, &host, "/mnt/b", &options);
    let output = t.oci().run(&t.id(), &bundle).ok();
    assert_eq!(output.stdout, "4000:4000\n5000:5001\n0:0\n7:8\n");
    let new = std::os::unix::fs::MetadataExt::uid(&fs::metadata(host.join("new")).expect("stat"));
    assert_eq!(new, 0, "the file system keeps its own ids");
}

/// Without a mount of the host's below, `ridmap` must at least do what `idmap` does; the read-only flag goes with it.
fn owners_of_the_whole_tree_are_mapped(t: &Test) {
    let host = owned(t, "owned");
    let options = ["rbind", "ro", "ridmap=uids=0-3-1;gids=0-3-1"];
    let bundle =
        bind(t.bundle(), &host, "/mnt", &options).sh("stat -c '%u:%g' /mnt/root /mnt/user; mount");
    let output = t.oci().run(&t.id(), &bundle).ok();
    // Ids without a line of the map are nobody's.
    assert!(output.stdout.starts_with("3:3\n65534:65534\n"), "{output}");
    assert!(
        output.stdout.contains("ro,relatime,idmapped") || output.stdout.contains("on /mnt"),
        "{output}"
    );
}

fn id_maps_that_cannot_be(t: &Test) {
    let line = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
    let with = |more: serde_json::Value| {
        let mut entry = json!({ "destination": "/mnt", "source": "/etc", "options": ["bind"] });
        entry
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        t.bundle().push("/mounts", entry)
    };
    let refused = |bundle: &Bundle, words: &[&str]| {
        t.oci().run(&t.id(), bundle).error_with(words.iter().copied());
    };
    refused(&with(json!({ "uidMappings": line })), &["mounts[7].uidMappings", "together"]);
    refused(
        &with(json!({ "options": ["bind", "idmap"] })),
        &["mounts[7].options", "user namespace"],
    );
    refused(
        &with(json!({ "options": ["bind", "idmap=uids=0-1-1"] })),
        &["mounts[7].options", "gids"],
    );
    let empty = json!([{ "containerID": 0, "hostID": 1, "size": 0 }]);
    let both = json!({ "uidMappings": empty, "gidMappings": line });
    refused(&with(both), &["mounts[7].uidMappings[0].size"]);
    let both = json!({ "uidMappings": line, "gidMappings": line });
    let mut tmpfs = both.clone();
    tmpfs["type"] = json!("tmpfs");
    tmpfs["options"] = json!([]);
    refused(&with(tmpfs), &["mounts[7].options", "bind mounts"]);
    // procfs cannot be shown with other owners.
    let mut of_proc = both;
    of_proc["source"] = json!("/proc/sys");
    refused(&with(of_proc), &["/proc/sys", "/mnt", "map the owners"]);
}

fn links_as_sources_and_destinations(t: &Test) {
    let host = share(t, "host");
    fs::write(host.join("file"), "content").expect("write");
    symlink("file", host.join("link")).expect("symlink");
    let link = host.join("link");
    let bundle = t.bundle().set("/root/readonly", json!(false)).file("/etc/real", "real");
    symlink("real", bundle.rootfs().join("etc/alias")).expect("symlink");
    symlink("real", bundle.rootfs().join("etc/other")).expect("symlink");
    let bundle = bind(bundle, &link, "/mnt/followed", &["bind"]);
    let bundle = bind(bundle, &link, "/mnt/itself", &["bind", "src-nofollow"]);
    let bundle = bind(bundle, &link, "/mnt/copied", &["bind", "copy-symlink"]);
    let bundle = bind(bundle, &host.join("file"), "/mnt/no-link", &["bind", "copy-symlink"]);
    let bundle = bind(bundle, &host.join("file"), "/etc/alias", &["bind", "dest-nofollow"]);
    let script = "cat /mnt/followed; echo; readlink /mnt/itself; readlink /mnt/copied; cat /mnt/no-link; echo; \
        cat /etc/real; echo; cat /etc/alias; echo; cat /etc/other";
    let output = t.oci().run(&t.id(), &bundle.sh(script)).ok();
    assert_eq!(output.stdout, "content\nfile\nfile\ncontent\nreal\ncontent\nreal");
}

fn copied_links_must_be_the_same(t: &Test) {
    let link = t.dir().join("link");
    symlink("/somewhere", &link).expect("symlink");
    let bundle = t.bundle().set("/root/readonly", json!(false)).sh("readlink /etc/link");
    symlink("/somewhere", bundle.rootfs().join("etc/link")).expect("symlink");
    let bundle = bind(bundle, &link, "/etc/link", &["bind", "copy-symlink"]);
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "/somewhere\n");
    fs::remove_file(bundle.rootfs().join("etc/link")).expect("remove");
    symlink("/elsewhere", bundle.rootfs().join("etc/link")).expect("symlink");
    t.oci().run(&t.id(), &bundle).error_with(["/etc/link", "File exists"]);
}

fn sources_that_are_no_folders(t: &Test) {
    let host = share(t, "host");
    fs::write(host.join("file"), "file").expect("write");
    let _listener = UnixListener::bind(host.join("socket")).expect("make a socket");
    let bundle = t.bundle().set("/root/readonly", json!(false));
    let bundle = bind(bundle, &host.join("file"), "/made/deep/file", &["bind", "ro"]);
    let bundle = bind(bundle, &host.join("socket"), "/run/made.sock", &["bind"]);
    let bundle = mount(bundle, "/made/null", "bind", "/dev/null", &["bind"]);
    let script = "cat /made/deep/file; echo; [ -S /run/made.sock ] && echo socket; \
        [ -c /made/null ] && echo >/made/null && echo device";
    assert_eq!(
        t.oci().run(&t.id(), &bundle.clone().sh(script)).ok().stdout,
        "file\nsocket\ndevice\n"
    );
    // What is there must be of the same sort.
    let bundle = bind(t.bundle(), &host, "/etc/passwd", &["bind"]);
    t.oci().run(&t.id(), &bundle).error_with(["/etc/passwd"]);
}

fn remounts_change_what_the_bundle_mounted(t: &Test) {
    let host = share(t, "host");
    let bundle = mount(t.bundle(), "/mnt", "tmpfs", "tmpfs", &["size=1m", "nosuid"]);
    let bundle = mount(bundle, "/mnt", "tmpfs", "tmpfs", &["remount", "size=2m", "ro", "noexec"]);
    let bundle = bind(bundle, &host, "/tmp", &["bind"]);
    let bundle = bind(bundle, &host, "/tmp", &["bind", "remount", "ro", "nodev"]);
    let facts = facts(t, &bundle);
    assert_eq!(words(&facts, "/mnt"), "noexec,nosuid,relatime,ro");
    let options = &facts.mount("/mnt").expect("a mount").super_options;
    assert!(options.contains("size=2048k") && options.contains("ro"), "{options:?}");
    let tmp = words(&facts, "/tmp");
    assert!(tmp.starts_with("nodev,") && tmp.ends_with(",ro"), "{tmp}");
    assert_eq!(facts.mounts.iter().filter(|m| m.target == "/tmp").count(), 1);
}

fn remounts_of_anything_else_are_refused(t: &Test) {
    let refused = |bundle: &Bundle, words: &[&str]| {
        t.oci().run(&t.id(), bundle).error_with(words.iter().copied());
    };
    let nothing = mount(t.bundle(), "/mnt", "tmpfs", "tmpfs", &["remount", "ro"]);
    refused(&nothing, &["mounts[7].options", "remount"]);
    let host = bind(t.bundle(), t.dir(), "/mnt", &["bind"]);
    let host = mount(host, "/mnt", "ext4", "x", &["remount", "errors=panic"]);
    refused(&host, &["mounts[8].options", "errors"]);
    let unknown = mount(t.bundle(), "/mnt", "tmpfs", "tmpfs", &[]);
    let unknown = mount(unknown, "/mnt", "tmpfs", "tmpfs", &["remount", "moon=1"]);
    refused(&unknown, &["/mnt", "moon"]);
}

fn flags_of_file_systems(t: &Test) {
    let options = ["sync", "dirsync", "lazytime", "silent", "defaults"];
    let bundle = mount(t.bundle(), "/mnt", "tmpfs", "tmpfs", &options);
    let all = ["sync", "async", "lazytime", "nolazytime", "nomand", "loud"];
    let bundle = mount(bundle, "/tmp", "tmpfs", "tmpfs", &all);
    let facts = facts(t, &bundle);
    let has = |target: &str, word: &str| {
        facts.mount(target).expect("a mount").super_options.contains(word)
    };
    for word in ["sync", "dirsync", "lazytime"] {
        assert!(has("/mnt", word), "{word}: {:?}", facts.mount("/mnt"));
        assert!(!has("/tmp", word), "{word}: {:?}", facts.mount("/tmp"));
    }
}

fn propagation_of_every_kind(t: &Test) {
    let host = share(t, "host");
    let mut bundle = t.bundle().set("/root/readonly", json!(false));
    for name in ["shared", "slave", "private", "unbindable"] {
        for word in [name.to_owned(), format!("r{name}")] {
            bundle = mount(bundle, &format!("/mnt/new-{word}"), "tmpfs", "tmpfs", &[word.as_str()]);
            bundle = bind(bundle, &host, &format!("/mnt/bind-{word}"), &["rbind", word.as_str()]);
        }
    }
    let facts = facts(t, &bundle);
    for name in ["shared", "slave", "private", "unbindable"] {
        for target in
            [format!("/mnt/new-{name}"), format!("/mnt/new-r{name}"), format!("/mnt/bind-r{name}")]
        {
            let tags = &facts.mount(&target).expect("a mount").propagation;
            let has = |tag: &str| tags.iter().any(|t| t.starts_with(tag));
            let wanted =
                [has("shared") == (name == "shared"), has("unbindable") == (name == "unbindable")];
            assert_eq!(wanted, [true, true], "{target}: {tags:?}");
        }
    }
}

/// mountinfo is sorted by the age of mounts since Linux 6.8, and binds are opened before the container exists.
fn mounts_stand_in_their_order(t: &Test) {
    let host = share(t, "host");
    fs::write(host.join("file"), "").expect("write");
    let bundle = t.bundle().set("/root/readonly", json!(false)).file("/var/up/file", "");
    let bundle = bind(bundle, &host, "/mnt/1", &["bind", "shared"]);
    let bundle = mount(bundle, "/mnt/2", "tmpfs", "tmpfs", &[]);
    let bundle = bind(bundle, &host.join("file"), "/mnt/3", &["bind", "slave"]);
    let bundle = mount(bundle, "/var/up", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let bundle = bind(bundle, &host, "/mnt/5", &["rbind", "unbindable"]);
    let seen = facts(t, &bundle).mounts.into_iter().map(|m| m.target);
    let ours: Vec<String> = seen.filter(|m| m.starts_with("/mnt/") || m == "/var/up").collect();
    assert_eq!(ours, ["/mnt/1", "/mnt/2", "/mnt/3", "/var/up", "/mnt/5"]);
}

fn a_tmpfs_is_as_open_as_its_place(t: &Test) {
    let bundle = t.bundle().set("/root/readonly", json!(false)).file("/var/closed/x", "");
    let closed = bundle.rootfs().join("var/closed");
    fs::set_permissions(closed, fs::Permissions::from_mode(0o750)).expect("chmod");
    let bundle = mount(bundle, "/var/closed", "tmpfs", "tmpfs", &["size=1m"]);
    let bundle = mount(bundle, "/var/made", "tmpfs", "tmpfs", &[]);
    let bundle = mount(bundle, "/tmp", "tmpfs", "tmpfs", &["mode=0711"]);
    let bundle = bundle.sh("stat -c %a /var/closed /var/made /tmp");
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "750\n1777\n711\n");
}

fn parameters_of_binds_are_passed_over(t: &Test) {
    let host = share(t, "host");
    let bundle = bind(t.bundle(), &host, "/mnt", &["rbind", "mode=755", "size=1m", "sync"]);
    let facts = facts(t, &bundle);
    assert!(facts.mount("/mnt").is_some());
}

fn options_of_another_kind_are_refused(t: &Test) {
    for (kind, option) in [
        ("proc", "tmpcopyup"),
        ("tmpfs", "copy-symlink"),
        ("tmpfs", "src-nofollow"),
        ("tmpfs", "idmap"),
    ] {
        let bundle = mount(t.bundle(), "/mnt", kind, kind, &[option]);
        t.oci().run(&t.id(), &bundle).error_with(["mounts[7].options"]);
    }
}

/// dockerd makes exit code 127 of these (`peers.md`).
fn a_missing_source_in_the_words_that_clients_know(t: &Test) {
    let bundle = mount(t.bundle(), "/mnt", "bind", "/no/such/place", &["rbind"]);
    t.oci().run(&t.id(), &bundle).error_with([
        "error mounting \"/no/such/place\" to rootfs at \"/mnt\"",
        "no such file or directory",
    ]);
}

fn masked_and_read_only_twice(t: &Test) {
    let paths =
        json!(["/proc/kcore", "/proc/kcore", "/sys/firmware", "/sys/firmware", "/etc/passwd"]);
    let bundle = t
        .bundle()
        .set("/linux/maskedPaths", paths.clone())
        .set("/linux/readonlyPaths", paths)
        .sh("cat /etc/passwd; ls /sys/firmware; cat /proc/kcore; echo done");
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "done\n");
}

fn cgroup2_is_the_one_tree(t: &Test) {
    let bundle = t.bundle().without_mount("/sys/fs/cgroup");
    let bundle = mount(bundle, "/sys/fs/cgroup", "cgroup2", "cgroup", &["rro", "nosuid"]);
    let facts = facts(t, &bundle);
    let mount = facts.mount("/sys/fs/cgroup").expect("a mount");
    assert_eq!((mount.fstype.as_str(), mount.root.as_str()), ("cgroup2", "/"));
    assert!(mount.options.contains("ro") && mount.options.contains("nosuid"), "{mount:?}");
}

/// A user namespace that shares the host's network may mount no sysfs of it.
fn the_hosts_sysfs_where_none_can_be_mounted(t: &Test) {
    let bundle = t.bundle().user_namespace(100_000, 65536).without_namespace("network");
    let bundle = bundle.without_mount("/sys/fs/cgroup").set("/linux/maskedPaths", json!([]));
    let facts = facts(t, &bundle);
    let mount = facts.mount("/sys").expect("a mount");
    assert_eq!(mount.fstype, "sysfs");
    assert!(mount.options.contains("ro") && mount.options.contains("nosuid"), "{mount:?}");
    let below = facts.mounts.iter().filter(|m| m.target.starts_with("/sys/")).map(|m| &m.target);
    assert_eq!(below.collect::<Vec<_>>(), Vec::<&String>::new(), "nothing of the host's below it");
}
