//! A container without a bundle: the default specification, changed by a few options.

mod image;
mod joined;
mod owners;
mod rights;
mod volumes;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hafen_spec::{Problems, parse, template};
use hafen_sys::Context;
use serde_json::{Value, json};

use super::update::read_resources;
use crate::Error;
use crate::cli::{CONFIG, Profile, QuickArgs};
use crate::prepare::Bundle;
use crate::size::bytes;
use crate::upper::{Medium, Place};

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
        ("--capabilities", args.capabilities.is_some()),
        ("--ambient", args.ambient.is_some()),
        ("--seccomp", args.seccomp != Profile::None),
        ("--device", !args.device.is_empty()),
        ("--volume", !args.volume.is_empty()),
        ("--tmpfs", !args.tmpfs.is_empty()),
        ("--uidmap", !args.uidmap.is_empty()),
        ("--upper", args.upper.is_some()),
        ("--namespace", !args.namespace.is_empty()),
        ("--cgroup", args.cgroup.is_some()),
        ("--parent-limits", args.parent_limits.is_some()),
        ("--tty", args.tty),
        ("--patch", args.patch.is_some()),
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
    refuse_what_does_nothing(args, &mut problems);
    let find = |reference: &String| image::find(args.store()?, reference);
    let base = args.image.as_ref().map(find).transpose()?;
    let rootfs = match &base {
        Some(base) => base.top().to_owned(),
        None => rootfs(args)?,
    };
    value["root"] = json!({ "path": rootfs, "readonly": args.read_only });
    value["linux"]["resources"] = resources(args, &mut problems);
    value["process"]["terminal"] = json!(false);
    match &base {
        Some(base) => image::process(base, args, &mut value, &mut problems),
        None => process(args, &mut value["process"], &mut problems),
    }
    rights::apply(args, &mut value, &mut problems);
    let of_image = base.as_ref().map_or(&[][..], |base| &base.image.config.defaults.volumes);
    let maps = owners::maps(args, &mut problems);
    if let Some(maps) = &maps {
        owners::add(maps, &mut value["linux"]);
    }
    let wanted = volumes::Wanted { args, of_image, maps: maps.as_ref() };
    let volumes = Some(volumes::add(&wanted, &mut value["mounts"], &mut problems)?);
    if let Some(hostname) = &args.hostname {
        value["hostname"] = json!(hostname);
    }
    joined::apply(args, &mut value, &mut problems)?;
    problems.into_result(()).map_err(Error::Options)?;
    let bytes = serde_json::to_vec(&value).map_err(|e| Error::Refused(e.to_string()))?;
    let spec = parse::parse(&bytes).map_err(Error::Options)?;
    let path = PathBuf::from(NO_BUNDLE);
    let place = Some(Place { upper: args.upper, store: args.store()? });
    let file = path.join(CONFIG);
    let outer = args.parent_limits.as_deref().map(read_resources).transpose()?;
    let warnings = Vec::new();
    Ok(Bundle { file, path, warnings, spec, bytes, image: base, place, volumes, outer })
}

fn refuse_what_does_nothing(args: &QuickArgs, problems: &mut Problems) {
    if args.upper.is_some() && args.read_only {
        problems.add("--upper", "with --read-only nothing is written: leave one of them out");
    }
    let on_disk = args.upper.is_some_and(|upper| upper.medium == Medium::Disk);
    if args.images.is_some() && args.image.is_none() && !on_disk {
        problems.add("--images", "needs --image, or --upper disk");
    }
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

/// The size that an option gives in bytes, -1 for no bound; nothing, and a problem, where it is none.
pub(super) fn size(option: &str, text: &str, problems: &mut Problems) -> Option<i64> {
    let bytes = if text == "-1" { Some(-1) } else { bytes(text) };
    if bytes.is_none() {
        problems.add(option, format!("{text:?} is not a size as 64M"));
    }
    bytes
}
