//! How a container ended, and what is left then.

use std::time::{Duration, Instant};

use hafen_integration::keeper::{exit, whole};
use hafen_integration::{Bundle, Case, Kept, Test, cases, json, wait_until};
use hafen_spec::keep::{Request, Told};
use nix::sys::signal::Signal;

use super::{Place, names, ticks};

pub(super) fn trials() -> Vec<Case> {
    let kmsg = || std::fs::File::open("/dev/kmsg").is_ok();
    cases![
        an_exit_code_is_on_the_disk_before_it_is_told(Root, Busybox),
        a_signal(Root, Busybox),
        an_oom_kill_is_told_and_recorded(Root, Busybox, Limit("memory")),
        the_process_that_was_killed_is_named(
            Root,
            Busybox,
            Limit("memory"),
            That("/dev/kmsg", kmsg)
        ),
        a_folder_has_one_keeper(Root, Busybox),
        a_program_without_streams(Root, Busybox),
        who_holds_the_pipes_is_ended(Root, Busybox),
        a_program_that_ignores_signals(Root, Busybox),
        a_signal_for_all(Root, Busybox),
        the_keepers_own_signals_are_passed_on(Root, Busybox),
        hooks_have_run_when_it_is_released(Root, Busybox),
        a_launch_that_fails_leaves_nothing(Root, Busybox),
        an_overlay_with_volumes_is_kept(Root, Busybox, FileSystem("overlay")),
        nobody_else_gets_at_the_socket(Root, Busybox),
        somebody_else_deletes_it(Root, Busybox),
    ]
}

/// Its program waits for a line.
fn waiting(t: &Test, then: &str) -> Bundle {
    t.bundle().sh(&format!("echo ready; read line; {then}"))
}

fn an_exit_code_is_on_the_disk_before_it_is_told(t: &Test) {
    let place = Place::new(t);
    let began = Instant::now();
    let kept = place.keep(&waiting(t, "exit 7"), &["--interactive"]);
    let mut client = kept.connect();
    assert_eq!((&*client.status.id, client.status.terminal), (&*place.id, false));
    assert_eq!(client.status.pid, place.oci.pid(&place.id));
    client.input(b"go\n");
    let told = client.until_exit();
    assert_eq!(told, exit(&place.dir), "what is told is on the disk");
    assert_eq!((told.exit_code, told.signal, told.pid), (Some(7), None, client.status.pid));
    assert_eq!((told.oom.as_ref(), told.log_lost_bytes), (None, 0));
    let wall = Duration::from_micros(told.wall_usec);
    assert!(
        wall > Duration::ZERO && wall <= began.elapsed() + Duration::from_millis(20),
        "{wall:?}"
    );
    assert!(told.usage.max_rss_bytes > 4096, "{told:?}");
    client.to_the_end();
    assert_eq!(client.told, [Told::Released { error: None }], "the last that is heard");
    assert_eq!(kept.end(), told);
    place.assert_gone("after its end");
}

fn a_signal(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&t.bundle().args(["/inside", "sleep", "600"]), &[]);
    let _ = place.oci.kill(&place.id, "KILL").ok();
    let exit = kept.end();
    assert_eq!((exit.exit_code, exit.signal), (None, Some(9)));
}

fn eater(t: &Test) -> Bundle {
    let bundle = t.bundle().sh("/inside eat 268435456; echo $?; read line; exit 5");
    bundle.set("/linux/resources/memory/limit", json!(48 << 20))
}

fn an_oom_kill_is_told_and_recorded(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&eater(t), &["--interactive"]);
    let mut client = kept.connect().attached(true, true);
    let kills = client.until_told(|t| match t {
        Told::Oom { kills, .. } => Some(*kills),
        _ => None,
    });
    assert_eq!(kills, 1);
    client.until_text("137\n");
    client.input(b"go\n");
    let exit = client.until_exit();
    assert_eq!(exit.exit_code, Some(5), "the first process goes on");
    assert_eq!(exit.usage.cgroup.oom_kills, Some(1));
    assert_eq!(exit.usage.cgroup.memory_limit_bytes, Some(48 << 20));
    let _ = kept.end();
}

