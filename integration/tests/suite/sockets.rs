//! What a service manager hands over and waits for, and handles that callers want.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use hafen_integration::{Case, Receiver, Test, cases, patience};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        listening_sockets_are_passed_on(Root, Busybox),
        sockets_for_somebody_else_are_not(Root, Busybox),
        readiness_is_told_by_run(Root, Busybox),
        start_waits_until_it_is_ready(Root, Busybox),
        a_pidfd_for_the_caller(Root, Busybox),
    ]
}

fn run(t: &Test, pid: &str, bundle: &Path) -> String {
    let oci = t.oci();
    let words = t.dir().join("words");
    fs::write(&words, "handed over\n").expect("write");
    let script = format!(
        "exec 3< {}; export LISTEN_FDS=1 {pid} LISTEN_FDNAMES=web; exec {} --root {} run --bundle {} {}",
        words.display(),
        oci.program().display(),
        oci.root().display(),
        bundle.display(),
        t.id(),
    );
    t.shell(&script).output().ok().stdout
}

const ASK: &str =
    "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat /proc/self/fd/3 2>/dev/null || echo nothing";

fn listening_sockets_are_passed_on(t: &Test) {
    let bundle = t.bundle().sh(ASK);
    // For the runtime, for the container's program as Podman has it, and for whoever gets it.
    for pid in ["LISTEN_PID=$$", "LISTEN_PID=1", ""] {
        assert_eq!(run(t, pid, bundle.path()), "1 1 web\nhanded over\n", "{pid}");
    }
}

fn sockets_for_somebody_else_are_not(t: &Test) {
    let bundle = t.bundle().sh(ASK);
    assert_eq!(run(t, "LISTEN_PID=2", bundle.path()), "\nnothing\n");
}

/// The manager's socket.
fn manager(t: &Test) -> (UnixDatagram, std::path::PathBuf) {
    let path = t.dir().join("manager");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(patience(Duration::from_secs(20)))).expect("set");
    (socket, path)
}

fn heard(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes).expect("a message");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn readiness_is_told_by_run(t: &Test) {
    let (socket, path) = manager(t);
    let bundle = t.bundle().args(["/inside", "notify", "READY=1\nSTATUS=well\nMAINPID=1"]);
    let oci = t.oci().env("NOTIFY_SOCKET", &path);
    let _ = oci.run(&t.id(), &bundle).ok();
    let message = heard(&socket);
    assert!(message.starts_with("READY=1\nSTATUS=well\nMAINPID="), "{message:?}");
    assert!(!message.contains("MAINPID=1\n"), "{message:?}");
}

fn start_waits_until_it_is_ready(t: &Test) {
    let (socket, path) = manager(t);
    let id = t.id();
    let bundle = t.bundle().sh("sleep 1; /inside notify READY=1; exec sleep 600");
    let oci = t.oci().env("NOTIFY_SOCKET", &path);
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    socket.set_nonblocking(true).expect("set");
    let message = heard(&socket);
    assert_eq!(message, format!("READY=1\nMAINPID={}\n", oci.pid(&id)));
    let _ = oci.delete_force(&id).ok();
    // One that ends without a word holds nobody up.
    let (id, bundle) = (t.id(), t.bundle().args(["/inside", "exit", "0"]));
    let _ = oci.create(&id, &bundle).ok();
    let _ = oci.start(&id).ok();
    let _ = oci.delete_force(&id).ok();
}

fn a_pidfd_for_the_caller(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let receiver = Receiver::listen(t.dir().join("pidfd"));
    let bundle = t.bundle().args(["/inside", "sleep", "600"]);
    let words = [
        "create",
        "--bundle",
        &bundle.path().to_string_lossy(),
        "--pidfd-socket",
        &receiver.path().to_string_lossy(),
        &id,
    ];
    let _ = oci.call(words).ok();
    let (handle, _) = receiver.get();
    let info =
        fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd())).expect("fdinfo");
    assert!(info.contains(&format!("Pid:\t{}\n", oci.pid(&id))), "{info}");
    let _ = oci.delete_force(&id).ok();
}
