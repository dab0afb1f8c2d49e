//! Takes system calls away from a program.
//!
//! ```text
//! hafen-without CALL[=NUMBER][,CALL].. -- PROGRAM [ARG]..
//! ```
//! A seccomp filter answers ENOSYS for each CALL (only with this first argument, if there is one), as a kernel would that
//! never had it, and PROGRAM is executed.
//! Whatever it starts is under the filter, too. Code 64 for a command line that it does not know, 1 when it fails.

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
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
    eprintln!("usage: hafen-without CALL[=NUMBER][,CALL].. -- PROGRAM [ARG]..");
    ExitCode::from(64)
}

fn take_away(calls: &str) -> Result<(), Box<dyn Error>> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    // no_new_privs would be seen by the program and is not needed by root.
    filter.set_ctl_nnp(false)?;
    filter.set_act_badarch(ScmpAction::Allow)?;
    for name in calls.split(',') {
        let (name, first) = match name.split_once('=') {
            Some((name, first)) => (name, Some(first.parse()?)),
            None => (name, None),
        };
        let call =
            ScmpSyscall::from_name(name).map_err(|e| format!("system call {name:?}: {e}"))?;
        let is_it = |first| ScmpArgCompare::new(0, ScmpCompareOp::Equal, first);
        let compare: Vec<ScmpArgCompare> = first.map(is_it).into_iter().collect();
        filter.add_rule_conditional(ScmpAction::Errno(Errno::ENOSYS as i32), call, &compare)?;
    }
    Ok(filter.load()?)
}
