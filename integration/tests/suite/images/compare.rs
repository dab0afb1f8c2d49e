//! Several layers, file by file against how umoci unpacks them.

use std::path::{Path, PathBuf};

use hafen_integration::{Case, Test, cases, json};

use super::collect::Mounted;
use super::facts::{assert_same, facts};
use super::import;
use super::made::{Layer, Tar, layout};

pub(super) fn trials() -> Vec<Case> {
    cases![layers_are_as_umoci_unpacks_them(Root, Program("umoci"), FileSystem("overlay"))]
}

/// cap_net_bind_service=ep (capabilities(7), VFS_CAP_REVISION_2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CAPABLE: (&str, &[u8]) = ("SCHILY.xattr.security.capability", &CAPABILITY);

fn long() -> String {
    format!("d/{}/{}", "long".repeat(50), "name".repeat(60))
}

/// 5 MiB, of which 6 bytes in the middle are there (GNU tar, "PAX Format, Version 1.0").
fn sparse(tar: Tar) -> Tar {
    let mut content = b"1\n1048576\n6\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(b"middle");
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"d/sparse"),
        ("GNU.sparse.realsize", b"5242880"),
    ];
    tar.pax(&records).file("d/GNUSparseFile.0/sparse", content)
}

fn low() -> Tar {
    let tar = Tar::new()
        .folder("./")
        .pax(&[("mtime", b"1500000000.25")])
        .folder("d/")
        .file("d/kept", "low")
        .file("d/removed", "low")
        .file("d/replaced", "low")
        .of(0o4755, 33, 34)
        .file("d/set-id", "low")
        .pax(&[CAPABLE])
        .file("d/capable", "low")
        .pax(&[("SCHILY.xattr.user.a", b"low")])
        .file("d/attribute", "low")
        .null("d/null")
        .symlink("d/link", "kept")
        .link("d/kept-too", "d/kept");
    let far = long();
    let (folder, _) = far.rsplit_once('/').expect("a folder");
    let tar = sparse(tar).pax(&[("path", folder.as_bytes())]).folder("folder/");
    let tar = tar.pax(&[("path", far.as_bytes())]).file("long", "low");
    tar.folder("o/")
        .file("o/hidden", "low")
        .folder("gone/")
        .file("gone/inside", "low")
        .file("file-then-folder", "low")
        .folder("folder-then-link/")
        .file("folder-then-link/inside", "low")
        .folder("folder-then-file/")
        .file("folder-then-file/inside", "low")
        .symlink("link-then-folder", "d")
        .of(0o1711, 7, 8)
        .pax(&[("mtime", b"1400000000.125"), ("SCHILY.xattr.user.f", b"low")])
        .folder("described/")
        .file("described/low", "low")
}

fn middle() -> Tar {
    Tar::new()
        .of(0o2750, 3, 4)
        .pax(&[("mtime", b"1600000000.75")])
        .folder("d/")
        .file("d/.wh.removed", "")
        .file("d/replaced", "middle")
        .link("d/same", "d/kept")
        .link("capable-too", "d/capable")
        .link("far", "described/low")
        .folder("o/")
        .file("o/.wh..wh..opq", "")
        .file("o/new", "middle")
        .file(".wh.gone", "")
        .folder("file-then-folder/")
        .file("file-then-folder/inside", "middle")
        .symlink("folder-then-link", "d")
        .of(0o600, 5, 6)
        .file("folder-then-file", "middle")
        .folder("link-then-folder/")
        .file("link-then-folder/inside", "middle")
        .pax(&[("path", format!("{}-2", long()).as_bytes())])
        .file("long", "middle")
}

fn high() -> Tar {
    Tar::new()
        .file("d/.wh.replaced", "")
        .link("top-same", "d/same")
        .file("o/.wh.new", "")
        .file("o/last", "high")
        .folder("gone/")
        .file("gone/again", "high")
        .file("file-then-folder", "high")
        .file("described/high", "high")
        .of(0o700, 9, 9)
        .folder("link-then-folder/")
        .file("d/.wh.kept-too", "")
}

/// The folders of an image's layers, the topmost first.
fn layers(t: &Test, name: &str) -> Vec<PathBuf> {
    let inspected = t.hafen(["image", "inspect", name]).output().ok().json();
    let all = inspected["layers"].as_array().expect("layers").iter().rev();
    let chain = all.map(|layer| layer["chainId"].as_str().expect("a digest").replace(':', "-"));
    chain.map(|id| t.images().join("layers").join(id).join("fs")).collect()
}

fn layers_are_as_umoci_unpacks_them(t: &Test) {
    let made: Vec<Layer> = [low(), middle(), high()].map(|tar| tar.layer().gzip()).into();
    let layout = layout(t, "box", &made, &json!({}));
    import(t, &layout).ok();
    let bundle = t.dir().join("umoci");
    let image = format!("{}:made", layout.display());
    t.program("umoci", ["unpack", "--image", &image, &bundle.display().to_string()]).output().ok();
    let merged = t.dir().join("merged");
    let layers = layers(t, "localhost/box:made");
    let _mounted = Mounted::layers(&layers, &merged);
    let (ours, mut theirs) = (facts(&merged), facts(&bundle.join("rootfs")));
    assert!(ours.len() > 25, "{} files", ours.len());
    // A layer that links to a name below copies it, and other names of that file, which it does not mention, stay with the
    // old one, as in any overlay without an index; umoci has one folder for all layers.
    for name in ["d/same", "top-same"] {
        let fact = theirs.get_mut(Path::new(name)).expect("a file");
        *fact = fact.strip_suffix(" d/kept").expect("one file with d/kept").to_owned() + " d/same";
    }
    assert_same(&ours, &theirs);
}
