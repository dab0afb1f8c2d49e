//! Images for tasks, fetched as `hafen image pull` does it.

use std::sync::Arc;

use hafen_registry::{Options, pull};
use hafen_rootfs::store::{Store, Unpacking};
use hafen_rootfs::unpack::Bounds;
use hafen_spec::image::Reference;
use hafen_sys::file::boot_id;

use crate::failure::chain;

/// Fetch and unpack an image. Several who want the same one share the work: the store sees to that.
///
/// # Errors
/// In words.
pub async fn image(store: &Store, name: &str) -> Result<(), String> {
    let reference: Reference = name.parse()?;
    let guard = store.hold().map_err(|e| chain(&e))?;
    let boot = boot_id().map_err(|e| chain(&e))?;
    let quiet = Arc::new(|_| ());
    let target =
        pull(store, &reference, &Options::default(), quiet).await.map_err(|e| chain(&e))?;
    let store = store.clone();
    let unpack = move || {
        // Held until the name leads to it.
        let _guard = guard;
        store.sync_layers(&boot)?;
        let how = Unpacking { bounds: Bounds::default(), boot_id: &boot, progress: &|_, _| {} };
        store.layers_of(&store.image(&target)?, &how)?;
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        store.tag(&reference, target, now)
    };
    let unpacked = tokio::task::spawn_blocking(unpack).await.map_err(|e| e.to_string())?;
    unpacked.map_err(|e| chain(&e))
}
