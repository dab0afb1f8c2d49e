//! `hafen exec` and `hafen attach`.

use std::process::ExitCode;

use clap::Args;
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
        let mut client = host.connect().await?;
        let request = v1::GetTaskRequest { id: args.task.clone() };
        let status = client.get_task(request).await?.into_inner();
        let spec = status.spec.unwrap_or_default();
        let stdin = spec.stdin && !args.no_stdin;
        let wanted = Wanted { terminal: spec.terminal, stdin, replay: args.replay };
        end(session::attach(&mut client, &status.id, wanted).await?)
    })
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
