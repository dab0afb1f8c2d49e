//! Of masters against an agent.

use std::fs;

use hafen_integration::cluster::lines;
use hafen_integration::{Agent, Case, Test, cases};
use hafen_protocol::v1;
use hafen_protocol::v1::command::What;
use hafen_protocol::v1::failure::Kind;
use hafen_protocol::v1::from_master::What as Down;
use tokio::time::{Duration, timeout};

use super::stream::{Master, Peer, runtime};
use super::{has_not_grown, memory};

pub(super) fn trials() -> Vec<Case> {
    cases![orders_count_once(Root, Busybox), masters_that_break_rules_are_left(Root, Busybox)]
}

const EPOCH: u64 = 7;

/// An agent with a master of the test's, and what its tasks tell.
struct Bench<'t> {
    agent: Agent<'t>,
    master: Master,
    spec: v1::TaskSpec,
    told: std::path::PathBuf,
}

impl<'t> Bench<'t> {
    async fn new(t: &'t Test) -> Self {
        let socket = t.dir().join("master");
        let master = Master::listen(&socket);
        let told = t.dir().join("told");
        fs::write(&told, "").expect("a file");
        let url = format!("unix://{}", socket.display());
        let mut agent = Agent::new(t, "agent").variable("HAFEN_MASTER_URLS", url);
        agent.restart();
        let rootfs = t.bundle().rootfs().display().to_string();
        let root = v1::Root { kind: Some(v1::root::Kind::Rootfs(rootfs)), ..Default::default() };
        let mount = v1::Mount {
            source: Some(v1::mount::Source::Host(told.display().to_string())),
            destination: "/told".to_owned(),
            ..Default::default()
        };
        let script = "echo began >> /told; trap 'exit 0' TERM; while :; do sleep 0.05; done";
        let spec = v1::TaskSpec {
            id: "one".to_owned(),
            root: Some(root),
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            mounts: vec![mount],
            ..Default::default()
        };
        Self { agent, master, spec, told }
    }

    fn run(&self, id: &str, epoch: u64) -> What {
        let task = Some(v1::TaskSpec { id: id.to_owned(), ..self.spec.clone() });
        let grant = Some(v1::TaskGrant { epoch, ..Default::default() });
        What::RunTask(v1::RunTask { task, grant })
    }

    /// It runs, and began once.
    #[track_caller]
    fn runs_once(&self) {
        let task = self.agent.wait_state("one", "STATE_RUNNING");
        assert_eq!(task["attempt"], 1, "{task:#}");
        self.agent.wait_for("one", "began", |_| lines(&self.told, "began") == 1);
    }
}

fn stop(id: &str, epoch: u64) -> What {
    What::Stop(v1::StopTask { id: id.to_owned(), epoch, ..Default::default() })
}

