use super::*;

use crate::unpack::layer::{LARGEST_MEMORY, Layer as Reading};

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["..", "../a", "a/../b", "/../a", "a/..", "./.."] {
        let said = refusal(Tar::default().file(name, ""));
        assert!(said.contains("leads upwards") && said.starts_with(name), "{said}");
    }
    assert!(refusal(Tar::default().pax(&[("path", b"a\0b")]).file("x", "")).contains("NUL"));
    let long = "a/".repeat(3000);
    let said = refusal(Tar::default().pax(&[("path", long.as_bytes())]).file("x", ""));
    assert!(said.contains("6000 bytes") && said.len() < 400, "{said}");
    assert!(refusal(Tar::default().file("./", "x")).contains("root folder"));
}

#[test]
fn absolute_names_stay_inside() {
    let layer = layer(Tar::default().file("//etc//./hafen-unpack", "x"));
    assert_eq!(layer.text("etc/hafen-unpack"), "x");
}

#[test]
fn nothing_is_written_through_a_symlink() {
    let outside = place();
    let target = outside.path().to_str().unwrap();
    let start = || Tar::default().symlink("s", target);
    for tar in [
        start().file("s/file", ""),
        start().folder("s/d", 0o755),
        start().file("s/.wh.x", ""),
        start().file("s/.wh..wh..opq", ""),
        start().link("s/link", "elsewhere"),
        start().file("s/deep/er/file", ""),
    ] {
        let said = refusal(tar);
        assert!(said.contains("leads through the symlink s"), "{said}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // A file of the same name takes the symlink's place.
    fs::write(outside.path().join("f"), "untouched").unwrap();
    let to_file = format!("{target}/f");
    assert_eq!(layer(Tar::default().symlink("s", &to_file).file("s", "own")).text("s"), "own");
    let layer = layer(start().folder("s", 0o700).file("s/in", ""));
    assert!(layer.stat("s").is_dir() && layer.has("s/in"));
    assert_eq!(fs::read_to_string(outside.path().join("f")).unwrap(), "untouched");
}

#[test]
fn what_is_no_folder_has_no_entries() {
    let said = refusal(Tar::default().file("f", "").file("f/x", ""));
    assert_eq!(said, "f/x: leads through what is no folder: f");
    let said = refusal(Tar::default().link("l", "below").file("l/x", ""));
    assert_eq!(said, "l/x: leads through the hard link l");
}

#[test]
fn hard_links_lead_to_files_of_the_image() {
    let outside = place();
    fs::write(outside.path().join("secret"), "").unwrap();
    let folder = outside.path().to_str().unwrap();
    for (tar, expected) in [
        (Tar::default().link("l", "../x"), "leads upwards"),
        (Tar::default().symlink("s", folder).link("l", "s/secret"), "in no folder"),
        (Tar::default().file("f", "").link("l", "f/x"), "in no folder"),
        (Tar::default().folder("d", 0o755).link("l", "d"), "a folder"),
        (Tar::default().link("l", "/"), "a folder"),
        (Tar::default().file("f", "").link("f", "f"), "to itself"),
        (Tar::default().file(".wh.f", "").link("l", "f"), "which the layer removes"),
    ] {
        let said = refusal(tar);
        assert!(said.contains(expected), "{said}");
    }
    // An absolute name is one of the image.
    let inside = layer(Tar::default().link("l", &format!("{folder}/secret")));
    assert_eq!((inside.unpacked.pending_links.len(), inside.has("l")), (1, false));
    assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().nlink(), 1);
}

#[test]
fn whiteouts_have_plain_names() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..."] {
        let said = refusal(Tar::default().file(name, ""));
        assert!(said == format!("{name}: is a whiteout of no name"), "{said}");
    }
    assert!(refusal(Tar::default().file(".wh.a/b", "")).contains("is in the whiteout"));
    assert!(refusal(Tar::default().device(b'3', "null", 0, 0)).contains("0:0"));
}

