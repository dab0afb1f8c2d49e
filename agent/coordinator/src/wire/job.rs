//! What a person asks for as a job, and what the cluster knows of it.

use std::collections::BTreeSet;
use std::time::Duration;

use hafen_protocol::v1;
use prost::Message;

use super::{Malformed, duration, fence, ports, template};
use crate::model::{
    Affinity, Amounts, BackOff, Constraint, Fence, Job, JobId, Kind, Namespace, Rules, Spread,
    Strategy, Template, Test, is_name,
};

/// Where nothing is said.
const NAMESPACE: &str = "default";
const TRIES: u32 = 3;
/// What an agent must be able to do for pods.
const PODS: &str = "pods";
/// Tasks tell people by these labels what they are.
const JOB_LABEL: &str = "hafen.job";
const NAMESPACE_LABEL: &str = "hafen.namespace";
const MOST_CONSTRAINTS: usize = 64;
/// Places of one job.
const MOST_REPLICAS: u32 = 100_000;

/// Every problem of a job, each with its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

#[derive(Default)]
struct Finding(Vec<String>);

impl Finding {
    fn add(&mut self, field: &str, words: impl std::fmt::Display) {
        self.0.push(format!("{field}: {words}"));
    }

    fn duration(
        &mut self,
        field: &'static str,
        given: Option<&pbjson_types::Duration>,
        usual: Duration,
    ) -> Duration {
        let read = given.map_or(Ok(usual), |given| duration(given, field));
        read.unwrap_or_else(|why| {
            self.0.push(why.to_string());
            usual
        })
    }

    fn name(&mut self, field: &str, name: &str) {
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || !is_name(name) {
            self.add(field, "a name has 1 to 63 letters, digits, \"_\", \"-\" and \".\"");
        }
    }
}

/// # Errors
/// All that is wrong with it.
pub fn job(spec: &v1::JobSpec) -> Result<Job, Problems> {
    let mut finding = Finding::default();
    let namespace = if spec.namespace.is_empty() { NAMESPACE } else { &spec.namespace }.to_owned();
    finding.name("name", &spec.name);
    finding.name("namespace", &namespace);
    let rules = rules(spec, &mut finding);
    let template = what(spec, &namespace, rules, &mut finding);
    let kind = kind(spec, &mut finding);
    let job = Job {
        id: JobId(spec.name.clone()),
        namespace: Namespace(namespace),
        kind,
        template: Template {
            most_per_node: Some(spec.most_per_node).filter(|most| *most != 0),
            ..template
        },
        priority: spec.priority,
        preempts: spec.preempts,
        update: strategy(spec.update.as_ref(), &mut finding),
        reschedule: back_off(spec.reschedule.as_ref(), &mut finding),
        grace: finding.duration("grace", spec.grace.as_ref(), Duration::ZERO),
        source: spec.encode_to_vec(),
    };
    if finding.0.is_empty() { Ok(job) } else { Err(Problems(finding.0)) }
}

/// Why there cannot be so many places.
pub fn too_many(count: u32) -> Option<String> {
    (count > MOST_REPLICAS).then(|| format!("{count}: {MOST_REPLICAS} are the most"))
}

fn kind(spec: &v1::JobSpec, finding: &mut Finding) -> Kind {
    use v1::job_spec::Kind as Said;
    let (field, count) = match &spec.kind {
        Some(Said::Replicas(count)) => ("replicas", *count),
        Some(Said::Batch(batch)) => ("batch.runs", batch.runs),
        Some(Said::OnePerNode(_)) | None => ("replicas", 1),
    };
    if let Some(why) = too_many(count) {
        finding.add(field, why);
    }
    match &spec.kind {
        Some(Said::Replicas(count)) => Kind::Replicas(*count),
        Some(Said::OnePerNode(true)) => Kind::OnePerNode,
        Some(Said::Batch(v1::Batch { runs, tries })) => {
            let tries = if *tries == 0 { TRIES } else { *tries };
            Kind::Batch { runs: (*runs).max(1), tries }
        }
        Some(Said::OnePerNode(false)) | None => Kind::Replicas(1),
    }
}

