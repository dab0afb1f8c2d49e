use super::*;

use std::io::Read;

/// What setcap(8) writes: CAP_NET_RAW, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn all_types_are_made() {
    let layer = layer(
        Tar::default()
            .folder("./", 0o711)
            .folder("d/", 0o750)
            .file("d/file", "content")
            .symlink("d/link", "/absolute/../target")
            .link("d/same", "./d/file")
            .link("d/link2", "/d/link")
            .device(b'3', "d/null", 1, 3)
            .device(b'4', "d/disk", 259, 300)
            .entry(b'6', "d/fifo", b"", |_| {})
            .entry(b'7', "/d/contiguous", b"x", |_| {})
            .entry(0, "old/", b"", |_| {}),
    );
    assert_eq!((layer.mode("."), layer.mode("d")), (0o711, 0o750));
    assert_eq!(layer.text("d/same"), "content");
    assert_eq!((layer.stat("d/file").nlink(), layer.stat("d/link2").nlink()), (2, 2));
    let target = fs::read_link(layer.path("d/link")).unwrap();
    assert_eq!(target, Path::new("/absolute/../target"));
    assert_eq!(layer.stat("d/null").rdev(), nix::sys::stat::makedev(1, 3));
    assert_eq!(layer.stat("d/disk").rdev(), nix::sys::stat::makedev(259, 300));
    assert_eq!(layer.stat("d/fifo").mode(), 0o10644);
    assert_eq!(layer.text("d/contiguous"), "x");
    assert!(layer.stat("old").is_dir());
    assert_eq!((layer.unpacked.entries, layer.unpacked.bytes), (11, 8));
    assert_eq!(layer.unpacked.implied, [] as [PathBuf; 0]);
}

#[test]
fn owners_modes_and_times_are_kept() {
    let owned = |header: &mut Header| {
        header.set_uid(3_000_000_000);
        header.set_gid(1234);
        header.set_mode(0o106755);
    };
    let layer = layer(
        Tar::default()
            .folder("d", 0o3770)
            .entry(b'0', "d/setid", b"x", owned)
            .pax(&[("mtime", b"1700000000.123456789"), ("uid", b"4000000000"), ("gid", b"7")])
            .symlink("d/link", "x")
            .pax(&[("mtime", b"-1.25")])
            .file("d/before", ""),
    );
    let stat = layer.stat("d/setid");
    assert_eq!((stat.uid(), stat.gid(), layer.mode("d/setid")), (3_000_000_000, 1234, 0o6755));
    assert_eq!((stat.mtime(), stat.atime(), layer.mode("d")), (1000, 1000, 0o3770));
    let link = layer.stat("d/link");
    assert_eq!((link.uid(), link.gid()), (4_000_000_000, 7));
    assert_eq!((link.mtime(), link.mtime_nsec()), (1_700_000_000, 123_456_789));
    let before = layer.stat("d/before");
    assert_eq!((before.mtime(), before.mtime_nsec()), (-2, 750_000_000));
    // Its entries were made later, in it and not in its group.
    assert_eq!((layer.stat("d").mtime(), before.gid()), (1000, 0));
}

#[test]
fn negative_times_of_headers_are_base_256() {
    let time = |header: &mut Header| {
        header.as_old_mut().mtime = [0xff; 12];
        header.as_old_mut().mtime[11] = 0xf6;
    };
    assert_eq!(layer(Tar::default().entry(b'0', "a", b"", time)).stat("a").mtime(), -10);
}

#[test]
fn attributes_are_set() {
    let records: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.security.capability", &CAPABILITY),
        ("SCHILY.xattr.user.with%3Dsign", b"a=b\nc\0d"),
        ("SCHILY.xattr.user.empty", b""),
        ("LIBARCHIVE.xattr.user.p%6cain", b"aGVsbG8"),
    ];
    let owned = |header: &mut Header| header.set_uid(1000);
    let layer = layer(
        Tar::default()
            .pax(&records)
            .entry(b'0', "file", b"content", owned)
            .pax(&[("SCHILY.xattr.user.f", b"1")])
            .folder("folder", 0o755)
            // The kernel has no place for the first.
            .pax(&[("SCHILY.xattr.user.l", b"1"), ("SCHILY.xattr.trusted.l", b"2")])
            .symlink("link", "file"),
    );
    assert_eq!(layer.attribute("file", "security.capability").unwrap(), CAPABILITY);
    assert_eq!(layer.attribute("file", "user.with=sign").unwrap(), b"a=b\nc\0d");
    assert_eq!(layer.attribute("file", "user.empty").unwrap(), b"");
    assert_eq!(layer.attribute("file", "user.plain").unwrap(), b"hello");
    assert_eq!(layer.attribute("folder", "user.f").unwrap(), b"1");
    assert_eq!(layer.attribute("link", "trusted.l").unwrap(), b"2");
    assert_eq!((layer.stat("file").mtime(), layer.stat("link").mtime()), (1000, 1000));
}

