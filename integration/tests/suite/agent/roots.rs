//! What tasks stand on, and what is put there for them: images, folders, volumes, secrets, artifacts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hafen_integration::{Case, Test, Value, cases, json};

use super::{Node, exit_code, sentence};
use crate::images::made;

pub(super) fn trials() -> Vec<Case> {
    cases![
        the_nodes_own_root(Root, Busybox),
        a_folder(Root, Busybox, FileSystem("overlay")),
        an_image(Root, Busybox, FileSystem("overlay")),
        nothing_can_be_written(Root, Busybox),
        volumes_and_tmpfs(Root, Busybox),
        secrets_are_in_memory_only(Root, Busybox),
        secrets_outlive_the_agent_and_go_with_the_task(Root, Busybox),
        artifacts_are_fetched(Root, Busybox),
        artifacts_that_are_wrong(Root, Busybox),
        network_of_none_and_of_the_node(Root, Busybox),
    ]
}

/// Runs it to its end; the answer is what it wrote.
fn output(node: &Node<'_>, spec: &Value) -> String {
    let id = node.run(spec)["id"].as_str().expect("an id").to_owned();
    let task = node.wait(&id);
    assert_eq!(exit_code(&task), Some(0), "{task:#}\n{}", node.logs(&id));
    node.logs(&id)
}

fn the_nodes_own_root(t: &Test) {
    let node = Node::new(t);
    let mark = t.dir().join("mark");
    fs::write(&mark, "of the node").expect("written");
    let script = format!("cat {}; echo new > {0}.new 2>/dev/null || echo refused", mark.display());
    let spec = json!({ "id": "a", "root": { "host": true }, "command": ["/bin/sh", "-c", script] });
    assert!(output(&node, &spec).starts_with("of the node"));
    assert!(!Path::new(&format!("{}.new", mark.display())).exists(), "the node's own is only read");
}

fn a_folder(t: &Test) {
    let node = Node::new(t);
    assert_eq!(output(&node, &node.sh("a", "echo x > /new && cat /new")), "x\n");
    assert!(!node.rootfs.join("new").exists(), "the folder is only read");
    let missing =
        json!({ "id": "b", "root": { "rootfs": "/no/such/folder" }, "command": ["true"] });
    node.run(&missing);
    let task = node.wait("b");
    assert_eq!(task["state"], "STATE_ERROR", "{task:#}");
    assert_eq!(task["reason"]["kind"], "KIND_NOT_LAUNCHED");
    assert!(sentence(&task).contains("/no/such/folder"), "{task:#}");
}

fn an_image(t: &Test) {
    let node = Node::new(t);
    let config = json!({ "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["trap 'exit 9' USR2; echo $A; while :; do sleep 0.05; done"],
                         "Env": ["PATH=/bin", "A=image"], "StopSignal": "SIGUSR2" });
    let layout = made::layout(t, "box", &[made::busybox(t)], &config);
    t.hafen(["image".as_ref(), "import".as_ref(), layout.as_os_str()]).output().ok();
    node.run(&json!({ "id": "a", "root": { "image": "localhost/box:made" } }));
    node.wait_for("a", "wrote", |_| node.hafen(["logs", "a"]).stdout == "image\n");
    node.hafen(["stop", "a"]).ok();
    assert_eq!(exit_code(&node.task("a")), Some(9), "the image says which signal stops it");
    let run =
        ["run", "--name", "b", "-e", "A=mine", "localhost/box:made", "sleep 0.1; echo $A; exit 3"];
    node.hafen(run).code(3);
    assert_eq!(node.logs("b"), "mine\n");
    let never =
        json!({ "id": "c", "root": { "image": "localhost/none:made", "pull": "PULL_NEVER" } });
    node.run(&never);
    let task = node.wait("c");
    assert_eq!(task["reason"]["kind"], "KIND_NOT_STAGED", "{task:#}");
    assert!(
        sentence(&task).contains("localhost/none:made")
            && sentence(&task).contains("hafen image pull"),
        "{task:#}"
    );
}

fn nothing_can_be_written(t: &Test) {
    let node = Node::new(t);
    let mut spec =
        node.sh("a", "echo x > /new || echo refused; echo y > /dev/shm/y && echo written");
    spec["root"]["readOnly"] = json!(true);
    let said = output(&node, &spec);
    assert!(said.contains("refused"), "{said}");
    assert!(!node.rootfs.join("new").exists());
}

fn volumes_and_tmpfs(t: &Test) {
    let node = Node::new(t);
    let mut spec = node.sh(
        "a",
        "echo kept > /data/f; mount | grep ' /mem '; cat /host/h; echo x > /host/h || echo refused",
    );
    let host = t.dir().join("shown");
    fs::create_dir(&host).expect("mkdir");
    fs::write(host.join("h"), "host\n").expect("written");
    spec["mounts"] = json!([{ "volume": "vol", "destination": "/data" }, { "tmpfs": 1 << 20, "destination": "/mem" },
                            { "host": host, "destination": "/host", "options": ["ro"] }]);
    let said = output(&node, &spec);
    assert!(
        said.contains("size=1024k") && said.contains("host\n") && said.contains("refused"),
        "{said}"
    );
    let mut again = node.sh("b", "cat /data/f");
    again["mounts"] = json!([{ "volume": "vol", "destination": "/data" }]);
    assert_eq!(output(&node, &again), "kept\n");
}

