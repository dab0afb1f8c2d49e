//! What a process that joins a container is: the saved specification, with a process of its own.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hafen_spec::resolve::{Joining, Options, has_user_namespace, resolve_joining};
use hafen_spec::resolved::Process;
use hafen_spec::{HostFacts, Problems, parse};
use hafen_sys::Context;
use serde_json::Value;

use crate::filters::{self, Compiled};
use crate::join::{self, Container};
use crate::journal::{Entry, Record};
use crate::prepare::give_home;
use crate::{Error, facts};

/// The specification of a container as text that may still be changed.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) spec: Value,
    path: PathBuf,
}

/// A guest that is ready to join.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) process: Process,
    pub(crate) warnings: Vec<String>,
    compiled: Option<Compiled>,
    facts: HostFacts,
}

impl Document {
    /// As it was when the container was made.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn saved(entry: &Entry) -> Result<Self, Error> {
        let path = entry.config();
        let bytes = fs::read(&path).call(|| format!("read {}", path.display()))?;
        let spec = serde_json::from_slice(&bytes).map_err(|e| Error::Record {
            id: entry.id.clone(),
            reason: format!("{}: {e}", path.display()),
        })?;
        Ok(Self { spec, path })
    }

    /// # Errors
    /// Every field that is wrong.
    pub(crate) fn resolve(
        &self,
        record: &Record,
        preserve_fds: u32,
        container: &Container,
    ) -> Result<Guest, Error> {
        let wrong = |source: Problems| Error::Bundle { path: self.path.clone(), source };
        let bytes = serde_json::to_vec(&self.spec).map_err(|e| Error::Refused(e.to_string()))?;
        let mut passed_over = Vec::new();
        let spec = parse::parse_noting(&bytes, &mut passed_over).map_err(wrong)?;
        let facts = container.facts(facts::gather()?);
        let options = Options {
            id: record.id.clone(),
            bundle: record.bundle.clone(),
            no_new_keyring: record.no_new_keyring,
            preserve_fds,
            ..Options::default()
        };
        let Joining { mut process, seccomp, warnings } =
            resolve_joining(&spec, &facts, &options).map_err(wrong)?;
        let facts = if has_user_namespace(&spec) { facts.in_user_namespace() } else { facts };
        give_home(&mut process, Some(container.root()));
        let root = self.path.ancestors().nth(2).unwrap_or(&self.path);
        let compile = |profile| filters::compile(profile, root);
        let compiled = seccomp.as_ref().map(compile).transpose().map_err(wrong)?;
        let warnings = [passed_over, warnings].concat();
        Ok(Guest { process, warnings, compiled, facts })
    }
}

impl Guest {
    /// For the next one: see [`Compiled::keep`].
    pub(crate) fn keep_filter(&self) {
        self.compiled.iter().for_each(Compiled::keep);
    }

    pub(crate) fn as_guest(&self, console: Option<OwnedFd>) -> join::Guest<'_> {
        join::Guest {
            process: &self.process,
            filter: self.compiled.as_ref().map(|c| &c.filter),
            facts: &self.facts,
            console,
            cgroup: PathBuf::new(),
        }
    }
}
