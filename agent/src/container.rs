//! One container of a task: how it comes to be, is found again, and goes.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hafen_agent_core::{Attempt, Evidence, Refusal, TaskId};
use hafen_protocol::v1;
use hafen_rootfs::store::Store;
use hafen_spec::keep::{ExitRecord, Request, Status, Told};
use hafen_sys::file::replace;
use tokio::sync::mpsc;

use crate::artifact::Fetcher;
use crate::failure::chain;
use crate::keeper::{self, Connection, Content, LaunchError, Runtime};
use crate::records::Folders;
use crate::resolve::{self, Namespace, Places};
use crate::sandbox::{Sandbox, Sandboxes, Wanted};
use crate::view;

/// Until a container runs. A launch takes some milliseconds; a hook may take its time.
pub const LAUNCH: Duration = Duration::from_secs(120);
/// For one call of the runtime.
const CALL: Duration = Duration::from_secs(30);
/// A keeper that lives answers at once, unless it is still launching.
const ANSWER: Duration = Duration::from_secs(20);
/// What waits to be said to a keeper.
const WORDS: usize = 16;
const RELEASE: Duration = Duration::from_secs(60);

/// What all work on containers needs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ground {
    pub instance: Arc<str>,
    pub runtime: Runtime,
    pub folders: Folders,
    pub images: PathBuf,
    pub volumes: PathBuf,
    pub sandboxes: Sandboxes,
    pub fetcher: Fetcher,
}

/// A task, as far as its container is concerned.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: TaskId,
    pub attempt: Attempt,
    pub spec: Arc<v1::TaskSpec>,
    /// The group that it belongs to, with what its tasks share.
    pub group: Option<Arc<v1::PodSpec>>,
}

impl Job {
    /// Whose sandbox it is in.
    fn sandbox(&self) -> &str {
        self.group.as_ref().map_or(&self.id.0, |group| &group.id)
    }

    fn network(&self) -> v1::Network {
        let own = match &self.group {
            Some(group) => &group.network,
            None => &self.spec.network,
        };
        own.clone().unwrap_or_default()
    }
}

/// Name of the container of an attempt.
#[must_use]
pub fn name(id: &TaskId, attempt: Attempt) -> String {
    format!("{id}+{attempt}")
}

/// Whose container it is, if it is one of ours.
#[must_use]
pub fn owner(name: &str) -> Option<(TaskId, Attempt)> {
    let (id, attempt) = name.rsplit_once('+')?;
    Some((TaskId(id.to_owned()), attempt.parse().ok()?))
}

/// A container that runs.
#[derive(Debug, Clone)]
pub struct Container {
    pub attempt: Attempt,
    pub status: Arc<Status>,
    pub sandbox: Sandbox,
    words: mpsc::Sender<Request>,
}

impl Container {
    /// Ask its keeper; whether it hears is seen by what comes.
    pub fn ask(&self, request: Request) -> bool {
        self.words.try_send(request).is_ok()
    }
}

/// What comes from the keeper of an attempt.
#[derive(Debug)]
pub enum News {
    Told(Box<Told>),
    /// There is no connection any more.
    Gone,
}

/// Takes what keepers tell.
pub type Listener = Arc<dyn Fn(TaskId, Attempt, News) + Send + Sync>;

/// What a container of a task needs is there.
#[derive(Debug, Clone, Default)]
pub struct Staged {
    /// What the image says about how to ask it to end.
    pub signal: Option<String>,
}

impl Ground {
    /// The same for a task that is new: what is to be fetched in any case has not been.
    #[must_use]
    pub fn find_staged(&self, id: &TaskId, spec: &v1::TaskSpec) -> Option<Staged> {
        let pull = spec.root.as_ref().map(v1::Root::pull);
        (pull != Some(v1::Pull::Always)).then(|| self.at_hand(id, spec))?
    }

