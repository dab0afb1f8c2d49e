//! What a container may not see or take.

pub mod cgroup;
pub mod device;
pub mod interface;
pub mod network;
pub mod resctrl;
pub mod seccomp;
pub mod systemd;
