//! What only a kernel, root and plugins can tell of the agent's parts. Each case has a thread with a network and mounts of
//! its own, so that nothing of this machine's is touched, and nothing outlives the thread.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hafen::artifact::Fetcher;
use hafen::check::{self, Target, probe};
use hafen::failure::{Failure, chain};
use hafen::network::cni::{Attachment, Cni, CniError};
use hafen::network::conflist::{self, BuiltIn};
use hafen::network::netns::{self, Kind};
use hafen::network::ports;
use hafen_isolator::network::bring_up;
use hafen_protocol::v1;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use v1::check::{Http, Probe, Tcp};

/// What a case needs: its name, and whether it is there.
type Need = (&'static str, fn() -> bool);
const IP: Need = ("program ip", || Command::new("ip").arg("-V").output().is_ok());

/// Its name, what it needs, and what it does with an empty folder.
type Case = (&'static str, &'static [Need], fn(&Path));

const ROOT: Need = ("root", || nix::unistd::geteuid().is_root());
const PLUGINS: Need = ("containernetworking-plugins", || {
    ["bridge", "portmap", "host-local", "firewall"]
        .iter()
        .all(|name| Path::new("/usr/lib/cni").join(name).exists())
});
const IPTABLES: Need =
    ("program iptables", || Command::new("iptables").arg("--version").output().is_ok());

fn main() {
    let cases: [Case; 8] = [
        ("netns::a_network_is_pinned_and_removed", &[ROOT], a_network_is_pinned_and_removed),
        ("netns::an_ipc_namespace_is_pinned_and_removed", &[ROOT], an_ipc_namespace_is_pinned),
        ("probe::a_task_is_asked_in_its_network", &[ROOT], a_task_is_asked_in_its_network),
        ("probe::a_certificate_is_not_looked_at", &[ROOT], a_certificate_is_not_looked_at),
        (
            "cni::published_ports_lead_to_a_task_and_nothing_is_left",
            &[ROOT, PLUGINS, IPTABLES, IP],
            published_ports_lead_to_a_task,
        ),
        (
            "cni::what_a_crash_leaves_is_deleted",
            &[ROOT, PLUGINS, IPTABLES],
            what_a_crash_leaves_is_deleted,
        ),
        ("artifact::tars_are_unpacked", &[ROOT], tars_are_unpacked),
        ("artifact::hostile_tars_are_refused", &[ROOT], hostile_tars_are_refused),
    ];
    let trials = cases.map(|(name, needs, body)| {
        Trial::ignorable_test(name, move || {
            let missing: Vec<&str> =
                needs.iter().filter(|need| !need.1()).map(|need| need.0).collect();
            if missing.is_empty() {
                alone(body)
            } else {
                Ok(Completion::ignored_with(format!("needs {}", missing.join(", "))))
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

/// In a network and with mounts of its own, on a thread that takes them along.
fn alone(body: fn(&Path)) -> Result<Completion, Failed> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        bring_up("lo").unwrap();
        let folder = tempfile::tempdir().unwrap();
        body(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something is left");
    });
    let told = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    };
    thread.join().map(|()| Completion::Completed).map_err(|panic| told(panic).into())
}

/// Threads and programs that it starts are in the namespaces of this one.
fn wait<T>(act: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(act)
}

fn links() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let name = |line: &str| line.split(':').next().unwrap().trim().to_owned();
    text.lines().skip(2).map(name).collect()
}

fn own(namespace: &str) -> PathBuf {
    fs::read_link(format!("/proc/thread-self/ns/{namespace}")).unwrap()
}

fn a_network_is_pinned_and_removed(folder: &Path) {
    let (path, before) = (folder.join("net"), own("net"));
    netns::create(Kind::Network, &path).unwrap();
    assert!(netns::is_pinned(&path));
    assert_eq!(own("net"), before);
    let (inside, links, up) = netns::inside(&path, || {
        (own("net"), links(), TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()))
    })
    .unwrap();
    assert_ne!(inside, before);
    assert_eq!(links, ["lo"]);
    let reached = netns::inside(&path, || {
        let listener = TcpListener::bind(up.unwrap()).unwrap();
        TcpStream::connect_timeout(&listener.local_addr().unwrap(), Duration::from_secs(1)).is_ok()
    });
    assert!(reached.unwrap(), "the loopback is not up");
    assert!(netns::create(Kind::Network, &path).is_err());
    assert!(netns::is_pinned(&path));
    netns::remove(&path).unwrap();
    netns::remove(&path).unwrap();
    assert!(!path.exists());
}

fn an_ipc_namespace_is_pinned(folder: &Path) {
    let (path, before) = (folder.join("ipc"), own("ipc"));
    netns::create(Kind::Ipc, &path).unwrap();
    assert!(netns::is_pinned(&path));
    assert_eq!(own("ipc"), before);
    netns::remove(&path).unwrap();
}

/// Answers every connection, until the process ends.
fn serve(namespace: &Path, address: &str, answer: &'static [u8]) -> SocketAddr {
    let listener = netns::inside(namespace, || TcpListener::bind(address)).unwrap().unwrap();
    let bound = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        }
    });
    bound
}