/// base64 of `hunter2-of-the-test`.
const SECRET: &str = "aHVudGVyMi1vZi10aGUtdGVzdA==";
const PLAIN: &str = "hunter2-of-the-test";

fn with_secret(node: &Node<'_>, id: &str, script: &str) -> Value {
    let mut spec = node.sh(id, script);
    spec["secrets"] = json!([
        { "destination": "/run/secrets/a", "content": SECRET, "mode": 0o440, "uid": 1000, "gid": 2000 },
        { "destination": "/etc/token", "content": SECRET }
    ]);
    spec
}

/// Files below a folder that hold the secret.
fn with_the_secret(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            found.extend(with_the_secret(&path));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            if text.contains(PLAIN) || text.contains(SECRET) {
                found.push(path);
            }
        }
    }
    found
}

fn secrets_are_in_memory_only(t: &Test) {
    let node = Node::new(t);
    let script = "stat -c '%a %u %g' /run/secrets/a /etc/token; sha256sum < /etc/token; \
                  echo x > /etc/token || echo refused; exec sleep 1000";
    node.run(&with_secret(&node, "a", script));
    node.wait_for("a", "wrote", |_| node.hafen(["logs", "a"]).stdout.contains("refused"));
    let said = node.hafen(["logs", "a"]).ok().stdout;
    assert!(said.starts_with("440 1000 2000\n400 0 0\n"), "{said}");
    assert!(said.contains(made::digest(PLAIN.as_bytes()).trim_start_matches("sha256:")), "{said}");
    assert_eq!(with_the_secret(&node.state()), Vec::<PathBuf>::new());
    let places = with_the_secret(&node.run_folder());
    assert_eq!(places.len(), 2, "{places:?}");
    for place in places {
        let folder = place.parent().expect("a folder");
        assert_eq!(
            fs::metadata(folder).expect("about").mode() & 0o77,
            0,
            "others may not enter {}",
            folder.display()
        );
    }
    let task = node.task("a");
    assert!(!task.to_string().contains(SECRET) && !task.to_string().contains(PLAIN), "{task:#}");
    assert_eq!(task["spec"]["secrets"][0]["destination"], "/run/secrets/a");
    assert!(!node.said().contains(PLAIN));
}

fn secrets_outlive_the_agent_and_go_with_the_task(t: &Test) {
    let mut node = Node::new(t);
    let script = "until [ -e /tmp/go ]; do sleep 0.02; done; grep -c hunter2 /etc/token; exit 1";
    let mut spec = with_secret(&node, "a", script);
    spec["restart"] = json!({ "when": "WHEN_ON_FAILURE", "most": 1, "backOff": "0.05s" });
    node.run(&spec);
    node.wait_state("a", "STATE_RUNNING");
    node.kill9();
    node.restart();
    for attempt in 1..=2 {
        node.wait_for("a", "ran", |task| {
            task["attempt"] == attempt && task["state"] == "STATE_RUNNING"
        });
        node.hafen(["exec", "a", "/bin/touch", "/tmp/go"]).ok();
    }
    let task = node.wait("a");
    assert_eq!(node.logs("a"), "1\n1\n", "{task:#}");
    let folder = node.run_folder();
    let gone = hafen_integration::wait_until(std::time::Duration::from_secs(5), || {
        with_the_secret(&folder).is_empty().then_some(())
    });
    assert!(gone.is_some(), "{:?}", with_the_secret(&folder));
}

/// Serves one folder over HTTP, for as long as the test runs.
pub(super) fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            let _ =
                lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
            let path = first.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let _ = match fs::read(folder.join(path)) {
                Ok(bytes) => write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    bytes.len()
                )
                .and_then(|()| stream.write_all(&bytes)),
                Err(_) => stream.write_all(
                    b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                ),
            };
        }
    });
    format!("http://{address}")
}

pub(super) fn sha256(path: &Path) -> String {
    made::digest(&fs::read(path).expect("read")).trim_start_matches("sha256:").to_owned()
}

/// A folder with a file, and an archive of another one.
fn offered(t: &Test) -> PathBuf {
    let folder = t.dir().join("offered");
    fs::create_dir(&folder).expect("mkdir");
    fs::write(folder.join("plain"), "plain artifact\n").expect("written");
    let archive = made::Tar::new().folder("d/").file("d/f", "from a tar\n").layer().gzip();
    fs::write(folder.join("some.tar.gz"), archive.packed).expect("written");
    // Stored, not compressed (APPNOTE.TXT of the zip format, sections 4.3.7, 4.3.12 and 4.3.16).
    fs::write(folder.join("some.zip"), zip("z/f", b"from a zip\n")).expect("written");
    folder
}

