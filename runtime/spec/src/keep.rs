//! What a keeper writes down, and what it says on its socket.
//!
//! A keeper is the parent of one container. Everything of it is in one folder:
//!
//! | file | written | holds |
//! |---|---|---|
//! | `keep.json` | before anything else | [`Policy`]: what a keeper that takes over has to know |
//! | `lock` | | locked (flock) for as long as there is a keeper |
//! | `stdin`, `stdout`, `stderr` | before the launch | fifos to and from the program; they hold what a dead keeper has not read |
//! | `held-stdout`, `held-stderr` | with a log in lines | the beginning of a line that has no end yet |
//! | `room` | before the launch | blanks: 32 KiB of a disk that its output may fill, for the record of the end, which becomes `exit.json` |
//! | `socket` | when the container runs | listens |
//! | `exit.json` | after the end, before anybody is told | [`ExitRecord`], on the disk |
//!
//! On the socket go frames: a byte that says what it is ([`Frame`]), four bytes of length, the lowest first, and the
//! content. The keeper begins with a [`Told::Status`]; whoever has asked for nothing is told of the end all the same.
//! [`Told::Released`] is the last that is heard of it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::Claim;

/// Of the files and of the frames.
pub const VERSION: u32 = 1;
/// The most bytes of one frame.
pub const LONGEST: usize = 1 << 20;
/// A frame's first byte and its length.
pub const HEAD: usize = 5;

pub const POLICY: &str = "keep.json";
pub const LOCK: &str = "lock";
pub const SOCKET: &str = "socket";
pub const EXIT: &str = "exit.json";
pub const ROOM: &str = "room";

/// How a container ended, if that is written down in the files that `read` reads by their names.
///
/// # Errors
/// There is a record, and it is none.
pub fn end(read: impl Fn(&str) -> io::Result<Vec<u8>>) -> io::Result<Option<ExitRecord>> {
    let there = |name| match read(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    };
    if let Some(text) = there(EXIT)? {
        return Ok(Some(serde_json::from_slice(&text)?));
    }
    // It gets its name after everybody was told.
    if let Some(text) = there(ROOM)? {
        return Ok(serde_json::from_slice(&text).ok());
    }
    // Which may have happened between the two looks.
    Ok(there(EXIT)?.map(|text| serde_json::from_slice(&text)).transpose()?)
}

/// How a container is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub version: u32,
    /// Of the container.
    pub id: String,
    pub boot_id: String,
    /// When it was made, as its own record says. `None`: the keeper died before.
    #[serde(default)]
    pub created: Option<String>,
    pub log: Log,
    /// Its stdin stays open.
    pub stdin: bool,
    /// What it writes waits until somebody has attached.
    #[serde(default)]
    pub hold: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

/// When a container is stopped that nobody directs any more. Moments are microseconds of CLOCK_BOOTTIME, which counts on
/// while the machine sleeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fence {
    /// Holds a [`Heard`], and is replaced as a whole with each that is later.
    pub file: PathBuf,
    /// So long after the last that was heard, `signal` asks the container to end.
    pub after_usec: u64,
    pub signal: i32,
    /// After that it is killed.
    pub grace_usec: u64,
    /// The last that is known. What is earlier is not believed.
    pub heard_usec: u64,
    /// The time was up then: who is heard from now on is heard too late.
    #[serde(default)]
    pub over_usec: Option<u64>,
}

/// When whoever directs the machine was heard last: in a file, as a line with the boot's name and the nanoseconds of
/// CLOCK_BOOTTIME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub boot_id: String,
    pub at: Duration,
}

impl Heard {
    /// `None`: it is no such line.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (boot_id, nanos) = text.trim_end().split_once(' ')?;
        let at = Duration::from_nanos(nanos.parse().ok()?);
        Some(Self { boot_id: boot_id.to_owned(), at })
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.boot_id, self.at.as_nanos())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// The newest file; older ones have `.1`, `.2` and so on at the end. Without one nothing is kept.
    pub path: Option<PathBuf>,
    pub format: LogFormat,
    /// Of one file.
    pub max_bytes: u64,
    pub max_files: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// An object for each line: `time`, `stream`, and `log`, the line with its end. Where the line is not UTF-8, `base64`
    /// holds its bytes.
    Json,
    /// The bytes as they come, both streams in one file.
    Plain,
}