/// Whatever is said twice, too late or by a master of before.
fn orders_count_once(t: &Test) {
    runtime().block_on(async {
        let mut bench = Bench::new(t).await;
        let (mut peer, _) = bench.master.welcome(EPOCH).await;
        assert_eq!(peer.ask("c1", bench.run("one", 2)).await, None);
        bench.runs_once();
        // The id again, with another order: the answer is that of the first.
        assert_eq!(peer.ask("c1", bench.run("other", 1)).await, None);
        assert_eq!(bench.agent.http("GET", "/v1/tasks/other", "").status, 404);
        assert_eq!(peer.ask("c2", bench.run("one", 2)).await, None);
        let fails = |told: Option<(Kind, String)>, kind: Kind, word: &str| {
            let (is, sentence) = told.expect("a failure");
            assert!(is == kind && sentence.contains(word), "{is:?}: {sentence}");
        };
        fails(peer.ask("c3", bench.run("one", 3)).await, Kind::Exists, "one");
        fails(peer.ask("c4", stop("one", 1)).await, Kind::Fenced, "");
        peer.order("c5", EPOCH - 1, stop("one", 0)).await;
        let failure = peer.result("c5").await.failure.expect("a failure");
        fails(Some((failure.kind(), failure.sentence)), Kind::Fenced, "epoch 6");
        peer.order("c6", EPOCH + 1, stop("one", 0)).await;
        let failure = peer.result("c6").await.failure.expect("a failure");
        fails(Some((failure.kind(), failure.sentence)), Kind::Invalid, "epoch");
        let long = "x".repeat(65);
        fails(peer.ask(&long, stop("one", 0)).await, Kind::Invalid, "64 bytes");
        bench.runs_once();
        drop(peer);

        // A master of before is not obeyed, whatever it says.
        let (mut old, hello) = bench.master.welcome(EPOCH - 1).await;
        assert_eq!(hello.epoch_seen, EPOCH);
        old.order("c7", EPOCH - 1, stop("one", 0)).await;
        while old.hear().await.is_some() {}
        bench.runs_once();

        // Nor is an order of before that comes once more, after the agent was killed.
        bench.agent.kill9();
        bench.agent.restart();
        let (mut peer, hello) = bench.master.welcome(EPOCH).await;
        assert_eq!(hello.tasks.len(), 1, "{hello:?}");
        assert_eq!(peer.ask("c1", bench.run("one", 2)).await, None);
        bench.runs_once();
        assert_eq!(peer.ask("c8", stop("one", 2)).await, None);
        bench.agent.wait("one");
        // What has ended is not started again under its name.
        assert_eq!(peer.ask("c9", bench.run("one", 2)).await, None);
        assert_eq!(bench.agent.task("one")["state"], "STATE_KILLED");
        assert_eq!(lines(&bench.told, "began"), 1);
        peer.forget("one").await;
    });
}

async fn ends(mut peer: Peer) {
    while peer.hear().await.is_some() {}
}

/// The stream is closed, what runs is not touched, and the next master is obeyed.
fn masters_that_break_rules_are_left(t: &Test) {
    runtime().block_on(async {
        let mut bench = Bench::new(t).await;
        let (mut peer, _) = bench.master.welcome(EPOCH).await;
        assert_eq!(peer.ask("c1", bench.run("one", 1)).await, None);
        bench.runs_once();
        let before = memory(bench.agent.pid());

        // More than it takes.
        let mut large = bench.spec.clone();
        large.env.insert("LARGE".to_owned(), "x".repeat(5 << 20));
        let task = Some(v1::TaskSpec { id: "large".to_owned(), ..large });
        peer.order("c2", EPOCH, What::RunTask(v1::RunTask { task, grant: None })).await;
        ends(peer).await;

        // Orders without end, and nobody who hears the results.
        let (mut peer, _) = bench.master.welcome(EPOCH).await;
        let flood = async {
            for n in 0..200_000 {
                peer.order(&format!("f{n}"), EPOCH, stop("nothing", 0)).await;
            }
        };
        let _ = timeout(Duration::from_secs(2), flood).await;
        drop(peer);

        // Messages that are missing, a second Welcome, and something heard that was never said.
        let (mut peer, _) = bench.master.welcome(EPOCH).await;
        peer.say(Down::Welcome(v1::Welcome::default())).await;
        ends(peer).await;
        let (mut peer, _) = bench.master.welcome(EPOCH).await;
        peer.skip(3);
        peer.say(Down::Ping(v1::Ping {})).await;
        ends(peer).await;

        let (mut peer, _) = bench.master.welcome(EPOCH).await;
        has_not_grown("a master", before, memory(bench.agent.pid()), 64);
        bench.runs_once();
        assert_eq!(bench.agent.http("GET", "/v1/tasks/large", "").status, 404);
        let said = bench.agent.said();
        for word in ["a second Welcome", "message 5 came after 1", "4194304"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(peer.ask("c3", stop("one", 1)).await, None);
        bench.agent.wait("one");
        peer.forget("one").await;
    });
}
