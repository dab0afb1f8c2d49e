use std::collections::BTreeMap;

use oci_spec::runtime::Spec;

use crate::Problems;
use crate::resolved::{Namespace, Namespaces, NetDevice};

/// IFNAMSIZ (netdevice(7)), without the NUL.
const LONGEST_NAME: usize = 15;

/// In the order of their names on the host.
pub(super) fn devices(
    spec: &Spec,
    namespaces: &Namespaces,
    problems: &mut Problems,
) -> Vec<NetDevice> {
    let listed = spec.linux().as_ref().and_then(|l| l.net_devices().as_ref());
    let sorted: BTreeMap<_, _> = listed.into_iter().flatten().collect();
    let mut devices: Vec<NetDevice> = Vec::new();
    if !sorted.is_empty() && !namespaces.is_private(Namespace::Network) {
        problems
            .add("linux.netDevices", "needs a network namespace of its own in linux.namespaces");
    }
    for (host, device) in sorted {
        let field = format!("linux.netDevices[{host:?}]");
        let inside = device.name().as_ref().filter(|n| !n.is_empty());
        check_name(host, &field, problems);
        if let Some(name) = inside {
            check_name(name, &format!("{field}.name"), problems);
        }
        let inside = inside.unwrap_or(host);
        if devices.iter().any(|other| other.inside == *inside) {
            problems.add(format!("{field}.name"), format!("{inside:?} is given twice"));
        }
        devices.push(NetDevice { host: host.clone(), inside: inside.clone() });
    }
    devices
}

/// As the kernel has it, which moreover would take `%` for a pattern.
fn check_name(name: &str, field: &str, problems: &mut Problems) {
    let wrong = |c: char| c.is_whitespace() || "/:%\0".contains(c);
    if name.is_empty()
        || name.len() > LONGEST_NAME
        || name == "."
        || name == ".."
        || name.contains(wrong)
    {
        problems.add(field, format!("{name:?} is not the name of an interface"));
    }
}
