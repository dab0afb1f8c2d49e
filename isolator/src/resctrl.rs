//! Cache and memory bandwidth of a container (Intel RDT, AMD QoS) through the resctrl file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hafen_spec::Problems;
use hafen_spec::plan::{Claim, HostStep, Resctrl};
use hafen_spec::resolved::IntelRdt;
use hafen_sys::file::{read_text, write_knob};
use hafen_sys::{CallError, Context};
use nix::errno::Errno;

use crate::cgroup::Share;

const FIELD: &str = "linux.intelRdt";

/// Where the file system is mounted, if it is.
#[must_use]
pub fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        words.next().filter(|_| words.next() == Some("resctrl"))
    });
    found.map(PathBuf::from)
}

/// Add claims and steps to those of the cgroups. Looks at the groups that are there.
///
/// # Errors
/// By field: there is no such file system here, or the group that was named is not as it should be.
pub fn add(share: &mut Share, wanted: &IntelRdt, mount: Option<&Path>) -> Result<(), Problems> {
    let Some(mount) = mount else {
        let words =
            "Intel RDT is not supported or not enabled here: no resctrl file system is mounted";
        return Err(problem(FIELD, words));
    };
    // The root group has an empty name.
    let group = if wanted.group.is_empty() { mount.to_owned() } else { mount.join(&wanted.group) };
    if wanted.own || !group.exists() {
        if !wanted.own && wanted.schemata.is_empty() {
            let words = format!("there is no group {}, and no schema to make one", group.display());
            return Err(problem("linux.intelRdt.closID", &words));
        }
        make(share, &group, wanted.own);
        if !wanted.schemata.is_empty() {
            share.before.push(HostStep::Resctrl(Resctrl::Schemata {
                mount: mount.to_owned(),
                group: group.clone(),
                lines: wanted.schemata.clone(),
            }));
        }
    } else {
        compare(&group, &wanted.schemata)?;
    }
    share.beside.push(HostStep::Resctrl(Resctrl::Enter { group: group.clone() }));
    if let Some(name) = &wanted.monitoring {
        let group = group.join("mon_groups").join(name);
        make(share, &group, true);
        share.beside.push(HostStep::Resctrl(Resctrl::Enter { group }));
    }
    Ok(())
}

fn problem(field: &str, words: &str) -> Problems {
    let mut problems = Problems::default();
    problems.add(field, words);
    problems
}

/// A group with a name of its own is everybody's, and stays.
fn make(share: &mut Share, path: &Path, claimed: bool) {
    if claimed {
        share.claims.push(Claim::Resctrl { path: path.to_owned() });
    }
    share.before.push(HostStep::Resctrl(Resctrl::Make { path: path.to_owned(), claimed }));
}

/// A group that others use as well is not changed: it must have what is asked for (runtime-spec).
fn compare(group: &Path, lines: &[String]) -> Result<(), Problems> {
    if lines.is_empty() {
        return Ok(());
    }
    let file = group.join("schemata");
    let text = read_text(&file).map_err(|e| problem(FIELD, &e.to_string()))?;
    for line in lines {
        let (resource, domains) = parse(line);
        let held = text.lines().map(parse).find(|(name, _)| *name == resource);
        let held = held.map(|(_, domains)| domains).unwrap_or_default();
        if !domains.iter().all(|domain| held.contains(domain)) {
            let words = format!("{line:?} is not what {} holds", file.display());
            return Err(problem("linux.intelRdt", &words));
        }
    }
    Ok(())
}

/// Resource, and its domains with their values, without blanks and leading zeros.
fn parse(line: &str) -> (String, Vec<(String, String)>) {
    let (name, rest) = line.split_once(':').unwrap_or((line, ""));
    let plain = |text: &str| {
        let text = text.trim().trim_start_matches('0');
        if text.is_empty() { "0".to_owned() } else { text.to_ascii_lowercase() }
    };
    let domain = |text: &str| text.split_once('=').map(|(id, value)| (plain(id), plain(value)));
    (name.trim().to_owned(), rest.split(';').filter_map(domain).collect())
}

/// Carry out one step.
///
/// # Errors
/// Names the file and the value, with the kernel's own words where it has some.
pub fn perform(step: &Resctrl, pid: Option<i32>) -> Result<(), CallError> {
    match step {
        Resctrl::Make { path, claimed } => match fs::create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !claimed => Ok(()),
            // As many groups as the processor has classes.
            answer => answer.call(|| format!("make resctrl group {}", path.display())),
        },
        Resctrl::Schemata { mount, group, lines } => {
            // Each line ends with a newline, or the kernel takes none.
            let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            write_knob(&group.join("schemata"), &text).map_err(|e| with_words(mount, e))
        }
        Resctrl::Enter { group } => match pid {
            Some(pid) => write_knob(&group.join("tasks"), &pid.to_string()),
            None => Err(CallError::errno(step.to_string(), Errno::ESRCH)),
        },
    }
}

