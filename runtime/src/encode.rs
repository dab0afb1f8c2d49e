//! Steps for people to operations for the machine between clone and exec.

mod attributes;
mod mounts;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use hafen_isolator::seccomp::Filter;
use hafen_rootfs::source::{self, Source};
use hafen_spec::HostFacts;
use hafen_spec::plan::{self, Attribute, ChangeRoot, ChildStep, Tmpfs};
use hafen_spec::resolve::attr;
use hafen_spec::resolved::{
    Attrs, Device, DeviceType, Mount, Namespace, Owners, Process, TimeOffset,
};
use hafen_sys::child::{At, Chain, Make, MountCalls, Notify, Op, Slot, Stack, Strings, Terminal};
use hafen_sys::mount::{self, MountAttr};
use hafen_sys::weaken::{Defence, left_out};
use hafen_sys::{CallError, Context};

use crate::apart::VOLATILE;
use crate::listener::Listener;
pub(crate) use attributes::give;
use attributes::write_proc;

/// The mount that becomes `/`.
const ROOT: At = At::Slot(ROOT_SLOT);
const ROOT_SLOT: Slot = Slot(0);
/// A mount on its way, and the place it goes to.
const MOUNT: Slot = Slot(1);
const TARGET: Slot = Slot(2);
/// The empty tmpfs over masked folders.
const EMPTY: Slot = Slot(3);

const MS_REC: u64 = libc::MS_REC;

/// Options of an overlay, and names in the scratch folder.
type OwnLayer = [(&'static str, &'static str); 2];

/// What the steps refer to, opened by the parent.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The root file system as a detached tree.
    pub(crate) root: Option<OwnedFd>,
    /// For each bind mount, in the order of the steps.
    pub(crate) binds: Vec<Source>,
    pub(crate) namespaces: Vec<(Namespace, OwnedFd)>,
    /// `tasks` of each v1 cgroup that is entered, in the order of the steps.
    pub(crate) tasks: Vec<OwnedFd>,
    /// The root of the host's procfs, where a step [`needs_proc`].
    pub(crate) proc: Option<OwnedFd>,
    /// The agent of a seccomp filter.
    pub(crate) listener: Option<Listener>,
    /// The fifos of a container that waits for `start`.
    pub(crate) fifos: Option<[OwnedFd; 2]>,
    /// Where the master of the terminal goes.
    pub(crate) console: Option<OwnedFd>,
    /// The first process of a container that is joined, and its root.
    pub(crate) container: Option<OwnedFd>,
    pub(crate) container_root: Option<OwnedFd>,
    /// `CLONE_NEW*` flags of those of its namespaces that are not ours, as they are joined one after the other.
    pub(crate) container_namespaces: [i32; 2],
    /// What becomes stdin, stdout and stderr, where those of the runtime do not stay.
    pub(crate) standard: Option<[i32; 3]>,
    /// Descriptors that the child must let go of at once.
    pub(crate) private: Vec<i32>,
}

/// Operations, and for each the step that it came from.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) ops: Vec<Op>,
    pub(crate) origins: Vec<usize>,
}

pub(crate) struct Encoder<'a> {
    sources: &'a Sources,
    facts: &'a HostFacts,
    process: &'a Process,
    root: &'a Path,
    filter: Option<&'a Filter>,
    binds: std::slice::Iter<'a, Source>,
    /// A file system was mounted already.
    has_mounted: bool,
    /// The host's root is let go of in the end.
    pivots: bool,
    tasks: std::slice::Iter<'a, OwnedFd>,
    ops: Vec<Op>,
    /// The root was attached at `/`.
    over_root: bool,
}

/// Which kind of mount calls this host has.
pub(crate) fn mount_calls(facts: &HostFacts) -> MountCalls {
    let needed = ["fsopen", "open_tree", "move_mount", "mount_setattr"];
    if needed.iter().any(|call| facts.lacks(call)) { MountCalls::Classic } else { MountCalls::New }
}

/// Does an overlay take its layers one by one here?
pub(crate) fn takes_layers_one_by_one(facts: &HostFacts) -> bool {
    mount_calls(facts) == MountCalls::New && mount::takes_layers_one_by_one()
}

