//! What a node does, for whoever asks: the same for gRPC, for JSON over HTTP, and for a master.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hafen_agent_core::{Phase, State, Stop, TaskId};
use hafen_protocol::v1;
use hafen_spec::keep::{Request, Status};
use hafen_sys::file::{boot_id, replace};
use hafen_sys::{CallError, Context};
use nix::fcntl::Flock;
use tokio::sync::{mpsc, oneshot};

use crate::artifact::Fetcher;
use crate::config::Config;
use crate::container::{Ground, Inquiry, Job, name as container_name};
use crate::driver::{Driver, Input, Live, Operation};
use crate::events::Events;
use crate::failure::{Failure, Kind, chain};
use crate::keeper::Runtime;
use crate::link::Heard;
use crate::logs::Wanted;
use crate::metrics::Metrics;
use crate::records::{Document, Folders, Grant};
use crate::resolve;
use crate::sandbox::Sandboxes;
use crate::traces::Traces;
use crate::{stats, streams, time, view};

/// What comes little by little. It ends early with a failure.
pub use hafen_door::Flow;

/// Of one artifact, where the task does not say less.
const ARTIFACT_BYTES: u64 = 16 << 30;
/// Tasks whose numbers are read one after the other before it is worth to do it twice at once.
const AT_LEAST: usize = 16;
/// Keepers that are asked at the same time after a start.
const ASKED: usize = 64;
/// For what is still to be written when we end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A task that is on its way to the disk.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: TaskId,
    written: oneshot::Receiver<Result<(), String>>,
}

impl Accepted {
    pub(crate) async fn written(self) -> Result<TaskId, Failure> {
        match self.written.await {
            Ok(Ok(())) => Ok(self.id),
            Ok(Err(why)) => {
                let words = format!("the task could not be written down: {why}");
                Err(Failure::new(Kind::Exhausted, words))
            }
            Err(_) => Err(Failure::new(Kind::Unavailable, "the agent is about to end: try again")),
        }
    }
}

/// A node that runs in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    inputs: mpsc::UnboundedSender<Input>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    ground: Ground,
    events: Events,
    groups: PathBuf,
    logs: PathBuf,
    boot_id: String,
    started: SystemTime,
    /// The same on a clock that nobody sets.
    begun: Instant,
    /// Of the folders, for as long as we are there.
    _locks: [Flock<fs::File>; 2],
}

impl Node {
    /// Go on with the tasks of a node, or begin.
    ///
    /// # Errors
    /// What keeps it from starting; a record that cannot be read does not.
    pub async fn open(config: &Config) -> Result<Self, Failure> {
        let internal = |e: CallError| Failure::of(Kind::Internal, &e);
        let state = config.state.join("agent");
        let (tasks, groups, logs) = (state.join("tasks"), state.join("pods"), state.join("logs"));
        for folder in [&config.state, &config.run] {
            make_folder(folder, 0o711).map_err(internal)?;
        }
        // What is written down of tasks may hold what their owners tell nobody else.
        for folder in [&state, &tasks, &groups, &logs] {
            make_folder(folder, 0o700).map_err(internal)?;
        }
        let locks = [own(&state)?, own(&config.run)?];
        let boot_id = boot_id().map_err(internal)?;
        let events = Events::open(&state.join("events")).map_err(internal)?;
        let fetcher = Fetcher::new(ARTIFACT_BYTES).map_err(|e| Failure::of(Kind::Internal, &e))?;
        let ground = Ground {
            instance: config.instance.as_str().into(),
            runtime: Runtime { program: config.runtime.clone(), root: config.run.join("oci") },
            folders: Folders::at(tasks),
            images: config.images.clone(),
            volumes: config.volumes.clone(),
            sandboxes: Sandboxes::open(config).map_err(internal)?,
            fetcher,
        };
        let (inputs, queue) = mpsc::unbounded_channel();
        let traces = config.otlp.as_deref().map(|url| Traces::open(url, &config.name));
        let traces = traces.transpose().map_err(|e| Failure::of(Kind::Invalid, &e))?;
        let mut driver = Driver::new(
            ground.clone(),
            events.clone(),
            boot_id.clone(),
            traces.unwrap_or_default(),
            Heard::open(&config.run, &boot_id),
            inputs.clone(),
        );
        recover(&mut driver, &groups).await?;
        tokio::spawn(driver.run(queue));
        let shared = Shared {
            config: config.clone(),
            ground,
            events,
            groups,
            logs,
            boot_id,
            started: SystemTime::now(),
            begun: Instant::now(),
            _locks: locks,
        };
        let node = Self { inputs, shared: Arc::new(shared) };
        tokio::spawn(keep_a_thread());
        tokio::spawn(crate::watch::pressure(node.clone()));
        tokio::spawn(crate::housekeeping::run(node.clone()));
        tokio::spawn(crate::link::stop_unheard(node.clone()));
        Ok(node)
    }

