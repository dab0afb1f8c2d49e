//! Images that lie, or lead out.

use std::fs;

use hafen_integration::{Case, Output, Test, cases, json};

use super::import;
use super::made::{Layer, PLAIN, Tar, digest, layout};

pub(super) fn trials() -> Vec<Case> {
    cases![
        entries_that_lead_out(Root, Busybox),
        what_the_kernel_would_take_for_its_own(Root, Busybox),
        digests_that_are_wrong(Root, Busybox),
        documents_that_are_wrong(Root, Busybox),
        more_than_was_allowed(Root, Busybox),
        links_to_much_of_a_lower_layer(Root, Busybox),
        layouts_that_lead_out(Root, Busybox),
    ]
}

/// It is refused with these words, and nothing of it has a name or a place.
fn refused(t: &Test, layers: &[Layer], words: &[&str]) {
    let folder = layout(t, "hostile", layers, &json!({}));
    assert_refused(t, &import(t, &folder), words);
    fs::remove_dir_all(folder).expect("removed");
}

fn assert_refused(t: &Test, output: &Output, words: &[&str]) {
    output.error_with(words.iter().copied());
    let count = |folder: &str| fs::read_dir(t.images().join(folder)).map_or(0, Iterator::count);
    assert_eq!((count("layers"), count("refs"), count("tmp")), (0, 0, 0), "{words:?}");
    // What was whole is taken from the store otherwise.
    t.hafen(["image", "prune"]).output().ok();
}

fn entries_that_lead_out(t: &Test) {
    let outside = t.dir().join("outside");
    fs::write(&outside, "kept").expect("written");
    let link = outside.display().to_string();
    refused(t, &[Tar::new().file("../escaped", "x").layer()], &["../escaped"]);
    refused(t, &[Tar::new().file("a/../../escaped", "x").layer()], &["escaped"]);
    refused(t, &[Tar::new().link("hard", "../../outside").layer()], &["hard"]);
    let through = Tar::new().symlink("link", "/").file("link/etc/passwd", "x");
    refused(t, &[through.layer()], &["link"]);
    let through =
        Tar::new().symlink("link", &t.dir().display().to_string()).file("link/outside", "x");
    refused(t, &[through.layer()], &["link"]);
    let over = Tar::new().symlink("file", &link).file("file", "inside");
    let folder = layout(t, "over", &[over.layer()], &json!({}));
    import(t, &folder).ok();
    assert_eq!(fs::read(&outside).expect("a file"), b"kept");
    // A leading slash is the layer's own top.
    import(
        t,
        &layout(t, "absolute", &[Tar::new().file("/hafen-absolute", "x").layer()], &json!({})),
    )
    .ok();
    assert!(!std::path::Path::new("/hafen-absolute").exists());
}

fn what_the_kernel_would_take_for_its_own(t: &Test) {
    for name in [".wh.", ".wh..", "d/.wh..."] {
        refused(t, &[Tar::new().file(name, "").layer()], &[name]);
    }
}

fn digests_that_are_wrong(t: &Test) {
    let honest = Tar::new().file("a", "a").layer();
    let other = Layer { diff_id: digest(b"other"), ..honest.clone() };
    refused(t, &[other], &["digest", &digest(b"other")]);
    let folder = layout(t, "hostile", std::slice::from_ref(&honest), &json!({}));
    super::made::put(&folder, &digest(&honest.packed), &vec![0; honest.packed.len()]);
    assert_refused(t, &import(t, &folder), &["digest", &digest(&honest.packed)]);
    super::made::put(&folder, &digest(&honest.packed), b"short");
    assert_refused(t, &import(t, &folder), &["bytes"]);
    fs::remove_dir_all(&folder).expect("removed");
    let torn = Layer { packed: honest.packed[..700].to_vec(), ..honest.clone() };
    refused(t, &[torn], &["a"]);
    let packed = honest.clone().gzip();
    let torn = Layer { packed: packed.packed[..packed.packed.len() / 2].to_vec(), ..packed };
    refused(t, &[torn], &["layer"]);
    let not_packed = Layer { media_type: super::made::GZIP.to_owned(), ..honest };
    refused(t, &[not_packed], &["layer"]);
}