/// Does the step write to the procfs of the host?
pub(crate) fn needs_proc(step: &ChildStep) -> bool {
    use Attribute::{AppArmor, SeLinux};
    match step {
        ChildStep::OomScoreAdj { .. }
        | ChildStep::Sysctl { .. }
        | ChildStep::TimeNamespace { .. }
        | ChildStep::Seccomp { listener: Some(_), .. } => true,
        ChildStep::Attribute(attribute) => matches!(attribute, AppArmor(_) | SeLinux { .. }),
        _ => false,
    }
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(
        sources: &'a Sources,
        facts: &'a HostFacts,
        process: &'a Process,
        root: &'a Path,
        filter: Option<&'a Filter>,
    ) -> Self {
        Self {
            sources,
            facts,
            process,
            root,
            filter,
            binds: sources.binds.iter(),
            has_mounted: false,
            pivots: false,
            tasks: sources.tasks.iter(),
            ops: Vec::new(),
            over_root: false,
        }
    }

    /// # Errors
    /// A string that is no C string, or a path that leads out of its root.
    pub(crate) fn encode(mut self, steps: &[ChildStep]) -> Result<Encoded, CallError> {
        /// More operations than most steps become.
        const EACH: usize = 3;
        let mut encoded = Encoded::default();
        self.ops.reserve(EACH * steps.len());
        let pivot = ChildStep::ChangeRoot { how: ChangeRoot::Pivot };
        self.pivots = steps.contains(&pivot);
        self.ops.extend(self.sources.private.iter().copied().map(Op::Close));
        let standard = self.sources.standard.into_iter().flatten().zip(0..);
        self.ops.extend(standard.map(|(from, to)| Op::Duplicate { from, to }));
        if self.sources.listener.is_some() {
            // While the procfs is still there.
            self.ops.push(Op::OwnPid { proc: self.proc() });
        }
        // Modes below are exact; the container's own mask is set at the end.
        self.ops.push(Op::Umask { mask: 0 });
        for (index, step) in steps.iter().enumerate() {
            self.step(step).call(|| step.to_string())?;
            encoded.origins.resize(self.ops.len(), index);
        }
        encoded.ops = self.ops;
        Ok(encoded)
    }

    fn step(&mut self, step: &ChildStep) -> io::Result<()> {
        match step {
            ChildStep::HostPropagation { .. }
            | ChildStep::RootBind { .. }
            | ChildStep::RootOverlay { .. }
            | ChildStep::Mount(_)
            | ChildStep::BindDevice(_)
            | ChildStep::SetAttributes { .. }
            | ChildStep::ChangeRoot { .. }
            | ChildStep::RootPropagation { .. }
            | ChildStep::RootReadonly => self.mount_step(step),
            ChildStep::Label { .. }
            | ChildStep::Device(_)
            | ChildStep::Symlink { .. }
            | ChildStep::Folder { .. }
            | ChildStep::Mask { .. }
            | ChildStep::ReadonlyPath { .. } => self.path_step(step),
            _ => self.process_step(step),
        }
    }

    fn process_step(&mut self, step: &ChildStep) -> io::Result<()> {
        let op = match step {
            ChildStep::ResetSignals => Op::ResetSignals,
            ChildStep::NewSession => Op::NewSession,
            ChildStep::EnterLegacy { .. } => {
                Op::Write { fd: raw(self.tasks.next()), data: b"0".to_vec() }
            }
            ChildStep::NewKeyring { name } => Op::JoinKeyring { name: c(name)? },
            ChildStep::OomScoreAdj { value } => {
                write_proc(self.proc(), "self/oom_score_adj", &value.to_string())?
            }
            ChildStep::Sysctl { key, value } => {
                write_proc(self.proc(), &format!("sys/{key}"), value)?
            }
            ChildStep::Attribute(attribute) => {
                self.ops.extend(attributes::encode(attribute, self.proc())?);
                return Ok(());
            }
            ChildStep::Join { namespace, .. } => self.join(*namespace),
            ChildStep::Hostname { name } => Op::Hostname { name: name.clone().into_bytes() },
            ChildStep::Domainname { name } => Op::Domainname { name: name.clone().into_bytes() },
            ChildStep::LoopbackUp => Op::LoopbackUp,
            ChildStep::AwaitGo => Op::AwaitGo,
            ChildStep::TimeNamespace { offsets } => return self.time_namespace(offsets),
            ChildStep::AwaitMaps => Op::AwaitGo,
            ChildStep::NamespaceRoot { uid, gid, keep_groups } => {
                let groups = (!keep_groups).then(Vec::new);
                Op::Ids { uid: *uid, gid: *gid, groups }
            }
            ChildStep::UnshareIpc => Op::Unshare { flags: Namespace::Ipc.flag() },
            ChildStep::UnshareCgroup => Op::Unshare { flags: Namespace::Cgroup.flag() },
            ChildStep::Umask { mask } => Op::Umask { mask: *mask },
            ChildStep::Rlimit(l) => Op::Rlimit { resource: l.resource, soft: l.soft, hard: l.hard },
            ChildStep::NoNewPrivileges => {
                Op::Prctl { option: libc::PR_SET_NO_NEW_PRIVS, arguments: [1, 0, 0, 0] }
            }
            ChildStep::BoundingSet { keep } => {
                Op::DropBounding { capabilities: self.facts.bounding & !keep }
            }
            ChildStep::Ids { uid, gid, additional_gids, keep_groups } => {
                let groups = (!keep_groups).then(|| additional_gids.clone());
                return self.ids(*uid, *gid, groups);
            }
            ChildStep::Capabilities(sets) => {
                self.ops.push(Op::SetCapabilities {
                    effective: sets.effective,
                    permitted: sets.permitted,
                    inheritable: if left_out(Defence::Inheritable) {
                        sets.bounding
                    } else {
                        sets.inheritable
                    },
                });
                Op::Ambient { raise: sets.ambient, last: self.facts.last_cap }
            }
            ChildStep::WorkingDirectory { path } => Op::Chdir { path: c(path)?, lenient: false },
            ChildStep::CloseDescriptors { preserved } => {
                let listener = raw(self.sources.listener.as_ref().map(|l| &l.socket));
                close(*preserved, self.fifos().into_iter().chain([listener]).collect())
            }
            ChildStep::CloseHost { preserved } => {
                let sources = self.sources;
                let kept =
                    [&sources.console, &sources.container, &sources.container_root, &sources.proc];
                let listener = sources.listener.as_ref().map(|l| &l.socket);
                let kept = kept.into_iter().flatten().chain(listener);
                close(*preserved, kept.map(AsRawFd::as_raw_fd).collect())
            }
            ChildStep::OwnStandard { uid } => Op::OwnStandard { uid: *uid },
            ChildStep::NotDumpable if left_out(Defence::Dumpable) => return Ok(()),
            ChildStep::NotDumpable => {
                Op::Prctl { option: libc::PR_SET_DUMPABLE, arguments: [0, 0, 0, 0] }
            }
            ChildStep::JoinContainer { .. } => {
                let fd = raw(self.sources.container.as_ref());
                let flags = self.sources.container_namespaces.into_iter().filter(|f| *f != 0);
                self.ops.extend(flags.map(|flag| Op::Setns { fd, flag }));
                Op::Close(fd)
            }
            ChildStep::JoinRoot => {
                let fd = raw(self.sources.container_root.as_ref());
                self.ops.push(Op::Chroot { root: At::Fd(fd) });
                Op::Close(fd)
            }
            ChildStep::Terminal { size, uid, console } => {
                Op::Terminal(self.terminal(*size, *uid, *console))
            }
            ChildStep::AwaitHooks { .. } => Op::Pause,
            ChildStep::FindProgram { candidates } => {
                Op::FindProgram { candidates: all(candidates)? }
            }
            ChildStep::Seccomp { .. } => self.seccomp(),
            ChildStep::AwaitStart => {
                let [start, report] = self.fifos();
                Op::AwaitStart { start, report }
            }
            _ => self.execute()?,
        };
        self.ops.push(op);
        Ok(())
    }

    fn join(&self, namespace: Namespace) -> Op {
        let fd = self
            .sources
            .namespaces
            .iter()
            .find(|(n, _)| *n == namespace)
            .map_or(-1, |(_, fd)| fd.as_raw_fd());
        Op::Setns { fd, flag: i32::try_from(namespace.flag()).unwrap_or(0) }
    }

    /// Going in by setns(2) instead of through a child (Linux 5.6).
    fn time_namespace(&mut self, offsets: &[TimeOffset]) -> io::Result<()> {
        let flag = Namespace::Time.flag();
        self.ops.push(Op::Unshare { flags: flag });
        if !offsets.is_empty() {
            let line = |o: &TimeOffset| format!("{} {}\n", plan::clock(o.clock), plan::offset(*o));
            let lines: String = offsets.iter().map(line).collect();
            self.ops.push(write_proc(self.proc(), "self/timens_offsets", &lines)?);
        }
        let path = c("self/ns/time_for_children")?;
        self.ops.push(Op::SetnsProc {
            proc: self.proc(),
            path,
            flag: i32::try_from(flag).unwrap_or(0),
        });
        Ok(())
    }

    /// Capabilities survive the change of the user, so that the exact sets can be given afterwards (PR_SET_KEEPCAPS).
    fn ids(&mut self, uid: u32, gid: u32, groups: Option<Vec<u32>>) -> io::Result<()> {
        // As root first: the folder may be closed to the user, or (later) to root without its capabilities.
        self.ops.push(Op::Chdir { path: c(&self.process.cwd)?, lenient: true });
        self.ops.push(Op::Prctl { option: libc::PR_SET_KEEPCAPS, arguments: [1, 0, 0, 0] });
        self.ops.push(Op::Ids { uid, gid, groups });
        self.ops.push(Op::Prctl { option: libc::PR_SET_KEEPCAPS, arguments: [0, 0, 0, 0] });
        if self.filter.is_some() && uid != 0 {
            // The effective set was cleared with the user; installing the filter may need it.
            let kept = self.facts.effective;
            self.ops.push(Op::SetCapabilities { effective: kept, permitted: kept, inheritable: 0 });
        }
        Ok(())
    }

    fn proc(&self) -> i32 {
        self.sources.proc.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn fifos(&self) -> [i32; 2] {
        self.sources
            .fifos
            .as_ref()
            .map_or([-1, -1], |[start, report]| [start.as_raw_fd(), report.as_raw_fd()])
    }

    fn terminal(&self, size: Option<(u16, u16)>, uid: u32, console: bool) -> Terminal {
        // In a container that is joined its root is our own by now.
        let root = if self.sources.container.is_some() { At::Fd(-1) } else { ROOT };
        Terminal {
            root,
            socket: raw(self.sources.console.as_ref()),
            size,
            uid,
            console: console.then(|| mount_calls(self.facts)),
        }
    }

    fn seccomp(&self) -> Op {
        let Some(filter) = self.filter else {
            return Op::Seccomp { program: Vec::new(), flags: 0 };
        };
        let program = filter.instructions.iter().map(|(code, jt, jf, k)| libc::sock_filter {
            code: *code,
            jt: *jt,
            jf: *jf,
            k: *k,
        });
        let (program, flags) = (program.collect(), filter.flags);
        match &self.sources.listener {
            Some(listener) => Op::SeccompNotify(Notify {
                program,
                flags,
                socket: listener.socket.as_raw_fd(),
                message: listener.message.clone(),
                stack: Stack::default(),
            }),
            None => Op::Seccomp { program, flags },
        }
    }

    fn execute(&self) -> io::Result<Op> {
        let candidates = self.ops.iter().find_map(|op| match op {
            Op::FindProgram { candidates } => Some(candidates.clone()),
            _ => None,
        });
        Ok(Op::Execute {
            candidates: candidates.unwrap_or_default(),
            arguments: Strings::new(all(&self.process.args)?),
            environment: Strings::new(all(&self.process.env)?),
        })
    }

    fn path_step(&mut self, step: &ChildStep) -> io::Result<()> {
        let calls = mount_calls(self.facts);
        let op = match step {
            ChildStep::Label { path, label } => {
                self.resolve(path, Make::Nothing)?;
                Op::Label { folder: At::Slot(TARGET), label: c(label)? }
            }
            ChildStep::Device(device) => make_node(device)?,
            ChildStep::Symlink { path, target } => {
                let (folder, name) = Chain::split(path)?;
                Op::MakeSymlink { root: ROOT, folder, name, target: c(target)?, exact: false }
            }
            ChildStep::Mask { path } => {
                Op::Mask { root: ROOT, chain: Chain::new(path)?, empty: EMPTY, calls }
            }
            ChildStep::ReadonlyPath { path } => {
                Op::ReadonlyPath { root: ROOT, chain: Chain::new(path)?, calls }
            }
            ChildStep::Folder { .. } if left_out(Defence::WorkingDirectory) => return Ok(()),
            ChildStep::Folder { path } => {
                // The spec lets a working directory be written with "..", which ends at the root.
                Op::Resolve {
                    root: ROOT,
                    chain: Chain::new(&clean(path))?,
                    make: Make::Folder,
                    follow: true,
                    into: TARGET,
                }
            }
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        self.ops.push(op);
        Ok(())
    }

    fn mount_step(&mut self, step: &ChildStep) -> io::Result<()> {
        match step {
            ChildStep::HostPropagation { propagation } => {
                let flags = source::number(*propagation) | MS_REC;
                self.ops.push(Op::MountPath {
                    source: None,
                    target: c("/")?,
                    fstype: None,
                    flags,
                    data: None,
                });
            }
            ChildStep::RootBind { path, over_root } => self.root_bind(path, *over_root)?,
            ChildStep::RootOverlay { lower, owners: Owners::Mapped | Owners::Copied, .. } => {
                self.root_bind(lower, true)?;
            }
            ChildStep::RootOverlay { lower, below, scratch, tmpfs, .. } => {
                let own = self.own_layer(scratch, *tmpfs)?;
                if below.is_empty() {
                    self.root_overlay(lower, scratch, &own)?;
                } else {
                    self.root_layers(lower, below, scratch, &own)?;
                }
            }
            ChildStep::Mount(mount) => self.mount(mount)?,
            ChildStep::BindDevice(device) => self.mount(&Mount::of_device(device))?,
            ChildStep::SetAttributes { path, attrs } => {
                self.resolve(path, Make::Nothing)?;
                self.set_attributes(At::Slot(TARGET), *attrs);
            }
            ChildStep::ChangeRoot { how } => self.change_root(*how)?,
            ChildStep::RootPropagation { propagation } => {
                let flags = source::number(*propagation);
                self.ops.push(Op::MountPath {
                    source: None,
                    target: c("/")?,
                    fstype: None,
                    flags,
                    data: None,
                });
            }
            _ => self.set_attributes(ROOT, Attrs { set: attr::RDONLY, clear: 0 }),
        }
        Ok(())
    }

    fn root_bind(&mut self, path: &Path, over_root: bool) -> io::Result<()> {
        let path = c_path(path)?;
        if let (Some(tree), true) = (&self.sources.root, over_root) {
            self.ops.push(Op::MoveMountTo { from: At::Fd(tree.as_raw_fd()), path: c("/")? });
            // What was a mount without a place is the same one now that it has one.
            self.ops.push(Op::Keep { fd: tree.as_raw_fd(), into: ROOT_SLOT });
            self.over_root = true;
            return Ok(());
        }
        if let Some(tree) = &self.sources.root {
            self.ops.push(Op::MoveMountTo { from: At::Fd(tree.as_raw_fd()), path: path.clone() });
        } else {
            let flags = libc::MS_BIND | MS_REC;
            self.ops.push(Op::MountPath {
                source: Some(path.clone()),
                target: path.clone(),
                fstype: None,
                flags,
                data: None,
            });
        }
        self.ops.push(Op::OpenTree { path, clone: false, recursive: false, into: ROOT_SLOT });
        Ok(())
    }

    /// The names of upper and work folder in the scratch folder. A tmpfs is mounted over what would be the upper layer,
    /// and holds both; whatever the process writes counts as its memory.
    fn own_layer(&mut self, scratch: &Path, tmpfs: Option<Tmpfs>) -> io::Result<OwnLayer> {
        let Some(tmpfs) = tmpfs else { return Ok([("upperdir", "upper"), ("workdir", "work")]) };
        let own = [("upperdir", "upper/upper"), ("workdir", "upper/work")];
        let size = tmpfs.size.map(|size| format!(",size={size}")).unwrap_or_default();
        self.ops.push(Op::MountPath {
            source: Some(c("tmpfs")?),
            target: c_path(&scratch.join("upper"))?,
            fstype: Some(c("tmpfs")?),
            flags: 0,
            data: Some(c(&format!("mode=700{size}"))?),
        });
        for (_, name) in own {
            self.ops.push(Op::MakeFolderPath { path: c_path(&scratch.join(name))?, mode: 0o755 });
        }
        Ok(own)
    }

    /// Mounted over the scratch folder's `merged`, in the container's own mount namespace only.
    fn root_overlay(&mut self, lower: &Path, scratch: &Path, own: &OwnLayer) -> io::Result<()> {
        /// fsconfig(2) takes no longer string.
        const LONGEST_PARAMETER: usize = 255;
        let merged = c_path(&scratch.join("merged"))?;
        let own = own.map(|(key, name)| (key, escape(&scratch.join(name))));
        let layers: Vec<_> = std::iter::once(("lowerdir", escape(lower))).chain(own).collect();
        let short = layers.iter().all(|(_, value)| value.len() <= LONGEST_PARAMETER);
        if short && mount_calls(self.facts) == MountCalls::New {
            let options = layers.iter().map(|(key, value)| Ok((c(key)?, Some(c(value)?))));
            self.overlay_of(options, &merged)?;
        } else {
            let data: Vec<String> = layers
                .iter()
                .map(|(key, value)| format!("{key}={}", value.replace(',', "\\,")))
                .collect();
            self.overlay_by(&data.join(","), &merged)?;
        }
        self.open_root(merged);
        Ok(())
    }

    /// Layers of an image. The kernel takes them one by one; before it could, all in one text of a page, for which each
    /// has a short name in the scratch folder.
    fn root_layers(
        &mut self,
        lower: &Path,
        below: &[PathBuf],
        scratch: &Path,
        own: &OwnLayer,
    ) -> io::Result<()> {
        let merged = c_path(&scratch.join("merged"))?;
        if takes_layers_one_by_one(self.facts) {
            let layers = std::iter::once(lower).chain(below.iter().map(PathBuf::as_path));
            let layers = layers.map(|layer| Ok((c("lowerdir+")?, Some(c_path(layer)?))));
            let own = own.map(|(key, name)| Ok((c(key)?, Some(c_path(&scratch.join(name))?))));
            self.overlay_of(layers.chain(own), &merged)?;
        } else {
            let names: Vec<String> = (0..=below.len()).map(|i| i.to_string()).collect();
            let [upper, work] = own.map(|(key, name)| format!("{key}={name}"));
            let data = format!("lowerdir={},{upper},{work}", names.join(":"));
            self.ops.push(Op::Chdir { path: c_path(scratch)?, lenient: false });
            self.overlay_by(&data, &merged)?;
            self.ops.push(Op::Chdir { path: c("/")?, lenient: false });
        }
        self.open_root(merged);
        Ok(())
    }

    /// By fsconfig(2).
    fn overlay_of(
        &mut self,
        options: impl Iterator<Item = io::Result<(CString, Option<CString>)>>,
        merged: &CString,
    ) -> io::Result<()> {
        let volatile = std::iter::once(Ok((c(VOLATILE)?, None)));
        self.ops.push(Op::NewMount {
            fstype: c("overlay")?,
            source: c("overlay")?,
            options: options.chain(volatile).collect::<io::Result<_>>()?,
            attributes: 0,
            mode_of: None,
            into: MOUNT,
        });
        self.ops.push(Op::MoveMountTo { from: At::Slot(MOUNT), path: merged.clone() });
        Ok(())
    }

    /// By mount(2), with all options in one text.
    fn overlay_by(&mut self, options: &str, merged: &CString) -> io::Result<()> {
        self.ops.push(Op::MountPath {
            source: Some(c("overlay")?),
            target: merged.clone(),
            fstype: Some(c("overlay")?),
            flags: 0,
            data: Some(c(&format!("{options},{VOLATILE}"))?),
        });
        Ok(())
    }

    fn open_root(&mut self, path: CString) {
        self.ops.push(Op::OpenTree { path, clone: false, recursive: false, into: ROOT_SLOT });
    }

    fn change_root(&mut self, how: ChangeRoot) -> io::Result<()> {
        let op = match (how, &self.sources.root) {
            (ChangeRoot::Pivot, _) => Op::PivotRoot { root: ROOT },
            // It lies over `/` already.
            (ChangeRoot::Move, _) if self.over_root => Op::Chroot { root: ROOT },
            (ChangeRoot::Move, _) => Op::MoveRoot { root: ROOT, calls: mount_calls(self.facts) },
            (ChangeRoot::Chroot, Some(folder)) => Op::Chroot { root: At::Fd(folder.as_raw_fd()) },
            // In a joined mount namespace the path means what it means there.
            (ChangeRoot::Chroot, None) => {
                let path = c_path(self.root)?;
                self.ops.push(Op::OpenTree {
                    path,
                    clone: false,
                    recursive: false,
                    into: ROOT_SLOT,
                });
                Op::Chroot { root: ROOT }
            }
        };
        self.ops.push(op);
        Ok(())
    }

    fn resolve(&mut self, path: &str, make: Make) -> io::Result<()> {
        let chain = Chain::new(path)?;
        self.ops.push(Op::Resolve { root: ROOT, chain, make, follow: true, into: TARGET });
        Ok(())
    }

    fn set_attributes(&mut self, mount: At, attrs: Attrs) {
        self.ops.push(match mount_calls(self.facts) {
            MountCalls::New => {
                let attributes =
                    MountAttr { set: attrs.set, clear: attrs.clear, ..MountAttr::default() };
                Op::SetAttributes { mount, attributes, recursive: false }
            }
            MountCalls::Classic => Op::RemountOn {
                target: mount,
                set: classic_flags(attrs.set),
                clear: classic_flags(attrs.clear),
            },
        });
    }
}

/// MOUNT_ATTR_* to MS_* (mount(2)).
fn classic_flags(attrs: u64) -> u64 {
    const MAP: [(u64, u64); 8] = [
        (attr::RDONLY, libc::MS_RDONLY),
        (attr::NOSUID, libc::MS_NOSUID),
        (attr::NODEV, libc::MS_NODEV),
        (attr::NOEXEC, libc::MS_NOEXEC),
        (attr::NOATIME, libc::MS_NOATIME),
        (attr::STRICTATIME, libc::MS_STRICTATIME),
        (attr::NODIRATIME, libc::MS_NODIRATIME),
        (attr::NOSYMFOLLOW, 256),
    ];
    MAP.iter().filter(|(new, _)| attrs & new != 0).fold(0, |flags, (_, classic)| flags | classic)
}

fn close(preserved: u32, keep: Vec<i32>) -> Op {
    let from = i32::try_from(preserved).map_or(i32::MAX, |p| p.saturating_add(3));
    Op::CloseFrom { from, keep }
}

/// A descriptor that is there by construction, where a step needs it.
fn raw(fd: Option<&OwnedFd>) -> i32 {
    fd.map_or(-1, AsRawFd::as_raw_fd)
}

fn make_node(device: &Device) -> io::Result<Op> {
    let (folder, name) = Chain::split(&device.path)?;
    let kind = match device.kind {
        DeviceType::Block => libc::S_IFBLK,
        DeviceType::Char => libc::S_IFCHR,
        DeviceType::Fifo => libc::S_IFIFO,
    };
    let number =
        if device.kind == DeviceType::Fifo { 0 } else { libc::makedev(device.major, device.minor) };
    Ok(Op::MakeNode {
        root: ROOT,
        folder,
        name,
        mode: kind | device.mode,
        device: number,
        uid: device.uid,
        gid: device.gid,
    })
}

fn parameters(options: &[(String, Option<String>)]) -> io::Result<Vec<(CString, Option<CString>)>> {
    options.iter().map(|(key, value)| Ok((c(key)?, value.as_deref().map(c).transpose()?))).collect()
}

/// Overlay reads `:` as a separator of layers and `\` as an escape.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn c(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn all(strings: &[String]) -> io::Result<Vec<CString>> {
    strings.iter().map(|s| c(s)).collect()
}
