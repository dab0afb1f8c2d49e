//! The network of a task: its namespace, what CNI plugins make in it, its ports and its files.

pub mod cni;
pub mod conflist;
pub mod files;
pub mod netns;
pub mod ports;
