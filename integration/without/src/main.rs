//! Takes system calls away from a program.
//!
//! ```text
//! hafen-without CALL[,CALL].. -- PROGRAM [ARG]..
//! ```
//! A seccomp filter answers ENOSYS for each CALL, as a kernel would that never had it, and PROGRAM is executed.
//! Whatever it starts is under the filter, too. Code 64 for a command line that it does not know, 1 when it fails.

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use nix::errno::Errno;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [calls, dashes, program, arguments @ ..] = words.as_slice() else { return usage() };
    let (Some(calls), true) = (calls.to_str(), dashes == "--") else { return usage() };
    let failure = match take_away(calls) {
        Err(e) => e.to_string(),
        Ok(()) => {
            let error = Command::new(program).args(arguments).exec();
            format!("execute {}: {error}", program.display())
        }
    };
    eprintln!("hafen-without: {failure}");
    ExitCode::FAILURE
}

fn usage() -> ExitCode {
    eprintln!("usage: hafen-without CALL[,CALL].. -- PROGRAM [ARG]..");
    ExitCode::from(64)
}

fn take_away(calls: &str) -> Result<(), Box<dyn Error>> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    // no_new_privs would be seen by the program and is not needed by root.
    filter.set_ctl_nnp(false)?;
    filter.set_act_badarch(ScmpAction::Allow)?;
    for name in calls.split(',') {
        let call =
            ScmpSyscall::from_name(name).map_err(|e| format!("system call {name:?}: {e}"))?;
        filter.add_rule(ScmpAction::Errno(Errno::ENOSYS as i32), call)?;
    }
    Ok(filter.load()?)
}