fn the_process_that_was_killed_is_named(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&eater(t), &["--interactive"]);
    let mut client = kept.connect();
    let last = client.until_told(|t| match t {
        Told::Oom { last, .. } => Some(last.clone()),
        _ => None,
    });
    let last = last.expect("the kernel's log names it");
    assert_eq!(last.process, "inside");
    // Its program's own pages, which it shares with others, come on top of the limit.
    assert!(last.resident > 16 << 20 && last.resident <= 64 << 20, "{last:?}");
    client.input(b"go\n");
    assert_eq!(client.until_exit().oom, Some(last));
    let _ = kept.end();
}

fn a_folder_has_one_keeper(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&waiting(t, "exit 0"), &["--interactive"]);
    let other = Place { dir: place.dir.clone(), ..Place::new(t) };
    let second = Kept::spawn(&other.oci, &other.dir, other.words(&t.bundle(), &[]));
    second.wait().error_with(["has a keeper"]);
    Kept::spawn(&place.oci, &place.dir, ["--resume"]).wait().error_with(["has a keeper"]);
    let mut client = kept.connect();
    client.input(b"go\n");
    let exit = kept.end();
    let third = Kept::spawn(&other.oci, &other.dir, other.words(&t.bundle(), &[]));
    third.wait().error_with(["holds the end of a container"]);
    // Where all is done, going on is done at once.
    assert_eq!(place.resume().end(), exit);
}

fn a_program_without_streams(t: &Test) {
    let place = Place::new(t);
    let bundle =
        t.bundle().sh("exec <&- >&- 2>&-; until test -e /go; do usleep 20000; done; exit 3");
    let kept = place.keep(&bundle, &["--interactive"]);
    let before = ticks(kept.pid());
    std::thread::sleep(Duration::from_millis(500));
    let used = ticks(kept.pid()) - before;
    assert!(used < 20, "{used} ticks for nothing");
    let _ = bundle.file("go", "");
    assert_eq!(kept.end().exit_code, Some(3));
}

/// Nobody ends them with the first process, which is no init.
fn who_holds_the_pipes_is_ended(t: &Test) {
    let place = Place::new(t);
    let bundle =
        t.bundle().without_namespace("pid").sh("sleep 600 & sleep 600 & echo last; exit 4");
    let began = Instant::now();
    let exit = place.keep(&bundle, &[]).end();
    assert_eq!(exit.exit_code, Some(4));
    assert!(began.elapsed() < hafen_integration::patience(Duration::from_secs(10)));
    assert!(String::from_utf8_lossy(&whole(&place.log)).contains("last"));
    place.assert_gone("after its end");
}

fn a_program_that_ignores_signals(t: &Test) {
    let place = Place::new(t);
    let bundle = t.bundle().sh("trap '' TERM; echo ready; while :; do usleep 20000; done");
    let kept = place.keep(&bundle, &[]);
    let mut client = kept.connect().attached(true, true);
    client.until_text("ready");
    client.ask(&Request::Signal { signal: 15, all: false });
    client.ask(&Request::Signal { signal: 4711, all: false });
    assert!(client.until_failed().contains("pidfd_send_signal 4711"));
    assert_eq!(place.oci.status(&place.id).as_deref(), Some("running"));
    client.ask(&Request::Kill);
    assert_eq!(client.until_exit().signal, Some(9));
    let _ = kept.end();
}

fn a_signal_for_all(t: &Test) {
    let place = Place::new(t);
    let script = "trap 'exit 6' USR1; (trap 'echo child; exit' USR1; echo up; while :; do usleep 20000; done) &
        echo up; wait; wait; exit 1";
    let kept = place.keep(&t.bundle().sh(script), &[]);
    let mut client = kept.connect().attached(true, true);
    client.until(|c| (c.text().matches("up").count() == 2).then_some(()));
    client.ask(&Request::Signal { signal: 10, all: true });
    let exit = client.until_exit();
    assert_eq!(exit.exit_code, Some(6));
    let _ = kept.end();
}

