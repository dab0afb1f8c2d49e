//! What has happened on a node, numbered: kept in files, and told to whoever listens.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hafen_door::news;
use hafen_protocol::v1;
use hafen_sys::{CallError, Context};
use tokio::sync::broadcast;

use crate::failure::{Failure, Kind};
use crate::node::Flow;

/// Events that are kept.
const KEPT: usize = 16_384;
/// Of one file, of which there are two.
const FILE_BYTES: u64 = 8 << 20;
/// After a start nobody knows whether the last ones had reached the disk: their numbers are not given again.
const GAP: u64 = 1_000;
/// Events that a slow listener may be behind.
const BEHIND: usize = 4_096;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Mutex<Shared>>,
    live: broadcast::Sender<Arc<v1::Event>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    last: u64,
    kept: VecDeque<Arc<v1::Event>>,
}

impl Events {
    /// Go on with the events of a file.
    ///
    /// # Errors
    /// Names the file.
    pub fn open(path: &Path) -> Result<Self, CallError> {
        let mut kept = VecDeque::new();
        for file in [older(path), path.to_owned()] {
            read(&file, &mut kept)?;
        }
        let last = kept.back().map_or(0, |event: &Arc<v1::Event>| event.sequence + GAP);
        let (live, _) = broadcast::channel(BEHIND);
        let file = append(path).call(|| format!("open {}", path.display()))?;
        let size = file.metadata().map_or(0, |meta| meta.len());
        let shared = Shared { path: path.to_owned(), file: Some(file), size, last, kept };
        Ok(Self { shared: Arc::new(Mutex::new(shared)), live })
    }

    /// Something has happened to a task, or, without a name, to the node.
    pub fn tell(&self, task: &str, what: v1::event::What) -> u64 {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.last += 1;
        let event = Arc::new(v1::Event {
            sequence: shared.last,
            time: Some(crate::time::stamp(SystemTime::now())),
            task: task.to_owned(),
            what: Some(what),
        });
        shared.write(&event);
        shared.kept.push_back(event.clone());
        if shared.kept.len() > KEPT {
            shared.kept.pop_front();
        }
        // Under the lock: so nobody hears them in another order. Nobody may be listening.
        let _ = self.live.send(event);
        shared.last
    }

    /// Events from a number on, and those to come.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] where the first is not kept any more.
    pub fn listen(&self, request: &v1::EventsRequest) -> Result<Flow<v1::Event>, Failure> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = shared.kept.front().map_or(shared.last + 1, |event| event.sequence);
        if request.since > 0 && request.since < oldest && oldest > 1 {
            let words =
                format!("the oldest event that is kept is {oldest}: ask for --since {oldest}");
            return Err(Failure::new(Kind::OutOfRange, words));
        }
        let wanted = |event: &&Arc<v1::Event>| request.since > 0 && event.sequence >= request.since;
        let past: Vec<_> = shared.kept.iter().filter(wanted).cloned().collect();
        let live = self.live.subscribe();
        drop(shared);
        let id = request.id.clone();
        let live = request.follow.then_some(live);
        let wanted = move |event: &v1::Event| id.is_empty() || event.task == id;
        Ok(news::flow(past, live, "ask again with --since", wanted))
    }

    /// What is to come, for the node itself.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<v1::Event>> {
        self.live.subscribe()
    }
}

impl Shared {
    /// What cannot be written is still told: the records of tasks are the truth, and this is the story.
    fn write(&mut self, event: &v1::Event) {
        if self.size > FILE_BYTES {
            let moved = fs::rename(&self.path, older(&self.path));
            self.file = moved.and_then(|()| append(&self.path)).ok().or(self.file.take());
            self.size = 0;
        }
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if let Some(file) = &mut self.file
            && file.write_all(&line).is_ok()
        {
            self.size += line.len() as u64;
        }
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1")
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A line that is not whole, or not ours, is passed over.
fn read(path: &Path, kept: &mut VecDeque<Arc<v1::Event>>) -> Result<(), CallError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        answer => answer.call(|| format!("open {}", path.display()))?,
    };
    for line in BufReader::new(file).split(b'\n') {
        let line = line.call(|| format!("read {}", path.display()))?;
        let Ok(event) = serde_json::from_slice::<v1::Event>(&line) else { continue };
        kept.push_back(Arc::new(event));
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    fn say(events: &Events, text: &str) -> u64 {
        events.tell("t", v1::event::What::Message(text.to_owned()))
    }

    async fn all(events: &Events, since: u64) -> Vec<u64> {
        let request = v1::EventsRequest { since, ..v1::EventsRequest::default() };
        let events: Vec<_> = events.listen(&request).unwrap().collect().await;
        events.into_iter().map(|event| event.unwrap().sequence).collect()
    }

    #[tokio::test]
    async fn numbers_go_on_after_a_restart_and_are_not_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let events = Events::open(&path).unwrap();
        assert_eq!([say(&events, "a"), say(&events, "b")], [1, 2]);
        drop(events);
        // Torn, as after a crash.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"sequ").unwrap();
        let events = Events::open(&path).unwrap();
        let next = say(&events, "c");
        assert!(next > 2);
        assert_eq!(all(&events, 2).await, [2, next]);
    }

    #[tokio::test]
    async fn who_listens_hears_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::open(&folder.path().join("events")).unwrap();
        say(&events, "before");
        let request = v1::EventsRequest { since: 1, follow: true, id: "t".to_owned() };
        let flow = events.listen(&request).unwrap();
        say(&events, "after");
        events.tell("other", v1::event::What::Message(String::new()));
        say(&events, "last");
        let heard: Vec<_> = flow.take(3).map(|event| event.unwrap().sequence).collect().await;
        assert_eq!(heard, [1, 2, 4]);
    }
}