#[test]
fn a_default_acl_is_not_inherited_while_unpacking() {
    // Version 2; user::rwx, group::rwx, other::rwx.
    let mut acl = vec![2, 0, 0, 0];
    for tag in [1_u8, 4, 0x20] {
        acl.extend_from_slice(&[tag, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]);
    }
    let layer = layer(
        Tar::default()
            .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)])
            .folder("d", 0o755)
            .folder("d/inner", 0o755),
    );
    assert_eq!(layer.attribute("d", "system.posix_acl_default"), Some(acl));
    assert_eq!(layer.attribute("d/inner", "system.posix_acl_default"), None);
}

#[test]
fn long_names_are_gnus_or_pax() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let layer = layer(
        Tar::default()
            .entry(b'L', "././@LongLink", format!("{long}\0").as_bytes(), |_| {})
            .entry(b'K', "././@LongLink", format!("{}\0", "t".repeat(150)).as_bytes(), |_| {})
            .symlink("short", "short")
            .pax(&[("path", b"\xff\xfe name"), ("comment", b"not looked at")])
            .file("short", "x")
            .pax(&[("path", b"hard"), ("linkpath", long.as_bytes())])
            .link("short", "nowhere"),
    );
    assert_eq!(fs::read_link(layer.path(&long)).unwrap().as_os_str().len(), 150);
    assert_eq!(layer.stat("hard").ino(), layer.stat(&long).ino());
    let raw = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\xfe name");
    assert!(layer.place.path().join(raw).exists());
    assert!(!layer.has("short"));
}

#[test]
fn ustar_prefixes_are_joined() {
    let mut header = Header::new_ustar();
    header.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"a/b");
    header.as_old_mut().name[0] = b'c';
    header.as_old_mut().linkflag = [b'0'];
    header.set_cksum();
    assert!(layer(Tar::default().bytes(header.as_bytes())).has("a/b/c"));
}

#[test]
fn a_size_in_records_counts_and_only_for_the_entry() {
    let zero = |header: &mut Header| header.set_size(0);
    let layer = layer(
        Tar::default()
            .pax(&[("size", b"7")])
            .entry(b'0', "a", b"content", zero)
            // Between a record and its entry, a long name has its own size.
            .pax(&[("size", b"3")])
            .entry(b'L', "././@LongLink", b"long\0", |_| {})
            .entry(b'0', "b", b"abc", zero)
            .file("c", "plain"),
    );
    assert_eq!(layer.text("a"), "content");
    assert_eq!(layer.text("long"), "abc");
    assert_eq!(layer.text("c"), "plain");
}

#[test]
fn global_records_hold_until_an_entry_says_otherwise() {
    let layer = layer(
        Tar::default()
            .records(b'g', &[("uid", b"5"), ("comment", b"of git archive")])
            .file("a", "")
            .pax(&[("uid", b"6")])
            .file("b", "")
            .file("c", ""),
    );
    assert_eq!(["a", "b", "c"].map(|name| layer.stat(name).uid()), [5, 6, 5]);
}

#[test]
fn missing_folders_are_implied_until_they_are_described() {
    let layer = layer(
        Tar::default()
            .file("a/b/c/file", "")
            .file("z/file", "")
            .folder("a/b", 0o700)
            .file("a-file", ""),
    );
    assert_eq!(layer.implied(), [".", "a", "a/b/c", "z"]);
    assert_eq!((layer.mode("a"), layer.mode("a/b"), layer.mode("a/b/c")), (0o755, 0o700, 0o755));
    assert_eq!((layer.mode("."), layer.stat("a/b").mtime()), (0o755, 1000));
}

#[test]
fn later_entries_replace_earlier_ones() {
    let layer = layer(
        Tar::default()
            .file("file", "old")
            .link("kept", "file")
            .file("file", "new")
            .folder("d", 0o700)
            .file("d/stays", "")
            .folder("d", 0o711)
            .file("tree/a/b/c", "")
            .file("tree/a/e/f", "")
            .symlink("tree/a/l", "/")
            .link("tree/pending", "below")
            .symlink("tree", "file")
            .file("turned", "")
            .folder("turned", 0o755)
            .file("turned/in", ""),
    );
    assert_eq!((layer.text("file").as_str(), layer.text("kept").as_str()), ("new", "old"));
    assert_eq!((layer.mode("d"), layer.has("d/stays")), (0o711, true));
    assert!(layer.stat("tree").is_symlink());
    assert!(layer.has("turned/in"));
    // As if each had been applied on its own: the file hid what was below.
    assert!(layer.is_opaque("turned"));
    assert_eq!((layer.implied(), layer.unpacked.pending_links.len()), (vec!["."], 0));
}

