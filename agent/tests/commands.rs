//! The program, as a person runs it, and a node that only plays its part.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hafen_protocol::v1::node_server::{Node, NodeServer};
use hafen_protocol::v1::{self, attach_input, exec_input, output};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Its tasks are their names: "ends-7" has ended with exit code 7, "echo" runs and gives back what it reads.
#[derive(Debug, Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    signals: Arc<Mutex<Option<mpsc::Sender<i32>>>>,
}

impl Fake {
    fn note(&self, what: impl std::fmt::Debug) {
        self.asked.lock().unwrap().push(format!("{what:?}"));
    }

    fn noted(&self, part: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.contains(part))
    }
}

fn exit(code: i32) -> v1::Exit {
    v1::Exit { code: Some(code), ..Default::default() }
}

fn status(id: &str) -> Result<v1::TaskStatus, Status> {
    let mut status = v1::TaskStatus { id: id.to_owned(), attempt: 1, ..Default::default() };
    let mut spec = v1::TaskSpec { stdin: true, ..Default::default() };
    spec.root =
        Some(v1::Root { kind: Some(v1::root::Kind::Image("img".into())), ..Default::default() });
    status.spec = Some(spec);
    match id.split_once('-') {
        Some(("ends", code)) => {
            let code = code.parse().unwrap();
            status.set_state(if code == 0 { v1::State::Finished } else { v1::State::Failed });
            let sentence = format!("ended with exit code {code}");
            status.reason =
                Some(v1::Reason { sentence, exit: Some(exit(code)), ..Default::default() });
        }
        Some(("broken", _)) => {
            status.set_state(v1::State::Error);
            let sentence = "the image is not there".to_owned();
            status.reason = Some(v1::Reason { sentence, ..Default::default() });
        }
        None if id == "echo" => status.set_state(v1::State::Running),
        _ => return Err(Status::not_found(format!("there is no task {id:?}"))),
    }
    Ok(status)
}

fn say(what: output::What) -> Result<v1::Output, Status> {
    Ok(v1::Output { what: Some(what) })
}

fn line(text: &str, stream: v1::Stream) -> Result<v1::LogEntry, Status> {
    let time = Some(pbjson_types::Timestamp { seconds: 0, nanos: 0 });
    Ok(v1::LogEntry { time, stream: stream.into(), line: text.as_bytes().to_vec() })
}

fn flow<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Answer<Told<T>> {
    Ok(Response::new(Box::pin(tokio_stream::iter(items))))
}

