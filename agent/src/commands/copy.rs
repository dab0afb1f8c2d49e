//! `hafen cp`: through `/proc/PID/root` of a task that runs here, so that it needs no tar inside.
//!
//! What a task's files lead to is its own choice: each path is resolved below its root by the kernel (openat2(2),
//! RESOLVE_IN_ROOT), and each entry below is opened without following links, and looked at before it is read.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use hafen::client::Client;
use hafen_protocol::v1;
use hafen_sys::file::{OpenHow, open_how, resolve};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::{HostArgs, block_on};
use crate::Error;

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// TASK:/PATH, or a path here.
    source: String,
    /// The other of the two. A folder gets it inside.
    destination: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Inside { task: String, path: PathBuf },
    Here(PathBuf),
}

fn place(text: &str) -> Place {
    match text.split_once(':') {
        Some((task, path)) if !task.is_empty() && !task.contains('/') => {
            Place::Inside { task: task.to_owned(), path: PathBuf::from(path) }
        }
        _ => Place::Here(PathBuf::from(text)),
    }
}

pub(super) fn cp(host: &HostArgs, args: &CpArgs) -> Result<ExitCode, Error> {
    if !host.host().is_local() {
        let what = "cp goes through the files of a process, and works on the task's own machine only: run it there";
        return Err(Error::Refused(what.to_owned()));
    }
    let (source, destination) = (place(&args.source), place(&args.destination));
    block_on(async {
        let mut client = host.connect().await?;
        match (&source, &destination) {
            (Place::Inside { task, path }, Place::Here(to)) => {
                let root = root_of(&mut client, task).await?;
                let name = path.file_name().map_or_else(|| task.into(), OsStr::to_owned);
                copy(&below(&root, path, OFlag::O_PATH)?, path, &target_here(to, name)?)?;
            }
            (Place::Here(path), Place::Inside { task, path: to }) => {
                let root = root_of(&mut client, task).await?;
                let call = || format!("open {}", path.display());
                let from =
                    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).call(call)?;
                let full = path.canonicalize().call(|| format!("resolve {}", path.display()))?;
                let name = full.file_name().unwrap_or(OsStr::new("root")).to_owned();
                copy(&from, path, &target_inside(&root, to, name)?)?;
            }
            _ => {
                let what = "one of the two must be TASK:/PATH, and the other a path here";
                return Err(Error::Refused(what.to_owned()));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The root of a task, as its first process has it. The node is asked again: the number may be another's by then.
async fn root_of(client: &mut Client, task: &str) -> Result<OwnedFd, Error> {
    let request = v1::GetTaskRequest { id: task.to_owned() };
    let before = client.get_task(request.clone()).await?.into_inner();
    if before.pid <= 0 {
        return Err(Error::Refused(format!(
            "{} does not run: cp wants a task that does",
            before.id
        )));
    }
    let path = format!("/proc/{}/root", before.pid);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(path.as_str(), flags, Mode::empty()).call(|| format!("open {path}"))?;
    let after = client.get_task(request).await?.into_inner();
    if (after.pid, after.attempt) != (before.pid, before.attempt) {
        return Err(Error::Refused(format!(
            "{} was started again meanwhile: try once more",
            before.id
        )));
    }
    Ok(root)
}

fn below(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, CallError> {
    let flags = u64::try_from(flags.bits()).unwrap_or_default();
    open_how(
        root,
        path,
        OpenHow { flags, mode: 0, resolve: resolve::IN_ROOT | resolve::NO_MAGICLINKS },
    )
}

/// A folder, a name in it, and who owns what is made there.
struct Target {
    folder: OwnedFd,
    name: OsString,
    owner: Option<(Uid, Gid)>,
}

const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn target_here(path: &Path, name: OsString) -> Result<Target, CallError> {
    let folder = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open(path, FOLDER, Mode::empty()).call(|| format!("open {}", path.display()))
    };
    if path.is_dir() {
        return Ok(Target { folder: folder(path)?, name, owner: None });
    }
    let last = path.file_name().map_or(name, OsStr::to_owned);
    Ok(Target { folder: folder(path.parent().unwrap_or(Path::new("/")))?, name: last, owner: None })
}

/// What is made there has the owner of the folder: ours may be nobody in its user namespace.
fn target_inside(root: &OwnedFd, path: &Path, name: OsString) -> Result<Target, CallError> {
    let found = match below(root, path, FOLDER) {
        Ok(folder) => (folder, name),
        Err(e) if e.is(Errno::ENOENT) || e.is(Errno::ENOTDIR) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let parent = if parent.as_os_str().is_empty() { Path::new("/") } else { parent };
            (below(root, parent, FOLDER)?, path.file_name().map_or(name, OsStr::to_owned))
        }
        Err(e) => return Err(e),
    };
    let (folder, name) = found;
    let about = fstat(&folder).call(|| format!("stat {}", path.display()))?;
    let owner = Some((Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid)));
    Ok(Target { folder, name, owner })
}

/// `path` is for people only.
fn copy(from: &OwnedFd, path: &Path, to: &Target) -> Result<(), CallError> {
    entry(from.as_fd(), path, to.folder.as_fd(), &to.name, to.owner, 0)
}

type Owner = Option<(Uid, Gid)>;

fn entry(
    from: BorrowedFd<'_>,
    path: &Path,
    folder: BorrowedFd<'_>,
    name: &OsStr,
    owner: Owner,
    depth: usize,
) -> Result<(), CallError> {
    let about = fstat(from).call(|| format!("stat {}", path.display()))?;
    let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFREG {
        file(from, path, folder, name, owner, &about)
    } else if kind == SFlag::S_IFDIR {
        tree(from, path, folder, name, owner, &about, depth)
    } else if kind == SFlag::S_IFLNK {
        link(from, path, folder, name, owner)
    } else {
        eprintln!("hafen: {} is left out: it is neither file, folder nor link", path.display());
        Ok(())
    }
}

/// What an O_PATH descriptor stands for, as a path that leads nowhere else.
fn itself(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn permissions(about: &FileStat) -> Mode {
    Mode::from_bits_truncate(about.st_mode & 0o777)
}

fn own(folder: BorrowedFd<'_>, name: &OsStr, owner: Owner, path: &Path) -> Result<(), CallError> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    let given = fchownat(folder, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
    given.call(|| format!("chown the copy of {}", path.display()))
}

/// Files and links in its place go; a folder stays, and the call that follows says so.
fn make_room(folder: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), CallError> {
    match unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::EISDIR) => Ok(()),
        Err(e) => {
            Err(CallError::errno(format!("remove what is in the place of {}", path.display()), e))
        }
    }
}

fn file(
    from: BorrowedFd<'_>,
    path: &Path,
    folder: BorrowedFd<'_>,
    name: &OsStr,
    owner: Owner,
    about: &FileStat,
) -> Result<(), CallError> {
    let source = File::open(itself(from)).call(|| format!("open {}", path.display()))?;
    make_room(folder, name, path)?;
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let call = || format!("make a copy of {}", path.display());
    let made = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).call(call)?;
    own(folder, name, owner, path)?;
    let mut made = File::from(made);
    // A file that grows all the time has an end, too.
    let size = u64::try_from(about.st_size).unwrap_or_default();
    io::copy(&mut source.take(size), &mut made).call(|| format!("copy {}", path.display()))?;
    fchmod(&made, permissions(about)).call(call)
}

