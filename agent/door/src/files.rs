//! Files that we may have open: each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For what is no connection, and for root, whom nobody keeps out.
const OTHERS: usize = 128;

/// How many connections there may be. As many files as we may ask for are asked for: a shell gives 1,024.
#[must_use]
pub fn most_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return OTHERS };
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let files = usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX);
    files.saturating_sub(OTHERS).max(OTHERS)
}
