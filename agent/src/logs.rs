//! What a task has written, from the files of its keepers.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use hafen_protocol::v1;
use hafen_spec::keep::rotated;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::{Failure, Kind};
use crate::node::Flow;
use crate::time;

/// Between two looks for more.
const PAUSE: Duration = Duration::from_millis(50);
const WAITING: usize = 64;
/// Lines that are read at a time.
const TOGETHER: usize = 256;
/// Files that may have been there: of a policy that was changed as well.
const MOST_FILES: u32 = 1000;

/// What is wanted of a log.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub path: PathBuf,
    pub json: bool,
    pub tail: Option<u64>,
    pub since: Option<SystemTime>,
}

/// A line as a keeper writes it.
#[derive(Deserialize)]
struct Line {
    time: String,
    stream: String,
    log: Option<String>,
    base64: Option<String>,
}

/// Which of the two formats a log has, where nobody knows any more. One without a line is read as either.
pub(crate) fn is_json(path: &Path) -> bool {
    let first = Reader::oldest(path).and_then(|mut reader| reader.next());
    first.ok().flatten().is_none_or(|line| serde_json::from_slice::<Line>(&line).is_ok())
}

impl Wanted {
    /// What is there, and, until `over` is closed, what comes. Who waits, for more or for a reader, holds no thread.
    pub fn read(self, over: Option<mpsc::Receiver<()>>) -> Flow<v1::LogEntry> {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let path = self.path.clone();
            if let Err(e) = self.tell(over, &sender).await {
                let words = format!("read {}: {e}", path.display());
                let _ = sender.send(Err(Failure::new(Kind::Internal, words))).await;
            }
        });
        ReceiverStream::new(receiver).boxed()
    }

    async fn tell(self, mut over: Option<mpsc::Receiver<()>>, to: &Sender) -> io::Result<()> {
        let (mut reading, last) = aside(move || Reading::begin(self)).await?;
        if !send(to, last).await {
            return Ok(());
        }
        loop {
            // Looked at before: what is written before the end is there after it.
            let ended = over.as_mut().is_none_or(|over| {
                matches!(over.try_recv(), Err(mpsc::error::TryRecvError::Disconnected))
            });
            loop {
                let (next, entries, more) = aside(move || reading.some()).await?;
                reading = next;
                if !send(to, entries).await {
                    return Ok(());
                }
                if !more {
                    break;
                }
            }
            let Some(over) = over.as_mut().filter(|_| !ended) else {
                send(to, reading.rest()).await;
                return Ok(());
            };
            // Each of these may be asked again (tokio, "Cancel safety").
            tokio::select! {
                () = reading.grows() => {}
                _ = over.recv() => {}
                () = to.closed() => return Ok(()),
            }
        }
    }

    fn entry(&self, line: &[u8]) -> Option<v1::LogEntry> {
        if !self.json {
            let stream = v1::Stream::Stdout.into();
            return Some(v1::LogEntry { time: None, stream, line: line.to_vec() });
        }
        // What a crash has cut is no line.
        let line: Line = serde_json::from_slice(line).ok()?;
        let at = humantime::parse_rfc3339(&line.time).ok()?;
        if self.since.is_some_and(|since| at < since) {
            return None;
        }
        let stream = if line.stream == "stdout" { v1::Stream::Stdout } else { v1::Stream::Stderr };
        let bytes = match (line.log, line.base64) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).ok()?,
            (None, None) => return None,
        };
        Some(v1::LogEntry { time: Some(time::stamp(at)), stream: stream.into(), line: bytes })
    }
}

type Sender = mpsc::Sender<Result<v1::LogEntry, Failure>>;

/// False: nobody reads any more.
async fn send(to: &Sender, entries: impl IntoIterator<Item = v1::LogEntry>) -> bool {
    for entry in entries {
        if to.send(Ok(entry)).await.is_err() {
            return false;
        }
    }
    true
}

/// On a thread where files may keep it waiting.
async fn aside<T: Send + 'static>(
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(act).await.map_err(io::Error::other)?
}

/// Somewhere in a log.
struct Reading {
    wanted: Wanted,
    reader: Reader,
}

impl Reading {
    /// At the beginning; or at the end, with the last lines.
    fn begin(wanted: Wanted) -> io::Result<(Self, VecDeque<v1::LogEntry>)> {
        let mut reading = Self { reader: Reader::oldest(&wanted.path)?, wanted };
        let mut last = VecDeque::new();
        let Some(tail) = reading.wanted.tail else { return Ok((reading, last)) };
        let most = usize::try_from(tail).unwrap_or(usize::MAX);
        while let Some(line) = reading.reader.next()? {
            last.extend(reading.wanted.entry(&line));
            if last.len() > most {
                last.pop_front();
            }
        }
        Ok((reading, last))
    }

    /// What some lines say, and whether there are more of them now.
    fn some(mut self) -> io::Result<(Self, Vec<v1::LogEntry>, bool)> {
        let mut entries = Vec::new();
        for _ in 0..TOGETHER {
            let Some(line) = self.reader.next()? else { return Ok((self, entries, false)) };
            entries.extend(self.wanted.entry(&line));
        }
        Ok((self, entries, true))
    }

