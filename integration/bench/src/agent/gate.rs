//! A fifo that every container sees, at which it says its name with its first words.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use nix::sys::stat::Mode;

use super::{Error, PATIENCE, says};

/// Where the folder is in containers.
pub const FOLDER_INSIDE: &str = "/tmp";
pub const INSIDE: &str = "/tmp/gate";

#[derive(Debug)]
pub struct Gate {
    pub folder: PathBuf,
    /// So that the fifo never has an end.
    _writer: File,
    heard: Receiver<(String, Instant)>,
}

impl Gate {
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(says("mkdir", folder))?;
        let path = folder.join("gate");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o666))
            .map_err(|e| format!("mkfifo {}: {e}", path.display()))?;
        // Of a fifo that is open for both nobody waits for the other end.
        let both = OpenOptions::new().read(true).write(true).open(&path);
        let writer = both.map_err(says("open", &path))?;
        let reader = BufReader::new(File::open(&path).map_err(says("open", &path))?);
        let (sender, heard) = channel();
        // It ends with the program: a name after that is nobody's.
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if sender.send((line, Instant::now())).is_err() {
                    return;
                }
            }
        });
        Ok(Self { folder: folder.to_owned(), _writer: writer, heard })
    }

    /// When each of so many containers said its name.
    pub fn await_all(&self, count: usize) -> Result<HashMap<String, Instant>, Error> {
        let mut all = HashMap::new();
        let deadline = Instant::now() + PATIENCE.max(PATIENCE * u32::try_from(count / 100)?);
        while all.len() < count {
            match self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((name, at)) => drop(all.insert(name, at)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(
                        format!("of {count} containers {} said their name", all.len()).into()
                    );
                }
            }
        }
        Ok(all)
    }

    /// When containers of this name said it, which so many have. What others say is not looked at.
    pub fn await_times(&self, name: &str, count: usize) -> Result<Vec<Instant>, Error> {
        let mut all = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while all.len() < count {
            let heard = self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let few = |_| format!("of {count} containers {name} {} said their name", all.len());
            let (said, at) = heard.map_err(few)?;
            if said == name {
                all.push(at);
            }
        }
        Ok(all)
    }
}
