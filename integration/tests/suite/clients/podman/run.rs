//! One container from its start to its end.

use hafen_integration::Case;

use super::super::Peer;
use super::{Podman, case};

pub(super) fn scenarios() -> Vec<Case> {
    let peer = Peer::Passes("runc");

    vec![
        case("exit_codes", vec![], peer, exit_codes),
        case("errors_are_told", vec![], peer, errors_are_told),
        case("user_folder_environment", vec![], peer, user_folder_environment),
        case("stop_and_kill", vec![], peer, stop_and_kill),
        case("restart_and_remove", vec![], peer, restart_and_remove),
    ]
}

fn exit_codes(p: &Podman<'_>) {
    let output = p.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).code(7);
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
    p.run(&[], &["/no/such/program"]).code(127);
    p.run(&[], &["no-such-program"]).code(127);
    p.run(&[], &["/script"]).code(126);
}

/// What the runtime wrote into its log is what the user reads.
fn errors_are_told(p: &Podman<'_>) {
    let missing = p.run(&[], &["no-such-program"]).code(127);
    assert!(missing.stderr.contains("no-such-program"), "{missing}");
    let folder = p.run(&["--workdir", "/no/such/folder"], &["true"]);
    assert!(folder.exit != Some(0) && folder.stderr.contains("/no/such/folder"), "{folder}");
}

fn user_folder_environment(p: &Podman<'_>) {
    let options = ["--user", "app", "--workdir", "/tmp", "--env", "GIVEN=1", "--hostname", "ship"];
    let seen = p.sh(&options, "id; pwd; echo $GIVEN $FROM_IMAGE $HOME; hostname");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)");
    assert_eq!(lines[1..], ["/tmp", "1 yes /tmp", "ship"]);
    let groups = p.sh(&["--user", "1000:0", "--group-add", "3000"], "id -u; id -g; id -G");
    assert_eq!(groups, "1000\n0\n0 3000\n");
    assert_eq!(p.sh(&["--umask", "0077"], "umask"), "0077\n");
}

fn stop_and_kill(p: &Podman<'_>) {
    let script =
        "trap 'echo hup' HUP; trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    p.start("c", &[], script);
    p.await_log("c", "ready");
    p.ok(["kill", "--signal", "HUP", "c"]);
    p.await_log("c", "hup");
    p.ok(["stop", "c"]);
    assert_eq!(p.inspect("c", "State.ExitCode"), "3");
    p.ok(["start", "c"]);
    p.ok(["kill", "c"]);
    p.await_status("c", "exited");
    assert_eq!(p.inspect("c", "State.ExitCode"), "137");
    // Nobody is there to kill.
    assert!(p.call(["kill", "c"]).exit != Some(0));
    p.start("deaf", &[], "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    p.await_log("deaf", "ready");
    p.ok(["stop", "--time", "1", "deaf"]);
    assert_eq!(p.inspect("deaf", "State.ExitCode"), "137");
}

fn restart_and_remove(p: &Podman<'_>) {
    p.start(
        "c",
        &["--pidfile", &p.folder.join("pid").display().to_string()],
        "echo run; exec sleep 60",
    );
    p.await_log("c", "run");
    let first = p.pid("c");
    let file = std::fs::read_to_string(p.folder.join("pid")).expect("the pid file");
    assert_eq!(file.trim(), first.to_string());
    p.ok(["restart", "--time", "0", "c"]);
    assert_eq!(p.inspect("c", "State.Running"), "true");
    assert!(p.pid("c") != first, "it is the same process");
    assert!(p.call(["rm", "c"]).exit != Some(0), "a running container was removed");
    p.ok(["rm", "--force", "--time", "0", "c"]);
    assert_eq!(p.ok(["ps", "--all", "--quiet"]), "");
}
