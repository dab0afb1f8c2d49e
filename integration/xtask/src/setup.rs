//! `cargo xtask setup`: the Debian packages that building, running, testing and measuring need.
//!
//! What is there is found by looking at files; `apt-get` runs only when something is missing.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::command::{self, limited, on_path};
use crate::workspace;

const APT_LIMIT: Duration = Duration::from_secs(15 * 60);
const VM_LIMIT: Duration = Duration::from_secs(20 * 60);
const YOUKI_LIMIT: Duration = Duration::from_secs(30 * 60);

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// For what
    #[arg(value_enum, default_value_t = Group::Test)]
    group: Group,
}

/// What somebody is going to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Build and run containers
    Up,
    /// Measure against Debian's runtimes and youki
    Bench,
    /// Measure against what else runs many containers
    BenchAgent,
    /// Measure against what else handles images
    BenchImages,
    /// Everything, with the virtual machine
    Test,
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    install(options.group)?;
    match options.group {
        Group::Test => install_vm()?,
        Group::Bench => install_youki()?,
        Group::Up | Group::BenchAgent | Group::BenchImages => {}
    }
    let name = options.group.to_possible_value();
    println!("set up for {}", name.as_ref().map_or("it", PossibleValue::get_name));
    Ok(ExitCode::SUCCESS)
}