#[test]
fn a_deep_tree_is_replaced() {
    let deep = "d/".repeat(1500);
    let layer = layer(
        Tar::default()
            .pax(&[("path", format!("{deep}file").as_bytes())])
            .file("x", "")
            .file("d/d/other/file", "")
            .file("d", "flat"),
    );
    assert_eq!((layer.text("d").as_str(), layer.implied()), ("flat", vec!["."]));
}

#[test]
fn whiteouts_hide_what_is_below() {
    let layer = layer(
        Tar::default()
            .file(".wh.gone", "")
            .file("d/.wh.inner", "ignored content")
            .file("o/.wh..wh..opq", "")
            .file("o/file", "")
            .folder(".wh..wh.plnk", 0o700)
            .file(".wh..wh.plnk/1.2", "")
            .link(".wh.linked", ".wh..wh.aufs")
            .file(".wh..wh.aufs", "")
            .file(".wh..hidden", ""),
    );
    for name in ["gone", "d/inner", "linked", ".hidden"] {
        assert!(layer.is_whiteout(name), "{name}");
    }
    assert!(layer.is_opaque("o") && layer.has("o/file") && !layer.is_opaque("d"));
    assert!(!layer.has("1.2") && !layer.has(".wh..wh.aufs") && !layer.has(".wh..wh.plnk"));
    assert_eq!((layer.implied(), layer.unpacked.bytes), (vec![".", "d", "o"], 0));
}

#[test]
fn the_root_can_be_opaque() {
    assert!(layer(Tar::default().file(".wh..wh..opq", "")).is_opaque("."));
}

#[test]
fn entries_win_over_whiteouts_in_any_order() {
    let layer = layer(
        Tar::default()
            .file(".wh.early", "")
            .file("early", "a")
            .file("late", "b")
            .file(".wh.late", "")
            .folder("described", 0o755)
            .file(".wh.described", "")
            .file(".wh.after", "")
            .folder("after", 0o755)
            .file(".wh.through", "")
            .file("through/file", "")
            .file("before/file", "")
            .file(".wh.before", "")
            .file(".wh.link", "")
            .link("link", "lower")
            .link("link2", "lower")
            .file(".wh.link2", ""),
    );
    assert_eq!((layer.text("early").as_str(), layer.text("late").as_str()), ("a", "b"));
    for name in ["described", "after", "through", "before"] {
        assert!(layer.is_opaque(name), "{name}");
    }
    assert!(!layer.has("link") && !layer.has("link2"));
    // What is new in this layer is not like what it hides.
    assert_eq!(layer.implied(), ["."]);
    assert_eq!((layer.mode("through"), layer.mode("before")), (0o755, 0o755));
}

#[test]
fn links_to_what_is_below_wait() {
    let layer = layer(
        Tar::default()
            .link("a", "below/file")
            .link("b", "a")
            .link("d/c", "/below/file")
            .file("replaced", "")
            .link("replaced", "below/file")
            .link("again", "below/file")
            .file("again", "x"),
    );
    let pairs: Vec<_> =
        layer.unpacked.pending_links.iter().map(|(l, t)| (l.to_str(), t.to_str())).collect();
    let expected =
        [("a", "below/file"), ("b", "a"), ("d/c", "below/file"), ("replaced", "below/file")];
    assert_eq!(pairs, expected.map(|(l, t)| (Some(l), Some(t))));
    assert!(!layer.has("replaced") && !layer.has("below"));
    assert_eq!(layer.text("again"), "x");
}

#[test]
fn what_follows_the_end_stays_in_the_stream() {
    let archive = Tar::default().file("a", "x").end().bytes(b"more");
    let mut stream = archive.0.as_slice();
    let place = place();
    unpack(&mut stream, &open(place.path()), PLENTY).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(&rest[..4], b"more");
}

#[test]
fn an_empty_layer_is_one() {
    assert_eq!(layer(Tar::default()).implied(), ["."]);
    assert_eq!(try_bounded(b"", PLENTY).unwrap().unpacked.entries, 0);
    let global = Tar::default().records(b'g', &[("comment", b"of git archive")]);
    assert_eq!(layer(global).unpacked.entries, 0);
    // No end marker.
    assert_eq!(try_bounded(&Tar::default().file("a", "x").0, PLENTY).unwrap().text("a"), "x");
}

#[test]
fn a_folder_that_gives_its_group_on_is_no_harm() {
    let place = place();
    std::os::unix::fs::chown(place.path(), None, Some(77)).unwrap();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o2700))
        .unwrap();
    let tar = Tar::default().file("d/file", "").folder("e", 0o750).symlink("l", "x").end();
    let unpacked = unpack(tar.0.as_slice(), &open(place.path()), PLENTY).unwrap();
    let layer = Layer { place, unpacked };
    for name in [".", "d", "d/file", "e", "l"] {
        assert_eq!(layer.stat(name).gid(), 0, "{name}");
    }
    assert_eq!((layer.mode("."), layer.mode("d"), layer.mode("e")), (0o755, 0o755, 0o750));
}
