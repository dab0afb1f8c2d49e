//! Images from registries: Debian's, and one that is in trouble.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Case, Output, Running, Test, cases, json, wait_until};
use nix::sys::signal::Signal;

use super::made::{Tar, architecture, busybox, digest, layout};
use super::server::{Asked, Fault, Server};
use super::store::largest;
use super::{import, run};

pub(super) fn trials() -> Vec<Case> {
    cases![
        a_pull_is_run(
            Root,
            Busybox,
            Program("docker-registry"),
            Program("skopeo"),
            FileSystem("overlay")
        ),
        with_a_password(
            Root,
            Busybox,
            Program("docker-registry"),
            Program("skopeo"),
            Program("htpasswd")
        ),
        over_tls_with_an_authority_of_its_own(
            Root,
            Busybox,
            Program("docker-registry"),
            Program("skopeo"),
            Program("openssl")
        ),
        without_authorities(Root, Busybox),
        a_push_is_read_by_others(Root, Busybox, Program("docker-registry"), Program("skopeo")),
        an_index_is_pushed_as_far_as_it_is_here(
            Root,
            Busybox,
            Program("docker-registry"),
            Program("skopeo")
        ),
        what_is_wrong_is_fetched_again(
            Root,
            Busybox,
            Program("docker-registry"),
            Program("skopeo"),
            FileSystem("overlay")
        ),
        what_came_from_a_file_cannot_be_fetched(Root, Busybox),
        a_connection_that_breaks_is_taken_up(Root, Busybox),
        trouble_that_passes(Root, Busybox),
        trouble_that_stays(Root, Busybox),
        a_connection_that_stalls(Root, Busybox),
        a_registry_that_lies(Root, Busybox),
        many_pulls_of_one_image_at_once(Root, Busybox),
        mirrors_are_asked_first(Root, Busybox),
        an_index_of_platforms(Root, Busybox),
        a_pull_that_is_killed(Root, Busybox),
        what_a_killed_pull_has_is_kept(Root, Busybox, FileSystem("overlay")),
        a_kept_part_that_is_torn(Root, Busybox),
        a_kept_part_without_ranges(Root, Busybox),
    ]
}

/// The layers are large enough for connections to break in.
fn image(t: &Test) -> PathBuf {
    let noise: Vec<u8> =
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let layers = [busybox(t), Tar::new().file("noise", noise).layer()];
    layout(t, "image", &layers, &json!({ "Cmd": ["/bin/echo", "pulled"], "Env": ["PATH=/bin"] }))
}

fn pull(t: &Test, host: &str, words: &[&str]) -> Output {
    let image = format!("{host}/me/box:1");
    t.hafen([&["image", "pull", "--plain-http", host], words, &[&image]].concat()).output()
}

fn nothing_is_named(t: &Test) {
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    assert_eq!(list, json!([]));
    t.hafen(["image", "prune"]).output().ok();
    let blobs = fs::read_dir(t.images().join("blobs/sha256")).expect("a folder").count();
    assert_eq!(blobs, 0);
}

/// Debian's registry, on a port of its own.
struct Registry {
    host: String,
    running: Option<Running>,
}

impl Registry {
    fn start(t: &Test, more: &str) -> Self {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let host = format!("127.0.0.1:{port}");
        let config = t.dir().join("registry.yml");
        let storage = t.dir().join("registry");
        let text = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp:\n  addr: {host}\n{more}",
            storage.display()
        );
        fs::write(&config, text).expect("written");
        let running =
            t.program("docker-registry", ["serve", &config.display().to_string()]).spawn();
        let up = || std::net::TcpStream::connect(&host).ok();
        assert!(wait_until(Duration::from_secs(20), up).is_some(), "the registry does not answer");
        Self { host, running: Some(running) }
    }

    fn push(&self, t: &Test, layout: &Path, words: &[&str]) {
        let from = format!("oci:{}:made", layout.display());
        let to = format!("docker://{}/me/box:1", self.host);
        let all = ["--insecure-policy", "copy"].into_iter().chain(words.iter().copied());
        t.program("skopeo", all.chain([from.as_str(), &to])).output().ok();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::SIGKILL);
            let _ = running.wait();
        }
    }
}

