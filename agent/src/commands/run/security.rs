//! What a task may ask of the kernel, in the words of Docker and Podman.

use std::path::Path;

use hafen_protocol::v1::{self, seccomp::Kind};
use hafen_spec::Problems;

use super::args::SecurityArgs;
use super::spec::Around;

const FLAG: &str = "--security-opt";

/// `None`: nothing is said.
pub(super) fn security(
    args: &SecurityArgs,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Option<v1::Security> {
    let capabilities = v1::Capabilities { add: args.cap_add.clone(), drop: args.cap_drop.clone() };
    let mut security = v1::Security {
        capabilities: (capabilities != v1::Capabilities::default()).then_some(capabilities),
        devices: args.device.iter().filter_map(|text| device(text, problems)).collect(),
        ..v1::Security::default()
    };
    for text in &args.security_opt {
        if let Err(why) = option(text, around, &mut security) {
            problems.add(FLAG, why);
        }
    }
    (security != v1::Security::default()).then_some(security)
}

fn option(text: &str, around: &Around<'_>, security: &mut v1::Security) -> Result<(), String> {
    // Older hands write a colon.
    let (name, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (name, value) {
        ("no-new-privileges", "" | "true") => security.no_new_privileges = Some(true),
        ("no-new-privileges", "false") => security.no_new_privileges = Some(false),
        ("seccomp", "default") => security.seccomp = None,
        ("seccomp", "unconfined") => {
            security.seccomp = Some(v1::Seccomp { kind: Some(Kind::Unconfined(true)) });
        }
        ("seccomp", file) if !file.is_empty() => {
            let bytes = (around.read)(Path::new(file)).map_err(|e| format!("read {file}: {e}"))?;
            let profile = String::from_utf8(bytes).map_err(|_| format!("{file} is no UTF-8"))?;
            security.seccomp = Some(v1::Seccomp { kind: Some(Kind::Profile(profile)) });
        }
        _ => {
            return Err(format!(
                "{text:?} is none of seccomp=unconfined, seccomp=FILE and no-new-privileges=BOOL"
            ));
        }
    }
    Ok(())
}

/// What comes last and is no path is how it may be used.
fn device(text: &str, problems: &mut Problems) -> Option<v1::Device> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_path = |part: &str| part.starts_with('/');
    let (path, destination, access) = match parts[..] {
        [path] => (path, "", ""),
        [path, destination] if is_path(destination) => (path, destination, ""),
        [path, access] => (path, "", access),
        [path, destination, access] => (path, destination, access),
        _ => ("", "", ""),
    };
    if !is_path(path) {
        let why = format!("{text:?} is not PATH[:DESTINATION][:ACCESS] with absolute paths");
        problems.add("--device", why);
        return None;
    }
    let [path, destination, access] = [path, destination, access].map(str::to_owned);
    Some(v1::Device { path, destination, access })
}