fn what(spec: &v1::JobSpec, namespace: &str, rules: Rules, finding: &mut Finding) -> Template {
    use v1::job_spec::What;
    let labels = [(JOB_LABEL, spec.name.as_str()), (NAMESPACE_LABEL, namespace)];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
    let made = match &spec.what {
        None => {
            finding.add("task", "is missing: say a task or a pod");
            return Template::default();
        }
        Some(What::Task(task)) => {
            root("task", task, finding);
            let mut task = v1::TaskSpec { id: String::new(), remove: false, ..task.clone() };
            task.labels.extend(labels);
            template(&task, rules, spec.at_most_one)
        }
        Some(What::Pod(pod)) => {
            members(pod, finding);
            let mut pod = v1::PodSpec { id: String::new(), ..pod.clone() };
            for task in &mut pod.tasks {
                task.remove = false;
                task.labels.extend(labels.clone());
            }
            pod.labels.extend(labels);
            of_pod(&pod, rules, spec.at_most_one)
        }
    };
    made.unwrap_or_else(|why| {
        finding.add("task", why);
        Template::default()
    })
}

fn root(field: &str, task: &v1::TaskSpec, finding: &mut Finding) {
    if task.root.as_ref().is_none_or(|root| root.kind.is_none()) {
        finding.add(&format!("{field}.root"), "is missing: say image, rootfs or host");
    }
}

fn members(pod: &v1::PodSpec, finding: &mut Finding) {
    if pod.tasks.is_empty() {
        finding.add("pod.tasks", "is empty: a pod has one task at least");
    }
    let mut names = BTreeSet::new();
    for (i, task) in pod.tasks.iter().enumerate() {
        let field = format!("pod.tasks[{i}]");
        // Behind the pod's name and a point it must be a name still.
        if task.id.len() > 40 {
            finding.add(&format!("{field}.id"), "is longer than 40 characters");
        }
        finding.name(&format!("{field}.id"), &task.id);
        if !names.insert(&task.id) {
            finding.add(&format!("{field}.id"), format!("{} is there twice", task.id));
        }
        root(&field, task, finding);
    }
}

/// A pod, as far as its placement is concerned: the sum of what its tasks ask for.
///
/// # Errors
/// If it must not run twice and one of its tasks does not say when it stops.
pub fn of_pod(
    pod: &v1::PodSpec,
    mut rules: Rules,
    at_most_one: bool,
) -> Result<Template, Malformed> {
    let each: Vec<Template> = pod
        .tasks
        .iter()
        .map(|task| template(task, Rules::default(), false))
        .collect::<Result<_, _>>()?;
    let of_tasks = each.iter().flat_map(|one| one.ports.iter().copied());
    let ports = ports(pod.network.as_ref()).chain(of_tasks).collect();
    rules.revocable = !each.is_empty() && each.iter().all(|one| one.rules.revocable);
    rules.features.insert(PODS.to_owned());
    let fences: Vec<Fence> = match at_most_one {
        true => pod.tasks.iter().map(fence).collect::<Result<_, _>>()?,
        false => Vec::new(),
    };
    let longest = |of: fn(&Fence) -> Duration| fences.iter().map(of).max().unwrap_or_default();
    let stop_after_disconnect = longest(|fence| fence.stop_after_disconnect);
    let kill_grace = longest(|fence| fence.kill_grace);
    Ok(Template {
        payload: pod.encode_to_vec(),
        is_pod: true,
        members: pod.tasks.iter().map(|task| task.id.clone()).collect(),
        request: each.iter().fold(Amounts::default(), |sum, one| sum.plus(one.request)),
        ports,
        rules,
        most_per_node: None,
        fence: at_most_one.then_some(Fence { stop_after_disconnect, kill_grace }),
    })
}

fn rules(spec: &v1::JobSpec, finding: &mut Finding) -> Rules {
    if spec.constraints.len() > MOST_CONSTRAINTS || spec.affinities.len() > MOST_CONSTRAINTS {
        finding.add("constraints", format!("{MOST_CONSTRAINTS} are the most"));
    }
    let constraints = spec.constraints.iter().enumerate();
    let constraints = constraints
        .filter_map(|(i, one)| constraint(&format!("constraints[{i}]"), one, finding))
        .collect();
    let mut affinities = Vec::new();
    for (i, affinity) in spec.affinities.iter().enumerate() {
        let field = format!("affinities[{i}].constraint");
        let given = affinity.constraint.clone().unwrap_or_default();
        if let Some(constraint) = constraint(&field, &given, finding) {
            affinities.push(Affinity { constraint, weight: affinity.weight });
        }
    }
    let spread = spec.spread.as_ref().map(|spread| {
        if spread.attribute.is_empty() {
            finding.add("spread.attribute", "is missing");
        }
        Spread { attribute: spread.attribute.clone(), most_uneven: spread.most_uneven }
    });
    Rules { constraints, affinities, spread, features: BTreeSet::new(), revocable: false }
}

