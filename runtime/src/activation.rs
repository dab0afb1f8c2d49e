//! Sockets that a service manager passes on (sd_listen_fds(3)).

use std::env;

use hafen_spec::resolved::{Namespace, Resolved};

/// Descriptors from 3 on that were meant for us. A client may already say 1, which is what the container's program is to
/// see (Podman), or leave it to us.
pub(crate) fn listening() -> u32 {
    let meant = |pid: String| pid == "1" || pid.parse() == Ok(std::process::id());
    if !env::var("LISTEN_PID").map_or(true, meant) {
        return 0;
    }
    env::var("LISTEN_FDS").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Tell the program of the descriptors that it keeps. Its pid is known beforehand in a pid namespace of its own only.
pub(crate) fn add_to(resolved: &mut Resolved) {
    let count = listening();
    if count == 0 {
        return;
    }
    let env = &mut resolved.process.env;
    env.retain(|e| !e.starts_with("LISTEN_FDS=") && !e.starts_with("LISTEN_PID="));
    env.push(format!("LISTEN_FDS={count}"));
    if let Ok(names) = env::var("LISTEN_FDNAMES") {
        env.push(format!("LISTEN_FDNAMES={names}"));
    }
    if resolved.namespaces.is_new(Namespace::Pid) {
        env.push("LISTEN_PID=1".to_owned());
    }
}