fn documents_that_are_wrong(t: &Test) {
    let foreign = Layer { media_type: "application/x-executable".into(), ..Tar::new().layer() };
    refused(t, &[foreign], &["layers[0].mediaType", "application/x-executable"]);
    let folder = layout(t, "hostile", &[Tar::new().file("a", "a").layer()], &json!({}));
    for (text, words) in [
        ("{", &["index.json", "JSON"][..]),
        (r#"{"schemaVersion":2}"#, &["index.json", "manifests"]),
        (
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../etc/passwd","size":1}]}"#,
            &["digest"],
        ),
        (
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"text/html","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#,
            &["e3b0c442"],
        ),
    ] {
        fs::write(folder.join("index.json"), text).expect("written");
        assert_refused(t, &import(t, &folder), words);
    }
    fs::remove_file(folder.join("oci-layout")).expect("removed");
    assert_refused(t, &import(t, &folder), &["oci-layout"]);
    let two = Layer { media_type: PLAIN.into(), ..Tar::new().file("a", "a").layer() };
    let mut config = layout(t, "few", &[two], &json!({}));
    config.push("index.json");
    let missing = t.dir().join("no/such/file");
    assert_refused(t, &import(t, &missing), &["no/such/file"]);
}

fn more_than_was_allowed(t: &Test) {
    let bomb = Tar::new().file("zeros", vec![0; 8 << 20]).layer().gzip();
    let folder = layout(t, "bomb", &[bomb], &json!({}));
    let folder = folder.display().to_string();
    let with =
        |option: &str, most: &str| t.hafen(["image", "import", option, most, &folder]).output();
    assert_refused(t, &with("--max-bytes", "1000000"), &["zeros", "1000000"]);
    let many = (0..100).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), ""));
    let folder = layout(t, "many", &[many.layer()], &json!({})).display().to_string();
    let with =
        |option: &str, most: &str| t.hafen(["image", "import", option, most, &folder]).output();
    assert_refused(t, &with("--max-entries", "50"), &["f50", "50"]);
    with("--max-entries", "100").ok();
}

/// A small stream, and copies of as much as a lower layer has.
fn links_to_much_of_a_lower_layer(t: &Test) {
    let large = vec![1; 1_000_000];
    let names: Vec<String> = (0..8).map(|n| format!("{n}")).collect();
    let low = names.iter().fold(Tar::new(), |tar, n| tar.file(&format!("d{n}/large"), &large));
    let own = Tar::new().file("own", &large[..500_000]);
    let links = names.iter().fold(own, |tar, n| tar.link(&format!("l{n}"), &format!("d{n}/large")));
    let folder = layout(t, "links", &[low.layer(), links.layer()], &json!({}));
    let folder = folder.display().to_string();
    let with =
        |option: &str, most: &str| t.hafen(["image", "import", option, most, &folder]).output();
    with("--max-bytes", "8100000").error_with(["l7: the layer has more than 8100000 bytes"]);
    // 9 of the stream; each of the links takes a folder and a file.
    with("--max-entries", "20").error_with(["l5: the layer has more than 20 entries"]);
    assert_eq!(fs::read_dir(t.images().join("refs")).expect("a folder").count(), 0);
    assert_eq!(fs::read_dir(t.images().join("tmp")).expect("a folder").count(), 0);
    with("--max-bytes", "8500000").ok();
    t.hafen(["image", "rm", "localhost/links:made"]).output().ok();
    with("--max-entries", "25").ok();
}

fn layouts_that_lead_out(t: &Test) {
    let layer = Tar::new().file("a", "a").layer();
    let folder = layout(t, "hostile", std::slice::from_ref(&layer), &json!({}));
    let blob = folder.join("blobs").join(digest(&layer.packed).replace(':', "/"));
    let outside = t.dir().join("outside");
    fs::rename(&blob, &outside).expect("moved");
    std::os::unix::fs::symlink(&outside, &blob).expect("a link");
    assert_refused(t, &import(t, &folder), &[&digest(&layer.packed)[7..20]]);
}