    /// Look at all, or change something, in the loop that owns it.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Driver) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        let ask = Box::new(move |driver: &mut Driver| drop(reply.send(ask(driver))));
        let gone = || Failure::new(Kind::Unavailable, "the agent is about to end: try again");
        self.inputs.send(Input::Ask(ask)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// The same, some time.
    pub(crate) fn tell(&self, ask: impl FnOnce(&mut Driver) + Send + 'static) {
        // Nobody is there any more: whoever comes after us goes on.
        let _ = self.inputs.send(Input::Ask(Box::new(ask)));
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn events_log(&self) -> &Events {
        &self.shared.events
    }

    /// Take a task on. The answer comes when it is written down.
    pub async fn run(&self, spec: v1::TaskSpec) -> Result<v1::TaskStatus, Failure> {
        let id = self.accept(spec, None, None).await?.written().await?;
        self.get(&id.0).await
    }

    /// Take a task on. It is not written down yet.
    pub(crate) async fn accept(
        &self,
        mut spec: v1::TaskSpec,
        group: Option<Arc<v1::PodSpec>>,
        grant: Option<Grant>,
    ) -> Result<Accepted, Failure> {
        if spec.id.is_empty() {
            spec.id = made_up();
        }
        self.usual(&mut spec);
        let definition = resolve::definition(&spec)?;
        resolve::name_devices(&mut spec)?;
        let id = TaskId(spec.id.clone());
        let known = id.clone();
        // Before anything is done for it.
        self.ask(move |driver| driver.is_free(&known)).await??;
        self.keep_secrets(&id, &mut spec)?;
        let staged = self.shared.ground.find_staged(&id, &spec);
        // A person may ask for more than there is, a master counts.
        let room = grant.as_ref().map(|_| self.allocatable());
        let submit = move |driver: &mut Driver| {
            if let Some(room) = room {
                has_room(driver, &room, &spec, None)?;
            }
            driver.submit(spec, definition, group, grant, staged)
        };
        let written = self.ask(submit).await??;
        Ok(Accepted { id, written })
    }

    /// What the node says where the task does not.
    fn usual(&self, spec: &mut v1::TaskSpec) {
        use crate::config::TaskLogFormat;
        use v1::log_policy::Format;
        let usual = &self.shared.config.task_log;
        let log = spec.log.get_or_insert_default();
        if log.max_bytes == 0 {
            log.max_bytes = usual.max_bytes;
        }
        if log.max_files == 0 {
            log.max_files = usual.max_files;
        }
        if log.format() == Format::Unspecified {
            log.set_format(match usual.format {
                TaskLogFormat::Json => Format::Json,
                TaskLogFormat::Plain => Format::Plain,
                TaskLogFormat::None => Format::None,
            });
        }
    }

    /// Secrets are in memory only: what is written down says that there are some, not what they are.
    fn keep_secrets(&self, id: &TaskId, spec: &mut v1::TaskSpec) -> Result<(), Failure> {
        if spec.secrets.is_empty() {
            return Ok(());
        }
        let folder = self.shared.ground.secrets(id);
        let invalid = |e: &dyn std::error::Error| Failure::of(Kind::Invalid, e);
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent)
                .call(|| format!("mkdir {}", parent.display()))
                .map_err(|e| Failure::of(Kind::Internal, &e))?;
        }
        // Of one that was never taken on.
        crate::secret::remove(&folder).map_err(|e| Failure::of(Kind::Internal, &e))?;
        crate::secret::write(&folder, &spec.secrets, |uid, gid| (uid, gid))
            .map_err(|e| invalid(&e))?;
        spec.secrets.iter_mut().for_each(|secret| secret.content.clear());
        Ok(())
    }

    pub async fn list(
        &self,
        request: v1::ListTasksRequest,
    ) -> Result<Vec<v1::TaskStatus>, Failure> {
        self.ask(move |driver| {
            let fits = |status: &v1::TaskStatus| {
                let ended = matches!(
                    status.state(),
                    v1::State::Finished | v1::State::Failed | v1::State::Killed | v1::State::Error
                );
                let mut labels = request.labels.iter();
                (request.all || !ended)
                    && labels.all(|(key, value)| status.labels.get(key) == Some(value))
            };
            let all = driver.live.iter().map(|(id, live)| status(driver, id, live));
            let quarantined = driver.quarantined.iter().map(|(id, why)| set_aside(id, why));
            let all = all.filter(fits);
            all.chain(quarantined.filter(|_| request.labels.is_empty())).collect()
        })
        .await
    }

    /// By name, or by the beginning of one.
    pub async fn get(&self, id: &str) -> Result<v1::TaskStatus, Failure> {
        let id = id.to_owned();
        self.ask(move |driver| {
            if let Some(why) = driver.quarantined.get(&id) {
                return Ok(set_aside(&id, why));
            }
            let id = find(driver, &id)?;
            Ok(status(driver, &id, &driver.live[&id]))
        })
        .await?
    }

    async fn named(&self, id: &str) -> Result<TaskId, Failure> {
        let id = id.to_owned();
        self.ask(move |driver| find(driver, &id)).await?
    }

    pub async fn stop(&self, request: v1::StopTaskRequest) -> Result<v1::TaskStatus, Failure> {
        let id = self.named(&request.id).await?;
        let grace = request.grace.as_ref().map(time::duration);
        let stopped = id.clone();
        let written = self.ask(move |driver| driver.stop(&stopped, Stop::Asked, grace)).await?;
        written_down(&id.0, written).await?;
        self.get(&id.0).await
    }

