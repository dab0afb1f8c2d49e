//! One module per verb: what was typed in, a result or one error out.

mod containers;
mod doctor;
mod events;
mod exec;
mod explain;
mod features;
mod keep;
mod kill;
mod launch;
mod list;
mod pause;
mod quick;
mod spec;
mod update;

use hafen_sys::shield;

use crate::cli::{Cli, Command, NO_ROOT};
use crate::{Error, activation};

pub use keep::go_on_after_ourselves;
pub(crate) use kill::signal_all;

/// Go on from a read-only copy of our program as soon as it is likely that a command will. Nothing is lost where it is
/// not: the words are only looked at, and what fails is told by the command. The answer is whether it is.
#[must_use]
pub fn hasten() -> bool {
    const COMMANDS: [&str; 4] = ["create", "run", "exec", "keep"];
    // What goes on does so in as little memory as it can.
    const GOES_ON: &str = "--resume";
    const PRESERVE: &str = "--preserve-fds";
    let mut words = std::env::args_os().skip(1).filter_map(|word| word.into_string().ok());
    let (mut likely, mut preserved) = (false, 0);
    while let Some(word) = words.next() {
        likely |= COMMANDS.contains(&word.as_str());
        if word == GOES_ON {
            return false;
        }
        let number = match word.strip_prefix(PRESERVE) {
            Some("") => words.next(),
            value => value.and_then(|v| v.strip_prefix('=')).map(str::to_owned),
        };
        preserved = number.and_then(|n| n.parse().ok()).unwrap_or(preserved);
    }
    if likely {
        shield::hasten_read_only_copy(activation::listening().saturating_add(preserved));
    }
    likely
}

/// Do what was asked for. The answer is the exit code.
///
/// # Errors
/// One failure, for the caller to report.
pub fn dispatch(cli: &Cli) -> Result<u8, Error> {
    if cli.root.as_os_str() == NO_ROOT && cli.command.keeps_state() {
        return Err(Error::Refused(
            "--root: an ordinary user's is $XDG_RUNTIME_DIR/hafen-oci, and XDG_RUNTIME_DIR is not set"
                .to_owned(),
        ));
    }
    match &cli.command {
        Command::Create(args) => launch::create(cli, args),
        Command::Start { id } => launch::start(cli, id),
        Command::Run(args) => launch::run(cli, args),
        Command::Keep(args) => keep::keep(cli, args),
        Command::Exec(args) => exec::exec(cli, args),
        Command::State { id } => containers::state(cli, id),
        Command::Kill(args) => kill::kill(cli, args),
        Command::Pause { id } => pause::pause(cli, id),
        Command::Resume { id } => pause::resume(cli, id),
        Command::Checkpoint(_) => Err(not_supported("checkpoint")),
        Command::Restore(_) => Err(not_supported("restore")),
        Command::Events(args) => events::events(cli, args),
        Command::Update(args) => update::update(cli, args),
        Command::Delete(args) => containers::delete(cli, args),
        Command::List(args) => list::list(cli, args),
        Command::Ps(args) => list::ps(cli, args),
        Command::Spec(args) => spec::spec(args),
        Command::Features => features::features(),
        Command::Explain(args) => explain::explain(cli, args),
        Command::Doctor { format } => doctor::doctor(*format),
    }
}

/// Clients know 1 only.
const FAILURE: u8 = 1;
/// As shells count what they could not run (POSIX, Shell Command Language, 2.8.2), and what failed before.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const NOT_JOINED: u8 = 255;

impl Command {
    /// Does it read or write the state of containers?
    const fn keeps_state(&self) -> bool {
        !matches!(self, Self::Spec(_) | Self::Features | Self::Explain(_) | Self::Doctor { .. })
    }

    /// The exit code of a failure. That of `exec` must not be taken for its program's.
    #[must_use]
    pub const fn failure(&self, error: &Error) -> u8 {
        match (self, error) {
            (Self::Exec(_) | Self::Keep(_), Error::Program { found: false, .. }) => NOT_FOUND,
            (Self::Exec(_) | Self::Keep(_), Error::Program { .. }) => NOT_EXECUTABLE,
            (Self::Exec(_), _) => NOT_JOINED,
            _ => FAILURE,
        }
    }
}

fn not_supported(verb: &str) -> Error {
    Error::Refused(format!(
        "{verb} is not supported: containers of this runtime are not saved to disk through CRIU"
    ))
}

/// Print to stdout; a reader that has gone away is not our failure.
fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// On one line, as runc prints lists.
fn print_line(value: &impl serde::Serialize) -> Result<(), Error> {
    print(&serde_json::to_string(value).map_err(|e| Error::Refused(format!("output: {e}")))?);
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::Refused(format!("output: {e}")))?;
    print(&text);
    Ok(())
}
