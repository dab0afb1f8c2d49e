//! The program, as a person runs it, and a coordinator that only plays its part.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use futures_util::Stream;
use hafen_protocol::v1::cluster_server::{Cluster, ClusterServer};
use hafen_protocol::v1::{self, exec_input, output};
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// It knows one job, "web", at version 2; what it answers about the cluster was said before.
#[derive(Debug, Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    /// The last one again and again.
    views: Arc<Mutex<VecDeque<v1::ClusterView>>>,
}

impl Fake {
    fn note(&self, what: impl std::fmt::Debug) {
        self.asked.lock().unwrap().push(format!("{what:?}"));
    }

    fn noted(&self, part: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.contains(part))
    }

    fn will_show(&self, views: &[serde_json::Value]) {
        let views = views.iter().enumerate().map(|(index, view)| {
            let mut view: v1::ClusterView = serde_json::from_value(view.clone()).unwrap();
            view.revision = index as u64 + 1;
            view
        });
        *self.views.lock().unwrap() = views.collect();
    }
}

fn web(version: u64) -> v1::Job {
    let spec = |command: &str| {
        let task = json!({ "root": { "image": "img" }, "command": [command] });
        serde_json::from_value::<v1::JobSpec>(json!({ "name": "web", "replicas": 2, "task": task }))
            .unwrap()
    };
    let versions = [(1, "old"), (2, "new")];
    let versions = versions.map(|(version, command)| v1::JobVersion {
        version,
        spec: Some(spec(command)),
        instances: 2 * u32::from(version == 2),
    });
    v1::Job {
        name: "web".to_owned(),
        version,
        stable: 1,
        kind: "replicas".to_owned(),
        spec: Some(spec("new")),
        versions: versions.into(),
        ..Default::default()
    }
}

fn known(name: &str) -> Result<(), Status> {
    if name == "web" { Ok(()) } else { Err(Status::not_found(format!("there is no job {name:?}"))) }
}

fn flow<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Answer<Told<T>> {
    Ok(Response::new(Box::pin(tokio_stream::iter(items))))
}