fn ask(target: &Target, probe: &Probe) -> Result<(), String> {
    let exec = |_: Vec<String>, _: Duration| std::future::ready(Ok::<i32, Failure>(0));
    let bound = Duration::from_secs(5);
    wait(async {
        let asked = probe::ask(probe, target, &exec, bound);
        tokio::time::timeout(bound, asked).await.unwrap_or_else(|_| Err("late".to_owned()))
    })
}

const TEAPOT: &[u8] = b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n";

fn a_task_is_asked_in_its_network(folder: &Path) {
    let path = folder.join("net");
    netns::create(Kind::Network, &path).unwrap();
    let port = serve(&path, "127.0.0.1:0", TEAPOT).port().into();
    let there = Target { namespace: path.clone(), address: None };
    let here = Target { namespace: "/proc/thread-self/ns/net".into(), address: None };
    let tcp = Probe::Tcp(Tcp { port, host: String::new() });
    ask(&there, &tcp).unwrap();
    let refused = ask(&here, &tcp).unwrap_err();
    assert!(refused.contains("Connection refused"), "{refused}");
    let http = |statuses| Probe::Http(Http { port, statuses, ..Http::default() });
    let answered = ask(&there, &http(vec![])).unwrap_err();
    assert!(answered.ends_with("answered with HTTP status 418"), "{answered}");
    ask(&there, &http(vec![418])).unwrap();
    netns::remove(&path).unwrap();
    let gone = ask(&there, &tcp).unwrap_err();
    assert!(gone.starts_with("enter the network of the task: open "), "{gone}");
}

fn a_certificate_is_not_looked_at(_: &Path) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().into();
    std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
    });
    let here = Target { namespace: "/proc/thread-self/ns/net".into(), address: None };
    ask(&here, &Probe::Http(Http { port, tls: true, ..Http::default() })).unwrap();
}

/// A network namespace with the built-in network, without a trace on this machine.
struct Net<'a> {
    folder: &'a Path,
    network: conflist::Network,
    attachment: Attachment,
}

impl<'a> Net<'a> {
    fn new(folder: &'a Path, published: &[ports::Publish]) -> Self {
        let built_in = BuiltIn {
            subnet: (Ipv4Addr::new(10, 97, 0, 0), 24),
            leases: folder.join("leases"),
            ..BuiltIn::default()
        };
        let mappings: Vec<_> = published.iter().map(ports::Publish::to_mapping).collect();
        let attachment = Attachment {
            container: "hafen-parts-test".to_owned(),
            namespace: folder.join("net"),
            interface: "eth0".to_owned(),
            args: [("IgnoreUnknown".to_owned(), "1".to_owned())].into(),
            capabilities: json!({ "portMappings": mappings }).as_object().unwrap().clone(),
        };
        netns::create(Kind::Network, &attachment.namespace).unwrap();
        Self { folder, network: built_in.network().unwrap(), attachment }
    }

    fn record(&self) -> PathBuf {
        self.folder.join("cni.json")
    }

    /// Rules and leases that are of one container.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = links();
        left.retain(|link| link.starts_with("veth"));
        for table in ["nat", "filter"] {
            let output = Command::new("iptables").args(["-w", "-t", table, "-S"]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let rules = String::from_utf8_lossy(&output.stdout).into_owned();
            let ours = |rule: &&str| rule.contains("10.97.0.") || rule.contains("hafen-parts-test");
            left.extend(rules.lines().filter(ours).map(str::to_owned));
        }
        let leases = fs::read_dir(self.folder.join("leases/hafen")).into_iter().flatten();
        let names = leases.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        left.extend(names.filter(|name| name.starts_with("10.")));
        left
    }

