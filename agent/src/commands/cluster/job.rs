//! `hafen jobs` and `hafen job`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hafen::client::Cluster;
use hafen::jobfile::{self, Form};
use hafen_protocol::v1::{self, job::Rollout};

use super::wait::{self, BATCH, Verdict, WaitArgs};
use super::{HostArgs, JobsArgs, block_on, history, plan, show, tasks, view};
use crate::Error;
use crate::cli::Format;
use crate::commands::{control::duration, document};

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List the jobs of the cluster.
    Ls(JobsArgs),
    /// Take a job on, or change it, and wait until all of it is ready, or a batch has ended.
    Run(RunArgs),
    /// Say what would change, and where it would go. Nothing is done.
    Plan(plan::PlanArgs),
    /// Nothing of a job is to run.
    Stop(StopArgs),
    /// So many instances of a job are to run.
    Scale {
        #[arg(value_name = "JOB")]
        name: String,
        #[arg(value_name = "N")]
        replicas: u32,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List the versions of a job, and what has changed in each.
    History {
        #[arg(value_name = "JOB")]
        name: String,
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
    /// Go back to an earlier version of a job, as a new one.
    Rollback {
        #[arg(value_name = "JOB")]
        name: String,
        /// Without it, the one before the present one.
        version: Option<u64>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Print all that is known of jobs, as JSON.
    Inspect {
        #[arg(required = true, value_name = "JOB")]
        names: Vec<String>,
    },
}

/// A job's file.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// TOML, YAML or JSON of a JobSpec; "-" is stdin.
    file: PathBuf,
    /// How the file is written, if its name does not say.
    #[arg(long, value_name = "FORM")]
    input: Option<Input>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Input {
    Toml,
    Yaml,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Only if the job has this version now: exit code 4 otherwise.
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    if_version: u64,
    #[command(flatten)]
    wait: WaitArgs,
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[arg(value_name = "JOB")]
    name: String,
    /// Forget it once nothing of it is left.
    #[arg(long)]
    purge: bool,
    /// Until nothing of it runs any more.
    #[arg(long)]
    wait: bool,
    /// Give up waiting after that: exit code 7.
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = duration)]
    timeout: Option<Duration>,
}

impl FileArgs {
    pub(super) fn read(&self) -> Result<v1::JobSpec, Error> {
        let text = document::text(&self.file)?;
        let told = self.input.map(|input| match input {
            Input::Toml => Form::Toml,
            Input::Yaml => Form::Yaml,
            Input::Json => Form::Json,
        });
        let form = told.unwrap_or_else(|| document::form(&self.file, &text));
        let name = name(&self.file);
        jobfile::job(&text, form).map_err(|problems| Error::Document(problems.of_file(&name)))
    }
}

fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() }
}

