//! The runtimes that are compared.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::command::on_path;
use crate::workspace;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Runtime {
    Ours,
    Crun,
    Runc,
}

pub(super) const ALL: [Runtime; 3] = [Runtime::Ours, Runtime::Crun, Runtime::Runc];

impl Runtime {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "hafen-oci",
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }

    pub(super) fn program(self) -> Result<PathBuf> {
        match self {
            Self::Ours => Ok(workspace::target()?.join("debug/hafen-oci")),
            peer => {
                on_path(peer.name()).with_context(|| format!("{} is not installed", peer.name()))
            }
        }
    }

    /// A shell's command in the mount namespace of the run, before the suite's program.
    ///
    /// crun refuses a hybrid host whose cgroup2 tree has a controller; without that tree in sight it takes the
    /// host for one of version 1. The others run in what is there.
    pub(super) fn preparation(self) -> &'static str {
        match self {
            Self::Crun => {
                "t=/sys/fs/cgroup/unified; if [ \"$(cat $t/cgroup.controllers 2>&1)\" ] && [ -d $t ]; then umount $t; fi"
            }
            Self::Ours | Self::Runc => ":",
        }
    }
}