    /// Is everything there that a container of the task needs, as far as can be seen without waiting?
    #[must_use]
    pub fn at_hand(&self, id: &TaskId, spec: &v1::TaskSpec) -> Option<Staged> {
        let folder = self.artifacts(id);
        if !(0..spec.artifacts.len()).all(|number| folder.join(number.to_string()).exists()) {
            return None;
        }
        let signal = match spec.root.as_ref().and_then(|root| root.kind.as_ref()) {
            Some(v1::root::Kind::Image(name)) => {
                stop_signal(&Store::at(self.images.clone()), name)?
            }
            _ => None,
        };
        Some(Staged { signal })
    }

    /// Have ready what a container of the task needs.
    ///
    /// # Errors
    /// In words.
    pub async fn stage(&self, job: &Job) -> Result<Staged, String> {
        let signal = self.have_image(&job.spec).await?;
        let folder = self.artifacts(&job.id);
        for (number, artifact) in job.spec.artifacts.iter().enumerate() {
            let place = folder.join(number.to_string());
            if place.exists() {
                continue;
            }
            fs::create_dir_all(&folder).map_err(|e| format!("mkdir {}: {e}", folder.display()))?;
            self.fetcher.fetch(artifact, &place).await.map_err(|e| chain(&e))?;
        }
        Ok(Staged { signal })
    }

    fn artifacts(&self, id: &TaskId) -> PathBuf {
        self.folders.task(id).join("artifacts")
    }

    async fn have_image(&self, spec: &v1::TaskSpec) -> Result<Option<String>, String> {
        let root = spec.root.clone().unwrap_or_default();
        let Some(v1::root::Kind::Image(name)) = &root.kind else { return Ok(None) };
        let store = Store::at(self.images.clone());
        let found = stop_signal(&store, name);
        match (root.pull(), found) {
            (v1::Pull::Always, _) | (v1::Pull::Unspecified, None) => {}
            (v1::Pull::Never, None) => {
                return Err(format!(
                    "image {name} is not in the store, and is not to be fetched: hafen image pull {name}"
                ));
            }
            (_, Some(signal)) => return Ok(signal),
        }
        crate::pull::image(&store, name).await?;
        stop_signal(&store, name).ok_or_else(|| format!("image {name} is gone again"))
    }

    /// Make the container of an attempt, or find it. With `fence`, a file that says when a master has heard the node, it ends
    /// when that is as long ago as its task says.
    ///
    /// # Errors
    /// In words; what is left is released.
    pub async fn launch(
        &self,
        job: &Job,
        fence: Option<PathBuf>,
        listener: Listener,
    ) -> Result<Container, Refusal> {
        let folder = self.folders.attempt(&job.id, job.attempt);
        let sandbox = self.sandbox(job).await?;
        if !keeper::is_kept(&folder).map_err(|e| chain(&e))? {
            let words = self.words(job, fence, &sandbox)?;
            match self.runtime.keep(&words, LAUNCH).await {
                Ok(child) => reap(child),
                // A keeper may have died after its container had begun to run.
                Err(e @ LaunchError::Refused { .. }) => match self.take_over(job, &folder).await? {
                    TakenOver::Yes => {}
                    TakenOver::NothingThere => {
                        return Err(Refusal { code: e.code(), why: chain(&e) });
                    }
                },
                Err(e) => return Err(chain(&e).into()),
            }
        }
        match self.connect(job, sandbox, listener.clone()).await {
            Ok(container) => Ok(container),
            Err(why) => Ok(self.find_again(job, &folder, listener, why).await?),
        }
    }

    /// A keeper that was there and does not answer may have died since, or have come to its end: what its container does
    /// is found as after a crash.
    async fn find_again(
        &self,
        job: &Job,
        folder: &std::path::Path,
        listener: Listener,
        why: String,
    ) -> Result<Container, String> {
        match self.try_inquire(job, folder, listener).await? {
            Inquiry::Running(container) => Ok(*container),
            Inquiry::Ended(_) | Inquiry::Nothing | Inquiry::Unclear(_) => Err(why),
        }
    }

