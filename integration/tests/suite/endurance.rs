//! Very many containers in a row, and many while everything that can die dies at any moment.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hafen_integration::{Bundle, Case, Oci, Running, Test, cases, cgroup, patience, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) fn trials() -> Vec<Case> {
    cases![a_thousand_cycles(Root, Busybox), cycles_with_random_kills(Root, Busybox)]
}

/// The virtual machine is emulated: there it is about the kernel's version of cgroups, not about numbers.
fn cycles(here: u32, in_vm: u32) -> u32 {
    if std::env::var("NEEDS").is_ok_and(|needs| needs.starts_with("vm")) { in_vm } else { here }
}

/// No call takes longer than this, whatever came before it. On a quiet machine each takes some milliseconds.
const LONGEST: Duration = Duration::from_secs(10);

/// The same name over and over: what stays of one is in the way of the next.
fn a_thousand_cycles(t: &Test) {
    let (oci, id, bundle) = (t.oci().time_limit(LONGEST), t.id(), sleeper(t));
    let began = Instant::now();
    for cycle in 0..cycles(1000, 60) {
        let call = |words: &[&str]| {
            let output = oci.call(words);
            assert!(output.exit == Some(0), "cycle {cycle} after {:?}: {output}", began.elapsed());
        };
        call(&["create", "--bundle", &bundle.path().display().to_string(), &id]);
        call(&["start", &id]);
        call(&["kill", &id, "KILL"]);
        // As clients do, which hear of the end from elsewhere: at once, or by force.
        if cycle % 2 == 0 {
            await_end(&oci, &id);
            call(&["delete", &id]);
        } else {
            call(&["delete", "--force", &id]);
        }
    }
}

fn sleeper(t: &Test) -> Bundle {
    t.bundle().args(["/inside", "sleep", "300"])
}

fn await_end(oci: &Oci, id: &str) {
    let ended =
        wait_until(LONGEST, || (oci.status(id).as_deref() == Some("stopped")).then_some(()));
    assert!(ended.is_some(), "{id} was killed and goes on");
}

/// Numerical Recipes' linear congruential generator; the upper bits are the good ones.
struct Random(u64);

impl Random {
    /// From `HAFEN_SEED`, or from the clock.
    fn new() -> Self {
        let given = std::env::var("HAFEN_SEED").ok().and_then(|seed| seed.parse().ok());
        Self(given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(1, |d| u64::from(d.subsec_nanos()) | 1)
        }))
    }

    fn below(&mut self, end: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 32).unwrap_or(0) % end
    }
}

/// In each cycle several processes are at work on one container, and some of them, or the container itself, are killed at
/// any moment. Whatever became of it, one `delete --force` at the end succeeds and nothing is left. The seed is in every
/// message; give it in `HAFEN_SEED` to have the same choices again.
fn cycles_with_random_kills(t: &Test) {
    let mut random = Random::new();
    let seed = random.0;
    eprintln!("{}: HAFEN_SEED={seed}", t.name());
    let (oci, bundle) = (t.oci().time_limit(LONGEST), sleeper(t));
    let whole = usual(&oci, &t.id(), &bundle);
    for cycle in 0..cycles(150, 12) {
        let id = t.id();
        let when = format!("seed {seed} cycle {cycle}");
        storm(&oci, &id, &bundle, &mut random, whole, &when);
        let output = oci.delete_force(&id);
        assert!(output.exit == Some(0), "{when}: {output}");
        assert!(!oci.root().join(&id).exists(), "{when}: its state is still there");
        let left = wait_until(Duration::from_secs(5), || folders(&id).is_empty().then_some(()));
        assert!(left.is_some(), "{when}: still there: {:?}", folders(&id));
    }
}

/// How long a launch takes when nothing happens.
fn usual(oci: &Oci, id: &str, bundle: &Bundle) -> Duration {
    let wall = oci.create(id, bundle).ok().wall;
    let _ = oci.delete_force(id).ok();
    wall
}

fn folders(id: &str) -> Vec<std::path::PathBuf> {
    let all = cgroup::hierarchies().into_iter().map(|h| h.mount.join("hafen").join(id));
    all.filter(|folder| folder.exists()).collect()
}

fn storm(oci: &Oci, id: &str, bundle: &Bundle, random: &mut Random, whole: Duration, when: &str) {
    let path = bundle.path().display().to_string();
    let mut calls = vec![oci.spawn(["create", "--bundle", &path, id])];
    let pause = |random: &mut Random| {
        std::thread::sleep(whole.mul_f64(f64::from(random.below(1000)) / 1000.0));
    };
    for _ in 0..3 + random.below(4) {
        pause(random);
        calls.push(oci.spawn(verb(random, id)));
        if random.below(3) == 0 {
            let victim = random.below(u32::try_from(calls.len()).unwrap_or(1)) as usize;
            calls[victim].signal(Signal::SIGKILL);
        }
        if random.below(4) == 0 {
            kill_first_process(oci, id);
        }
    }
    for call in calls {
        let output = Running::wait_at_most(call, patience(LONGEST));
        assert!(!output.timed_out, "{when}: {output}");
    }
}

fn verb(random: &mut Random, id: &str) -> Vec<String> {
    let words: &[&str] = match random.below(6) {
        0 => &["start", id],
        1 => &["kill", id, "KILL"],
        2 => &["delete", id],
        3 => &["delete", "--force", id],
        4 => &["state", id],
        _ => &["list", "--format", "json"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn kill_first_process(oci: &Oci, id: &str) {
    let state = oci.root().join(id).join("state.json");
    let text = std::fs::read_to_string(state).unwrap_or_default();
    let value: hafen_integration::Value = serde_json::from_str(&text).unwrap_or_default();
    let Some(pid) = value["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) else { return };
    // The number may be another process's by now.
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if cgroups.contains(id) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
