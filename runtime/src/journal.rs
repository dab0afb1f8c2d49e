//! What survives our death: one folder per container below `--root`.
//!
//! | file | written | holds |
//! |---|---|---|
//! | `plan.json` | before the first effect | identity, bundle, every claim |
//! | `config.json` | while the process does its part | the specification as it was read, for processes that join later |
//! | `state.json` | after the process exists, before it may go on | pid with start time |
//! | `start`, `report` | by `create` | fifos between the waiting process and `start` |
//!
//! The folder itself is the claim on the id (mkdir is atomic), and its flock says whether
//! somebody is at work on it. Documents are replaced as a whole, so a reader sees all or nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hafen_isolator::cgroup;
use hafen_rootfs::release::remove_tree;
use hafen_spec::plan::Claim;
use hafen_spec::resolved::Hooks;
use hafen_sys::file::{boot_id, read_text, replace};
use hafen_sys::{CallError, Context};
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::process::Identity;

const FORMAT: u32 = 1;
const PRIVATE: u32 = 0o700;
/// Between two tries to lock.
const PAUSE: Duration = Duration::from_millis(5);

/// `plan.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) id: String,
    pub(crate) boot_id: String,
    pub(crate) oci_version: String,
    /// As the bundle names it, for what `start` has to say about it.
    pub(crate) program: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub(crate) hooks: Hooks,
    /// The container keeps the session keyring of the caller.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) no_new_keyring: bool,
    /// In the order of their making; released in reverse.
    pub(crate) claims: Vec<Claim>,
}

impl Record {
    pub(crate) const fn format() -> u32 {
        FORMAT
    }

    /// Only files outlive a reboot: a cgroup of the same name is somebody else's now.
    fn for_this_boot(mut self) -> Result<Self, CallError> {
        if self.boot_id != boot_id()? {
            self.claims.retain(|claim| matches!(claim, Claim::Scratch { .. }));
        }
        Ok(self)
    }

    pub(crate) fn tree(&self) -> Option<&Path> {
        self.claims.iter().find_map(|c| match c {
            Claim::Cgroup { path, .. } => Some(path.as_path()),
            _ => None,
        })
    }
}

/// The folder of one container.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    lock: Option<Flock<File>>,
    /// The folder itself after its lock was given up: another one may have its name by now.
    folder: Option<File>,
}

/// What the record of a container says, together with what its process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    /// Its processes were stopped by `pause`, before or after `start`.
    Paused,
    Stopped,
}