#[tonic::async_trait]
impl Node for Fake {
    async fn run(&self, request: Request<v1::RunRequest>) -> Answer<v1::TaskStatus> {
        let spec = request.into_inner().task.unwrap();
        self.note(&spec);
        Ok(Response::new(v1::TaskStatus { id: spec.id, ..Default::default() }))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Answer<v1::ListTasksResponse> {
        self.note(request.into_inner());
        let tasks = ["echo", "ends-3"].iter().map(|id| status(id)).collect::<Result<_, _>>()?;
        Ok(Response::new(v1::ListTasksResponse { tasks }))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Answer<v1::TaskStatus> {
        Ok(Response::new(status(&request.into_inner().id)?))
    }

    async fn stop_task(&self, request: Request<v1::StopTaskRequest>) -> Answer<v1::TaskStatus> {
        self.note(request.get_ref());
        Ok(Response::new(status(&request.into_inner().id)?))
    }

    async fn signal_task(
        &self,
        request: Request<v1::SignalTaskRequest>,
    ) -> Answer<v1::SignalTaskResponse> {
        let request = request.into_inner();
        self.note(&request);
        status(&request.id)?;
        let number = request.signal.parse().unwrap_or_default();
        let running = self.signals.lock().unwrap().clone();
        if let Some(running) = running {
            running.send(number).await.unwrap();
        }
        Ok(Response::new(v1::SignalTaskResponse {}))
    }

    async fn remove_task(
        &self,
        request: Request<v1::RemoveTaskRequest>,
    ) -> Answer<v1::RemoveTaskResponse> {
        let request = request.into_inner();
        self.note(&request);
        match status(&request.id)?.state() {
            v1::State::Running if !request.force => Err(Status::failed_precondition("it runs")),
            _ => Ok(Response::new(v1::RemoveTaskResponse {})),
        }
    }

    async fn update_task(&self, request: Request<v1::UpdateTaskRequest>) -> Answer<v1::TaskStatus> {
        self.note(request.get_ref());
        Ok(Response::new(status(&request.into_inner().id)?))
    }

    async fn wait_task(&self, request: Request<v1::WaitTaskRequest>) -> Answer<v1::TaskStatus> {
        let request = request.into_inner();
        if request.timeout.is_some() {
            return Err(Status::deadline_exceeded("it has not ended"));
        }
        Ok(Response::new(status(&request.id)?))
    }

    type LogsStream = Told<v1::LogEntry>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        self.note(request.into_inner());
        flow(vec![line("out\n", v1::Stream::Stdout), line("err\n", v1::Stream::Stderr)])
    }

    type AttachStream = Told<v1::Output>;

    /// Gives back what it reads, and ends with 0 at the end of it, or with 128 and the signal.
    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachInput>>,
    ) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|first| first.what);
        self.note(first);
        let (signal, mut signals) = mpsc::channel(1);
        *self.signals.lock().unwrap() = Some(signal);
        let (tell, told) = mpsc::channel(1);
        tokio::spawn(async move {
            tell.send(say(output::What::Stderr(b"ready\n".to_vec()))).await.unwrap();
            loop {
                tokio::select! {
                    message = input.next() => match message.and_then(|m| m.ok()?.what) {
                        Some(attach_input::What::Stdin(bytes)) => {
                            tell.send(say(output::What::Stdout(bytes))).await.unwrap();
                        }
                        Some(attach_input::What::End(_)) => break,
                        Some(_) => {}
                        None => return,
                    },
                    Some(number) = signals.recv() => {
                        let exit = v1::Exit { signal: Some(number), ..Default::default() };
                        return tell.send(say(output::What::Exit(exit))).await.unwrap();
                    }
                }
            }
            tell.send(say(output::What::Exit(exit(0)))).await.unwrap();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }

    type ExecStream = Told<v1::Output>;

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Answer<Self::ExecStream> {
        let first = request.into_inner().message().await?.and_then(|first| first.what);
        let Some(exec_input::What::Start(start)) = first else {
            return Err(Status::invalid_argument("start"));
        };
        self.note(&start);
        let said = say(output::What::Stdout(start.command.join(" ").into_bytes()));
        flow(vec![said, say(output::What::Exit(exit(127)))])
    }

    async fn stats(&self, _: Request<v1::StatsRequest>) -> Answer<v1::StatsResponse> {
        let usage = v1::Usage { memory: 1 << 20, pids: 3, ..Default::default() };
        let task =
            v1::TaskUsage { id: "echo".to_owned(), usage: Some(usage), ..Default::default() };
        Ok(Response::new(v1::StatsResponse { tasks: vec![task] }))
    }

    type EventsStream = Told<v1::Event>;

    async fn events(&self, _: Request<v1::EventsRequest>) -> Answer<Self::EventsStream> {
        let event = |sequence, text: &str| {
            let what = Some(v1::event::What::Message(text.to_owned()));
            Ok(v1::Event { sequence, task: "echo".to_owned(), what, ..Default::default() })
        };
        flow(vec![
            event(1, "one"),
            event(2, "\x1b[2Jtwo"),
            Err(Status::out_of_range("the oldest is 9")),
        ])
    }

    async fn run_pod(&self, request: Request<v1::RunPodRequest>) -> Answer<v1::PodStatus> {
        let pod = request.into_inner().pod.unwrap();
        Ok(Response::new(v1::PodStatus { id: pod.id, ..Default::default() }))
    }

    async fn list_pods(&self, _: Request<v1::ListPodsRequest>) -> Answer<v1::ListPodsResponse> {
        Ok(Response::new(v1::ListPodsResponse::default()))
    }

    async fn get_pod(&self, _: Request<v1::GetPodRequest>) -> Answer<v1::PodStatus> {
        Err(Status::not_found("no pod"))
    }

    async fn stop_pod(&self, _: Request<v1::StopPodRequest>) -> Answer<v1::PodStatus> {
        Err(Status::not_found("no pod"))
    }

    async fn remove_pod(&self, _: Request<v1::RemovePodRequest>) -> Answer<v1::RemovePodResponse> {
        Err(Status::not_found("no pod"))
    }

    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Answer<v1::NodeStatus> {
        Ok(Response::new(v1::NodeStatus {
            name: "n1".to_owned(),
            images: "/none/agents-images".to_owned(),
            volumes: "/none/agents-volumes".to_owned(),
            ..Default::default()
        }))
    }

    async fn debug(&self, _: Request<v1::DebugRequest>) -> Answer<v1::DebugResponse> {
        Ok(Response::new(v1::DebugResponse::default()))
    }
}