    /// What is around the containers of a job.
    ///
    /// # Errors
    /// In words.
    pub async fn sandbox(&self, job: &Job) -> Result<Sandbox, String> {
        let network = job.network();
        let wanted = Wanted { name: job.sandbox(), network: &network, shared: job.group.is_some() };
        self.sandboxes.ensure(wanted).await.map_err(|e| e.to_string())
    }

    /// # Errors
    /// In words.
    pub async fn connect(
        &self,
        job: &Job,
        sandbox: Sandbox,
        listener: Listener,
    ) -> Result<Container, String> {
        let folder = self.folders.attempt(&job.id, job.attempt);
        let Connection { status, mut words, mut news } =
            Connection::open_within(&folder, ANSWER).await.map_err(|e| chain(&e))?;
        let (sender, mut receiver) = mpsc::channel(WORDS);
        tokio::spawn(async move {
            while let Some(request) = receiver.recv().await {
                if words.ask(&request).await.is_err() {
                    break;
                }
            }
        });
        let (id, attempt) = (job.id.clone(), job.attempt);
        tokio::spawn(async move {
            while let Ok(Some(content)) = news.next().await {
                if let Content::Told(told) = content {
                    listener(id.clone(), attempt, News::Told(told));
                }
            }
            listener(id, attempt, News::Gone);
        });
        Ok(Container { attempt, status: Arc::new(status), sandbox, words: sender })
    }

    fn words(
        &self,
        job: &Job,
        fence: Option<PathBuf>,
        sandbox: &Sandbox,
    ) -> Result<Vec<std::ffi::OsString>, String> {
        let folder = self.folders.attempt(&job.id, job.attempt);
        fs::create_dir_all(&folder).map_err(|e| format!("mkdir {}: {e}", folder.display()))?;
        let container = name(&job.id, job.attempt);
        let host = matches!(sandbox.network, Some(Namespace::Host));
        // What asks it to end, where its keeper has to do it.
        let staged = fence.as_ref().and_then(|_| self.at_hand(&job.id, &job.spec));
        let places = Places {
            cgroup: self.cgroup(job),
            outer: outer(job, &folder)?,
            keeper: folder.clone(),
            log: self.folders.log(&job.id),
            images: self.images.clone(),
            volumes: self.volumes.clone(),
            network: sandbox.network.clone(),
            ipc: sandbox.ipc.clone(),
            // The node's own name is the node's.
            hostname: sandbox.hostname.clone().filter(|_| !host),
            shown: self.shown(job, sandbox)?,
            patch: folder.join("patch.json"),
            heard: fence,
            signal: staged.and_then(|staged| staged.signal),
            container,
        };
        let words = resolve::words(&job.spec, &places);
        if let Some(patch) = &words.patch {
            let text = patch.to_string();
            replace(&places.patch, text.as_bytes(), false).map_err(|e| chain(&e))?;
        }
        Ok(words.words)
    }

    /// The cgroup of a task, below that of its group, below that of this agent.
    #[must_use]
    pub fn cgroup(&self, job: &Job) -> String {
        let container = name(&job.id, job.attempt);
        match &job.group {
            Some(group) => format!("/hafen/{}/{}/{container}", self.instance, group.id),
            None => format!("/hafen/{}/{container}", self.instance),
        }
    }

    fn shown(&self, job: &Job, sandbox: &Sandbox) -> Result<Vec<(PathBuf, String)>, String> {
        let mut shown = Vec::new();
        if let Some(files) = &sandbox.files {
            shown.push((files.hosts.clone(), "/etc/hosts".to_owned()));
            shown.push((files.resolv_conf.clone(), "/etc/resolv.conf".to_owned()));
            shown.push((files.hostname.clone(), "/etc/hostname".to_owned()));
        }
        let folder = self.artifacts(&job.id);
        for (number, artifact) in job.spec.artifacts.iter().enumerate() {
            shown.push((folder.join(number.to_string()), artifact.destination.clone()));
        }
        let folder = self.secrets(&job.id);
        for (number, secret) in job.spec.secrets.iter().enumerate() {
            let file = folder.join(number.to_string());
            if !file.exists() {
                return Err("its secrets are gone: they are kept in memory only, and the machine was started again since: run it anew".to_owned());
            }
            shown.push((file, secret.destination.clone()));
        }
        Ok(shown)
    }

