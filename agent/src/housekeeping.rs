//! What nobody needs any more goes by itself: tasks that ended long ago with their logs, images that nobody uses when
//! the disk is full.

use std::time::{Duration, SystemTime};

use hafen_protocol::v1;
use hafen_rootfs::store::{Collecting, Policy, Store, StoreError, Watermarks};
use hafen_sys::file::boot_id;

use crate::failure::chain;
use crate::node::Node;
use crate::{time, view};

const INTERVAL: Duration = Duration::from_secs(300);

/// For as long as the node runs.
pub(crate) async fn run(node: Node) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if forget_old_tasks(&node).await.is_none() {
            return;
        }
        collect_images(&node).await;
    }
}

/// `None`: the node has ended.
async fn forget_old_tasks(node: &Node) -> Option<()> {
    let age = node.config().gc.ended_tasks;
    let all = node.list(v1::ListTasksRequest { all: true, ..Default::default() }).await.ok()?;
    // Of those their master says when.
    let kept = node.ask(|driver| driver.masters()).await.ok()?;
    let old = all.into_iter().filter(|task| is_old(task, age) && !kept.contains(&task.id));
    for task in old {
        let (id, force) = (task.id, false);
        tracing::info!(task = id, "forgotten, it ended long ago");
        if let Err(failure) = node.remove(v1::RemoveTaskRequest { id, force }).await {
            tracing::warn!(error = %failure, "not forgotten");
        }
    }
    Some(())
}

/// What is set aside stays until somebody has looked at it.
fn is_old(task: &v1::TaskStatus, age: Duration) -> bool {
    let ended = task.ended.as_ref().or(task.created.as_ref()).map(time::system);
    let old = ended.and_then(|ended| SystemTime::now().duration_since(ended).ok());
    task.quarantined.is_empty() && view::is_end(task.state()) && old.is_some_and(|old| old > age)
}

async fn collect_images(node: &Node) {
    let (gc, images) = (node.config().gc.clone(), node.config().images.clone());
    let collected = tokio::task::spawn_blocking(move || {
        let store = Store::at(images);
        if !store.root().exists() {
            return Ok(0);
        }
        let watermarks = Some(Watermarks { high: gc.high, low: gc.low });
        let policy = Policy { watermarks, min_age: gc.min_age };
        let boot_id = boot_id().map_err(StoreError::from)?;
        let now = SystemTime::now();
        // Somebody is at work in the store: the next time, then.
        let how = Collecting { policy, now, boot_id: &boot_id, wait: false, dry: false };
        Ok::<_, StoreError>(store.collect(&how)?.map_or(0, |collected| collected.names.len()))
    });
    match collected.await {
        Ok(Ok(0)) => {}
        Ok(Ok(removed)) => tracing::info!(removed, "images collected"),
        Ok(Err(e)) => tracing::warn!(error = chain(&e), "images not collected"),
        Err(e) => tracing::warn!(error = %e, "images not collected"),
    }
}
