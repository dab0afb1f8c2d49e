//! The volumes of a container without a bundle.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use hafen_rootfs::copy_up::{self, Given};
use hafen_rootfs::store::Guard;
use hafen_rootfs::volumes::{VolumeError, VolumeUse, Volumes};
use hafen_rootfs::{Scratch, Share};
use hafen_spec::plan::{Claim, HostStep, Seed};
use hafen_spec::resolved::{IdMaps, Mount, Owners, Resolved};
use hafen_sys::file::boot_id;
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::prepare::write_down;
use crate::{Error, apart};

/// What has to be there before the container.
#[derive(Debug)]
pub(crate) struct VolumeBase {
    pub(crate) store: Volumes,
    pub(crate) named: Vec<Filled>,
    /// Places for which the image wants a folder apart from its root file system.
    pub(crate) anonymous: Vec<String>,
    /// The volumes stay until their use is written down.
    pub(crate) guard: Option<Guard>,
}

/// A named volume, and the place whose content it begins with.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) name: String,
    pub(crate) destination: String,
}

impl VolumeBase {
    /// Folders for the places of the image, as mounts. They go with the scratch folder.
    pub(crate) fn add_mounts(&self, resolved: &mut Resolved, scratch: &Scratch) {
        let all = self.apart(scratch).enumerate();
        resolved
            .mounts
            .extend(all.map(|(i, place)| Mount::of(own_folder(&scratch.path, i), place)));
    }

    /// What is written in memory anyway needs no folder.
    fn apart(&self, scratch: &Scratch) -> impl Iterator<Item = &String> {
        self.anonymous.iter().filter(|_| scratch.tmpfs.is_none())
    }

    /// Steps that make what the mounts show, after those that make the scratch folder.
    pub(crate) fn add_steps(
        &self,
        share: &mut Share,
        resolved: &Resolved,
        scratch: &Scratch,
        container: &Path,
    ) -> Result<(), Error> {
        let root = &resolved.root;
        let seed = |inside: &String, owners: Option<IdMaps>| Seed {
            layers: root.layers(),
            scratch: scratch.path.clone(),
            inside: inside.clone(),
            owners,
        };
        let maps = resolved.user.clone().filter(|_| root.owners != Owners::Same);
        let named = self.named.iter().map(|volume| HostStep::MakeVolume {
            root: self.store.root().to_owned(),
            name: volume.name.clone(),
            seed: seed(&volume.destination, None),
        });
        let own = self.apart(scratch).enumerate().map(|(i, place)| HostStep::SeedFolder {
            path: own_folder(&scratch.path, i),
            seed: seed(place, maps.clone()),
        });
        share.before.extend(named.chain(own));
        if self.named.is_empty() {
            return Ok(());
        }
        let (claim, step) = self.usage(container)?;
        share.claims.insert(0, claim);
        share.before.insert(0, step);
        Ok(())
    }

    fn usage(&self, container: &Path) -> Result<(Claim, HostStep), Error> {
        let usage = VolumeUse {
            boot_id: boot_id()?,
            container: container.to_owned(),
            volumes: self.named.iter().map(|volume| volume.name.clone()).collect(),
        };
        write_down(self.store.use_path(container), &usage, None)
    }
}

fn own_folder(scratch: &Path, number: usize) -> PathBuf {
    scratch.join("volumes").join(number.to_string())
}

/// # Errors
/// Names the volume and the call.
pub(crate) fn make(root: &Path, name: &str, seed: &Seed) -> Result<(), CallError> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let made = Volumes::at(root.to_owned()).create(name, &now, |folder| fill(folder, seed));
    made.map(drop).map_err(|e| match e {
        VolumeError::Call(e) => CallError::new(format!("make volume {name}: {}", e.call), e.source),
        other => CallError::new(format!("make volume {name}"), io::Error::other(other)),
    })
}

/// # Errors
/// Names the folder and the call.
pub(crate) fn seed(path: &Path, seed: &Seed) -> Result<(), CallError> {
    fs::create_dir_all(path).call(|| format!("mkdir {}", path.display()))?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = open(path, flags, Mode::empty()).call(|| format!("open {}", path.display()))?;
    fill(&folder, seed)
}

fn fill(folder: &OwnedFd, seed: &Seed) -> Result<(), CallError> {
    let all = apart::merged(&seed.layers, &seed.scratch)?;
    copy_up::fill(folder, &all, &seed.inside, Given::default(), seed.owners.as_ref())
}
