use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::failure::chain;

const MOST: u64 = 1 << 20;

fn sha(content: &[u8]) -> String {
    to_hex(&Sha256::digest(content))
}

fn artifact(source: &str, sha256: &str) -> v1::Artifact {
    v1::Artifact {
        source: source.to_owned(),
        destination: "/srv/artifact".to_owned(),
        sha256: sha256.to_owned(),
        ..v1::Artifact::default()
    }
}

/// One answer to each connection.
async fn serve(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    format!("http://{address}")
}

fn ok(content: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len()).into_bytes();
    answer.extend_from_slice(content);
    answer
}

/// A place to fetch to, of which nothing else may be left.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("it")
    }

    fn names(&self) -> Vec<String> {
        let name =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(self.0.path()).unwrap().map(name).collect()
    }

    async fn fetch(&self, artifact: &v1::Artifact) -> Result<(), String> {
        let fetcher = Fetcher::new(MOST).unwrap();
        fetcher.fetch(artifact, &self.path()).await.map_err(|e| chain(&e))
    }

    /// From a file of the node.
    async fn unpack(&self, name: &str, content: &[u8]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        self.fetch(&artifact(&format!("file://{}", path.display()), "")).await
    }

    async fn refuse(&self, name: &str, content: &[u8], says: &str) {
        let error = self.unpack(name, content).await.unwrap_err();
        assert!(error.contains(says), "{error}");
        assert_eq!(self.names(), [""; 0], "{error}");
    }
}

#[test]
fn errors_name_the_artifact_and_the_field() {
    let good = sha(b"");
    for (bad, says) in [
        (artifact("ftp://x/y", &good), "a.source: \"ftp\" is none of"),
        (artifact("no url", &good), "a.source: "),
        (artifact("https://u:secret@x/y?sign=z", ""), "a.sha256: is required"),
        (artifact("http://x/y", "abc"), "a.sha256: must be 64"),
        (artifact("file://elsewhere/y", ""), "a.source: must be"),
        (
            v1::Artifact { destination: "a/b".to_owned(), ..artifact("file:///y", "") },
            "a.destination: ",
        ),
        (
            v1::Artifact { destination: "/a/../b".to_owned(), ..artifact("file:///y", "") },
            "a.destination: ",
        ),
    ] {
        let problem = problem("a", &bad).unwrap().to_string();
        assert!(problem.starts_with(says) && !problem.contains("secret"), "{problem}");
    }
    assert_eq!(problem("a", &artifact("file:///y", "")), None);
}

#[test]
fn what_is_unpacked_is_known_by_its_name() {
    for (name, kind) in [
        ("/a.tar", Unpack::Tar),
        ("/a.TGZ", Unpack::Tar),
        ("/a.tar.zst", Unpack::Tar),
        ("/a.zip", Unpack::Zip),
        ("/a.gz", Unpack::None),
    ] {
        assert_eq!(by_name(name), kind, "{name}");
    }
}

#[tokio::test]
async fn what_is_fetched_is_what_was_asked_for() {
    let place = Place::new();
    let url = serve(ok(b"content")).await;
    place.fetch(&artifact(&format!("{url}/a"), &sha(b"content"))).await.unwrap();
    assert_eq!(fs::read(place.path()).unwrap(), b"content");
    let other = artifact(&format!("{url}/a"), &sha(b"other"));
    let error = place.fetch(&other).await.unwrap_err();
    assert!(error.contains(&sha(b"content")) && error.contains(&sha(b"other")), "{error}");
    // What was there is there still.
    assert_eq!(place.names(), ["it"]);
    let again = serve(ok(b"new")).await;
    place.fetch(&artifact(&again, &sha(b"new"))).await.unwrap();
    assert_eq!(fs::read(place.path()).unwrap(), b"new");
}

