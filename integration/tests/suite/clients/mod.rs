//! Real clients on top of `hafen-oci`, each scenario on top of a peer as well.
//!
//! A scenario is a function over a client that uses one runtime. It is run with `hafen-oci` and with a peer, so that
//! a failure of the client, of the machine or of the scenario is told from a failure of ours. Every client keeps all
//! that it writes in the test's folder, takes its images from there, and is ended by the test.

mod buildah;
mod containerd;
mod dockerd;
pub(crate) mod image;
mod podman;
mod umoci;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hafen_integration::{Call, Case, Environment, Need, Program, Test, attempt, wait_until};

pub(crate) fn trials() -> Vec<Case> {
    let modules = [
        podman::trials(),
        containerd::trials(),
        dockerd::trials(),
        buildah::trials(),
        umoci::trials(),
    ];
    modules.into_iter().flatten().collect()
}

/// For what need not be tried in the virtual machine, where each call of a client takes seconds.
const QUICK: Need = Need::That("processors that are not emulated", || !is_emulated());

/// A scenario of a client as a case: with what the client and the peer need, and in the virtual machine only where
/// it is named.
fn scenario_of(
    client: &str,
    (name, in_vm): (&str, &[&str]),
    needs: &[Vec<Need>; 2],
    peer: Peer,
    scenario: impl Fn(&Test, &Runtime) + Send + 'static,
) -> Case {
    let mut needs =
        [hafen_integration::needs![Root, Busybox, Program("umoci")], needs.concat()].concat();
    let (Peer::Passes(other) | Peer::Fails(other, _)) = peer;
    needs.push(Need::Program(other));
    if !in_vm.contains(&name) {
        needs.push(QUICK);
    }
    Case::new(format!("clients::{client}::{name}"), needs, move |t| {
        tell_apart(t, peer, |runtime| scenario(t, runtime));
    })
}

/// Waits until what a container has written, as its client tells it, has this text.
#[track_caller]
fn await_log(name: &str, text: &str, logs: impl Fn() -> String) {
    let mut log = String::new();
    let found = wait_until(Duration::from_secs(10), || {
        log = logs();
        log.contains(text).then_some(())
    });
    assert!(found.is_some(), "{name} never wrote {text:?}: {log}");
}

/// The runtime that a client is told to use.
#[derive(Debug, Clone)]
struct Runtime {
    /// The program's base name, to which clients tie what the runtime is able to do.
    name: &'static str,
    program: PathBuf,
}

impl Runtime {
    fn ours() -> Self {
        let program = Program::Oci.find().unwrap_or_else(|e| panic!("{e}"));
        Self { name: "hafen-oci", program }
    }

    fn peer(t: &Test, name: &'static str) -> Self {
        Self { name, program: t.peer(name).program().to_owned() }
    }
}

/// What is expected of the other runtime.
#[derive(Debug, Clone, Copy)]
enum Peer {
    /// It passes the scenario.
    Passes(&'static str),
    /// It is known to fail, and why. An entry that is not true any more is a failure.
    Fails(&'static str, &'static str),
}

/// Runs a scenario over both runtimes, and says whose failure it is. In the virtual machine, where a client's call takes
/// seconds, the peer is asked only when ours fails.
fn tell_apart(t: &Test, peer: Peer, scenario: impl Fn(&Runtime)) {
    let (Peer::Passes(name) | Peer::Fails(name, _)) = peer;
    let ours = attempt(|| scenario(&Runtime::ours()));
    if ours.is_ok() && is_emulated() {
        return;
    }
    let theirs = attempt(|| scenario(&Runtime::peer(t, name)));
    match (ours, theirs, peer) {
        (Ok(()), Ok(()), Peer::Passes(_)) | (Ok(()), Err(_), Peer::Fails(..)) => {}
        (Ok(()), Err(error), Peer::Passes(_)) => {
            panic!("hafen-oci passes, {name} does not: {error}")
        }
        (Ok(()), Ok(()), Peer::Fails(_, why)) => {
            panic!("{name} is said to fail ({why}), and passes")
        }
        (Err(error), Ok(()), _) => panic!("{name} passes, hafen-oci does not: {error}"),
        (Err(error), Err(other), _) => panic!(
            "both fail: the client, the machine or the scenario is at fault\n  hafen-oci: {error}\n  {name}: {other}"
        ),
    }
}

/// A call whose standard streams are a terminal of 33 lines and 77 columns. Its words may hold no space.
fn in_terminal(t: &Test, call: &Call) -> Call {
    let line = format!("stty rows 33 cols 77; {call}");
    t.program("script", ["--quiet", "--return", "--command", &line, "/dev/null"])
}

fn is_emulated() -> bool {
    Environment::from_variable() == Ok(Environment::Vm)
}

/// Waits until no process names `folder` in its command line.
fn await_the_end_of_processes(folder: &Path) {
    let name = folder.as_os_str().as_encoded_bytes();
    wait_until(Duration::from_secs(10), || {
        let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let mut lines = entries.filter_map(|e| fs::read(e.path().join("cmdline")).ok());
        (!lines.any(|line| line.windows(name.len()).any(|part| part == name))).then_some(())
    });
}

/// What a client made and leaves, and was not there before it.
fn remove_stray(path: &Path) {
    if path.starts_with("/sys/fs/cgroup") {
        remove_cgroup(path);
    } else {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// With all folders in it, which no process may be in any more. conmon ends a moment after its container.
fn remove_cgroup(folder: &Path) {
    wait_until(Duration::from_secs(5), || {
        let folders = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        folders.map(|e| e.path()).filter(|p| p.is_dir()).for_each(|child| remove_cgroup(&child));
        (fs::remove_dir(folder).is_ok() || !folder.exists()).then_some(())
    });
}
