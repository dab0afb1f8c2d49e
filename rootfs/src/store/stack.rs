use std::fs;
use std::path::PathBuf;

use hafen_spec::image::Digest;
use hafen_sys::CallError;
use hafen_sys::file::replace;
use serde::{Deserialize, Serialize};

use super::{Store, forget, names};

/// What a launch would find out by looking into each layer of an image.
///
/// It is written when all of them were seen to be there, and believed in the same boot; whoever removes any layer
/// removes all of these notes before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stack {
    pub boot_id: String,
    /// `/etc/passwd` and `/etc/group`, as the layers together show them.
    pub passwd: String,
    pub group: String,
}

const FOLDER: &str = "stacks";

impl Store {
    /// What is known of the stack of layers that ends with this chain id, and so of all of them.
    #[must_use]
    pub fn stack(&self, top: &Digest, boot_id: &str) -> Option<Stack> {
        let text = fs::read(self.stack_path(top)).ok()?;
        serde_json::from_slice(&text).ok().filter(|stack: &Stack| stack.boot_id == boot_id)
    }

    /// Write it down, under the guard under which the layers were seen. Without it a launch only takes longer.
    pub fn keep_stack(&self, top: &Digest, stack: &Stack) {
        let Ok(text) = serde_json::to_vec(stack) else { return };
        let path = self.stack_path(top);
        if fs::create_dir_all(self.root.join(FOLDER)).is_ok() {
            let _ = replace(&path, &text, false);
        }
    }

    pub(super) fn forget_stacks(&self) -> Result<(), CallError> {
        let folder = self.root.join(FOLDER);
        names(&folder)?.iter().try_for_each(|name| forget(&folder.join(name)))
    }

    fn stack_path(&self, top: &Digest) -> PathBuf {
        self.path(FOLDER, &format!("{}-{}.json", top.algorithm(), top.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_believed_in_its_boot_until_a_layer_goes() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::at(place.path().join("store"));
        drop(store.hold().unwrap());
        let top = Digest::sha256([7; 32]);
        let stack = Stack { boot_id: "now".into(), passwd: "root".into(), group: String::new() };
        assert_eq!(store.stack(&top, "now"), None);
        store.keep_stack(&top, &stack);
        assert_eq!(store.stack(&top, "now").as_ref(), Some(&stack));
        assert_eq!(store.stack(&top, "another boot"), None);
        store.remove_layer(&Digest::sha256([8; 32])).unwrap();
        assert_eq!(store.stack(&top, "now"), None);
        store.keep_stack(&top, &stack);
        fs::write(store.stack_path(&top), b"{\"bootId\":").unwrap();
        assert_eq!(store.stack(&top, "now"), None, "a torn note");
    }
}