fn with_words(mount: &Path, error: CallError) -> CallError {
    match fs::read_to_string(mount.join("info/last_cmd_status")) {
        Ok(words) if !words.trim().is_empty() => {
            CallError::new(format!("{} ({})", error.call, words.trim()), error.source)
        }
        _ => error,
    }
}

/// Remove a group: its processes have ended, and its class is free again.
///
/// # Errors
/// Names the folder.
pub fn release(path: &Path) -> Result<(), CallError> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer.call(|| format!("rmdir {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like the file system, as far as folders can.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("hafen-resctrl-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("gold/mon_groups")).unwrap();
            let gold = "    MB:0= 20;1= 70\n    L3:0=0ff;1=f0\n";
            fs::write(path.join("gold/schemata"), gold).unwrap();
            Self(path)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn wanted(group: &str, own: bool, schemata: &[&str]) -> IntelRdt {
        let schemata = schemata.iter().map(|line| (*line).to_owned()).collect();
        IntelRdt { group: group.to_owned(), own, schemata, monitoring: None }
    }

    fn said(share: &Share) -> Vec<String> {
        let all = share.before.iter().chain(&share.beside);
        all.map(ToString::to_string).collect()
    }

    #[test]
    fn without_the_file_system_it_is_refused_by_name() {
        let problems = add(&mut Share::default(), &wanted("web", true, &[]), None).unwrap_err();
        assert_eq!(problems.0[0].field, "linux.intelRdt");
    }

    #[test]
    fn a_group_of_its_own_is_made_filled_and_removed() {
        let fake = Fake::new("own");
        let mut share = Share::default();
        let mut asked = wanted("web", true, &["L3:0=f"]);
        asked.monitoring = Some("web".to_owned());
        add(&mut share, &asked, Some(&fake.0)).unwrap();
        let mount = fake.0.display();
        assert_eq!(
            said(&share),
            [
                format!("make resctrl group {mount}/web"),
                format!("write \"L3:0=f\" to {mount}/web/schemata"),
                format!("make resctrl group {mount}/web/mon_groups/web"),
                format!("write the pid to {mount}/web/tasks"),
                format!("write the pid to {mount}/web/mon_groups/web/tasks"),
            ]
        );
        assert_eq!(share.claims.len(), 2);
        let group = fake.0.join("web");
        perform(&Resctrl::Make { path: group.clone(), claimed: true }, None).unwrap();
        let again = perform(&Resctrl::Make { path: group.clone(), claimed: true }, None);
        assert!(again.unwrap_err().is(Errno::EEXIST));
        release(&group).unwrap();
        release(&group).unwrap();
        assert!(!group.exists());
    }

    #[test]
    fn a_named_group_is_joined_as_it_is_and_stays() {
        let fake = Fake::new("named");
        for lines in [&[][..], &["L3:1=0f0;0=FF"], &["MB:0=20"]] {
            let mut share = Share::default();
            add(&mut share, &wanted("gold", false, lines), Some(&fake.0)).unwrap();
            assert!(share.claims.is_empty() && share.before.is_empty(), "{lines:?}");
            assert_eq!(share.beside.len(), 1);
        }
        for lines in [&["L3:0=f"][..], &["MB:0=30"], &["L2:0=1"]] {
            let refused = add(&mut Share::default(), &wanted("gold", false, lines), Some(&fake.0));
            assert!(refused.is_err(), "{lines:?}");
        }
        let absent = add(&mut Share::default(), &wanted("tin", false, &[]), Some(&fake.0));
        assert_eq!(absent.unwrap_err().0[0].field, "linux.intelRdt.closID");
        let mut share = Share::default();
        add(&mut share, &wanted("tin", false, &["L3:0=1"]), Some(&fake.0)).unwrap();
        assert!(share.claims.is_empty() && share.before.len() == 2);
    }

    #[test]
    fn the_root_group_is_there() {
        let fake = Fake::new("root");
        let mut share = Share::default();
        add(&mut share, &wanted("", false, &[]), Some(&fake.0)).unwrap();
        assert_eq!(said(&share), [format!("write the pid to {}/tasks", fake.0.display())]);
    }

    #[test]
    fn the_kernels_words_are_told() {
        let fake = Fake::new("words");
        fs::create_dir_all(fake.0.join("info")).unwrap();
        fs::write(fake.0.join("info/last_cmd_status"), "Mask f00 out of range\n").unwrap();
        let step = Resctrl::Schemata {
            mount: fake.0.clone(),
            group: fake.0.join("nowhere"),
            lines: vec!["L3:0=f00".to_owned()],
        };
        let error = perform(&step, None).unwrap_err();
        assert!(error.call.contains("(Mask f00 out of range)"), "{error}");
    }
}
