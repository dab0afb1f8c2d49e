//! A coordinator on loopback ports, and agents as far as the protocol goes.

#[path = "service/fake.rs"]
mod fake;

use std::time::Duration;

use fake::{Fake, Hall, LEASE, held, hello, job, refused, submit, task};
use hafen_protocol::v1;
use hafen_protocol::v1::cluster_node::Presence;
use hafen_protocol::v1::from_agent::What as Up;
use hafen_protocol::v1::from_master::What as Down;
use hafen_protocol::v1::refused::Kind;
use tonic::Code;

fn phase(view: &v1::ClusterView, wanted: v1::instance::Phase) -> usize {
    view.instances.iter().filter(|one| one.phase() == wanted).count()
}

fn ready(view: &v1::ClusterView) -> usize {
    phase(view, v1::instance::Phase::Ready)
}

#[tokio::test]
async fn a_job_runs_on_a_node_and_its_updates_are_acknowledged() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let mut people = hall.people().await;
    let taken = people.submit_job(submit(job("web", 1))).await.unwrap().into_inner();
    assert_eq!((taken.version, taken.wanted, taken.kind.as_str()), (1, 1, "replicas"));
    let task = node.run().await;
    assert_eq!(task.command, ["serve"]);
    assert_eq!(task.labels["hafen.job"], "web");
    node.tell(&task.id, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&task.id).await, 1);
    // What is repeated is acknowledged again, and changes nothing.
    node.tell_as(&task.id, 1, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&task.id).await, 1);
    hall.until("ready", |view| ready(view) == 1 && view.jobs[0].ready == 1).await;
    let instance = people.get_instance(v1::GetInstanceRequest { name: "web:0".into() }).await;
    let instance = instance.unwrap().into_inner();
    assert_eq!((instance.name, instance.state), (task.id, v1::State::Running.into()));
}

#[tokio::test]
async fn a_missing_update_ends_the_stream() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    hall.people().await.submit_job(submit(job("web", 1))).await.unwrap();
    let task = node.run().await.id;
    node.tell_as(&task, 2, v1::State::Running, true).await;
    let last = node.until(|what| match what {
        Down::Refused(refused) => Some(refused.kind()),
        _ => None,
    });
    assert_eq!(last.await, Kind::Protocol);
    assert!(node.next().await.is_none());
    hall.until_presence("n1", Presence::Away).await;
    // Within the lease, from the last acknowledged one on: nothing was replaced.
    let mut node = hall.node_again("n1", 2, vec![held(&task, v1::State::Running)]).await;
    node.tell(&task, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&task).await, 1);
}