    pub async fn signal(&self, request: v1::SignalTaskRequest) -> Result<(), Failure> {
        let id = self.named(&request.id).await?;
        let name = if request.signal.is_empty() { "KILL" } else { &request.signal };
        let signal = hafen_sys::signal::number(name)
            .ok_or_else(|| Failure::new(Kind::Invalid, format!("there is no signal {name:?}")))?;
        let all = request.all;
        self.ask(move |driver| {
            let live = driver.live.get(&id);
            let container = live.and_then(|live| live.container.as_ref());
            let container = container.ok_or_else(|| not_running(&id))?;
            match container.ask(Request::Signal { signal, all }) {
                true => Ok(()),
                false => {
                    Err(Failure::new(Kind::Unavailable, "its keeper does not answer: try again"))
                }
            }
        })
        .await?
    }

    /// Forget a task that has ended, or end it first.
    pub async fn remove(&self, request: v1::RemoveTaskRequest) -> Result<(), Failure> {
        self.let_go(request, self.shared.config.master.is_some()).await
    }

    /// With `keep` a master's task stays: the master has not said that it knows what became of it.
    pub(crate) async fn let_go(
        &self,
        request: v1::RemoveTaskRequest,
        keep: bool,
    ) -> Result<(), Failure> {
        if self.remove_quarantined(&request).await? {
            return Ok(());
        }
        let id = self.named(&request.id).await?;
        let waiter = {
            let id = id.clone();
            self.ask(move |driver| {
                if keep && driver.is_masters(&id) {
                    let words = format!(
                        "{id} is a master's, who has it removed when it knows its end: hafen stop {id} ends it"
                    );
                    return Err(Failure::new(Kind::State, words));
                }
                if request.force || driver.has_ended(&id) {
                    driver.disown(&id);
                }
                let ended = driver.when(&id, Vec::new());
                driver.remove(&id, request.force).map(|()| ended)
            })
            .await??
        };
        if let Some(waiter) = waiter {
            let _ = waiter.await;
        }
        // Until its name is free again: what is released takes a moment.
        while self
            .ask({
                let id = id.clone();
                move |driver| driver.live.contains_key(&id) || driver.erasing.contains(&id)
            })
            .await?
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// What could not be read is removed on demand only.
    async fn remove_quarantined(&self, request: &v1::RemoveTaskRequest) -> Result<bool, Failure> {
        let (id, force) = (request.id.clone(), request.force);
        self.ask(move |driver| {
            if !driver.quarantined.contains_key(&id) {
                return Ok(false);
            }
            if !force {
                let words =
                    format!("{id} is set aside: look at its folder, or hafen rm --force {id}");
                return Err(Failure::new(Kind::State, words));
            }
            let removed = driver.ground.folders.remove(&TaskId(id.clone()));
            removed.map_err(|e| Failure::of(Kind::Internal, &e))?;
            driver.quarantined.remove(&id);
            Ok(true)
        })
        .await?
    }

    pub async fn update(&self, request: v1::UpdateTaskRequest) -> Result<v1::TaskStatus, Failure> {
        let id = self.named(&request.id).await?;
        let wanted = request.resources.unwrap_or_default();
        let known = self.get(&id.0).await?;
        let (task, room) = (id.clone(), self.allocatable());
        let mut spec = known.spec.clone().unwrap_or_default();
        let merged = merge(spec.resources.clone().unwrap_or_default(), wanted);
        spec.resources = Some(merged.clone());
        resolve::definition(&spec)?;
        let changed = spec;
        self.ask(move |driver| match driver.is_masters(&task) {
            true => has_room(driver, &room, &changed, Some(&task)),
            false => Ok(()),
        })
        .await??;
        if known.pid != 0 {
            let job = self.job(&id).await?;
            let change = resolve::linux_resources(&merged);
            let ground = &self.shared.ground;
            ground.update(&job, &change).await.map_err(|why| Failure::new(Kind::State, why))?;
        }
        let changed = id.clone();
        self.ask(move |driver| driver.change_resources(&changed, merged)).await?;
        self.get(&id.0).await
    }

    pub async fn wait(&self, request: v1::WaitTaskRequest) -> Result<v1::TaskStatus, Failure> {
        let id = self.named(&request.id).await?;
        let states: Vec<State> = request.states().filter_map(view::own).collect();
        let waiter = {
            let id = id.clone();
            self.ask(move |driver| driver.when(&id, states)).await?
        };
        let last = self.get(&id.0).await?;
        let Some(waiter) = waiter else { return Ok(last) };
        match request.timeout.as_ref().map(time::duration) {
            None => drop(waiter.await),
            Some(patience) => drop(tokio::time::timeout(patience, waiter).await.map_err(|_| {
                Failure::new(Kind::Deadline, format!("{id} is {} still", view::word(last.state())))
            })?),
        }
        // One that is removed at its end is not there any more.
        self.get(&id.0).await.or(Ok(last))
    }

    async fn job(&self, id: &TaskId) -> Result<Job, Failure> {
        let id = id.clone();
        self.ask(move |driver| {
            let live = driver.live.get(&id).filter(|live| live.container.is_some());
            let live = live.ok_or_else(|| not_running(&id))?;
            let attempt = driver.core.record(&id).map_or(0, |record| record.attempt);
            let (spec, group) = (live.spec.clone(), live.group.clone());
            Ok(Job { id: id.clone(), attempt, spec, group })
        })
        .await?
    }

    /// The folder of the keeper of a task that runs.
    async fn keeper(&self, id: &str) -> Result<PathBuf, Failure> {
        let id = self.named(id).await?;
        let job = self.job(&id).await?;
        Ok(self.shared.ground.folders.attempt(&job.id, job.attempt))
    }

    pub async fn logs(&self, request: v1::LogsRequest) -> Result<Flow<v1::LogEntry>, Failure> {
        use v1::log_policy::Format;
        let name = TaskId(request.id.clone());
        let is_there = self.ask(move |driver| driver.live.contains_key(&name)).await?;
        if !is_there && self.has_kept_logs(&request.id) {
            return Ok(self.kept_logs(&request));
        }
        let id = self.named(&request.id).await?;
        let known = self.get(&id.0).await?;
        let format = known.spec.and_then(|spec| spec.log).map(|log| log.format());
        if format == Some(Format::None) {
            let words = format!("{id} keeps no log: it was run with log.format none");
            return Err(Failure::new(Kind::State, words));
        }
        let wanted = Wanted {
            path: self.shared.ground.folders.log(&id),
            json: format != Some(Format::Plain),
            tail: request.tail,
            since: request.since.as_ref().map(time::system),
        };
        let over = match request.follow {
            true => Some(self.until_ended(&id).await?),
            false => None,
        };
        Ok(wanted.read(over))
    }

    /// A task is forgotten, and its logs are not: for as long as tasks that have ended are kept.
    pub(crate) fn keep_logs(&self, id: &TaskId) {
        let kept = self.shared.ground.folders.keep_log(id, &self.shared.logs.join(&id.0));
        if let Err(e) = kept {
            tracing::warn!(task = %id, error = chain(&e), "its logs are not kept");
        }
    }

    /// The folders of such logs.
    pub(crate) fn logs_folder(&self) -> &Path {
        &self.shared.logs
    }

    pub(crate) fn has_kept_logs(&self, id: &str) -> bool {
        resolve::name(id).is_ok() && self.shared.logs.join(id).exists()
    }

    fn kept_logs(&self, request: &v1::LogsRequest) -> Flow<v1::LogEntry> {
        let path = self.shared.logs.join(&request.id).join("log");
        let json = crate::logs::is_json(&path);
        let since = request.since.as_ref().map(time::system);
        Wanted { path, json, tail: request.tail, since }.read(None)
    }

    /// Closed when the task has ended.
    async fn until_ended(&self, id: &TaskId) -> Result<mpsc::Receiver<()>, Failure> {
        let (sender, receiver) = mpsc::channel(1);
        let id = id.clone();
        if let Some(waiter) = self.ask(move |driver| driver.when(&id, Vec::new())).await? {
            tokio::spawn(async move {
                // Both may be dropped: one has ended, or nobody waits any more.
                tokio::select! {
                    _ = waiter => {}
                    () = sender.closed() => {}
                }
            });
        }
        Ok(receiver)
    }

    /// Once it runs: whoever asks for a task and attaches at once need not ask when.
    pub async fn attach(
        &self,
        start: v1::AttachStart,
        input: Flow<v1::AttachInput>,
    ) -> Result<Flow<v1::Output>, Failure> {
        let id = self.named(&start.id).await?;
        let states = vec![State::Running, State::Killing];
        let asked = id.clone();
        if let Some(waiter) = self.ask(move |driver| driver.when(&asked, states)).await? {
            let _ = waiter.await;
        }
        let folder = self.keeper(&id.0).await?;
        streams::attach(&folder, &start, input).await
    }

    pub async fn exec(
        &self,
        start: v1::ExecStart,
        input: Flow<v1::ExecInput>,
    ) -> Result<Flow<v1::Output>, Failure> {
        let folder = self.keeper(&start.id).await?;
        streams::exec(&folder, &self.shared.config.run, start, input).await
    }

    pub async fn stats(&self, request: v1::StatsRequest) -> Result<v1::StatsResponse, Failure> {
        let mut wanted = Vec::new();
        for id in &request.ids {
            wanted.push(self.named(id).await?);
        }
        let running = self.running().await?;
        let missing = wanted.iter().find(|id| !running.iter().any(|(other, _)| other == *id));
        if let Some(id) = missing {
            return Err(not_running(id));
        }
        let all: Vec<(TaskId, Arc<Status>)> = running
            .into_iter()
            .filter(|(id, _)| wanted.is_empty() || wanted.contains(id))
            .collect();
        // It takes the kernel longest to open the files: so on all processors at once.
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let part = all.len().div_ceil(processors).max(AT_LEAST);
        let parts = all.chunks(part).map(<[_]>::to_vec).map(|part| {
            tokio::task::spawn_blocking(move || part.iter().map(usage).collect::<Vec<_>>())
        });
        let read = futures_util::future::try_join_all(parts.collect::<Vec<_>>()).await;
        let tasks = read.map_err(|e| Failure::of(Kind::Internal, &e))?.into_iter().flatten();
        Ok(v1::StatsResponse { tasks: tasks.collect() })
    }

    /// Tasks whose containers run.
    pub(crate) async fn running(&self) -> Result<Vec<(TaskId, Arc<Status>)>, Failure> {
        self.ask(|driver| {
            let running = driver.live.iter().filter_map(|(id, live)| {
                Some((id.clone(), live.container.as_ref()?.status.clone()))
            });
            running.collect()
        })
        .await
    }

    #[expect(clippy::unused_async, reason = "as its fellows")]
    pub async fn events(&self, request: v1::EventsRequest) -> Result<Flow<v1::Event>, Failure> {
        self.shared.events.listen(&request)
    }

    /// All tasks of a group, or none.
    pub async fn run_pod(&self, spec: v1::PodSpec) -> Result<v1::PodStatus, Failure> {
        self.accept_pod(spec, None).await
    }

    pub(crate) async fn accept_pod(
        &self,
        mut spec: v1::PodSpec,
        grant: Option<Grant>,
    ) -> Result<v1::PodStatus, Failure> {
        if spec.id.is_empty() {
            spec.id = made_up();
        }
        resolve::group(&mut spec)?;
        let (id, group) = (spec.id.clone(), Arc::new(spec));
        let known = group.clone();
        let taken = self.ask(move |driver| {
            let taken = driver.groups.contains_key(&known.id);
            if !taken {
                driver.groups.insert(known.id.clone(), known);
            }
            taken
        });
        if taken.await? {
            let words =
                format!("there is a pod {id} already: hafen pod rm {id}, or choose another name");
            return Err(Failure::new(Kind::Exists, words));
        }
        match self.begin_pod(&group, grant).await {
            Ok(()) => self.get_pod(&id).await,
            Err(failure) => {
                let _ = self.let_go_pod(v1::RemovePodRequest { id, force: true }, false).await;
                Err(failure)
            }
        }
    }

    async fn begin_pod(
        &self,
        group: &Arc<v1::PodSpec>,
        grant: Option<Grant>,
    ) -> Result<(), Failure> {
        let path = self.shared.groups.join(format!("{}.json", group.id));
        let mut written = (**group).clone();
        for secret in written.tasks.iter_mut().flat_map(|task| &mut task.secrets) {
            secret.content.clear();
        }
        let text = serde_json::to_vec(&written).map_err(|e| Failure::of(Kind::Internal, &e))?;
        replace(&path, &text, true).map_err(|e| Failure::of(Kind::Exhausted, &e))?;
        let written = Arc::new(written);
        let own = written.clone();
        self.ask(move |driver| driver.groups.insert(own.id.clone(), own)).await?;
        for task in &group.tasks {
            let accepted = self.accept(task.clone(), Some(written.clone()), grant.clone()).await?;
            accepted.written().await?;
        }
        Ok(())
    }

    pub async fn list_pods(&self) -> Result<Vec<v1::PodStatus>, Failure> {
        self.ask(|driver| driver.groups.values().map(|group| pod(driver, group)).collect()).await
    }

    pub async fn get_pod(&self, id: &str) -> Result<v1::PodStatus, Failure> {
        let id = id.to_owned();
        self.ask(move |driver| {
            let group = driver.groups.get(&id).ok_or_else(|| no_pod(&id))?;
            Ok(pod(driver, group))
        })
        .await?
    }

    async fn members(&self, id: &str) -> Result<Vec<TaskId>, Failure> {
        let id = id.to_owned();
        self.ask(move |driver| {
            driver.groups.get(&id).ok_or_else(|| no_pod(&id))?;
            Ok(driver.members(&id).cloned().collect())
        })
        .await?
    }

    pub async fn stop_pod(&self, request: v1::StopPodRequest) -> Result<v1::PodStatus, Failure> {
        let members = self.members(&request.id).await?;
        let grace = request.grace.as_ref().map(time::duration);
        let all = self.ask(move |driver| {
            let stopped = members.iter().map(|id| driver.stop(id, Stop::Asked, grace));
            stopped.collect::<Vec<_>>()
        });
        for written in all.await? {
            written_down(&request.id, written).await?;
        }
        self.get_pod(&request.id).await
    }

    pub async fn remove_pod(&self, request: v1::RemovePodRequest) -> Result<(), Failure> {
        self.let_go_pod(request, self.shared.config.master.is_some()).await
    }

    pub(crate) async fn let_go_pod(
        &self,
        request: v1::RemovePodRequest,
        keep: bool,
    ) -> Result<(), Failure> {
        let members = self.members(&request.id).await?;
        if !request.force {
            let running = self.get_pod(&request.id).await?;
            if running.tasks.iter().any(|task| !view::is_end(task.state())) {
                let id = &request.id;
                let words = format!(
                    "{id} has not ended: hafen pod stop {id} first, or hafen pod rm --force {id}"
                );
                return Err(Failure::new(Kind::State, words));
            }
        }
        let force = request.force;
        let removals = members
            .into_iter()
            .map(|TaskId(id)| self.let_go(v1::RemoveTaskRequest { id, force }, keep));
        for removed in futures_util::future::join_all(removals).await {
            removed?;
        }
        let path = self.shared.groups.join(format!("{}.json", request.id));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let e = CallError::new(format!("unlink {}", path.display()), e);
                return Err(Failure::of(Kind::Internal, &e));
            }
            _ => {}
        }
        self.ask(move |driver| drop(driver.groups.remove(&request.id))).await
    }

    pub async fn status(&self) -> Result<v1::NodeStatus, Failure> {
        let shared = &self.shared;
        let (allocated, tasks, quarantined) = self
            .ask(|driver| {
                (allocated(driver, |_, _| true), by_state(driver), driver.quarantined.clone())
            })
            .await?;
        Ok(v1::NodeStatus {
            name: shared.config.name.clone(),
            instance: shared.config.instance.clone(),
            boot_id: shared.boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel(),
            started: Some(time::stamp(shared.started)),
            capacity: Some(self.capacity(allocated)),
            attributes: crate::link::attributes(&shared.config),
            tasks,
            quarantined: quarantined.into_iter().collect(),
            images: shared.config.images.display().to_string(),
            volumes: shared.config.volumes.display().to_string(),
        })
    }

    /// Before we end: what is to be written down is, and what is to go has gone; unless that takes too long.
    pub async fn finish(&self) {
        let Ok(all) = self.ask(|driver| driver.finish()).await else { return };
        let done = futures_util::future::join_all(all);
        if tokio::time::timeout(FAREWELL, done).await.is_err() {
            tracing::warn!("ends before all is written down: the disk is slow");
        }
    }

    fn reserved(&self) -> v1::Amounts {
        let reserved = &self.shared.config.reserved;
        v1::Amounts {
            cpu_milli: Some(reserved.cpu_milli),
            memory: Some(reserved.memory),
            ..v1::Amounts::default()
        }
    }

    fn allocatable(&self) -> v1::Amounts {
        let (total, reserved) = (stats::machine(), self.reserved());
        let less = |all: Option<u64>, part: Option<u64>| {
            all.map(|all| all.saturating_sub(part.unwrap_or_default()))
        };
        v1::Amounts {
            cpu_milli: less(total.cpu_milli, reserved.cpu_milli),
            memory: less(total.memory, reserved.memory),
            ..total
        }
    }

    fn capacity(&self, allocated: v1::Amounts) -> v1::Capacity {
        let [cpu, memory, io] = v1::Capacity::WAITS.map(stats::pressure);
        v1::Capacity {
            total: Some(stats::machine()),
            reserved: Some(self.reserved()),
            allocatable: Some(self.allocatable()),
            allocated: Some(allocated),
            used: Some(stats::in_use()),
            cpu_pressure: cpu.0,
            memory_pressure: memory.0,
            io_pressure: io.0,
            memory_pressure_full: memory.1,
            io_pressure_full: io.1,
        }
    }

    pub async fn debug(&self) -> Result<v1::DebugResponse, Failure> {
        let operations = self.ask(|driver| {
            let all = driver.live.iter().flat_map(|(id, live)| {
                live.operations.iter().map(|(phase, operation)| v1::Operation {
                    task: id.0.clone(),
                    phase: (*phase).to_owned(),
                    since: Some(time::stamp(operation.since)),
                    deadline: Some(time::span(Operation::deadline())),
                    late: operation.is_late(),
                    last_error: operation.last_error.clone().unwrap_or_default(),
                })
            });
            all.collect()
        });
        let count = |folder| fs::read_dir(folder).map_or(0, |entries| entries.count() as u64);
        Ok(v1::DebugResponse {
            operations: operations.await?,
            connections: 0,
            descriptors: count("/proc/self/fd"),
            memory: resident().unwrap_or_default(),
        })
    }

    /// In the text format of OpenMetrics.
    pub async fn metrics(&self) -> Result<String, Failure> {
        let usage = self.stats(v1::StatsRequest::default()).await?;
        let (status, debug) = (self.status().await?, self.debug().await?);
        let phases = self.ask(|driver| driver.phases.clone()).await?;
        let uptime = self.shared.begun.elapsed();
        Ok(Metrics { usage, status, debug, phases, uptime }.text())
    }
}

