//! The entries of `mounts`.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use hafen_rootfs::source::{self, Source};
use hafen_spec::resolve::attr;
use hafen_spec::resolved::{Attrs, Mount, MountKind, Propagation, SourceLink};
use hafen_sys::child::{At, Chain, Make, MountCalls, Op};
use hafen_sys::mount::MountAttr;
use hafen_sys::weaken::{Defence, left_out};

use super::{Encoder, MOUNT, MS_REC, ROOT, TARGET, c, classic_flags, mount_calls, parameters};

type Parameters = [(String, Option<String>)];

/// What mount(2) takes as flags and fsconfig(2) by name; 0 for what takes one away.
const FILE_SYSTEM_FLAGS: [(&str, u64); 9] = [
    ("ro", 0),
    ("rw", 0),
    ("sync", libc::MS_SYNCHRONOUS),
    ("async", 0),
    ("dirsync", libc::MS_DIRSYNC),
    ("lazytime", 1 << 25),
    ("nolazytime", 0),
    ("mand", libc::MS_MANDLOCK),
    ("nomand", 0),
];

impl Encoder<'_> {
    pub(super) fn mount(&mut self, mount: &Mount) -> io::Result<()> {
        let calls = mount_calls(self.facts);
        match &mount.kind {
            MountKind::New { copy_up: true, .. } => self.prepared_mount(mount),
            MountKind::New { fstype, source, options, .. } => match calls {
                MountCalls::New => self.new_mount(mount, fstype, source, options),
                MountCalls::Classic => self.classic_mount(mount, fstype, source, options),
            },
            MountKind::Bind { .. } => self.bind(mount, calls),
            MountKind::Remount { options } => self.remount(mount, options, calls),
            // Taken apart by the root file system's share.
            MountKind::Cgroup { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn new_mount(
        &mut self,
        mount: &Mount,
        fstype: &str,
        source: &str,
        options: &Parameters,
    ) -> io::Result<()> {
        self.place(mount, Make::Folder)?;
        self.ops.push(Op::NewMount {
            fstype: c(fstype)?,
            source: c(source)?,
            options: parameters(options)?,
            attributes: mount.attrs.set,
            mode_of: takes_mode(fstype, options).then_some(TARGET),
            into: MOUNT,
        });
        self.attach(At::Slot(MOUNT), mount, |_| true);
        self.has_mounted = true;
        Ok(())
    }

    /// The runtime has made and filled it.
    fn prepared_mount(&mut self, mount: &Mount) -> io::Result<()> {
        let tree = At::Fd(self.next_bind()?.tree.as_raw_fd());
        self.place(mount, Make::Folder)?;
        let tree = self.in_order(tree, true);
        self.attach(tree, mount, |_| true);
        Ok(())
    }

    /// The runtime made the mount before the process was born; in mountinfo it is to stand where the bundle has it.
    fn in_order(&mut self, from: At, folder: bool) -> At {
        if !self.has_mounted || !self.pivots {
            return from;
        }
        self.ops.push(Op::RenewMount { from, folder, into: MOUNT });
        At::Slot(MOUNT)
    }

    /// There are many of them, and nobody named them in this order.
    fn is_cgroup(&self, mount: &Mount) -> bool {
        let layout = &self.facts.cgroup;
        let MountKind::Bind { source, .. } = &mount.kind else { return false };
        layout.tree.iter().chain(layout.legacy.values()).any(|tree| source.starts_with(tree))
    }

    fn attach(&mut self, tree: At, mount: &Mount, left: fn(Propagation) -> bool) {
        self.ops.push(Op::MoveMount { from: tree, to: At::Slot(TARGET) });
        for (propagation, recursive) in mount.propagation.iter().filter(|(p, _)| left(*p)) {
            let attributes =
                MountAttr { propagation: source::number(*propagation), ..MountAttr::default() };
            self.ops.push(Op::SetAttributes { mount: tree, attributes, recursive: *recursive });
        }
    }

    fn bind(&mut self, mount: &Mount, calls: MountCalls) -> io::Result<()> {
        let source = self.next_bind()?;
        if let Some(target) = &source.link {
            let (folder, name) = Chain::split(&mount.destination)?;
            let target = CString::new(target.as_os_str().as_bytes())?;
            self.ops.push(Op::MakeSymlink { root: ROOT, folder, name, target, exact: true });
            return Ok(());
        }
        if calls == MountCalls::Classic {
            return self.classic_bind(mount, source);
        }
        self.place(mount, target_kind(source))?;
        let tree = At::Fd(source.tree.as_raw_fd());
        let tree = if self.is_cgroup(mount) { tree } else { self.in_order(tree, source.is_folder) };
        self.attach(tree, mount, source::is_left);
        Ok(())
    }

    fn next_bind<'b>(&mut self) -> io::Result<&'b Source>
    where
        Self: 'b,
    {
        self.binds.next().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remount(
        &mut self,
        mount: &Mount,
        options: &Parameters,
        calls: MountCalls,
    ) -> io::Result<()> {
        self.place(mount, Make::Nothing)?;
        let target = At::Slot(TARGET);
        match calls {
            _ if options.is_empty() => {}
            MountCalls::New => {
                self.ops.push(Op::Reconfigure { mount: target, options: parameters(options)? });
            }
            MountCalls::Classic => self.ops.push(Op::MountOn {
                source: None,
                target,
                fstype: None,
                flags: libc::MS_REMOUNT
                    | classic_flags(mount.attrs.set)
                    | file_system_flags(options),
                data: Some(data(options)?),
                mode_of: false,
            }),
        }
        if !mount.attrs.is_empty() {
            self.set_attributes(target, mount.attrs);
        }
        Ok(())
    }

    fn classic_mount(
        &mut self,
        mount: &Mount,
        fstype: &str,
        source: &str,
        options: &Parameters,
    ) -> io::Result<()> {
        self.place(mount, Make::Folder)?;
        self.ops.push(Op::MountOn {
            source: Some(c(source)?),
            target: At::Slot(TARGET),
            fstype: Some(c(fstype)?),
            flags: classic_flags(mount.attrs.set) | file_system_flags(options),
            data: Some(data(options)?),
            mode_of: takes_mode(fstype, options),
        });
        self.classic_propagation(mount)
    }

    fn classic_bind(&mut self, mount: &Mount, source: &Source) -> io::Result<()> {
        let MountKind::Bind { source: path, recursive, link } = &mount.kind else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        if mount.recursive_attrs != Attrs::default() {
            return Err(unsupported("recursive attributes need mount_setattr (Linux 5.12)"));
        }
        if mount.id_map.is_some() {
            return Err(unsupported("id maps need mount_setattr (Linux 5.12)"));
        }
        // By its path a link would be followed.
        let name = match link {
            SourceLink::Mount => c(&format!("/proc/self/fd/{}", source.tree.as_raw_fd()))?,
            SourceLink::Follow | SourceLink::Copy => CString::new(path.as_os_str().as_bytes())?,
        };
        self.place(mount, target_kind(source))?;
        let tree = if *recursive { MS_REC } else { 0 };
        self.ops.push(Op::MountOn {
            source: Some(name),
            target: At::Slot(TARGET),
            fstype: None,
            flags: libc::MS_BIND | tree,
            data: None,
            mode_of: false,
        });
        if !mount.attrs.is_empty() {
            // Looked up again: the old descriptor stands for what is below the new mount.
            self.find(mount, Make::Nothing)?;
            self.set_attributes(At::Slot(TARGET), mount.attrs);
        }
        self.classic_propagation(mount)
    }

    fn classic_propagation(&mut self, mount: &Mount) -> io::Result<()> {
        for (propagation, recursive) in &mount.propagation {
            self.find(mount, Make::Nothing)?;
            let flags = source::number(*propagation) | if *recursive { MS_REC } else { 0 };
            self.ops.push(Op::MountOn {
                source: None,
                target: At::Slot(TARGET),
                fstype: None,
                flags,
                data: None,
                mode_of: false,
            });
        }
        Ok(())
    }

    /// The place of a mount, which must not come to lie in procfs by a link of the image's: what is read and masked there
    /// would not be the kernel's any more. And procfs itself, like sysfs, goes to the place that it is looked for.
    fn place(&mut self, mount: &Mount, make: Make) -> io::Result<()> {
        self.find(mount, make)?;
        if left_out(Defence::RootSymlink) {
            return Ok(());
        }
        match &mount.kind {
            MountKind::New { fstype, .. } if matches!(fstype.as_str(), "proc" | "sysfs") => {
                let chain = Chain::new(&mount.destination)?;
                self.ops.push(Op::ResolveWithoutLinks { root: ROOT, chain, into: TARGET });
            }
            _ if !mount.destination.starts_with("/proc/") && mount.destination != "/proc" => {
                self.ops.push(Op::RefuseProcfs { at: At::Slot(TARGET) });
            }
            _ => {}
        }
        Ok(())
    }

    fn find(&mut self, mount: &Mount, make: Make) -> io::Result<()> {
        let (chain, follow) = (Chain::new(&mount.destination)?, !mount.on_link);
        self.ops.push(Op::Resolve { root: ROOT, chain, make, follow, into: TARGET });
        Ok(())
    }
}

fn unsupported(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

fn target_kind(source: &Source) -> Make {
    if source.is_folder { Make::Folder } else { Make::File }
}

/// A tmpfs is as open as the folder that it covers, as the other runtimes have it.
fn takes_mode(fstype: &str, options: &Parameters) -> bool {
    fstype == "tmpfs" && !options.iter().any(|(key, _)| key == "mode")
}

/// Of mount(2).
fn data(options: &Parameters) -> io::Result<CString> {
    let is_flag = |key: &str| FILE_SYSTEM_FLAGS.iter().any(|(name, _)| *name == key);
    let parameters =
        options.iter().filter(|(key, _)| !is_flag(key)).map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        });
    c(&parameters.collect::<Vec<_>>().join(","))
}

fn file_system_flags(options: &Parameters) -> u64 {
    let flag = |key: &str| FILE_SYSTEM_FLAGS.iter().find(|(name, _)| *name == key);
    let found = options.iter().filter_map(|(key, _)| flag(key));
    let readonly = options.iter().any(|(key, _)| key == "ro");
    found.fold(if readonly { attr::RDONLY } else { 0 }, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_file_system_are_no_data_of_mount() {
        let options: Vec<(String, Option<String>)> =
            [("size", Some("1m")), ("sync", None), ("ro", None), ("noswap", None)]
                .map(|(key, value)| (key.to_owned(), value.map(str::to_owned)))
                .to_vec();
        assert_eq!(data(&options).unwrap().as_c_str(), c"size=1m,noswap");
        assert_eq!(file_system_flags(&options), libc::MS_SYNCHRONOUS | libc::MS_RDONLY);
        assert!(takes_mode("tmpfs", &options) && !takes_mode("proc", &options));
    }
}
