use std::ffi::{CString, OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hafen_spec::keep::{self as words, Policy};
use hafen_sys::clock::since_boot;
use hafen_sys::{CallError, Context, handed, shield, signal};
use nix::unistd::execv;

use super::launch::{after_start, announce, kept, prepare_start};
use crate::cli::{Cli, KeepArgs, OutputFormat, handed as handed_word};
use crate::keep::stdio::{self, Own, Streams};
use crate::keep::{Folder, Handed, Keeper, fence, log as logs, policy};
use crate::launch::{self, Running};
use crate::size::bytes;
use crate::supervise::{Signals, micros};
use crate::terminal::Console;
use crate::{Error, fault};

/// The same program, from the read-only copy that it runs from.
const OWN_PROGRAM: &str = "/proc/self/exe";
const READY: &str = "ready";
const BORN: &str = "born";

// Its frame is none of a launch's: each page of the stack that is touched costs.
#[inline(never)]
pub(super) fn keep(cli: &Cli, args: &KeepArgs) -> Result<u8, Error> {
    if args.resume { go_on(&cli.root, &args.dir, &args.handed) } else { begin(cli, args) }
}

/// Launch, and leave the rest to a smaller self.
fn begin(cli: &Cli, args: &KeepArgs) -> Result<u8, Error> {
    if args.what.launch.console_socket.is_some() {
        let words = "--console-socket: the keeper itself holds the terminal";
        return Err(Error::Refused(words.to_owned()));
    }
    let copy = shield::run_from_read_only_copy(kept(&args.what.launch))?;
    let signals = Signals::block_all()?;
    let mut prepared = prepare_start(cli, &args.what)?;
    let terminal = prepared.resolved.process.terminal.is_some();
    let policy = Policy {
        stdin: args.interactive,
        hold: args.hold,
        fence: fence_of(args)?,
        ..policy(&prepared.resolved.id, log(args)?)?
    };
    logs::check(&policy.log)?;
    let mut folder = Folder::make(&args.dir, policy)?;
    // Who asked for it may go, with its terminal and its group: EPERM where we lead one already.
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true)
        .call(|| "prctl PR_SET_CHILD_SUBREAPER".to_owned())?;
    fault::point();
    let (mut streams, ends) = stdio::make(&folder.path, args.interactive)?;
    let mut console = if terminal { Some(Console::own()?) } else { None };
    let theirs = console.as_mut().and_then(Console::give);
    let own = ends.put_on()?;
    let launched = launch::launch(&cli.root, &prepared, false, (copy, theirs))
        .and_then(|running| after_start(announce(&args.what.launch, running)?));
    own.put_back();
    let running = match launched {
        Ok(running) => running,
        Err(e) => {
            folder.give_up();
            return Err(e);
        }
    };
    folder.made(&running.record)?;
    prepared.stores.clear();
    if let Some(console) = console {
        // The bytes of a terminal are not split.
        streams = Streams { terminal: Some(console.receive()?), ..Streams::default() };
    }
    fault::point();
    execute_small(cli, args, &folder, &own, &streams, &running, signals)
}

fn execute_small(
    cli: &Cli,
    args: &KeepArgs,
    folder: &Folder,
    own: &Own,
    streams: &Streams,
    running: &Running,
    signals: Signals,
) -> Result<u8, Error> {
    let mut left = vec![format!("{BORN}={}", running.began.born.as_nanos())];
    let mut hand = |name: &str, fd: &OwnedFd| -> Result<(), CallError> {
        left.push(format!("{name}={}", handed::hand_over(fd)?));
        Ok(())
    };
    hand(READY, &own.stdout)?;
    hand("process", &running.process.pidfd)?;
    for (name, end) in streams.named() {
        hand(name, end)?;
    }
    left.push(format!("lock={}", handed::hand_over(folder.lock())?));
    let root = std::path::absolute(&cli.root).call(|| format!("--root {}", cli.root.display()))?;
    let mut line = vec!["hafen-oci".into(), "--root".into(), root.into_os_string()];
    line.extend(["keep", "--resume", "--dir"].map(Into::into));
    line.extend([args.dir.clone().into_os_string(), "--handed".into(), left.join(",").into()]);
    let line: Result<Vec<CString>, _> =
        line.into_iter().map(|word| CString::new(word.into_encoded_bytes())).collect();
    let line = line.map_err(|e| Error::Refused(e.to_string()))?;
    let program = CString::new(OWN_PROGRAM).map_err(|e| Error::Refused(e.to_string()))?;
    // Made anew by who goes on; what is blocked stays blocked.
    drop(signals);
    let Err(e) = execv(&program, &line);
    Err(CallError::errno(format!("execve {OWN_PROGRAM}"), e).into())
}