/// A log file by its age: 0 is the newest.
#[must_use]
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// How a container ended, with the kernel's own numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub id: String,
    pub pid: i32,
    /// Neither this nor a signal: nobody who may know was there when it ended.
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    /// RFC 3339.
    pub started_at: String,
    pub wall_usec: u64,
    pub usage: Numbers,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<Oom>,
    /// Bytes of the program that could not be written to its log.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub log_lost_bytes: u64,
    /// Its keeper stopped it, because whoever directs the machine was not heard for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_after_usec: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like that")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// Of the first process and all it waited for.
    pub user_usec: u64,
    pub system_usec: u64,
    pub max_rss_bytes: u64,
    /// Of the whole cgroup.
    #[serde(flatten)]
    pub cgroup: Usage,
}

/// The kernel's own numbers about a container. `None`: this kernel, or this kind of hierarchy, has no such number, or
/// there is no such limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds of CPU time of all its processes, also of those that nobody waited for.
    pub cpu_usec: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// The most it held at one time, page cache included; cgroup v2 counts this from Linux 5.19 on.
    pub memory_peak_bytes: Option<u64>,
    /// How often it ran into its limit and reclaim did not help; cgroup v1 counts the kills only.
    pub oom_events: Option<u64>,
    /// Processes that the OOM killer ended.
    pub oom_kills: Option<u64>,
    /// Periods (`cpu.max`) in which it ran at all.
    pub cpu_periods: Option<u64>,
    /// Those of them in which it had used up its quota.
    pub cpu_throttled_periods: Option<u64>,
    /// Microseconds that its processes, each counted, were kept waiting for that.
    pub cpu_throttled_usec: Option<u64>,
    pub pids_limit: Option<u64>,
    /// The most processes and threads at one time; from Linux 6.1 on.
    pub pids_peak: Option<u64>,
    /// How often a fork failed because of the limit.
    pub pids_limit_hits: Option<u64>,
}

/// The process that the OOM killer ended last, as the kernel's log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Oom {
    pub pid: i32,
    pub process: String,
    /// Resident, in bytes.
    pub resident: u64,
}

/// The first byte of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A [`Request`] or a [`Told`], as JSON.
    Word = 0,
    Stdout = 1,
    Stderr = 2,
    Stdin = 3,
}

impl Frame {
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Word,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Stdin,
            _ => return None,
        })
    }

    /// What goes before the content.
    ///
    /// # Panics
    /// Where the content is longer than [`LONGEST`].
    #[must_use]
    pub fn head(self, length: usize) -> [u8; HEAD] {
        assert!(length <= LONGEST, "a frame of {length} bytes");
        let [a, b, c, d, ..] = length.to_le_bytes();
        [self as u8, a, b, c, d]
    }

    /// The frame of a head, and the length of its content.
    #[must_use]
    pub fn read_head(head: [u8; HEAD]) -> Option<(Self, usize)> {
        let [kind, a, b, c, d] = head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
        Some((Self::of(kind)?, length)).filter(|_| length <= LONGEST)
    }
}

/// What a keeper is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub enum Request {
    /// What the program writes from now on, and its stdin.
    #[serde(rename_all = "camelCase")]
    Attach {
        /// The last bytes first.
        replay: bool,
        /// The program waits where nobody takes what it writes; otherwise it goes on, and bytes are left out.
        lossless: bool,
    },
    /// No more will come for stdin.
    EndInput,
    Resize {
        rows: u16,
        columns: u16,
    },
    /// To the first process, or to all.
    Signal {
        signal: i32,
        all: bool,
    },
    /// End all processes.
    Kill,
    /// Run another program. Its stdin, stdout and stderr come with the frame (SCM_RIGHTS); where one is missing, it is
    /// `/dev/null`.
    #[serde(rename_all = "camelCase")]
    Exec {
        /// For the answers.
        number: u64,
        /// A `process` object of the OCI runtime spec; only `args` must be there, the rest is the container's own.
        process: serde_json::Value,
        /// With a terminal: the socket that its master is sent to.
        console: Option<PathBuf>,
    },
    /// A signal to a program that was run so.
    SignalExec {
        number: u64,
        signal: i32,
    },
}