    /// Where the secrets of a task are.
    #[must_use]
    pub fn secrets(&self, id: &TaskId) -> PathBuf {
        self.sandboxes.folder(&id.0).join("secrets")
    }

    /// What became of a container whose keeper is not heard any more, or was not yet.
    pub async fn inquire(&self, job: &Job, listener: Listener) -> Inquiry {
        let folder = self.folders.attempt(&job.id, job.attempt);
        match self.try_inquire(job, &folder, listener).await {
            Ok(found) => found,
            Err(why) => Inquiry::Unclear(why),
        }
    }

    async fn try_inquire(
        &self,
        job: &Job,
        folder: &std::path::Path,
        listener: Listener,
    ) -> Result<Inquiry, String> {
        if let Some(end) = keeper::read_end(folder).map_err(|e| chain(&e))? {
            return Ok(Inquiry::Ended(Box::new(end)));
        }
        if !keeper::is_kept(folder).map_err(|e| chain(&e))? {
            match self.take_over(job, folder).await? {
                TakenOver::Yes => {}
                TakenOver::NothingThere => {
                    // It may have ended between the two looks.
                    let end = keeper::read_end(folder).map_err(|e| chain(&e))?;
                    return Ok(end.map_or(Inquiry::Nothing, |end| Inquiry::Ended(Box::new(end))));
                }
            }
        }
        let sandbox = self.sandbox(job).await?;
        match self.connect(job, sandbox, listener).await {
            Ok(container) => Ok(Inquiry::Running(Box::new(container))),
            // It has told everybody and is gone.
            Err(why) => match keeper::read_end(folder).map_err(|e| chain(&e))? {
                Some(end) => Ok(Inquiry::Ended(Box::new(end))),
                None => Err(why),
            },
        }
    }

    /// Give a container without a keeper another one.
    async fn take_over(&self, job: &Job, folder: &std::path::Path) -> Result<TakenOver, String> {
        let container = name(&job.id, job.attempt);
        if !self.runtime.root.join(&container).exists() {
            return Ok(TakenOver::NothingThere);
        }
        // Of a keeper that was killed while it launched the lock is with what it has begun, until that executes the
        // container's program.
        keeper::gone(folder, ANSWER).await.map_err(|e| chain(&e))?;
        let words = ["--resume".into(), "--dir".into(), folder.as_os_str().to_owned()];
        match self.runtime.keep(words, ANSWER).await {
            Ok(child) => {
                reap(child);
                Ok(TakenOver::Yes)
            }
            Err(LaunchError::Refused { why, .. }) => {
                // One that was killed while it launched: there is no process that anybody was promised.
                tracing::warn!(container, why, "a container without a keeper is released");
                self.delete(&container).await?;
                Ok(TakenOver::NothingThere)
            }
            Err(e) => Err(chain(&e)),
        }
    }

    async fn delete(&self, container: &str) -> Result<(), String> {
        let deleted = self.runtime.call(["delete", "--force", container], CALL).await;
        deleted.map(drop).map_err(|e| chain(&e))
    }

    /// Send a signal past a keeper that does not hear.
    ///
    /// # Errors
    /// In words.
    pub async fn signal(&self, job: &Job, signal: i32, all: bool) -> Result<(), String> {
        let (container, signal) = (name(&job.id, job.attempt), signal.to_string());
        let mut words = vec!["kill"];
        words.extend(all.then_some("--all"));
        words.extend([container.as_str(), signal.as_str()]);
        self.runtime.call(words, CALL).await.map(drop).map_err(|e| chain(&e))
    }