fn a_pull_is_run(t: &Test) {
    let registry = Registry::start(t, "");
    registry.push(t, &image(t), &["--dest-tls-verify=false"]);
    let output = pull(t, &registry.host, &[]).ok();
    let name = format!("{}/me/box:1", registry.host);
    assert!(output.stdout.starts_with(&format!("{name} sha256:")), "{output}");
    assert_eq!(run(t, &["--image", &name]).ok().stdout, "pulled\n");
    t.hafen(["image", "fsck"]).output().ok();
    // By digest, and once more: nothing new.
    let digest = output.stdout.trim().rsplit(' ').next().expect("a digest").to_owned();
    let by_digest = format!("{}/me/box@{digest}", registry.host);
    t.hafen(["image", "pull", "--plain-http", &registry.host, &by_digest]).output().ok();
    let words =
        ["image", "pull", "--plain-http", &registry.host, &format!("{}/me/none:1", registry.host)];
    t.hafen(words).output().error_with([registry.host.as_str(), "manifest"]);
    // Without its name in the list of those that speak HTTP it is asked with TLS only.
    t.hafen(["image", "pull", "--retries", "0", &name])
        .output()
        .error_with([registry.host.as_str()]);
}

fn with_a_password(t: &Test) {
    let file = t.dir().join("htpasswd");
    let line = t.program("htpasswd", ["-Bbn", "user", "secret"]).output().ok().stdout;
    fs::write(&file, line).expect("written");
    let auth = format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", file.display());
    let registry = Registry::start(t, &auth);
    registry.push(t, &image(t), &["--dest-tls-verify=false", "--dest-creds=user:secret"]);
    let folder = t.dir().join("docker");
    fs::create_dir(&folder).expect("mkdir");
    let name = format!("{}/me/box:1", registry.host);
    let pull = |auth: &str| {
        fs::write(folder.join("config.json"), auth).expect("written");
        let words = ["image", "pull", "--plain-http", &registry.host, "--retries", "0", &name];
        t.hafen(words).env("DOCKER_CONFIG", &folder).output()
    };
    pull("{}").error_with([registry.host.as_str()]);
    // user:wrong
    let entry = |secret: &str| {
        json!({ "auths": { registry.host.as_str(): { "auth": secret } } }).to_string()
    };
    pull(&entry("dXNlcjp3cm9uZw==")).error_with([registry.host.as_str()]);
    nothing_is_named(t);
    pull(&entry("dXNlcjpzZWNyZXQ=")).ok();
    // A helper is a program on PATH.
    t.hafen(["image", "rm", &name]).output().ok();
    let helper = t.dir().join("docker-credential-test");
    fs::write(
        &helper,
        // One that ends before it has read the host's name would break the pipe that it comes through.
        "#!/bin/sh\nread host\necho '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"secret\"}'\n",
    )
    .expect("written");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("chmod");
    let asks = json!({ "credHelpers": { registry.host.as_str(): "test" } }).to_string();
    fs::write(folder.join("config.json"), asks).expect("written");
    let path = format!("{}:{}", t.dir().display(), std::env::var("PATH").unwrap_or_default());
    let words = ["image", "pull", "--plain-http", &registry.host, &name];
    t.hafen(words).env("DOCKER_CONFIG", &folder).env("PATH", &path).output().ok();
    let (host, other) = (registry.host.as_str(), format!("{}/me/other:1", registry.host));
    let send = || t.hafen(["image", "push", "--plain-http", host, "--retries", "0", &name, &other]);
    send().env("DOCKER_CONFIG", t.dir()).output().error_with([host]);
    send().env("DOCKER_CONFIG", &folder).env("PATH", &path).output().ok();
}

fn over_tls_with_an_authority_of_its_own(t: &Test) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca \
        -addext basicConstraints=critical,CA:TRUE 2> /dev/null && \
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out req.pem -subj /CN=registry 2> /dev/null && \
        printf 'subjectAltName=IP:127.0.0.1' > ext && \
        openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem 2> /dev/null";
    t.program("sh", ["-c", script]).output().ok();
    let (cert, key) = (t.dir().join("cert.pem"), t.dir().join("key.pem"));
    let tls = format!("  tls: {{ certificate: {}, key: {} }}\n", cert.display(), key.display());
    let registry = Registry::start(t, &tls);
    registry.push(t, &image(t), &["--dest-tls-verify=false"]);
    let name = format!("{}/me/box:1", registry.host);
    t.hafen(["image", "pull", "--retries", "0", &name])
        .output()
        .error_with([registry.host.as_str()]);
    t.hafen(["image", "pull", "--ca", "ca.pem", &name]).output().ok();
    t.hafen(["image", "pull", "--ca", "no.pem", &name]).output().error_with(["no.pem"]);
}