/// Go on after ourselves, if that is how we were started. Our own words need no parser, whose memory would stay for as
/// long as the container runs.
#[must_use]
#[inline(never)]
pub fn go_on_after_ourselves() -> Option<Result<u8, Error>> {
    const WORDS: [&str; 5] = ["--root", "keep", "--resume", "--dir", "--handed"];
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [a, root, b, c, d, dir, e, left] = &words[..] else { return None };
    if [a, b, c, d, e] != WORDS.map(OsStr::new) {
        return None;
    }
    let left: Result<Vec<_>, _> = left.to_str()?.split(',').map(handed_word).collect();
    Some(go_on(Path::new(root), Path::new(dir), &left.ok()?))
}

/// Go on with a container that runs: after ourselves, or after another keeper.
fn go_on(root: &Path, dir: &Path, left: &[(String, i64)]) -> Result<u8, Error> {
    fault::keeps();
    let fd = |wanted: &str| -> Result<Option<OwnedFd>, CallError> {
        let found = left.iter().find(|(name, _)| name == wanted);
        let number = found.map(|(_, number)| i32::try_from(*number).unwrap_or(-1));
        number.map(handed::take).transpose()
    };
    let born = left.iter().find(|(name, _)| name == BORN);
    let born = born.and_then(|(_, nanos)| u64::try_from(*nanos).ok()).map(Duration::from_nanos);
    let (ready, lock) = (fd(READY)?, fd("lock")?);
    let folder = Folder::open(dir, lock)?;
    let signals = Signals::block_all()?;
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true)
        .call(|| "prctl PR_SET_CHILD_SUBREAPER".to_owned())?;
    let again = left.is_empty();
    let streams = if again { stdio::open_again(&folder.path)? } else { Streams::of(fd)? };
    let handed = Handed { streams, process: fd("process")?, born, again };
    fault::point();
    let root = std::path::absolute(root).call(|| format!("--root {}", root.display()))?;
    if let Some(exit) = folder.sweep(&root)? {
        tell_ready(ready, exit.pid);
        return Ok(0);
    }
    let keeper = Keeper::take_over(&root, folder, handed, signals)?;
    tell_ready(ready, keeper.pid());
    stdio::put_off()?;
    fault::point();
    keeper.keep().map(|()| 0)
}

/// Whoever waits for it may be gone, which changes nothing.
fn tell_ready(ready: Option<OwnedFd>, pid: i32) {
    let line = serde_json::json!({ "pid": pid });
    let _ = match ready {
        Some(fd) => writeln!(std::fs::File::from(fd), "{line}"),
        None => writeln!(std::io::stdout(), "{line}"),
    };
}

/// Refused where nobody was heard for too long already.
fn fence_of(args: &KeepArgs) -> Result<Option<words::Fence>, Error> {
    let (Some(after), Some(file)) = (args.fence, &args.fence_file) else { return Ok(None) };
    let no_signal =
        || Error::Refused(format!("--fence-signal: there is no signal {:?}", args.fence_signal));
    let nobody = || {
        let words = "nobody was heard since the machine was started";
        Error::Refused(format!("--fence-file {}: {words}", file.display()))
    };
    let file = std::path::absolute(file).call(|| "--fence-file".to_owned())?;
    let fence = words::Fence {
        after_usec: micros(after),
        signal: signal::number(&args.fence_signal).ok_or_else(no_signal)?,
        grace_usec: micros(args.fence_grace),
        heard_usec: fence::heard(&file)?.ok_or_else(nobody)?,
        over_usec: None,
        file,
    };
    let silence = since_boot().saturating_sub(Duration::from_micros(fence.heard_usec));
    if silence >= after {
        let words = format!("--fence: nobody was heard for {:.1} s", silence.as_secs_f64());
        return Err(Error::Refused(words));
    }
    Ok(Some(fence))
}

fn log(args: &KeepArgs) -> Result<words::Log, Error> {
    let wrong =
        || Error::Refused(format!("--output-max: {:?} is not a size as 64M", args.output_max));
    let max_bytes =
        bytes(&args.output_max).and_then(|n| u64::try_from(n).ok()).ok_or_else(wrong)?;
    let path = args.output.as_ref().map(std::path::absolute).transpose();
    Ok(words::Log {
        path: path.call(|| "--output".to_owned())?,
        format: match args.output_format {
            OutputFormat::Json => words::LogFormat::Json,
            OutputFormat::Plain => words::LogFormat::Plain,
        },
        max_bytes,
        max_files: args.output_files,
    })
}