fn constraint(field: &str, given: &v1::Constraint, finding: &mut Finding) -> Option<Constraint> {
    use v1::constraint::Test as Said;
    if given.attribute.is_empty() {
        finding.add(&format!("{field}.attribute"), "is missing");
    }
    let test = match given.test.clone() {
        Some(Said::In(values)) => Test::In(values.values),
        Some(Said::NotIn(values)) => Test::NotIn(values.values),
        Some(Said::Present(true)) => Test::Present,
        Some(Said::Present(false)) => Test::Absent,
        Some(Said::AtLeast(least)) => Test::AtLeast(least),
        Some(Said::AtMost(most)) => Test::AtMost(most),
        None => {
            finding.add(field, "has no test: say in, notIn, present, atLeast or atMost");
            return None;
        }
    };
    Some(Constraint { attribute: given.attribute.clone(), test })
}

fn strategy(given: Option<&v1::UpdateStrategy>, finding: &mut Finding) -> Strategy {
    let usual = Strategy::default();
    let Some(given) = given else { return usual };
    let healthy = given.healthy_within.as_ref();
    Strategy {
        most_parallel: given.most_parallel.max(1),
        healthy_within: finding.duration("update.healthyWithin", healthy, usual.healthy_within),
        roll_back: !given.no_roll_back,
    }
}

fn back_off(given: Option<&v1::BackOff>, finding: &mut Finding) -> BackOff {
    let usual = BackOff::default();
    let Some(given) = given else { return usual };
    let first = finding.duration("reschedule.first", given.first.as_ref(), usual.first);
    let most = finding.duration("reschedule.most", given.most.as_ref(), usual.most.max(first));
    if most < first {
        finding.add("reschedule.most", "is less than reschedule.first");
    }
    BackOff { first, most }
}

/// As its owner gave it, with as many instances as are wanted now.
#[must_use]
pub fn spec(job: &Job) -> v1::JobSpec {
    let mut spec = v1::JobSpec::decode(job.source.as_slice()).unwrap_or_default();
    if let Kind::Replicas(count) = job.kind {
        spec.kind = Some(v1::job_spec::Kind::Replicas(count));
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, memory: u64) -> v1::TaskSpec {
        let root = v1::Root { kind: Some(v1::root::Kind::Host(true)), ..Default::default() };
        let request = v1::Amounts { memory: Some(memory), ..Default::default() };
        let resources = v1::Resources { request: Some(request), ..Default::default() };
        v1::TaskSpec {
            id: name.into(),
            root: Some(root),
            resources: Some(resources),
            ..Default::default()
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let spec = v1::JobSpec {
            name: "no/name".into(),
            constraints: vec![v1::Constraint::default()],
            grace: Some(pbjson_types::Duration { seconds: -1, nanos: 0 }),
            kind: Some(v1::job_spec::Kind::Replicas(u32::MAX)),
            ..Default::default()
        };
        let words = job(&spec).unwrap_err().to_string();
        for field in
            ["name", "task", "replicas", "constraints[0].attribute", "constraints[0]", "grace"]
        {
            assert!(words.lines().any(|line| line.starts_with(field)), "{field}: {words}");
        }
    }

    #[test]
    fn a_pod_asks_for_the_sum_and_has_members() {
        let port = v1::Port { host: 80, ..Default::default() };
        let network = v1::Network { ports: vec![port], ..Default::default() };
        let pod = v1::PodSpec {
            tasks: vec![task("web", 3), task("log", 4)],
            network: Some(network),
            ..Default::default()
        };
        let what = Some(v1::job_spec::What::Pod(pod));
        let job = job(&v1::JobSpec { name: "p".into(), what, ..Default::default() }).unwrap();
        assert_eq!((job.template.request.memory, job.template.is_pod), (7, true));
        assert_eq!(job.template.members, ["log", "web"].map(String::from).into());
        assert_eq!(job.template.ports, [80].into());
        assert!(job.template.rules.features.contains(PODS));
    }

    #[test]
    fn what_was_given_is_given_back() {
        let what = Some(v1::job_spec::What::Task(task("", 3)));
        let given = v1::JobSpec { name: "j".into(), what, ..Default::default() };
        let mut job = job(&given).unwrap();
        job.kind = Kind::Replicas(4);
        let wanted = Some(v1::job_spec::Kind::Replicas(4));
        let back = spec(&job);
        assert_eq!(back, v1::JobSpec { kind: wanted, ..given.clone() });
        let changed = hafen_protocol::change::between(&given, &back);
        assert_eq!(changed.iter().map(|change| &change.path).collect::<Vec<_>>(), ["replicas"]);
    }
}
