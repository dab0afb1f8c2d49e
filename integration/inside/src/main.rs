//! Runs as the process of a container under test.
//!
//! ```text
//! inside facts [--sysctl KEY].. [--probe PATH].. [--list DIR].. [--cgroups DIR]
//! inside fds               open descriptors, JSON
//! inside exit N            end with code N
//! inside die SIGNAL        end by SIGNAL (number); nothing ends pid 1 from within but SIGKILL's sender outside
//! inside sleep SECS
//! inside await SIGNAL N    print "ready", wait until SIGNAL (number) comes, end with code N
//! inside eat BYTES [SECS]  touch BYTES of memory, print "ate BYTES", hold it for SECS
//! inside burn SECS [N]     keep N threads busy for SECS of wall time, print JSON {"cpu_usec":..,"wall_usec":..}
//! inside notify WORDS      send WORDS to $NOTIFY_SOCKET
//! inside peek SECS         print "ready", look into all other processes for SECS, print JSON {"exe":[inodes],"fd":[links]}
//! inside swap A B          print "ready", exchange the two names over and over until killed
//! inside thread PATH       make the folder PATH in a thread of its own, print "ok", an error, or "thread killed"
//! inside fork N            start N sleeping processes, print JSON {"asked":..,"started":..,"error":..}, end them
//! ```
//! Code 64 for a command line it does not know, 1 when it fails.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use hafen_inside::{Ask, Facts};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::time::TimeValLike;

