//! What people may ask: each call is one method.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hafen_door::Flow;
use hafen_door::failure::{Failure, Kind};
use hafen_door::grpc::missing;
use hafen_protocol::v1;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::channel::{self, Ends};
use super::engine::{Engine, Inlet};
use crate::cluster::{Event, Presence};
use crate::model::{self, Allocation, JobId, Namespace, NodeId};
use crate::wire;
use crate::wire::job::too_many;

/// How long a call waits for a change.
const PATIENCE: Duration = Duration::from_secs(30);
/// Changes so close to each other are told as one.
const TOGETHER: Duration = Duration::from_millis(50);
/// Of a job: with its envelope it must still be a message that a node takes.
const MOST_JOB: usize = 3 << 20;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Desk {
    pub(super) inlet: Inlet,
}

fn gone() -> Failure {
    Failure::new(Kind::Unavailable, "the coordinator ends")
}

fn no_job(name: &str) -> Failure {
    Failure::new(Kind::NotFound, format!("there is no job {name}"))
}

fn unheard(engine: &Engine, node: NodeId) -> Result<NodeId, Failure> {
    if engine.core.node(&node).is_some_and(|(_, is)| is == Presence::Here) {
        let words = format!("{node} is heard: stop its agent first");
        return Err(Failure::new(Kind::State, words));
    }
    Ok(node)
}

fn no_node(name: &str) -> Failure {
    Failure::new(Kind::NotFound, format!("no node, or more than one, is {name}"))
}

fn read(spec: Option<v1::JobSpec>) -> Result<model::Job, Failure> {
    let spec = spec.ok_or_else(|| missing("job"))?;
    let job = wire::job::job(&spec).map_err(|e| Failure::new(Kind::Invalid, e.to_string()))?;
    if job.source.len() > MOST_JOB {
        let words = format!("a job of {} bytes: {MOST_JOB} are the most", job.source.len());
        return Err(Failure::new(Kind::Invalid, words));
    }
    Ok(job)
}

