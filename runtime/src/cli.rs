//! What a person or client may type. Only what was typed: everything else is found out later.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use hafen_rootfs::store::{DEFAULT_ROOT, Store};
use hafen_sys::{CallError, Context};

use crate::upper::Upper;

/// Run containers from OCI bundles, with limits that hold.
#[derive(Debug, Parser)]
#[command(name = "hafen-oci", version = VERSION, arg_required_else_help = true, disable_help_subcommand = true, disable_version_flag = true)]
pub struct Cli {
    /// Folder for the state of containers.
    #[arg(long, value_name = "DIR", default_value_os_t = default_root())]
    pub root: PathBuf,
    #[command(flatten)]
    pub log: LogArgs,
    /// Have systemd make the cgroup, as a scope; `linux.cgroupsPath` is slice:prefix:name.
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// The same choice in crun's words.
    #[arg(long, value_name = "MANAGER", conflicts_with = "systemd_cgroup")]
    pub cgroup_manager: Option<CgroupManager>,
    /// Run without a cgroup where none may be made: `false` makes that an error.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rootless: Option<Rootless>,
    /// Print the version.
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    #[must_use]
    pub fn wants_systemd(&self) -> bool {
        self.systemd_cgroup || self.cgroup_manager == Some(CgroupManager::Systemd)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupManager {
    Cgroupfs,
    Systemd,
}

/// What a container without a bundle stands on.
const BASE: &str = "base";

/// The specification's file in a bundle.
pub(crate) const CONFIG: &str = "config.json";

/// Stands for the folder of an ordinary user who has none.
pub(crate) const NO_ROOT: &str = "$XDG_RUNTIME_DIR/hafen-oci";

fn default_root() -> PathBuf {
    const NAME: &str = "hafen-oci";
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/run").join(NAME);
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    own.map_or_else(|| PathBuf::from(NO_ROOT), |folder| PathBuf::from(folder).join(NAME))
}

/// Clients read the first line, `commit:` and `spec:`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\ncommit: unknown\nspec: 1.3.0");

#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Append errors and warnings to this file.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Show warnings on stderr.
    #[arg(long)]
    pub debug: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    True,
    False,
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TextFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
// Only the options of the command that is called are put together: a launch notices those of all.
#[command(defer = true)]
pub enum Command {
    /// Make a container from a bundle; its program waits for `start`.
    Create(CreateArgs),
    /// Start the program of a created container.
    Start { id: String },
    /// Make a container, run it in the foreground, remove it; the exit code is its program's.
    Run(RunArgs),
    /// Make a container, run it, and stand by it for others: its output goes to files, and a socket answers.
    ///
    /// When it runs, a line of JSON is printed. What a keeper writes and says is in docs/keeper.md.
    Keep(Box<KeepArgs>),
    /// Run another program in a container.
    Exec(ExecArgs),
    /// Print the state of a container as the OCI runtime spec defines it.
    State { id: String },
    /// Send a signal to a container's first process.
    Kill(KillArgs),
    /// Stop all processes of a container where they are.
    Pause { id: String },
    /// Let the processes of a paused container go on.
    Resume { id: String },
    /// Print what a container takes, every few seconds and as JSON, and when the OOM killer acts.
    Events(EventsArgs),
    /// Change the limits of a container.
    Update(Box<UpdateArgs>),
    /// Not supported. Clients ask for the help of it to find out, so that is refused as well.
    #[command(hide = true, disable_help_flag = true)]
    Checkpoint(Anything),
    #[command(hide = true, disable_help_flag = true)]
    Restore(Anything),
    /// Remove a stopped container.
    Delete(DeleteArgs),
    /// List containers.
    List(ListArgs),
    /// List the processes of a container by their pids on the host.
    Ps(PsArgs),
    /// Write a default config.json.
    Spec(SpecArgs),
    /// Print what this runtime can do, as JSON of the OCI runtime spec.
    Features,
    /// Print every step and every kernel file of a launch, and run nothing.
    Explain(ExplainArgs),
    /// Print what this host can enforce, and how to get the rest.
    Doctor {
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: TextFormat,
    },
}

#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Folder of the bundle.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Another specification than the bundle's own; the path is one from the bundle.
    #[arg(short = 'f', long, value_name = "FILE", default_value = CONFIG, hide_default_value = true)]
    pub config: PathBuf,
    /// Write the pid of the container's first process to this file.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that the master of the container's terminal is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that a pidfd of the container's first process is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors after the three standard ones that the container keeps.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Use chroot(2) on a moved mount instead of pivot_root(2), for roots in an initramfs.
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the session keyring of the caller.
    #[arg(long)]
    pub no_new_keyring: bool,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub launch: LaunchArgs,
    pub id: String,
}

/// A container that is made and started at once.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub launch: LaunchArgs,
    /// Name of a container without a bundle; made up if it is not given.
    #[arg(long = "id", value_name = "ID", requires = BASE)]
    pub named: Option<String>,
    /// Name of a container from a bundle.
    #[arg(conflicts_with = BASE)]
    pub id: Option<String>,
    #[command(flatten)]
    pub quick: QuickArgs,
}

