//! More processes in a running container, terminals, and a container that stands still.

use std::time::Duration;

use hafen_integration::{Case, cgroup, wait_until};

use super::super::{Peer, in_terminal};
use super::{BOX, Podman, case};

pub(super) fn scenarios() -> Vec<Case> {
    let peer = Peer::Passes("runc");
    let limits = || hafen_integration::needs![Limit("memory"), Limit("cpu"), Limit("pids")];
    vec![
        case("exec", vec![], peer, exec),
        case("exec_errors", vec![], peer, exec_errors),
        case("exec_detached_and_killed", vec![], peer, exec_detached_and_killed),
        case("terminals", vec![], peer, terminals),
        case("pause_unpause", vec![], peer, pause_unpause),
        case("update", limits(), peer, update),
        case("healthcheck", vec![], peer, healthcheck),
    ]
}

fn exec(p: &Podman<'_>) {
    p.start("one", &["--env", "FIRST=1", "--cap-drop", "all"], "exec sleep 60");
    let output = p.call(["exec", "one", "sh", "-c", "echo out; echo err >&2; exit 5"]).code(5);
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    let options = ["exec", "--user", "app", "--workdir", "/tmp", "--env", "GIVEN=1", "one"];
    let script = "id; pwd; echo $GIVEN $FIRST $HOME; ls /proc/self/fd | wc -l";
    let seen = p.ok([&options[..], &["sh", "-c", script]].concat());
    let lines: Vec<&str> = seen.lines().collect();
    // Podman adds the user's own group to the others only for the first process.
    assert_eq!(lines[0], "uid=1000(app) gid=1000(app) groups=2000(extra)");
    // The fourth is the one that `ls` reads the folder through.
    assert_eq!(lines[1..], ["/tmp", "1 1 /tmp", "4"]);
    let fed = p.command(["exec", "--interactive", "one", "cat"]).stdin("fed\n").output().ok();
    assert_eq!(fed.stdout, "fed\n");
    let capabilities = "grep CapEff /proc/self/status";
    let none = p.ok(["exec", "one", "sh", "-c", capabilities]);
    let all = p.ok(["exec", "--privileged", "one", "sh", "-c", capabilities]);
    assert_eq!(none, "CapEff:\t0000000000000000\n");
    assert!(all != none, "{all}");
}

fn exec_errors(p: &Podman<'_>) {
    p.start("one", &[], "exec sleep 60");
    p.call(["exec", "one", "/no/such/program"]).code(127);
    p.call(["exec", "one", "no-such-program"]).code(127);
    p.call(["exec", "one", "/script"]).code(126);
    let folder = p.call(["exec", "--workdir", "/no/such/folder", "one", "true"]);
    assert!(folder.exit != Some(0), "{folder}");
    p.ok(["stop", "--time", "0", "one"]);
    assert!(p.call(["exec", "one", "true"]).exit != Some(0));
}

fn exec_detached_and_killed(p: &Podman<'_>) {
    p.start("one", &[], "exec sleep 60");
    let script = "echo $$ >/tmp/pid; exec sleep 60";
    p.ok(["exec", "--detach", "one", "sh", "-c", script]);
    let written = wait_until(Duration::from_secs(5), || {
        let output = p.call(["exec", "one", "cat", "/tmp/pid"]);
        (output.exit == Some(0) && !output.stdout.is_empty()).then_some(output.stdout)
    });
    let pid = written.expect("the detached process wrote its pid");
    p.ok(["exec", "one", "kill", "-9", pid.trim()]);
    // An exec session that goes on is ended with the container.
    p.ok(["exec", "--detach", "one", "sleep", "60"]);
    p.ok(["rm", "--force", "--time", "0", "one"]);
}

fn terminals(p: &Podman<'_>) {
    assert_eq!(p.run(&["--tty"], &["tty"]).ok().stdout, "/dev/pts/0\r\n");
    assert_eq!(
        p.run(&["--tty", "--user", "app"], &["sh", "-c", "echo x >$(tty)"]).ok().stdout,
        "x\r\n"
    );
    let words = ["run", "--rm", "--tty", "--interactive", BOX, "size"];
    let seen = in_terminal(p.test, &p.command(words)).output().ok().stdout;
    assert!(seen.contains("33 77"), "{seen}");
    p.start("one", &["--tty"], "exec sleep 60");
    assert_eq!(p.ok(["exec", "one", "readlink", "/proc/1/fd/0"]), "/dev/pts/0\n");
    let second = p.ok(["exec", "--tty", "one", "tty"]);
    assert!(second.starts_with("/dev/pts/"), "{second}");
    let words = ["exec", "--tty", "--interactive", "one", "size"];
    let seen = in_terminal(p.test, &p.command(words)).output().ok().stdout;
    assert!(seen.contains("33 77"), "{seen}");
}

fn pause_unpause(p: &Podman<'_>) {
    p.start("one", &[], "while :; do echo tick; sleep 0.1; done");
    p.await_log("one", "tick");
    p.ok(["pause", "one"]);
    assert_eq!(p.inspect("one", "State.Status"), "paused");
    let before = p.ok(["logs", "one"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(p.ok(["logs", "one"]), before, "it goes on");
    assert!(p.call(["exec", "one", "true"]).exit != Some(0), "exec in a paused container");
    p.ok(["unpause", "one"]);
    assert_eq!(p.inspect("one", "State.Status"), "running");
    let more = wait_until(Duration::from_secs(10), || {
        (p.ok(["logs", "one"]).len() > before.len()).then_some(())
    });
    assert!(more.is_some(), "it does not go on");
    p.ok(["pause", "one"]);
    p.ok(["rm", "--force", "--time", "0", "one"]);
}

fn update(p: &Podman<'_>) {
    p.start("one", &["--memory", "64m", "--cpus", "1"], "exec sleep 60");
    p.ok(["update", "--memory", "48m", "--cpus", "0.5", "one"]);
    let memory =
        if cgroup::v1("memory").is_some() { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(cgroup::value(&p.cgroup("one", "memory"), memory), (48 << 20).to_string());
    let folder = p.cgroup("one", "cpu");
    if cgroup::v1("cpu").is_some() {
        assert_eq!(cgroup::value(&folder, "cpu.cfs_quota_us"), "50000");
    } else {
        assert_eq!(cgroup::value(&folder, "cpu.max"), "50000 100000");
    }
}

fn healthcheck(p: &Podman<'_>) {
    let options = ["--health-cmd", "test -f /tmp/well", "--health-interval", "disable"];
    p.start("one", &options, "exec sleep 60");
    assert!(p.call(["healthcheck", "run", "one"]).exit != Some(0), "it is not well");
    p.ok(["exec", "one", "touch", "/tmp/well"]);
    p.ok(["healthcheck", "run", "one"]);
}
