//! Real clients on top of `hafen-oci`, each scenario on top of a peer as well.
//!
//! A scenario is a function over a client that uses one runtime. It is run with `hafen-oci` and with a peer, so that
//! a failure of the client, of the machine or of the scenario is told from a failure of ours. Every client keeps all
//! that it writes in the test's folder, takes its images from there, and is ended by the test.

mod image;
mod podman;

use std::path::PathBuf;

use hafen_integration::{Case, Program, Test, attempt};

pub(crate) fn trials() -> Vec<Case> {
    podman::trials()
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

    fn is_ours(&self) -> bool {
        self.name == "hafen-oci"
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

/// Runs a scenario over both runtimes, and says whose failure it is.
fn tell_apart(t: &Test, peer: Peer, scenario: impl Fn(&Runtime)) {
    let (Peer::Passes(name) | Peer::Fails(name, _)) = peer;
    let ours = attempt(|| scenario(&Runtime::ours()));
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