/// One thread for what blocks is always there: tokio panics where it has none and the machine gives none (`pids.max`), and
/// waits for one that it has. It ends them after 10 s without work.
async fn keep_a_thread() {
    const OFTEN: Duration = Duration::from_secs(4);
    loop {
        let _ = tokio::task::spawn_blocking(|| {}).await;
        tokio::time::sleep(OFTEN).await;
    }
}

/// Wait until an order is on the disk. One of which nobody knows any more needs none.
pub(crate) async fn written_down(id: &str, written: oneshot::Receiver<()>) -> Result<(), Failure> {
    const PATIENCE: Duration = Duration::from_secs(10);
    tokio::time::timeout(PATIENCE, written).await.map(drop).map_err(|_| {
        let words =
            format!("what is asked of {id} cannot be written down yet: hafen debug says why");
        Failure::new(Kind::Exhausted, words)
    })
}

/// Ask all keepers of before, and go on.
async fn recover(driver: &mut Driver, groups: &Path) -> Result<(), Failure> {
    use futures_util::StreamExt;
    let loaded = driver.ground.folders.load().map_err(|e| Failure::of(Kind::Internal, &e))?;
    load_groups(driver, groups);
    driver.quarantined.extend(loaded.quarantined);
    let listener = driver.listener();
    let (ground, groups) = (driver.ground.clone(), driver.groups.clone());
    let asked = futures_util::stream::iter(loaded.documents).map(|document| {
        let (ground, listener) = (ground.clone(), listener.clone());
        let group = groups.get(&document.pod).cloned();
        async move {
            let inquiry = inquire(&ground, &document, group, listener).await;
            (document, inquiry)
        }
    });
    let all: Vec<_> = asked.buffer_unordered(ASKED).collect().await;
    let found = driver.ground.found().map_err(|why| Failure::new(Kind::Internal, why))?;
    let known: Vec<_> = all
        .iter()
        .map(|(document, _)| document.record.id.0.clone())
        .chain(groups.into_keys())
        .collect();
    driver.recover(all, &found);
    // Sandboxes of nobody.
    for name in driver.ground.sandboxes.names() {
        let quarantined = driver.quarantined.contains_key(&name);
        if !known.contains(&name)
            && !quarantined
            && let Err(e) = driver.ground.sandboxes.remove(&name).await
        {
            tracing::warn!(sandbox = name, error = chain(&e), "not removed");
        }
    }
    Ok(())
}

