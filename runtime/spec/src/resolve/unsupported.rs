//! Fields that the runtime spec defines and this version does not honour yet: refused by name, never ignored.

use oci_spec::runtime::{Linux, LinuxResources, Process, Spec};

use crate::Problems;

const NOT_YET: &str = "is not supported yet";
const OTHER_PLATFORM: &str = "describes another platform: this is a Linux runtime";

pub(super) fn check(spec: &Spec, problems: &mut Problems) {
    let platforms = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    refuse(&platforms, OTHER_PLATFORM, problems);
    let listed = [
        ("uidMappings", filled(spec.uid_mappings().as_deref())),
        ("gidMappings", filled(spec.gid_mappings().as_deref())),
    ];
    refuse(&listed, NOT_YET, problems);
    if let Some(process) = spec.process() {
        check_process(process, problems);
    }
    if let Some(linux) = spec.linux() {
        check_linux(linux, problems);
        if let Some(resources) = linux.resources() {
            check_resources(resources, problems);
        }
    }
}

fn check_process(process: &Process, problems: &mut Problems) {
    let text = |field: &Option<String>| field.as_deref().is_some_and(|t| !t.is_empty());
    let fields = [("process.commandLine", text(process.command_line()))];
    refuse(&fields, NOT_YET, problems);
}

fn check_linux(linux: &Linux, problems: &mut Problems) {
    let fields = [("linux.intelRdt", linux.intel_rdt().is_some())];
    refuse(&fields, NOT_YET, problems);
}

/// Clients write empty sections for what they do not use: only a filled one asks for something.
pub(super) fn check_resources(resources: &LinuxResources, problems: &mut Problems) {
    if let Some(io) = resources.block_io() {
        let fields = [
            ("linux.resources.blockIO.weight", io.weight().is_some_and(|w| w != 0)),
            ("linux.resources.blockIO.leafWeight", io.leaf_weight().is_some_and(|w| w != 0)),
            ("linux.resources.blockIO.weightDevice", filled(io.weight_device().as_deref())),
            (
                "linux.resources.blockIO.throttleReadBpsDevice",
                filled(io.throttle_read_bps_device().as_deref()),
            ),
            (
                "linux.resources.blockIO.throttleWriteBpsDevice",
                filled(io.throttle_write_bps_device().as_deref()),
            ),
            (
                "linux.resources.blockIO.throttleReadIOPSDevice",
                filled(io.throttle_read_iops_device().as_deref()),
            ),
            (
                "linux.resources.blockIO.throttleWriteIOPSDevice",
                filled(io.throttle_write_iops_device().as_deref()),
            ),
        ];
        refuse(&fields, NOT_YET, problems);
    }
    let network = resources.network().as_ref();
    let fields = [
        ("linux.resources.hugepageLimits", filled(resources.hugepage_limits().as_deref())),
        (
            "linux.resources.network.classID",
            network.is_some_and(|n| n.class_id().is_some_and(|c| c != 0)),
        ),
        (
            "linux.resources.network.priorities",
            network.is_some_and(|n| filled(n.priorities().as_deref())),
        ),
        ("linux.resources.rdma", resources.rdma().as_ref().is_some_and(|r| !r.is_empty())),
    ];
    refuse(&fields, NOT_YET, problems);
}

fn filled<T>(list: Option<&[T]>) -> bool {
    list.is_some_and(|l| !l.is_empty())
}

fn refuse(fields: &[(&str, bool)], reason: &str, problems: &mut Problems) {
    for (field, _) in fields.iter().filter(|(_, present)| *present) {
        problems.add(*field, reason);
    }
}
