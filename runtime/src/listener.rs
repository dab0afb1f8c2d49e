//! The agent that hears from a seccomp filter (runtime-spec, config-linux, "Seccomp").

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use hafen_isolator::seccomp::{Agent, Filter};
use hafen_sys::Context;
use oci_spec::runtime::SECCOMP_FD_NAME;
use serde_json::json;

use crate::Error;
use crate::state::State;

/// Connected before the process exists, so that a missing agent is told by name.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    /// The document that goes with the listener, without the pid: that stands between the parts.
    pub(crate) message: Vec<Vec<u8>>,
}

/// Connect where the filter notifies. The process fills its pid in; in `state` where there is none yet.
///
/// # Errors
/// Names the socket.
pub(crate) fn connect(filter: Option<&Filter>, state: State) -> Result<Option<Listener>, Error> {
    let Some(agent) = filter.and_then(|f| f.agent.as_ref()) else { return Ok(None) };
    let socket = UnixStream::connect(&agent.path)
        .call(|| format!("connect to linux.seccomp.listenerPath {}", agent.path.display()))?;
    Ok(Some(Listener { socket: socket.into(), message: message(agent, state) }))
}

fn message(agent: &Agent, state: State) -> Vec<Vec<u8>> {
    /// Nothing but the two numbers reads like this: quotes inside of strings are escaped.
    const PID: &str = "\"pid\":0";
    let mut document = json!({
        "ociVersion": state.oci_version.clone(),
        "fds": [SECCOMP_FD_NAME],
        "pid": 0,
        "state": State { pid: state.pid.or(Some(0)), ..state },
    });
    if let Some(metadata) = &agent.metadata {
        document["metadata"] = json!(metadata);
    }
    let text = document.to_string();
    let open = &PID[..PID.len() - 1];
    let mut parts: Vec<String> = text.split(PID).map(|part| format!("{part}{open}")).collect();
    if let Some(last) = parts.last_mut() {
        last.truncate(last.len() - open.len());
    }
    parts.into_iter().map(String::into_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_has_its_places() {
        let agent = Agent { path: "/a".into(), metadata: Some("\"pid\":0".to_owned()) };
        let state = |pid| State {
            oci_version: "1.0.2".to_owned(),
            id: "web".to_owned(),
            status: "running",
            pid,
            bundle: "/b".into(),
            annotations: std::collections::BTreeMap::new(),
        };
        for (own, parts) in [(None, 3), (Some(7), 2)] {
            let message = message(&agent, state(own));
            assert_eq!(message.len(), parts);
            let text = String::from_utf8(message.join(&b"42"[..])).unwrap();
            let document: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["pid"], 42);
            assert_eq!(document["state"]["pid"], own.unwrap_or(42));
            assert_eq!(document["metadata"], "\"pid\":0");
        }
    }
}