fn without_authorities(t: &Test) {
    for words in [["--plain-http", "127.0.0.1:9"], ["--ca", "/dev/null"]] {
        let pull = ["image", "pull", "--retries", "0", words[0], words[1], "127.0.0.1:9/me/box:1"];
        let none = t.hafen(pull).env("SSL_CERT_FILE", "/none").env("SSL_CERT_DIR", "/none");
        none.output().error_with(["ca-certificates", "SSL_CERT_FILE"]);
    }
}

fn push(t: &Test, host: &str, words: &[&str]) -> Output {
    t.hafen([&["image", "push", "--plain-http", host], words].concat()).output()
}

fn inspected(t: &Test, name: &str) -> hafen_integration::Value {
    let name = format!("docker://{name}");
    t.program("skopeo", ["inspect", "--tls-verify=false", &name]).output().ok().json()
}

fn a_push_is_read_by_others(t: &Test) {
    let registry = Registry::start(t, "");
    let image = import(t, &image(t)).ok();
    let digest = image.stdout.trim().rsplit(' ').next().expect("a digest").to_owned();
    let name = format!("{}/me/box:1", registry.host);
    let output = push(t, &registry.host, &["localhost/image:made", &name]).ok();
    assert_eq!(output.stdout, format!("{name} {digest}\n"));
    let told = inspected(t, &name);
    assert_eq!(told["Digest"], json!(digest));
    assert_eq!(told["Layers"].as_array().map(Vec::len), Some(2));
    let copy = format!("oci:{}:copy", t.dir().join("copy").display());
    let from = format!("docker://{name}");
    let words = ["--insecure-policy", "copy", "--src-tls-verify=false", &from, &copy];
    t.program("skopeo", words).output().ok();
    // What is there is not sent again; another repository of the registry gets it from this one.
    push(t, &registry.host, &["localhost/image:made", &name]).ok();
    t.hafen(["image", "tag", "localhost/image:made", &name]).output().ok();
    let other = format!("{}/me/other:2", registry.host);
    push(t, &registry.host, &[&name, &other]).ok();
    assert_eq!(inspected(t, &other)["Digest"], json!(digest));
    t.hafen(["image", "rm", &name, "localhost/image:made"]).output().ok();
    nothing_is_named(t);
    let output = pull(t, &registry.host, &[]).ok();
    assert_eq!(output.stdout, format!("{name} {digest}\n"));
    // Its own name is where it goes without another one.
    push(t, &registry.host, &[&name]).ok();
    push(t, &registry.host, &[&name, &format!("{name}@{digest}")]).error_with(["tag"]);
    push(t, &registry.host, &["--retries", "0", &name, "127.0.0.1:9/a/b"])
        .error_with(["127.0.0.1:9"]);
    spoil(&t.images().join("blobs/sha256").join(&digest["sha256:".len()..]));
    push(t, &registry.host, &[&name]).error_with([&digest[..20]]);
}

fn an_index_is_pushed_as_far_as_it_is_here(t: &Test) {
    let registry = Registry::start(t, "");
    let folder = image(t);
    let (own, index) = index_of_platforms(&folder);
    import(t, &folder).ok();
    let name = format!("{}/me/box:1", registry.host);
    let output = push(t, &registry.host, &["localhost/image:made", &name]).ok();
    assert_eq!(output.stdout, format!("{name} {own}\n"));
    assert_eq!(inspected(t, &name)["Digest"], json!(own));
    assert_ne!(own, index);
}

/// Other bytes, but as many.
fn spoil(file: &Path) {
    let mut bytes = fs::read(file).expect("a blob");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(file, bytes).expect("written");
}

