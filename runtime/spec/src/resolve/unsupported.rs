//! Fields that the runtime spec defines and this version does not honour yet: refused by name, never ignored.

use oci_spec::runtime::{Process, Spec};

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
}

fn check_process(process: &Process, problems: &mut Problems) {
    let text = |field: &Option<String>| field.as_deref().is_some_and(|t| !t.is_empty());
    let fields = [("process.commandLine", text(process.command_line()))];
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