fn main() -> ExitCode {
    let argv: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = argv.iter().skip(1).map(String::as_str).collect();
    match run(&argv, &words) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("inside: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(argv: &[String], words: &[&str]) -> Result<ExitCode, String> {
    match words {
        ["facts", rest @ ..] => {
            let facts = Facts::read(argv.to_vec(), &ask(rest)?);
            print(&serde_json::to_string(&facts).map_err(|e| e.to_string())?)?;
        }
        ["fds"] => {
            print(
                &serde_json::to_string(&hafen_inside::open_descriptors())
                    .map_err(|e| e.to_string())?,
            )?;
        }
        ["exit", code] => return Ok(ExitCode::from(number::<u8>(code)?)),
        ["die", signal] => {
            raise(parse_signal(signal)?).map_err(|e| format!("raise({signal}): {e}"))?;
        }
        ["sleep", seconds] => std::thread::sleep(Duration::from_secs_f64(number(seconds)?)),
        ["await", signal, code] => return wait_for(parse_signal(signal)?, number(code)?),
        ["eat", bytes] => eat(number(bytes)?, 0.0)?,
        ["eat", bytes, seconds] => eat(number(bytes)?, number(seconds)?)?,
        ["burn", seconds] => burn(number(seconds)?, 1)?,
        ["burn", seconds, threads] => burn(number(seconds)?, number(threads)?)?,
        ["thread", path] => in_thread(path)?,
        ["fork", count] => fork(&argv[0], number(count)?)?,
        ["peek", seconds] => peek(Duration::from_secs_f64(number(seconds)?))?,
        ["swap", a, b] => swap(a, b)?,
        ["notify", words] => notify(words)?,
        ["help" | "--help"] | [] => {
            print("inside facts|fds|exit|die|sleep|await|eat|burn|thread|swap|fork ...")?;
        }
        _ => {
            eprintln!("inside: unknown command line {words:?}");
            return Ok(ExitCode::from(64));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(words: &[&str]) -> Result<Ask, String> {
    let mut ask = Ask::default();
    for pair in words.chunks(2) {
        match *pair {
            ["--sysctl", key] => ask.sysctls.push(key.to_owned()),
            ["--probe", path] => ask.probes.push(path.to_owned()),
            ["--list", path] => ask.lists.push(path.to_owned()),
            ["--cgroups", path] => ask.cgroups = Some(path.to_owned()),
            _ => return Err(format!("facts: unknown words {pair:?}")),
        }
    }
    Ok(ask)
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number in range"))
}

fn parse_signal(word: &str) -> Result<Signal, String> {
    Signal::try_from(number::<i32>(word)?).map_err(|_| format!("{word}: no such signal"))
}

/// sd_notify(3)
fn notify(words: &str) -> Result<(), String> {
    let path = std::env::var("NOTIFY_SOCKET").map_err(|e| format!("NOTIFY_SOCKET: {e}"))?;
    let socket = std::os::unix::net::UnixDatagram::unbound();
    let sent = socket.and_then(|s| s.send_to(words.as_bytes(), &path));
    sent.map(|_| ()).map_err(|e| format!("send to {path}: {e}"))
}

/// One line to stdout at once: a reader may wait for it while this process goes on.
fn print(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| format!("write to stdout: {e}"))
}

/// Blocked and fetched with `sigwait(3)`: pid 1 gets only the signals it asked for, and a handler would need
/// unsafe code.
fn wait_for(signal: Signal, code: u8) -> Result<ExitCode, String> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block().map_err(|e| format!("block {signal}: {e}"))?;
    print("ready")?;
    set.wait().map_err(|e| format!("sigwait({signal}): {e}"))?;
    Ok(ExitCode::from(code))
}

fn eat(bytes: usize, seconds: f64) -> Result<(), String> {
    // Not zero, so that every page is really written.
    let memory = vec![1u8; bytes];
    print(&format!("ate {}", std::hint::black_box(&memory).len()))?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    drop(std::hint::black_box(memory));
    Ok(())
}

fn burn(seconds: f64, threads: u32) -> Result<(), String> {
    let start = Instant::now();
    let wanted = Duration::from_secs_f64(seconds);
    let busy: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::Builder::new().spawn(move || {
                while start.elapsed() < wanted {
                    std::hint::black_box(
                        (0..10_000u32).fold(0, |a, b| std::hint::black_box(a) ^ b),
                    );
                }
            })
        })
        .collect::<Result<_, _>>()
        .map_err(|e| format!("start a thread: {e}"))?;
    for thread in busy {
        thread.join().map_err(|_| "a thread failed")?;
    }
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|e| format!("getrusage: {e}"))?;
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    print(&format!(r#"{{"cpu_usec":{cpu},"wall_usec":{}}}"#, start.elapsed().as_micros()))
}

/// What a process of the container finds out about those that appear beside it.
fn peek(time: Duration) -> Result<(), String> {
    print("ready")?;
    let (mut programs, mut links) = (BTreeSet::new(), BTreeSet::new());
    let end = Instant::now() + time;
    let own = std::process::id().to_string();
    while Instant::now() < end {
        for process in fs::read_dir("/proc").map_err(|e| e.to_string())?.filter_map(Result::ok) {
            let name = process.file_name().to_string_lossy().into_owned();
            if name == own || !name.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let path = process.path();
            programs.extend(fs::metadata(path.join("exe")).map(|found| found.ino()));
            let fds = fs::read_dir(path.join("fd")).into_iter().flatten().filter_map(Result::ok);
            let found = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
            links.extend(found.map(|link| link.to_string_lossy().into_owned()));
        }
    }
    print(&serde_json::json!({ "exe": programs, "fd": links }).to_string())
}

/// At every moment both names exist (RENAME_EXCHANGE, renameat2(2)): who looks twice sees two different things.
fn swap(a: &str, b: &str) -> Result<(), String> {
    let exchange = || renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE);
    exchange().map_err(|e| format!("exchange {a} and {b}: {e}"))?;
    print("ready")?;
    loop {
        exchange().map_err(|e| format!("exchange {a} and {b}: {e}"))?;
    }
}

/// A thread that a filter kills cannot be joined: nothing was left behind for it.
fn in_thread(path: &str) -> Result<(), String> {
    let (tell, hear) = std::sync::mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let answer = std::fs::create_dir(path).map_or_else(|e| e.to_string(), |()| "ok".to_owned());
        let _ = tell.send(answer);
    });
    let answer = hear.recv_timeout(Duration::from_secs(2));
    print(&answer.unwrap_or_else(|_| "thread killed".to_owned()))
}

fn fork(program: &str, count: u32) -> Result<(), String> {
    let mut children: Vec<Child> = Vec::new();
    let mut error = None;
    for _ in 0..count {
        match Command::new(program).args(["sleep", "600"]).spawn() {
            Ok(child) => children.push(child),
            Err(e) => {
                error = Some(e.to_string());
                break;
            }
        }
    }
    let line = serde_json::json!({ "asked": count, "started": children.len(), "error": error });
    print(&line.to_string())?;
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(())
}
