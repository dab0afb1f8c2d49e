use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use hafen_spec::plan::Claim;
use hafen_sys::{CallError, Context};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;

use super::folder::Folder;
use super::usage::Keyed;

/// What the kernel says when a container's processes are killed for their memory.
#[derive(Debug)]
pub struct OomWatch {
    source: Source,
    kills: u64,
}

#[derive(Debug)]
enum Source {
    /// `memory.events` announces each change by POLLPRI.
    Unified { folder: PathBuf, events: std::os::fd::OwnedFd },
    /// v1 writes to an eventfd that was registered (Documentation/admin-guide/cgroup-v1/memory.rst, 9).
    Legacy { folder: PathBuf, event: EventFd },
}

impl OomWatch {
    /// `None` where no folder of the container has a memory controller.
    ///
    /// # Errors
    /// Names the file.
    pub fn new(claims: &[Claim]) -> Result<Option<Self>, CallError> {
        for claim in claims {
            let source = match claim {
                Claim::Cgroup { path, .. } => Source::unified(path)?,
                Claim::LegacyCgroup { controller, path, .. }
                    if controller.split(',').any(|c| c == "memory") =>
                {
                    Some(Source::legacy(path)?)
                }
                _ => None,
            };
            if let Some(source) = source {
                let kills = source.kills();
                return Ok(Some(Self { source, kills }));
            }
        }
        Ok(None)
    }

    /// What to poll for what.
    #[must_use]
    pub fn poll(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.source {
            Source::Unified { events, .. } => (events.as_fd(), PollFlags::POLLPRI),
            Source::Legacy { event, .. } => (event.as_fd(), PollFlags::POLLIN),
        }
    }

    /// Has it happened since the last question? Also takes back the kernel's sign.
    pub fn happened(&mut self) -> bool {
        if let Source::Legacy { event, folder } = &self.source {
            // The eventfd does not block. It is written to as well when the folder is removed.
            return event.read().is_ok() && folder.exists();
        }
        let kills = self.source.kills();
        let more = kills > self.kills;
        self.kills = kills;
        more
    }
}

impl Source {
    fn unified(path: &Path) -> Result<Option<Self>, CallError> {
        let file = path.join("memory.events");
        match open(&file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(events) => Ok(Some(Self::Unified { folder: path.to_owned(), events })),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e).call(|| format!("watch {}", file.display())),
        }
    }

    fn legacy(path: &Path) -> Result<Self, CallError> {
        let file = path.join("memory.oom_control");
        let control = open(&file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("watch {}", file.display()))?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .call(|| "eventfd".to_owned())?;
        let folder = Folder::open(path).call(|| format!("open {}", path.display()))?;
        let numbers = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
        folder.write("cgroup.event_control", &numbers)?;
        Ok(Self::Legacy { folder: path.to_owned(), event })
    }

    /// Reading is also what the next change is measured by.
    fn kills(&self) -> u64 {
        match self {
            Self::Legacy { .. } => 0,
            Self::Unified { folder, events } => {
                let mut bytes = [0; 1];
                let _ = nix::sys::uio::pread(events, &mut bytes, 0);
                let keyed = Folder::open(folder).map(|f| Keyed::read(&f, "memory.events"));
                keyed.ok().and_then(|k| k.get("oom_kill")).unwrap_or_default()
            }
        }
    }
}
