use std::path::{Path, PathBuf};

use hafen_sys::CallError;

use super::usage::key;
use super::{Store, names};
use crate::scratch;

const FOLDER: &str = "upper";

impl Store {
    /// Where what a container writes lies, if it is not to fill the folder of its state. Named after the boot as well: no
    /// container outlives it, and its state may be gone with it.
    #[must_use]
    pub fn upper_path(&self, boot_id: &str, container: &Path) -> PathBuf {
        self.path(FOLDER, boot_id).join(key(container))
    }

    /// Remove what containers of earlier boots wrote, and their limits.
    pub(super) fn remove_old_uppers(&self, boot_id: &str) -> Result<(), CallError> {
        let folder = self.root().join(FOLDER);
        for boot in names(&folder)?.iter().filter(|boot| *boot != boot_id) {
            let boot = folder.join(boot);
            names(&boot)?.iter().try_for_each(|name| scratch::remove(&boot.join(name)))?;
            scratch::remove(&boot)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn folders_of_this_boot_stay() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::at(root.path().to_owned());
        let path = |boot, id: &str| store.upper_path(boot, &Path::new("/run/h").join(id));
        let all = [path("old", "a"), path("old", "b"), path("now", "a")];
        for folder in &all {
            fs::create_dir_all(folder.join("upper/x")).unwrap();
        }
        store.remove_old_uppers("now").unwrap();
        assert_eq!(all.map(|folder| folder.exists()), [false, false, true]);
        assert!(!root.path().join("upper/old").exists());
        assert!(path("now", "a").ends_with("upper/now/run%h%a"));
    }
}
