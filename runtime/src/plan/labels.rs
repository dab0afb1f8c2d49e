use hafen_spec::plan::ChildStep;
use hafen_spec::resolved::{Mount, MountKind};

/// Mounts of the kernel's own, which take no context: the policy labels what is in them.
const LABELLED_BY_POLICY: [&str; 2] = ["proc", "sysfs"];

/// Give the file systems that are made for the container its SELinux label.
pub(super) fn mounts(steps: Vec<ChildStep>, label: Option<&str>) -> Vec<ChildStep> {
    match label {
        Some(label) => steps.into_iter().flat_map(|step| labelled(step, label)).collect(),
        None => steps,
    }
}

fn labelled(mut step: ChildStep, label: &str) -> Vec<ChildStep> {
    let ChildStep::Mount(Mount {
        destination, kind: MountKind::New { fstype, options, .. }, ..
    }) = &mut step
    else {
        return vec![step];
    };
    if LABELLED_BY_POLICY.contains(&fstype.as_str()) || options.iter().any(|(k, _)| k == "context")
    {
        return vec![step];
    }
    if fstype == "mqueue" {
        // The kernel mounted it already when the ipc namespace was made, without a context: its root gets a label.
        let path = destination.clone();
        return vec![step, ChildStep::Label { path, label: label.to_owned() }];
    }
    options.push(("context".to_owned(), Some(label.to_owned())));
    vec![step]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: &str) -> ChildStep {
        ChildStep::Mount(Mount {
            kind: MountKind::New {
                fstype: fstype.to_owned(),
                source: fstype.to_owned(),
                options: Vec::new(),
                copy_up: false,
            },
            ..Mount::of(fstype.into(), &format!("/{fstype}"))
        })
    }

    #[test]
    fn new_file_systems_get_the_label_and_those_of_the_kernel_do_not() {
        let all = ["proc", "tmpfs", "mqueue", "devpts", "sysfs"].map(mount).to_vec();
        let said: Vec<String> =
            mounts(all.clone(), Some("a:b:c:s0")).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "mount proc on \"/proc\"",
                "mount tmpfs on \"/tmpfs\" (context=a:b:c:s0)",
                "mount mqueue on \"/mqueue\"",
                "give \"/mqueue\" the selinux label \"a:b:c:s0\"",
                "mount devpts on \"/devpts\" (context=a:b:c:s0)",
                "mount sysfs on \"/sysfs\"",
            ]
        );
        assert_eq!(mounts(all.clone(), None), all);
    }
}