    fn end(self) {
        netns::remove(&self.attachment.namespace).unwrap();
        fs::remove_dir_all(self.folder.join("leases")).unwrap();
    }
}

fn answer_at(address: IpAddr, port: u16) -> String {
    let address = SocketAddr::new(address, port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = vec![0; TEAPOT.len()];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn call(program: &str, words: &str) {
    let done = Command::new(program).args(words.split_whitespace()).status().unwrap();
    assert!(done.success(), "{program} {words}");
}

/// A network that this one reaches at [`FAR`], and it at [`NEAR`].
fn far_away(folder: &Path) -> PathBuf {
    let far = folder.join("far");
    netns::create(Kind::Network, &far).unwrap();
    call("ip", "link add near type veth peer name far");
    call("ip", &format!("link set far netns {}", far.display()));
    call("ip", &format!("address add {NEAR}/24 dev near"));
    call("ip", "link set near up");
    netns::inside(&far, || {
        call("ip", &format!("address add {FAR}/24 dev far"));
        call("ip", "link set far up");
    })
    .unwrap();
    far
}

fn published_ports_lead_to_a_task(folder: &Path) {
    let wanted = v1::Port { container: 80, ..v1::Port::default() };
    let wanted = ports::validate(&[wanted]).unwrap();
    let chosen = ports::choose(&wanted, &[]).unwrap();
    let port = chosen.ports[0].host;
    let net = Net::new(folder, &chosen.ports);
    let cni = Cni::default();
    let attached = wait(cni.add(&net.network, &net.attachment, &net.record())).unwrap();
    drop(chosen);
    let [address] = attached.addresses[..] else { panic!("{attached:?}") };
    assert!(address.to_string().starts_with("10.97.0."), "{address}");
    assert_eq!(Cni::attached(&net.record()).unwrap(), Some(attached));
    assert!(!net.left().is_empty());
    serve(&net.attachment.namespace, "0.0.0.0:80", TEAPOT);
    for at in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 97, 0, 1)] {
        assert!(answer_at(at.into(), port).starts_with("HTTP/1.1 418"), "{at}");
    }
    // To another machine, past a chain that drops what nobody accepts, and from there.
    let far = far_away(folder);
    serve(&far, "0.0.0.0:81", TEAPOT);
    call("iptables", "-w -P FORWARD DROP");
    let answer = netns::inside(&net.attachment.namespace, || answer_at(FAR.into(), 81)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 418"), "{answer}");
    call("iptables", "-w -P FORWARD ACCEPT");
    let answer = netns::inside(&far, || answer_at(NEAR.into(), port)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 418"), "{answer}");
    netns::remove(&far).unwrap();
    let target = Target { namespace: net.attachment.namespace.clone(), address: Some(address) };
    let checks = [v1::Check {
        name: "web".to_owned(),
        kind: v1::check::Kind::Readiness.into(),
        probe: Some(Probe::Http(Http { port: 80, statuses: vec![418], ..Http::default() })),
        ..v1::Check::default()
    }];
    wait(async {
        let (sender, mut changes) = tokio::sync::mpsc::channel(1);
        let exec = |_: Vec<String>, _: Duration| async { Ok::<i32, Failure>(0) };
        let checks = check::validate(&checks).unwrap();
        let running = tokio::spawn(check::run(checks, target, exec, sender));
        let change = changes.recv().await.unwrap();
        running.abort();
        assert!(change.flipped && change.status.passing, "{change:?}");
    });
    wait(cni.check(&net.record())).unwrap();
    wait(cni.delete(&net.record())).unwrap();
    wait(cni.delete(&net.record())).unwrap();
    assert_eq!(net.left(), [""; 0]);
    assert!(!net.record().exists());
    net.end();
}

fn what_a_crash_leaves_is_deleted(folder: &Path) {
    let mut net = Net::new(folder, &[]);
    // These plugins know 1.0.0 at most, or 1.1.0 as well.
    net.network.versions = vec!["1.1.0".to_owned(), "1.0.0".to_owned()];
    let cni = Cni::default();
    wait(cni.add(&net.network, &net.attachment, &net.record())).unwrap();
    // As if ADD had not come to the end of its last plugin.
    let mut record: serde_json::Value =
        serde_json::from_slice(&fs::read(net.record()).unwrap()).unwrap();
    record["complete"] = false.into();
    fs::write(net.record(), record.to_string()).unwrap();
    assert_eq!(Cni::attached(&net.record()).unwrap(), None);
    assert!(matches!(wait(cni.check(&net.record())), Err(CniError::Invalid { .. })));
    wait(cni.delete(&net.record())).unwrap();
    assert_eq!(net.left(), [""; 0]);
    // A namespace that is gone does not keep the others.
    wait(cni.add(&net.network, &net.attachment, &net.record())).unwrap();
    netns::remove(&net.attachment.namespace).unwrap();
    wait(cni.delete(&net.record())).unwrap();
    assert!(!net.record().exists());
    // The plugin would have looked there for what it masquerades (containernetworking-plugins 1.1.1).
    let mut left = net.left();
    left.retain(|rule| !rule.contains("POSTROUTING") && !rule.starts_with("-A CNI-"));
    assert_eq!(left, [""; 0]);
    net.end();
}

type Change = fn(&mut tar::Header);

fn tar_of(entries: &[(&str, &[u8], Change)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content, change) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        // As it is: the library would refuse some.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        change(&mut header);
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn link(header: &mut tar::Header, to: &str) {
    header.set_entry_type(tar::EntryType::Symlink);
    header.as_gnu_mut().unwrap().linkname[..to.len()].copy_from_slice(to.as_bytes());
}

/// From a file of the node. Of what is refused, nothing is left.
fn unpack(folder: &Path, name: &str, content: &[u8]) -> Result<(), String> {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join(name);
    fs::write(&path, content).unwrap();
    let artifact = v1::Artifact {
        source: format!("file://{}", path.display()),
        destination: "/srv/it".to_owned(),
        ..v1::Artifact::default()
    };
    let fetcher = Fetcher::new(MOST).unwrap();
    wait(fetcher.fetch(&artifact, &folder.join("it"))).map_err(|e| chain(&e))
}

const MOST: u64 = 1 << 20;

fn tars_are_unpacked(folder: &Path) {
    let tar = tar_of(&[
        ("bin/tool", b"#!", |header| {
            header.set_mode(0o4755);
            header.set_uid(1000);
        }),
        ("bin/link", b"", |header| link(header, "../bin/tool")),
    ]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for (name, content) in [("a.tar", &tar), ("a.tgz", &gzip), ("a.tar.zst", &zstd)] {
        unpack(folder, name, content).unwrap();
        let place = folder.join("it");
        assert_eq!(fs::read(place.join("bin/link")).unwrap(), b"#!");
        let about = fs::metadata(place.join("bin/tool")).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid()), (0o755, 0), "{name}");
    }
    fs::remove_dir_all(folder.join("it")).unwrap();
}

fn hostile_tars_are_refused(folder: &Path) {
    let refuse = |name: &str, content: &[u8], says: &str| {
        let error = unpack(folder, name, content).unwrap_err();
        assert!(error.contains(says), "{error}");
    };
    refuse("a.tar", &tar_of(&[("../x", b"", |_| ())]), "../x");
    let absolute = tar_of(&[("a", b"", |header| link(header, "/etc/passwd"))]);
    refuse("a.tar", &absolute, "out of the artifact");
    let up = tar_of(&[("b/a", b"", |header| link(header, "../../x"))]);
    refuse("a.tar", &up, "out of the artifact");
    let through = tar_of(&[("a", b"", |header| link(header, "..")), ("a/x", b"", |_| ())]);
    refuse("a.tar", &through, "leads through the symlink");
    let device = tar_of(&[("null", b"", |header| {
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    })]);
    refuse("a.tar", &device, "is a device");
    refuse("a.tar", &[7; 4096], "it is no tar");
    let large = vec![0; usize::try_from(MOST).unwrap() + 1];
    let bomb = zstd::encode_all(&tar_of(&[("a", &large, |_| ())])[..], 1).unwrap();
    refuse("a.tar.zst", &bomb, "it unpacks to more than 1048576 bytes");
}
