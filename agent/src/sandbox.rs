//! What stands around the containers of a task or a group of tasks: a network, an ipc namespace, files of names. It lives
//! in a folder in memory, and goes with the boot.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hafen_protocol::v1;
use hafen_sys::{CallError, Context};

use crate::config::Config;
use crate::network::cni::{Attachment, Cni};
use crate::network::conflist::{self, BuiltIn};
use crate::network::files::{self, Known, Written};
use crate::network::netns::{self, Kind};
use crate::network::ports::{self, Publish};
use crate::resolve::Namespace;

/// Of one plugin of a network.
const PLUGIN: Duration = Duration::from_secs(60);
const INTERFACE: &str = "eth0";
const PORTS: &str = "ports.json";

/// All sandboxes of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    root: PathBuf,
    networks: PathBuf,
    built_in: BuiltIn,
    cni: Cni,
    published: Arc<Mutex<BTreeMap<String, Vec<Publish>>>>,
    /// Bridges and rules are the node's: one at a time.
    plugins: Arc<tokio::sync::Mutex<()>>,
}

/// What one is to have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Of the task or the group.
    pub name: &'a str,
    pub network: &'a v1::Network,
    /// Several containers share it.
    pub shared: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    pub network: Option<Namespace>,
    pub ipc: Option<PathBuf>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<v1::Port>,
    pub hostname: Option<String>,
    pub files: Option<Written>,
}

/// Why there is none. What it says is for whoever wanted the task.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SandboxError(String);

fn told(error: &dyn std::error::Error) -> SandboxError {
    SandboxError(crate::failure::chain(error))
}

impl Sandboxes {
    /// # Errors
    /// Names the folder or the key.
    pub fn open(config: &Config) -> Result<Self, CallError> {
        let root = config.run.join("sandboxes");
        fs::create_dir_all(&root).call(|| format!("mkdir {}", root.display()))?;
        let leases = config.run.join("cni");
        let sandboxes = Self {
            networks: config.cni.config.clone(),
            built_in: BuiltIn { subnet: config.cni.subnet, leases, ..BuiltIn::default() },
            cni: Cni { paths: config.cni.plugins.clone(), deadline: PLUGIN },
            published: Arc::default(),
            plugins: Arc::default(),
            root,
        };
        sandboxes.remember()?;
        Ok(sandboxes)
    }

