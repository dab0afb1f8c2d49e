use super::*;

use std::os::unix::fs::FileExt;
use std::process::Command;

const SIZE: u64 = 40 << 20;

/// Data at the start, in the middle, and a hole at the end; with more pieces than one header has room for.
fn example() -> TempDir {
    let place = place();
    let file = fs::File::create(place.path().join("holes")).unwrap();
    file.set_len(SIZE).unwrap();
    for index in 0..60_u64 {
        let data = [index as u8 + 1; 3000];
        file.write_all_at(&data, index * (512 << 10)).unwrap();
    }
    place
}

fn compare(options: &[&str]) {
    let from = example();
    let archive = Command::new("tar").args(["-C"]).arg(from.path()).args(options).output();
    let archive = archive.unwrap();
    assert!(archive.status.success(), "{}", String::from_utf8_lossy(&archive.stderr));
    assert!((archive.stdout.len() as u64) < SIZE / 10, "tar has not seen the holes");
    let layer = try_bounded(&archive.stdout, PLENTY).unwrap();
    let same =
        fs::read(from.path().join("holes")).unwrap() == fs::read(layer.path("holes")).unwrap();
    assert!(same, "{options:?}");
    let stat = layer.stat("holes");
    assert_eq!(stat.len(), SIZE);
    assert!(stat.blocks() * 512 < SIZE / 10, "the holes are filled");
    assert!(layer.unpacked.bytes < SIZE / 10);
    assert_eq!(fs::read_dir(layer.place.path()).unwrap().count(), 1);
}

#[test]
fn what_gnu_tar_writes() {
    compare(&["-cS", "--format=gnu", "holes"]);
    for version in ["0.0", "0.1", "1.0"] {
        let option = format!("--sparse-version={version}");
        compare(&["-cS", "--format=pax", &option, "holes"]);
    }
}

#[test]
fn one_hole_is_a_file() {
    let records = [("GNU.sparse.size", &b"5000"[..]), ("GNU.sparse.map", b"5000,0")];
    assert_eq!(layer(Tar::default().pax(&records).file("a", "")).stat("a").len(), 5000);
}

#[test]
fn maps_that_lie_are_refused() {
    let maps: [(&[u8], &str); 7] = [
        (b"0,3,2,1", "cannot be there"),
        (b"5,1,0,3", "cannot be there"),
        (b"98,4", "cannot be there"),
        (b"18446744073709551615,4", "cannot be there"),
        (b"0,3", "stores 4 bytes"),
        (b"0,3,5", "half a pair"),
        (b"0,x", "no number"),
    ];
    for (map, expected) in maps {
        let records = [("GNU.sparse.size", &b"100"[..]), ("GNU.sparse.map", map)];
        let said = refusal(Tar::default().pax(&records).file("a", "1234"));
        assert!(said.contains(expected), "{said}");
    }
    let one = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9"),
    ];
    for (map, expected) in
        [("9999999999\n", "too many"), ("1\n0\n", "no complete map"), ("", "no complete map")]
    {
        let mut content = map.as_bytes().to_vec();
        content.resize(if map.is_empty() { 0 } else { 512 }, 0);
        let said = refusal(Tar::default().pax(&one).entry(b'0', "a", &content, |_| {}));
        assert!(said.contains(expected), "{map:?}: {said}");
    }
}