#[test]
fn attributes_that_mean_something_to_the_overlay_are_refused() {
    for key in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.metacopy"] {
        let record = format!("SCHILY.xattr.{key}");
        let said = refusal(Tar::default().pax(&[(&record, b"y")]).folder("d", 0o755));
        assert_eq!(said, format!("d: would steer the overlay by the attribute {key}"));
        let record = format!("LIBARCHIVE.xattr.{}", key.replace('.', "%2E"));
        assert!(refusal(Tar::default().pax(&[(&record, b"eQ")]).file("f", "")).contains("steer"));
    }
    let capability = [("SCHILY.xattr.security.capability", &b"x"[..])];
    assert!(refusal(Tar::default().pax(&capability).folder("d", 0o755)).contains("is no file"));
    // The kernel's own check.
    let said = refusal(Tar::default().pax(&capability).file("f", ""));
    assert!(said.starts_with("set security.capability of f: "), "{said}");
}

#[test]
fn extended_headers_are_small() {
    for kind in [b'x', b'g', b'L', b'K'] {
        // The stream ends long before: what counts is that nobody waits for it.
        let huge = |header: &mut Header| header.set_size(1 << 40);
        let said = refusal(Tar::default().entry(kind, "huge", b"", huge));
        assert!(said.contains("more than 1048576 bytes"), "{said}");
    }
    let half = vec![b'a'; 600_000];
    let said = refusal(Tar::default().pax(&[("comment", &half)]).pax(&[("comment", &half)]));
    assert!(said.contains("more than 1048576 bytes"), "{said}");
    let globals = (0..3).fold(Tar::default(), |tar, n| {
        let key = format!("SCHILY.xattr.user.{n}");
        tar.records(b'g', &[(&key, &half)]).file(".wh.a", "")
    });
    assert!(refusal(globals).contains("global pax headers are too large"));
}

#[test]
fn malformed_records_are_refused() {
    for bytes in
        [&b"5 a\n"[..], b"99 a=b\n", b"6 a=b", b"x a=b\n", b"0 a=b\n", b"1 a=b\n", b"5 =b\n"]
    {
        let said = refusal(Tar::default().entry(b'x', "p", bytes, |_| {}).file("a", ""));
        assert!(said.contains("pax record"), "{bytes:?}: {said}");
    }
    assert!(refusal(Tar::default().records(b'g', &[("path", b"a")])).contains("says path for all"));
}

#[test]
fn bounds_hold() {
    let small = Bounds { bytes: 10, entries: 3 };
    let bounded = |tar: Tar| said(try_bounded(&tar.end().0, small));
    let said = bounded(Tar::default().file("a", "12345").file("b", "123456"));
    assert_eq!(said, "b: the layer has more than 10 bytes");
    let many = Tar::default().file("a", "").file("b", "").file(".wh.c", "").file("d", "");
    assert_eq!(bounded(many), "d: the layer has more than 3 entries");
    // Folders that nobody described are made as well.
    assert!(bounded(Tar::default().file("a/b/c/d", "")).contains("more than 3 entries"));
    // Before anything is read.
    let huge = |header: &mut Header| header.set_size(1 << 50);
    assert!(bounded(Tar::default().entry(b'0', "huge", b"", huge)).contains("more than 10 bytes"));
    let hole = [("GNU.sparse.size", &b"11"[..]), ("GNU.sparse.map", b"11,0")];
    assert!(bounded(Tar::default().pax(&hole).file("s", "")).contains("more than 10 bytes"));
}

#[test]
fn memory_is_bounded() {
    for tar in [
        Tar::default().folder("abcd", 0o755),
        Tar::default().file("ab/cd/f", ""),
        Tar::default().link("a", "bcd"),
    ] {
        let place = place();
        let folder = open(place.path());
        let mut reading = Reading::new(&folder, PLENTY).unwrap();
        reading.held = LARGEST_MEMORY - 3;
        let said = reading.read(tar.end().0.as_slice()).unwrap_err().to_string();
        assert!(said.contains("bytes of names"), "{said}");
    }
}

#[test]
fn truncated_streams_name_their_entry() {
    let whole =
        Tar::default().file("first", "x").pax(&[("path", b"second")]).file("a", "content").0;
    for length in 1..whole.len() {
        if length == 1024 {
            continue;
        }
        let said = said(try_bounded(&whole[..length], PLENTY));
        assert!(said.contains("the layer's stream ends within"), "{length}: {said}");
    }
    let said = said(try_bounded(&whole[..whole.len() - 510], PLENTY));
    assert_eq!(said, "the layer's stream ends within second");
}

