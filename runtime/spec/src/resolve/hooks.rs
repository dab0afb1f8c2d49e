use oci_spec::runtime::{Hook as OciHook, Spec};

use super::check_nul;
use crate::Problems;
use crate::resolved::{Hook, Hooks};

pub(super) fn hooks(spec: &Spec, problems: &mut Problems) -> Hooks {
    let Some(all) = spec.hooks() else { return Hooks::default() };
    let mut list = |name: &str, hooks: &Option<Vec<OciHook>>| -> Vec<Hook> {
        let listed = hooks.iter().flatten().enumerate();
        listed.map(|(i, hook)| resolve(hook, &format!("hooks.{name}[{i}]"), problems)).collect()
    };
    Hooks {
        prestart: list("prestart", all.prestart()),
        create_runtime: list("createRuntime", all.create_runtime()),
        create_container: list("createContainer", all.create_container()),
        start_container: list("startContainer", all.start_container()),
        poststart: list("poststart", all.poststart()),
        poststop: list("poststop", all.poststop()),
    }
}

fn resolve(hook: &OciHook, field: &str, problems: &mut Problems) -> Hook {
    let path = hook.path();
    check_nul(&path.to_string_lossy(), &format!("{field}.path"), problems);
    if !path.is_absolute() {
        problems.add(format!("{field}.path"), format!("{} must be absolute", path.display()));
    }
    if hook.timeout().is_some_and(|t| t <= 0) {
        problems.add(format!("{field}.timeout"), "must be above 0 seconds");
    }
    let args = hook.args().clone().filter(|a| !a.is_empty());
    let env = hook.env().clone();
    for (name, list) in
        [("args", args.as_deref().unwrap_or_default()), ("env", env.as_deref().unwrap_or_default())]
    {
        for (i, text) in list.iter().enumerate() {
            check_nul(text, &format!("{field}.{name}[{i}]"), problems);
        }
    }
    Hook {
        path: path.clone(),
        args: args.unwrap_or_else(|| vec![path.to_string_lossy().into_owned()]),
        env,
        timeout: hook.timeout().and_then(|t| u64::try_from(t).ok()),
    }
}
