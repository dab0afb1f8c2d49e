use super::*;

use crate::unpack::{Copied, settle};

/// Layers from the lowest to the topmost, each settled on those below.
fn stack(tars: impl IntoIterator<Item = Tar>) -> Result<Vec<Layer>, UnpackError> {
    let mut layers: Vec<Layer> = Vec::new();
    for tar in tars {
        let next = layer(tar);
        let below: Vec<_> = layers.iter().rev().map(Layer::fd).collect();
        settle(&next.fd(), &next.unpacked, &below, Bounds::default())?;
        layers.push(next);
    }
    Ok(layers)
}

fn top(tars: impl IntoIterator<Item = Tar>) -> Layer {
    stack(tars).unwrap().pop().unwrap()
}

fn lower() -> Tar {
    let owned = |header: &mut Header| {
        header.set_uid(7);
        header.set_mode(0o4755);
    };
    Tar::default()
        .folder(".", 0o711)
        .pax(&[("SCHILY.xattr.user.d", b"below"), ("mtime", b"2000.5"), ("gid", b"9")])
        .folder("a", 0o2770)
        .folder("a/b", 0o700)
        .pax(&[("SCHILY.xattr.user.f", b"x")])
        .entry(b'0', "a/file", b"content", owned)
        .symlink("a/link", "file")
        .device(b'3', "a/null", 1, 3)
}

#[test]
fn implied_folders_are_as_below() {
    let layer = top([lower(), Tar::default().file("a/b/new", "").file("c/new", "")]);
    let stat = layer.stat("a");
    assert_eq!(
        (layer.mode("a"), stat.gid(), stat.mtime(), stat.mtime_nsec()),
        (0o2770, 9, 2000, 500_000_000)
    );
    assert_eq!(layer.attribute("a", "user.d").unwrap(), b"below");
    assert_eq!((layer.mode("a/b"), layer.stat("a/b").mtime()), (0o700, 1000));
    assert_eq!((layer.mode("."), layer.mode("c")), (0o711, 0o755));
}

#[test]
fn the_topmost_layer_with_the_folder_counts() {
    let layer = top([
        lower(),
        Tar::default().folder("a", 0o751),
        Tar::default().file("other", ""),
        Tar::default().file("a/new", ""),
    ]);
    assert_eq!((layer.mode("a"), layer.attribute("a", "user.d")), (0o751, None));
}

#[test]
fn whiteouts_and_opaque_folders_end_the_search() {
    let plain = || Tar::default().file("a/b/new", "");
    let middle = |tar: Tar| top([lower(), tar, plain()]);
    assert_eq!(middle(Tar::default().file(".wh.a", "")).mode("a/b"), 0o755);
    assert_eq!(middle(Tar::default().file("a/.wh.b", "")).mode("a/b"), 0o755);
    assert_eq!(middle(Tar::default().file("a", "")).mode("a/b"), 0o755);
    assert_eq!(middle(Tar::default().symlink("a", "x")).mode("a/b"), 0o755);
    let opaque = middle(Tar::default().file("a/.wh..wh..opq", ""));
    // The opaque folder itself is still there.
    assert_eq!((opaque.mode("a"), opaque.mode("a/b")), (0o2770, 0o755));
    assert!(!opaque.is_opaque("a"));
    assert_eq!(middle(Tar::default().file(".wh..wh..opq", "")).mode("a/b"), 0o755);
    // The layer's own.
    let own = top([lower(), plain().file("a/.wh..wh..opq", "")]);
    assert_eq!((own.mode("a"), own.mode("a/b"), own.is_opaque("a")), (0o2770, 0o755, true));
    let own = top([lower(), plain().file(".wh.a", "")]);
    assert_eq!((own.mode("a"), own.mode("a/b")), (0o755, 0o755));
}

#[test]
fn pending_links_copy_what_is_below() {
    let layer = top([
        lower(),
        Tar::default()
            .folder("d", 0o755)
            .link("d/one", "a/file")
            .link("two", "d/one")
            .link("s", "a/link")
            .link("n", "a/null"),
    ]);
    let stat = layer.stat("a/file");
    assert_eq!((layer.text("two").as_str(), stat.nlink(), stat.uid()), ("content", 3, 7));
    assert_eq!(stat.ino(), layer.stat("d/one").ino());
    assert_eq!((layer.mode("a/file"), stat.mtime()), (0o4755, 1000));
    assert_eq!(layer.attribute("two", "user.f").unwrap(), b"x");
    assert_eq!(fs::read_link(layer.path("s")).unwrap(), Path::new("file"));
    assert_eq!(layer.stat("n").rdev(), nix::sys::stat::makedev(1, 3));
    // Made on the way, and like the one below.
    assert_eq!((layer.mode("a"), layer.stat("a").mtime()), (0o2770, 2000));
    assert_eq!(layer.attribute("a", "user.d").unwrap(), b"below");
    // Described, and changed since.
    assert_eq!(layer.stat("d").mtime(), 1000);
}

#[test]
fn copies_keep_holes() {
    let records = [("GNU.sparse.size", &b"20000000"[..]), ("GNU.sparse.map", b"10000000,4")];
    let layer =
        top([Tar::default().pax(&records).file("f", "data"), Tar::default().link("l", "f")]);
    let stat = layer.stat("l");
    assert_eq!((stat.len(), stat.nlink()), (20_000_000, 2));
    assert!(stat.blocks() * 512 < 1 << 20);
    assert_eq!(&fs::read(layer.path("l")).unwrap()[10_000_000..10_000_004], b"data");
}

