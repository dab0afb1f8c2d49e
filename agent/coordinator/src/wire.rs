//! The only place that knows both the protocol's messages and the cluster's values.

pub mod job;

use std::collections::BTreeSet;
use std::time::Duration;

use hafen_protocol::{time, v1};
use prost::Message;

use crate::cluster::{self, Held, Hello, Order, Settings};
use crate::model::{Amounts, Fence, Machine, NodeId, Rules, Seen, Template, is_name, task_name};

/// `KillPolicy.grace` where nothing is said.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// Least and most version of the protocol.
pub const VERSIONS: (u32, u32) = (1, 1);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a Hello without {0}")]
    Without(&'static str),
    #[error("versions {0} to {1} of the protocol are not spoken here: 1 is")]
    Version(u32, u32),
    #[error("{0:?} is no name: it has 1 to 63 letters, digits, \"_\", \"-\" and \".\"")]
    Name(String),
    #[error("{0}: more than a message may have")]
    TooMuch(&'static str),
    #[error("a task that must not run twice needs stop_after_disconnect")]
    NoFence,
    #[error("{0} is no duration")]
    Duration(&'static str),
}

/// # Errors
/// What a Hello must have.
pub fn hello(hello: &v1::Hello) -> Result<Hello, Malformed> {
    let (least, most) = (hello.version_least, hello.version_most);
    if least > VERSIONS.1 || most < VERSIONS.0 {
        return Err(Malformed::Version(least, most));
    }
    let needed = [(&hello.node, "node"), (&hello.instance, "instance")];
    if let Some((_, name)) = needed.iter().find(|(value, _)| value.is_empty()) {
        return Err(Malformed::Without(name));
    }
    if !is_name(&hello.node) {
        return Err(Malformed::Name(hello.node.clone()));
    }
    let long = |(name, value): (&String, &String)| name.len() > 63 || value.len() > 255;
    let domains = hello.domains.iter().map(|domain| (&domain.level, &domain.name));
    if hello.attributes.len() > 128
        || hello.domains.len() > 8
        || hello.attributes.iter().chain(domains).any(long)
    {
        return Err(Malformed::TooMuch("attributes"));
    }
    let texts = [&hello.instance, &hello.boot_id, &hello.software];
    if texts.into_iter().chain(&hello.features).any(|text| text.len() > 255)
        || hello.features.len() > 128
    {
        return Err(Malformed::TooMuch("words"));
    }
    if hello.tasks.len() > 10_000 {
        return Err(Malformed::TooMuch("tasks"));
    }
    Ok(Hello {
        node: NodeId(hello.node.clone()),
        instance: hello.instance.clone(),
        incarnation: hello.incarnation,
        connection: hello.connection,
        epoch_seen: hello.epoch_seen,
        machine: machine(hello),
        held: hello.tasks.iter().map(held).collect(),
    })
}

/// Failure domains are attributes like others.
fn machine(hello: &v1::Hello) -> Machine {
    let mut attributes = hello.attributes.clone();
    attributes.extend(hello.domains.iter().map(|one| (one.level.clone(), one.name.clone())));
    let allocatable = hello.capacity.as_ref().and_then(|capacity| capacity.allocatable.as_ref());
    Machine {
        attributes,
        features: hello.features.iter().cloned().collect(),
        allocatable: allocatable.map(room).unwrap_or_default(),
    }
}

#[must_use]
pub fn held(task: &v1::HeldTask) -> Held {
    Held { task: task.id.clone(), seen: seen(task.state(), task.ready) }
}

/// What an agent says of a task.
#[must_use]
pub const fn seen(state: v1::State, ready: bool) -> Seen {
    match state {
        v1::State::Running if ready => Seen::Ready,
        v1::State::Unspecified
        | v1::State::Staging
        | v1::State::Starting
        | v1::State::Running
        | v1::State::Killing
        | v1::State::Waiting => Seen::Alive,
        v1::State::Finished => Seen::Finished,
        v1::State::Failed | v1::State::Error => Seen::Failed,
        v1::State::Killed => Seen::Killed,
        v1::State::Lost => Seen::Lost,
    }
}

/// What is there: of what is not said, as much as is asked for.
fn room(amounts: &v1::Amounts) -> Amounts {
    Amounts {
        cpu_milli: amounts.cpu_milli.unwrap_or_default(),
        memory: amounts.memory.unwrap_or_default(),
        disk: amounts.disk.unwrap_or(u64::MAX),
        pids: amounts.pids.unwrap_or(u64::MAX),
    }
}

fn asked(amounts: &v1::Amounts) -> Amounts {
    Amounts {
        cpu_milli: amounts.cpu_milli.unwrap_or_default(),
        memory: amounts.memory.unwrap_or_default(),
        disk: amounts.disk.unwrap_or_default(),
        pids: amounts.pids.unwrap_or_default(),
    }
}

/// Of a quota: what is not said is as much as there is.
#[must_use]
pub fn most(amounts: &v1::Amounts) -> Amounts {
    Amounts {
        cpu_milli: amounts.cpu_milli.unwrap_or(u64::MAX),
        memory: amounts.memory.unwrap_or(u64::MAX),
        ..room(amounts)
    }
}

/// What revocable tasks may share on a node.
#[must_use]
pub fn idle(report: &v1::NodeReport) -> Option<Amounts> {
    let allocatable = room(report.capacity.as_ref()?.allocatable.as_ref()?);
    Some(allocatable.less(asked(report.used_firm.as_ref()?)))
}

/// A task, as far as its placement is concerned.
///
/// # Errors
/// If it must not run twice and does not say when it stops.
pub fn template(
    task: &v1::TaskSpec,
    rules: Rules,
    at_most_one: bool,
) -> Result<Template, Malformed> {
    let resources = task.resources.clone().unwrap_or_default();
    Ok(Template {
        payload: task.encode_to_vec(),
        is_pod: false,
        members: BTreeSet::new(),
        request: resources.request.as_ref().map(asked).unwrap_or_default(),
        ports: ports(task.network.as_ref()).collect::<BTreeSet<_>>(),
        rules: Rules { revocable: resources.revocable, ..rules },
        most_per_node: None,
        fence: if at_most_one { Some(fence(task)?) } else { None },
    })
}

/// Of the node, that are asked for by their numbers.
fn ports(network: Option<&v1::Network>) -> impl Iterator<Item = u16> {
    let ports = network.into_iter().flat_map(|network| &network.ports);
    ports.filter_map(|port| u16::try_from(port.host).ok()).filter(|port| *port != 0)
}

fn fence(task: &v1::TaskSpec) -> Result<Fence, Malformed> {
    let stop = task.stop_after_disconnect.as_ref().ok_or(Malformed::NoFence)?;
    let grace = task.kill.as_ref().and_then(|kill| kill.grace.as_ref());
    Ok(Fence {
        stop_after_disconnect: duration(stop, "stop_after_disconnect")?,
        kill_grace: grace.map_or(Ok(KILL_GRACE), |grace| duration(grace, "kill.grace"))?,
    })
}

/// # Errors
/// What is less than nothing, or beyond what a Duration may say: sums of such are no danger.
pub fn duration(of: &pbjson_types::Duration, name: &'static str) -> Result<Duration, Malformed> {
    /// google/protobuf/duration.proto.
    const MOST: u64 = 315_576_000_000;
    let seconds = u64::try_from(of.seconds).ok().filter(|seconds| *seconds <= MOST);
    let seconds = seconds.ok_or(Malformed::Duration(name))?;
    let nanos = u32::try_from(of.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    Ok(Duration::new(seconds, nanos.ok_or(Malformed::Duration(name))?))
}

/// What a node is told; `command` is the id if it is a command.
///
/// # Errors
/// If what was submitted cannot be read any more.
pub fn order(
    order: &Order,
    command: String,
    epoch: u64,
    settings: &Settings,
) -> Result<v1::from_master::What, prost::DecodeError> {
    use v1::command::What;
    use v1::from_master::What as Said;
    let what = match order {
        Order::Welcome { acknowledged } => return Ok(welcome(acknowledged, settings)),
        Order::Acknowledge { task, sequence } => {
            return Ok(Said::Acknowledge(acknowledge(task, *sequence)));
        }
        Order::Run { allocation, epoch, payload, is_pod } => {
            run(&task_name(*allocation), *epoch, payload, *is_pod)?
        }
        Order::Stop { task, preempted } => What::Stop(stop(task, *preempted)),
        Order::Forget { task } => {
            What::Forget(v1::ForgetTask { id: task.clone(), keep_logs: true })
        }
        Order::Drain(on) => What::Drain(v1::Drain { on: *on, sentence: String::new() }),
    };
    Ok(Said::Command(v1::Command { id: command, epoch, what: Some(what) }))
}

fn welcome(acknowledged: &[(String, u64)], settings: &Settings) -> v1::from_master::What {
    let known = acknowledged.iter().map(|(task, sequence)| acknowledge(task, *sequence));
    v1::from_master::What::Welcome(v1::Welcome {
        version: VERSIONS.1,
        lease: Some(time::span(settings.lease)),
        acknowledged: known.collect(),
        ..v1::Welcome::default()
    })
}

fn acknowledge(task: &str, sequence: u64) -> v1::Acknowledge {
    v1::Acknowledge { task: task.to_owned(), sequence }
}

fn run(
    name: &str,
    epoch: u64,
    payload: &[u8],
    is_pod: bool,
) -> Result<v1::command::What, prost::DecodeError> {
    let grant = Some(v1::TaskGrant { epoch, digest: Vec::new() });
    if is_pod {
        let pod = v1::PodSpec { id: name.to_owned(), ..v1::PodSpec::decode(payload)? };
        return Ok(v1::command::What::RunPod(v1::RunPod { pod: Some(pod), grant }));
    }
    let task = v1::TaskSpec { id: name.to_owned(), ..v1::TaskSpec::decode(payload)? };
    Ok(v1::command::What::RunTask(v1::RunTask { task: Some(task), grant }))
}

fn stop(task: &str, preempted: bool) -> v1::StopTask {
    use v1::reason::Kind;
    let why = if preempted { Kind::Preempted } else { Kind::Stopped };
    v1::StopTask { id: task.to_owned(), grace: None, epoch: 0, why: why.into() }
}

/// Why a stream is closed.
#[must_use]
pub fn refused(why: cluster::Refusal) -> v1::Refused {
    use v1::refused::Kind;
    let kind = match why {
        cluster::Refusal::Stale => Kind::Stale,
        cluster::Refusal::Taken => Kind::Taken,
        cluster::Refusal::Epoch => Kind::Epoch,
        cluster::Refusal::Gap => Kind::Protocol,
    };
    let (version_least, version_most) = VERSIONS;
    let sentence = why.to_string();
    v1::Refused { kind: kind.into(), sentence, version_least, version_most, retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AllocId;

    fn task() -> v1::TaskSpec {
        let amounts =
            v1::Amounts { cpu_milli: Some(500), memory: Some(1 << 20), ..Default::default() };
        let resources = v1::Resources { request: Some(amounts), ..Default::default() };
        let ports = [80, 0].map(|host| v1::Port { host, ..Default::default() });
        let network = v1::Network { ports: ports.into(), ..Default::default() };
        v1::TaskSpec { resources: Some(resources), network: Some(network), ..Default::default() }
    }

    #[test]
    fn a_task_is_placed_by_its_request_and_runs_as_it_was_given() {
        let template = template(&task(), Rules::default(), false).unwrap();
        assert_eq!((template.request.cpu_milli, template.request.memory), (500, 1 << 20));
        assert_eq!(template.ports, BTreeSet::from([80]));
        let run = Order::Run {
            allocation: AllocId(31),
            epoch: 31,
            payload: template.payload,
            is_pod: false,
        };
        let said = order(&run, "c1".into(), 7, &Settings::default()).unwrap();
        let v1::from_master::What::Command(command) = said else { panic!("{said:?}") };
        assert_eq!((command.id.as_str(), command.epoch), ("c1", 7));
        let Some(v1::command::What::RunTask(run)) = command.what else { panic!("no task") };
        assert_eq!(run.task.unwrap(), v1::TaskSpec { id: "a1f".into(), ..task() });
        assert_eq!(run.grant.unwrap().epoch, 31);
    }

    #[test]
    fn what_must_not_run_twice_says_when_it_stops() {
        let none = super::template(&task(), Rules::default(), true);
        assert_eq!(none.unwrap_err(), Malformed::NoFence);
        let stop = Some(time::span(Duration::from_secs(4)));
        let task = v1::TaskSpec { stop_after_disconnect: stop, ..task() };
        let fence = super::template(&task, Rules::default(), true).unwrap().fence.unwrap();
        assert_eq!(fence.stop_after_disconnect, Duration::from_secs(4));
        assert_eq!(fence.kill_grace, KILL_GRACE);
    }

    #[test]
    fn a_hello_is_looked_at() {
        let mut said = v1::Hello { version_least: 1, version_most: 3, ..Default::default() };
        assert_eq!(hello(&said).unwrap_err(), Malformed::Without("node"));
        (said.node, said.instance) = ("n".into(), "i".into());
        said.domains = vec![v1::Domain { level: "zone".into(), name: "z".into() }];
        assert_eq!(hello(&said).unwrap().machine.attributes["zone"], "z");
        said.version_least = 2;
        assert_eq!(hello(&said).unwrap_err(), Malformed::Version(2, 3));
    }
}