#[tokio::test]
async fn of_one_node_the_latest_hello_counts() {
    let hall = Hall::open().await;
    let mut first = hall.node("n1").await;
    // The same again, as a copy of the machine or the network would.
    assert_eq!(refused(&hall.dial(hello("n1")).await.1), Kind::Stale);
    let other = v1::Hello { instance: "another disk".into(), connection: 9, ..hello("n1") };
    assert_eq!(refused(&hall.dial(other).await.1), Kind::Taken);
    let ahead = v1::Hello { epoch_seen: 99, connection: 9, ..hello("n1") };
    assert_eq!(refused(&hall.dial(ahead).await.1), Kind::Epoch);
    let second = v1::Hello { connection: 2, ..hello("n1") };
    assert!(matches!(hall.dial(second).await.1.what, Some(Down::Welcome(_))));
    assert_eq!(first.hear().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn rules_are_kept() {
    let hall = Hall::open().await;
    let newer = v1::Hello { version_least: 2, version_most: 3, ..hello("n1") };
    let (_, told) = hall.dial(newer).await;
    assert_eq!(refused(&told), Kind::Version);
    assert_eq!(
        refused(&hall.dial(v1::Hello { node: "no/name".into(), ..hello("") }).await.1),
        Kind::Protocol
    );
    let ping = |number, heard| v1::FromAgent { number, heard, what: Some(Up::Ping(v1::Ping {})) };
    let mut node = Fake::begin(hall.channel().await, ping(1, 0)).await.unwrap();
    assert_eq!(refused(&node.next().await.unwrap()), Kind::Protocol);
    // A gap, and something heard that was not said.
    for (connection, (number, heard)) in (1..).zip([(3, 1), (2, 99)]) {
        let mut node = hall.node_again("n1", connection, Vec::new()).await;
        node.send(ping(number, heard)).await;
        let last = node.next().await.unwrap();
        assert_eq!(refused(&last), Kind::Protocol);
        assert!(node.next().await.is_none());
    }
}

#[tokio::test]
async fn a_message_has_a_largest_size() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let leaving = v1::Leaving { sentence: "x".repeat((4 << 20) + 1) };
    node.say(Up::Leaving(leaving)).await;
    assert_eq!(node.hear().await.unwrap_err().code(), Code::ResourceExhausted);
    let mut node = hall.node_again("n1", 2, Vec::new()).await;
    node.say(Up::Ping(v1::Ping {})).await;
    assert!(matches!(node.next().await.unwrap().what, Some(Down::Ping(_))));
}

#[tokio::test]
async fn what_ran_on_a_silent_node_is_replaced() {
    let hall = Hall::open_with(tempfile::tempdir().unwrap(), Duration::from_millis(600)).await;
    let mut silent = hall.node("n1").await;
    hall.people().await.submit_job(submit(job("web", 1))).await.unwrap();
    let task = silent.run_ready().await;
    let mut other = hall.node("n2").await;
    let next = other.run_ready().await;
    assert_ne!(next, task);
    hall.until_presence("n1", Presence::Unreachable).await;
    // Its stream is void, and when it comes again what was replaced is stopped there.
    let mut back = hall.node_again("n1", 2, vec![held(&task, v1::State::Running)]).await;
    tokio::spawn(other.obey());
    assert_eq!(back.stop().await, task);
    back.tell(&task, v1::State::Running, true).await;
    back.tell(&task, v1::State::Killed, false).await;
    assert_eq!(back.acknowledged(&task).await, 1);
    hall.until("one is left", |view| view.instances.len() == 1 && ready(view) == 1).await;
}

#[tokio::test]
async fn what_must_not_run_twice_waits_for_the_fence() {
    let hall = Hall::open_with(tempfile::tempdir().unwrap(), Duration::from_millis(600)).await;
    let mut silent = hall.node("n1").await;
    let second = Some(pbjson_types::Duration { seconds: 1, nanos: 0 });
    let kill = Some(v1::KillPolicy { grace: second, ..v1::KillPolicy::default() });
    let one = v1::TaskSpec { stop_after_disconnect: second, kill, ..task() };
    let what = Some(v1::job_spec::What::Task(one));
    let spec = v1::JobSpec { what, at_most_one: true, ..job("one", 1) };
    let mut people = hall.people().await;
    people.submit_job(submit(spec)).await.unwrap();
    silent.run_ready().await;
    let silence = tokio::time::Instant::now();
    let mut other = hall.node("n2").await;
    other.run_ready().await;
    // Both durations, 1 % of them, and the margin of a second.
    assert!(silence.elapsed() > Duration::from_millis(3_000), "{:?}", silence.elapsed());
}

#[tokio::test]
async fn a_node_is_drained() {
    let hall = Hall::open().await;
    let first = hall.node("n1").await;
    tokio::spawn(first.obey());
    let mut people = hall.people().await;
    people.submit_job(submit(job("web", 2))).await.unwrap();
    hall.until("ready", |view| ready(view) == 2).await;
    tokio::spawn(hall.node("n2").await.obey());
    let drained = people.drain_node(drain(Some(60))).await.unwrap().into_inner();
    assert!(drained.draining && drained.drain_within.is_some());
    hall.until("moved", |view| {
        ready(view) == 2 && view.instances.iter().all(|one| one.node == "n2")
    })
    .await;
    assert!(!hall.view().await.nodes[0].drain_overdue, "all moved in time");
    let gone = people.remove_node(v1::RemoveNodeRequest { node: "n1".into() }).await;
    assert_eq!(gone.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn what_is_revocable_leaves_under_pressure() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let report = |of: &[(&str, bool)]| {
        let capacity = Some(hello("n1").capacity.unwrap());
        let one = |(of, ended): &(&str, bool)| v1::Pressure {
            of: (*of).to_owned(),
            percent: 30.0,
            ended: *ended,
            ..v1::Pressure::default()
        };
        let pressure = of.iter().map(one).collect();
        let used_firm = Some(v1::Amounts::default());
        Up::Report(v1::NodeReport { capacity, pressure, used_firm, ..v1::NodeReport::default() })
    };
    node.say(report(&[])).await;
    let mut people = hall.people().await;
    let mut tasks = std::collections::BTreeMap::new();
    let jobs = [("firm", false, 900, 0), ("large", true, 300, 0), ("small", true, 200, 0)];
    for (name, revocable, memory, priority) in jobs.into_iter().chain([("urgent", true, 400, 5)]) {
        let request = v1::Amounts { memory: Some(memory << 20), ..v1::Amounts::default() };
        let resources =
            v1::Resources { request: Some(request), revocable, ..v1::Resources::default() };
        let what = v1::TaskSpec { resources: Some(resources), ..task() };
        let what = Some(v1::job_spec::What::Task(what));
        let spec = v1::JobSpec { what, priority, ..job(name, 1) };
        people.submit_job(submit(spec)).await.unwrap();
        tasks.insert(name, node.run_ready().await);
    }
    // Who waits for a CPU gets less of it; nobody has to leave for that.
    node.say(report(&[("cpu", false), ("of later versions", false)])).await;
    let is_short = |view: &v1::ClusterView, of: &[&str]| {
        view.nodes[0].pressure.iter().map(|one| one.of.as_str()).eq(of.iter().copied())
    };
    hall.until("short of cpu", |view| is_short(view, &["cpu"]) && ready(view) == 4).await;
    // The least urgent first, of these the largest; one with each report.
    for victim in ["large", "small"] {
        node.say(report(&[("memory", false)])).await;
        let stop = node.command(|what| match what {
            v1::command::What::Stop(stop) => Some(stop.clone()),
            _ => None,
        });
        let stop = stop.await;
        assert_eq!((&stop.id, stop.why()), (&tasks[victim], v1::reason::Kind::Preempted));
        node.tell(&stop.id, v1::State::Killed, false).await;
        node.acknowledged(&stop.id).await;
    }
    hall.until("two wait", |view| {
        let waiting = phase(view, v1::instance::Phase::Waiting);
        is_short(view, &["cpu", "memory"]) && (waiting, ready(view)) == (2, 2)
    })
    .await;
    node.say(report(&[("memory", true), ("cpu", true)])).await;
    let _ = (node.run_ready().await, node.run_ready().await);
    hall.until("all are back", |view| is_short(view, &[]) && ready(view) == 4).await;
}

fn drain(within: Option<i64>) -> v1::DrainNodeRequest {
    let within = within.map(|seconds| pbjson_types::Duration { seconds, nanos: 0 });
    v1::DrainNodeRequest { node: "n1".into(), on: true, within }
}

#[tokio::test]
async fn what_has_not_moved_away_in_time_is_stopped() {
    let hall = Hall::open().await;
    tokio::spawn(hall.node("n1").await.obey());
    let mut people = hall.people().await;
    people.submit_job(submit(job("web", 3))).await.unwrap();
    hall.until("ready", |view| ready(view) == 3).await;
    let wrong = people.drain_node(drain(Some(-1))).await.unwrap_err();
    assert_eq!((wrong.code(), wrong.message()), (Code::InvalidArgument, "within is no duration"));
    // There is no room elsewhere: one is stopped, and the others stay for as long as it has none.
    people.drain_node(drain(None)).await.unwrap();
    hall.until("one waits", |view| view.jobs[0].waiting == 1 && ready(view) == 2).await;
    people.drain_node(drain(Some(1))).await.unwrap();
    hall.until("all wait", |view| view.jobs[0].waiting == 3 && view.nodes[0].instances == 0).await;
    let view = hall.view().await;
    let node = &view.nodes[0];
    assert!(node.draining && node.drain_overdue, "{node:?}");
    let hall = hall.again().await;
    assert!(hall.view().await.nodes[0].drain_overdue, "it is written down");
    tokio::spawn(hall.node_again("n1", 2, Vec::new()).await.obey());
    tokio::spawn(hall.node("n2").await.obey());
    hall.until("moved", |view| {
        ready(view) == 3 && view.instances.iter().all(|one| one.node == "n2")
    })
    .await;
    let mut people = hall.people().await;
    let off = v1::DrainNodeRequest { on: false, ..drain(None) };
    let node = people.drain_node(off).await.unwrap().into_inner();
    assert!(!node.draining && !node.drain_overdue && node.drain_within.is_none(), "{node:?}");
}

#[tokio::test]
async fn a_node_wishes_to_be_empty_in_time() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    hall.people().await.submit_job(submit(job("web", 2))).await.unwrap();
    let _ = (node.run_ready().await, node.run_ready().await);
    hall.until("ready", |view| ready(view) == 2).await;
    let wish = |seconds| {
        let within = Some(pbjson_types::Duration { seconds, nanos: 0 });
        Up::Drain(v1::DrainWish { on: true, within })
    };
    // The shorter one holds, in whichever order.
    for seconds in [1, 3_600] {
        node.say(wish(seconds)).await;
    }
    let _ = (node.stop().await, node.stop().await);
    let view = hall.view().await;
    assert_eq!(view.nodes[0].drain_within.unwrap().seconds, 1);
    assert!(view.nodes[0].drain_overdue);
    node.say(wish(i64::MAX)).await;
    let last = node.until(|what| match what {
        Down::Refused(refused) => Some((refused.kind(), refused.sentence.clone())),
        _ => None,
    });
    assert_eq!(last.await, (Kind::Protocol, "within is no duration".to_owned()));
}

#[tokio::test]
async fn versions_come_and_go() {
    let hall = Hall::open().await;
    tokio::spawn(hall.node("n1").await.obey());
    let mut people = hall.people().await;
    people.submit_job(submit(job("web", 2))).await.unwrap();
    hall.until("stable", |view| view.jobs[0].stable == 1).await;
    let mut new = job("web", 2);
    let command = vec!["serve".to_owned(), "better".to_owned()];
    new.what = Some(v1::job_spec::What::Task(v1::TaskSpec { command, ..task() }));
    // Somebody else was faster.
    let late = v1::SubmitJobRequest { job: Some(new.clone()), if_version: 7 };
    assert_eq!(people.submit_job(late).await.unwrap_err().code(), Code::Aborted);
    let plan = people.plan_job(v1::PlanJobRequest { job: Some(new.clone()) }).await;
    let plan = plan.unwrap().into_inner();
    assert_eq!(
        (plan.changes, plan.version, plan.is_new),
        (vec!["task.command".to_owned()], 2, false)
    );
    assert_eq!((plan.stops.len(), plan.placements.len()), (2, 2));
    assert!(plan.placements.iter().all(|one| one.node == "n1"), "{:?}", plan.placements);
    people.submit_job(v1::SubmitJobRequest { job: Some(new), if_version: 1 }).await.unwrap();
    hall.until("updated", |view| view.jobs[0].stable == 2 && ready(view) == 2).await;
    let back = v1::RollBackJobRequest { name: "web".into(), version: 0 };
    let back = people.roll_back_job(back).await.unwrap().into_inner();
    assert_eq!(back.version, 3);
    let Some(v1::job_spec::What::Task(task)) = back.spec.unwrap().what else { panic!("no task") };
    assert_eq!(task.command, ["serve"]);
    hall.until("back", |view| view.jobs[0].stable == 3 && ready(view) == 2).await;
    let scaled = people.scale_job(v1::ScaleJobRequest { name: "web".into(), replicas: 3 }).await;
    let scaled = scaled.unwrap().into_inner();
    assert_eq!(scaled.version, 3, "how many there are is no other version");
    assert_eq!(scaled.spec.unwrap().kind, Some(v1::job_spec::Kind::Replicas(3)));
    hall.until("three", |view| ready(view) == 3).await;
    people.stop_job(v1::StopJobRequest { name: "web".into(), purge: true }).await.unwrap();
    hall.until("nothing", |view| view.jobs.is_empty() && view.instances.is_empty()).await;
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let mut people = hall.people().await;
    people.submit_job(submit(job("web", 1))).await.unwrap();
    let most = v1::Amounts { cpu_milli: Some(9_000), ..v1::Amounts::default() };
    let quota = v1::SetQuotaRequest { namespace: "default".into(), most: Some(most) };
    people.set_quota(quota).await.unwrap();
    let task = node.run_ready().await;
    assert_eq!(node.acknowledged(&task).await, 1);
    let before = hall.view().await;
    let hall = hall.again().await;
    let after = hall.view().await;
    assert_eq!((after.epoch, after.jobs[0].version), (before.epoch + 1, 1));
    assert!(after.revision > before.revision);
    let quotas = hall.people().await.list_quotas(v1::ListQuotasRequest {}).await.unwrap();
    assert_eq!(quotas.into_inner().quotas[0].most.unwrap().cpu_milli, Some(9_000));
    // The same Hello is an old one still; a new one finds its task.
    assert_eq!(refused(&hall.dial(hello("n1")).await.1), Kind::Stale);
    let tasks = vec![held(&task, v1::State::Running)];
    let (mut node, welcome) = hall.dial(v1::Hello { connection: 2, tasks, ..hello("n1") }).await;
    let Some(Down::Welcome(welcome)) = welcome.what else { panic!("{welcome:?}") };
    let known = v1::Acknowledge { task: task.clone(), sequence: 1 };
    assert_eq!(welcome.acknowledged, [known]);
    node.say(Up::Ping(v1::Ping {})).await;
    hall.until("ready", |view| ready(view) == 1 && view.instances[0].name == task).await;
    // A second coordinator on the same state is refused.
    let other = hafen_coordinator::service::Coordinator::start(fake::options(hall.folder.path()));
    assert!(other.await.is_err());
}

#[tokio::test]
async fn a_task_that_is_refused_is_tried_again() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    hall.people().await.submit_job(submit(job("web", 1))).await.unwrap();
    let (command, task) = node
        .until(|what| match what {
            Down::Command(v1::Command {
                id, what: Some(v1::command::What::RunTask(run)), ..
            }) => Some((id.clone(), run.task.clone()?.id)),
            _ => None,
        })
        .await;
    let failure =
        v1::Failure { kind: v1::failure::Kind::Capacity.into(), sentence: "no room here".into() };
    let failure = Some(failure);
    node.say(Up::Result(v1::CommandResult { command, failure, tasks: None })).await;
    let next = node.run().await.id;
    assert_ne!(next, task);
    let request = v1::ClusterEventsRequest { since: 1, ..v1::ClusterEventsRequest::default() };
    let mut events = hall.people().await.events(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        told.push((event.what, event.sentence));
    }
    assert!(told.contains(&("instance refused".into(), "no room here".into())), "{told:?}");
}

