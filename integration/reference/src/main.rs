//! The same bundles through another engine: youki's `libcontainer` library, with nothing of ours in between.
//!
//! ```text
//! reference --root DIR run --bundle DIR ID      create, start, wait, delete; ends with the container's code
//! reference --root DIR delete [--force] ID
//! ```
//! Options may stand anywhere. The library has been seen to hang: the caller sets a time limit, and calls
//! `delete --force` after it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // The library says in its log what its errors leave out.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::ERROR)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match act() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprint!("reference: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Words {
    verb: Option<String>,
    id: Option<String>,
    root: Option<PathBuf>,
    bundle: Option<PathBuf>,
    force: bool,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Words> {
    let mut words = Words::default();
    while let Some(word) = arguments.next() {
        let mut value =
            || arguments.next().map(PathBuf::from).ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--root" => words.root = Some(value()?),
            "--bundle" => words.bundle = Some(value()?),
            "--force" => words.force = true,
            option if option.starts_with('-') => {
                return Err(format!("unknown option {option}").into());
            }
            _ if words.verb.is_none() => words.verb = Some(word),
            _ if words.id.is_none() => words.id = Some(word),
            _ => return Err(format!("unexpected {word}").into()),
        }
    }
    Ok(words)
}

fn act() -> Result<u8> {
    let words = parse(std::env::args().skip(1))?;
    let root = words.root.ok_or("--root is missing")?;
    let id = words.id.ok_or("the id is missing")?;
    match words.verb.as_deref() {
        Some("run") => run(&root, &words.bundle.unwrap_or_else(|| ".".into()), id),
        Some("delete") => {
            Container::load(root.join(id))?.delete(words.force)?;
            Ok(0)
        }
        verb => Err(format!("unknown command {verb:?}: run or delete").into()),
    }
}

fn run(root: &Path, bundle: &Path, id: String) -> Result<u8> {
    std::fs::create_dir_all(root)?;
    let mut container = ContainerBuilder::new(id, SyscallType::default())
        .with_root_path(root)?
        .validate_id()?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(false)
        .build()?;
    let ended = start_and_wait(&mut container);
    container.delete(true)?;
    ended
}

fn start_and_wait(container: &mut Container) -> Result<u8> {
    let pid = container.pid().ok_or("the library gives no process id")?;
    container.start()?;
    loop {
        match waitpid(Pid::from_raw(pid.as_raw()), None)? {
            WaitStatus::Exited(_, code) => return Ok(u8::try_from(code)?),
            WaitStatus::Signaled(_, signal, _) => return Ok(u8::try_from(128 + signal as i32)?),
            _ => {}
        }
    }
}
