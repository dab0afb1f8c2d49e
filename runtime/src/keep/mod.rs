//! The keeper: one small parent of one container, which outlives whoever asked for it.
//!
//! ```text
//!   agent --exec--> hafen-oci keep: writes down how, launches, executes itself anew (small) --+
//!                                                                                             |
//!   program --fifos--> +--------+ --> log files                                               |
//!                      | keeper | <----------------------------------------------------------+
//!   agent <--socket--> +--------+ --> exit.json, on the disk; then all are told; then release
//! ```
//!
//! One thread that waits in poll(2). What it writes and says is in [`hafen_spec::keep`]. It executes itself once the
//! container runs, because what a launch has touched would be many times what a keeper needs. One that dies leaves the
//! container alone: another one takes over from what is in the folder.

mod client;
mod exec;
pub(crate) mod fence;
pub(crate) mod log;
mod oom;
pub(crate) mod stdio;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hafen_isolator::cgroup::{self, OomWatch};
use hafen_spec::keep::{
    self, ExitRecord, Frame, Oom, POLICY, Policy, Request, SOCKET, Status, Told, VERSION,
};
use hafen_sys::clock::since_boot;
use hafen_sys::file::{boot_id, replace};
use hafen_sys::pidfd::{self, Ended};
use hafen_sys::{CallError, Context, rest, socket, terminal};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use serde_json::Value;

use self::client::{Attached, Client, Received, read_some};
use self::exec::{Exec, Wanted};
use self::fence::{Due, Guard};
use self::log::{Log, Stream};
use self::stdio::{Glass, Streams};
use crate::journal::{Entry, Record};
use crate::patch::merge;
use crate::process::Identity;
use crate::supervise::{Life, Signals, micros, rfc3339, until};
use crate::{Error, fault, release, supervise};

/// Between two tries to write on a disk that is full.
const AGAIN: Duration = Duration::from_millis(500);
/// Bytes of one read.
const CHUNK: usize = 64 << 10;
/// For clients that have come late: so much of what was written last.
const REPLAY: usize = 16 << 10;
/// Input that the program has not taken yet; with more than this nobody may give more.
const INPUT: usize = 64 << 10;
/// How long output waits for the first who wants it.
const HOLD: Duration = Duration::from_secs(10);
/// After so many milliseconds without work a keeper gives back memory; then it waits without end.
const REST: u16 = 1000;
/// Frames of one client, before others have their turn.
const AT_ONCE: usize = 64;
/// Bytes that are set aside for the record of the end, and for what others write about it.
const ROOM: i64 = 32 << 10;
/// Of these, what the record itself takes at most to be written in place.
const BLANKS: usize = 8 << 10;
/// How long clients have to take the last that they are told.
const FAREWELL: Duration = Duration::from_secs(2);

/// The folder of a keeper.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) policy: Policy,
    lock: Flock<File>,
}