/// How a package shows that it is installed.
#[derive(Debug, Clone, Copy)]
enum Proof {
    /// Its program can be found.
    Program(&'static str),
    /// A file of it exists.
    File(&'static str),
    /// dpkg has its list of files; for a package whose files another one has as well.
    Listed,
}

#[derive(Debug, Clone, Copy)]
struct Package {
    name: &'static str,
    proof: Proof,
}

const fn package(name: &'static str, proof: Proof) -> Package {
    Package { name, proof }
}

/// To build, and for the root filesystems.
const UP: &[Package] = &[
    package("gcc", Proof::Program("cc")),
    package("libc6-dev", Proof::File("/usr/include/stdlib.h")),
    package("pkg-config", Proof::Program("pkg-config")),
    package("libseccomp-dev", Proof::File("/usr/include/seccomp.h")),
    // The package busybox has the same file, linked against a libc that a container does not have.
    package("busybox-static", Proof::Listed),
];

/// The peers.
const BENCH: &[Package] =
    &[package("crun", Proof::Program("crun")), package("runc", Proof::Program("runc"))];

/// What handles images, and a registry.
const IMAGES: &[Package] = &[
    package("podman", Proof::Program("podman")),
    package("golang-github-containers-common", Proof::File("/etc/containers/policy.json")),
    package("umoci", Proof::Program("umoci")),
    package("skopeo", Proof::Program("skopeo")),
    package("docker-registry", Proof::Program("docker-registry")),
];

/// What runs containers on a node.
const NODES: &[Package] = &[
    package("podman", Proof::Program("podman")),
    package("conmon", Proof::Program("conmon")),
    package("golang-github-containers-common", Proof::File("/etc/containers/policy.json")),
    package("containerd", Proof::Program("containerd")),
];

/// The clients that run containers through a runtime, and what they need of their recommended packages; other programs of
/// the tests.
const CLIENTS: &[Package] = &[
    package("conmon", Proof::Program("conmon")),
    package("catatonit", Proof::Program("catatonit")),
    package("buildah", Proof::Program("buildah")),
    package("apache2-utils", Proof::Program("htpasswd")),
    package("openssl", Proof::Program("openssl")),
    package("containerd", Proof::Program("containerd")),
    package("docker.io", Proof::Program("dockerd")),
    // dockerd does not start without it, even when it is told to leave it alone.
    package("iptables", Proof::Program("iptables")),
    package("uidmap", Proof::Program("newuidmap")),
    // The networks of the agent's tasks.
    package("containernetworking-plugins", Proof::File("/usr/lib/cni/portmap")),
    // File systems whose quotas bound what a container writes.
    package("e2fsprogs", Proof::Program("mkfs.ext4")),
    package("xfsprogs", Proof::Program("mkfs.xfs")),
    // The state of several coordinators.
    package("etcd-server", Proof::Program("etcd")),
    // For the coordinator's page; without the parts that need a screen.
    package("chromium-headless-shell", Proof::Program("chromium-headless-shell")),
    // With it dockerd loads its profile where the kernel has AppArmor, as in the virtual machine.
    package("apparmor", Proof::Program("apparmor_parser")),
];

/// For the master in Python.
const MASTERS: &[Package] = &[
    package("python3-grpcio", Proof::Listed),
    package("python3-protobuf", Proof::Listed),
    package("protobuf-compiler", Proof::Program("protoc")),
];

/// To build the validation suite of the OCI: Go, and the libraries that its programs import.
const CONFORMANCE: &[Package] = &[
    package("golang-go", Proof::Program("go")),
    package("golang-github-opencontainers-runtime-tools-dev", Proof::Listed),
    package("golang-github-google-uuid-dev", Proof::Listed),
];

/// For libFuzzer, which is C++.
const FUZZ: &[Package] = &[package("g++", Proof::Program("c++"))];

impl Group {
    fn packages(self) -> Vec<Package> {
        let lists: &[&[Package]] = match self {
            Self::Up => &[UP],
            Self::Bench => &[UP, BENCH],
            Self::BenchAgent => &[UP, BENCH, NODES],
            Self::BenchImages => &[UP, BENCH, IMAGES],
            Self::Test => &[UP, BENCH, IMAGES, CLIENTS, MASTERS, CONFORMANCE, FUZZ],
        };
        lists.concat()
    }
}

impl Group {
    /// Of its packages.
    pub(crate) fn names(self) -> Vec<&'static str> {
        self.packages().into_iter().map(|package| package.name).collect()
    }
}

impl Package {
    fn is_installed(self) -> bool {
        match self.proof {
            Proof::Program(name) => on_path(name).is_some(),
            Proof::File(path) => Path::new(path).exists(),
            Proof::Listed => {
                Path::new("/var/lib/dpkg/info").join(self.name.to_owned() + ".list").exists()
            }
        }
    }
}

/// Folder of what is installed from crates.io.
const PEERS: &str = "target/peers";
/// Its library is the reference engine's, of the same version. Without systemd, which asks for its bus.
const YOUKI: [&str; 6] = [
    "youki",
    "--version=0.7.0",
    "--locked",
    "--no-default-features",
    "--features",
    "v1,v2,seccomp",
];

/// Where the set-up puts youki.
pub(crate) fn youki() -> PathBuf {
    workspace::root().join(PEERS).join("bin/youki")
}

/// A peer that Debian does not have.
pub(crate) fn install_youki() -> Result<()> {
    if youki().is_file() {
        return Ok(());
    }
    let mut command = limited(YOUKI_LIMIT, workspace::cargo());
    command.current_dir(workspace::root()).args(["install", "--root", PEERS]).args(YOUKI);
    // Not among our own artefacts, whose features would be others.
    command.env("CARGO_TARGET_DIR", workspace::root().join(PEERS).join("build"));
    eprintln!("{}", command::line(&command));
    let output = command.output().with_context(|| format!("run {}", command::line(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().rfind(|line| line.starts_with("error")).unwrap_or_default();
    ensure!(output.status.success(), "{}: {}: {why}", command::line(&command), output.status);
    let _ = fs::remove_dir_all(workspace::root().join(PEERS).join("build"));
    Ok(())
}

/// Installs what is missing of a group's packages.
pub(crate) fn install(group: Group) -> Result<()> {
    let packages = group.packages().into_iter();
    let missing: Vec<&str> = packages.filter(|p| !p.is_installed()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure!(
        on_path("apt-get").is_some(),
        "these Debian packages are needed, and there is no apt-get to install them: {names}"
    );
    ensure!(
        is_root()?,
        "these Debian packages are missing: {names}; run this as root, or `apt-get install {names}`"
    );
    eprintln!("installing {names}");
    apt_install(&missing)
}

/// Whether this program may install packages: its effective user owns its `/proc` folder.
pub(crate) fn is_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self").context("stat /proc/self")?.uid() == 0)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    // A source that cannot be reached and is not needed must not stand in the way, so only the install counts.
    let update = apt(&["update"])?;
    let _quiet = NoServices::new()?;
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(packages);
    let install = apt(&words)?;
    if install.done {
        return Ok(());
    }
    eprintln!("{}\n{}", update.text, install.text);
    bail!("apt-get could not install {}: see its words above", packages.join(" "))
}

/// While it lives no package starts a service: `policy-rc.d` answers 101, "forbidden by policy", which both
/// invoke-rc.d(8) and deb-systemd-invoke ask for. A policy of the administrator's stays as it is.
struct NoServices {
    policy: Option<PathBuf>,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Known again when an earlier run was killed before it could remove its own.
const FORBID: &str =
    "#!/bin/sh\n# cargo xtask setup: removed when the packages are installed\nexit 101\n";

impl NoServices {
    fn new() -> Result<Self> {
        let path = PathBuf::from(POLICY);
        if path.exists() && fs::read(&path).ok().as_deref() != Some(FORBID.as_bytes()) {
            return Ok(Self { policy: None });
        }
        fs::write(&path, FORBID).with_context(|| format!("write {POLICY}"))?;
        let policy = Self { policy: Some(path) };
        let mode = Permissions::from_mode(0o755);
        fs::set_permissions(POLICY, mode).with_context(|| format!("chmod {POLICY}"))?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.policy
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("remove {}: {error}", path.display());
        }
    }
}

struct Apt {
    done: bool,
    text: String,
}

/// `apt-get` without questions; waits when another one holds the lock.
fn apt(words: &[&str]) -> Result<Apt> {
    let mut command = limited(APT_LIMIT, "apt-get");
    command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(words);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.output().with_context(|| format!("run {}", command::line(&command)))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Apt {
        done: output.status.success(),
        text: String::from_utf8_lossy(&text).trim().to_owned(),
    })
}

/// The virtual machine's kernel and QEMU; `vm-run` knows what it needs.
pub(crate) fn install_vm() -> Result<()> {
    let mut command = limited(VM_LIMIT, workspace::vm_run());
    let end = command::run(VM_LIMIT, command.arg("--setup"))?;
    ensure!(end.success(), "the virtual machine cannot be set up ({end}); see above");
    Ok(())
}