#[derive(Debug, Args)]
pub struct KeepArgs {
    #[command(flatten)]
    pub what: StartArgs,
    /// Folder of the keeper, made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// File that the container's output goes to; older ones have a number at the end.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub output_format: OutputFormat,
    /// Of one file; bytes, or with K, M, G, T.
    #[arg(long, value_name = "SIZE", default_value = "10M")]
    pub output_max: String,
    /// Files at most.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub output_files: u32,
    /// Leave the container's stdin open for whoever attaches.
    #[arg(short, long)]
    pub interactive: bool,
    /// Take what it writes only once somebody has attached, or after 10 seconds.
    #[arg(long)]
    pub hold: bool,
    /// Stop it when whoever directs this machine was not heard for so long.
    #[arg(long, value_name = "SECONDS", requires = "fence_file", value_parser = seconds)]
    pub fence: Option<Duration>,
    /// File that says when that was, with --fence.
    #[arg(long, value_name = "FILE", requires = "fence")]
    pub fence_file: Option<PathBuf>,
    /// What asks it to end, with --fence.
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub fence_signal: String,
    /// Until it is killed, with --fence.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub fence_grace: Duration,
    /// Stand by a container whose keeper is gone.
    #[arg(long, conflicts_with = BASE)]
    pub resume: bool,
    /// What the keeper that was there left to this one.
    #[arg(long, hide = true, requires = "resume", value_delimiter = ',', value_parser = handed)]
    pub handed: Vec<(String, i64)>,
}

/// As `1.5`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|e| format!("{e}"))?;
    Duration::try_from_secs_f64(number).map_err(|e| e.to_string())
}

