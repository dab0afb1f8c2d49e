use hafen_spec::plan::{Attribute, ChildStep};
use hafen_spec::resolved::{Attributes, Process};

/// Attributes that need the rights of the runtime (a real-time policy) or none at all. Given once the process stands in
/// its cgroups, which bound processors and memory nodes.
pub(super) fn steps(attributes: &Attributes) -> Vec<ChildStep> {
    let asked = attributes.clone();
    let all = [
        asked.io_priority.map(Attribute::IoPriority),
        asked.scheduler.map(Attribute::Scheduler),
        asked.memory_policy.map(Attribute::MemoryPolicy),
        asked.personality.map(Attribute::Personality),
    ];
    all.into_iter().flatten().map(ChildStep::Attribute).collect()
}

/// Take out of the steps of a process in a user namespace what the runtime has to do for it.
pub(crate) fn of_the_runtime(steps: &mut Vec<ChildStep>) -> Vec<Attribute> {
    let mut taken = Vec::new();
    steps.retain(|step| match step {
        ChildStep::Attribute(all @ (Attribute::Scheduler(_) | Attribute::IoPriority(_))) => {
            taken.push(all.clone());
            false
        }
        _ => true,
    });
    taken
}

/// The labels that execve(2) takes on, chosen while the host's procfs is at hand.
pub(super) fn labels(process: &Process) -> Vec<ChildStep> {
    let asked = process.attributes.clone();
    let all = [
        asked.apparmor_profile.map(Attribute::AppArmor),
        asked.selinux_label.map(|label| se_linux("exec", label)),
    ];
    all.into_iter().flatten().map(ChildStep::Attribute).collect()
}

/// For a process that joins, once it stands in the container's cgroup.
pub(super) fn last_affinity(process: &Process) -> Option<ChildStep> {
    let last = process.attributes.exec_affinity.last.clone()?;
    Some(ChildStep::Attribute(Attribute::Affinity(last)))
}

/// A keyring gets the label of the container's processes, so that they may use it.
pub(super) fn keyring(process: &Process, name: String) -> Vec<ChildStep> {
    let label = |label: &str| ChildStep::Attribute(se_linux("keycreate", label.to_owned()));
    let own = process.attributes.selinux_label.as_deref().map(label);
    let none = own.is_some().then(|| label(""));
    let join = ChildStep::NewKeyring { name };
    own.into_iter().chain([join]).chain(none).collect()
}

fn se_linux(file: &str, label: String) -> Attribute {
    Attribute::SeLinux { file: file.to_owned(), label }
}