impl Desk {
    /// In the loop, between other things.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (tell, answer) = oneshot::channel();
        let ask = Box::new(move |engine: &mut Engine| drop(tell.send(question(engine))));
        self.inlet.people.send(ask).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Do something; when it is written down, ask what has become of it.
    async fn order<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let acted = move |engine: &mut Engine| act(engine).map(|is| (is, engine.core.revision()));
        let (is, revision) = self.ask(acted).await??;
        let mut saved = self.inlet.saved.clone();
        saved.wait_for(|saved| *saved >= revision).await.map_err(|_| gone())?;
        Ok(is)
    }

    pub(super) async fn cluster(
        &self,
        request: v1::GetClusterRequest,
    ) -> Result<Arc<v1::ClusterView>, Failure> {
        let mut changed = self.inlet.changed.clone();
        if request.after != 0 && *changed.borrow_and_update() == request.after {
            let waited = timeout(PATIENCE, changed.changed()).await;
            waited.unwrap_or(Ok(())).map_err(|_| gone())?;
            sleep(TOGETHER).await;
        }
        let view = self.ask(Engine::shared_view).await?;
        if request.namespace.is_empty() {
            return Ok(view);
        }
        let mut view = (*view).clone();
        view.jobs.retain(|job| job.namespace == request.namespace);
        view.instances.retain(|instance| instance.namespace == request.namespace);
        Ok(Arc::new(view))
    }

    pub(super) async fn drain(
        &self,
        request: v1::DrainNodeRequest,
    ) -> Result<v1::ClusterNode, Failure> {
        let v1::DrainNodeRequest { node, on, within } = request;
        let within = within.as_ref().map(|within| wire::duration(within, "within")).transpose();
        let within = within.map_err(|e| Failure::new(Kind::Invalid, e.to_string()))?;
        self.order(move |engine| {
            let node = engine.find_node(&node).ok_or_else(|| no_node(&node))?;
            engine.happened(Event::Drain { node: node.clone(), on, within });
            let known = engine.core.node(&node).ok_or_else(|| no_node(&node.0))?;
            Ok(engine.node(known.0, known.1))
        })
        .await
    }

    /// A node that may be removed, by its name or the beginning of it.
    pub(super) async fn removable(&self, name: String) -> Result<NodeId, Failure> {
        self.ask(move |engine| {
            let node = engine.find_node(&name).ok_or_else(|| no_node(&name))?;
            unheard(engine, node)
        })
        .await?
    }

    pub(super) async fn remove(&self, node: NodeId) -> Result<(), Failure> {
        self.order(move |engine| {
            let node = unheard(engine, node)?;
            engine.happened(Event::Remove { node });
            Ok(())
        })
        .await
    }

    pub(super) async fn plan(&self, request: v1::PlanJobRequest) -> Result<v1::JobPlan, Failure> {
        let job = read(request.job)?;
        // The loop goes on while we try it out.
        let core = self.ask(|engine| engine.core.clone()).await?;
        let planned = tokio::task::spawn_blocking(move || super::plan::plan(core, job)).await;
        planned.map_err(|e| Failure::new(Kind::Internal, format!("plan: {e}")))?
    }

    pub(super) async fn submit(&self, request: v1::SubmitJobRequest) -> Result<v1::Job, Failure> {
        let v1::SubmitJobRequest { job, if_version } = request;
        let job = read(job)?;
        self.order(move |engine| {
            let version = engine.core.job(&job.id).map_or(0, |record| record.version);
            if if_version != 0 && if_version != version {
                let words = format!("{} has version {version}, not {if_version}", job.id);
                return Err(Failure::new(Kind::Conflict, words));
            }
            engine.submit(job)
        })
        .await
    }

    pub(super) async fn job(&self, name: String) -> Result<v1::Job, Failure> {
        let found = move |engine: &mut Engine| {
            engine.whole_job(&JobId(name.clone())).ok_or_else(|| no_job(&name))
        };
        self.ask(found).await?
    }

    pub(super) async fn stop_job(&self, request: v1::StopJobRequest) -> Result<v1::Job, Failure> {
        let v1::StopJobRequest { name, purge } = request;
        self.order(move |engine| {
            let job = JobId(name);
            let before = engine.whole_job(&job).ok_or_else(|| no_job(&job.0))?;
            engine.happened(Event::Stop { job: job.clone(), purge });
            let gone = v1::Job { stopped: true, wanted: 0, ..before };
            Ok(engine.whole_job(&job).unwrap_or(gone))
        })
        .await
    }

    pub(super) async fn scale(&self, request: v1::ScaleJobRequest) -> Result<v1::Job, Failure> {
        let v1::ScaleJobRequest { name, replicas } = request;
        if let Some(why) = too_many(replicas) {
            return Err(Failure::new(Kind::Invalid, format!("replicas: {why}")));
        }
        self.order(move |engine| {
            let record = engine.core.job(&JobId(name.clone())).ok_or_else(|| no_job(&name))?;
            let mut job = record.job().clone();
            if !matches!(job.kind, model::Kind::Replicas(_)) {
                let words = format!("{name} is no job with replicas");
                return Err(Failure::new(Kind::State, words));
            }
            job.kind = model::Kind::Replicas(replicas);
            engine.submit(job)
        })
        .await
    }

    pub(super) async fn roll_back(
        &self,
        request: v1::RollBackJobRequest,
    ) -> Result<v1::Job, Failure> {
        let v1::RollBackJobRequest { name, version } = request;
        self.order(move |engine| {
            let record = engine.core.job(&JobId(name.clone())).ok_or_else(|| no_job(&name))?;
            let before = record.versions.range(..record.version).next_back();
            let wanted = match version {
                0 => before.map(|(_, job)| job),
                version => record.versions.get(&version),
            };
            let old = wanted.ok_or_else(|| {
                let words = format!("{name} has no such version that is known");
                Failure::new(Kind::NotFound, words)
            })?;
            // How many there are to be is not what is gone back from.
            let job = model::Job { kind: record.job().kind, ..old.clone() };
            engine.submit(job)
        })
        .await
    }

    pub(super) async fn instance(&self, name: String) -> Result<v1::Instance, Failure> {
        let found = move |engine: &mut Engine| {
            let (one, _) = engine.find(&name)?;
            Ok(engine.instance(one, true))
        };
        self.ask(found).await?
    }

    pub(super) async fn stop_instance(&self, name: String) -> Result<v1::Instance, Failure> {
        self.order(move |engine| {
            let (one, _) = engine.find(&name)?;
            let before = one.clone();
            engine.happened(Event::Replace { allocation: before.id });
            let now = engine.core.allocation(before.id).unwrap_or(&before);
            Ok(engine.instance(now, true))
        })
        .await
    }

    /// The answer comes when its node has done it.
    pub(super) async fn signal(&self, request: v1::SignalTaskRequest) -> Result<(), Failure> {
        let asked = move |engine: &mut Engine| {
            let (one, task) = engine.find(&request.id)?;
            let (node, id) = (one.node.clone(), task?);
            engine.signal(&node, v1::SignalTaskRequest { id, ..request })
        };
        let answer = timeout(channel::PATIENCE, self.ask(asked).await??).await;
        let late = |_| Failure::new(Kind::Deadline, "its node did not answer in time");
        let lost = |_| Failure::new(Kind::Unavailable, "its node has left before the answer");
        answer.map_err(late)?.map_err(lost)?
    }

    /// To the node of an instance; `what` makes of a task's name there what is wanted.
    async fn channel(
        &self,
        name: String,
        what: impl FnOnce(String) -> v1::open_channel::What + Send + 'static,
    ) -> Result<Ends, Failure> {
        let asked = move |engine: &mut Engine| {
            let (one, task) = engine.find(&name)?;
            let node = one.node.clone();
            engine.open_channel(&node, what(task?))
        };
        let opened = self.ask(asked).await??;
        opened.await.map_err(|_| gone())?
    }

    pub(super) async fn logs(
        &self,
        request: v1::LogsRequest,
    ) -> Result<Flow<v1::LogEntry>, Failure> {
        use v1::channel_up::What;
        let name = request.id.clone();
        let what = move |id| v1::open_channel::What::Logs(v1::LogsRequest { id, ..request });
        let Ends { up, down } = self.channel(name, what).await?;
        Ok(relay(up, down, |what| match what {
            What::Log(entry) => Some(entry),
            _ => None,
        }))
    }

    pub(super) async fn exec(
        &self,
        start: v1::ExecStart,
        mut input: Flow<v1::ExecInput>,
    ) -> Result<Flow<v1::Output>, Failure> {
        let name = start.id.clone();
        let what = move |id| v1::open_channel::What::Exec(v1::ExecStart { id, ..start });
        let Ends { up, down } = self.channel(name, what).await?;
        let feed = down.clone();
        let feeding = tokio::spawn(async move {
            let send = |input| v1::ChannelDown { what: Some(v1::channel_down::What::Exec(input)) };
            while let Some(Ok(input)) = input.next().await {
                if feed.send(Ok(send(input))).await.is_err() {
                    return;
                }
            }
            let end = Some(v1::exec_input::What::End(true));
            let _ = feed.send(Ok(send(v1::ExecInput { what: end }))).await;
        });
        Ok(relay(up, (down, Feeding(feeding)), output))
    }

    pub(super) async fn attach(
        &self,
        start: v1::AttachStart,
        mut input: Flow<v1::AttachInput>,
    ) -> Result<Flow<v1::Output>, Failure> {
        let name = start.id.clone();
        let what = move |id| v1::open_channel::What::Attach(v1::AttachStart { id, ..start });
        let Ends { up, down } = self.channel(name, what).await?;
        let feed = down.clone();
        let feeding = tokio::spawn(async move {
            while let Some(Ok(input)) = input.next().await {
                let what = Some(v1::channel_down::What::Attach(input));
                if feed.send(Ok(v1::ChannelDown { what })).await.is_err() {
                    return;
                }
            }
        });
        Ok(relay(up, (down, Feeding(feeding)), output))
    }

    pub(super) fn events(
        &self,
        request: v1::ClusterEventsRequest,
    ) -> Result<Flow<v1::ClusterEvent>, Failure> {
        self.inlet.events.listen(request)
    }

    pub(super) async fn set_quota(
        &self,
        request: v1::SetQuotaRequest,
    ) -> Result<v1::Quota, Failure> {
        let v1::SetQuotaRequest { namespace, most } = request;
        if !model::is_name(&namespace) {
            return Err(Failure::new(
                Kind::Invalid,
                format!("namespace: {namespace:?} is no name"),
            ));
        }
        self.order(move |engine| {
            let name = Namespace(namespace.clone());
            let event =
                Event::Quota { namespace: name.clone(), most: most.as_ref().map(wire::most) };
            engine.happened(event);
            let found = engine.core.quotas().find(|(of, ..)| **of == name);
            Ok(found.map_or(v1::Quota { namespace, ..v1::Quota::default() }, quota))
        })
        .await
    }

    pub(super) async fn quotas(&self) -> Result<v1::ListQuotasResponse, Failure> {
        let all = |engine: &mut Engine| engine.core.quotas().map(quota).collect();
        Ok(v1::ListQuotasResponse { quotas: self.ask(all).await? })
    }

    pub(super) async fn metrics(&self) -> Result<String, Failure> {
        let view = self.ask(Engine::shared_view).await?;
        Ok(self.inlet.numbers.text(&view))
    }
}