impl Folder {
    /// Begin to keep: write down how, and hold the lock.
    ///
    /// # Errors
    /// Names the file; a folder that has a keeper is refused.
    pub(crate) fn make(path: &Path, policy: Policy) -> Result<Self, Error> {
        // Whoever gets at the socket has the container.
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            answer => answer.call(|| format!("mkdir {}", path.display()))?,
        }
        let lock = lock(path)?;
        if path.join(keep::EXIT).exists() {
            let words = format!("--dir: {} holds the end of a container", path.display());
            return Err(Error::Refused(words));
        }
        // Of one that died before its container was there.
        stdio::remove(path)?;
        let folder = Self { path: path.to_owned(), policy, lock };
        folder.write_policy()?;
        folder.set_room_aside();
        Ok(folder)
    }

    /// For the record of the end, on a disk that the container's own output may fill. A file system that cannot gives none.
    fn set_room_aside(&self) {
        let _ = self.make_room();
    }

    /// Blanks that are on the disk by then can be overwritten there: to bring a record to the disk takes one write of one block.
    fn make_room(&self) -> io::Result<()> {
        let file = File::options().create(true).truncate(true).write(true).open(self.room())?;
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, ROOM)?;
        file.write_all_at(&[b' '; BLANKS], 0)?;
        // Begins to write them, and does not wait (mm/fadvise.c, generic_fadvise).
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }

    /// `false` where there is no room for it. It gets its name after that: until then it is found in the room.
    fn save_in_place(&self, exit: &ExitRecord) -> Result<bool, Error> {
        let bytes = supervise::encode(exit)?;
        let Ok(file) = File::options().write(true).open(self.room()) else { return Ok(false) };
        if bytes.len() > BLANKS || file.metadata().is_ok_and(|meta| meta.len() != BLANKS as u64) {
            return Ok(false);
        }
        let mut all = bytes.clone();
        all.resize(BLANKS, b' ');
        Ok(file.write_all_at(&all, 0).and_then(|()| file.sync_data()).is_ok())
    }

    /// If it has none yet. The disk's journal may be busy with other things, so this comes after all are told.
    fn name_end(&self) -> Result<(), CallError> {
        let (room, end) = (self.room(), self.path.join(keep::EXIT));
        if end.exists() {
            return Ok(());
        }
        // What is left of the room is for others.
        let _ = self.cut_blanks();
        let named = || format!("rename {} to {}", room.display(), end.display());
        std::fs::rename(&room, &end).call(named)
    }

    fn cut_blanks(&self) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(self.room())?;
        let mut all = Vec::new();
        (&file).read_to_end(&mut all)?;
        file.set_len(all.trim_ascii_end().len() as u64)
    }

    fn room(&self) -> PathBuf {
        self.path.join(keep::ROOM)
    }

    /// `true`: there was some.
    fn give_room(&self) -> bool {
        std::fs::remove_file(self.room()).is_ok()
    }

    /// Take over.
    ///
    /// # Errors
    /// Names the file; a folder that has a keeper is refused.
    pub(crate) fn open(path: &Path, lock_of_before: Option<OwnedFd>) -> Result<Self, Error> {
        let lock = match lock_of_before {
            // The lock belongs to what is open, and outlives an execve(2).
            Some(fd) => Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock)
                .map_err(|(_, e)| CallError::errno("flock", e))?,
            None => lock(path)?,
        };
        let file = path.join(POLICY);
        let text = hafen_sys::file::read_text(&file)?;
        let policy: Policy = serde_json::from_str(&text)
            .map_err(|e| Error::Refused(format!("{}: {e}", file.display())))?;
        if policy.version != VERSION {
            let words = format!("{}: version {} is not {VERSION}", file.display(), policy.version);
            return Err(Error::Refused(words));
        }
        Ok(Self { path: path.to_owned(), policy, lock })
    }

    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }

    /// There is a container now: another one of this name is none of ours.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn made(&mut self, record: &Record) -> Result<(), Error> {
        self.policy.created = Some(record.created.clone());
        self.write_policy()
    }

    fn write_policy(&self) -> Result<(), Error> {
        let text = serde_json::to_vec(&self.policy).map_err(|e| Error::Refused(e.to_string()))?;
        Ok(replace(&self.path.join(POLICY), &text, false)?)
    }

    /// There will be no container.
    pub(crate) fn give_up(&self) {
        let _ = stdio::remove(&self.path);
        let _ = self.give_room();
        let _ = std::fs::remove_file(self.path.join(POLICY));
    }

    /// What a keeper before us wrote down last.
    ///
    /// # Errors
    /// Names the file.
    fn exit(&self) -> Result<Option<ExitRecord>, Error> {
        let end = keep::end(|name| std::fs::read(self.path.join(name)));
        let end = end.call(|| format!("read {}", self.path.join(keep::EXIT).display()))?;
        if end.is_some() {
            self.name_end()?;
        }
        Ok(end)
    }

    /// Its container, where it is still there.
    ///
    /// # Errors
    /// Names the file.
    fn entry(&self, root: &Path) -> Result<Option<(Entry, Record)>, Error> {
        let entry = match Entry::find(root, &self.policy.id) {
            Err(Error::Unknown(_)) => return Ok(None),
            answer => answer?,
        };
        let record = entry.record()?.ok_or_else(|| Error::Busy(entry.id.clone()))?;
        let is_ours = self.policy.created.as_ref().is_none_or(|created| *created == record.created);
        Ok(is_ours.then_some((entry, record)))
    }

    /// Where the end is written down and nothing else is left, what a keeper that died has not removed goes. The answer is
    /// that end.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn sweep(&self, root: &Path) -> Result<Option<ExitRecord>, Error> {
        let Some(exit) = self.exit()? else { return Ok(None) };
        if self.entry(root)?.is_some() {
            return Ok(None);
        }
        self.remove_rest()?;
        Ok(Some(exit))
    }

    /// Also what keepers before us were writing when they died.
    fn remove_rest(&self) -> Result<(), Error> {
        stdio::remove(&self.path)?;
        let entries =
            std::fs::read_dir(&self.path).call(|| format!("list {}", self.path.display()))?;
        for entry in entries.filter_map(Result::ok) {
            if is_rest(&entry.file_name().to_string_lossy()) {
                let path = entry.path();
                std::fs::remove_file(&path).call(|| format!("unlink {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// The folder may hold files that are none of ours, as the log.
fn is_rest(name: &str) -> bool {
    let draft = name.strip_suffix(".tmp").and_then(|name| name.strip_prefix('.'));
    let is_draft =
        |name: &str| [POLICY, keep::EXIT, "held-"].iter().any(|known| name.starts_with(known));
    name == SOCKET
        || name == keep::ROOM
        || name.starts_with("held-std")
        || (name.starts_with("exec-") && (name.ends_with(".json") || name.ends_with(".pid")))
        || draft.is_some_and(is_draft)
}

fn lock(folder: &Path) -> Result<Flock<File>, Error> {
    let path = folder.join(keep::LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.call(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => Error::Refused(format!("{} has a keeper", folder.display())),
        e => CallError::errno(format!("flock {}", path.display()), e).into(),
    })
}

/// What one keeper leaves to the next.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    pub(crate) streams: Streams,
    pub(crate) process: Option<OwnedFd>,
    /// Since the boot of the machine.
    pub(crate) born: Option<Duration>,
    /// That one has died.
    pub(crate) again: bool,
}

/// The first process of the container.
#[derive(Debug)]
struct First {
    identity: Identity,
    /// `None`: it has ended before we came.
    handle: Option<OwnedFd>,
    /// Its mount namespace, so that it is not taken apart before its end is seen: that waits for a grace period of RCU, and
    /// for file systems. Whom the host does not let see it does without.
    mounts: Option<File>,
    /// Since the boot of the machine: nobody sets that clock.
    born: Duration,
    started: SystemTime,
}

#[derive(Debug)]
pub(crate) struct Keeper {
    root: PathBuf,
    folder: Folder,
    entry: Entry,
    record: Record,
    first: First,
    streams: Streams,
    input: Vec<u8>,
    end_input: bool,
    log: Log,
    glass: Glass,
    listener: UnixListener,
    signals: Signals,
    clients: Vec<Client>,
    /// How many there have been.
    met: u64,
    execs: Vec<Exec>,
    watch: Option<OomWatch>,
    oom: Option<Oom>,
    guard: Option<Guard>,
    replay: Vec<u8>,
    /// Until then nothing is read, unless somebody attaches.
    held: Option<Instant>,
    /// Until then something that failed is not tried again.
    pause: Option<Instant>,
    ended: bool,
}

impl Keeper {
    /// Stand by a container that runs, or has ended without a word about it.
    ///
    /// # Errors
    /// Names the file or call; the container goes on then.
    pub(crate) fn take_over(
        root: &Path,
        folder: Folder,
        handed: Handed,
        signals: Signals,
    ) -> Result<Self, Error> {
        let hold = folder.policy.hold && handed.born.is_some();
        let unknown = || Error::Unknown(folder.policy.id.clone());
        let (entry, record) = folder.entry(root)?.ok_or_else(unknown)?;
        let identity = entry.process()?.ok_or_else(|| Error::Busy(entry.id.clone()))?;
        let handle = match handed.process {
            Some(handle) => Some(handle),
            None => identity.open()?,
        };
        let mounts = File::open(format!("/proc/{}/ns/mnt", identity.pid));
        let mounts = mounts.ok().filter(|_| identity.alive().unwrap_or(false));
        let born = handed.born.unwrap_or_else(|| identity.born());
        let started = SystemTime::now() - since_boot().saturating_sub(born);
        let listen = || socket::listen(&folder.path, SOCKET);
        let listener =
            listen().call(|| format!("listen {}", folder.path.join(SOCKET).display()))?;
        listener.set_nonblocking(true).call(|| "fcntl O_NONBLOCK".to_owned())?;
        // Without it ends are still told; it is of an old kernel, or of a folder that is gone.
        let watch = OomWatch::new(&record.claims).unwrap_or_default();
        let guard = folder.policy.fence.as_ref().map(Guard::new).transpose()?;
        let mut log = Log::open(&folder.policy.log, &folder.path)?;
        if handed.again {
            log.cut_open_line();
            log.close_gaps();
        }
        Ok(Self {
            root: root.to_owned(),
            log,
            glass: Glass::new()?,
            folder,
            entry,
            record,
            first: First { identity, handle, mounts, born, started },
            streams: handed.streams,
            input: Vec::new(),
            end_input: false,
            listener,
            signals,
            clients: Vec::new(),
            met: 0,
            execs: Vec::new(),
            watch,
            oom: None,
            guard,
            replay: Vec::new(),
            // A keeper that takes over is late for whoever wanted all.
            held: hold.then(|| Instant::now() + HOLD),
            pause: None,
            ended: false,
        })
    }

    /// Of the container's first process.
    pub(crate) const fn pid(&self) -> i32 {
        self.first.identity.pid
    }

    /// Until nothing is left of the container.
    ///
    /// # Errors
    /// What could not be written down or released; it is in the folder's lock then that nobody keeps it any more.
    pub(crate) fn keep(mut self) -> Result<(), Error> {
        while self.first.handle.is_some() {
            if self.turn()? {
                break;
            }
        }
        self.ended = true;
        while self.held.is_some() {
            self.turn()?;
        }
        fault::point();
        // Who is left has no first process any more, and may hold the output open for ever. What cannot be killed is told
        // by the release.
        if let Some(tree) = self.record.tree() {
            let _ = cgroup::kill(tree);
        }
        self.drain();
        self.log.finish();
        let exit = self.write_down()?;
        self.reap_all()?;
        fault::point();
        self.clients.iter_mut().for_each(Client::tell_of_lag);
        self.tell_all(&Told::Exited(Box::new(exit)));
        fault::point();
        self.folder.name_end()?;
        self.first.mounts = None;
        let released = self.release();
        let error = released.as_ref().err().map(Error::chain);
        self.tell_all(&Told::Released { error });
        fault::point();
        self.part();
        self.folder.remove_rest()?;
        released
    }

    /// One record, whoever writes it.
    fn write_down(&mut self) -> Result<ExitRecord, Error> {
        if let Some(exit) = self.folder.exit()? {
            return Ok(exit);
        }
        let exit = self.exit(&self.end()?);
        fault::point();
        self.save_when_there_is_room(&exit)?;
        fault::point();
        Ok(exit)
    }

    /// Nobody else knows how it ended: where the disk is full that waits until there is room, and everybody is served
    /// meanwhile as before.
    fn save_when_there_is_room(&mut self, exit: &ExitRecord) -> Result<(), Error> {
        const LACKS: [Errno; 3] = [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS];
        if self.folder.save_in_place(exit)? {
            return Ok(());
        }
        let path = self.folder.path.join(keep::EXIT);
        loop {
            match supervise::save(exit, &path) {
                Err(Error::Call(e)) if LACKS.iter().any(|errno| e.is(*errno)) => {
                    if !self.folder.give_room() {
                        self.serve_for(AGAIN)?;
                    }
                }
                answer => return answer,
            }
        }
    }

    fn serve_for(&mut self, pause: Duration) -> Result<(), Error> {
        let end = Instant::now() + pause;
        self.pause = Some(end);
        while Instant::now() < end {
            self.turn()?;
        }
        self.pause = None;
        Ok(())
    }

    /// Only now may the first process be no zombie any more: a keeper after us could have asked it how it ended. The
    /// programs that were run for others end with it, which those are told.
    fn reap_all(&mut self) -> Result<(), CallError> {
        let patience = Instant::now() + FAREWELL;
        match pidfd::wait(self.first.identity.pid, true) {
            Err(e) if !e.is(Errno::ECHILD) => return Err(e),
            _ => {}
        }
        self.reap_others()?;
        while !self.execs.is_empty() && Instant::now() < patience {
            let mut fds = [PollFd::new(self.signals.handle(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(100_u16));
            while self.signals.next()?.is_some() {}
            self.reap_others()?;
        }
        Ok(())
    }

    /// Wait for what comes next, and do what follows. `true`: the first process has ended.
    fn turn(&mut self) -> Result<bool, Error> {
        let Ready { ended, signals, listener, oom, fence, mut clients } = self.look()?;
        self.pump();
        let was_full = self.input.len() >= INPUT;
        self.give_input();
        if was_full && self.input.len() < INPUT {
            // Also who was not asked.
            clients = self.clients.iter().map(|client| client.number).collect();
        }
        if signals {
            self.take_signals()?;
        }
        if oom {
            self.note_oom();
        }
        if fence && !ended {
            self.look_at_fence();
        }
        for number in clients {
            self.serve(number);
        }
        if listener {
            self.welcome();
        }
        self.clients.retain(|client| !client.gone);
        let wanted = self.clients.iter().any(|client| client.attached.is_some());
        self.held = self.held.filter(|until| !wanted && Instant::now() < *until);
        Ok(ended)
    }

    fn look(&self) -> Result<Ready, CallError> {
        let reading = self.held.is_none() && !self.clients.iter().any(Client::holds_back);
        let room = self.input.len() < INPUT;
        let mut fds = vec![
            PollFd::new(self.signals.handle(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        if let Some((fd, flags)) = self.watch.as_ref().map(OomWatch::poll) {
            fds.push(PollFd::new(fd, flags));
        }
        let oom = self.watch.is_some().then_some(2);
        let guard = self.guard.as_ref().filter(|_| !self.ended);
        let fence = guard.map(|_| fds.len());
        fds.extend(guard.map(|guard| PollFd::new(guard.handle(), PollFlags::POLLIN)));
        let mut asked = Vec::new();
        for client in &self.clients {
            if let Some(flags) = client.interest(room) {
                asked.push((fds.len(), client.number));
                fds.push(PollFd::new(client.handle(), flags));
            }
        }
        let handle = self.first.handle.as_ref().filter(|_| !self.ended);
        let first = handle.map(|_| fds.len());
        fds.extend(handle.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        if reading {
            fds.extend(self.outputs().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        if let Some(fd) = self.sink().filter(|_| !self.input.is_empty()) {
            fds.push(PollFd::new(fd, PollFlags::POLLOUT));
        }
        let waited = match self.pause.or(self.held) {
            Some(moment) => poll(&mut fds, until(moment)),
            None => wait(&mut fds),
        };
        match waited {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(CallError::errno("poll", e)),
        }
        let ready = |at: usize| fds[at].any().unwrap_or(false);
        let clients =
            asked.iter().filter(|(at, _)| ready(*at)).map(|(_, number)| *number).collect();
        Ok(Ready {
            ended: first.is_some_and(ready),
            signals: ready(0),
            listener: ready(1),
            oom: oom.is_some_and(ready),
            fence: fence.is_some_and(ready),
            clients,
        })
    }

    fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = &self.streams;
        let all = [&streams.stdout, &streams.stderr, &streams.terminal];
        all.into_iter().flatten().map(AsFd::as_fd)
    }

    /// Where input goes.
    fn sink(&self) -> Option<BorrowedFd<'_>> {
        self.streams.terminal.as_ref().or(self.streams.stdin.as_ref()).map(AsFd::as_fd)
    }

    /// Take what the program has written, as far as everybody takes it from us.
    fn pump(&mut self) {
        if self.held.is_some() || self.clients.iter().any(Client::holds_back) {
            return;
        }
        self.pass_each();
    }

    /// One read of each stream. `false`: nothing was there.
    fn pass_each(&mut self) -> bool {
        let mut streams = std::mem::take(&mut self.streams);
        let mut more = self.pass(&mut streams.stdout, Stream::Stdout, true);
        more |= self.pass(&mut streams.stderr, Stream::Stderr, true);
        more |= self.pass(&mut streams.terminal, Stream::Stdout, false);
        self.streams = streams;
        more
    }

    /// One read. A terminal, which is no fifo, has nothing that could be looked at before it is taken.
    fn pass(&mut self, from: &mut Option<OwnedFd>, stream: Stream, is_fifo: bool) -> bool {
        let Some(end) = from.as_ref() else { return false };
        let is_watched = self.clients.iter().any(|client| client.attached.is_some());
        if is_fifo && self.log.takes_bytes() && !is_watched {
            match self.log.move_from(end.as_fd()) {
                Ok(0) => *from = None,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Ok(_) => return true,
                // The file does not take it: read, then, and count.
                Err(_) => {}
            }
            if from.is_none() {
                return false;
            }
        }
        let Some(end) = from.as_ref() else { return false };
        let mut bytes = [0; CHUNK];
        let read = match is_fifo {
            true => self.glass.look(end, &mut bytes),
            false => read_some(Reading(end), &mut bytes),
        };
        match read {
            Ok(0) => *from = None,
            Ok(n) => {
                // Of a fifo that is full more comes: what has no end of line yet is looked at again, with that.
                let n = if is_fifo && n == CHUNK { self.log.whole(&bytes) } else { n };
                self.distribute(stream, &bytes[..n]);
                // What is written down may go.
                if is_fifo && stdio::take(end, &mut bytes[..n]).is_err() {
                    *from = None;
                }
                return true;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => *from = None,
        }
        false
    }

    fn distribute(&mut self, stream: Stream, bytes: &[u8]) {
        let frame = match stream {
            Stream::Stdout => Frame::Stdout,
            Stream::Stderr => Frame::Stderr,
        };
        self.log.write(stream, bytes);
        self.clients.iter_mut().for_each(|client| client.pass(frame, bytes));
        let keep = REPLAY.saturating_sub(bytes.len()).min(self.replay.len());
        self.replay.drain(..self.replay.len() - keep);
        self.replay.extend_from_slice(&bytes[bytes.len().saturating_sub(REPLAY)..]);
    }

    /// What is left in the fifos when nobody writes any more.
    fn drain(&mut self) {
        let patience = Instant::now() + FAREWELL;
        loop {
            let more = self.pass_each();
            if !more || Instant::now() > patience {
                return;
            }
        }
    }

    fn give_input(&mut self) {
        while !self.input.is_empty() {
            let Some(sink) = self.sink() else {
                self.input.clear();
                break;
            };
            match nix::unistd::write(sink, &self.input) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // Nobody reads it any more.
                Err(_) => {
                    self.input.clear();
                    self.streams.stdin = None;
                }
            }
        }
        if self.end_input {
            // A terminal has no end; who types there types it.
            self.streams.stdin = None;
        }
    }

    fn take_signals(&mut self) -> Result<(), CallError> {
        const PASSED_ON: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
        while let Some(signal) = self.signals.next()? {
            if signal == libc::SIGCHLD {
                self.reap_others()?;
            } else if PASSED_ON.contains(&signal) {
                let _ = self.signal(signal, false);
            }
        }
        Ok(())
    }

    /// Children but the first process: runtimes that run others, those others, and who lost its parent.
    fn reap_others(&mut self) -> Result<(), CallError> {
        let mut ended = Vec::new();
        loop {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let pid = match waitid(Id::All, flags) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(status) => status.pid().map_or(-1, nix::unistd::Pid::as_raw),
                Err(e) => return Err(CallError::errno("waitid", e)),
            };
            // That one is for later, and hides the others until then.
            if pid == self.first.identity.pid {
                break;
            }
            let Some(end) = pidfd::wait(pid, false)? else { break };
            ended.push((pid, end));
        }
        // A program's starter first: it knows whose the program is.
        for _ in 0..2 {
            ended.retain(|(pid, end)| !self.exec_ended(*pid, *end));
        }
        Ok(())
    }

    /// Was it of a program that somebody asked for?
    fn exec_ended(&mut self, pid: i32, end: Ended) -> bool {
        for at in 0..self.execs.len() {
            let Some((told, over)) = self.execs[at].ended(pid, end) else { continue };
            let client = self.execs[at].client;
            if over {
                self.execs.remove(at);
            }
            if let Some(client) = self.clients.iter_mut().find(|c| c.number == client) {
                client.tell(&told);
            }
            return true;
        }
        false
    }

    /// The time is up, unless somebody was heard meanwhile.
    fn look_at_fence(&mut self) {
        let (Some(guard), Some(fence)) = (&self.guard, &mut self.folder.policy.fence) else {
            return;
        };
        // What does not reach it is made up for by the kill, and the kill is made again.
        let _ = match guard.look(fence, since_boot()) {
            Due::Nothing => return,
            Due::Ask(signal) => self.signal(signal, false),
            Due::Kill => self.kill(),
        };
        // A keeper after us that cannot read it finds the time up as well, unless somebody is heard before.
        let _ = self.folder.write_policy();
    }

    fn note_oom(&mut self) {
        if !self.watch.as_mut().is_some_and(OomWatch::happened) {
            return;
        }
        // The killer counts after it has acted.
        let kills = cgroup::observe(&self.record.claims).oom_kills.unwrap_or_default().max(1);
        self.oom = self.find_victim().or(self.oom.take());
        self.tell_all(&Told::Oom { kills, last: self.oom.clone() });
    }

    /// The kernel counts, kills, and only then writes who it was (mm/oom_kill.c, `__oom_kill_process`).
    fn find_victim(&self) -> Option<Oom> {
        const TRIES: u32 = 10;
        const PAUSE: Duration = Duration::from_millis(5);
        let tree = self.record.tree()?;
        (0..TRIES).find_map(|before| {
            if before > 0 {
                std::thread::sleep(PAUSE);
            }
            oom::last_of(tree)
        })
    }

    fn welcome(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.met += 1;
            let Ok(mut client) = Client::new(self.met, stream) else { continue };
            client.tell(&self.status());
            self.clients.push(client);
        }
    }

    fn status(&self) -> Told {
        Told::Status(Box::new(Status {
            version: VERSION,
            id: self.entry.id.clone(),
            pid: self.first.identity.pid,
            started_at: rfc3339(self.first.started),
            ran_usec: micros(self.first.ran()),
            terminal: self.streams.terminal.is_some(),
            claims: self.record.claims.clone(),
        }))
    }

    fn serve(&mut self, number: u64) {
        let Some(at) = self.clients.iter().position(|client| client.number == number) else {
            return;
        };
        self.clients[at].flush();
        if self.clients[at].has_all() {
            self.clients[at].tell_of_lag();
        }
        for _ in 0..AT_ONCE {
            let room = self.input.len() < INPUT;
            let Some(Received { frame, content, fds }) = self.clients[at].receive(room) else {
                break;
            };
            match frame {
                Frame::Stdin => self.input.extend(content),
                Frame::Word => {
                    if let Err(error) = self.answer(at, &content, fds) {
                        self.clients[at].tell(&Told::Failed { error: error.chain() });
                    }
                }
                Frame::Stdout | Frame::Stderr => self.clients[at].gone = true,
            }
        }
        self.give_input();
    }

    fn answer(&mut self, at: usize, word: &[u8], fds: Vec<OwnedFd>) -> Result<(), Error> {
        let wrong = |e: serde_json::Error| Error::Refused(format!("request: {e}"));
        match serde_json::from_slice(word).map_err(wrong)? {
            Request::Attach { replay, lossless } => {
                self.clients[at].attached = Some(Attached { lossless, left_out: 0 });
                let last = if replay { self.last_bytes() } else { Vec::new() };
                if !last.is_empty() {
                    self.clients[at].pass(Frame::Stdout, &last);
                }
            }
            Request::EndInput => self.end_input = true,
            Request::Resize { rows, columns } => self.resize(rows, columns)?,
            Request::Signal { signal, all } => self.signal(signal, all)?,
            Request::Kill => self.kill()?,
            Request::Exec { number, process, console } => {
                let client = self.clients[at].number;
                if self.execs.iter().any(|e| (e.client, e.number) == (client, number)) {
                    return Err(Error::Refused(format!("exec: number {number} is in use")));
                }
                let wanted = Wanted {
                    root: &self.root,
                    folder: &self.folder.path,
                    id: &self.entry.id,
                    process: &self.process_like(process)?,
                    console: console.as_deref(),
                    fds,
                };
                let exec = Exec::begin(client, number, &wanted)?;
                self.execs.push(exec);
            }
            Request::SignalExec { number, signal } => {
                let client = self.clients[at].number;
                let exec = self.execs.iter().find(|e| (e.client, e.number) == (client, number));
                let pid = exec.and_then(|e| e.pid).ok_or(Error::NotRunning)?;
                // It is our child, not waited for: its pid is still its own.
                pidfd::send_signal(&pidfd::open(pid)?, signal)?;
            }
        }
        Ok(())
    }

    /// What was written last: where bytes go to the log without us, the log has it.
    fn last_bytes(&self) -> Vec<u8> {
        let tail = if self.log.takes_bytes() { self.log.tail(REPLAY as u64) } else { None };
        tail.unwrap_or_else(|| self.replay.clone())
    }

    /// The container's own process, changed. Variables come to its own.
    fn process_like(&self, mut wanted: Value) -> Result<Value, Error> {
        let own = self.entry.config();
        let text = hafen_sys::file::read_text(&own)?;
        let spec: Value = serde_json::from_str(&text)
            .map_err(|e| Error::Refused(format!("{}: {e}", own.display())))?;
        let mut process = spec["process"].clone();
        process["terminal"] = Value::Bool(false);
        let more = wanted.as_object_mut().and_then(|wanted| wanted.remove("env"));
        if let (Some(env), Some(Value::Array(more))) = (process["env"].as_array_mut(), more) {
            env.extend(more);
        }
        merge(&mut process, wanted);
        Ok(process)
    }

    fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        let Some(master) = &self.streams.terminal else {
            return Err(Error::Refused("resize: it has no terminal".to_owned()));
        };
        let size = terminal::Size { rows, columns, ..terminal::Size::default() };
        Ok(terminal::set_size(master, size).map_err(|e| CallError::errno("ioctl TIOCSWINSZ", e))?)
    }

    fn signal(&self, signal: i32, all: bool) -> Result<(), Error> {
        if all && let Some(tree) = self.record.tree() {
            return crate::commands::signal_all(tree, signal);
        }
        let handle = self.first.handle.as_ref().ok_or(Error::NotRunning)?;
        Ok(pidfd::send_signal(handle, signal)?)
    }

    fn kill(&self) -> Result<(), Error> {
        match self.record.tree() {
            Some(tree) => Ok(cgroup::kill(tree)?),
            None => self.signal(libc::SIGKILL, false),
        }
    }

    fn tell_all(&mut self, told: &Told) {
        self.clients.iter_mut().for_each(|client| client.tell(told));
        self.clients.retain(|client| !client.gone);
    }

    /// How the first process ended. A child of ours has waited for us, and goes on doing so; of another one the kernel may
    /// know.
    fn end(&self) -> Result<Ended, CallError> {
        let unknown =
            Ended { code: None, signal: None, user_usec: 0, system_usec: 0, max_rss_bytes: 0 };
        match pidfd::look_at_end(self.first.identity.pid) {
            Err(e) if e.is(Errno::ECHILD) => Ok(self.first.told_end().unwrap_or(unknown)),
            answer => answer,
        }
    }

    fn exit(&self, end: &Ended) -> ExitRecord {
        let First { identity, started, .. } = &self.first;
        let life = Life { pid: identity.pid, started: *started, ran: self.first.ran() };
        let exit = life.end(&self.entry, &self.record, end);
        let killed = exit.usage.cgroup.oom_kills.is_some_and(|kills| kills > 0);
        let oom = self.oom.clone().or_else(|| if killed { self.find_victim() } else { None });
        let fence = self.folder.policy.fence.as_ref().filter(|fence| fence.over_usec.is_some());
        let fenced_after_usec = fence.map(|fence| fence.after_usec);
        ExitRecord { oom, log_lost_bytes: self.log.lost, fenced_after_usec, ..exit }
    }

    /// Somebody else may have been quicker, and what has its name now is not ours.
    fn release(&mut self) -> Result<(), Error> {
        let Some((mut entry, _)) = self.folder.entry(&self.root)? else { return Ok(()) };
        match entry.lock_within(FAREWELL) {
            Err(Error::Unknown(_)) => return Ok(()),
            answer => answer?,
        }
        match entry.record()? {
            Some(now) if now.created == self.record.created => release::release(entry, Some(&now)),
            _ => Ok(()),
        }
    }

    /// Everybody gets the last word, if they take it soon.
    fn part(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        while !self.clients.iter().all(Client::has_all) && Instant::now() < deadline {
            let mut fds: Vec<_> =
                self.clients.iter().filter(|c| !c.has_all()).map(waiting).collect();
            let _ = poll(&mut fds, PollTimeout::from(100_u16));
            drop(fds);
            self.clients.iter_mut().for_each(Client::flush);
        }
    }
}

fn waiting(client: &Client) -> PollFd<'_> {
    PollFd::new(client.handle(), PollFlags::POLLOUT)
}

/// In as little memory as can be, once there is nothing to do for a while.
fn wait(fds: &mut [PollFd<'_>]) -> nix::Result<i32> {
    match poll(fds, PollTimeout::from(REST)) {
        Ok(0) => {
            rest::forget();
            poll(fds, PollTimeout::NONE)
        }
        answer => answer,
    }
}

/// What poll(2) found.
struct Ready {
    ended: bool,
    signals: bool,
    listener: bool,
    oom: bool,
    fence: bool,
    /// By their numbers.
    clients: Vec<u64>,
}

impl First {
    /// Somebody else's child: its status is in /proc until that one has waited for it, and in the pidfd after that.
    fn told_end(&self) -> Option<Ended> {
        let status = || self.identity.status_of_zombie().map(pidfd::end_of);
        let told = || self.handle.as_ref().and_then(pidfd::told_end);
        status().or_else(told)
    }

    fn ran(&self) -> Duration {
        since_boot().saturating_sub(self.born)
    }
}

/// A descriptor to read from.
struct Reading<'a>(&'a OwnedFd);

impl io::Read for Reading<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0, bytes)?)
    }
}

/// How a container shall be kept.
pub(crate) fn policy(id: &str, log: keep::Log) -> Result<Policy, CallError> {
    Ok(Policy {
        version: VERSION,
        id: id.to_owned(),
        boot_id: boot_id()?,
        created: None,
        log,
        stdin: false,
        hold: false,
        fence: None,
    })
}