fn zip(name: &str, content: &[u8]) -> Vec<u8> {
    let (length, sum) = (u32::try_from(content.len()).expect("small"), crc32(content));
    let name_length = u16::try_from(name.len()).expect("small");
    // Version 1.0, no flags, stored, no time.
    let mut about: Vec<u8> = [10_u16, 0, 0, 0, 0x21].iter().flat_map(|n| n.to_le_bytes()).collect();
    about.extend([sum, length, length].iter().flat_map(|n| n.to_le_bytes()));
    about.extend(name_length.to_le_bytes());
    about.extend([0, 0]);
    let mut all = b"PK\x03\x04".to_vec();
    all.extend(&about);
    all.extend(name.as_bytes());
    all.extend(content);
    let start = u32::try_from(all.len()).expect("small");
    all.extend(b"PK\x01\x02");
    // Made on Unix.
    all.extend([10, 3]);
    all.extend(&about);
    all.extend([0; 6]);
    all.extend((0o100_644_u32 << 16).to_le_bytes());
    all.extend(0_u32.to_le_bytes());
    all.extend(name.as_bytes());
    let size = u32::try_from(all.len()).expect("small") - start;
    all.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    all.extend([size, start].iter().flat_map(|n| n.to_le_bytes()));
    all.extend([0, 0]);
    all
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0_u32, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

fn artifacts_are_fetched(t: &Test) {
    let node = Node::new(t);
    let folder = offered(t);
    let server = serve(&folder);
    let mut spec = node.sh(
        "a",
        "cat /in/plain /in/file /in/tar/d/f /in/zip/z/f; echo x > /in/plain || echo refused",
    );
    let http = |name: &str, to: &str| json!({ "source": format!("{server}/{name}"), "destination": to, "sha256": sha256(&folder.join(name)) });
    spec["artifacts"] = json!([
        http("plain", "/in/plain"),
        { "source": format!("file://{}", folder.join("plain").display()), "destination": "/in/file" },
        http("some.tar.gz", "/in/tar"),
        http("some.zip", "/in/zip"),
    ]);
    node.run(&spec);
    let task = node.wait("a");
    let said = node.logs("a");
    assert!(
        said.starts_with("plain artifact\nplain artifact\nfrom a tar\nfrom a zip\n"),
        "{said}{task:#}"
    );
    assert!(said.contains("refused"), "{said}");
}

fn artifacts_that_are_wrong(t: &Test) {
    let node = Node::new(t);
    let folder = offered(t);
    let server = serve(&folder);
    let plain = sha256(&folder.join("plain"));
    let fails = |id: &str, artifact: Value, words: &[&str]| {
        let (mut spec, file) = node.with_file(node.sh(id, "echo ran >> /out"), id);
        spec["artifacts"] = json!([artifact]);
        node.run(&spec);
        let task = node.wait(id);
        assert_eq!(task["reason"]["kind"], "KIND_NOT_STAGED", "{task:#}");
        for word in words {
            assert!(sentence(&task).contains(word), "{word}: {task:#}");
        }
        assert_eq!(fs::read_to_string(file).expect("read"), "", "it ran");
    };
    let source = format!("{server}/plain");
    let other = "0".repeat(64);
    fails(
        "digest",
        json!({ "source": source, "destination": "/a", "sha256": other }),
        &["SHA-256", &plain, &other],
    );
    fails(
        "large",
        json!({ "source": source, "destination": "/a", "sha256": plain, "maxBytes": 5 }),
        &["more than 5 bytes"],
    );
    fails(
        "none",
        json!({ "source": format!("{server}/none"), "destination": "/a", "sha256": plain }),
        &["404"],
    );
    fails(
        "absent",
        json!({ "source": "file:///no/such/file", "destination": "/a" }),
        &["/no/such/file"],
    );
    fails(
        "broken",
        json!({ "source": source, "destination": "/a", "sha256": plain, "unpack": "UNPACK_ZIP" }),
        &["unpack"],
    );
    let mut spec = node.sh("b", "true");
    spec["artifacts"] = json!([{ "source": source, "destination": "/a" }]);
    let answer = node.http("POST", "/v1/tasks", &spec.to_string());
    assert!(answer.status == 400 && answer.body.contains("sha256"), "{answer:?}");
}

fn network_of_none_and_of_the_node(t: &Test) {
    let node = Node::new(t);
    let script = "readlink /proc/self/ns/net; hostname; ls /sys/class/net 2>/dev/null; exit 0";
    let mut own = node.sh("own", script);
    own["network"] = json!({ "mode": "MODE_NONE" });
    let mut host = node.sh("host", script);
    host["network"] = json!({ "mode": "MODE_HOST", "hosts": { "friend.test": "192.0.2.7" } });
    host["command"][2] = json!("readlink /proc/self/ns/net; grep friend /etc/hosts");
    let ours = fs::read_link("/proc/self/ns/net").expect("a link").display().to_string();
    let said = output(&node, &own);
    assert!(!said.contains(&ours) && said.lines().nth(1) == Some("own"), "{said}");
    let said = output(&node, &host);
    assert!(
        said.starts_with(&ours) && said.contains("192.0.2.7") && said.contains("friend.test"),
        "{said}"
    );
}
