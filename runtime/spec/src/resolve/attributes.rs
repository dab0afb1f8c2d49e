//! Attributes of a process beside its identity and rights, checked field by field.

mod id_list;
mod memory;
mod scheduling;

use oci_spec::runtime::{LinuxPersonalityDomain, Process as OciProcess, Spec};

use super::check_nul;
use crate::resolved::{Attributes, ExecAffinity};
use crate::{HostFacts, Problems};

pub use memory::{MEMORY_FLAGS, MEMORY_MODES};

/// PER_LINUX32 (personality(2)).
const LINUX32: u32 = 0x0008;
/// Largest NR_CPUS of any architecture.
const MOST_CPUS: u32 = 8192;

pub(super) fn attributes(
    spec: &Spec,
    process: &OciProcess,
    facts: &HostFacts,
    problems: &mut Problems,
) -> Attributes {
    Attributes {
        scheduler: process.scheduler().as_ref().map(|s| scheduling::scheduler(s, problems)),
        io_priority: process.io_priority().map(|io| scheduling::io_priority(io, problems)),
        exec_affinity: exec_affinity(process, problems),
        personality: personality(spec, problems),
        memory_policy: memory::policy(spec, problems),
        apparmor_profile: apparmor_profile(process, facts, problems),
        selinux_label: selinux_label(process, facts, problems),
    }
}

fn exec_affinity(process: &OciProcess, problems: &mut Problems) -> ExecAffinity {
    let Some(asked) = process.exec_cpu_affinity() else { return ExecAffinity::default() };
    let mut list = |text: &Option<String>, which: &str| {
        let field = format!("process.execCPUAffinity.{which}");
        id_list::parse(text.as_deref().unwrap_or_default(), MOST_CPUS, &field, problems)
    };
    ExecAffinity {
        initial: list(asked.initial(), "initial"),
        last: list(asked.cpu_affinity_final(), "final"),
    }
}

fn personality(spec: &Spec, problems: &mut Problems) -> Option<u32> {
    let asked = spec.linux().as_ref()?.personality().as_ref()?;
    if asked.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        problems.add("linux.personality.flags", "must be empty: runtime-spec supports no flags");
    }
    match asked.domain() {
        LinuxPersonalityDomain::PerLinux => Some(0),
        LinuxPersonalityDomain::PerLinux32 => Some(LINUX32),
    }
}

fn apparmor_profile(
    process: &OciProcess,
    facts: &HostFacts,
    problems: &mut Problems,
) -> Option<String> {
    let profile = process.apparmor_profile().as_ref().filter(|p| !p.is_empty())?;
    check_nul(profile, "process.apparmorProfile", problems);
    if facts.apparmor {
        return Some(profile.clone());
    }
    // Without AppArmor everything is unconfined.
    if profile != "unconfined" {
        problems.add("process.apparmorProfile", "apparmor is not enabled on the host");
    }
    None
}

/// A label that cannot be had is refused: it confines the process.
fn selinux_label(
    process: &OciProcess,
    facts: &HostFacts,
    problems: &mut Problems,
) -> Option<String> {
    const FIELD: &str = "process.selinuxLabel";
    let label = context(process.selinux_label().as_ref(), FIELD, problems)?;
    if !facts.selinux {
        problems.add(FIELD, NO_SELINUX);
    }
    Some(label)
}

/// Labels of files mean nothing to a kernel without SELinux, so one is left out, as crun does it.
pub(super) fn mount_label(
    spec: &Spec,
    facts: &HostFacts,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<String> {
    const FIELD: &str = "linux.mountLabel";
    let label = context(spec.linux().as_ref()?.mount_label().as_ref(), FIELD, problems)?;
    if !facts.selinux {
        warnings.push(format!("{FIELD}: left out: {NO_SELINUX}"));
        return None;
    }
    Some(label)
}

const NO_SELINUX: &str = "selinux is not enabled on the host";

fn context(label: Option<&String>, field: &str, problems: &mut Problems) -> Option<String> {
    let label = label.filter(|l| !l.is_empty())?;
    check_nul(label, field, problems);
    Some(label.clone())
}

#[cfg(test)]
mod tests;