fn quota((name, most, used): (&Namespace, model::Amounts, model::Amounts)) -> v1::Quota {
    v1::Quota {
        namespace: name.0.clone(),
        most: Some(super::view::amounts(most)),
        used: Some(super::view::amounts(used)),
    }
}

fn output(what: v1::channel_up::What) -> Option<v1::Output> {
    match what {
        v1::channel_up::What::Output(output) => Some(output),
        _ => None,
    }
}

/// Input of somebody; it ends with their interest in the output.
struct Feeding(JoinHandle<()>);

impl Drop for Feeding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What comes from a node. While it goes on, its other direction (`keep`) is open.
fn relay<T: Send + 'static, K: Send + 'static>(
    up: Streaming<v1::ChannelUp>,
    keep: K,
    pick: fn(v1::channel_up::What) -> Option<T>,
) -> Flow<T> {
    let next = move |state: Option<(Streaming<v1::ChannelUp>, K)>| async move {
        let (mut up, keep) = state?;
        loop {
            let failure = match up.message().await {
                Ok(None) => return None,
                Ok(Some(v1::ChannelUp { what: Some(v1::channel_up::What::Failure(why)) })) => {
                    channel::failure(&why)
                }
                Ok(Some(v1::ChannelUp { what })) => match what.and_then(pick) {
                    Some(item) => return Some((Ok(item), Some((up, keep)))),
                    None => continue,
                },
                Err(status) => Failure::from(status),
            };
            return Some((Err(failure), None));
        }
    };
    stream::unfold(Some((up, keep)), next).boxed()
}