impl Status {
    /// Is there a process?
    pub(crate) const fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Running | Self::Paused)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Entry {
    const fn at(id: String, path: PathBuf) -> Self {
        Self { id, path, lock: None, folder: None }
    }

    /// Claim an id: make its folder, and hold it.
    ///
    /// # Errors
    /// [`Error::Exists`] where the id is taken.
    pub(crate) fn claim(root: &Path, id: &str) -> Result<Self, Error> {
        let make_root = || DirBuilder::new().recursive(true).mode(0o711).create(root);
        let path = root.join(id);
        let make = || DirBuilder::new().mode(PRIVATE).create(&path);
        let made = match make() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make_root().call(|| format!("mkdir {}", root.display()))?;
                make()
            }
            answer => answer,
        };
        match made {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Exists(id.to_owned()));
            }
            answer => answer.call(|| format!("mkdir {}", path.display()))?,
        }
        let mut entry = Self::at(id.to_owned(), path);
        entry.lock()?;
        Ok(entry)
    }

    /// Find a container.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub(crate) fn find(root: &Path, id: &str) -> Result<Self, Error> {
        hafen_spec::resolve::valid_id(id).map_err(Error::Refused)?;
        let path = root.join(id);
        if path.is_dir() {
            return Ok(Self::at(id.to_owned(), path));
        }
        Err(Error::Unknown(id.to_owned()))
    }

    /// All containers, by name.
    ///
    /// # Errors
    /// Names the folder.
    pub(crate) fn all(root: &Path) -> Result<Vec<Self>, CallError> {
        let entries = match fs::read_dir(root) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            answer => answer.call(|| format!("read folder {}", root.display()))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.call(|| format!("read folder {}", root.display()))?;
            let id = entry.file_name().to_string_lossy().into_owned();
            if hafen_spec::resolve::valid_id(&id).is_ok() && entry.path().is_dir() {
                all.push(Self::at(id, entry.path()));
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Be the only one at work on this container, without waiting: a lock is never held across a wait.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub(crate) fn lock(&mut self) -> Result<(), Error> {
        let folder = match File::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::Unknown(self.id.clone()));
            }
            answer => answer.call(|| format!("open {}", self.path.display()))?,
        };
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            // It may have been removed, and its name given to another, since it was opened.
            Ok(lock) if self.is(&lock)? => self.lock = Some(lock),
            Ok(_) => return Err(Error::Unknown(self.id.clone())),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(Error::Busy(self.id.clone())),
            Err((_, e)) => {
                return Err(CallError::errno(format!("flock {}", self.path.display()), e).into());
            }
        }
        Ok(())
    }

    /// The same with some patience: the first process of a runtime that just died may not have let go yet.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub(crate) fn lock_within(&mut self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lock() {
                Err(Error::Busy(_)) if Instant::now() < deadline => thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }

    pub(crate) fn unlock(&mut self) {
        self.folder = self.lock.take().and_then(|lock| lock.unlock().ok());
    }

    /// Lock it again after [`Self::unlock`], waiting for whoever is at work on it. `false`: the container was deleted
    /// meanwhile, and what has its name now is another one.
    ///
    /// # Errors
    /// Of locking.
    pub(crate) fn relock(&mut self) -> Result<bool, CallError> {
        let Some(folder) = self.folder.take() else { return Ok(self.lock.is_some()) };
        let lock = Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, e)| CallError::errno(format!("flock {}", self.path.display()), e))?;
        let ours = self.is(&lock)?;
        self.lock = Some(lock);
        Ok(ours)
    }

    /// Is this still the folder at our path?
    fn is(&self, folder: &File) -> Result<bool, CallError> {
        let here = match fs::metadata(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            answer => answer.call(|| format!("stat {}", self.path.display()))?,
        };
        let opened = folder.metadata().call(|| format!("stat {}", self.path.display()))?;
        Ok((here.dev(), here.ino()) == (opened.dev(), opened.ino()))
    }

    /// The descriptor that holds the lock: a child must let go of it.
    pub(crate) fn lock_fd(&self) -> Option<RawFd> {
        self.lock.as_ref().map(|lock| lock.as_raw_fd())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Save the specification. Nobody reads it before there is a process.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn save_config(&self, config: &[u8]) -> Result<(), CallError> {
        let path = self.config();
        fs::write(&path, config).call(|| format!("write {}", path.display()))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.file("config.json")
    }

    /// Save the plan. It reaches the disk only where something it claims outlives a reboot: everything else is gone
    /// by itself when the machine is, and a page in memory outlives every process.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn save_plan(&self, record: &Record) -> Result<(), Error> {
        let durable = record.claims.iter().any(|c| matches!(c, Claim::Scratch { .. }));
        let bytes = serde_json::to_vec(record).map_err(|e| self.unreadable(&e.to_string()))?;
        Ok(replace(&self.file("plan.json"), &bytes, durable)?)
    }

    /// # Errors
    /// Names the file.
    pub(crate) fn save_process(&self, identity: Identity) -> Result<(), Error> {
        let bytes = serde_json::to_vec(&identity).map_err(|e| self.unreadable(&e.to_string()))?;
        Ok(replace(&self.file("state.json"), &bytes, false)?)
    }

    fn unreadable(&self, reason: &str) -> Error {
        Error::Record { id: self.id.clone(), reason: reason.to_owned() }
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, Error> {
        let text = match read_text(&self.file(name)) {
            Err(e) if e.source.kind() == ErrorKind::NotFound => return Ok(None),
            answer => answer?,
        };
        serde_json::from_str(&text).map(Some).map_err(|e| self.unreadable(&format!("{name}: {e}")))
    }

    /// The saved plan; `None` if the runtime died before it was saved, when nothing had been done yet.
    ///
    /// # Errors
    /// [`Error::Record`] for a torn or foreign file.
    pub(crate) fn record(&self) -> Result<Option<Record>, Error> {
        match self.read::<Record>("plan.json")? {
            Some(record) if record.format != FORMAT => {
                Err(self
                    .unreadable(&format!("plan.json: format {} is not {FORMAT}", record.format)))
            }
            Some(record) => Ok(Some(record.for_this_boot()?)),
            None => Ok(None),
        }
    }

    /// # Errors
    /// [`Error::Record`].
    pub(crate) fn process(&self) -> Result<Option<Identity>, Error> {
        self.read("state.json")
    }

    /// # Errors
    /// Of reading the records or `/proc`.
    pub(crate) fn status(&self, record: Option<&Record>) -> Result<Status, Error> {
        let Some(record) = record else { return Ok(Status::Creating) };
        if record.boot_id != boot_id()? {
            return Ok(Status::Stopped);
        }
        let Some(process) = self.process()? else { return Ok(Status::Creating) };
        if !process.alive()? {
            return Ok(Status::Stopped);
        }
        if process.creating {
            return Ok(Status::Creating);
        }
        if record.tree().map(cgroup::is_frozen).transpose()? == Some(true) {
            return Ok(Status::Paused);
        }
        Ok(if self.awaits_start()? { Status::Created } else { Status::Running })
    }

    /// The first process holds the fifo open until it is let go, and its program never has it (ENXIO, fifo(7)). That
    /// the fifo is still there says less: a `start` may have died before it removed it.
    fn awaits_start(&self) -> Result<bool, CallError> {
        let path = self.start_fifo();
        let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match fs::OpenOptions::new().write(true).custom_flags(flags.bits()).open(&path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ENXIO as i32) => Ok(false),
            Err(e) => Err(e).call(|| format!("open {}", path.display())),
        }
    }

    pub(crate) fn start_fifo(&self) -> PathBuf {
        self.file("start")
    }

    pub(crate) fn report_fifo(&self) -> PathBuf {
        self.file("report")
    }

    /// The two fifos of a created container, opened so that nobody waits for the other side.
    ///
    /// # Errors
    /// Names the fifo.
    pub(crate) fn make_fifos(&self) -> Result<[OwnedFd; 2], CallError> {
        let make = |path: PathBuf| -> Result<OwnedFd, CallError> {
            let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
            nix::unistd::mkfifo(&path, mode).call(|| format!("mkfifo {}", path.display()))?;
            let flags = OFlag::O_CLOEXEC.bits();
            let file =
                fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
            Ok(file.call(|| format!("open {}", path.display()))?.into())
        };
        Ok([make(self.start_fifo())?, make(self.report_fifo())?])
    }

    /// A started container needs its fifos no more.
    pub(crate) fn remove_fifos(&self) -> Result<(), CallError> {
        for fifo in [self.report_fifo(), self.start_fifo()] {
            match fs::remove_file(&fifo) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                answer => answer.call(|| format!("unlink {}", fifo.display()))?,
            }
        }
        Ok(())
    }

    /// The last step of every end: the id is free again.
    ///
    /// # Errors
    /// Names what could not be removed.
    pub(crate) fn remove(self) -> Result<(), CallError> {
        remove_tree(&self.path)
    }
}
