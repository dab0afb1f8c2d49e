//! What has gone over a container's network.

use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use serde::Serialize;

/// Counters of a network device of the container, from its own side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// `None` where the network is the host's: its counters are not the container's.
#[must_use]
pub fn of(pid: i32) -> Option<Vec<Interface>> {
    // Ours does not change.
    static OWN: OnceLock<Option<u64>> = OnceLock::new();
    let namespace = |who: &str| Some(std::fs::metadata(format!("/proc/{who}/ns/net")).ok()?.ino());
    if namespace(&pid.to_string())? == (*OWN.get_or_init(|| namespace("self")))? {
        return None;
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(table.lines().filter_map(interface).filter(|i| i.name != "lo").collect())
}

/// A name, eight numbers about what was received, eight about what was sent (proc_pid_net(5)).
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = numbers[..]
    else {
        return None;
    };
    let name = name.trim().to_owned();
    Some(Interface {
        name,
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_table() {
        let line = "  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16";
        let found = interface(line).unwrap();
        assert_eq!(
            (found.name.as_str(), found.rx_dropped, found.tx_bytes, found.tx_dropped),
            ("eth0", 4, 9, 12)
        );
        assert_eq!(interface("Inter-|   Receive     |  Transmit"), None);
    }
}