fn link(
    from: BorrowedFd<'_>,
    path: &Path,
    folder: BorrowedFd<'_>,
    name: &OsStr,
    owner: Owner,
) -> Result<(), CallError> {
    let target = readlinkat(from, "").call(|| format!("read the link {}", path.display()))?;
    make_room(folder, name, path)?;
    symlinkat(target.as_os_str(), folder, name)
        .call(|| format!("make a copy of {}", path.display()))?;
    own(folder, name, owner, path)
}

fn tree(
    from: BorrowedFd<'_>,
    path: &Path,
    folder: BorrowedFd<'_>,
    name: &OsStr,
    owner: Owner,
    about: &FileStat,
    depth: usize,
) -> Result<(), CallError> {
    /// Two descriptors for each: more than any tree of good will has.
    const DEEPEST: usize = 256;
    let call = || format!("make a copy of {}", path.display());
    if depth == DEEPEST {
        return Err(CallError::errno(call(), Errno::ELOOP));
    }
    match mkdirat(folder, name, Mode::S_IRWXU) {
        Ok(()) => own(folder, name, owner, path)?,
        Err(Errno::EEXIST) => {}
        Err(e) => return Err(CallError::errno(call(), e)),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(folder, name, flags, Mode::empty()).call(call)?;
    let entries = fs::read_dir(itself(from)).call(|| format!("read {}", path.display()))?;
    for found in entries {
        let name = found.call(|| format!("read {}", path.display()))?.file_name();
        let path = path.join(&name);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let next =
            openat(from, Path::new(OsStr::from_bytes(name.as_bytes())), flags, Mode::empty());
        let next = next.call(|| format!("open {}", path.display()))?;
        entry(next.as_fd(), &path, made.as_fd(), &name, owner, depth + 1)?;
    }
    fchmod(&made, permissions(about)).call(call)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_task_stands_before_a_colon() {
        let inside =
            |task: &str, path: &str| Place::Inside { task: task.to_owned(), path: path.into() };
        assert_eq!(place("web:/etc"), inside("web", "/etc"));
        assert_eq!(place("./a:b"), Place::Here("./a:b".into()));
        assert_eq!(place("/a"), Place::Here("/a".into()));
    }

    /// A folder stands for the root of a task.
    #[test]
    fn links_lead_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir_all(inside.join("d/e")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(folder.path().join("precious"), "host").unwrap();
        fs::write(inside.join("d/file"), "text").unwrap();
        fs::set_permissions(inside.join("d/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("../../precious", inside.join("d/up")).unwrap();
        symlink("/precious", inside.join("absolute")).unwrap();
        let root = open(&inside, FOLDER, Mode::empty()).unwrap();

        let from = below(&root, Path::new("/d"), OFlag::O_PATH).unwrap();
        copy(&from, Path::new("/d"), &target_here(&outside, "d".into()).unwrap()).unwrap();
        assert_eq!(fs::read_to_string(outside.join("d/file")).unwrap(), "text");
        let mode = fs::metadata(outside.join("d/file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(outside.join("d/e").is_dir());
        assert_eq!(fs::read_link(outside.join("d/up")).unwrap(), Path::new("../../precious"));

        assert!(
            below(&root, Path::new("/absolute"), OFlag::O_PATH).is_err(),
            "below the root there is none"
        );
        let here = open(&folder.path().join("precious"), OFlag::O_PATH, Mode::empty()).unwrap();
        let target = target_inside(&root, Path::new("../../d/new"), "precious".into()).unwrap();
        copy(&here, Path::new("precious"), &target).unwrap();
        assert_eq!(fs::read_to_string(inside.join("d/new")).unwrap(), "host");
        // A link in the place of the copy is replaced, not followed.
        let target = target_inside(&root, Path::new("/d"), "up".into()).unwrap();
        copy(
            &below(&root, Path::new("/d/file"), OFlag::O_PATH).unwrap(),
            Path::new("file"),
            &target,
        )
        .unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("precious")).unwrap(), "host");
        assert_eq!(fs::read_to_string(inside.join("d/up")).unwrap(), "text");
    }
}