pub(super) fn job(host: &HostArgs, command: &JobCommand) -> Result<ExitCode, Error> {
    match command {
        JobCommand::Ls(args) => return list(host, &args.namespace, args.list.format),
        JobCommand::Run(args) => run(host, args)?,
        JobCommand::Plan(args) => return plan::plan(host, args),
        JobCommand::Stop(args) => stop(host, args)?,
        JobCommand::Scale { name, replicas, wait } => block_on(async {
            let request = v1::ScaleJobRequest { name: name.clone(), replicas: *replicas };
            let mut client = host.cluster().await?;
            let job = client.scale_job(request).await?.into_inner();
            follow(&mut client, &job, wait, Format::Table).await
        })?,
        JobCommand::History { name, format } => history::history(host, name, *format)?,
        JobCommand::Rollback { name, version, wait } => block_on(async {
            let version = version.unwrap_or_default();
            let request = v1::RollBackJobRequest { name: name.clone(), version };
            let mut client = host.cluster().await?;
            let job = client.roll_back_job(request).await?.into_inner();
            follow(&mut client, &job, wait, Format::Table).await
        })?,
        JobCommand::Inspect { names } => block_on(async {
            let mut client = host.cluster().await?;
            for name in names {
                show::json(&get(&mut client, name).await?)?;
            }
            Ok(())
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn get(client: &mut Cluster, name: &str) -> Result<v1::Job, Error> {
    Ok(client.get_job(v1::GetJobRequest { name: name.to_owned() }).await?.into_inner())
}

fn run(host: &HostArgs, args: &RunArgs) -> Result<(), Error> {
    let job = args.file.read()?;
    submit(host, job, args.if_version, &args.wait, args.format)
}

pub(super) fn submit(
    host: &HostArgs,
    job: v1::JobSpec,
    if_version: u64,
    wait: &WaitArgs,
    format: Format,
) -> Result<(), Error> {
    block_on(async {
        let mut client = host.cluster().await?;
        let request = v1::SubmitJobRequest { job: Some(job), if_version };
        let job = client.submit_job(request).await?.into_inner();
        follow(&mut client, &job, wait, format).await
    })
}

/// What was asked for is written down; what came of it is told when it is there.
async fn follow(
    client: &mut Cluster,
    job: &v1::Job,
    wait: &WaitArgs,
    format: Format,
) -> Result<(), Error> {
    let Some(view) = wait.settled(client, job).await? else {
        return match format {
            Format::Json => show::json(job),
            Format::Table => show::line(&format!("{} version {}", job.name, job.version)),
        };
    };
    let of_it = view.instances.into_iter().filter(|instance| instance.job == job.name);
    let shown = |one: &v1::Instance| job.kind == BATCH || wait::is_alive(one);
    let instances: Vec<v1::Instance> = of_it.filter(shown).collect();
    match format {
        Format::Json => show::json(&instances),
        Format::Table => tasks::table(&instances),
    }
}

fn stop(host: &HostArgs, args: &StopArgs) -> Result<(), Error> {
    block_on(async {
        let mut client = host.cluster().await?;
        let request = v1::StopJobRequest { name: args.name.clone(), purge: args.purge };
        let job = client.stop_job(request).await?.into_inner();
        if args.wait {
            let gone = |view: &v1::ClusterView| gone(view, &job.name);
            wait::until(&mut client, args.timeout, gone).await?;
        }
        show::line(&job.name)
    })
}

fn gone(view: &v1::ClusterView, name: &str) -> Verdict {
    let of_it = view.instances.iter().filter(|one| one.job == name && wait::is_alive(one));
    match of_it.count() {
        0 => Verdict::Done,
        count => Verdict::Not(format!("{name}: {count} tasks are there")),
    }
}

pub(super) fn list(host: &HostArgs, namespace: &str, format: Format) -> Result<ExitCode, Error> {
    let jobs = block_on(async { Ok(view(&mut host.cluster().await?, namespace).await?.jobs) })?;
    match format {
        Format::Json => show::json(&jobs)?,
        Format::Table => show::table(HEADER, jobs.iter().map(row).collect())?,
    }
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 8] = ["JOB", "NAMESPACE", "KIND", "VERSION", "READY", "STATE", "RUNS", "WHY"];

pub(super) fn row(job: &v1::Job) -> [String; 8] {
    let done = if job.kind == BATCH { job.finished } else { job.ready };
    [
        job.name.clone(),
        job.namespace.clone(),
        job.kind.replace('_', " "),
        job.version.to_string(),
        format!("{done}/{}", job.wanted),
        state(job).to_owned(),
        show::plain(&job.runs),
        show::plain(&job.sentence),
    ]
}

fn state(job: &v1::Job) -> &'static str {
    let is_batch = job.kind == BATCH;
    match job.rollout() {
        _ if job.stopped => "stopped",
        _ if is_batch && job.finished >= job.wanted => "finished",
        _ if is_batch && job.finished + job.failed >= job.wanted => "failed",
        _ if is_batch => "running",
        Rollout::RollingBack => "going back",
        Rollout::Failed => "failed",
        Rollout::Done if job.ready >= job.wanted => "ready",
        Rollout::Done => "not ready",
        Rollout::Unspecified | Rollout::UnderWay => "under way",
    }
}
