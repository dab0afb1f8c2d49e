//! Networks of several nodes on one machine: a bridge, and a cable from it to each.

use std::process::Command;

use hafen::network::netns::{self, Kind};

use super::layout::{Layout, own_address};

const BRIDGE: &str = "hafen-up";

/// By ip of iproute2.
fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.map_err(|e| format!("run ip (of iproute2): {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

pub(super) fn lay(layout: &Layout) -> Result<(), String> {
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {}/24 dev {BRIDGE}", own_address()))?;
    ip(&format!("link set {BRIDGE} up"))?;
    for member in &layout.members {
        let namespace = &member.namespace;
        netns::create(Kind::Network, namespace).map_err(|e| e.to_string())?;
        let (cable, at) = (&member.cable, namespace.display());
        ip(&format!("link add {cable} type veth peer name eth0 netns {at}"))?;
        ip(&format!("link set {cable} master {BRIDGE} up"))?;
        let inside = netns::inside(namespace, || {
            ip(&format!("address add {}/24 dev eth0", member.address))?;
            ip("link set eth0 up")?;
            ip(&format!("route add default via {}", own_address()))
        });
        inside.map_err(|e| e.to_string())??;
    }
    Ok(())
}

/// Also what another one has left.
pub(super) fn remove(layout: &Layout) {
    for member in &layout.members {
        // The cable goes with either end, and nothing may be there.
        let _ = ip(&format!("link delete {}", member.cable));
        let _ = netns::remove(&member.namespace);
    }
    let _ = ip(&format!("link delete {BRIDGE}"));
}