/// The fake on a socket, and the program beside it.
struct Stage {
    folder: tempfile::TempDir,
    fake: Fake,
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
        let server = NodeServer::new(fake.clone());
        let listener =
            threads.block_on(async { UnixListener::bind(folder.path().join("s")).unwrap() });
        threads.spawn(
            tonic::transport::Server::builder()
                .add_service(server)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { folder, fake, _threads: threads }
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hafen"));
        command.args(words.split_whitespace()).stdin(Stdio::null());
        command.env("HAFEN_HOST", format!("unix://{}/s", self.folder.path().display()));
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

    fn with_pipes(&self, words: &str) -> Child {
        let pipes = || Stdio::piped();
        self.command(words).stdin(pipes()).stdout(pipes()).stderr(pipes()).spawn().unwrap()
    }
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn run_ends_as_its_task_does() {
    let stage = Stage::set();
    let (code, out, err) = stage.run("run --name ends-7 -m 1M img true");
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (7, "out\n", "err\n"),
        "from its log: it was quicker"
    );
    assert!(stage.fake.noted("memory: Some(1048576)"));
    let (code, _, err) = stage.run("run --name broken-1 img");
    assert_eq!(code, 125);
    assert!(err.contains("the image is not there"), "{err}");
    let (code, out, _) = stage.run("run -d --name ends-7 img");
    assert_eq!((code, out.as_str()), (0, "ends-7\n"));
    let file = stage.file("task.toml", "id = \"ends-4\"\nroot.image = \"img\"\n");
    assert_eq!(stage.run(&format!("run -f {}", file.display())).0, 4);
    assert_eq!(stage.run("run -it img").0, 125, "no terminal");
}

#[test]
fn what_is_typed_comes_back() {
    let stage = Stage::set();
    let mut child = stage.with_pipes("run -i --name echo img");
    child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
    let (code, out, err) = told(child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str(), err.as_str()), (0, "one\ntwo\n", "ready\n"));
    assert!(stage.fake.noted("replay: true"));
}

#[test]
fn signals_are_passed_on() {
    let stage = Stage::set();
    let mut child = stage.with_pipes("attach echo");
    // Or waiting closes it, which is an end as well.
    let _stdin = child.stdin.take();
    let mut ready = [0; 6];
    child.stderr.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_terminal_gives_each_key_and_is_given_back() {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let stage = Stage::set();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let cooked = || tcgetattr(&terminal.slave).unwrap().local_flags.contains(LocalFlags::ICANON);
    let mut child = stage.command("run -it --name echo img");
    let mut child = child.stdin(end()).stdout(end()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stderr.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert!(!cooked());
    let mut master = std::fs::File::from(terminal.master);
    master.write_all(b"h").unwrap();
    let mut back = [0; 1];
    master.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"h", "without the end of a line");
    master.write_all(b"\x10\x11").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "it is let go of");
    assert!(cooked());
}