fn what_is_wrong_is_fetched_again(t: &Test) {
    let registry = Registry::start(t, "");
    registry.push(t, &image(t), &["--dest-tls-verify=false"]);
    let name = format!("{}/me/box:1", registry.host);
    let output = pull(t, &registry.host, &[]).ok();
    let manifest = output.stdout.trim().rsplit(':').next().expect("a digest").to_owned();
    // The name means another image now.
    let other = layout(t, "other", &[busybox(t)], &json!({}));
    registry.push(t, &other, &["--dest-tls-verify=false"]);
    let blobs = t.images().join("blobs/sha256");
    let spoil_all = || {
        spoil(&largest(&blobs));
        let layers = fs::read_dir(t.images().join("layers")).expect("layers");
        let layer = layers.map(|e| e.expect("an entry").path()).next().expect("a layer");
        fs::remove_file(layer.join("layer.json")).expect("removed");
    };
    spoil_all();
    let output = t.hafen(["image", "fsck"]).output().code(1);
    for text in ["its content is another one", "not whole", &name] {
        assert!(output.stdout.contains(text), "{text}: {output}");
    }
    let repair = ["image", "fsck", "--repair", "--fetch", "--plain-http", &registry.host];
    let output = t.hafen(repair).output().ok();
    assert!(output.stdout.contains(&format!("{name}: fetched again")), "{output}");
    assert!(output.stdout.ends_with("1 names: 0 faults\n"), "{output}");
    assert_eq!(run(t, &["--image", &name]).ok().stdout, "pulled\n");
    // Documents as well.
    spoil(&blobs.join(&manifest));
    t.hafen(repair).output().ok();
    t.hafen(["image", "fsck"]).output().ok();
    assert_eq!(run(t, &["--image", &name]).ok().stdout, "pulled\n");
    let inspected = t.hafen(["image", "inspect", &name]).output().ok().json();
    assert_eq!(inspected["digest"], json!(format!("sha256:{manifest}")));
    // Nobody there who has it: said, and exit code 1; later it works.
    spoil_all();
    let gone = ["image", "fsck", "--repair", "--fetch", "--retries", "0"];
    let output = t.hafen(gone).output().code(1);
    assert!(output.stdout.contains("take it in again"), "{output}");
    assert!(output.stderr.contains(&registry.host), "{output}");
    t.hafen(repair).output().ok();
    assert_eq!(run(t, &["--image", &name]).ok().stdout, "pulled\n");
}

fn what_came_from_a_file_cannot_be_fetched(t: &Test) {
    let _ = t.hafen(["image", "fsck", "--fetch"]).output().code(2);
    for option in [["--plain-http", "x"], ["--retries", "1"], ["--max-bytes", "1"]] {
        let output = t.hafen(["image", "fsck", "--repair"].iter().chain(&option)).output().code(2);
        assert!(output.stderr.contains("--fetch"), "{output}");
    }
    let layout = image(t);
    import(t, &layout).ok();
    let repair = ["image", "fsck", "--repair", "--fetch", "--retries", "0"];
    t.hafen(repair).output().ok();
    spoil(&largest(&t.images().join("blobs/sha256")));
    let output = t.hafen(repair).output().code(1);
    let told = "localhost/image:made: take it in again with \"hafen image import\"";
    assert!(output.stdout.contains(told), "{output}");
    // A layer that is not whole has its blob here.
    import(t, &layout).ok();
    let layers = fs::read_dir(t.images().join("layers")).expect("layers");
    for layer in layers.map(|e| e.expect("an entry").path()) {
        fs::remove_file(layer.join("layer.json")).expect("removed");
    }
    let output = t.hafen(repair).output().ok();
    assert!(output.stdout.contains("2 layers, 1 names: 0 faults"), "{output}");
}

fn a_connection_that_breaks_is_taken_up(t: &Test) {
    let server = Server::start(&image(t), |asked| {
        if asked.path.contains("/blobs/") { Fault::ResetAfter(700_000) } else { Fault::None }
    });
    pull(t, &server.host, &[]).ok();
    t.hafen(["image", "fsck"]).output().ok();
    let ranged = server.asked().iter().filter(|a| a.from.is_some() && a.before > 0).count();
    assert!(ranged >= 4, "{:?}", server.asked());
}

fn trouble_that_passes(t: &Test) {
    for code in [429, 500, 503] {
        let server = Server::start(&image(t), move |asked| {
            if asked.path != "/v2/" && asked.before < 2 { Fault::Status(code) } else { Fault::None }
        });
        pull(t, &server.host, &[]).ok();
        t.hafen(["image", "rm", &format!("{}/me/box:1", server.host)]).output().ok();
    }
}

fn trouble_that_stays(t: &Test) {
    for (code, times) in [(429, 3), (404, 1), (403, 1)] {
        let server = Server::start(&image(t), move |asked| {
            if asked.path.contains("/manifests/") { Fault::Status(code) } else { Fault::None }
        });
        pull(t, &server.host, &["--retries", "2"]).error_with([server.host.as_str(), "manifest"]);
        let asked = server.asked();
        assert_eq!(
            asked.iter().filter(|a| a.path.contains("/manifests/")).count(),
            times,
            "{code}"
        );
    }
    nothing_is_named(t);
}