async fn inquire(
    ground: &Ground,
    document: &Document,
    group: Option<Arc<v1::PodSpec>>,
    listener: crate::container::Listener,
) -> Inquiry {
    let record = &document.record;
    let alive = matches!(record.phase, Phase::Starting | Phase::Running | Phase::Killing { .. });
    if !alive {
        return Inquiry::Nothing;
    }
    let (id, spec) = (record.id.clone(), Arc::new(document.spec.clone()));
    let job = Job { id, attempt: record.attempt, spec, group };
    ground.inquire(&job, listener).await
}

fn load_groups(driver: &mut Driver, folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let read = fs::read(entry.path()).ok();
        match read.and_then(|text| serde_json::from_slice::<v1::PodSpec>(&text).ok()) {
            Some(group) => drop(driver.groups.insert(group.id.clone(), Arc::new(group))),
            None => {
                let name = entry.file_name().to_string_lossy().into_owned();
                let why = format!("{} cannot be read", entry.path().display());
                driver.quarantined.insert(name, why);
            }
        }
    }
}

/// Of two agents with one folder, each would take the other's containers for nobody's, and release them.
fn own(folder: &Path) -> Result<Flock<fs::File>, Failure> {
    let lock = crate::lock::take(&folder.join("lock"));
    let lock = lock.map_err(|e| Failure::of(Kind::Internal, &e))?;
    lock.ok_or_else(|| {
        let folder = folder.display();
        let words = format!(
            "another agent works with {folder}: stop it first, or say another --state and --run"
        );
        Failure::new(Kind::State, words)
    })
}

