//! What the integration suite may rely on when it runs on this machine.

/// Root and hybrid cgroups.
pub(super) const NATIVE: &str = "native";

/// The value of `NEEDS`: `native` promises root and hybrid cgroups, so it is said only where both are there;
/// elsewhere the suite ignores what it cannot do and names the lack.
pub(super) fn of_this_machine() -> &'static str {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = crate::setup::is_root().unwrap_or(false);
    if root && is_hybrid(&cgroups) { NATIVE } else { "" }
}

/// Whether a line of `/proc/self/cgroup` (`ID:CONTROLLERS:PATH`, `cgroups(7)`) has a controller of version 1.
fn is_hybrid(cgroups: &str) -> bool {
    let mut controllers = cgroups.lines().filter_map(|line| line.split(':').nth(1));
    controllers.any(|list| !list.is_empty() && !list.starts_with("name="))
}

#[cfg(test)]
mod tests {
    use super::is_hybrid;

    #[test]
    fn a_controller_of_version_1_makes_it_hybrid() {
        assert!(is_hybrid("9:name=systemd:/\n3:memory:/\n0::/\n"));
        assert!(is_hybrid("3:cpu,cpuacct:/\n"));
        assert!(!is_hybrid("1:name=systemd:/\n0::/user.slice\n"));
        assert!(!is_hybrid(""));
    }
}