impl Engine {
    /// One for all who ask between two changes.
    pub(super) fn shared_view(&mut self) -> Arc<v1::ClusterView> {
        let revision = self.changed();
        if let Some(view) = self.seen.as_ref().filter(|view| view.revision == revision) {
            return Arc::clone(view);
        }
        let view = Arc::new(self.view());
        self.seen = Some(Arc::clone(&view));
        view
    }

    fn submit(&mut self, job: model::Job) -> Result<v1::Job, Failure> {
        let id = job.id.clone();
        let invalid = |why: crate::cluster::Rejected| Failure::new(Kind::Invalid, why.to_string());
        let effects = self.core.submit(job).map_err(invalid)?;
        self.perform(effects);
        self.whole_job(&id).ok_or_else(|| no_job(&id.0))
    }

    /// By its name or the beginning of one; JOB, if it has one instance only; JOB:SLOT; of a pod's task with "." and its
    /// name. With the name of the task on the node, or why it is not clear which.
    fn find(&self, name: &str) -> Result<(&Allocation, Result<String, Failure>), Failure> {
        if let Some(one) = self.find_whole(name) {
            return Ok((one, only_task(one)));
        }
        let within = name.rsplit_once('.').and_then(|(whole, member)| {
            let one = self.find_whole(whole)?;
            one.members.contains_key(member).then(|| (one, format!("{}.{member}", one.task())))
        });
        let nobody = || {
            let words = format!("no instance, or more than one, is {name}");
            Failure::new(Kind::NotFound, words)
        };
        within.map(|(one, task)| (one, Ok(task))).ok_or_else(nobody)
    }

    fn find_whole(&self, name: &str) -> Option<&Allocation> {
        if let Some(one) = model::allocation_of(name).and_then(|id| self.core.allocation(id)) {
            return Some(one);
        }
        if let Some((job, slot)) = name.split_once([':', '/']) {
            let mut places = self.core.places(&JobId(job.to_owned()));
            return places.find(|(place, _)| place.to_string() == slot).map(|(_, one)| one);
        }
        let job = JobId(name.to_owned());
        if self.core.job(&job).is_some() {
            return only(self.core.places(&job).map(|(_, one)| one));
        }
        only(self.core.allocations().filter(|one| one.task().starts_with(name)))
    }

    pub(super) fn knows(&self, node: &str) -> bool {
        self.core.node(&NodeId(node.to_owned())).is_some()
    }
}

fn only<'a>(mut all: impl Iterator<Item = &'a Allocation>) -> Option<&'a Allocation> {
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

fn only_task(one: &Allocation) -> Result<String, Failure> {
    let names: Vec<&str> = one.members.keys().map(String::as_str).collect();
    match names.as_slice() {
        [] => Ok(one.task()),
        [name] => Ok(format!("{}.{name}", one.task())),
        several => {
            let (task, all) = (one.task(), several.join(", "));
            let words = format!("{task} is a pod: say {task}.TASK, of {all}");
            Err(Failure::new(Kind::Invalid, words))
        }
    }
}
