//! A container without a bundle: the default specification, changed by a few options.

mod image;
mod volumes;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hafen_spec::{Problems, parse, template};
use hafen_sys::Context;
use serde_json::{Value, json};

use crate::Error;
use crate::cli::{CONFIG, QuickArgs};
use crate::prepare::Bundle;

/// Stands for the bundle that there is not.
pub(super) const NO_BUNDLE: &str = "/";
const PERIOD_USEC: f64 = 100_000.0;

/// A name that no other container has: pid and time, in hexadecimal.
pub(super) fn made_up_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
    format!("run-{:x}-{:x}", std::process::id(), now & 0xff_ffff_ffff)
}

/// The parser lets them pass beside a bundle; ignored they must not be.
///
/// # Errors
/// Names each option that says something about a container without a bundle.
pub(super) fn refuse_beside_a_bundle(args: &QuickArgs) -> Result<(), Error> {
    let given = [
        ("--memory", args.memory.is_some()),
        ("--memory-swap", args.memory_swap.is_some()),
        ("--cpus", args.cpus.is_some()),
        ("--cpu-shares", args.cpu_shares.is_some()),
        ("--cpuset-cpus", args.cpuset_cpus.is_some()),
        ("--pids", args.pids.is_some()),
        ("--env", !args.env.is_empty()),
        ("--cwd", args.cwd.is_some()),
        ("--hostname", args.hostname.is_some()),
        ("--user", args.user.is_some()),
        ("--read-only", args.read_only),
        ("--volume", !args.volume.is_empty()),
        ("--tmpfs", !args.tmpfs.is_empty()),
        ("COMMAND", !args.command.is_empty()),
    ];
    let mut problems = Problems::default();
    for (option, _) in given.iter().filter(|(_, given)| *given) {
        problems.add(*option, "needs --rootfs or --image: with a bundle, config.json says it");
    }
    problems.into_result(()).map_err(Error::Options)
}

/// Is it a container without a bundle?
pub(super) const fn is_meant(args: &QuickArgs) -> bool {
    args.rootfs.is_some() || args.image.is_some()
}

/// # Errors
/// Names the option that does not fit, or the image that is not there.
pub(super) fn bundle(args: &QuickArgs) -> Result<Bundle, Error> {
    let mut problems = Problems::default();
    let mut value = template::default_spec();
    let find = |reference: &String| image::find(&args.images, reference);
    let base = args.image.as_ref().map(find).transpose()?;
    let rootfs = match &base {
        Some(base) => base.top().to_owned(),
        None => rootfs(args)?,
    };
    value["root"] = json!({ "path": rootfs, "readonly": args.read_only });
    value["linux"]["resources"] = resources(args, &mut problems);
    value["process"]["terminal"] = json!(false);
    match &base {
        Some(base) => image::process(base, args, &mut value, &mut problems)?,
        None => process(args, &mut value["process"], &mut problems),
    }
    let of_image = base.as_ref().map_or(&[][..], |base| &base.image.config.defaults.volumes);
    let volumes = Some(volumes::add(args, of_image, &mut value["mounts"], &mut problems)?);
    if let Some(hostname) = &args.hostname {
        value["hostname"] = json!(hostname);
    }
    problems.into_result(()).map_err(Error::Options)?;
    let bytes = serde_json::to_vec(&value).map_err(|e| Error::Refused(e.to_string()))?;
    let spec = parse::parse(&bytes).map_err(Error::Options)?;
    let path = PathBuf::from(NO_BUNDLE);
    let file = path.join(CONFIG);
    Ok(Bundle { file, path, warnings: Vec::new(), spec, bytes, image: base, volumes })
}

fn rootfs(args: &QuickArgs) -> Result<PathBuf, Error> {
    match args.rootfs.as_deref() {
        Some("host") => Ok(PathBuf::from("/")),
        Some(folder) => {
            Ok(std::fs::canonicalize(folder).call(|| format!("--rootfs: open {folder}"))?)
        }
        None => Err(Error::Refused("--rootfs or --image is missing".to_owned())),
    }
}

fn process(args: &QuickArgs, process: &mut Value, problems: &mut Problems) {
    if args.command.is_empty() {
        problems.add("COMMAND", "is missing: write it after --");
    }
    process["args"] = json!(args.command);
    if let (Some(env), false) = (process["env"].as_array_mut(), args.env.is_empty()) {
        env.extend(args.env.iter().map(|e| json!(e)));
    }
    if let Some(cwd) = &args.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        match (uid.parse::<u32>(), gid.parse::<u32>()) {
            (Ok(uid), Ok(gid)) => process["user"] = json!({ "uid": uid, "gid": gid }),
            _ => problems.add("--user", format!("{user:?} is not UID or UID:GID in numbers")),
        }
    }
}

fn resources(args: &QuickArgs, problems: &mut Problems) -> Value {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    let mut size = |option: &str, text: &Option<String>| size(option, text.as_deref()?, problems);
    if let Some(limit) = size("--memory", &args.memory) {
        resources["memory"]["limit"] = json!(limit);
    }
    if let Some(swap) = size("--memory-swap", &args.memory_swap) {
        resources["memory"]["swap"] = json!(swap);
    }
    if let Some(cpus) = args.cpus {
        let quota = cpus * PERIOD_USEC;
        if !(1_000.0..1e15).contains(&quota) {
            problems.add("--cpus", format!("{cpus} is not between 0.01 and the number of CPUs"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        let quota = quota.round() as i64;
        resources["cpu"] = json!({ "quota": quota, "period": 100_000 });
    }
    if let Some(shares) = args.cpu_shares {
        resources["cpu"]["shares"] = json!(shares);
    }
    if let Some(cpus) = &args.cpuset_cpus {
        resources["cpu"]["cpus"] = json!(cpus);
    }
    match args.pids {
        Some(pids) if pids > 0 || pids == -1 => resources["pids"] = json!({ "limit": pids }),
        Some(pids) => {
            problems.add("--pids", format!("{pids} is neither a number of processes nor -1"));
        }
        None => {}
    }
    resources
}

/// The size that an option gives in bytes; nothing, and a problem, where it is none.
pub(super) fn size(option: &str, text: &str, problems: &mut Problems) -> Option<i64> {
    let bytes = bytes(text);
    if bytes.is_none() {
        problems.add(option, format!("{text:?} is not a size as 64M"));
    }
    bytes
}

/// `64M` is 64 * 1024 * 1024, -1 is no bound.
fn bytes(text: &str) -> Option<i64> {
    const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    if text == "-1" {
        return Some(-1);
    }
    let upper = text.trim_end_matches(['b', 'B', 'i']).to_ascii_uppercase();
    let unit = UNITS.iter().find(|(unit, _)| upper.ends_with(*unit));
    let (number, shift) =
        unit.map_or((upper.as_str(), 0), |(unit, shift)| (upper.trim_end_matches(*unit), *shift));
    let number: i64 = number.parse().ok().filter(|n| *n > 0)?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(bytes("64M"), Some(64 << 20));
        assert_eq!(bytes("1g"), Some(1 << 30));
        assert_eq!(bytes("2KiB"), Some(2048));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("-1"), Some(-1));
        for wrong in ["", "M", "0", "-5", "1.5G", "9999999999T", "64X"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
