//! `hafen publish`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use hafen_protocol::v1::{self, check, constraint, job_spec, network, root};
use hafen_spec::Problems;

use super::wait::WaitArgs;
use super::{HostArgs, job, quota};
use crate::Error;
use crate::cli::Format;

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// What runs; each node fetches it if it does not have it.
    image: String,
    /// The job's name [default: the last part of the image's].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    namespace: String,
    /// How many run at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: u32,
    /// One on each node that the constraints allow.
    #[arg(long, conflicts_with = "replicas")]
    one_per_node: bool,
    /// CPUs that are set aside for each, and that it may take at most, as 0.5.
    #[arg(long, value_name = "CPUS")]
    cpus: Option<String>,
    /// Memory that is set aside for each, and that it may take at most, as 128M.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// A port of its node that leads to one of the task, the same if none is said; 0 is one that is free.
    #[arg(long, value_name = "PORT[:PORT][/PROTOCOL]")]
    port: Vec<String>,
    /// It is ready when all its TCP ports take connections, and not as soon as it runs.
    #[arg(long, value_name = "HOW", requires = "port")]
    ready: Option<Ready>,
    /// A variable; without a value it has ours.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Of its node: NAME=VALUE[,VALUE], NAME!=VALUE, NAME>=N, NAME<=N, NAME (it has it) or !NAME; may be repeated.
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Evenly over the values of an attribute, as zone.
    #[arg(long, value_name = "NAME")]
    spread: Option<String>,
    /// Greater goes first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Only say what the job would be, as JSON that "hafen job run" takes.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// In place of what the image says.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ready {
    Tcp,
}

pub(super) fn publish(host: &HostArgs, args: &PublishArgs) -> Result<ExitCode, Error> {
    let job = args.job(&|name| std::env::var(name).ok()).map_err(Error::Options)?;
    if args.dry_run {
        super::show::json(&job)?;
    } else {
        job::submit(host, job, 0, &args.wait, args.format)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl PublishArgs {
    pub(super) fn job(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<v1::JobSpec, Problems> {
        let mut problems = Problems::default();
        let p = &mut problems;
        let kind = match self.one_per_node {
            true => job_spec::Kind::OnePerNode(true),
            false => job_spec::Kind::Replicas(self.replicas),
        };
        let spread =
            |attribute: &String| v1::Spread { attribute: attribute.clone(), most_uneven: None };
        let job = v1::JobSpec {
            name: self.name.clone().unwrap_or_else(|| short(&self.image)),
            namespace: self.namespace.clone(),
            what: Some(job_spec::What::Task(self.task(variable, p))),
            kind: Some(kind),
            priority: self.priority,
            constraints: self.constraint.iter().filter_map(|text| constraint(text, p)).collect(),
            spread: self.spread.as_ref().map(spread),
            ..v1::JobSpec::default()
        };
        if job.name.is_empty() {
            problems.add("--name", "is missing: the image has none");
        }
        problems.into_result(job)
    }

    fn task(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        problems: &mut Problems,
    ) -> v1::TaskSpec {
        let amounts = quota::amounts(
            [("--cpus", &self.cpus), ("--memory", &self.memory), ("", &None)],
            problems,
        );
        let amounts = Some(amounts).filter(|amounts| *amounts != v1::Amounts::default());
        let resources = amounts.map(|amounts| v1::Resources {
            request: Some(amounts),
            limit: Some(amounts),
            ..v1::Resources::default()
        });
        let ports: Vec<_> = self.port.iter().filter_map(|text| port(text, problems)).collect();
        let checks = if self.ready.is_some() { checks(&ports) } else { Vec::new() };
        let kind = Some(root::Kind::Image(self.image.clone()));
        v1::TaskSpec {
            root: Some(v1::Root { kind, ..v1::Root::default() }),
            command: self.command.clone(),
            env: self.variables(variable, problems),
            resources,
            checks,
            network: (!ports.is_empty()).then(|| v1::Network {
                mode: network::Mode::Cni.into(),
                ports,
                ..v1::Network::default()
            }),
            ..v1::TaskSpec::default()
        }
    }

    fn variables(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        problems: &mut Problems,
    ) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for text in &self.env {
            match text.split_once('=') {
                Some(("", _)) => problems.add("--env", format!("{text:?} has no name")),
                Some((name, value)) => {
                    all.insert(name.to_owned(), value.to_owned());
                }
                None => all.extend(variable(text).map(|value| (text.clone(), value))),
            }
        }
        all
    }
}

/// `quay.io/team/web:2` is "web".
fn short(image: &str) -> String {
    let image = image.split('@').next().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default().to_owned()
}

fn port(text: &str, problems: &mut Problems) -> Option<v1::Port> {
    let found = parse_port(text);
    if found.is_none() {
        problems.add("--port", format!("{text:?} is not PORT[:PORT][/tcp|udp|sctp]"));
    }
    found
}

fn parse_port(text: &str) -> Option<v1::Port> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, ""));
    if !["", "tcp", "udp", "sctp"].contains(&protocol) {
        return None;
    }
    let (host, container) = numbers.split_once(':').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().map(u32::from);
    let container = number(container).filter(|port| *port > 0)?;
    Some(v1::Port {
        host: number(host)?,
        container,
        protocol: protocol.to_owned(),
        host_ip: String::new(),
    })
}

fn checks(ports: &[v1::Port]) -> Vec<v1::Check> {
    let tcp = ports.iter().filter(|port| ["", "tcp"].contains(&port.protocol.as_str()));
    tcp.map(|port| v1::Check {
        name: format!("port-{}", port.container),
        kind: check::Kind::Readiness.into(),
        probe: Some(check::Probe::Tcp(check::Tcp { port: port.container, host: String::new() })),
        interval: Some(std::time::Duration::from_secs(2).into()),
        ..v1::Check::default()
    })
    .collect()
}

fn constraint(text: &str, problems: &mut Problems) -> Option<v1::Constraint> {
    let found = parse_constraint(text);
    if found.is_none() {
        let wanted = "none of NAME=VALUE[,VALUE], NAME!=VALUE, NAME>=N, NAME<=N, NAME, !NAME";
        problems.add("--constraint", format!("{text:?} is {wanted}"));
    }
    found
}

fn parse_constraint(text: &str) -> Option<v1::Constraint> {
    use constraint::Test;
    let values =
        |text: &str| constraint::Values { values: text.split(',').map(str::to_owned).collect() };
    // The longer signs first: "=" is in all of them.
    let (attribute, test) = if let Some((name, text)) = text.split_once("!=") {
        (name, Test::NotIn(values(text)))
    } else if let Some((name, text)) = text.split_once(">=") {
        (name, Test::AtLeast(text.parse().ok()?))
    } else if let Some((name, text)) = text.split_once("<=") {
        (name, Test::AtMost(text.parse().ok()?))
    } else if let Some((name, text)) = text.split_once('=') {
        (name, Test::In(values(text)))
    } else if let Some(name) = text.strip_prefix('!') {
        (name, Test::Present(false))
    } else {
        (text, Test::Present(true))
    };
    (!attribute.is_empty())
        .then(|| v1::Constraint { attribute: attribute.to_owned(), test: Some(test) })
}
