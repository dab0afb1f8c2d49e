//! State and leadership in a cluster of etcd that each case starts for itself, on the loopback.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hafen_coordinator::cluster::Change;
use hafen_coordinator::model::{Amounts, Key, Namespace, Record};
use hafen_coordinator::service::{self, Coordinator};
use hafen_coordinator::state::Error;
use hafen_coordinator::state::etcd::{Etcd, EtcdError, Options, Term};
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const MEMBERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

type Case = (&'static str, fn(&mut Cluster));

const CASES: &[Case] = &[
    ("one_leads_until_it_dies", one_leads_until_it_dies),
    ("who_was_stopped_for_long_writes_nothing", who_was_stopped_for_long_writes_nothing),
    ("the_next_leader_finds_all_that_was_saved", the_next_leader_finds_all_that_was_saved),
    ("a_member_dies", a_member_dies),
    ("without_a_majority_nobody_leads", without_a_majority_nobody_leads),
    ("a_coordinator_takes_over", a_coordinator_takes_over),
    ("one_with_another_authority_is_none", one_with_another_authority_is_none),
];

fn main() {
    let missing = Command::new("etcd").arg("--version").output().is_err();
    let trials = CASES.iter().map(|(name, case)| {
        let trial = Trial::test(*name, move || {
            let folder = tempfile::tempdir()?;
            case(&mut Cluster::start(folder.path()));
            Ok(())
        });
        trial.with_kind(if missing { "needs etcd" } else { "" }).with_ignored_flag(missing)
    });
    let mut arguments = Arguments::from_args();
    // Each has three members.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

struct Cluster {
    members: Vec<Child>,
    urls: Vec<String>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    fn start(folder: &Path) -> Self {
        let ports: Vec<[u16; 2]> = (0..MEMBERS).map(|_| [free_port(), free_port()]).collect();
        let peers =
            ports.iter().enumerate().map(|(n, [_, peer])| format!("m{n}=http://127.0.0.1:{peer}"));
        let peers = peers.collect::<Vec<_>>().join(",");
        let members = ports.iter().enumerate().map(|(n, [client, peer])| {
            let (client, peer) =
                (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("m{n}"), "--initial-cluster", &peers]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.arg("--data-dir").arg(folder.join(n.to_string()));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        let members = members.collect();
        let urls = ports.iter().map(|[client, _]| format!("http://127.0.0.1:{client}")).collect();
        let cluster = Self { members, urls };
        let deadline = Instant::now() + PATIENCE;
        while runtime().block_on(cluster.etcd().leader()).is_err() {
            assert!(Instant::now() < deadline, "etcd does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        cluster
    }

    fn options(&self) -> Options {
        let urls = self.urls.clone();
        Options { urls, prefix: "/hafen".to_owned(), ca: None, identity: None }
    }

    fn etcd(&self) -> Etcd {
        Etcd::new(&self.options()).unwrap()
    }

    fn kill(&mut self, member: usize) {
        self.members[member].kill().unwrap();
        self.members[member].wait().unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn lead(etcd: &Etcd, who: &str) -> Term {
    let (others, _) = watch::channel(None);
    tokio::time::timeout(PATIENCE, etcd.campaign(who, &others)).await.unwrap().unwrap()
}

fn put(name: u64, value: u64) -> Change {
    let amounts = Amounts { memory: value, ..Amounts::default() };
    Change::Put(Record::Quota(Namespace(format!("n{name:05}")), amounts))
}

fn one_leads_until_it_dies(cluster: &mut Cluster) {
    let etcd = cluster.etcd();
    let first = runtime();
    let mut term = first.block_on(lead(&etcd, "first"));
    first.block_on(term.save(&[put(1, 1)])).unwrap();
    let second = runtime();
    let (others, who) = watch::channel(None);
    let waiting = second.block_on(async {
        tokio::time::timeout(Duration::from_secs(4), etcd.campaign("second", &others)).await
    });
    assert!(waiting.is_err(), "there are two");
    assert_eq!(who.borrow().as_deref(), Some("first"));
    // As kill -9: nothing of it runs any more.
    first.shutdown_background();
    let died = Instant::now();
    let mut next = second.block_on(lead(&cluster.etcd(), "second"));
    let records = second.block_on(next.load()).unwrap();
    let took = died.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    println!("a new leader after {took:?}");
    assert_eq!(records.len(), 1);
    let deposed = second.block_on(term.save(&[put(1, 2)]));
    assert!(matches!(deposed, Err(Error::Etcd(EtcdError::Deposed))), "{deposed:?}");
    second.block_on(next.save(&[put(1, 3)])).unwrap();
}

/// Its process is stopped for longer than the lease: its first thought is that it may not be the leader.
fn who_was_stopped_for_long_writes_nothing(cluster: &mut Cluster) {
    let stopped = runtime();
    let mut term = stopped.block_on(lead(&cluster.etcd(), "stopped"));
    let lost = term.lost();
    assert!(!*lost.borrow());
    for member in &cluster.members {
        signal(member, "STOP");
    }
    std::thread::sleep(Duration::from_millis(2100));
    assert!(*lost.borrow() || lost.has_changed().is_err(), "nobody has renewed it");
    for member in &cluster.members {
        signal(member, "CONT");
    }
    let other = runtime();
    let mut next = other.block_on(lead(&cluster.etcd(), "next"));
    other.block_on(next.save(&[put(1, 1)])).unwrap();
    let deposed = stopped.block_on(term.save(&[put(1, 2)]));
    assert!(matches!(deposed, Err(Error::Etcd(EtcdError::Deposed))), "{deposed:?}");
}

fn signal(member: &Child, name: &str) {
    let pid = member.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

fn the_next_leader_finds_all_that_was_saved(cluster: &mut Cluster) {
    const SAVES: u64 = 600;
    const MANY: u64 = 8000;
    let runtime = runtime();
    runtime.block_on(async {
        let mut term = lead(&cluster.etcd(), "one").await;
        assert_eq!(term.load().await.unwrap(), []);
        for round in 0..SAVES {
            let erased = Change::Erase(Key::Quota(Namespace(format!("n{:05}", (round + 7) % 50))));
            term.save(&[put(round % 50, round), erased]).await.unwrap();
        }
        // More than one request may have.
        let many: Vec<Change> = (100..100 + MANY).map(|name| put(name, name)).collect();
        term.save(&many).await.unwrap();
        term.save(&[put(100, 7)]).await.unwrap();
    });
    runtime.shutdown_background();
    let runtime = self::runtime();
    let records = runtime.block_on(async {
        let mut term = lead(&cluster.etcd(), "two").await;
        let records = term.load().await.unwrap();
        term.save(&[put(100, 8)]).await.unwrap();
        records
    });
    let value = |name: u64| {
        records.iter().find_map(|record| match record {
            Record::Quota(namespace, amounts) if namespace.0 == format!("n{name:05}") => {
                Some(amounts.memory)
            }
            _ => None,
        })
    };
    // The last round of each name, unless it was erased after that.
    for name in 0..50 {
        let last = (0..SAVES).rev().find(|round| round % 50 == name).unwrap();
        let erased = (0..SAVES).rev().find(|round| (round + 7) % 50 == name).unwrap();
        assert_eq!(value(name), (last > erased).then_some(last), "{name}");
    }
    assert_eq!(value(100), Some(7));
    assert_eq!(value(100 + MANY - 1), Some(100 + MANY - 1));
}

fn a_member_dies(cluster: &mut Cluster) {
    let runtime = runtime();
    let mut term = runtime.block_on(lead(&cluster.etcd(), "one"));
    runtime.block_on(term.save(&[put(1, 1)])).unwrap();
    cluster.kill(0);
    let deadline = Instant::now() + PATIENCE;
    // The others may have to choose a leader of their own: for so long that our term ends.
    while let Err(e) = runtime.block_on(term.save(&[put(1, 2)])) {
        assert!(matches!(e, Error::Etcd(EtcdError::Silent(_) | EtcdError::Deposed)), "{e}");
        assert!(Instant::now() < deadline, "{e}");
        term = runtime.block_on(lead(&cluster.etcd(), "one again"));
    }
    assert_eq!(runtime.block_on(term.load()).unwrap().len(), 1);
}

fn without_a_majority_nobody_leads(cluster: &mut Cluster) {
    let runtime = runtime();
    let mut term = runtime.block_on(lead(&cluster.etcd(), "one"));
    cluster.kill(0);
    cluster.kill(1);
    let failed = runtime.block_on(term.save(&[put(1, 1)]));
    assert!(matches!(failed, Err(Error::Etcd(EtcdError::Silent(_)))), "{failed:?}");
    assert!(*term.lost().borrow());
}

async fn coordinator(cluster: &Cluster, folder: &Path, name: &str) -> (Coordinator, String) {
    let options = service::Options {
        listen: vec!["http://127.0.0.1:0".parse().unwrap()],
        state: folder.join(name),
        name: name.to_owned(),
        lease: Duration::from_secs(5),
        group: None,
        names: Vec::new(),
        insecure: false,
        etcd: Some(cluster.options()),
        url: None,
    };
    let coordinator = Coordinator::start(options).await.unwrap();
    let url = coordinator.addresses[0].to_string();
    (coordinator, url)
}

async fn ask(url: &str, path: &str, body: Option<&str>) -> (u16, String) {
    let http = reqwest::Client::new();
    let request = match body {
        Some(body) => http.post(format!("{url}{path}")).body(body.to_owned()),
        None => http.get(format!("{url}{path}")),
    };
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn until(url: &str, path: &str, status: u16) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (answered, text) = ask(url, path, None).await;
        if answered == status {
            return text;
        }
        assert!(Instant::now() < deadline, "{answered}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One directs and takes a job on, the other says who does; when the first is gone the other has the job.
fn a_coordinator_takes_over(cluster: &mut Cluster) {
    const JOB: &str = r#"{"job": {"name": "web", "task": {"root": {"image": "box"}}}}"#;
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (runtime(), runtime());
    let (one, url) = first.block_on(coordinator(cluster, folder.path(), "one"));
    first.block_on(until(&url, "/v1/cluster", 200));
    assert_eq!(first.block_on(ask(&url, "/v1/jobs", Some(JOB))).0, 201);
    let withdrawal = r#"{"user": "ann"}"#;
    assert_eq!(first.block_on(ask(&url, "/v1/certificates/withdraw", Some(withdrawal))).0, 200);
    share_authority(folder.path(), "one", "two");
    let (two, other) = second.block_on(coordinator(cluster, folder.path(), "two"));
    let said = second.block_on(until(&other, "/v1/cluster", 503));
    let named = second.block_on(async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        until(&other, "/v1/cluster", 503).await
    });
    assert!(named.contains(&url), "{said} {named}");
    assert_eq!(second.block_on(ask(&other, "/healthz", None)).0, 200);
    // As kill -9.
    std::mem::forget(one);
    first.shutdown_background();
    let died = Instant::now();
    let view = second.block_on(until(&other, "/v1/cluster", 200));
    let took = died.elapsed();
    println!("it directs after {took:?}");
    assert!(view.contains("\"web\""), "{view}");
    let withdrawn = second.block_on(until(&other, "/v1/certificates", 200));
    assert!(withdrawn.contains("\"ann\""), "{withdrawn}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    second.block_on(two.stop());
}

/// As whoever runs several of them does before they start.
fn share_authority(folder: &Path, from: &str, to: &str) {
    let (from, to) = (folder.join(from).join("ca"), folder.join(to).join("ca"));
    std::fs::create_dir_all(&to).unwrap();
    for name in ["ca.pem", "ca.key"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn one_with_another_authority_is_none(cluster: &mut Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let (one, url) = runtime.block_on(coordinator(cluster, folder.path(), "one"));
    runtime.block_on(until(&url, "/v1/cluster", 200));
    let (mut stranger, _) = runtime.block_on(coordinator(cluster, folder.path(), "stranger"));
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, stranger.failed()).await });
    let words = ended.expect("an end").unwrap_err().to_string();
    assert!(words.contains("copy STATE/ca of another coordinator here"), "{words}");
    assert!(words.contains(&one.authority), "{words}");
    // With the same one it waits, as it should.
    share_authority(folder.path(), "one", "two");
    let (two, other) = runtime.block_on(coordinator(cluster, folder.path(), "two"));
    runtime.block_on(one.stop());
    runtime.block_on(until(&other, "/v1/cluster", 200));
    runtime.block_on(two.stop());
}
