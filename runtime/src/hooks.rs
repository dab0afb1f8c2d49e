//! Programs that the bundle wants to run at points of the container's life (runtime-spec, config, "POSIX-platform Hooks").
//!
//! | kind | found and run in | when | a failure |
//! |---|---|---|---|
//! | prestart, createRuntime | the runtime's namespaces | the container's namespaces exist | ends the launch |
//! | createContainer | found in the runtime's, run in the container's | the same, before the root is changed | ends the launch |
//! | startContainer | the container, with the rights of its program | just before the program | ends the start |
//! | poststart | the runtime's namespaces | the program runs | ends the container; before 1.2.1 of the spec, is told |
//! | poststop | the runtime's namespaces | nothing is left | is told, the rest goes on |
//!
//! Each gets the container's state on stdin, and nothing that it writes is lost: it is in the error.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hafen_spec::resolved::Hook;
use hafen_sys::pidfd::{self, Ended};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{Error, log};

/// More of a hook's words than this help nobody.
const MOST_WORDS: u64 = 4096;

/// What every hook of one kind gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occasion<'a> {
    pub(crate) kind: &'static str,
    /// The container's state as JSON.
    pub(crate) state: &'a str,
    pub(crate) bundle: &'a Path,
}

/// A hook's standard descriptors, in memory: nobody waits for anybody.
#[derive(Debug)]
pub(crate) struct Standard {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
}

/// A hook that runs: its pid, and a handle on it.
pub(crate) type Started = (i32, OwnedFd);

/// Run hooks in the runtime's namespaces, one after the other, until one fails.
///
/// # Errors
/// The hook that failed, with its words.
pub(crate) fn run(hooks: &[Hook], occasion: Occasion<'_>) -> Result<(), Error> {
    run_each(hooks, occasion, |hook, standard| start(hook, standard, occasion.bundle))
}

/// Run them all; a failure is told, and the rest goes on.
pub(crate) fn run_all(hooks: &[Hook], occasion: Occasion<'_>) {
    for hook in hooks {
        if let Err(e) = run(std::slice::from_ref(hook), occasion) {
            log::note(&e.chain());
        }
    }
}

/// Whether a poststart hook that fails ends the container: the spec has it so since 1.2.1 (runtime, "Lifecycle").
pub(crate) fn end_the_container(version: &str) -> bool {
    let numbers = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let numbers: Vec<u32> = numbers.filter_map(|n| n.parse().ok()).collect();
    numbers.as_slice() >= [1, 2, 1].as_slice()
}

/// The same with another way to start them.
///
/// # Errors
/// The hook that failed, with its words.
pub(crate) fn run_each(
    hooks: &[Hook],
    occasion: Occasion<'_>,
    mut start: impl FnMut(&Hook, &Standard) -> Result<Started, Error>,
) -> Result<(), Error> {
    for (index, hook) in hooks.iter().enumerate() {
        let failed = |reason: String| Error::Hook {
            kind: occasion.kind,
            index,
            path: hook.path.clone(),
            reason,
        };
        let standard = Standard::new(occasion.state)?;
        let process = start(hook, &standard).map_err(|e| failed(e.chain()))?;
        let end = attend(&process, hook.timeout.map(Duration::from_secs))?;
        if end.as_ref().is_some_and(|e| e.code == Some(0)) {
            continue;
        }
        let what = end.map_or_else(
            || format!("took longer than {} seconds", hook.timeout.unwrap_or_default()),
            |end| describe(&end),
        );
        let words = standard.words();
        return Err(failed(if words.is_empty() { what } else { format!("{what}: {words}") }));
    }
    Ok(())
}

fn start(hook: &Hook, standard: &Standard, bundle: &Path) -> Result<Started, Error> {
    let call = || format!("exec {}", hook.path.display());
    let output = || standard.output.try_clone().map(Stdio::from).call(call);
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    if let Some(env) = &hook.env {
        command.env_clear().envs(env.iter().filter_map(|e| e.split_once('=')));
    }
    command.stdin(standard.input.try_clone().map(Stdio::from).call(call)?);
    command.stdout(output()?).stderr(output()?).current_dir(bundle);
    let child = command.spawn().call(call)?;
    let pid = child.id().cast_signed();
    // From here on it is waited for by its pid: a `Child` that is dropped does nothing.
    Ok((pid, pidfd::open(pid)?))
}

impl Standard {
    fn new(state: &str) -> Result<Self, CallError> {
        let memory =
            |name| memfd_create(name, MFdFlags::MFD_CLOEXEC).call(|| "memfd_create".to_owned());
        let mut input = File::from(memory(c"state")?);
        let written = input.write_all(state.as_bytes()).and_then(|()| input.rewind());
        written.call(|| "write the state for a hook".to_owned())?;
        Ok(Self { input: input.into(), output: memory(c"words")? })
    }

    /// What it said, on one line.
    fn words(&self) -> String {
        let Ok(copy) = self.output.try_clone() else { return String::new() };
        let mut file = File::from(copy);
        let mut text = Vec::new();
        let _ = file.rewind();
        let _ = file.take(MOST_WORDS).read_to_end(&mut text);
        String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Wait for its end; `None` where it was killed because it took too long.
fn attend((pid, handle): &Started, timeout: Option<Duration>) -> Result<Option<Ended>, CallError> {
    let deadline = timeout.map(|t| Instant::now() + t);
    let in_time = ended_by(handle.as_fd(), deadline)?;
    if !in_time {
        match pidfd::send_signal(handle, libc::SIGKILL) {
            Err(e) if !e.is(Errno::ESRCH) => return Err(e),
            _ => {}
        }
    }
    let end = pidfd::wait(*pid, true)?;
    Ok(if in_time { end } else { None })
}

fn ended_by(handle: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool, CallError> {
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        // Rounded up: a wait that ends too early would only be repeated.
        let wait = left.map_or(PollTimeout::NONE, |l| {
            PollTimeout::try_from(l + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(handle, PollFlags::POLLIN)], wait) {
            Ok(0) if left.is_some_and(|l| l.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(CallError::errno("poll", e)),
        }
    }
}

fn describe(end: &Ended) -> String {
    match (end.code, end.signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "has ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::end_the_container;

    #[test]
    fn what_a_failure_after_the_start_means_depends_on_the_version() {
        for (version, ends) in [
            ("1.0.2-dev", false),
            ("1.2.0", false),
            ("1.2.1", true),
            ("1.2.1+dev", true),
            ("1.3.0", true),
        ] {
            assert_eq!(end_the_container(version), ends, "{version}");
        }
    }
}
