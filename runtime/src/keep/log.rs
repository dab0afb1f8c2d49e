//! What a program writes, in files that rotate.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hafen_spec::keep::{self, LogFormat, rotated};
use hafen_sys::file::replace;
use hafen_sys::{CallError, Context};
use memchr::{memchr, memrchr};
use nix::fcntl::{SpliceFFlags, splice};

/// A line longer than this is told in pieces, of which only the last has an end.
const LONGEST_LINE: usize = 16 << 10;
/// How much is moved at once without being looked at.
const MOVED: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    policy: keep::Log,
    file: Option<File>,
    size: u64,
    /// Bytes of the program that are in no file.
    pub(crate) lost: u64,
    /// Of them, how many the file itself tells of.
    told: u64,
    /// What has no end of line yet, of both streams.
    open: [Vec<u8>; 2],
    /// The folder where that is held for a keeper after us, and whether something is held there.
    folder: PathBuf,
    held: [bool; 2],
}

/// Can there be a log at all? To be asked before there is a container.
///
/// # Errors
/// Names the file.
pub(crate) fn check(policy: &keep::Log) -> Result<(), CallError> {
    let Some(path) = &policy.path else { return Ok(()) };
    newest(path, false).map(drop).call(|| format!("open log {}", path.display()))
}

impl Log {
    /// Go on with the file that is there, and with what another keeper has left in `folder`.
    ///
    /// # Errors
    /// Names the file.
    pub(crate) fn open(policy: &keep::Log, folder: &Path) -> Result<Self, CallError> {
        let mut log = Self {
            policy: policy.clone(),
            file: None,
            size: 0,
            lost: 0,
            told: 0,
            open: [Vec::new(), Vec::new()],
            folder: folder.to_owned(),
            held: [false; 2],
        };
        if let Some(path) = &policy.path {
            let file = newest(path, false).call(|| format!("open log {}", path.display()))?;
            log.size = file.metadata().call(|| format!("stat {}", path.display()))?.len();
            log.file = Some(file);
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Ok(bytes) = fs::read(log.held_in(stream)) {
                    (log.open[stream as usize], log.held[stream as usize]) = (bytes, true);
                }
            }
        }
        Ok(log)
    }

    /// A keeper that died while it wrote has left a part of a line; what it had not written as a whole is still where it
    /// came from.
    pub(crate) fn cut_open_line(&mut self) {
        /// Of a line: a byte becomes six at most, and there is some more around them.
        const LONGEST: u64 = 7 * LONGEST_LINE as u64;
        if self.policy.format != LogFormat::Json || self.size == 0 {
            return;
        }
        let Some(tail) = self.tail(LONGEST) else { return };
        let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let left = (tail.len() - whole) as u64;
        if left > 0 && left < LONGEST {
            self.size -= left;
            self.take_back(0);
        }
    }

    /// One that died while it rotated has left a gap in the numbers, where readers would stop.
    pub(crate) fn close_gaps(&self) {
        let Some(path) = &self.policy.path else { return };
        let _ = fs::remove_file(fresh(path));
        let there = (1..=self.policy.max_files).filter(|n| rotated(path, *n).exists());
        for (wanted, number) in (1..).zip(there) {
            if wanted != number {
                // Where it cannot be, they are only farther away.
                let _ = fs::rename(rotated(path, number), rotated(path, wanted));
            }
        }
    }

    /// The last bytes of the file.
    pub(crate) fn tail(&self, most: u64) -> Option<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let file = File::open(self.policy.path.as_ref()?).ok()?;
        let from = self.size.saturating_sub(most);
        let mut bytes = vec![0; usize::try_from(self.size - from).ok()?];
        file.read_exact_at(&mut bytes, from).ok()?;
        Some(bytes)
    }

    fn held_in(&self, stream: Stream) -> PathBuf {
        self.folder.join(format!("held-{}", stream.name()))
    }

    /// Before the bytes are taken out of their fifo, which holds them until then.
    fn hold(&mut self, stream: Stream, changed: bool) {
        let (open, path) = (&self.open[stream as usize], self.held_in(stream));
        let held = &mut self.held[stream as usize];
        if open.is_empty() && *held {
            *held = fs::remove_file(path).is_err();
        } else if !open.is_empty() && changed {
            // Where it cannot be it is in memory only, as the rest of it would be.
            *held |= replace(&path, open, false).is_ok();
        }
    }

    /// Can bytes go to the file without being looked at?
    pub(crate) fn takes_bytes(&self) -> bool {
        self.policy.format == LogFormat::Plain && self.file.is_some()
    }

    /// Move what is there from a fifo to the file, within the kernel (splice(2)). The answer is how much; 0 is the end.
    ///
    /// # Errors
    /// EAGAIN: nothing is there. Others: the file does not take it.
    pub(crate) fn move_from(&mut self, fifo: BorrowedFd<'_>) -> io::Result<usize> {
        self.tell_of_loss();
        self.rotate_before(1);
        let Some(file) = &self.file else { return Err(io::ErrorKind::Unsupported.into()) };
        let left = self.policy.max_bytes.saturating_sub(self.size).max(1);
        let length = usize::try_from(left).unwrap_or(MOVED).min(MOVED);
        let moved = splice(fifo, None, file, None, length, SpliceFFlags::SPLICE_F_NONBLOCK)?;
        self.size += moved as u64;
        Ok(moved)
    }

    /// Write down what a program wrote. It never fails: a program does not stop because a disk is full, and what is lost
    /// is counted.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if self.policy.path.is_none() {
            return;
        }
        match self.policy.format {
            LogFormat::Plain => self.append(bytes, bytes.len()),
            LogFormat::Json => self.write_lines(stream, bytes),
        }
    }

    /// Of bytes after which there are more: so many that no line has to be held for its end.
    pub(crate) fn whole(&self, bytes: &[u8]) -> usize {
        let lines = || memrchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        if self.policy.format == LogFormat::Json { lines() } else { bytes.len() }
    }

    fn write_lines(&mut self, stream: Stream, bytes: &[u8]) {
        let mut open = std::mem::take(&mut self.open[stream as usize]);
        let head = head(stream.name());
        let (mut text, mut raw) = (Vec::new(), 0);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LONGEST_LINE - open.len();
            let window = &rest[..rest.len().min(room)];
            let end = memchr(b'\n', window).map(|at| at + 1);
            let (piece, after) = rest.split_at(end.unwrap_or(window.len()));
            rest = after;
            if end.is_none() && piece.len() < room {
                open.extend_from_slice(piece);
                break;
            }
            let line = if open.is_empty() {
                piece
            } else {
                open.extend_from_slice(piece);
                &open
            };
            let before = text.len();
            put_line(&mut text, &head, line);
            if before > 0 && self.size + text.len() as u64 > self.policy.max_bytes {
                // It is the first of the next file.
                let next = text.split_off(before);
                self.append(&text, raw);
                (text, raw) = (next, 0);
            }
            raw += line.len();
            open.clear();
        }
        self.append(&text, raw);
        self.open[stream as usize] = open;
        self.hold(stream, !bytes.is_empty());
    }

    /// What has no end of line will not get one any more.
    pub(crate) fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = std::mem::take(&mut self.open[stream as usize]);
            if !open.is_empty() {
                let mut text = Vec::new();
                put_line(&mut text, &head(stream.name()), &open);
                self.append(&text, open.len());
            }
            self.hold(stream, false);
        }
        self.tell_of_loss();
    }

    fn append(&mut self, text: &[u8], raw: usize) {
        if text.is_empty() {
            return;
        }
        self.tell_of_loss();
        self.put(text, raw);
    }

    /// Is it written?
    fn put(&mut self, text: &[u8], raw: usize) -> bool {
        self.rotate_before(text.len());
        let written = self
            .file
            .as_mut()
            .map_or(Err(io::ErrorKind::NotFound.into()), |file| file.write_all(text));
        match written {
            Ok(()) => self.size += text.len() as u64,
            Err(_) => self.take_back(raw),
        }
        written.is_ok()
    }

    /// A line that is there in part is none.
    fn take_back(&mut self, raw: usize) {
        use std::io::Seek;
        self.lost += raw as u64;
        if let Some(file) = &mut self.file {
            let _ = file.set_len(self.size);
            let _ = file.seek(io::SeekFrom::Start(self.size));
        }
    }

    fn tell_of_loss(&mut self) {
        let lost = self.lost - self.told;
        if lost == 0 || self.policy.path.is_none() {
            return;
        }
        let words = format!("{lost} bytes could not be written here\n");
        let mut text = Vec::new();
        match self.policy.format {
            LogFormat::Json => put_line(&mut text, &head("keeper"), words.as_bytes()),
            LogFormat::Plain => {
                text = format!("[keeper: {words}").replace('\n', "]\n").into_bytes();
            }
        }
        if self.put(&text, 0) {
            self.told = self.lost;
        }
    }

    fn rotate_before(&mut self, more: usize) {
        let full = self.size > 0 && self.size + more as u64 > self.policy.max_bytes;
        let Some(path) = self.policy.path.clone().filter(|_| full) else { return };
        let file = self.rotate(&path);
        // Where it cannot be, the old one goes on.
        if let Ok(file) = file {
            (self.file, self.size) = (Some(file), 0);
        }
    }

    /// The new file first: where there can be none, all old ones stay what they are.
    fn rotate(&self, path: &Path) -> io::Result<File> {
        let draft = fresh(path);
        let file = newest(&draft, true)?;
        for number in (1..self.policy.max_files.max(1)).rev() {
            match fs::rename(rotated(path, number - 1), rotated(path, number)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        fs::rename(draft, path)?;
        Ok(file)
    }
}

fn newest(path: &Path, empty: bool) -> io::Result<File> {
    use std::io::Seek;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(empty).mode(0o640);
    let mut file = options.open(path)?;
    // Not O_APPEND, which splice(2) refuses.
    file.seek(io::SeekFrom::End(0))?;
    Ok(file)
}

/// One that has no place yet.
fn fresh(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// What all lines of one moment begin with. Nothing in it needs an escape.
fn head(stream: &str) -> String {
    let time = humantime::format_rfc3339_nanos(SystemTime::now());
    format!(r#"{{"time":"{time}","stream":"{stream}","#)
}

fn put_line(text: &mut Vec<u8>, head: &str, line: &[u8]) {
    text.extend_from_slice(head.as_bytes());
    match std::str::from_utf8(line) {
        Ok(log) => {
            text.extend_from_slice(br#""log":"#);
            // Into memory: nothing can fail.
            let _ = serde_json::to_writer(&mut *text, log);
        }
        Err(_) => {
            text.extend_from_slice(br#""base64":""#);
            text.extend_from_slice(STANDARD.encode(line).as_bytes());
            text.push(b'"');
        }
    }
    text.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path, format: LogFormat, max_bytes: u64) -> Log {
        let path = Some(folder.join("log"));
        Log::open(&keep::Log { path, format, max_bytes, max_files: 3 }, folder).unwrap()
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_come_whole_and_bytes_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), LogFormat::Json, 1 << 20);
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"bad \xff\n");
        log.write(Stream::Stdout, b"o\nopen");
        log.finish();
        let found = lines(&folder.path().join("log"));
        let text: Vec<_> = found.iter().map(|l| (&l["stream"], &l["log"], &l["base64"])).collect();
        let wanted = serde_json::json!([
            ["stdout", "one\n", null],
            ["stderr", null, "YmFkIP8K"],
            ["stdout", "two\n", null],
            ["stdout", "open", null]
        ]);
        assert_eq!(serde_json::to_value(text).unwrap(), wanted);
    }

    #[test]
    fn of_much_only_whole_lines_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let json = log(folder.path(), LogFormat::Json, 1 << 20);
        assert_eq!([json.whole(b"one\ntw"), json.whole(b"one\n"), json.whole(b"one")], [4, 4, 3]);
        let plain = log(folder.path(), LogFormat::Plain, 1 << 20);
        assert_eq!(plain.whole(b"one\ntw"), 6);
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), LogFormat::Json, 1 << 20);
        log.write(Stream::Stdout, &vec![b'x'; LONGEST_LINE + 5]);
        log.write(Stream::Stdout, b"\n");
        let found = lines(&folder.path().join("log"));
        let lengths: Vec<_> = found.iter().map(|l| l["log"].as_str().unwrap().len()).collect();
        assert_eq!(lengths, [LONGEST_LINE, 6]);
    }

    #[test]
    fn old_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), LogFormat::Plain, 10);
        for word in ["aaaaaaa\n", "bbbbbbb\n", "ccccccc\n", "ddddddd\n"] {
            log.write(Stream::Stdout, word.as_bytes());
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("log").as_deref(), Some("ddddddd\n"));
        assert_eq!(read("log.1").as_deref(), Some("ccccccc\n"));
        assert_eq!(read("log.2").as_deref(), Some("bbbbbbb\n"));
        assert_eq!(read("log.3"), None);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), LogFormat::Json, 1 << 20);
        log.write(Stream::Stdout, b"before\n");
        log.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.write(Stream::Stdout, b"lost\n");
        log.write(Stream::Stdout, b"more\n");
        assert_eq!(log.lost, 10);
        log.file = Some(newest(&folder.path().join("log"), false).unwrap());
        log.write(Stream::Stdout, b"after\n");
        let found = lines(&folder.path().join("log"));
        let text: Vec<_> = found.iter().map(|l| l["log"].as_str().unwrap()).collect();
        assert_eq!(text, ["before\n", "10 bytes could not be written here\n", "after\n"]);
    }
    #[test]
    fn an_open_line_outlives_its_keeper() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut first = log(folder.path(), LogFormat::Json, 1 << 20);
        first.write(Stream::Stderr, b"whole\nbegun");
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"time\":\"2".to_vec()].concat()).unwrap();
        let mut second = log(folder.path(), LogFormat::Json, 1 << 20);
        second.cut_open_line();
        second.write(Stream::Stderr, b", ended\n");
        let text: Vec<_> = lines(&path).iter().map(|l| l["log"].clone()).collect();
        assert_eq!(text, ["whole\n", "begun, ended\n"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is held any more");
    }

    #[test]
    fn where_there_can_be_no_new_file_the_old_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), LogFormat::Plain, 4);
        log.write(Stream::Stdout, b"one\n");
        fs::create_dir(folder.path().join("log.new")).unwrap();
        log.write(Stream::Stdout, b"two\n");
        assert_eq!(fs::read(folder.path().join("log")).unwrap(), b"one\ntwo\n");
        fs::remove_dir(folder.path().join("log.new")).unwrap();
        log.write(Stream::Stdout, b"three\n");
        assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"one\ntwo\n");
    }
    #[test]
    fn a_gap_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(folder.path(), LogFormat::Plain, 1 << 20);
        for name in ["log.2", "log.3", "log.new"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        log.close_gaps();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!([read("log.1"), read("log.2")].map(Option::unwrap), ["log.2", "log.3"]);
        assert_eq!([read("log.3"), read("log.new")], [None, None]);
    }
}
