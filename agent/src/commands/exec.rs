//! `hafen exec` and `hafen attach`.

use std::process::ExitCode;

use clap::Args;
use hafen::client::Cluster;
use hafen_protocol::v1;

use super::session::{self, End, Wanted};
use super::{HostArgs, Whose, block_on};
use crate::Error;

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Give it our input.
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// A variable; without a value it has ours.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// UID[:GID], or names that the task knows.
    #[arg(short, long, value_name = "USER", default_value = "", hide_default_value = true)]
    user: String,
    /// Where it begins.
    #[arg(short, long, value_name = "DIR", default_value = "", hide_default_value = true)]
    workdir: String,
    #[command(flatten)]
    whose: Whose,
    task: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Give it nothing of our input.
    #[arg(long)]
    no_stdin: bool,
    /// Tell first what it wrote last.
    #[arg(long)]
    replay: bool,
    #[command(flatten)]
    whose: Whose,
    task: String,
}

pub(super) fn exec(host: &HostArgs, args: &ExecArgs) -> Result<ExitCode, Error> {
    if args.tty && args.interactive {
        session::must_be_terminal()?;
    }
    let env = args.env.iter().filter_map(|text| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(text).ok().map(|value| (text.clone(), value)),
    });
    let start = v1::ExecStart {
        id: args.task.clone(),
        command: args.command.clone(),
        env: env.collect(),
        user: args.user.clone(),
        cwd: args.workdir.clone(),
        terminal: args.tty,
        size: if args.tty { session::size() } else { None },
        no_stdin: !args.interactive,
    };
    block_on(async {
        let ended = if args.whose.is_cluster(host) {
            let mut client = host.cluster().await?;
            session::exec(start, |input| async move { client.exec(input).await }).await
        } else {
            let mut client = host.connect().await?;
            session::exec(start, |input| async move { client.exec(input).await }).await
        };
        end(ended?)
    })
}

pub(super) fn attach(host: &HostArgs, args: &AttachArgs) -> Result<ExitCode, Error> {
    block_on(async {
        if args.whose.is_cluster(host) {
            let mut client = host.cluster().await?;
            let (id, spec) = placed(&mut client, &args.task).await?;
            return end(session::attach_far(&client, &id, args.wanted(&spec)).await?);
        }
        let mut client = host.connect().await?;
        let request = v1::GetTaskRequest { id: args.task.clone() };
        let status = client.get_task(request).await?.into_inner();
        let wanted = args.wanted(&status.spec.unwrap_or_default());
        end(session::attach(&client, &status.id, wanted).await?)
    })
}

impl AttachArgs {
    fn wanted(&self, spec: &v1::TaskSpec) -> Wanted {
        let stdin = spec.stdin && !self.no_stdin;
        Wanted { terminal: spec.terminal, stdin, replay: self.replay }
    }
}

/// The name of a task on its node, so that another one in its place is not taken for it, and what it is.
async fn placed(client: &mut Cluster, name: &str) -> Result<(String, v1::TaskSpec), Error> {
    use v1::job_spec::What;
    let request = v1::GetInstanceRequest { name: name.to_owned() };
    let one = client.get_instance(request).await?.into_inner();
    let job = client.get_job(v1::GetJobRequest { name: one.job }).await?.into_inner();
    let mut versions = job.versions.into_iter();
    let version = versions.find(|version| version.version == one.version);
    let spec = match version.and_then(|version| version.spec?.what) {
        Some(What::Task(task)) => (one.name, task),
        Some(What::Pod(pod)) => {
            let only = pod.tasks.len() == 1;
            let mut tasks = pod.tasks.into_iter();
            let task = tasks.find(|task| only || name.ends_with(&format!(".{}", task.id)));
            // The coordinator says that the name is one of several.
            let task = task.unwrap_or_default();
            let member = if task.id.is_empty() { String::new() } else { format!(".{}", task.id) };
            (format!("{}{member}", one.name), task)
        }
        None => (one.name, v1::TaskSpec::default()),
    };
    Ok(spec)
}

fn end(end: End) -> Result<ExitCode, Error> {
    match end {
        End::Exit(code) => Ok(ExitCode::from(code)),
        End::Detached => Ok(ExitCode::SUCCESS),
        End::Silence => {
            let what =
                "the other side let go before the end: \"hafen ps\" says whether the task runs";
            Err(Error::Refused(what.to_owned()))
        }
    }
}