/// What a keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "told")]
pub enum Told {
    Status(Box<Status>),
    /// The OOM killer has acted.
    #[serde(rename_all = "camelCase")]
    Oom {
        kills: u64,
        last: Option<Oom>,
    },
    /// So many bytes were left out, because they were not taken.
    #[serde(rename_all = "camelCase")]
    Lagged {
        bytes: u64,
    },
    /// It has ended; the record is on the disk.
    Exited(Box<ExitRecord>),
    /// Nothing is left of the container but its keeper's folder.
    Released {
        error: Option<String>,
    },
    /// A request that could not be carried out.
    Failed {
        error: String,
    },
    ExecStarted {
        number: u64,
        pid: i32,
    },
    #[serde(rename_all = "camelCase")]
    ExecEnded {
        number: u64,
        code: Option<i32>,
        signal: Option<i32>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: u32,
    pub id: String,
    /// Of the first process.
    pub pid: i32,
    pub started_at: String,
    /// For how long it has run.
    pub ran_usec: u64,
    pub terminal: bool,
    /// What is to be looked at for its numbers.
    pub claims: Vec<Claim>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_what_comes() {
        for (frame, length) in [(Frame::Word, 0), (Frame::Stderr, 258), (Frame::Stdin, LONGEST)] {
            assert_eq!(Frame::read_head(frame.head(length)), Some((frame, length)));
        }
        assert_eq!(Frame::read_head([9, 0, 0, 0, 0]), None);
        assert_eq!(Frame::read_head([1, 255, 255, 255, 255]), None);
    }

    #[test]
    fn a_line_says_who_was_heard() {
        let heard = Heard { boot_id: "b-1".to_owned(), at: Duration::new(3, 4) };
        assert_eq!(heard.to_string(), "b-1 3000000004\n");
        assert_eq!(Heard::parse(&heard.to_string()), Some(heard));
        for text in ["", "b-1", "b-1 \n", "b-1 3 4\n", "b-1 -3\n"] {
            assert_eq!(Heard::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn words_have_a_name_first() {
        let word = serde_json::to_value(Request::Signal { signal: 15, all: false }).unwrap();
        assert_eq!(word, serde_json::json!({ "ask": "signal", "signal": 15, "all": false }));
        let word = serde_json::to_value(Told::Lagged { bytes: 7 }).unwrap();
        assert_eq!(word, serde_json::json!({ "told": "lagged", "bytes": 7 }));
    }

    #[test]
    fn an_end_is_found_before_it_has_its_name() {
        let record = |code| ExitRecord {
            id: "box".to_owned(),
            pid: 7,
            exit_code: Some(code),
            signal: None,
            started_at: String::new(),
            wall_usec: 1,
            usage: Numbers::default(),
            oom: None,
            log_lost_bytes: 0,
            fenced_after_usec: None,
        };
        let text = |code| serde_json::to_vec(&record(code)).unwrap();
        let blank = vec![b' '; 64];
        let code = |named: Option<Vec<u8>>, room: Option<Vec<u8>>| {
            let file = |name: &str| if name == EXIT { named.clone() } else { room.clone() };
            let read = |name: &str| file(name).ok_or(io::ErrorKind::NotFound.into());
            end(read).map(|end| end.and_then(|end| end.exit_code))
        };
        assert_eq!(code(None, None).unwrap(), None);
        assert_eq!(code(None, Some(blank.clone())).unwrap(), None);
        assert_eq!(code(None, Some([text(3), blank].concat())).unwrap(), Some(3));
        assert_eq!(code(None, Some(text(3)[..40].to_vec())).unwrap(), None, "torn");
        assert_eq!(code(Some(text(4)), Some(text(3))).unwrap(), Some(4));
        assert!(code(Some(text(4)[..40].to_vec()), None).is_err(), "it has its name: it was whole");
    }
}
