//! `hafen up`, with all its folders in one of the test's.

use std::ffi::OsString;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::agent::{http, processes};
use crate::cluster::Namespace;
use crate::daemon::Daemon;
use crate::person::Person;
use crate::{Answer, Program, Test};

const READY: Duration = Duration::from_secs(60);

/// What is directed by it is talked to as a person does.
#[derive(Debug)]
pub struct Up {
    pub daemon: Daemon,
    folder: PathBuf,
    person: Person,
    /// Where it makes its bridge and cables, if it makes any.
    _space: Option<Namespace>,
}

impl Deref for Up {
    type Target = Person;

    fn deref(&self) -> &Person {
        &self.person
    }
}

impl Up {
    /// So many nodes, all of which are heard.
    ///
    /// # Panics
    /// They do not come up.
    #[must_use]
    #[track_caller]
    pub fn start(test: &Test, nodes: usize) -> Self {
        let folder = test.dir().join("up");
        let program = |program: Program| program.find().unwrap_or_else(|e| panic!("{e}"));
        let space = (nodes > 1).then(Namespace::new);
        let within = space.iter().flat_map(Namespace::within);
        let mut words: Vec<OsString> = within.map(Into::into).collect();
        words.extend([program(Program::Hafen).into(), "up".into()]);
        words.extend(["--nodes".into(), nodes.to_string().into()]);
        words.extend(["--dir".into(), folder.clone().into()]);
        words.extend(["--images".into(), test.images().into()]);
        words.extend(["--listen", "http://127.0.0.1:0"].map(Into::into));
        let log = test.dir().join("up.log");
        let daemon =
            Daemon::new(words, log.clone()).variable("HAFEN_RUNTIME", program(Program::Oci));
        let person = Person { coordinators: vec![(folder.join("run/coordinator.sock"), log)] };
        let mut up = Self { daemon, folder, person, _space: space };
        up.daemon.begin();
        let greets = |daemon: &Daemon| daemon.said().contains("Ctrl-C ends it").then_some(());
        up.daemon.answers(READY, greets);
        up.hears(nodes);
        up
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The socket of the coordinator.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/coordinator.sock")
    }

    /// Where the page is, as it says itself.
    ///
    /// # Panics
    /// It does not say that.
    #[must_use]
    #[track_caller]
    pub fn page(&self) -> String {
        let said = self.daemon.said();
        let page = said.lines().find_map(|line| line.strip_prefix("page  "));
        page.unwrap_or_else(|| panic!("no page: {said}")).to_owned()
    }

    /// The process of a node's agent, where there are several.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    #[track_caller]
    pub fn agent(&self, name: &str) -> i32 {
        let own = format!("{}/run/{name}\0", self.folder.display());
        let found = processes(|words| words.contains("\0agent\0") && words.contains(&own));
        found.first().copied().unwrap_or_else(|| panic!("no agent {name}"))
    }

    /// A request to an agent: the only one has no name.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    #[track_caller]
    pub fn ask(&self, name: &str, method: &str, path: &str) -> Answer {
        let socket = self.folder.join("run").join(name).join("agent.sock");
        http(&socket, method, path, "").unwrap_or_else(|| panic!("no answer of {name} to {path}"))
    }

    /// Stop all jobs, until nothing of them is there, and ask it to end.
    ///
    /// # Panics
    /// It does not, or something stays.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        self.person.purge();
        self.person.wait("all is gone", |view| {
            ["jobs", "instances"].iter().all(|list| view[list].as_array().is_none_or(Vec::is_empty))
        });
        self.daemon.terminate()
    }
}