#[tokio::test]
async fn a_pod_is_ready_when_all_of_it_is() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let named = |id: &str| v1::TaskSpec { id: id.into(), ..task() };
    let pod = v1::PodSpec { tasks: vec![named("web"), named("log")], ..v1::PodSpec::default() };
    let what = Some(v1::job_spec::What::Pod(pod));
    let spec = v1::JobSpec { what, kind: None, ..job("pair", 1) };
    hall.people().await.submit_job(submit(spec)).await.unwrap();
    let pod = node.command(|what| match what {
        v1::command::What::RunPod(run) => run.pod.clone(),
        _ => None,
    });
    let pod = pod.await;
    let names = pod.tasks.iter().map(|task| task.id.as_str()).collect::<Vec<_>>();
    assert_eq!(names, ["web", "log"]);
    let (web, log) = (format!("{}.web", pod.id), format!("{}.log", pod.id));
    node.tell(&web, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&web).await, 1);
    hall.until("half", |view| phase(view, v1::instance::Phase::Starting) == 1).await;
    node.tell(&log, v1::State::Running, true).await;
    assert_eq!(node.acknowledged(&log).await, 1);
    hall.until("ready", |view| ready(view) == 1).await;
    // One fails: the other follows, and then it has ended as a whole.
    node.tell(&web, v1::State::Failed, false).await;
    assert_eq!(node.acknowledged(&web).await, 2);
    hall.until("half again", |view| ready(view) == 0).await;
    node.tell(&log, v1::State::Killed, false).await;
    let forgotten = node.command(|what| match what {
        v1::command::What::Forget(forget) => Some(forget.id.clone()),
        _ => None,
    });
    assert_eq!(forgotten.await, pod.id);
    let next = node.command(|what| match what {
        v1::command::What::RunPod(run) => run.pod.clone(),
        _ => None,
    });
    assert_ne!(next.await.id, pod.id);
}