#[tokio::test]
async fn nothing_is_left_of_what_fails() {
    let place = Place::new();
    let small = |url: &str| v1::Artifact { max_bytes: 4, ..artifact(url, &sha(b"content")) };
    let says = "it has more than 4 bytes";
    let error = place.fetch(&small(&serve(ok(b"content")).await)).await.unwrap_err();
    assert!(error.contains(says), "{error}");
    // Without a length: it is counted.
    let endless = serve(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ncontent".to_vec()).await;
    let error = place.fetch(&small(&endless)).await.unwrap_err();
    assert!(error.contains(says), "{error}");
    let broken = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncontent".to_vec()).await;
    let error = place.fetch(&artifact(&broken, &sha(b"content"))).await.unwrap_err();
    assert!(error.contains("fetch it: "), "{error}");
    let missing = serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
    let error = place.fetch(&artifact(&missing, &sha(b""))).await.unwrap_err();
    assert!(error.contains("HTTP status 404"), "{error}");
    assert_eq!(place.names(), [""; 0]);
}

#[tokio::test]
async fn what_another_process_left_is_removed() {
    let place = Place::new();
    let folder = place.0.path().join(".it.1-0.part");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("x"), "").unwrap();
    fs::write(place.0.path().join(".it.2-7.part"), "").unwrap();
    fs::write(place.0.path().join(".item.2-7.part"), "").unwrap();
    place.unpack("a.bin", b"content").await.unwrap();
    let mut names = place.names();
    names.sort();
    assert_eq!(names, [".item.2-7.part", "it"]);
}

#[tokio::test]
async fn files_of_the_node_are_copied() {
    let place = Place::new();
    place.unpack("a.bin", b"content").await.unwrap();
    assert_eq!(fs::read(place.path()).unwrap(), b"content");
    let error = place.fetch(&artifact("file:///dev/zero", "")).await.unwrap_err();
    assert!(error.contains("/dev/zero is no file"), "{error}");
    let error = place.fetch(&artifact("file:///nowhere/a", "")).await.unwrap_err();
    assert!(error.contains("open /nowhere/a: "), "{error}");
}

fn zip_of(entries: &[(&str, &[u8], u32)], links: &[(&str, &str)]) -> Vec<u8> {
    use zip::write::SimpleFileOptions;
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, content, mode) in entries {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        archive.start_file(*name, options).unwrap();
        archive.write_all(content).unwrap();
    }
    for (name, target) in links {
        archive.add_symlink(*name, *target, SimpleFileOptions::default()).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[tokio::test]
async fn zips_are_unpacked() {
    let place = Place::new();
    let zip =
        zip_of(&[("bin/tool", b"#!", 0o755), ("readme", b"hello", 0o644)], &[("run", "bin/tool")]);
    place.unpack("a.zip", &zip).await.unwrap();
    let mode =
        |name: &str| fs::metadata(place.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(["", "bin", "bin/tool", "readme"].map(mode), [0o755, 0o755, 0o755, 0o644]);
    let files: BTreeMap<&str, Vec<u8>> = ["bin/tool", "readme", "run"]
        .map(|name| (name, fs::read(place.path().join(name)).unwrap()))
        .into();
    assert_eq!(files["run"], b"#!");
    assert_eq!(files["readme"], b"hello");
    assert_eq!(place.names(), ["it"]);
}

#[tokio::test]
async fn hostile_zips_are_refused() {
    let place = Place::new();
    place.refuse("a.zip", &zip_of(&[("../x", b"", 0o644)], &[]), "leads out of the artifact").await;
    place.refuse("a.zip", &zip_of(&[], &[("a", "/etc")]), "out of the artifact").await;
    place.refuse("a.zip", &zip_of(&[], &[("b/a", "../../x")]), "out of the artifact").await;
    place.refuse("a.zip", &zip_of(&[("a/x", b"", 0o644)], &[("a", ".")]), "File exists").await;
    place.refuse("a.zip", b"no zip", "it is no zip").await;
    let large = vec![0; usize::try_from(MOST).unwrap() + 1];
    place.refuse("a.zip", &zip_of(&[("a", &large, 0o644)], &[]), "more than 1048576 bytes").await;
}
