//! What a person may type.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use hafen_registry::Options;
use hafen_rootfs::store::{DEFAULT_ROOT, Policy, Watermarks};
use hafen_rootfs::unpack::Bounds;
use hafen_rootfs::volumes;

use crate::Error;
use crate::commands::{ClusterCommand, HostArgs, NodeCommand};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrongly asked; 3 not found; 4 there already, or not in this state; 5 denied;
6 no agent or coordinator; 7 not in time. run, exec and attach: the program's own, 128 + N for signal N, 125 for a failure of ours,
126 and 127 for a program that cannot be run or found.";

/// A container node without Docker.
#[derive(Debug, Parser)]
#[command(name = "hafen", version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Folder of the image store [default: /var/lib/hafen/images].
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) images: Option<PathBuf>,
    /// Folder of the named volumes [default: /var/lib/hafen/volumes].
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) volumes: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    pub(crate) fn images(&self) -> PathBuf {
        self.images.clone().unwrap_or_else(|| DEFAULT_ROOT.into())
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.volumes.clone().unwrap_or_else(|| volumes::DEFAULT_ROOT.into())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Node(NodeCommand),
    #[command(flatten)]
    Cluster(ClusterCommand),
    /// Images: take in, look at, remove.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Named volumes: make, look at, remove. `hafen-oci run --volume NAME:DESTINATION` makes them as well.
    #[command(subcommand)]
    Volume(VolumeCommand),
}

impl Command {
    /// The exit code of our failure.
    pub(crate) fn failure(&self, error: &Error) -> u8 {
        match self {
            Self::Node(command) => command.failure(error),
            Self::Cluster(command) => command.failure(error),
            Self::Image(_) | Self::Volume(_) => error.code(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make an empty volume.
    Create { name: String },
    /// List volumes.
    Ls {
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
    /// Print all that is known of a volume, as JSON.
    Inspect { name: String },
    /// Remove volumes with all that is in them; not those that a container uses.
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove all volumes that no container uses.
    Prune,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Fetch an image from its registry, and unpack it.
    Pull(PullArgs),
    /// Send an image to a registry.
    Push(PushArgs),
    /// Take in the images of a file or folder, and unpack them.
    ///
    /// An OCI layout as folder or tar, an archive of docker save, or a root file system as folder or tar; each tar may
    /// be compressed where its content is.
    Import(ImportArgs),
    /// Write an image to a file, as the tar of an OCI layout.
    Export {
        /// A name, or the beginning of a digest.
        image: String,
        file: PathBuf,
    },
    /// List images.
    Ls {
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: Format,
    },
    /// Print all that is known of an image, as JSON.
    Inspect { image: String },
    /// Give an image one more name.
    Tag {
        image: String,
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Keep an image: its name cannot be taken away, and nobody collects what it leads to.
    Pin { image: String },
    /// Take a pin away.
    Unpin { image: String },
    /// Take names away, and what only they led to.
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
    /// Remove what neither a name nor a container leads to.
    ///
    /// With watermarks only where the disk is full, and then images, too: those first that nobody has used for longest.
    Prune(PruneArgs),
    /// Read everything in the store, and say what is not as it must be.
    Fsck(FsckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove something only where so much of the file system is used.
    #[arg(long, value_name = "PERCENT", requires = "low", value_parser = value_parser!(u8).range(..=100))]
    pub(crate) high: Option<u8>,
    /// Remove names that are neither pinned nor in use until less than this is used.
    #[arg(long, value_name = "PERCENT", requires = "high", value_parser = value_parser!(u8).range(..=100))]
    pub(crate) low: Option<u8>,
    /// Keep what has changed or was used since, as 90s, 12h or 7days.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) min_age: Duration,
    /// Only say what would go.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl PruneArgs {
    pub(crate) fn policy(&self) -> Result<Policy, String> {
        let marks = self.high.zip(self.low).map(|(high, low)| Watermarks { high, low });
        match marks {
            Some(Watermarks { high, low }) if low > high => {
                Err(format!("--low {low} is more than --high {high}"))
            }
            watermarks => Ok(Policy { watermarks, min_age: self.min_age }),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    pub(crate) file: PathBuf,
    /// Its name; without one it has the name that the file says.
    #[arg(short, long, value_name = "REF")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BoundsArgs {
    /// Most bytes of all files of a layer.
    #[arg(long, value_name = "BYTES", default_value_t = Bounds::default().bytes)]
    pub(crate) max_bytes: u64,
    /// Most entries of a layer.
    #[arg(long, value_name = "N", default_value_t = Bounds::default().entries)]
    pub(crate) max_entries: u64,
}

impl BoundsArgs {
    pub(crate) const fn bounds(&self) -> Bounds {
        Bounds { bytes: self.max_bytes, entries: self.max_entries }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A name as busybox, quay.io/NAME:TAG or HOST:PORT/NAME@sha256:...
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// A name, or the beginning of a digest.
    pub(crate) image: String,
    /// The name that it gets there; without one its own.
    pub(crate) destination: Option<String>,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

// What says how something is fetched has no meaning without a fetch.
#[derive(Debug, Args)]
#[command(mut_group("RegistryArgs", |group| group.requires("fetch")))]
#[command(mut_group("BoundsArgs", |group| group.requires("fetch")))]
pub(crate) struct FsckArgs {
    /// Remove what is wrong, so that it can be taken in again.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Fetch from their registries the images that are not complete, and unpack again the layers that are not whole.
    #[arg(long, requires = "repair")]
    pub(crate) fetch: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
}

/// How registries are asked.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// A registry that speaks HTTP without TLS, as 127.0.0.1:5000.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) plain_http: Vec<String>,
    /// Trust this certificate, in PEM, beside those of the system.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Vec<PathBuf>,
    /// Ask this host before the registry.
    #[arg(long, value_name = "REGISTRY=HOST", value_parser = mirror)]
    pub(crate) mirror: Vec<(String, String)>,
    /// Blobs at the same time.
    #[arg(long, value_name = "N", default_value_t = Options::default().parallel)]
    pub(crate) parallel: usize,
    /// How often what fails for a moment is tried again.
    #[arg(long, value_name = "N", default_value_t = Options::default().retries)]
    pub(crate) retries: u32,
    /// Seconds without a byte after which a connection has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = Options::default().stall.as_secs())]
    pub(crate) stall: u64,
}

impl RegistryArgs {
    pub(crate) fn options(&self) -> Options {
        Options {
            plain_http: self.plain_http.clone(),
            authorities: self.ca.clone(),
            mirrors: self.mirror.clone(),
            parallel: self.parallel,
            retries: self.retries,
            stall: Duration::from_secs(self.stall),
        }
    }
}

fn mirror(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((registry, host)) if !registry.is_empty() && !host.is_empty() => {
            Ok((registry.to_owned(), host.to_owned()))
        }
        _ => Err("is not REGISTRY=HOST".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn no_two_options_have_one_name() {
        Cli::command().debug_assert();
    }
}