pub(crate) fn handed(text: &str) -> Result<(String, i64), String> {
    let (name, number) = text.split_once('=').ok_or("is not NAME=NUMBER")?;
    Ok((name.to_owned(), number.parse().map_err(|e| format!("{number}: {e}"))?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// An object for each line.
    Json,
    /// The bytes as they come.
    Plain,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub what: StartArgs,
    /// Return when the program runs; `delete` removes the container then.
    #[arg(short, long)]
    pub detach: bool,
    /// Leave the container, stopped, when its program has ended; `delete` removes it.
    #[arg(long)]
    pub keep: bool,
    /// Write how the container ended, with the kernel's numbers, to this file as JSON.
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    None,
    Default,
}

/// A container without a bundle: a command on an overlay over a folder or an image.
#[derive(Debug, Clone, Args)]
pub struct QuickArgs {
    /// Root file system: a folder, or `host` for this machine's own `/`. It is only read.
    #[arg(long, value_name = "DIR|host", group = BASE)]
    pub rootfs: Option<String>,
    /// Image of the store, by name or by the beginning of its digest. It says what runs, unless a command is given.
    #[arg(long, value_name = "REF", group = BASE)]
    pub image: Option<String>,
    /// Folder of the image store, which --upper disk uses as well [default: /var/lib/hafen/images].
    #[arg(long, value_name = "DIR", requires = BASE)]
    pub images: Option<PathBuf>,
    /// Run this in place of the image's entrypoint; "" for none.
    #[arg(long, value_name = "PROGRAM", requires = "image")]
    pub entrypoint: Option<String>,
    /// Bytes, or with K, M, G, T (powers of 1024).
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Memory and swap together, or -1 for no bound on swap.
    #[arg(long, value_name = "SIZE", requires = "memory", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// CPUs, as 0.5.
    #[arg(long, value_name = "N")]
    pub cpus: Option<f64>,
    /// Share of CPU time against others, 2 to 262144, 1024 being usual.
    #[arg(long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// CPUs it may run on, as 0-3,7.
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Processes and threads.
    #[arg(long, value_name = "N")]
    pub pids: Option<i64>,
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Numbers, as 1000 or 1000:1000; of an image also names.
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Make the root file system read-only.
    #[arg(long)]
    pub read_only: bool,
    /// What root has in it, and nobody more: names as in capabilities(7), with commas [default:
    /// KILL,NET_BIND_SERVICE,AUDIT_WRITE].
    #[arg(long, value_name = "LIST")]
    pub capabilities: Option<String>,
    /// Of these, what another user than root has as well.
    #[arg(long, value_name = "LIST", requires = "capabilities")]
    pub ambient: Option<String>,
    /// System calls: all, or those that few programs miss.
    #[arg(long, value_name = "PROFILE", default_value = "none")]
    pub seccomp: Profile,
    /// A device of the host; ACCESS is of r, w and m.
    #[arg(long, value_name = "PATH[:DESTINATION[:ACCESS]]")]
    pub device: Vec<String>,
    /// Show a folder or file of the host, or a named volume, which is made if it is missing. OPTIONs as `mounts` of a
    /// bundle has them: ro, nosuid, ...
    #[arg(short, long, value_name = "PATH|NAME:DESTINATION[:OPTION,...]")]
    pub volume: Vec<String>,
    /// An empty file system in memory. OPTIONs are size=64m, mode=1777, noexec, ...
    #[arg(long, value_name = "DESTINATION[:OPTION,...]")]
    pub tmpfs: Vec<String>,
    /// Run in a user namespace with these user ids.
    #[arg(long, value_name = "INSIDE:OUTSIDE:SIZE")]
    pub uidmap: Vec<String>,
    /// Its group ids, where they are others.
    #[arg(long, value_name = "INSIDE:OUTSIDE:SIZE", requires = "uidmap")]
    pub gidmap: Vec<String>,
    /// Folder of the named volumes.
    #[arg(long, value_name = "DIR", requires = BASE, default_value = hafen_rootfs::volumes::DEFAULT_ROOT)]
    pub volumes: PathBuf,
    /// What is written goes to a tmpfs, which counts as memory, or to the file system of the image store, up to SIZE (as
    /// tmpfs:64M) if that is given.
    #[arg(long, value_name = "tmpfs|disk[:SIZE]")]
    pub upper: Option<Upper>,
    /// Share a namespace: the host's own, or that of a file as /run/netns/NAME. TYPE is network, ipc, uts, pid, mount,
    /// cgroup or time.
    #[arg(long, value_name = "TYPE=PATH|host")]
    pub namespace: Vec<String>,
    /// As `linux.cgroupsPath` of a bundle.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Limits of the folder above, as `linux.resources` of a bundle: several containers have them together.
    #[arg(long, value_name = "FILE", requires = "cgroup")]
    pub parent_limits: Option<PathBuf>,
    /// With a terminal of its own.
    #[arg(short, long)]
    pub tty: bool,
    /// Change the specification as this JSON merge patch (RFC 7396) says, last of all.
    #[arg(long, value_name = "FILE")]
    pub patch: Option<PathBuf>,
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl QuickArgs {
    /// The image store.
    ///
    /// # Errors
    /// The working directory is gone.
    pub(crate) fn store(&self) -> Result<Store, CallError> {
        let root = self.images.as_deref().unwrap_or(Path::new(DEFAULT_ROOT));
        let root = std::path::absolute(root).call(|| format!("--images {}", root.display()))?;
        Ok(Store::at(root))
    }
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Read the process from this file, a `process` object of the OCI runtime spec, instead of the options below.
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return when the program runs.
    #[arg(short, long)]
    pub detach: bool,
    /// Write its pid to this file.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that the master of its terminal is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that a pidfd of the process is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// With a terminal of its own.
    #[arg(short, long)]
    pub tty: bool,
    #[arg(long, value_name = "DIR", conflicts_with = "process")]
    pub cwd: Option<String>,
    #[arg(short, long, value_name = "NAME=VALUE", conflicts_with = "process")]
    pub env: Vec<String>,
    /// Numbers, as 1000 or 1000:1000.
    #[arg(short, long, value_name = "UID[:GID]", conflicts_with = "process")]
    pub user: Option<String>,
    #[arg(short = 'g', long, value_name = "GID", conflicts_with = "process")]
    pub additional_gids: Vec<u32>,
    /// Give it a capability that the container's program does not have.
    #[arg(short, long, value_name = "NAME", conflicts_with = "process")]
    pub cap: Vec<String>,
    /// Set no_new_privs.
    #[arg(long, conflicts_with = "process")]
    pub no_new_privs: bool,
    /// AppArmor profile.
    #[arg(long, value_name = "PROFILE", conflicts_with = "process")]
    pub apparmor: Option<String>,
    /// SELinux label.
    #[arg(long, value_name = "LABEL", conflicts_with = "process")]
    pub process_label: Option<String>,
    /// Descriptors after the three standard ones that it keeps.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Folder below the container's own cgroup to run in; it must exist.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Also in a paused container, where it waits for `resume`.
    #[arg(long)]
    pub ignore_paused: bool,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Send the signal to every process of the container.
    #[arg(short, long)]
    pub all: bool,
    pub id: String,
    /// Name or number, with or without SIG.
    #[arg(default_value = "TERM")]
    pub signal: String,
}

/// Whatever follows a command that is refused.
#[derive(Debug, Args)]
pub struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Print once what it takes now.
    #[arg(long)]
    pub stats: bool,
    /// Between two prints, as 5s or 500ms.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    pub id: String,
}

/// Each as in `linux.resources`; what is not named stays as it is.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Read a JSON document as `linux.resources` from this file, `-` for stdin; excludes all other options.
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    #[command(flatten)]
    pub limits: LimitArgs,
    pub id: String,
}

#[derive(Debug, Args)]
#[group(id = "limits", multiple = true, conflicts_with = "resources")]
pub struct LimitArgs {
    /// Bytes, or with K, M, G, T (powers of 1024); -1 for no limit.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Memory and swap together.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Memory that reclaim spares.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Microseconds.
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// Microseconds of CPU time in each period; -1 for no limit.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Microseconds that may be saved up.
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// Share of CPU time against others, 2 to 262144.
    #[arg(long, alias = "cpu-shares", value_name = "N")]
    pub cpu_share: Option<u64>,
    /// Microseconds, of realtime scheduling.
    #[arg(long, value_name = "N")]
    pub cpu_rt_period: Option<u64>,
    /// Microseconds of realtime scheduling in each period.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// 1: run only when nothing else wants to.
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    /// CPUs it may run on, as 0-3,7.
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use.
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Processes and threads; -1 for no limit.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Share of block I/O against others, 10 to 1000.
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Of old kernels: refused.
    #[arg(long, value_name = "SIZE", hide = true, allow_hyphen_values = true)]
    pub kernel_memory: Option<String>,
    #[arg(long, value_name = "SIZE", hide = true, allow_hyphen_values = true)]
    pub kernel_memory_tcp: Option<String>,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Kill it first if it runs; a container that does not exist is no error.
    #[arg(short, long)]
    pub force: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Names only.
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    pub id: String,
    /// Options for ps(1), which then makes the table.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    pub options: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Folder to write config.json to.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// For an ordinary user: in a user namespace whose root the user is, without limits.
    #[arg(long)]
    pub rootless: bool,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub format: TextFormat,
    /// Folder of the bundle.
    #[arg(default_value = ".", conflicts_with = BASE)]
    pub bundle: PathBuf,
    #[command(flatten)]
    pub quick: QuickArgs,
}