fn the_keepers_own_signals_are_passed_on(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&t.bundle().args(["/inside", "await", "15", "8"]), &[]);
    let mut client = kept.connect().attached(true, true);
    client.until_text("ready");
    kept.signal(Signal::SIGTERM);
    assert_eq!(kept.end().exit_code, Some(8));
}

fn hooks_have_run_when_it_is_released(t: &Test) {
    let place = Place::new(t);
    let trace = t.dir().join("trace");
    let script = format!("cat > {}", trace.display());
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
    let bundle = waiting(t, "exit 0").push("/hooks/poststop", hook);
    let kept = place.keep(&bundle, &["--interactive"]);
    let mut client = kept.connect();
    client.input(b"go\n");
    let _ = client.until_exit();
    client.until_told(|t| matches!(t, Told::Released { error: None }).then_some(()));
    let state = std::fs::read_to_string(&trace).expect("the hook has run");
    assert!(state.contains(&place.id) && state.contains("stopped"), "{state}");
    let _ = kept.end();
}

fn a_launch_that_fails_leaves_nothing(t: &Test) {
    let place = Place::new(t);
    let call = Kept::spawn(&place.oci, &place.dir, place.words(&t.bundle().args(["/none"]), &[]));
    // As a shell says that it is not there.
    call.wait().failed_with(127, ["/none"]);
    assert_eq!(names(&place.dir), ["lock"]);
    // The folder is of use for the next one.
    assert_eq!(place.keep(&t.bundle().sh("exit 2"), &[]).end().exit_code, Some(2));
}

fn an_overlay_with_volumes_is_kept(t: &Test) {
    let place = Place::new(t);
    let volume = t.dir().join("volume");
    std::fs::create_dir(&volume).expect("mkdir");
    let (volumes, named) = (t.dir().join("volumes").display().to_string(), "data:/data");
    let shown = format!("{}:/shown", volume.display());
    let log = place.log.display().to_string();
    let rootfs = t.bundle().rootfs().display().to_string();
    let words =
        ["--output", &log, "--rootfs", &rootfs, "--volumes", &volumes, "-v", named, "-v", &shown];
    let script = "echo shown > /shown/file; echo named > /data/file; echo scratch > /file; exit 9";
    let rest = ["--id", &place.id, "--", "sh", "-c", script];
    let kept = Kept::begin(&place.oci, &place.dir, words.into_iter().chain(rest));
    assert_eq!(kept.end().exit_code, Some(9), "{}", String::from_utf8_lossy(&whole(&place.log)));
    assert_eq!(std::fs::read_to_string(volume.join("file")).expect("a file"), "shown\n");
    place.assert_gone("after its end");
}

fn nobody_else_gets_at_the_socket(t: &Test) {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new(t);
    let script = format!(
        "umask 0; exec $OCI keep --dir {} --bundle {} {}",
        place.dir.display(),
        t.bundle().args(["/inside", "sleep", "600"]).path().display(),
        place.id
    );
    let call = t.shell(&script).spawn();
    let socket = place.dir.join("socket");
    let there = wait_until(Duration::from_secs(10), || socket.exists().then_some(()));
    assert!(there.is_some(), "{}", call.stderr());
    for path in [&place.dir, &socket] {
        let mode = path.metadata().expect("it is there").mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
    let _ = place.oci.kill(&place.id, "KILL").ok();
    let _ = call.wait().ok();
}

fn somebody_else_deletes_it(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&t.bundle().args(["/inside", "sleep", "600"]), &[]);
    let _ = place.oci.delete_force(&place.id).ok();
    let exit = kept.end();
    assert_eq!((exit.exit_code, exit.signal), (None, Some(9)));
    place.assert_gone("after its end");
}