fn a_connection_that_stalls(t: &Test) {
    let server = Server::start(&image(t), |asked| {
        let first = asked.path.contains("/blobs/") && asked.before == 0;
        if first { Fault::StallAfter(100) } else { Fault::None }
    });
    pull(t, &server.host, &["--stall", "1"]).ok();
}

fn a_registry_that_lies(t: &Test) {
    let folder = image(t);
    let server = Server::start(&folder, |asked| {
        if asked.path.contains("/blobs/") { Fault::Lie } else { Fault::None }
    });
    let _ = pull(t, &server.host, &["--retries", "0"]).error_line();
    nothing_is_named(t);
    let manifest = digest(b"another");
    let name = format!("{}/me/box@{manifest}", server.host);
    super::made::put(&folder, &manifest, br#"{"schemaVersion":2,"config":{},"layers":[]}"#);
    let words = ["image", "pull", "--plain-http", &server.host, "--retries", "0", &name];
    let _ = t.hafen(words).output().error_line();
    nothing_is_named(t);
}

fn many_pulls_of_one_image_at_once(t: &Test) {
    let server = Server::start(&image(t), |_| Fault::None);
    let name = format!("{}/me/box:1", server.host);
    let words = ["image", "pull", "--plain-http", &server.host, &name];
    let pulls: Vec<_> = (0..6).map(|_| t.hafen(words).spawn()).collect();
    for pull in pulls {
        pull.wait().ok();
    }
    for asked in server.asked().iter().filter(|a| a.path.contains("/blobs/")) {
        assert_eq!(asked.before, 0, "{} was fetched twice", asked.path);
    }
}

fn mirrors_are_asked_first(t: &Test) {
    let server = Server::start(&image(t), |_| Fault::None);
    // Nobody listens at port 9 of this machine, which is the registry's own then.
    let words = |mirror: &'static str| {
        [
            "image".to_owned(),
            "pull".to_owned(),
            "--plain-http".to_owned(),
            server.host.clone(),
            "--retries".to_owned(),
            "0".to_owned(),
            "--mirror".to_owned(),
            format!("127.0.0.1:9={}", mirror.replace("HOST", &server.host)),
            "127.0.0.1:9/me/box:1".to_owned(),
        ]
    };
    t.hafen(words("HOST")).output().ok();
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    assert_eq!(list[0]["reference"], json!("127.0.0.1:9/me/box:1"));
    t.hafen(words("127.0.0.1:10")).output().error_with(["127.0.0.1:9"]);
    let output = t.hafen(["image", "pull", "--mirror", "nothing", "x"]).output().code(2);
    assert!(output.stderr.contains("REGISTRY=HOST"), "{output}");
}

/// Turns the layout's manifest into one of an index, of which the other one is missing: both digests.
fn index_of_platforms(folder: &Path) -> (String, String) {
    let text = fs::read_to_string(folder.join("index.json")).expect("an index");
    let mut own: hafen_integration::Value = text.parse().expect("JSON");
    let mut own = own["manifests"][0].take();
    own["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    own["platform"] = json!({ "os": "linux", "architecture": architecture() });
    let digest_of_own = own["digest"].as_str().expect("a digest").to_owned();
    let mut other = own.clone();
    other["digest"] = json!(digest(b"not here"));
    other["platform"]["architecture"] = json!("s390x");
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [other, own] })
    .to_string();
    super::made::put(folder, &digest(index.as_bytes()), index.as_bytes());
    let entry = json!({ "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest(index.as_bytes()), "size": index.len(),
        "annotations": { "org.opencontainers.image.ref.name": "made" } });
    fs::write(
        folder.join("index.json"),
        json!({ "schemaVersion": 2, "manifests": [entry] }).to_string(),
    )
    .expect("written");
    (digest_of_own, digest(index.as_bytes()))
}

fn an_index_of_platforms(t: &Test) {
    let folder = image(t);
    let (_, index) = index_of_platforms(&folder);
    let server = Server::start(&folder, |_| Fault::None);
    let output = pull(t, &server.host, &[]).ok();
    assert!(output.stdout.contains(&index), "{output}");
    let inspected =
        t.hafen(["image", "inspect", &format!("{}/me/box:1", server.host)]).output().ok().json();
    assert_eq!(inspected["platform"]["architecture"], json!(architecture()));
    t.hafen(["image", "fsck"]).output().ok();
    t.hafen(["image", "prune"]).output().ok();
}

