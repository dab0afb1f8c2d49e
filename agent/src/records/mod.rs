//! What is written down of tasks, across boots: a folder for each, with its document, its logs and its keepers' folders.
//!
//! ```text
//!   TASKS/ID/task.json    the task, and where it stands: the last two revisions
//!   TASKS/ID/log[.N]      what it wrote
//!   TASKS/ID/ATTEMPT/     the folder of the keeper of one attempt
//! ```

mod slots;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use hafen_agent_core::{Attempt, Reason, Record, TaskId};
use hafen_protocol::v1;
use hafen_spec::keep::ExitRecord;
use hafen_sys::file::sync_folder;
use hafen_sys::{CallError, Context};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

const DOCUMENT: &str = "task.json";
const FORMAT: u32 = 1;
/// Documents that are brought to the disk at the same time: it takes most of the time to wait for it.
const WRITERS: usize = 8;

/// `task.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    pub format: u32,
    pub boot_id: String,
    /// RFC 3339.
    pub created: String,
    pub spec: v1::TaskSpec,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Nobody: a person at the node runs it, and no master hears of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    pub record: Record,
    /// Why it is in its state.
    pub reason: Reason,
    /// How the last attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ExitRecord>,
}

/// With what a master gave a task: it is told back, and means nothing here but that it is the master's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub epoch: u64,
    pub digest: Vec<u8>,
}

impl Document {
    #[must_use]
    pub const fn format() -> u32 {
        FORMAT
    }
}

/// The folder of all tasks.
#[derive(Debug, Clone)]
pub struct Folders {
    root: PathBuf,
}

/// What is found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    pub documents: Vec<Document>,
    /// Name to what is wrong.
    pub quarantined: BTreeMap<String, String>,
}

impl Folders {
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    #[must_use]
    pub fn task(&self, id: &TaskId) -> PathBuf {
        self.root.join(&id.0)
    }

    #[must_use]
    pub fn attempt(&self, id: &TaskId, attempt: Attempt) -> PathBuf {
        self.task(id).join(attempt.to_string())
    }

    #[must_use]
    pub fn log(&self, id: &TaskId) -> PathBuf {
        self.task(id).join("log")
    }