fn make_folder(folder: &Path, mode: u32) -> Result<(), CallError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.call(|| format!("mkdir {}", folder.display()))
}

/// A name that nobody has: of time and chance.
fn made_up() -> String {
    use std::hash::{BuildHasher, RandomState};
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("t{:012x}", RandomState::new().hash_one(now) & 0xffff_ffff_ffff)
}

/// The task of that name, or the only one whose name begins so.
fn find(driver: &Driver, text: &str) -> Result<TaskId, Failure> {
    let exact = TaskId(text.to_owned());
    if driver.live.contains_key(&exact) {
        return Ok(exact);
    }
    let mut fitting = driver.live.keys().filter(|id| !text.is_empty() && id.0.starts_with(text));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id.clone()),
        (Some(one), Some(other)) => {
            let words = format!("{text:?} may be {one} or {other}: write more of the name");
            Err(Failure::new(Kind::Invalid, words))
        }
        (None, _) => {
            let words = format!("there is no task {text}: hafen ps -a lists all");
            Err(Failure::new(Kind::NotFound, words))
        }
    }
}

fn not_running(id: &TaskId) -> Failure {
    Failure::new(Kind::State, format!("{id} does not run: hafen inspect {id} says why"))
}

fn no_pod(id: &str) -> Failure {
    Failure::new(Kind::NotFound, format!("there is no pod {id}: hafen pod ls lists all"))
}

