//! `hafen agent`, through its API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use hafen_protocol::v1;
use hafen_protocol::v1::node_client::NodeClient;
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::{
    Ended, Ends, Error, Node, PATIENCE, Program, Wanted, call, gate, image, says, wait_until,
};
use crate::host::Host;
use crate::images::layout::Made;
use crate::programs::ask_version;

pub const NAME: &str = "hafen";
/// Answers about 1,000 tasks are long.
const MOST_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub struct Hafen {
    program: PathBuf,
    folder: PathBuf,
    run: PathBuf,
    instance: String,
    gate: PathBuf,
    host: Host,
    runtime: Runtime,
    client: NodeClient<Channel>,
    agent: Program,
}

impl Hafen {
    /// `run` is on a tmpfs, as /run is.
    pub fn new(
        program: &Path,
        (folder, run): (&Path, &Path),
        made: &Made,
        gate: &Path,
        host: &Host,
    ) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(says("mkdir", folder))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| format!("start a tokio runtime: {e}"))?;
        import(program, folder, made)?;
        let instance = format!("bench-{}", std::process::id());
        let agent = begin(program, folder, run, &instance, &[])?;
        let client = connect(&runtime, &run.join("agent.sock"))?;
        Ok(Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            run: run.to_owned(),
            instance,
            gate: gate.to_owned(),
            host: host.clone(),
            runtime,
            client,
            agent,
        })
    }

    fn list(&self) -> Result<Vec<v1::TaskStatus>, tonic::Status> {
        let mut client = self.client.clone();
        let request = v1::ListTasksRequest { all: true, ..v1::ListTasksRequest::default() };
        let answer = self.runtime.block_on(client.list_tasks(in_time(request)))?;
        Ok(answer.into_inner().tasks)
    }
}

/// What says its name at the gate.
pub(crate) fn spec(wanted: &Wanted, gate: &Path) -> v1::TaskSpec {
    let root = v1::Root {
        kind: Some(v1::root::Kind::Image(image::NAME.to_owned())),
        ..v1::Root::default()
    };
    let gate = v1::Mount {
        source: Some(v1::mount::Source::Host(gate.display().to_string())),
        destination: gate::FOLDER_INSIDE.to_owned(),
        options: Vec::new(),
    };
    let mut network = v1::Network::default();
    network.set_mode(v1::network::Mode::None);
    v1::TaskSpec {
        id: wanted.name.clone(),
        root: Some(root),
        command: wanted.command().into(),
        mounts: vec![gate],
        network: Some(network),
        ..v1::TaskSpec::default()
    }
}

/// Into the store of the agent that has this folder.
pub(crate) fn import(program: &Path, folder: &Path, made: &Made) -> Result<(), Error> {
    let mut import = Command::new(program);
    import.arg("--images").arg(folder.join("images")).args(["image", "import"]).arg(&made.layout);
    call(import.args(["--name", image::NAME])).map(drop)
}

/// An agent that hangs is a failure of its round.
pub(crate) fn in_time<T>(request: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(PATIENCE);
    request
}

/// An agent, with `more` words behind those that all have.
pub(crate) fn begin(
    program: &Path,
    folder: &Path,
    run: &Path,
    instance: &str,
    more: &[&str],
) -> Result<Program, Error> {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("agent.log"));
    let log = log.map_err(says("open", &folder.join("agent.log")))?;
    let mut command = Command::new(program);
    command.arg("--images").arg(folder.join("images"));
    command.arg("--volumes").arg(folder.join("volumes"));
    command.arg("agent").arg("--state").arg(folder.join("state")).arg("--run").arg(run);
    command.args(["--instance", instance]).args(more).stdout(Stdio::null()).stderr(log);
    Program::begin(&mut command).map_err(says("run", program))
}

fn connect(runtime: &Runtime, socket: &Path) -> Result<NodeClient<Channel>, Error> {
    let endpoint =
        Endpoint::try_from(format!("unix://{}", socket.display()))?.connect_timeout(PATIENCE);
    let mut channel = None;
    wait_until("the agent answers", || {
        channel = runtime.block_on(endpoint.connect()).ok();
        channel.is_some()
    })?;
    let channel = channel.ok_or("no connection to the agent")?;
    Ok(NodeClient::new(channel).max_decoding_message_size(MOST_BYTES))
}

impl Node for Hafen {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        ask_version(&self.program, &self.folder)
    }

    fn daemon(&self) -> Option<i32> {
        Some(self.agent.pid())
    }

    fn start(&self, wanted: &Wanted) -> Result<(), Error> {
        let mut client = self.client.clone();
        let request = v1::RunRequest { task: Some(spec(wanted, &self.gate)) };
        self.runtime.block_on(client.run(in_time(request)))?;
        Ok(())
    }

    fn destroy(&self, names: &[String]) -> Result<(), Error> {
        for name in names {
            let mut client = self.client.clone();
            let request = v1::RemoveTaskRequest { id: name.clone(), force: true };
            self.runtime.block_on(client.remove_task(in_time(request)))?;
        }
        Ok(())
    }

    fn ends(&self) -> Result<Ends, Error> {
        let mut client = self.client.clone();
        let request = v1::EventsRequest { follow: true, ..v1::EventsRequest::default() };
        let mut events = self.runtime.block_on(client.events(request))?.into_inner();
        let (sender, told) = channel();
        self.runtime.spawn(async move {
            while let Ok(Some(event)) = events.message().await {
                let at = Instant::now();
                let Some(v1::event::What::State(change)) = event.what else { continue };
                let is_end = matches!(
                    change.state(),
                    v1::State::Finished | v1::State::Failed | v1::State::Killed
                );
                if is_end && sender.send(Ended { name: event.task, at }).is_err() {
                    return;
                }
            }
        });
        Ok(Ends { told, listener: None })
    }

    fn stats(&self) -> Result<Option<usize>, Error> {
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(client.stats(in_time(v1::StatsRequest::default())))?;
        Ok(Some(answer.into_inner().tasks.len()))
    }

    fn recover(&mut self, count: usize) -> Result<Option<Duration>, Error> {
        self.agent.end(Signal::SIGKILL);
        let begun = Instant::now();
        self.agent = begin(&self.program, &self.folder, &self.run, &self.instance, &[])?;
        self.client = connect(&self.runtime, &self.run.join("agent.sock"))?;
        wait_until("the agent knows of all its tasks", || {
            let runs = |task: &v1::TaskStatus| task.state() == v1::State::Running && task.pid != 0;
            self.list().is_ok_and(|tasks| tasks.iter().filter(|task| runs(task)).count() >= count)
        })?;
        Ok(Some(begun.elapsed()))
    }
}

impl Drop for Hafen {
    fn drop(&mut self) {
        let names: Vec<String> =
            self.list().unwrap_or_default().into_iter().map(|t| t.id).collect();
        if let Err(e) = self.destroy(&names) {
            eprintln!("bench-agent: remove tasks of the agent: {e}");
        }
        self.agent.end(Signal::SIGTERM);
        self.host.sweep(&format!("hafen/{}", self.instance));
    }
}
