//! What `hafen run` may be told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::limits::LimitArgs;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Print its name, and do not wait for its end.
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Nor for its start, which may have to wait for an image: only until the node has taken it on.
    #[arg(long, requires = "detach")]
    pub(super) no_wait: bool,
    /// Its name; without one the node makes one up.
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// All of it from a file, TOML, YAML or JSON of a TaskSpec; "-" is stdin.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) spec: SpecArgs,
}

impl RunArgs {
    /// Who would go before whom is a question that is not asked: a file says all of it.
    pub(super) fn is_said_twice(&self) -> bool {
        self.file.is_some() && self.spec != SpecArgs::default()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(crate) struct SpecArgs {
    /// A variable; without a value it has ours.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Variables of a file, one to a line.
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// A folder or file of the node, or a named volume.
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:OPTIONS]")]
    pub(super) volume: Vec<String>,
    /// An empty file system in memory.
    #[arg(long, value_name = "DESTINATION[:OPTIONS]")]
    pub(super) tmpfs: Vec<String>,
    /// A port of the node that leads to one of the task.
    #[arg(short, long, value_name = "[[IP:]PORT:]PORT[/PROTOCOL]")]
    pub(super) publish: Vec<String>,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    /// UID[:GID], or names that the image knows.
    #[arg(short, long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// Where it begins.
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// none, host, default, or the name of a CNI network.
    #[arg(long, value_name = "NETWORK")]
    pub(super) network: Option<String>,
    /// Name server, in place of the node's.
    #[arg(long, value_name = "IP")]
    pub(super) dns: Vec<String>,
    /// A line of /etc/hosts.
    #[arg(long, value_name = "NAME:IP")]
    pub(super) add_host: Vec<String>,
    /// no, on-failure[:N] or always.
    #[arg(long, value_name = "POLICY")]
    pub(super) restart: Option<String>,
    /// What asks it to end, in place of what the image says.
    #[arg(long, value_name = "SIGNAL")]
    pub(super) stop_signal: Option<String>,
    /// How long it has then, in seconds or as 2m.
    #[arg(long, value_name = "TIME")]
    pub(super) stop_timeout: Option<String>,
    /// Forget it once it has ended.
    #[arg(long)]
    pub(super) rm: bool,
    /// Keep its input open, and give it ours.
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub(super) tty: bool,
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) label: Vec<String>,
    /// Nothing in its root can be written.
    #[arg(long)]
    pub(super) read_only: bool,
    #[command(flatten)]
    pub(super) security: SecurityArgs,
    /// In place of the image's; "" for none.
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// When the image is fetched.
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(super) pull: Pull,
    /// A folder of the node to stand on, in place of an image, or "host" for all of the node's files.
    #[arg(long, value_name = "DIR")]
    pub(super) rootfs: Option<String>,
    /// Run through /bin/sh again and again: too many failures stop the task.
    #[arg(long, value_name = "COMMAND")]
    pub(super) health_cmd: Option<String>,
    #[arg(long, value_name = "TIME", requires = "health_cmd")]
    pub(super) health_interval: Option<String>,
    /// Failures in a row.
    #[arg(long, value_name = "N", requires = "health_cmd")]
    pub(super) health_retries: Option<u32>,
    #[arg(long, value_name = "TIME", requires = "health_cmd")]
    pub(super) health_timeout: Option<String>,
    /// Before the first one.
    #[arg(long, value_name = "TIME", requires = "health_cmd")]
    pub(super) health_start_period: Option<String>,
    /// Stop it after that.
    #[arg(long, value_name = "TIME")]
    pub(super) max_run_time: Option<String>,
    /// A file in memory that only the task sees: FILE:DESTINATION, or src=FILE,dst=PATH[,mode=,uid=,gid=].
    #[arg(long, value_name = "[NAME=]FILE:DESTINATION")]
    pub(super) secret: Vec<String>,
    /// Most bytes of one log file.
    #[arg(long, value_name = "SIZE")]
    pub(super) log_max_size: Option<String>,
    /// Most log files.
    #[arg(long, value_name = "N")]
    pub(super) log_max_files: Option<u32>,
    /// An image, unless --rootfs or --file say otherwise, and what runs in it.
    #[arg(value_name = "IMAGE] [COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) words: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Security")]
pub(super) struct SecurityArgs {
    /// A capability more, or ALL.
    #[arg(long, value_name = "NAME")]
    pub(super) cap_add: Vec<String>,
    /// A capability less, or ALL.
    #[arg(long, value_name = "NAME")]
    pub(super) cap_drop: Vec<String>,
    /// seccomp=unconfined, seccomp=FILE (a profile of the OCI runtime spec), or no-new-privileges=false.
    #[arg(long, value_name = "OPTION")]
    pub(super) security_opt: Vec<String>,
    /// A device of the node; ACCESS is of r, w and m.
    #[arg(long, value_name = "PATH[:DESTINATION][:ACCESS]")]
    pub(super) device: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Pull {
    Always,
    #[default]
    Missing,
    Never,
}