fn usage((id, status): &(TaskId, Arc<Status>)) -> v1::TaskUsage {
    v1::TaskUsage {
        id: id.0.clone(),
        time: Some(time::stamp(SystemTime::now())),
        usage: Some(stats::usage(status)),
    }
}

fn set_aside(id: &str, why: &str) -> v1::TaskStatus {
    let mut status =
        v1::TaskStatus { id: id.to_owned(), quarantined: why.to_owned(), ..Default::default() };
    status.set_state(v1::State::Lost);
    status
}

/// A task, as it is told.
pub(crate) fn status(driver: &Driver, id: &TaskId, live: &Live) -> v1::TaskStatus {
    let record = driver.core.record(id);
    let (state, attempt) = (view::wire(live.told.0), live.told.1);
    let container = live.container.as_ref();
    let started = container.map(|c| c.status.started_at.as_str());
    let started = started.or(live.end.as_ref().map(|end| end.started_at.as_str()));
    let stamp = |text: &str| humantime::parse_rfc3339(text).ok();
    let ended = live
        .end
        .as_ref()
        .and_then(|end| Some(stamp(&end.started_at)? + Duration::from_micros(end.wall_usec)));
    let readiness = |check: &&v1::CheckStatus| check.kind() == v1::check::Kind::Readiness;
    let mut status = v1::TaskStatus {
        id: id.0.clone(),
        reason: view::reason(&live.reason, live.end.as_ref()),
        attempt,
        failures: record.map_or(0, |record| record.failures),
        created: stamp(&live.created).map(time::stamp),
        started: started.and_then(stamp).map(time::stamp),
        ended: ended.filter(|_| container.is_none()).map(time::stamp),
        pid: container.map_or(0, |container| container.status.pid),
        container: container_name(id, attempt),
        pod: live.group.as_ref().map(|group| group.id.clone()).unwrap_or_default(),
        ready: state == v1::State::Running
            && live.checks.iter().filter(readiness).all(|check| check.passing),
        checks: live.checks.clone(),
        addresses: container.map(addresses).unwrap_or_default(),
        ports: container.map(|c| c.sandbox.ports.clone()).unwrap_or_default(),
        labels: live.spec.labels.clone(),
        spec: Some((*live.spec).clone()),
        sequence: record.map_or(0, |record| record.sequence),
        ..v1::TaskStatus::default()
    };
    status.set_state(state);
    status
}