    /// A last line without an end.
    fn rest(self) -> Option<v1::LogEntry> {
        let open = self.reader.open;
        if self.wanted.json || open.is_empty() {
            return None;
        }
        self.wanted.entry(&open)
    }

    /// Until there is more. An instance of inotify(7) for each would be too many for a user, and a look costs one call.
    async fn grows(&self) {
        while !self.reader.has_grown() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Lines of files that rotate while they are read.
struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    inode: u64,
    /// Of the file, that were read.
    bytes: u64,
    /// What has no end of line yet.
    open: Vec<u8>,
}

impl Reader {
    fn oldest(path: &Path) -> io::Result<Self> {
        let oldest = (0..MOST_FILES).map(|n| rotated(path, n)).take_while(|p| p.exists()).last();
        let mut reader =
            Self { path: path.to_owned(), file: None, inode: 0, bytes: 0, open: Vec::new() };
        reader.open(oldest)?;
        Ok(reader)
    }

    fn open(&mut self, path: Option<PathBuf>) -> io::Result<()> {
        let Some(path) = path else { return Ok(()) };
        match File::open(path) {
            Ok(file) => {
                (self.inode, self.bytes) = (file.metadata()?.ino(), 0);
                self.file = Some(BufReader::new(file));
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The next whole line; `None`: there is none yet.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.file.is_none() {
                self.open(Some(self.path.clone()))?;
            }
            if let Some(line) = self.line()? {
                return Ok(Some(line));
            }
            let Some(newer) = self.newer()? else { return Ok(None) };
            // It may have got more between the two looks.
            if let Some(line) = self.line()? {
                return Ok(Some(line));
            }
            self.open(Some(newer))?;
        }
    }

    /// The next whole one of the file that is open.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        self.bytes += file.read_until(b'\n', &mut self.open)? as u64;
        Ok(self.open.ends_with(b"\n").then(|| std::mem::take(&mut self.open)))
    }

    /// Since the last look for a line: is there another file in its place, or more in this one? An error is for who reads.
    fn has_grown(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(now) => self.file.is_none() || now.ino() != self.inode || now.len() > self.bytes,
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        }
    }

    /// The file after the one that is read.
    fn newer(&self) -> io::Result<Option<PathBuf>> {
        for number in 0..MOST_FILES {
            let path = rotated(&self.path, number);
            match std::fs::metadata(&path) {
                Ok(meta) if meta.ino() == self.inode => {
                    return Ok((number > 0).then(|| rotated(&self.path, number - 1)));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    // It is gone: what there is, is newer.
                    return Ok((number > 0).then(|| rotated(&self.path, number - 1)));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(folder: &Path, tail: Option<u64>) -> Wanted {
        Wanted { path: folder.join("log"), json: false, tail, since: None }
    }

    async fn text(flow: Flow<v1::LogEntry>) -> String {
        let all: Vec<_> = flow.map(|entry| entry.unwrap().line).collect().await;
        String::from_utf8(all.concat()).unwrap()
    }

    #[tokio::test]
    async fn rotated_files_are_one_log() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("log.2", "1\n2\n"), ("log.1", "3\n"), ("log", "4\nopen")] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        assert_eq!(text(wanted(folder.path(), None).read(None)).await, "1\n2\n3\n4\nopen");
        assert_eq!(text(wanted(folder.path(), Some(2)).read(None)).await, "3\n4\nopen");
    }

    #[tokio::test]
    async fn who_follows_misses_nothing_when_files_rotate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "a\n").unwrap();
        let (over, ended) = mpsc::channel(1);
        let reading = tokio::spawn(text(wanted(folder.path(), None).read(Some(ended))));
        tokio::time::sleep(PAUSE * 2).await;
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        std::fs::write(&path, "b\n").unwrap();
        tokio::time::sleep(PAUSE * 2).await;
        std::fs::write(&path, "b\nc\n").unwrap();
        drop(over);
        assert_eq!(reading.await.unwrap(), "a\nb\nc\n");
    }

    #[test]
    fn who_follows_or_does_not_read_holds_no_thread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let many = "line\n".repeat(WAITING * 4);
        std::fs::write(&path, &many).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let idle = wanted(folder.path(), None).read(None);
            let all = (0..100).map(|_| {
                let (over, ended) = mpsc::channel(1);
                let wanted = wanted(folder.path(), Some(1));
                (over, tokio::spawn(text(wanted.read(Some(ended)))))
            });
            let all: Vec<_> = all.collect();
            let (_over, ended) = mpsc::channel::<()>(1);
            let stalled: Vec<_> = (0..4).map(|_| wanted(folder.path(), None).read(None)).collect();
            let gone = wanted(folder.path(), Some(0)).read(Some(ended));
            tokio::time::sleep(PAUSE * 4).await;
            tokio::task::spawn_blocking(|| {}).await.unwrap();
            drop((gone, stalled));
            std::fs::write(&path, format!("{many}last\n")).unwrap();
            tokio::time::sleep(PAUSE * 4).await;
            for (over, text) in all {
                drop(over);
                assert_eq!(text.await.unwrap(), "line\nlast\n");
            }
            assert_eq!(text(idle).await, format!("{many}last\n"), "who reads late misses nothing");
        });
    }
}
