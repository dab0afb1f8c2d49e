//! The network of a task: its namespace, what CNI plugins make in it, its ports and its files.
//!
//! | step | call | undone by |
//! |---|---|---|
//! | a namespace, also of a pod | [`netns::create`] | [`netns::remove`], after the plugins |
//! | ports that nobody has | [`ports::choose`] | dropping what it gave, once the plugins have them |
//! | the network | [`conflist::find`], [`cni::Cni::add`] | [`cni::Cni::delete`] |
//! | names | [`files::text`], [`files::write()`] | removing the folder |

pub mod cni;
pub mod conflist;
pub mod files;
pub mod netns;
pub mod ports;
