//! The programs of the suite, built from Debian's source.
//!
//! Debian's package of the suite has its libraries only, so the source package is taken for the programs; what
//! they import comes from Debian's packages of Go libraries, without the network and without modules.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, limited};
use crate::workspace;

const SOURCE: &str = "golang-github-opencontainers-runtime-tools";
/// Where its newest release for a stable Debian is; apt checks its signature and sums.
const RELEASE: &str = "trixie";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Runs in the containers and looks around.
pub(super) const INSIDE: &str = "runtimetest";
pub(super) const ROOTFS: &str = "rootfs-amd64.tar.gz";
/// The import path of Debian's Go libraries.
const GO_LIBRARIES: &str = "/usr/share/gocode";
const PACKAGE: &str = "github.com/opencontainers/runtime-tools";
/// Not in Debian; see `integration/conformance/tap`.
const TAP: &str = "github.com/mndrix/tap-go";

const FETCH: Duration = Duration::from_secs(5 * 60);
const BUILD: Duration = Duration::from_secs(10 * 60);

/// A folder with the programs, `runtimetest` and the root file system.
pub(super) struct Suite {
    folder: PathBuf,
}

impl Suite {
    /// The suite, which is built unless it is there.
    pub(super) fn make() -> Result<Self> {
        let suite = Self::built()?;
        if !suite.folder.is_dir() {
            build(&suite.folder)?;
        }
        Ok(suite)
    }

    /// The suite as it was built.
    pub(super) fn built() -> Result<Self> {
        let folder = workspace::target()?.join("conformance");
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Names of the programs that validate a runtime.
    pub(super) fn programs(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.folder)
            .with_context(|| format!("read {}", self.folder.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != INSIDE && name != ROOTFS);
        names.sort();
        ensure!(!names.is_empty(), "{} has no programs: remove it", self.folder.display());
        Ok(names)
    }
}

/// In a folder beside it, which gets the name when all is done.
fn build(folder: &Path) -> Result<()> {
    let parent = folder.parent().context("no target folder")?;
    let work = tempfile::Builder::new().prefix("conformance-").tempdir_in(parent)?;
    eprintln!("building the validation programs of {SOURCE}");
    let archive = fetch(work.path())?;
    let gopath = work.path().join("go");
    let source = gopath.join("src").join(PACKAGE);
    unpack(&archive, &source)?;
    let tap = workspace::root().join("integration/conformance/tap/tap.go");
    copy(&tap, &gopath.join("src").join(TAP).join("tap.go"))?;
    let programs = work.path().join("programs");
    std::fs::create_dir(&programs)?;
    for pattern in ["./validation/...", "./cmd/runtimetest"] {
        compile(&source, &gopath, &programs, pattern)?;
    }
    copy(&source.join(ROOTFS), &programs.join(ROOTFS))?;
    std::fs::rename(&programs, folder).with_context(|| format!("make {}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("no folder")?;
    std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    std::fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

/// The source archive, through apt with a state of its own: the machine's sources stay as they are.
fn fetch(work: &Path) -> Result<PathBuf> {
    let state = work.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(state.join(folder))?;
    }
    put(&state.join("status"), "")?;
    let source = format!("deb-src [signed-by={KEYS}] {} {RELEASE} main\n", mirror()?);
    put(&state.join("sources.list"), &source)?;
    apt(&state, &["update"])?;
    // The archive alone: the description's signature is that of the index, which apt has checked.
    apt(&state, &["--download-only", "--tar-only", "source", SOURCE])?;
    let entries = std::fs::read_dir(&state)?.filter_map(Result::ok).map(|entry| entry.path());
    let mut archives = entries.filter(|path| path.to_string_lossy().contains(".orig.tar."));
    archives.next().with_context(|| format!("apt-get source {SOURCE} gave no archive"))
}

fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The Debian archive that this machine's apt uses.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Identifier: Packages"]);
    let output = command.output().context("run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut origins = text.lines().filter_map(|line| line.strip_prefix("Debian "));
    let uri = origins.find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    uri.map(str::to_owned).context("apt knows no Debian archive")
}

fn apt(state: &Path, words: &[&str]) -> Result<()> {
    let option = |name: &str, path: &Path| [OsString::from("-o"), assignment(name, path)];
    let mut command = limited(FETCH, "apt-get");
    command.current_dir(state).arg("-qq");
    command.args(option("Dir::Etc::SourceList", &state.join("sources.list")));
    command.args(option("Dir::Etc::SourceParts", Path::new("/dev/null")));
    command.args(option("Dir::State", state));
    command.args(option("Dir::State::Status", &state.join("status")));
    command.args(option("Dir::Cache", &state.join("cache")));
    // As root it would step down to a user who cannot write here.
    command.args(["-o", "APT::Sandbox::User=root"]).args(words);
    succeed(FETCH, &mut command)
}

fn assignment(name: &str, path: &Path) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(path);
    word
}

fn unpack(archive: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let mut command = limited(FETCH, "tar");
    command.args(["--strip-components", "1", "-C"]).arg(to).arg("-xf").arg(archive);
    succeed(FETCH, &mut command)
}

/// Without cgo, so that `runtimetest` runs in a root file system that has no libraries.
fn compile(source: &Path, gopath: &Path, to: &Path, pattern: &str) -> Result<()> {
    let mut path = OsString::from(gopath);
    path.push(":");
    path.push(GO_LIBRARIES);
    let mut command = limited(BUILD, "go");
    command.current_dir(source).args(["build", "-buildvcs=false", "-ldflags", "-s -w", "-o"]);
    command.arg(to).arg(pattern);
    command.env("GOPATH", path).env("GOCACHE", gopath.join("cache"));
    command.env("GO111MODULE", "off").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    succeed(BUILD, &mut command)
}

fn succeed(limit: Duration, command: &mut Command) -> Result<()> {
    let end = command::run(limit, command)?;
    if !end.success() {
        bail!("{}: {end}", command::line(command));
    }
    Ok(())
}