#[test]
fn broken_headers_are_refused() {
    let mut archive = Tar::default().file("a", "").file("b", "").end().0;
    archive[512 + 5] ^= 1;
    assert_eq!(
        said(try_bounded(&archive, PLENTY)),
        "a: is followed by a header with a wrong checksum"
    );
    let half = Tar::default().file("a", "").bytes(&[0; 512]).file("b", "");
    assert!(refusal(half).contains("half an end marker"));
}

#[test]
fn numbers_that_linux_has_not_are_refused() {
    let records: [(&str, &[u8]); 6] = [
        ("uid", b"4294967295"),
        ("gid", b"-1"),
        ("size", b"99999999999999999999"),
        ("size", b"18446744073709551615"),
        ("mtime", b"1e9"),
        ("mtime", b"99999999999999999999"),
    ];
    for (key, value) in records {
        let said = refusal(Tar::default().pax(&[(key, value)]).file("a", ""));
        assert!(said.starts_with("a: "), "{key}: {said}");
    }
    type Edit = fn(&mut Header);
    let edits: [Edit; 6] = [
        |header| header.as_old_mut().uid = [0xff; 8],
        |header| header.as_old_mut().uid = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        |header| header.as_old_mut().size = [0xff; 12],
        |header| header.as_old_mut().size = [0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        |header| header.as_old_mut().mode = *b"0000689\0",
        |header| header.as_old_mut().gid = *b"-000001\0",
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let said = refusal(Tar::default().entry(b'0', "a", b"", edit));
        assert!(said.starts_with("a: "), "{index}: {said}");
    }
    assert!(refusal(Tar::default().device(b'4', "d", 4096, 0)).contains("4096:0"));
}

#[test]
fn types_that_no_image_has_are_refused() {
    for (kind, reason) in [(b'D', "dump"), (b'M', "volume"), (b'V', "label"), (b'Z', "type 'Z'")] {
        let said = refusal(Tar::default().entry(kind, "odd", b"", |_| {}));
        assert!(said.starts_with("odd: ") && said.contains(reason), "{said}");
    }
    assert!(refusal(Tar::default().symlink("s", "")).contains("symlink"));
}

#[test]
fn names_in_messages_are_harmless() {
    let said = refusal(Tar::default().file("\x1b[31m/../\n", ""));
    assert!(!said.contains('\x1b') && !said.contains('\n'), "{said}");
}

/// Whatever is changed in an archive, the answer is one, and what it says stays inside.
#[test]
fn damaged_archives_are_answered() {
    let sparse = [("GNU.sparse.size", &b"5000"[..]), ("GNU.sparse.map", b"10,4")];
    let whole = Tar::default()
        .pax(&[("mtime", b"-1.5"), ("uid", b"1"), ("SCHILY.xattr.user.a", b"b")])
        .file("d/a", "content")
        .entry(b'L', "././@LongLink", b"d/long\0", |_| {})
        .symlink("s", "d")
        .pax(&sparse)
        .file("d/s", "data")
        .link("d/l", "d/a")
        .file("d/.wh.x", "")
        .file(".wh..wh..opq", "")
        .device(b'3', "d/null", 1, 3)
        .folder("d", 0o755)
        .link("p", "below")
        .end()
        .0;
    let is_header = |block: &[u8]| block[257..262] == *b"ustar";
    let headers: Vec<_> = whole.chunks(512).map(is_header).collect();
    // Numerical Recipes' generator: the same archives each time.
    let mut state = 1_u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..2000 {
        let mut archive = whole.clone();
        for _ in 0..=random(3) {
            let block = random(headers.len());
            // Names and padding are most of a block, the fields between them more interesting.
            let place = if random(2) == 0 { random(512) } else { 100 + random(60) };
            archive[block * 512 + place] = b"\0\x80\xff/.0179a= \n"[random(13)];
        }
        for (block, _) in archive.chunks_mut(512).zip(&headers).filter(|(_, header)| **header) {
            let mut header = Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        match try_bounded(&archive, Bounds { bytes: 1 << 20, entries: 100 }) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}