#[tokio::test]
async fn logs_come_through_a_channel() {
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let mut people = hall.people().await;
    people.submit_job(submit(job("web", 1))).await.unwrap();
    let task = node.run_ready().await;
    let asked = tokio::spawn(async move {
        let request = v1::LogsRequest { id: "web".into(), ..v1::LogsRequest::default() };
        let mut lines = people.logs(request).await?.into_inner();
        let first = lines.message().await?.map(|entry| entry.line);
        Ok::<_, tonic::Status>((first, lines.message().await.unwrap_err().code()))
    });
    let (command, open) = node
        .until(|what| match what {
            Down::Command(v1::Command {
                id, what: Some(v1::command::What::Open(open)), ..
            }) => Some((id.clone(), open.clone())),
            _ => None,
        })
        .await;
    let Some(v1::open_channel::What::Logs(logs)) = open.what else { panic!("{open:?}") };
    assert_eq!(logs.id, task);
    use v1::channel_up::What;
    let entry = v1::LogEntry { line: b"hello\n".to_vec(), ..v1::LogEntry::default() };
    let failure =
        v1::Failure { kind: v1::failure::Kind::Unknown.into(), sentence: "no more".into() };
    let said = [What::Command(command), What::Log(entry), What::Failure(failure)];
    let said = said.map(|what| v1::ChannelUp { what: Some(what) });
    let mut client = v1::master_client::MasterClient::new(node.channel.clone());
    let _down = client.channel(tokio_stream::iter(said)).await.unwrap();
    let (first, end) = asked.await.unwrap().unwrap();
    assert_eq!((first.unwrap(), end), (b"hello\n".to_vec(), Code::NotFound));
    // Nobody has asked for that one.
    let strange = v1::ChannelUp { what: Some(What::Command("1-ffff".into())) };
    let denied = client.channel(tokio_stream::iter([strange])).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_instance_is_attached_to_and_signalled() {
    use v1::{attach_input, channel_down, channel_up, output};
    let hall = Hall::open().await;
    let mut node = hall.node("n1").await;
    let mut people = hall.people().await;
    people.submit_job(submit(job("web", 1))).await.unwrap();
    let task = node.run_ready().await;
    let start = v1::AttachStart { id: "web:0".into(), replay: true };
    let input = [attach_input::What::Start(start), attach_input::What::Stdin(b"hi".to_vec())];
    let input = input.map(|what| v1::AttachInput { what: Some(what) });
    let mut to = people.clone();
    let asked = tokio::spawn(async move {
        let mut output = to.attach(tokio_stream::iter(input)).await?.into_inner();
        let mut said = Vec::new();
        while let Some(message) = output.message().await? {
            said.push(message.what.unwrap());
        }
        Ok::<_, tonic::Status>(said)
    });
    let opens = |what: &Down| match what {
        Down::Command(v1::Command { id, what: Some(v1::command::What::Open(open)), .. }) => {
            Some((id.clone(), open.clone()))
        }
        _ => None,
    };
    let (command, open) = node.until(opens).await;
    let Some(v1::open_channel::What::Attach(attach)) = open.what else { panic!("{open:?}") };
    assert_eq!((&attach.id, attach.replay), (&task, true));
    let (up, said) = tokio::sync::mpsc::channel(4);
    let say = async |what| up.send(v1::ChannelUp { what: Some(what) }).await.unwrap();
    say(channel_up::What::Command(command)).await;
    let mut client = v1::master_client::MasterClient::new(node.channel.clone());
    let said = tokio_stream::wrappers::ReceiverStream::new(said);
    let mut down = client.channel(said).await.unwrap().into_inner();
    let first = down.message().await.unwrap().unwrap();
    let Some(channel_down::What::Attach(first)) = first.what else { panic!("{first:?}") };
    assert_eq!(first.what, Some(attach_input::What::Stdin(b"hi".to_vec())));
    let exit = v1::Exit { code: Some(3), ..v1::Exit::default() };
    for what in [output::What::Stdout(b"ho".to_vec()), output::What::Exit(exit.clone())] {
        say(channel_up::What::Output(v1::Output { what: Some(what) })).await;
    }
    drop(up);
    let wanted = [output::What::Stdout(b"ho".to_vec()), output::What::Exit(exit)];
    assert_eq!(asked.await.unwrap().unwrap(), wanted);
    // A signal is answered when the node has answered.
    for (failure, code) in
        [(None, None), (Some(v1::failure::Kind::State), Some(Code::FailedPrecondition))]
    {
        let request = v1::SignalTaskRequest { id: "web".into(), signal: "INT".into(), all: false };
        let mut to = people.clone();
        let asked = tokio::spawn(async move { to.signal_instance(request).await });
        let (command, signal) = node
            .until(|what| match what {
                Down::Command(v1::Command {
                    id,
                    what: Some(v1::command::What::Signal(signal)),
                    ..
                }) => Some((id.clone(), signal.clone())),
                _ => None,
            })
            .await;
        assert_eq!((&signal.id, signal.signal.as_str()), (&task, "INT"));
        let failure = failure.map(|kind| v1::Failure { kind: kind.into(), ..Default::default() });
        let result = v1::CommandResult { command, failure, tasks: None };
        node.say(Up::Result(result)).await;
        assert_eq!(asked.await.unwrap().err().map(|status| status.code()), code);
    }
}

#[tokio::test]
async fn a_view_is_waited_for() {
    let hall = Hall::open().await;
    let first = hall.view().await;
    let mut people = hall.people().await;
    let after = v1::GetClusterRequest { after: first.revision, ..v1::GetClusterRequest::default() };
    let waiting = tokio::spawn(async move { people.get_cluster(after).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    let _node = hall.node("n1").await;
    let next = waiting.await.unwrap().unwrap().into_inner();
    assert!(next.revision > first.revision);
    assert_eq!(next.nodes.len(), 1);
}

#[tokio::test]
async fn one_that_floods_does_not_keep_the_others_waiting() {
    let hall = Hall::open().await;
    let mut flood = hall.node("n1").await;
    let mut calm = hall.node("n2").await;
    let flooding = tokio::spawn(async move {
        for sequence in 1..20_000 {
            flood.tell_as("a1.unknown", sequence, v1::State::Running, true).await;
        }
        flood
    });
    for _ in 0..20 {
        let begin = tokio::time::Instant::now();
        calm.say(Up::Ping(v1::Ping {})).await;
        calm.until(|what| matches!(what, Down::Ping(_)).then_some(())).await;
        assert!(begin.elapsed() < LEASE, "{:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hall.until_presence("n2", Presence::Here).await;
    drop(flooding.await.unwrap());
}

mod secure {
    use std::sync::Arc;

    use hafen_coordinator::service::Authority;
    use hyper_util::rt::TokioIo;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::net::TcpStream;
    use tonic::transport::{Channel, Endpoint, Uri};
    use v1::master_client::MasterClient;
    use v1::withdraw_certificates_request::Whose;

    use super::*;

    type Identity = (CertificateDer<'static>, KeyPair);

    fn config(authority: &[u8], own: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                config.with_client_auth_cert(vec![certificate.clone()], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    async fn connect(hall: &Hall, authority: &[u8], own: Option<&Identity>) -> Channel {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config(authority, own)));
        let address = hall.secure;
        let dial = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::from(address.ip());
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://hafen").connect_with_connector(dial).await.unwrap()
    }

    fn authority(hall: &Hall) -> Vec<u8> {
        let file = hall.folder.path().join("state/ca/ca.pem");
        CertificateDer::from_pem_file(file).unwrap().to_vec()
    }

    fn request(node: &str, token: &str) -> (KeyPair, v1::JoinRequest) {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        (key, v1::JoinRequest { token: token.into(), node: node.into(), csr })
    }

    async fn token(hall: &Hall, seconds: i64) -> v1::JoinToken {
        let valid = Some(pbjson_types::Duration { seconds, nanos: 0 });
        let request = v1::CreateTokenRequest { valid, uses: 1 };
        hall.people().await.create_token(request).await.unwrap().into_inner()
    }

    #[tokio::test]
    async fn a_token_makes_a_node_of_a_stranger() {
        let hall = Hall::open().await;
        let authority = authority(&hall);
        let token = token(&hall, 60).await;
        assert_eq!(token.authority, hall.coordinator.as_ref().unwrap().authority);
        let stranger = connect(&hall, &authority, None).await;
        let denied = Fake::begin(stranger.clone(), v1::FromAgent::default()).await;
        assert_eq!(denied.err().unwrap().code(), Code::Unauthenticated);
        let mut client = MasterClient::new(stranger.clone());
        let (key, asked) = request("n1", &token.token);
        let given = client.join(asked.clone()).await.unwrap().into_inner();
        assert_eq!((given.node.as_str(), &given.authorities[0]), ("n1", &authority));
        // The answer was lost: the same request is answered again, another one is not.
        assert!(client.join(asked).await.is_ok());
        let (_, other) = request("n2", &token.token);
        assert_eq!(client.join(other).await.unwrap_err().code(), Code::Unauthenticated);
        let own = (CertificateDer::from(given.certificate), key);
        let channel = connect(&hall, &authority, Some(&own)).await;
        let (_, told) = Fake::dial(channel.clone(), hello("n2")).await;
        assert_eq!(refused(&told), Kind::Identity);
        let (_node, told) = Fake::dial(channel.clone(), hello("n1")).await;
        assert!(matches!(told.what, Some(Down::Welcome(_))), "{told:?}");
        // A node directs nothing, and gets its next certificate without a token.
        let mut people = v1::cluster_client::ClusterClient::new(channel.clone());
        let denied = people.get_cluster(v1::GetClusterRequest::default()).await;
        assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
        let mut client = MasterClient::new(channel);
        assert!(client.join(request("n1", "").1).await.is_ok());
        let foreign = client.join(request("n2", "").1).await.unwrap_err();
        assert_eq!(foreign.code(), Code::Unauthenticated);
        // Its name is taken now.
        let token = super::secure::token(&hall, 60).await;
        let mut client = MasterClient::new(stranger);
        let taken = client.join(request("n1", &token.token).1).await.unwrap_err();
        assert_eq!(taken.code(), Code::AlreadyExists);
    }

    #[tokio::test]
    async fn tokens_grow_old_and_are_not_guessed() {
        let hall = Hall::open().await;
        let authority = authority(&hall);
        let old = token(&hall, 1).await;
        let mut client = MasterClient::new(connect(&hall, &authority, None).await);
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        let (_, mut asked) = request("n1", &old.token);
        assert_eq!(client.join(asked.clone()).await.unwrap_err().code(), Code::Unauthenticated);
        let mut last = Code::Ok;
        for guess in 0..12 {
            asked.token = format!("{guess}");
            last = client.join(asked.clone()).await.unwrap_err().code();
        }
        assert_eq!(last, Code::ResourceExhausted);
    }

    fn ca(hall: &Hall) -> Authority {
        Authority::read(&hall.folder.path().join("state/ca")).unwrap()
    }

    fn person(ca: &Authority, name: &str, number: u64) -> Identity {
        let person = ca.person(name, number).unwrap();
        let certificate = CertificateDer::from_pem_slice(person.certificate.as_bytes()).unwrap();
        (certificate, KeyPair::from_pem(&person.key).unwrap())
    }

    /// What a coordinator says to somebody who wants to see the cluster.
    async fn seen(hall: &Hall, own: &Identity) -> Result<(), tonic::Status> {
        let channel = connect(hall, &authority(hall), Some(own)).await;
        let mut people = v1::cluster_client::ClusterClient::new(channel);
        people.get_cluster(v1::GetClusterRequest::default()).await.map(drop)
    }

    async fn withdraw(hall: &Hall, whose: Whose) -> v1::Withdrawal {
        withdraw_one(hall, whose, "").await.unwrap()
    }

    async fn withdraw_one(
        hall: &Hall,
        whose: Whose,
        serial: &str,
    ) -> Result<v1::Withdrawal, tonic::Status> {
        let request =
            v1::WithdrawCertificatesRequest { whose: Some(whose), serial: serial.to_owned() };
        hall.people().await.withdraw_certificates(request).await.map(tonic::Response::into_inner)
    }

    async fn certificates(hall: &Hall) -> Vec<v1::Certificate> {
        let all = hall.people().await.list_withdrawals(v1::ListWithdrawalsRequest {}).await;
        all.unwrap().into_inner().certificates
    }

    async fn join(hall: &Hall, node: &str) -> Identity {
        let stranger = connect(hall, &authority(hall), None).await;
        let (key, asked) = request(node, &token(hall, 60).await.token);
        let given = MasterClient::new(stranger).join(asked).await.unwrap().into_inner();
        (CertificateDer::from(given.certificate), key)
    }

    #[tokio::test]
    async fn a_person_whose_certificate_is_withdrawn_is_none() {
        let hall = Hall::open().await;
        let (ca, ann) = (ca(&hall), Whose::User("ann".to_owned()));
        let (own, other) = (person(&ca, "ann", 0), person(&ca, "anna", 0));
        let channel = connect(&hall, &authority(&hall), Some(&own)).await;
        let mut people = v1::cluster_client::ClusterClient::new(channel);
        let request = v1::ClusterEventsRequest { follow: true, ..Default::default() };
        let mut events = people.events(request).await.unwrap().into_inner();
        assert_eq!(withdraw(&hall, ann.clone()).await.least, 1);
        // What went on is cut, without anything that would have to be said.
        let last = tokio::time::timeout(LEASE, events.message()).await.expect("an end");
        assert!(last.is_err(), "{last:?}");
        let denied = seen(&hall, &own).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert_eq!(denied.message(), "the certificate was withdrawn");
        assert!(seen(&hall, &other).await.is_ok(), "it is somebody else's");
        let next = person(&ca, "ann", 1);
        assert!(seen(&hall, &next).await.is_ok());
        let hall = hall.again().await;
        assert!(seen(&hall, &own).await.is_err(), "it is written down");
        assert!(seen(&hall, &next).await.is_ok());
        assert_eq!(withdraw(&hall, ann).await.least, 2);
        assert!(seen(&hall, &next).await.is_err());
        let all = hall.people().await.list_withdrawals(v1::ListWithdrawalsRequest {}).await;
        assert_eq!(all.unwrap().into_inner().withdrawals.len(), 1);
    }

    #[tokio::test]
    async fn one_certificate_of_a_person_is_withdrawn_and_the_others_count() {
        let hall = Hall::open().await;
        let (ca, ann) = (ca(&hall), Whose::User("ann".to_owned()));
        let (leaked, own) = (person(&ca, "ann", 0), person(&ca, "ann", 0));
        let channel = connect(&hall, &authority(&hall), Some(&leaked)).await;
        let mut people = v1::cluster_client::ClusterClient::new(channel);
        let request = v1::ClusterEventsRequest { follow: true, ..Default::default() };
        let mut events = people.events(request).await.unwrap().into_inner();
        let shown = certificates(&hall).await;
        let [one] = &*shown else { panic!("{shown:?}") };
        assert_eq!(one.whose, Some(v1::certificate::Whose::User("ann".to_owned())));
        assert!(!one.withdrawn && one.until.is_some());
        // As another program would write it.
        let serial = format!("00:{}", one.serial.to_uppercase());
        let withdrawn = withdraw_one(&hall, ann.clone(), &serial).await.unwrap();
        assert_eq!((withdrawn.least, &withdrawn.serials), (0, &vec![one.serial.clone()]));
        let last = tokio::time::timeout(LEASE, events.message()).await.expect("an end");
        assert!(last.is_err(), "{last:?}");
        let denied = seen(&hall, &leaked).await.unwrap_err();
        assert_eq!(denied.message(), "the certificate was withdrawn");
        assert!(seen(&hall, &own).await.is_ok(), "the person goes on with another");
        let shown = certificates(&hall).await;
        let count: Vec<bool> = shown.iter().map(|each| each.serial == one.serial).collect();
        let gone: Vec<bool> = shown.iter().map(|each| each.withdrawn).collect();
        assert!(shown.len() == 2 && count == gone, "{shown:?}");
        let hall = hall.again().await;
        assert!(seen(&hall, &leaked).await.is_err(), "it is written down");
        assert!(seen(&hall, &own).await.is_ok());
        // All of before includes the other one; the single one stays what it is.
        let all = withdraw(&hall, ann.clone()).await;
        assert_eq!((all.least, all.serials), (1, vec![one.serial.clone()]));
        assert!(seen(&hall, &own).await.is_err());
        for (whose, serial, part) in [
            (ann, "no number", "hexadecimal"),
            (Whose::Node("n1".to_owned()), "1f", "withdraw all of the node"),
        ] {
            let refused = withdraw_one(&hall, whose, serial).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(part), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_node_whose_certificate_is_withdrawn_is_none() {
        let hall = Hall::open().await;
        let own = join(&hall, "n1").await;
        let again = || async { connect(&hall, &authority(&hall), Some(&own)).await };
        let (mut node, told) = Fake::dial(again().await, hello("n1")).await;
        assert!(matches!(told.what, Some(Down::Welcome(_))), "{told:?}");
        withdraw(&hall, Whose::Node("n1".to_owned())).await;
        assert!(node.hear().await.is_err(), "the stream is cut");
        hall.until_presence("n1", Presence::Away).await;
        let (_, told) = Fake::dial(again().await, v1::Hello { connection: 2, ..hello("n1") }).await;
        assert_eq!(refused(&told), Kind::Identity);
        // Nor does it get another one, or at what others asked of a node.
        let renewed = MasterClient::new(again().await).join(request("n1", "").1).await;
        assert_eq!(renewed.unwrap_err().message(), "the certificate was withdrawn");
        let what = Some(v1::channel_up::What::Command("1-1".to_owned()));
        let up = tokio_stream::once(v1::ChannelUp { what });
        let channel = MasterClient::new(again().await).channel(up).await;
        assert_eq!(channel.unwrap_err().code(), Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_node_that_was_removed_joins_anew_or_stays_away() {
        let hall = Hall::open().await;
        let first = token(&hall, 60).await;
        let stranger = connect(&hall, &authority(&hall), None).await;
        let (key, asked) = request("n1", &first.token);
        let mut client = MasterClient::new(stranger);
        let given = client.join(asked.clone()).await.unwrap().into_inner();
        let old = (CertificateDer::from(given.certificate), key);
        let dial = |own: Identity, connection| {
            let hall = &hall;
            async move {
                let channel = connect(hall, &authority(hall), Some(&own)).await;
                Fake::dial(channel, v1::Hello { connection, ..hello("n1") }).await
            }
        };
        let copy = |(certificate, key): &Identity| {
            (certificate.clone(), KeyPair::from_pem(&key.serialize_pem()).unwrap())
        };
        drop(dial(copy(&old), 1).await);
        hall.until_presence("n1", Presence::Away).await;
        let mut people = hall.people().await;
        people.remove_node(v1::RemoveNodeRequest { node: "n1".into() }).await.unwrap();
        assert_eq!(refused(&dial(copy(&old), 2).await.1), Kind::Identity);
        assert!(hall.view().await.nodes.is_empty());
        // The token is used up: what it was used for does not come back either.
        let replayed = client.join(asked).await.unwrap_err();
        assert_eq!(replayed.code(), Code::Unauthenticated);
        let new = join(&hall, "n1").await;
        let (_node, told) = dial(copy(&new), 1).await;
        assert!(matches!(told.what, Some(Down::Welcome(_))), "{told:?}");
        assert_eq!(refused(&dial(copy(&old), 3).await.1), Kind::Identity);
        let channel = connect(&hall, &authority(&hall), Some(&new)).await;
        let mut client = MasterClient::new(channel);
        let (key, asked) = request("n1", "");
        let given = client.join(asked).await.unwrap().into_inner();
        let renewed = (CertificateDer::from(given.certificate), key);
        let (_node, told) = dial(renewed, 2).await;
        assert!(matches!(told.what, Some(Down::Welcome(_))), "{told:?}");
    }

    /// Signed by the authority of this folder, for this name, until this time.
    fn signed(folder: &std::path::Path, uri: &str, until: time::OffsetDateTime) -> Identity {
        let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
        let issuer = KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.pem"), issuer).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (until - time::Duration::days(30), until);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().der().clone(), key)
    }

    #[tokio::test]
    async fn certificates_that_are_none_are_refused() {
        let hall = Hall::open().await;
        let (now, hour) = (time::OffsetDateTime::now_utc(), time::Duration::hours(1));
        let own = hall.folder.path().join("state/ca");
        let foreign = hall.folder.path().join("foreign");
        Authority::open(&foreign).unwrap();
        let good = signed(&own, "hafen:user:ann", now + hour);
        assert!(seen(&hall, &good).await.is_ok());
        for (what, bad) in [
            ("it has ended", signed(&own, "hafen:user:ann", now - hour)),
            ("it has not begun", signed(&own, "hafen:user:ann", now + time::Duration::days(40))),
            ("another authority's", signed(&foreign, "hafen:user:ann", now + hour)),
        ] {
            let refused = seen(&hall, &bad).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unknown, "{what}: {refused:?}");
        }
        for (what, bad) in [
            ("of a node", signed(&own, "hafen:node:n1", now + hour)),
            ("of nobody", signed(&own, "hafen:king:ann", now + hour)),
        ] {
            let refused = seen(&hall, &bad).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{what}: {refused:?}");
        }
        // One node in the name of another one: no stream, no certificate, no channel.
        let channel = connect(&hall, &authority(&hall), Some(&join(&hall, "n1").await)).await;
        assert_eq!(refused(&Fake::dial(channel.clone(), hello("n2")).await.1), Kind::Identity);
        let mut client = MasterClient::new(channel);
        let foreign = client.join(request("n2", "").1).await.unwrap_err();
        assert_eq!(foreign.code(), Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_person_has_a_certificate() {
        let hall = Hall::open().await;
        let own = person(&ca(&hall), "ann", 0);
        let channel = connect(&hall, &authority(&hall), Some(&own)).await;
        let mut people = v1::cluster_client::ClusterClient::new(channel.clone());
        assert!(people.get_cluster(v1::GetClusterRequest::default()).await.is_ok());
        let denied = Fake::begin(channel, v1::FromAgent::default()).await;
        assert_eq!(denied.err().unwrap().code(), Code::PermissionDenied);
    }
}

mod json {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn http(hall: &Hall, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(hall.address).await.unwrap();
        let host = if head.contains("Host:") { "" } else { "Host: localhost\r\n" };
        let length = body.len();
        let (first, rest) = head.split_once('\n').unwrap_or((head, ""));
        let text = format!(
            "{first} HTTP/1.1\r\n{host}{rest}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    #[tokio::test]
    async fn the_twin_says_the_same() {
        let hall = Hall::open().await;
        let body = serde_json::to_string(&submit(job("web", 1))).unwrap();
        let (status, answer) = http(&hall, "POST /v1/jobs", &body).await;
        assert_eq!(status, 201, "{answer}");
        assert!(answer.contains("\"version\":\"1\""), "{answer}");
        let (status, answer) = http(&hall, "GET /v1/cluster", "").await;
        assert!(status == 200 && answer.contains("PHASE_WAITING"), "{answer}");
        let (status, answer) = http(&hall, "GET /v1/jobs/none", "").await;
        assert!(status == 404 && answer.contains("\"code\":\"not_found\""), "{answer}");
        let (status, answer) = http(&hall, "POST /v1/plan", "{\"name\":\"\"}").await;
        assert!(status == 400 && answer.contains("task: is missing"), "{answer}");
        let (_, answer) = http(&hall, "GET /metrics", "").await;
        assert!(answer.contains("hafen_cluster_waiting 1.0"), "{answer}");
        assert!(answer.contains("hafen_cluster_save_seconds_bucket"), "{answer}");
        let (_, answer) = http(&hall, "GET /v1/events?since=1", "").await;
        assert!(answer.contains("job taken on"), "{answer}");
        let (status, answer) = http(&hall, "GET /", "").await;
        let answer = answer.to_ascii_lowercase();
        assert!(status == 200 && answer.contains("content-security-policy: default-src 'self'"));
        for strange in
            ["POST /v1/jobs\nOrigin: http://evil.example\r\n", "GET /\nHost: evil.example\r\n"]
        {
            assert_eq!(http(&hall, strange, "{}").await.0, 403, "{strange}");
        }
    }

    #[tokio::test]
    async fn plain_http_stays_on_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = fake::options(folder.path());
        options.listen = vec!["http://0.0.0.0:0".parse().unwrap()];
        let refused = hafen_coordinator::service::Coordinator::start(options).await.unwrap_err();
        assert!(refused.to_string().contains("--insecure"), "{refused}");
    }
}