    /// Change the limits of a container; `resources` is `linux.resources` of the OCI runtime spec.
    ///
    /// # Errors
    /// In the runtime's words.
    pub async fn update(&self, job: &Job, resources: &serde_json::Value) -> Result<(), String> {
        let path = self.folders.attempt(&job.id, job.attempt).join("update.json");
        replace(&path, resources.to_string().as_bytes(), false).map_err(|e| chain(&e))?;
        let container = name(&job.id, job.attempt);
        let words =
            ["update".as_ref(), "--resources".as_ref(), path.as_os_str(), container.as_ref()];
        self.runtime.call(words, CALL).await.map(drop).map_err(|e| chain(&e))
    }

    /// Leave nothing of an attempt but its logs.
    ///
    /// # Errors
    /// In words; it may be tried again.
    pub async fn release(&self, id: &TaskId, attempt: Attempt) -> Result<(), String> {
        let (folder, container) = (self.folders.attempt(id, attempt), name(id, attempt));
        // The keeper of a container that has ended releases it, and goes.
        if keeper::read_end(&folder).is_ok_and(|end| end.is_some()) {
            keeper::gone(&folder, RELEASE).await.map_err(|e| chain(&e))?;
        }
        if self.runtime.root.join(&container).exists() {
            self.delete(&container).await?;
        }
        keeper::gone(&folder, RELEASE).await.map_err(|e| chain(&e))?;
        let (folders, id) = (self.folders.clone(), id.clone());
        let removed = tokio::task::spawn_blocking(move || folders.remove_attempt(&id, attempt));
        removed.await.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
    }

    /// Containers that bear our mark: those of the runtime's state.
    ///
    /// # Errors
    /// Names the folder.
    pub fn found(&self) -> Result<Vec<(TaskId, Attempt)>, String> {
        let root = &self.runtime.root;
        let entries = match fs::read_dir(root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            answer => answer.map_err(|e| format!("read folder {}: {e}", root.display()))?,
        };
        Ok(entries.flatten().filter_map(|e| owner(&e.file_name().to_string_lossy())).collect())
    }
}

/// The limits of a group, in a file for the runtime.
fn outer(job: &Job, folder: &std::path::Path) -> Result<Option<PathBuf>, String> {
    let Some(limit) = job.group.as_ref().and_then(|group| group.limit) else { return Ok(None) };
    let resources = v1::Resources { limit: Some(limit), ..v1::Resources::default() };
    let path = folder.join("outer.json");
    let text = resolve::linux_resources(&resources).to_string();
    replace(&path, text.as_bytes(), false).map_err(|e| chain(&e))?;
    Ok(Some(path))
}

enum TakenOver {
    Yes,
    NothingThere,
}

/// What became of a container.
#[derive(Debug)]
pub enum Inquiry {
    Running(Box<Container>),
    Ended(Box<ExitRecord>),
    Nothing,
    Unclear(String),
}

impl Inquiry {
    /// For the core; `shared` is the limit of memory of its group.
    #[must_use]
    pub fn evidence(&self, shared: Option<u64>) -> Evidence {
        match self {
            Self::Running(container) => {
                Evidence::Running { ran: Duration::from_micros(container.status.ran_usec) }
            }
            Self::Ended(end) => Evidence::Exited(view::exit(end, shared)),
            Self::Nothing => Evidence::Nothing,
            Self::Unclear(why) => Evidence::Unclear { why: why.clone() },
        }
    }
}

/// A keeper that we started is our child, for as long as we are there.
fn reap(mut child: tokio::process::Child) {
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
}

/// What an image says about how to stop it. `None`: there is no such image, or it is not unpacked.
fn stop_signal(store: &Store, name: &str) -> Option<Option<String>> {
    let named = store.find(name).ok()?;
    let image = store.image(&named.target).ok()?;
    Some(image.config.defaults.stop_signal)
}