#[test]
fn exec_has_the_code_of_its_program() {
    let stage = Stage::set();
    let (code, out, _) = stage.run("exec -e A=1 -u 7 -w /w echo ls -l");
    assert_eq!((code, out.as_str()), (127, "ls -l"));
    assert!(stage.fake.noted(r#"user: "7", cwd: "/w""#));
    assert_eq!(
        stage
            .command("exec echo true")
            .env("HAFEN_HOST", "unix:///none")
            .output()
            .unwrap()
            .status
            .code(),
        Some(125)
    );
}

#[test]
fn lists_are_tables_or_json() {
    let stage = Stage::set();
    let (code, out, _) = stage.run("ps -a --filter label=a=b");
    assert_eq!(code, 0);
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TASK", "STATE", "IMAGE", "AGE", "STARTS", "PORTS", "WHY"]);
    assert_eq!(lines[1], ["echo", "running", "img", "1"]);
    assert_eq!(lines[2][..4], ["ends-3", "failed", "img", "1"]);
    assert!(stage.fake.noted(r#"all: true, labels: {"a": "b"}"#));
    assert_eq!(stage.run("ps -q --filter state=failed").1, "ends-3\n");
    let json: serde_json::Value = serde_json::from_str(&stage.run("ps --format json").1).unwrap();
    assert_eq!(json[0]["state"], "STATE_RUNNING");
    assert!(stage.run("stats --no-stream").1.contains("1.00 MiB"));
    assert_eq!(stage.run("logs -n 5 echo").1, "out\n");
    assert_eq!(stage.run("logs -t echo").1, "1970-01-01T00:00:00.000Z out\n");
    assert!(stage.run("version").1.contains("of n1"));
    let df = stage.run("--volumes /none/named system df").1;
    assert!(df.contains("/none/agents-images") && df.contains("/none/named"), "{df}");
}

#[test]
fn exit_codes_mean_something() {
    let stage = Stage::set();
    let cases = [
        ("inspect nobody", 3, "there is no task"),
        ("rm echo", 4, "it runs"),
        ("rm -f echo", 0, ""),
        ("stop echo", 0, ""),
        ("kill -s HUP echo ends-1", 0, ""),
        ("kill nobody", 3, "nobody: there is no task"),
        ("wait --timeout 1 echo", 7, "it has not ended"),
        ("update echo", 2, "--memory"),
        ("update -m 1G echo", 0, ""),
        ("ps --filter x", 1, "--filter x"),
        ("pod inspect p", 3, "no pod"),
        ("cp echo:/a echo:/b", 1, "one of the two"),
        ("cp echo:/a /tmp", 1, "does not run"),
        ("nonsense", 2, "unrecognized"),
        ("--host tcp://h:1 ps", 2, "unix:///PATH"),
    ];
    for (words, wanted, part) in cases {
        let (code, _, err) = stage.run(words);
        assert_eq!(code, wanted, "{words}: {err}");
        assert!(err.contains(part), "{words}: {err}");
    }
    assert_eq!(stage.run("wait ends-0 ends-9").1, "0\n9\n");
}

#[test]
fn a_flow_that_breaks_off_says_why_and_text_moves_no_cursor() {
    let stage = Stage::set();
    let (code, out, err) = stage.run("events --since 1");
    assert_eq!((code, err.as_str()), (2, "hafen: the oldest is 9\n"));
    assert_eq!(out, " 1 echo one\n 2 echo  [2Jtwo\n");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let stage = Stage::set();
    let mut child = stage
        .command("stats --format json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let (code, _, err) = told(child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn no_agent_is_one_sentence() {
    let output = Command::new(env!("CARGO_BIN_EXE_hafen"))
        .args(["--host", "unix:///none/s", "ps"])
        .output()
        .unwrap();
    let (code, _, err) = told(output);
    assert_eq!(code, 6);
    assert!(err.contains("start one with \"hafen agent\"") && err.lines().count() == 1, "{err}");
}

#[test]
fn an_agent_is_there_until_it_is_asked_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let notes = std::os::unix::net::UnixDatagram::bind(path("notify")).unwrap();
    notes.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_hafen"));
    agent.arg("agent").env_clear().env("NOTIFY_SOCKET", path("notify")).stderr(Stdio::piped());
    agent.arg("--state").arg(path("state")).arg("--run").arg(path("run"));
    agent.args(["--runtime", "/proc/self/exe", "--log-format", "json"]);
    let mut agent = agent.spawn().unwrap();
    let mut note = [0; 64];
    let mut heard =
        || notes.recv(&mut note).map(|size| String::from_utf8_lossy(&note[..size]).into_owned());
    assert_eq!(heard().unwrap(), "READY=1");
    assert!(path("run/agent.sock").exists());
    let pid = nix::unistd::Pid::from_raw(agent.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(heard().unwrap(), "STOPPING=1");
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    assert!(!path("run/agent.sock").exists());
    let mut log = String::new();
    agent.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }

    let file = path("agent.toml");
    std::fs::write(&file, "sate = 1\n[gc]\nhigh = 101\n").unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_hafen"));
    check.args(["agent", "--check-config", "--runtime", "/proc/self/exe", "--config"]).arg(&file);
    let (code, _, err) = told(check.output().unwrap());
    assert_eq!(code, 2);
    assert!(
        err.contains("agent.toml:1): is no key") && err.contains("agent.toml:3): \"101\""),
        "{err}"
    );
}