    /// Ports of before.
    fn remember(&self) -> Result<(), CallError> {
        let named = || format!("read folder {}", self.root.display());
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in fs::read_dir(&self.root).call(named)? {
            let entry = entry.call(named)?;
            if let Some(ports) = saved_ports(&entry.path()) {
                let ports = ports::validate(&ports).unwrap_or_default();
                published.insert(entry.file_name().to_string_lossy().into_owned(), ports);
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Names of those that are there.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Have it ready; what is there already stays as it is.
    ///
    /// # Errors
    /// In words.
    pub async fn ensure(&self, wanted: Wanted<'_>) -> Result<Sandbox, SandboxError> {
        use v1::network::Mode;
        let folder = self.folder(wanted.name);
        fs::create_dir_all(&folder)
            .call(|| format!("mkdir {}", folder.display()))
            .map_err(|e| told(&e))?;
        let mut sandbox = Sandbox::default();
        if wanted.shared {
            let path = folder.join("ipc");
            pin(Kind::Ipc, &path).map_err(|e| told(&e))?;
            sandbox.ipc = Some(path);
        }
        match wanted.network.mode() {
            Mode::Host => sandbox.network = Some(Namespace::Host),
            Mode::Cni => self.attach(wanted, &folder, &mut sandbox).await?,
            Mode::None | Mode::Unspecified if wanted.shared => {
                let path = folder.join("net");
                pin(Kind::Network, &path).map_err(|e| told(&e))?;
                sandbox.network = Some(Namespace::At(path));
            }
            Mode::None | Mode::Unspecified => {}
        }
        name_all(wanted, &folder, &mut sandbox)?;
        Ok(sandbox)
    }

    async fn attach(
        &self,
        wanted: Wanted<'_>,
        folder: &Path,
        sandbox: &mut Sandbox,
    ) -> Result<(), SandboxError> {
        let (path, record) = (folder.join("net"), folder.join("cni.json"));
        pin(Kind::Network, &path).map_err(|e| told(&e))?;
        sandbox.network = Some(Namespace::At(path.clone()));
        if let Some(attached) = Cni::attached(&record).map_err(|e| told(&e))? {
            sandbox.addresses = attached.addresses;
            sandbox.ports = saved_ports(folder).unwrap_or_default();
            return Ok(());
        }
        let _one_at_a_time = self.plugins.lock().await;
        // Of a start that did not come to its end.
        self.cni.delete(&record).await.map_err(|e| told(&e))?;
        let network = conflist::find(&self.networks, &wanted.network.name, &self.built_in)
            .map_err(|e| told(&e))?;
        let chosen = self.publish(wanted)?;
        let mappings = chosen.ports.iter().map(Publish::to_mapping).collect::<Vec<_>>();
        let mut capabilities = serde_json::Map::new();
        if !mappings.is_empty() {
            capabilities.insert("portMappings".to_owned(), mappings.into());
        }
        let attachment = Attachment {
            container: wanted.name.to_owned(),
            namespace: path,
            interface: INTERFACE.to_owned(),
            args: BTreeMap::new(),
            capabilities,
        };
        sandbox.ports = chosen.ports.iter().map(Publish::to_message).collect();
        save_ports(folder, &sandbox.ports).map_err(|e| told(&e))?;
        let added = self.cni.add(&network, &attachment, &record).await;
        drop(chosen);
        match added {
            Ok(attached) => sandbox.addresses = attached.addresses,
            Err(e) => {
                self.lock().remove(wanted.name);
                return Err(told(&e));
            }
        }
        Ok(())
    }

    /// Choose ports, and note that they are taken.
    fn publish(&self, wanted: Wanted<'_>) -> Result<ports::Chosen, SandboxError> {
        let ports = ports::validate(&wanted.network.ports).map_err(|e| told(&e))?;
        let mut published = self.lock();
        published.remove(wanted.name);
        let taken: Vec<Publish> = published.values().flatten().copied().collect();
        let chosen = ports::choose(&ports, &taken).map_err(|e| told(&e))?;
        published.insert(wanted.name.to_owned(), chosen.ports.clone());
        Ok(chosen)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Publish>>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave nothing of it.
    ///
    /// # Errors
    /// In words; it may be tried again.
    pub async fn remove(&self, name: &str) -> Result<(), SandboxError> {
        let folder = self.folder(name);
        if !folder.exists() {
            return Ok(());
        }
        {
            let _one_at_a_time = self.plugins.lock().await;
            self.cni.delete(&folder.join("cni.json")).await.map_err(|e| told(&e))?;
        }
        for kind in ["net", "ipc"] {
            netns::remove(&folder.join(kind)).map_err(|e| told(&e))?;
        }
        crate::secret::remove(&folder.join("secrets")).map_err(|e| told(&e))?;
        hafen_rootfs::release::remove_tree(&folder).map_err(|e| told(&e))?;
        self.lock().remove(name);
        Ok(())
    }
}

/// Make a namespace, unless there is one. A file without one is of a start that did not come to its end.
fn pin(kind: Kind, path: &Path) -> Result<(), CallError> {
    if netns::is_pinned(path) {
        return Ok(());
    }
    netns::remove(path)?;
    netns::create(kind, path)
}

fn name_all(wanted: Wanted<'_>, folder: &Path, sandbox: &mut Sandbox) -> Result<(), SandboxError> {
    let network = wanted.network;
    let host = matches!(sandbox.network, Some(Namespace::Host));
    let own = if network.hostname.is_empty() { wanted.name } else { &network.hostname };
    sandbox.hostname = Some(own.to_owned());
    // Without a network there is nobody to ask for a name.
    if !host && !matches!(network.mode(), v1::network::Mode::Cni) && network.hosts.is_empty() {
        return Ok(());
    }
    let node = files::node_resolv_conf(host).map_err(|e| told(&e))?;
    let known = Known {
        hostname: own,
        addresses: &sandbox.addresses,
        node: &node,
        plugin_dns: &[],
        host_network: host,
    };
    let text = files::text(network, &known).map_err(|e| told(&e))?;
    sandbox.files = Some(files::write(folder, &text).map_err(|e| told(&e))?);
    Ok(())
}

fn saved_ports(folder: &Path) -> Option<Vec<v1::Port>> {
    let text = match fs::read(folder.join(PORTS)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return None,
        answer => answer.ok()?,
    };
    serde_json::from_slice(&text).ok()
}

fn save_ports(folder: &Path, ports: &[v1::Port]) -> Result<(), CallError> {
    let text = serde_json::to_vec(ports).unwrap_or_default();
    hafen_sys::file::replace(&folder.join(PORTS), &text, false)
}
