//! What a master orders, carried out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hafen_agent_core::{Stop, TaskId};
use hafen_protocol::v1::{self, command, failure};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::channel::{self, Caller};
use super::clock::BootTime;
use super::disk::Disk;
use super::words::{self, Unable, unable as failed};
use crate::driver::Driver;
use crate::failure::{Failure, Kind};
use crate::node::{Node, written_down};
use crate::records::Grant;
use crate::time;

/// Between two looks at what ends in a moment.
const AGAIN: Duration = Duration::from_millis(2);

/// What a command comes to.
pub(super) type Answer = Result<Option<v1::Tasks>, Unable>;
/// A command has begun; this is the rest of it.
type Rest = BoxFuture<'static, Answer>;

/// What became of a command.
#[derive(Debug)]
pub(super) enum Finished {
    Done(v1::CommandResult),
    /// Its stream ended before it began.
    Dropped(String),
}

/// Until when commands of a stream may be begun. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// Nanoseconds since the boot.
    until: Arc<AtomicU64>,
    closed: watch::Sender<bool>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { until: Arc::default(), closed: watch::Sender::new(false) }
    }

    pub(super) fn open_until(&self, time: BootTime) {
        let nanos = u64::try_from(time.0.as_nanos()).unwrap_or(u64::MAX);
        self.until.store(nanos, Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.until.store(0, Ordering::Release);
        self.closed.send_replace(true);
    }

    pub(super) fn is_open(&self) -> bool {
        let until = Duration::from_nanos(self.until.load(Ordering::Acquire));
        BootTime::now().0 < until
    }

    /// When the stream ends.
    pub(super) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

/// What commands of one stream are carried out with.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    pub(super) node: Node,
    pub(super) disk: Disk,
    pub(super) gate: Gate,
    pub(super) caller: Caller,
    pub(super) finished: mpsc::UnboundedSender<Finished>,
}