    /// Write a task down; it is on the disk then.
    ///
    /// # Errors
    /// Names the file.
    pub fn save(&self, document: &Document) -> Result<(), CallError> {
        let folder = self.task(&document.record.id);
        match fs::create_dir(&folder) {
            Ok(()) => sync_folder(&self.root)?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).call(|| format!("mkdir {}", folder.display())),
        }
        let path = folder.join(DOCUMENT);
        let text = serde_json::to_vec(document)
            .map_err(|e| CallError::new(format!("encode {}", path.display()), e.into()))?;
        slots::write(&path, document.record.revision, &text)
    }

    /// All tasks. A document that cannot be read sets its task aside, and no other.
    ///
    /// # Errors
    /// Names the folder.
    pub fn load(&self) -> Result<Loaded, CallError> {
        let named = || format!("read folder {}", self.root.display());
        fs::create_dir_all(&self.root).call(|| format!("mkdir {}", self.root.display()))?;
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(&self.root).call(named)? {
            let name = entry.call(named)?.file_name().to_string_lossy().into_owned();
            match self.read(&name) {
                Ok(Some(document)) => loaded.documents.push(document),
                // It was never told to anybody: whoever wanted it has got no answer.
                Ok(None) => drop(self.remove(&TaskId(name))),
                Err(why) => drop(loaded.quarantined.insert(name, why)),
            }
        }
        loaded.documents.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        Ok(loaded)
    }

    fn read(&self, name: &str) -> Result<Option<Document>, String> {
        let path = self.root.join(name).join(DOCUMENT);
        let text = match slots::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            answer => answer.map_err(|e| format!("read {}: {e}", path.display()))?,
        };
        let document: Document =
            serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        if document.format != FORMAT {
            return Err(format!("{}: format {} is not {FORMAT}", path.display(), document.format));
        }
        if document.record.id.0 != name {
            return Err(format!("{}: is of task {}", path.display(), document.record.id));
        }
        Ok(Some(document))
    }

    /// Leave nothing of a task.
    ///
    /// # Errors
    /// Names what stays.
    pub fn remove(&self, id: &TaskId) -> Result<(), CallError> {
        // The document goes first: half a folder is no task.
        let document = self.task(id).join(DOCUMENT);
        gone(fs::remove_file(&document)).call(|| format!("unlink {}", document.display()))?;
        remove_folder(&self.task(id))?;
        sync_folder(&self.root)
    }

    /// Take what a task wrote out of its folder, so that it stays when that goes.
    ///
    /// # Errors
    /// Names what stays where it is.
    pub fn keep_log(&self, id: &TaskId, to: &Path) -> Result<(), CallError> {
        let folder = self.task(id);
        let named = || format!("read folder {}", folder.display());
        fs::create_dir_all(to).call(|| format!("mkdir {}", to.display()))?;
        for entry in fs::read_dir(&folder).call(named)? {
            let name = entry.call(named)?.file_name();
            if name.to_string_lossy().split('.').next() != Some("log") {
                continue;
            }
            let (from, to) = (folder.join(&name), to.join(&name));
            fs::rename(&from, &to)
                .call(|| format!("rename {} to {}", from.display(), to.display()))?;
        }
        Ok(())
    }

    /// Leave nothing of an attempt.
    ///
    /// # Errors
    /// Names what stays.
    pub fn remove_attempt(&self, id: &TaskId, attempt: Attempt) -> Result<(), CallError> {
        remove_folder(&self.attempt(id, attempt))
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// A folder of ours, in which nothing is mounted: what is, stays, with all above it.
fn remove_folder(path: &Path) -> Result<(), CallError> {
    hafen_rootfs::release::remove_tree(path)
}

/// Threads that write documents down and remove them, each task's in order. Of several revisions that wait only the last
/// is written.
#[derive(Debug)]
pub struct Writers {
    queues: Vec<mpsc::Sender<Work>>,
}

#[derive(Debug)]
enum Work {
    Write(Box<Document>),
    Erase(TaskId),
    /// Somebody waits for all of before.
    Say(oneshot::Sender<()>),
}

impl Work {
    fn is_written(&self, task: &TaskId) -> bool {
        matches!(self, Self::Write(document) if document.record.id == *task)
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    Written {
        id: TaskId,
        revision: u64,
        result: Result<(), CallError>,
    },
    /// What was to be written before, was; its name is free again.
    Erased {
        id: TaskId,
        result: Result<(), CallError>,
    },
}

impl Writers {
    /// Tell `done` of each document, from a thread of its own.
    ///
    /// # Panics
    /// Where the machine cannot start a thread: there is nothing to go on with then.
    #[must_use]
    pub fn start(folders: &Folders, done: impl Fn(Done) + Clone + Send + 'static) -> Self {
        let queues = (0..WRITERS).map(|number| {
            let (sender, receiver) = mpsc::channel();
            let (folders, done) = (folders.clone(), done.clone());
            let thread = thread::Builder::new().name(format!("writer-{number}"));
            thread.spawn(move || work_all(&folders, &receiver, &done)).expect("a thread");
            sender
        });
        Self { queues: queues.collect() }
    }

    pub fn write(&self, document: Document) {
        let id = document.record.id.clone();
        self.send(&id, Work::Write(Box::new(document)));
    }

    /// Leave nothing of a task, after all that was to be written of it.
    pub fn erase(&self, id: TaskId) {
        self.send(&id.clone(), Work::Erase(id));
    }

    /// The answers come when all of before is done.
    #[must_use]
    pub fn finish(&self) -> Vec<oneshot::Receiver<()>> {
        let ask = |queue: &mpsc::Sender<Work>| {
            let (done, answer) = oneshot::channel();
            let _ = queue.send(Work::Say(done));
            answer
        };
        self.queues.iter().map(ask).collect()
    }

    fn send(&self, id: &TaskId, work: Work) {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(id);
        let at = usize::try_from(hash % WRITERS as u64).unwrap_or_default();
        // They end when we do.
        let _ = self.queues[at].send(work);
    }
}

fn work_all(folders: &Folders, queue: &mpsc::Receiver<Work>, done: &impl Fn(Done)) {
    while let Ok(first) = queue.recv() {
        let mut waiting: Vec<Work> = Vec::new();
        let act = |work: Work| work.act(folders).into_iter().for_each(done);
        for work in iter::once(first).chain(queue.try_iter()) {
            match &work {
                Work::Write(document) => {
                    waiting.retain(|earlier| !earlier.is_written(&document.record.id));
                }
                // A later revision does not stand for one that somebody waits for.
                Work::Say(_) => waiting.drain(..).for_each(act),
                Work::Erase(_) => {}
            }
            waiting.push(work);
        }
        waiting.into_iter().for_each(act);
    }
}

impl Work {
    fn act(self, folders: &Folders) -> Option<Done> {
        match self {
            Self::Write(document) => {
                let (id, revision) = (document.record.id.clone(), document.record.revision);
                Some(Done::Written { id, revision, result: folders.save(&document) })
            }
            Self::Erase(id) => {
                let result = folders.remove(&id);
                Some(Done::Erased { id, result })
            }
            Self::Say(done) => {
                let _ = done.send(());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hafen_agent_core::{BackOff, Core, Definition, Effect, Restart};

    use super::*;

    fn document(name: &str) -> Document {
        let second = Duration::from_secs(1);
        let back_off = BackOff { first: second, most: second, forget_after: second };
        let definition = Definition {
            restart: Restart::Never,
            back_off,
            grace: second,
            longest: None,
            waits_for_checks: false,
        };
        let effects = Core::default().submit(TaskId(name.to_owned()), definition, false).unwrap();
        let Some(Effect::Save(record)) = effects.into_iter().next() else { panic!("no record") };
        let spec = v1::TaskSpec { id: name.to_owned(), ..v1::TaskSpec::default() };
        Document {
            format: FORMAT,
            boot_id: "boot".to_owned(),
            created: String::new(),
            spec,
            pod: String::new(),
            grant: None,
            record,
            reason: Reason::None,
            end: None,
        }
    }

    #[test]
    fn a_document_cut_at_any_byte_sets_only_its_task_aside() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::at(folder.path().to_owned());
        folders.save(&document("whole")).unwrap();
        folders.save(&document("torn")).unwrap();
        let path = folders.task(&TaskId("torn".to_owned())).join(DOCUMENT);
        let text = fs::read(&path).unwrap();
        // A document that stands alone is one.
        let alone = |length: &usize| serde_json::from_slice::<Document>(&text[..*length]).is_ok();
        assert_eq!(
            (0..text.len()).filter(alone).count(),
            2,
            "with the end of its line and without"
        );
        for length in (0..text.len()).filter(|length| !alone(length)) {
            fs::write(&path, &text[..length]).unwrap();
            let loaded = folders.load().unwrap();
            assert_eq!(loaded.documents, [document("whole")], "{length}");
            assert_eq!(loaded.quarantined.len(), 1, "{length}");
        }
        fs::write(&path, text).unwrap();
        assert_eq!(folders.load().unwrap().documents.len(), 2);
    }

    #[test]
    fn writers_keep_the_order_of_each_task() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::at(folder.path().to_owned());
        folders.load().unwrap();
        let (sender, receiver) = mpsc::channel();
        let writers = Writers::start(&folders, move |written| drop(sender.send(written)));
        for revision in 1..=50 {
            let mut document = document("a");
            document.record.revision = revision;
            writers.write(document);
        }
        let mut last = 0;
        while last < 50 {
            let done = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
            let Done::Written { revision, result, .. } = done else { panic!("{done:?}") };
            assert!(result.is_ok() && revision > last);
            last = revision;
        }
        assert_eq!(folders.load().unwrap().documents[0].record.revision, 50);
    }

    #[tokio::test]
    async fn whoever_ends_waits_for_what_is_to_be_erased() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::at(folder.path().to_owned());
        folders.load().unwrap();
        let writers = Writers::start(&folders, |_| {});
        for number in 0..20 {
            let name = format!("t{number}");
            writers.write(document(&name));
            (0..50).for_each(|file| {
                let attempt = folders.attempt(&TaskId(name.clone()), file);
                fs::create_dir_all(attempt).unwrap();
            });
            writers.erase(TaskId(name));
        }
        for done in writers.finish() {
            done.await.unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// By whoever was killed before all was gone.
    #[test]
    fn what_is_left_of_a_task_that_was_forgotten_goes_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::at(folder.path().to_owned());
        let id = TaskId("a".to_owned());
        folders.save(&document("a")).unwrap();
        fs::create_dir_all(folders.attempt(&id, 1)).unwrap();
        fs::write(folders.log(&id), "said\n").unwrap();
        fs::remove_file(folders.task(&id).join(DOCUMENT)).unwrap();
        let loaded = folders.load().unwrap();
        assert!(loaded.documents.is_empty() && loaded.quarantined.is_empty(), "{loaded:?}");
        assert!(!folders.task(&id).exists());
    }

    #[test]
    fn what_is_erased_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders::at(folder.path().to_owned());
        folders.load().unwrap();
        let (sender, receiver) = mpsc::channel();
        let writers = Writers::start(&folders, move |done| drop(sender.send(done)));
        for _ in 0..50 {
            (0..20).for_each(|_| writers.write(document("a")));
            writers.erase(TaskId("a".to_owned()));
            let done = || receiver.recv_timeout(Duration::from_secs(20)).unwrap();
            while !matches!(done(), Done::Erased { result: Ok(()), .. }) {}
            assert_eq!(folders.load().unwrap().documents, []);
        }
    }
}