#[test]
fn a_default_acl_of_a_folder_is_not_inherited_by_copies() {
    let mut acl = vec![2, 0, 0, 0];
    for tag in [1_u8, 4, 0x20] {
        acl.extend_from_slice(&[tag, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]);
    }
    let described = Tar::default()
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)])
        .folder("a", 0o755)
        .link("l", "a/b/file");
    let layer = top([
        Tar::default().folder("a", 0o755).folder("a/b", 0o700).file("a/b/file", ""),
        described,
    ]);
    assert_eq!((layer.mode("a/b"), layer.mode("l")), (0o700, 0o644));
    assert_eq!(layer.attribute("a/b", "system.posix_acl_default"), None);
}

#[test]
fn links_to_nothing_are_refused() {
    let fails = |tars: Vec<Tar>| stack(tars).err().expect("should be refused").to_string();
    let link = || Tar::default().link("l", "a/file");
    assert_eq!(fails(vec![link()]), "l: is a hard link to a/file, which is in no layer below");
    for middle in [".wh.a", "a/.wh.file", "a/.wh..wh..opq", "a"] {
        let said = fails(vec![lower(), Tar::default().file(middle, ""), link()]);
        assert!(said.contains("in no layer below"), "{middle}: {said}");
    }
    assert!(fails(vec![lower(), link().file("a/.wh.file", "")]).contains("the layer removes"));
    assert!(fails(vec![lower(), link().file("a/.wh..wh..opq", "")]).contains("in no layer below"));
    assert!(fails(vec![lower(), Tar::default().link("l", "a/b")]).ends_with("a folder"));
    assert!(
        fails(vec![lower(), Tar::default().symlink("x", "a").link("l", "b"),]).contains("no layer")
    );
}

#[test]
fn links_through_symlinks_below_are_refused() {
    let said =
        stack([lower().symlink("s", "a"), Tar::default().link("l", "s/file")]).err().unwrap();
    assert!(said.to_string().contains("in no layer below"), "{said}");
}

#[test]
fn an_opaque_root_hides_each_name_below() {
    let middle = Tar::default().folder("b", 0o755).file(".wh.c", "");
    let last = Tar::default()
        .folder(".", 0o700)
        .file("a/new", "")
        .file(".wh..wh..opq", "")
        .file("own", "");
    let layer = top([lower(), middle, last.file("c", "")]);
    assert!(layer.is_opaque("a") && layer.is_whiteout("b"));
    assert_eq!(
        (layer.text("c").as_str(), layer.has("own"), layer.stat(".").mtime()),
        ("", true, 1000)
    );
}

#[test]
fn whiteouts_that_hide_nothing_go() {
    let tar = Tar::default()
        .folder("new", 0o755)
        .file("new/.wh.x", "")
        .file("a/.wh.file", "")
        .file("a/b/.wh..wh..opq", "")
        .file("a/b/.wh.x", "")
        .file("a/b/inner/.wh.x", "")
        .file(".wh.nowhere", "");
    let layer = top([lower(), tar]);
    assert!(layer.is_whiteout("a/file") && layer.is_whiteout("nowhere"));
    assert!(!layer.has("new/x") && !layer.has("a/b/x") && !layer.has("a/b/inner/x"));
    assert_eq!((layer.stat("new").mtime(), layer.stat("a/b").mtime()), (1000, 1000));
    // The lowest layer has nothing to hide.
    assert!(!top([Tar::default().file(".wh.x", "").file("d/.wh.x", "")]).has("x"));
}

/// Merged by the kernel, in a mount namespace of the test's own.
#[test]
fn overlayfs_reads_it_so() {
    let layers = stack([
        lower().file("gone", "").folder("o", 0o755).file("o/old", ""),
        Tar::default()
            .file(".wh.gone", "")
            .file("o/.wh..wh..opq", "")
            .file("o/new", "")
            .link("l", "a/file")
            .folder("n", 0o755)
            .file("n/.wh.x", ""),
    ])
    .unwrap();
    let place = place();
    let mount = format!(
        "mount -t overlay overlay -o lowerdir={}:{} {merged} && cd {merged} && find . | sort && stat -c %h,%a l a",
        layers[1].place.path().display(),
        layers[0].place.path().display(),
        merged = place.path().display(),
    );
    let output = std::process::Command::new("unshare").args(["-m", "sh", "-ec", &mount]).output();
    let output = output.unwrap();
    let expected = ". ./a ./a/b ./a/file ./a/link ./a/null ./l ./n ./o ./o/new 2,4755 1,2770";
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(words.join(" "), expected, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn copies_count() {
    let lower = layer(Tar::default().file("d/low", "12345678"));
    let settled = |bytes, entries| {
        let next = layer(Tar::default().file("own", "1234").link("link", "d/low"));
        let bounds = Bounds { bytes, entries };
        settle(&next.fd(), &next.unpacked, &[lower.fd()], bounds).map_err(|e| e.to_string())
    };
    assert_eq!(settled(11, 9), Err("link: the layer has more than 11 bytes".to_owned()));
    // Two of the stream, a folder and the copy.
    assert_eq!(settled(12, 3), Err("link: the layer has more than 3 entries".to_owned()));
    assert_eq!(settled(12, 4), Ok(Copied { bytes: 8, entries: 2 }));
}