impl Orders {
    /// Begin commands in the order in which they come, until there are no more. What was not begun when the gate closed is
    /// thrown away.
    pub(super) fn carry(
        self,
        mut commands: mpsc::UnboundedReceiver<v1::Command>,
    ) -> JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                if self.gate.is_open() {
                    self.carry_one(command).await;
                } else {
                    let _ = self.finished.send(Finished::Dropped(command.id));
                }
            }
        })
    }

    async fn carry_one(&self, command: v1::Command) {
        let id = command.id.clone();
        tracing::debug!(command = id, "begins");
        let begun = self.begin(command).await;
        let finished = self.finished.clone();
        // The stream may end before this does: what has begun comes to its end.
        tokio::spawn(async move {
            let answer = match begun {
                Ok(rest) => rest.await,
                Err(failure) => Err(failure),
            };
            if let Err(Unable(failure)) = &answer {
                let kind = failure.kind().as_str_name();
                tracing::info!(command = id, kind, why = failure.sentence, "not carried out");
            }
            let _ = finished.send(Finished::Done(words::result(&id, answer)));
        });
    }

    async fn begin(&self, command: v1::Command) -> Result<Rest, Unable> {
        use command::What;
        match command.what {
            Some(What::RunTask(run)) => self.run_task(run).await,
            Some(What::RunPod(run)) => self.run_pod(run).await,
            Some(What::Stop(stop)) => self.stop(stop).await,
            Some(What::Forget(forget)) => self.forget(forget).await,
            Some(What::Update(update)) => self.update(update).await,
            Some(What::Drain(drain)) => self.drain(&drain),
            Some(What::Reconcile(reconcile)) => self.reconcile(&reconcile).await,
            Some(What::Open(open)) => self.open(command.id, open).await,
            Some(What::Signal(signal)) => self.signal(signal).await,
            None => Err(failed(failure::Kind::Unsupported, "this node knows no such command")),
        }
    }

    async fn run_task(&self, run: v1::RunTask) -> Result<Rest, Unable> {
        let spec = run.task.filter(|task| !task.id.is_empty());
        let spec = spec.ok_or_else(|| failed(failure::Kind::Invalid, "task.id is missing"))?;
        let grant = grant(run.grant)?;
        let (id, epoch) = (TaskId(spec.id.clone()), grant.epoch);
        if self.node.ask(move |driver| is_known(driver, &id, epoch)).await?? {
            return Ok(done());
        }
        self.takes_tasks(std::slice::from_ref(&spec))?;
        let accepted = self.node.accept(spec, None, Some(grant)).await?;
        Ok(async move { Ok(accepted.written().await.map(|_| None)?) }.boxed())
    }

    /// One after the other: a pod that cannot be taken on as a whole is taken back.
    async fn run_pod(&self, run: v1::RunPod) -> Result<Rest, Unable> {
        let pod = run.pod.filter(|pod| !pod.id.is_empty());
        let pod = pod.ok_or_else(|| failed(failure::Kind::Invalid, "pod.id is missing"))?;
        let grant = grant(run.grant)?;
        let (id, epoch) = (pod.id.clone(), grant.epoch);
        if self.node.ask(move |driver| is_known_pod(driver, &id, epoch)).await?? {
            return Ok(done());
        }
        self.takes_tasks(&pod.tasks)?;
        self.node.accept_pod(pod, Some(grant)).await?;
        Ok(done())
    }

    fn takes_tasks(&self, tasks: &[v1::TaskSpec]) -> Result<(), Unable> {
        if self.disk.known().draining {
            return Err(failed(failure::Kind::Draining, "this node takes no new tasks"));
        }
        // Whoever ordered it may have given the task away since.
        let longest = tasks.iter().filter_map(|task| task.stop_after_disconnect.as_ref());
        let longest = longest.map(time::duration).min();
        let heard = &self.caller.heard;
        if longest.is_some_and(|longest| heard.is_longer_ago(longest, BootTime::now())) {
            return Err(failed(failure::Kind::Fenced, "stop_after_disconnect has passed already"));
        }
        Ok(())
    }

    async fn stop(&self, stop: v1::StopTask) -> Result<Rest, Unable> {
        let why = match stop.why() {
            v1::reason::Kind::Preempted => Stop::Preempted,
            _ => Stop::Asked,
        };
        let (id, grace, epoch) = (stop.id, stop.grace.as_ref().map(time::duration), stop.epoch);
        let name = id.clone();
        let stopped = self.node.ask(move |driver| {
            let tasks = named(driver, &id);
            let later = |task: &TaskId| epoch != 0 && epoch_of(driver, task) > Some(epoch);
            if let Some(task) = tasks.iter().find(|task| later(task)) {
                let words = format!("{task} was given with an epoch later than {epoch}");
                return Err(failed(failure::Kind::Fenced, words));
            }
            let stopped = tasks.iter().map(|task| driver.stop(task, why.clone(), grace));
            Ok(stopped.collect::<Vec<_>>())
        });
        let stopped = stopped.await??;
        let rest = async move {
            for written in stopped {
                written_down(&name, written).await?;
            }
            Ok(None)
        };
        Ok(rest.boxed())
    }

    async fn forget(&self, forget: v1::ForgetTask) -> Result<Rest, Unable> {
        let id = forget.id.clone();
        let (tasks, pod) = self
            .node
            .ask(move |driver| {
                let tasks = named(driver, &id);
                let lives = |task: &&TaskId| !driver.is_over(task) && !driver.is_all_but_over(task);
                if let Some(task) = tasks.iter().find(lives) {
                    let words = format!("{task} has not ended, or not all of it is acknowledged");
                    return Err(failed(failure::Kind::State, words));
                }
                // With its last task a pod is nothing any more.
                let pod = tasks.first().and_then(|task| driver.live.get(task)?.group.clone());
                let pod = pod.filter(|pod| driver.members(&pod.id).all(|id| tasks.contains(id)));
                Ok((tasks, pod.map(|pod| pod.id.clone())))
            })
            .await??;
        let node = self.node.clone();
        let rest = async move {
            for task in &tasks {
                while node.ask(is_all_but_over(task)).await? {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            if forget.keep_logs {
                tasks.iter().for_each(|task| node.keep_logs(task));
            }
            match pod {
                Some(id) => {
                    node.let_go_pod(v1::RemovePodRequest { id, force: false }, false).await?;
                }
                None => {
                    for TaskId(id) in tasks {
                        node.let_go(v1::RemoveTaskRequest { id, force: false }, false).await?;
                    }
                }
            }
            Ok(None)
        };
        Ok(rest.boxed())
    }

    async fn update(&self, update: v1::UpdateResources) -> Result<Rest, Unable> {
        let v1::UpdateResources { id, resources } = update;
        let name = TaskId(id.clone());
        let ended = self.node.ask(move |driver| {
            exists(driver, &name)?;
            Ok::<_, Unable>(driver.has_ended(&name))
        });
        if ended.await?? {
            return Err(failed(failure::Kind::State, format!("{id} has ended")));
        }
        let node = self.node.clone();
        let request = v1::UpdateTaskRequest { id, resources };
        Ok(async move { Ok(node.update(request).await.map(|_| None)?) }.boxed())
    }

    fn drain(&self, drain: &v1::Drain) -> Result<Rest, Unable> {
        let changed = self.disk.change(|known| known.draining = drain.on);
        changed.map_err(|e| Failure::of(Kind::Internal, &e))?;
        tracing::info!(on = drain.on, why = drain.sentence, "drain");
        Ok(done())
    }

    async fn reconcile(&self, reconcile: &v1::Reconcile) -> Result<Rest, Unable> {
        let tasks = self.node.ask(|driver| driver.held()).await?;
        let held = |id: &String| tasks.iter().any(|task| task.id == *id);
        let expected = reconcile.expected.iter().map(|task| task.id.clone());
        let missing = expected.filter(|id| !held(id)).collect();
        Ok(async move { Ok(Some(v1::Tasks { tasks, missing })) }.boxed())
    }

    async fn signal(&self, signal: v1::SignalTaskRequest) -> Result<Rest, Unable> {
        let name = TaskId(signal.id.clone());
        self.node.ask(move |driver| exists(driver, &name)).await??;
        self.node.signal(signal).await?;
        Ok(done())
    }

    async fn open(&self, command: String, open: v1::OpenChannel) -> Result<Rest, Unable> {
        use v1::open_channel::What;
        let name = match &open.what {
            Some(What::Logs(logs)) => &logs.id,
            Some(What::Exec(exec)) => &exec.id,
            Some(What::Attach(attach)) => &attach.id,
            None => {
                return Err(failed(failure::Kind::Unsupported, "this node knows no such channel"));
            }
        };
        // Of one that is forgotten the logs may be there still.
        let is_kept = matches!(&open.what, Some(What::Logs(_))) && self.node.has_kept_logs(name);
        let name = TaskId(name.clone());
        if !is_kept {
            self.node.ask(move |driver| exists(driver, &name)).await??;
        }
        let (node, caller, gate) = (self.node.clone(), self.caller.clone(), self.gate.clone());
        Ok(async move { channel::open(&node, &caller, gate, command, open).await }.boxed())
    }
}

fn done() -> Rest {
    std::future::ready(Ok(None)).boxed()
}

fn grant(grant: Option<v1::TaskGrant>) -> Result<Grant, Unable> {
    const LONGEST: usize = 64;
    let v1::TaskGrant { epoch, digest } = grant.unwrap_or_default();
    match digest.len() <= LONGEST {
        true => Ok(Grant { epoch, digest }),
        false => Err(failed(failure::Kind::Invalid, "grant.digest: 64 bytes at most")),
    }
}

fn epoch_of(driver: &Driver, id: &TaskId) -> Option<u64> {
    Some(driver.live.get(id)?.grant.as_ref()?.epoch)
}

/// Was it ordered before? Then what became of it is told again: who asks does not know.
fn is_known(driver: &mut Driver, id: &TaskId, epoch: u64) -> Result<bool, Unable> {
    if epoch_of(driver, id) == Some(epoch) {
        driver.tell_again(id);
        return Ok(true);
    }
    driver.is_free(id)?;
    Ok(false)
}

fn is_known_pod(driver: &mut Driver, id: &str, epoch: u64) -> Result<bool, Unable> {
    if !driver.groups.contains_key(id) {
        return Ok(false);
    }
    let members: Vec<TaskId> = driver.members(id).cloned().collect();
    if members.is_empty() {
        // Of one that a crash interrupted before it had a task.
        driver.groups.remove(id);
        return Ok(false);
    }
    if members.iter().any(|task| epoch_of(driver, task) != Some(epoch)) {
        return Err(failed(failure::Kind::Exists, format!("there is another pod {id}")));
    }
    members.iter().for_each(|task| driver.tell_again(task));
    Ok(true)
}

fn is_all_but_over(id: &TaskId) -> impl FnOnce(&mut Driver) -> bool + Send + use<> {
    let id = id.clone();
    move |driver| driver.is_all_but_over(&id)
}

/// Tasks of masters by that name, of itself or of their pod.
fn named(driver: &Driver, id: &str) -> Vec<TaskId> {
    let task = TaskId(id.to_owned());
    let own = driver.live.contains_key(&task).then_some(task);
    let all = own.into_iter().chain(driver.members(id).cloned());
    all.filter(|id| driver.is_masters(id)).collect()
}

fn exists(driver: &Driver, id: &TaskId) -> Result<(), Unable> {
    match driver.is_masters(id) {
        true => Ok(()),
        false => Err(failed(failure::Kind::Unknown, format!("there is no task {id} of a master"))),
    }
}