fn addresses(container: &crate::container::Container) -> Vec<String> {
    container.sandbox.addresses.iter().map(ToString::to_string).collect()
}

fn pod(driver: &Driver, group: &Arc<v1::PodSpec>) -> v1::PodStatus {
    let tasks: Vec<v1::TaskStatus> =
        driver.members(&group.id).map(|id| status(driver, id, &driver.live[id])).collect();
    let addresses =
        tasks.iter().find_map(|task| (!task.addresses.is_empty()).then(|| task.addresses.clone()));
    let created = tasks.iter().filter_map(|task| task.created).min_by_key(|t| (t.seconds, t.nanos));
    let mut pod = v1::PodStatus {
        id: group.id.clone(),
        addresses: addresses.unwrap_or_default(),
        spec: Some((**group).clone()),
        created,
        ..v1::PodStatus::default()
    };
    pod.set_state(view::together(tasks.iter().map(v1::TaskStatus::state)));
    pod.tasks = tasks;
    pod
}

/// Requests are never more than there is. What may be taken away again is counted by itself: it is given what others
/// leave.
fn has_room(
    driver: &Driver,
    room: &v1::Amounts,
    spec: &v1::TaskSpec,
    but: Option<&TaskId>,
) -> Result<(), Failure> {
    let revocable = is_revocable(spec);
    let taken = allocated(driver, |id, other| Some(id) != but && is_revocable(other) == revocable);
    let wanted = spec.resources.as_ref().and_then(|all| all.request).unwrap_or_default();
    let each = [
        ("cpu", room.cpu_milli, taken.cpu_milli, wanted.cpu_milli),
        ("memory", room.memory, taken.memory, wanted.memory),
        ("pids", room.pids, taken.pids, wanted.pids),
        ("disk", room.disk, taken.disk, wanted.disk),
    ];
    for (name, room, taken, wanted) in each {
        let (Some(room), Some(wanted)) = (room, wanted) else { continue };
        let free = room.saturating_sub(taken.unwrap_or_default());
        if wanted > free {
            let words = format!("resources.request.{name}: {wanted} of {free} that are free");
            return Err(Failure::new(Kind::Exhausted, words));
        }
    }
    Ok(())
}

pub(crate) fn is_revocable(spec: &v1::TaskSpec) -> bool {
    spec.resources.as_ref().is_some_and(|resources| resources.revocable)
}

/// What tasks that have not ended ask for.
fn allocated(driver: &Driver, counts: impl Fn(&TaskId, &v1::TaskSpec) -> bool) -> v1::Amounts {
    let mut sum = v1::Amounts::default();
    for (id, live) in &driver.live {
        let request = live.spec.resources.as_ref().and_then(|r| r.request.as_ref());
        let counts = !driver.has_ended(id) && counts(id, &live.spec);
        let Some(request) = request.filter(|_| counts) else { continue };
        sum.add(request);
    }
    sum
}

fn by_state(driver: &Driver) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for record in driver.core.records() {
        *counts.entry(view::word(view::wire(view::state(record)))).or_default() += 1;
    }
    counts
}

/// What is not named stays as it is.
fn merge(known: v1::Resources, wanted: v1::Resources) -> v1::Resources {
    let amounts = |known: Option<v1::Amounts>, wanted: Option<v1::Amounts>| {
        let (known, wanted) = (known.unwrap_or_default(), wanted.unwrap_or_default());
        let merged = v1::Amounts {
            cpu_milli: wanted.cpu_milli.or(known.cpu_milli),
            memory: wanted.memory.or(known.memory),
            swap: wanted.swap.or(known.swap),
            pids: wanted.pids.or(known.pids),
            disk: wanted.disk.or(known.disk),
        };
        (merged != v1::Amounts::default()).then_some(merged)
    };
    v1::Resources {
        request: amounts(known.request, wanted.request),
        limit: amounts(known.limit, wanted.limit),
        io: if wanted.io.is_empty() { known.io } else { wanted.io },
        cpuset: if wanted.cpuset.is_empty() { known.cpuset } else { wanted.cpuset },
        revocable: known.revocable || wanted.revocable,
    }
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Bytes of this process in memory (proc_pid_statm(5)).
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
