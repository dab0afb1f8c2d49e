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
    /// What is there, and, until `over` is closed, what comes.
    pub fn read(self, over: Option<mpsc::Receiver<()>>) -> Flow<v1::LogEntry> {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let entry = |entry| sender.blocking_send(Ok(entry)).is_ok();
            if let Err(e) = self.read_all(over, entry) {
                let words = format!("read {}: {e}", self.path.display());
                let _ = sender.blocking_send(Err(Failure::new(Kind::Internal, words)));
            }
        });
        ReceiverStream::new(receiver).boxed()
    }

    fn read_all(
        &self,
        mut over: Option<mpsc::Receiver<()>>,
        mut take: impl FnMut(v1::LogEntry) -> bool,
    ) -> io::Result<()> {
        let mut reader = Reader::oldest(&self.path)?;
        let mut last = VecDeque::new();
        let most = self.tail.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        while let Some(line) = reader.next()? {
            let Some(entry) = self.entry(&line) else { continue };
            match most {
                None if !take(entry.clone()) => return Ok(()),
                None => {}
                Some(most) => {
                    last.push_back(entry);
                    if last.len() > most {
                        last.pop_front();
                    }
                }
            }
        }
        if !last.into_iter().all(&mut take) {
            return Ok(());
        }
        let Some(over) = &mut over else { return self.rest(&mut reader, &mut take) };
        loop {
            // Looked at before: what is written before the end is there after it.
            let ended = matches!(over.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
            while let Some(line) = reader.next()? {
                if let Some(entry) = self.entry(&line)
                    && !take(entry)
                {
                    return Ok(());
                }
            }
            if ended {
                return self.rest(&mut reader, &mut take);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A last line without an end.
    fn rest(
        &self,
        reader: &mut Reader,
        take: &mut impl FnMut(v1::LogEntry) -> bool,
    ) -> io::Result<()> {
        let open = std::mem::take(&mut reader.open);
        if !self.json && !open.is_empty() {
            let _ = self.entry(&open).is_none_or(take);
        }
        Ok(())
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

/// Lines of files that rotate while they are read.
struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    inode: u64,
    /// What has no end of line yet.
    open: Vec<u8>,
}

impl Reader {
    fn oldest(path: &Path) -> io::Result<Self> {
        let oldest = (0..MOST_FILES).map(|n| rotated(path, n)).take_while(|p| p.exists()).last();
        let mut reader = Self { path: path.to_owned(), file: None, inode: 0, open: Vec::new() };
        reader.open(oldest)?;
        Ok(reader)
    }

    fn open(&mut self, path: Option<PathBuf>) -> io::Result<()> {
        let Some(path) = path else { return Ok(()) };
        match File::open(path) {
            Ok(file) => {
                self.inode = file.metadata()?.ino();
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
            let Some(file) = &mut self.file else { return Ok(None) };
            file.read_until(b'\n', &mut self.open)?;
            if self.open.ends_with(b"\n") {
                return Ok(Some(std::mem::take(&mut self.open)));
            }
            let Some(newer) = self.newer()? else { return Ok(None) };
            // It may have got more between the two looks.
            let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
            file.read_until(b'\n', &mut self.open)?;
            if self.open.ends_with(b"\n") {
                return Ok(Some(std::mem::take(&mut self.open)));
            }
            self.open(Some(newer))?;
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
}
