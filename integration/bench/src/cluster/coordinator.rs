//! `hafen coordinator`, started for this benchmark, and its API for people.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hafen_protocol::v1;
use hafen_protocol::v1::cluster_client::ClusterClient;
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::Error;
use crate::agent::hafen::in_time;
use crate::agent::{PATIENCE, Program, says};

/// A view of 10,000 nodes is long.
const MOST_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub struct Coordinator {
    pub runtime: Runtime,
    /// Where nodes find it.
    pub url: String,
    client: ClusterClient<Channel>,
    program: Program,
}

impl Coordinator {
    /// Its state goes into `folder`, its socket into `run`.
    ///
    /// # Errors
    /// If it does not answer in time, or ends.
    pub fn begin(
        program: &Path,
        folder: &Path,
        run: &Path,
        lease: Duration,
    ) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(says("mkdir", folder))?;
        fs::create_dir_all(run).map_err(says("mkdir", run))?;
        // Free a moment ago; that somebody else takes it meanwhile is seen as an end of the program.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let url = format!("http://{}", free.map_err(|e| format!("bind 127.0.0.1:0: {e}"))?);
        let (socket, log) = (run.join("coordinator.sock"), folder.join("coordinator.log"));
        let told = File::create(&log).map_err(says("create", &log))?;
        let mut command = Command::new(program);
        command.args(["coordinator", "--listen", &url]);
        command.arg("--listen").arg(format!("unix://{}", socket.display()));
        command.arg("--state").arg(folder.join("state"));
        command.args(["--lease", &format!("{}ms", lease.as_millis())]);
        command.stdout(Stdio::null()).stderr(told);
        let mut program = Program::begin(&mut command).map_err(says("run", program))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| format!("start a tokio runtime: {e}"))?;
        let channel = connect(&runtime, &socket, &mut program, &log)?;
        let client = ClusterClient::new(channel).max_decoding_message_size(MOST_BYTES);
        Ok(Self { runtime, url, client, program })
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.program.pid()
    }

    /// # Errors
    /// Of the call.
    pub fn view(&self) -> Result<v1::ClusterView, Error> {
        let request = in_time(v1::GetClusterRequest::default());
        Ok(self.runtime.block_on(self.client.clone().get_cluster(request))?.into_inner())
    }

    /// # Errors
    /// Of the call.
    pub fn submit(&self, job: v1::JobSpec) -> Result<(), Error> {
        let request = in_time(v1::SubmitJobRequest { job: Some(job), if_version: 0 });
        self.runtime.block_on(self.client.clone().submit_job(request))?;
        Ok(())
    }

    /// Nothing of it is to run, and then it is forgotten.
    ///
    /// # Errors
    /// Of the call.
    pub fn purge(&self, job: &str) -> Result<(), Error> {
        let request = in_time(v1::StopJobRequest { name: job.to_owned(), purge: true });
        self.runtime.block_on(self.client.clone().stop_job(request))?;
        Ok(())
    }

    /// When it tells that the lease of this node has ended; from now on.
    ///
    /// # Errors
    /// Of the call.
    pub fn unreachable(&self, node: &str) -> Result<Receiver<Instant>, Error> {
        let request =
            v1::ClusterEventsRequest { follow: true, node: node.to_owned(), ..Default::default() };
        let mut events = self.runtime.block_on(self.client.clone().events(request))?.into_inner();
        let (sender, told) = channel();
        self.runtime.spawn(async move {
            while let Ok(Some(event)) = events.message().await {
                if event.what == "node unreachable" && sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Ok(told)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.program.end(Signal::SIGTERM);
    }
}

fn connect(
    runtime: &Runtime,
    socket: &Path,
    program: &mut Program,
    log: &Path,
) -> Result<Channel, Error> {
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
    let endpoint = endpoint.connect_timeout(PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(channel) = runtime.block_on(endpoint.connect()) {
            return Ok(channel);
        }
        if Instant::now() > deadline || !matches!(program.child().try_wait(), Ok(None)) {
            let said = fs::read_to_string(log).unwrap_or_default();
            let said = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
            return Err(format!("hafen coordinator does not answer: {said}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
