//! What a container stands on.
//!
//! [`share`] turns a resolved container into its root file system, mounts, devices and links, as
//! data: claims, and steps for the first process. [`source`] opens what those steps refer to on the
//! host, once, before anything of the container's exists. [`release`] gives a claimed folder back.
//! [`unpack`] makes a folder of the overlay from a layer's archive, and [`pack`] such an archive from a folder.

pub mod account;
pub mod copy_up;
mod devices;
pub mod export;
pub mod import;
pub mod layers;
pub mod pack;
pub mod release;
pub mod scratch;
mod share;
pub mod source;
pub mod store;
pub mod unpack;
pub mod volumes;

pub use share::{CgroupView, Scratch, Share, share};