fn a_pull_that_is_killed(t: &Test) {
    let server = Server::start(&image(t), |_| Fault::None);
    let name = format!("{}/me/box:1", server.host);
    let words = ["image", "pull", "--plain-http", &server.host, &name];
    for pause in [0, 2, 5, 10, 20, 40, 80] {
        let pull = t.hafen(words).spawn();
        std::thread::sleep(Duration::from_millis(pause));
        pull.signal(Signal::SIGKILL);
        let _ = pull.wait();
        if t.images().exists() {
            t.hafen(["image", "fsck"]).output().ok();
            t.hafen(["image", "prune"]).output().ok();
        }
    }
    t.hafen(words).output().ok();
    t.hafen(["image", "fsck"]).output().ok();
}

const KEPT: usize = 2_000_000;

/// What is left of the large blob when a pull is killed that got 2 MB of it, and the server, which goes on now.
fn killed_in_the_middle(
    t: &Test,
    then: impl Fn(&Asked) -> Fault + Send + Sync + 'static,
) -> (Server, PathBuf) {
    let layout = image(t);
    let server = Server::start(&layout, move |asked| match asked.path.contains("/blobs/") {
        true if asked.before == 0 => Fault::StallAfter(KEPT),
        true => then(asked),
        false => Fault::None,
    });
    let name = format!("{}/me/box:1", server.host);
    let words = ["image", "pull", "--plain-http", &server.host, &name];
    let pull = t.hafen(words).spawn();
    let partial = t.images().join("partial");
    let kept = wait_until(Duration::from_secs(20), || {
        let parts = fs::read_dir(&partial).ok()?.map(|e| e.expect("an entry").path());
        parts.into_iter().find(|p| p.metadata().is_ok_and(|m| m.len() == KEPT as u64))
    });
    pull.signal(Signal::SIGKILL);
    let _ = pull.wait();
    nothing_is_listed(t);
    (server, kept.expect("a part of the large blob"))
}

fn nothing_is_listed(t: &Test) {
    let list = t.hafen(["image", "ls", "--format", "json"]).output().ok().json();
    assert_eq!(list, json!([]));
}

/// From which bytes on the blob of a part was asked for.
fn asked_from(server: &Server, part: &Path) -> Vec<Option<usize>> {
    let hex = part.file_name().expect("a name").to_string_lossy().replace("sha256-", "");
    let all = server.asked().into_iter().filter(|a| a.path.contains(&hex));
    all.map(|asked| asked.from).collect()
}

fn is_pulled(t: &Test, server: &Server) {
    pull(t, &server.host, &[]).ok();
    t.hafen(["image", "fsck"]).output().ok();
    let left = fs::read_dir(t.images().join("partial")).expect("a folder").count();
    assert_eq!(left, 0);
}

fn what_a_killed_pull_has_is_kept(t: &Test) {
    let (server, part) = killed_in_the_middle(t, |_| Fault::None);
    is_pulled(t, &server);
    assert_eq!(asked_from(&server, &part), [Some(0), Some(KEPT)]);
    let name = format!("{}/me/box:1", server.host);
    assert_eq!(run(t, &["--image", &name]).ok().stdout, "pulled\n");
}

fn a_kept_part_that_is_torn(t: &Test) {
    let (server, part) = killed_in_the_middle(t, |_| Fault::None);
    let torn = fs::OpenOptions::new().write(true).open(&part).expect("the part");
    std::os::unix::fs::FileExt::write_all_at(&torn, &[0; 4096], 4096).expect("written");
    is_pulled(t, &server);
    assert_eq!(asked_from(&server, &part), [Some(0), Some(KEPT), Some(0)]);
    // Longer than the whole.
    let name = format!("{}/me/box:1", server.host);
    t.hafen(["image", "rm", &name]).output().ok();
    fs::write(&part, [0; 5_000_000]).expect("written");
    is_pulled(t, &server);
    assert_eq!(asked_from(&server, &part).last(), Some(&Some(0)));
    // A part that is torn, and a registry that lies.
    let (server, part) = killed_again(t, &name);
    fs::write(&part, [0; 4096]).expect("written");
    pull(t, &server.host, &["--retries", "0"]).error_with(["has the digest"]);
}

fn killed_again(t: &Test, name: &str) -> (Server, PathBuf) {
    t.hafen(["image", "rm", name]).output().ok();
    killed_in_the_middle(t, |_| Fault::Lie)
}

fn a_kept_part_without_ranges(t: &Test) {
    let (server, part) = killed_in_the_middle(t, |_| Fault::Whole);
    is_pulled(t, &server);
    assert_eq!(asked_from(&server, &part), [Some(0), Some(KEPT)]);
}