fn say(what: output::What) -> Result<v1::Output, Status> {
    Ok(v1::Output { what: Some(what) })
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Answer<v1::ClusterView> {
        self.note(request.into_inner());
        let mut views = self.views.lock().unwrap();
        let last = views.len() == 1;
        let view = if last { views.front().cloned() } else { views.pop_front() };
        Ok(Response::new(view.unwrap_or_default()))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Answer<v1::ClusterNode> {
        self.note(request.get_ref());
        let name = request.into_inner().node;
        Ok(Response::new(v1::ClusterNode { name, ..Default::default() }))
    }

    async fn withdraw_certificates(
        &self,
        request: Request<v1::WithdrawCertificatesRequest>,
    ) -> Answer<v1::Withdrawal> {
        use v1::withdraw_certificates_request::Whose as Asked;
        use v1::withdrawal::Whose;
        self.note(request.get_ref());
        let request = request.into_inner();
        let whose = request.whose.map(|whose| match whose {
            Asked::Node(name) => Whose::Node(name),
            Asked::User(name) => Whose::User(name),
        });
        Ok(Response::new(v1::Withdrawal { whose, least: 2, serials: vec![request.serial] }))
    }

    async fn list_withdrawals(
        &self,
        _request: Request<v1::ListWithdrawalsRequest>,
    ) -> Answer<v1::ListWithdrawalsResponse> {
        let whose = Some(v1::withdrawal::Whose::User("ann".to_owned()));
        let serials = vec!["a1b".to_owned(), "c0ffee".to_owned()];
        let withdrawals = vec![v1::Withdrawal { whose, least: 2, serials }];
        let one = |serial: &str, withdrawn| v1::Certificate {
            whose: Some(v1::certificate::Whose::User("ann".to_owned())),
            serial: serial.to_owned(),
            number: 2,
            until: Some(pbjson_types::Timestamp::default()),
            withdrawn,
        };
        let certificates = vec![one("a1b", true), one("7f", false)];
        Ok(Response::new(v1::ListWithdrawalsResponse { withdrawals, certificates }))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        match request.into_inner().node.as_str() {
            "n1" => Err(Status::failed_precondition("n1 is heard")),
            _ => Ok(Response::new(v1::RemoveNodeResponse {})),
        }
    }

    async fn plan_job(&self, request: Request<v1::PlanJobRequest>) -> Answer<v1::JobPlan> {
        let job = request.into_inner().job.unwrap();
        let same = job == web(2).spec.unwrap();
        let changes = if same { vec![] } else { vec!["task.command".to_owned()] };
        let placements = vec![v1::Placement {
            slot: "0".to_owned(),
            sentence: "no node has 64 CPUs".to_owned(),
            ..Default::default()
        }];
        let placements = if same { vec![] } else { placements };
        let version = if same { 2 } else { 3 };
        Ok(Response::new(v1::JobPlan { changes, version, placements, ..Default::default() }))
    }

    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Answer<v1::Job> {
        let request = request.into_inner();
        self.note(&request);
        if request.if_version == 1 {
            return Err(Status::aborted("web has version 2"));
        }
        let job = request.job.unwrap();
        Ok(Response::new(v1::Job { name: job.name, ..web(2) }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Answer<v1::Job> {
        known(&request.into_inner().name)?;
        Ok(Response::new(web(2)))
    }

    async fn stop_job(&self, request: Request<v1::StopJobRequest>) -> Answer<v1::Job> {
        self.note(request.get_ref());
        known(&request.into_inner().name)?;
        Ok(Response::new(web(2)))
    }

    async fn scale_job(&self, request: Request<v1::ScaleJobRequest>) -> Answer<v1::Job> {
        self.note(request.get_ref());
        known(&request.into_inner().name)?;
        Ok(Response::new(web(2)))
    }

    async fn roll_back_job(&self, request: Request<v1::RollBackJobRequest>) -> Answer<v1::Job> {
        self.note(request.get_ref());
        known(&request.into_inner().name)?;
        Ok(Response::new(web(3)))
    }

    async fn get_instance(&self, request: Request<v1::GetInstanceRequest>) -> Answer<v1::Instance> {
        let name = request.into_inner().name;
        let (job, node) = ("web".to_owned(), "n2".to_owned());
        Ok(Response::new(v1::Instance { name, job, node, ..Default::default() }))
    }

    async fn signal_instance(
        &self,
        request: Request<v1::SignalTaskRequest>,
    ) -> Answer<v1::SignalTaskResponse> {
        self.note(request.into_inner());
        Ok(Response::new(v1::SignalTaskResponse {}))
    }

    async fn stop_instance(
        &self,
        request: Request<v1::StopInstanceRequest>,
    ) -> Answer<v1::Instance> {
        let name = request.into_inner().name;
        Ok(Response::new(v1::Instance { name, ..Default::default() }))
    }

    type LogsStream = Told<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        self.note(request.into_inner());
        let entry = |text: &str, stream: v1::Stream| {
            Ok(v1::LogEntry { time: None, stream: stream.into(), line: text.as_bytes().to_vec() })
        };
        let lost = Err(Status::unavailable("n2 is not heard any more"));
        flow(vec![entry("out\n", v1::Stream::Stdout), entry("err\n", v1::Stream::Stderr), lost])
    }

    type AttachStream = Told<v1::Output>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachInput>>,
    ) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|first| first.what);
        let Some(v1::attach_input::What::Start(start)) = first else {
            return Err(Status::invalid_argument("start"));
        };
        self.note(&start);
        let exit = v1::Exit { code: Some(4), ..Default::default() };
        flow(vec![say(output::What::Stdout(start.id.into_bytes())), say(output::What::Exit(exit))])
    }

    type ExecStream = Told<v1::Output>;

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Answer<Self::ExecStream> {
        let first = request.into_inner().message().await?.and_then(|first| first.what);
        let Some(exec_input::What::Start(start)) = first else {
            return Err(Status::invalid_argument("start"));
        };
        self.note(&start);
        let exit = v1::Exit { code: Some(9), ..Default::default() };
        flow(vec![
            say(output::What::Stdout(start.command.join(" ").into_bytes())),
            say(output::What::Exit(exit)),
        ])
    }

    type EventsStream = Told<v1::ClusterEvent>;

    async fn events(
        &self,
        request: Request<v1::ClusterEventsRequest>,
    ) -> Answer<Self::EventsStream> {
        self.note(request.into_inner());
        let event = |sequence, instance: &str| {
            let instance = instance.to_owned();
            Ok(v1::ClusterEvent {
                sequence,
                instance,
                what: "ready".to_owned(),
                ..Default::default()
            })
        };
        flow(vec![event(1, "a1"), event(2, "a2")])
    }

    async fn set_quota(&self, request: Request<v1::SetQuotaRequest>) -> Answer<v1::Quota> {
        self.note(request.get_ref());
        let v1::SetQuotaRequest { namespace, most } = request.into_inner();
        Ok(Response::new(v1::Quota { namespace, most, used: None }))
    }

    async fn list_quotas(
        &self,
        _: Request<v1::ListQuotasRequest>,
    ) -> Answer<v1::ListQuotasResponse> {
        let quotas = vec![v1::Quota { namespace: "shop".to_owned(), ..Default::default() }];
        Ok(Response::new(v1::ListQuotasResponse { quotas }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answer<v1::JoinToken> {
        self.note(request.into_inner());
        let until = Some(pbjson_types::Timestamp { seconds: 0, nanos: 0 });
        let (token, authority) = ("t-1".to_owned(), "00ff".to_owned());
        Ok(Response::new(v1::JoinToken { token, authority, until }))
    }
}

/// The fake on a socket and on a port, and the program beside it.
struct Stage {
    folder: tempfile::TempDir,
    fake: Fake,
    port: u16,
    _threads: tokio::runtime::Runtime,
}

impl Stage {
    fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let fake = Fake::default();
        let (socket, tcp) = threads.block_on(async {
            let socket = UnixListener::bind(folder.path().join("s")).unwrap();
            (socket, TcpListener::bind("127.0.0.1:0").await.unwrap())
        });
        let port = tcp.local_addr().unwrap().port();
        let server = || {
            let server = ClusterServer::new(fake.clone());
            tonic::transport::Server::builder().add_service(server)
        };
        threads.spawn(server().serve_with_incoming(UnixListenerStream::new(socket)));
        threads.spawn(server().serve_with_incoming(TcpListenerStream::new(tcp)));
        Self { folder, fake, port, _threads: threads }
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hafen"));
        command.args(words.split_whitespace()).stdin(Stdio::null()).env_remove("HAFEN_HOST");
        command.env("HAFEN_COORDINATOR", format!("unix://{}/s", self.folder.path().display()));
        command
    }

    fn run(&self, words: &str) -> (i32, String, String) {
        told(self.command(words).output().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn view(job: &str, more: serde_json::Value, instances: serde_json::Value) -> serde_json::Value {
    let mut job = json!({ "name": job, "version": "2", "kind": "replicas", "wanted": 2 });
    let serde_json::Value::Object(more) = more else { panic!("{more}") };
    job.as_object_mut().unwrap().extend(more);
    let mut view = json!({ "jobs": [job] });
    view["instances"] = instances;
    view
}

const READY: fn() -> serde_json::Value = || {
    json!([
        { "name": "a1", "job": "web", "slot": "0", "node": "n1", "phase": "PHASE_READY" },
        { "name": "a2", "job": "web", "slot": "1", "node": "n2", "phase": "PHASE_READY" },
        { "name": "a0", "job": "web", "slot": "1", "node": "n3", "phase": "PHASE_FAILED" },
        { "name": "a9", "job": "other", "slot": "0", "node": "n3", "phase": "PHASE_READY" }
    ])
};

fn starting() -> serde_json::Value {
    let more =
        json!({ "rollout": "ROLLOUT_UNDER_WAY", "ready": 1, "waiting": 1, "sentence": "no room" });
    view("web", more, json!([]))
}

fn ready() -> serde_json::Value {
    view("web", json!({ "rollout": "ROLLOUT_DONE", "ready": 2 }), READY())
}

#[test]
fn publish_waits_until_all_replicas_are_ready_and_says_where_they_run() {
    let stage = Stage::set();
    stage.fake.will_show(&[starting(), starting(), ready()]);
    let (code, out, err) = stage.run("publish quay.io/a/web:2 --replicas 2 --cpus .5 -- httpd -f");
    assert_eq!((code, err.as_str()), (0, "web: 1 of 2 ready, 1 waiting; no room\n"));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TASK", "JOB", "NODE", "STATE", "AGE", "PORTS", "WHY"]);
    assert_eq!(lines[1], ["a1", "web:0", "n1", "ready"]);
    assert_eq!(lines[2], ["a2", "web:1", "n2", "ready"]);
    assert_eq!(lines.len(), 3, "{out}");
    assert!(stage.fake.noted(r#"command: ["httpd", "-f"]"#));
    assert!(stage.fake.noted("after: 2"), "it waits for what is new");
    stage.fake.will_show(&[view("web", json!({ "rollout": "ROLLOUT_FAILED" }), json!([]))]);
    let (code, out, err) = stage.run("publish web");
    assert_eq!((code, out.as_str(), err.as_str()), (1, "", "hafen: web: version 2 has failed\n"));
    stage.fake.will_show(&[starting()]);
    let (code, _, err) = stage.run("publish web --timeout 1");
    assert_eq!(code, 7, "{err}");
    assert!(err.ends_with("hafen: not in 1s: web: 1 of 2 ready, 1 waiting; no room\n"), "{err}");
    let (code, out, _) = stage.run("publish web --detach");
    assert_eq!((code, out.as_str()), (0, "web version 2\n"));
    let (code, out, _) = stage.run("publish web:1 --dry-run");
    let file = stage.file("made.json", &out);
    assert_eq!(code, 0);
    assert_eq!(stage.run(&format!("job run -d {}", file.display())).0, 0);
}

const JOB: &str = "name: web\nreplicas: 2\ntask:\n  root: {image: img}\n  command: [new]\n";

#[test]
fn a_job_goes_from_file_to_history() {
    let stage = Stage::set();
    stage.fake.will_show(&[ready()]);
    let file = stage.file("web.yaml", JOB);
    let run = format!("job run {}", file.display());
    let (code, out, err) = stage.run(&format!("{run} --format json"));
    assert_eq!((code, err.as_str()), (0, ""));
    let tasks: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(tasks[1]["node"], "n2");
    assert_eq!(stage.run(&format!("{run} --if-version 1")).0, 4);
    let (code, out, _) = stage.run("job scale web 5");
    assert_eq!(code, 0);
    assert!(out.contains("a1"), "{out}");
    assert!(stage.fake.noted(r#"name: "web", replicas: 5"#));
    let (code, out, _) = stage.run("job rollback web 1 -d");
    assert_eq!((code, out.as_str()), (0, "web version 3\n"));
    assert!(stage.fake.noted(r#"RollBackJobRequest { name: "web", version: 1 }"#));
    let (_, out, _) = stage.run("job history web");
    assert_eq!(
        out,
        "VERSION  TASKS           CHANGES\n2        2      present  task.command\n1        0      stable\n"
    );
    let (code, out, _) = stage.run("job inspect web");
    assert_eq!((code, out.contains("\"version\": \"2\"")), (0, true), "{out}");
    stage.fake.will_show(&[ready(), view("web", json!({}), json!([]))]);
    let (code, out, err) = stage.run("job stop web --purge --wait");
    assert_eq!((code, out.as_str(), err.as_str()), (0, "web\n", "web: 2 tasks are there\n"));
    assert!(stage.fake.noted("purge: true"));
}

#[test]
fn a_plan_changes_nothing_and_says_what_would() {
    let stage = Stage::set();
    let file = stage.file("web.yaml", JOB);
    let plan = format!("job plan {}", file.display());
    assert_eq!(stage.run(&plan), (0, "web: nothing changes\n".to_owned(), String::new()));
    assert_eq!(stage.run(&format!("{plan} --detailed-exitcode")).0, 0);
    let file = stage.file("web.yml", &JOB.replace("[new]", "[newer]"));
    let plan = format!("job plan {}", file.display());
    let (code, out, _) = stage.run(&plan);
    let wanted = "web: would be version 3; 1 of 1 would wait for a node\n  task.command: [\"new\"] -> [\"newer\"]\n\
                  TASK   NODE  WHY                  PUSHES OUT\nweb:0  -     no node has 64 CPUs\n";
    assert_eq!((code, out.as_str()), (0, wanted));
    assert_eq!(stage.run(&format!("{plan} --detailed-exitcode")).0, 2);
    assert_eq!(stage.run("job plan /none --detailed-exitcode").0, 1);
    let file = stage.file("bad.yaml", "name: web\ntask:\n  comand: [a]\nreplica: 1\n");
    let (code, _, err) = stage.run(&format!("job plan {}", file.display()));
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!((code, lines.len()), (2, 2), "{err}");
    assert!(
        lines[0].ends_with("bad.yaml:3: task.comand: is no key here; \"command\" is one"),
        "{err}"
    );
    assert!(
        lines[1].ends_with("bad.yaml:4: replica: is no key here; \"replicas\" is one"),
        "{err}"
    );
}

#[test]
fn a_task_is_reached_on_whichever_node() {
    let stage = Stage::set();
    stage.fake.will_show(&[ready()]);
    let (code, out, err) = stage.run("logs -f -n 5 web:0");
    assert_eq!((code, out.as_str()), (6, "out\n"));
    assert_eq!(err, "err\nhafen: n2 is not heard any more\n");
    assert!(stage.fake.noted(r#"LogsRequest { id: "web:0", follow: true, tail: Some(5)"#));
    let (code, out, _) = stage.run("exec -e A=1 a1 ls -l");
    assert_eq!((code, out.as_str()), (9, "ls -l"));
    assert!(stage.fake.noted(r#"id: "a1", command: ["ls", "-l"]"#));
    let (code, out, _) = stage.run("events --no-follow --since 1 --job web");
    assert_eq!((code, out.as_str()), (0, " 1 a1 ready\n 2 a2 ready\n"));
    assert!(stage.fake.noted(r#"since: 1, follow: false, job: "web""#));
    assert_eq!(stage.run("ps -q").1, "a1\na2\na9\n");
    assert_eq!(stage.run("tasks ls -q --all --job web").1, "a1\na2\na0\n");
    assert_eq!(stage.run("tasks -q --node n3").1, "a9\n");
    assert_eq!(stage.run("task stop a1 a2").1, "a1\na2\n");
    assert!(stage.run("task inspect a1").1.contains("\"node\": \"n2\""));
    // Who names a node means that.
    let (code, _, err) = stage.run("--host unix:///none/s logs a1");
    assert_eq!(code, 6);
    assert!(err.contains("no agent listens"), "{err}");
    let (code, out, _) = stage.run("--host unix:///none/s logs --cluster a1");
    assert_eq!((code, out.as_str()), (6, "out\n"));
    let (code, out, _) = stage.run("--host unix:///none/s attach --cluster a1");
    assert_eq!((code, out.as_str()), (4, "a1"));
}

#[test]
fn the_rest_is_short() {
    let stage = Stage::set();
    stage.fake.will_show(&[json!({ "nodes": [{ "name": "n1", "presence": "PRESENCE_AWAY" }] })]);
    let (code, out, _) = stage.run("nodes ls");
    assert_eq!(code, 0);
    assert!(out.lines().nth(1).unwrap().starts_with("n1    away"), "{out}");
    let (_, out, _) = stage.run("nodes --format json");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()[0]["name"], "n1");
    assert!(stage.run("jobs --format json").1.starts_with("[]"));
    let cases = [
        ("drain n1 --wait", 0, "n1"),
        ("drain n1 --within 10m", 0, "n1"),
        ("drain n1 --within soon", 2, "is no duration"),
        ("drain n1 --off", 0, "n1"),
        ("drain n1 --off --within 1s", 2, "cannot be used with"),
        ("node rm n2", 0, "n2"),
        ("node rm n1", 4, "n1 is heard"),
        ("node inspect n", 0, "PRESENCE_AWAY"),
        ("node inspect x", 3, "there is no node"),
        ("job inspect nobody", 3, "there is no job"),
        ("job stop nobody", 3, "there is no job"),
        ("quota ls", 0, "shop"),
        ("quota set shop --cpus 2 --memory 1G", 0, "shop"),
        ("quota set shop", 2, "--none"),
        ("quota set shop --none", 0, "shop"),
        ("token create --valid 2h --uses 3", 0, "token     t-1\nauthority 00ff\nuntil     1970-"),
        ("token create --uses 0", 2, "0 is not in"),
        ("cert withdraw --user ann", 0, "coordinator cert ann --number 2"),
        ("cert withdraw --node n1", 0, "it may join again"),
        ("cert withdraw", 2, "--node <NAME>|--user <NAME>"),
        ("cert withdraw --node n1 --user ann", 2, "cannot be used with"),
        ("cert withdraw --user ann --serial 00:A1:B2", 0, "00:A1:B2: withdrawn; other"),
        ("cert withdraw --node n1 --serial 1f", 2, "--serial"),
        ("cert ls", 0, "user  ann   all     below 2"),
        ("cert ls", 0, "user  ann   c0ffee                                     withdrawn"),
        ("cert ls", 0, "user  ann   7f      2        1970-01-01T00:00:00.000Z  counts"),
        ("ps --filter state=running", 1, "hafen tasks"),
        ("--coordinator tcp://h:1 nodes", 2, "http://HOST:PORT"),
        ("--coordinator https://h:1 nodes", 6, "--tls-ca"),
    ];
    for (words, wanted, part) in cases {
        let (code, out, err) = stage.run(words);
        assert_eq!(code, wanted, "{words}: {err}");
        assert!(out.contains(part) || err.contains(part), "{words}: {out}{err}");
    }
    assert!(stage.fake.noted("on: false"));
    assert!(stage.fake.noted("serial: \"00:A1:B2\""));
    assert!(stage.fake.noted("cpu_milli: Some(2000)"));
    assert!(stage.fake.noted("seconds: 7200") && stage.fake.noted("uses: 3"));
    let (code, out, _) = stage.run(&format!("--coordinator http://127.0.0.1:{} nodes", stage.port));
    assert_eq!((code, out.contains("n1")), (0, true));
}

#[test]
fn no_coordinator_is_one_sentence() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for at in ["unix:///none/s".to_owned(), format!("http://127.0.0.1:{port}")] {
        let output = Command::new(env!("CARGO_BIN_EXE_hafen"))
            .args(["--coordinator", &at, "publish", "img"])
            .output()
            .unwrap();
        let (code, _, err) = told(output);
        assert_eq!(code, 6);
        let wanted =
            format!("hafen: no coordinator answers at {at}: start one with \"hafen coordinator\"");
        assert!(err.starts_with(&wanted) && err.lines().count() == 1, "{err}");
    }
}
