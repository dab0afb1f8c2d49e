//! Terminals: through a console socket, or relayed.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use hafen_integration::{Bundle, Case, Oci, Output, Receiver, Test, cases, json, read_terminal};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        a_terminal_comes_through_the_socket(Root, Busybox),
        it_is_the_controlling_terminal_and_the_console(Root, Busybox),
        it_has_the_size_that_was_asked_for(Root, Busybox),
        it_belongs_to_the_user(Root, Busybox),
        what_is_typed_arrives(Root, Busybox),
        exec_has_a_terminal_of_its_own(Root, Busybox),
        run_relays_a_terminal(Root, Busybox),
        run_without_a_reader_goes_on(Root, Busybox),
        the_caller_and_the_bundle_agree(Root, Busybox),
        a_socket_that_nobody_listens_on(Root, Busybox),
        a_console_that_is_a_symlink_is_refused(Root, Busybox),
        without_a_devpts_there_is_none(Root, Busybox),
        a_long_path_of_a_socket(Root, Busybox),
    ]
}

fn with_terminal(t: &Test) -> Bundle {
    t.bundle().set("/process/terminal", json!(true))
}

/// Create and start with a console socket; the master, and the name that came with it.
fn start(t: &Test, oci: &Oci, id: &str, bundle: &Bundle) -> (OwnedFd, String) {
    let receiver = Receiver::listen(t.dir().join(format!("{id}.sock")));
    let _ = create(oci, id, bundle, &receiver).ok();
    let got = receiver.get();
    let _ = oci.start(id).ok();
    got
}

fn create(oci: &Oci, id: &str, bundle: &Bundle, receiver: &Receiver) -> Output {
    let words = ["create".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str()];
    let more = ["--console-socket".as_ref(), receiver.path().as_os_str(), id.as_ref()];
    oci.call(words.into_iter().chain(more))
}

fn said(t: &Test, bundle: &Bundle) -> String {
    let (oci, id) = (t.oci(), t.id());
    let (master, _) = start(t, &oci, &id, bundle);
    let text = read_terminal(master);
    let _ = oci.delete_force(&id).ok();
    text
}

fn a_terminal_comes_through_the_socket(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = with_terminal(t).sh("tty; test -t 0 && test -t 1 && test -t 2 && echo all");
    let (master, name) = start(t, &oci, &id, &bundle);
    assert_eq!(name, "/dev/pts/0");
    assert_eq!(read_terminal(master), "/dev/pts/0\nall\n");
    let _ = oci.delete_force(&id).ok();
}

fn it_is_the_controlling_terminal_and_the_console(t: &Test) {
    let bundle = with_terminal(t)
        .sh("echo tty > /dev/tty; echo console > /dev/console; ls -l /dev/console | cut -c1");
    assert_eq!(said(t, &bundle), "tty\nconsole\nc\n");
}

fn it_has_the_size_that_was_asked_for(t: &Test) {
    let bundle = with_terminal(t)
        .set("/process/consoleSize", json!({ "height": 33, "width": 77 }))
        .sh("stty size");
    assert_eq!(said(t, &bundle), "33 77\n");
}

fn it_belongs_to_the_user(t: &Test) {
    let bundle = with_terminal(t)
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .sh("stat -c %u /dev/pts/0; echo open > /dev/tty; echo out > /dev/stdout");
    assert_eq!(said(t, &bundle), "1000\nopen\nout\n");
}

fn what_is_typed_arrives(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = with_terminal(t).sh("stty -echo; echo ready; read line; echo got $line");
    let (master, _) = start(t, &oci, &id, &bundle);
    let mut keys = File::from(master.try_clone().expect("dup"));
    keys.write_all(b"some words\n").expect("type");
    let text = read_terminal(master);
    assert!(text.ends_with("got some words\n"), "{text:?}");
    let _ = oci.delete_force(&id).ok();
}

fn exec_has_a_terminal_of_its_own(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let _ = oci.create(&id, &t.bundle().args(["/inside", "sleep", "600"])).ok();
    let _ = oci.start(&id).ok();
    let receiver = Receiver::listen(t.dir().join("exec.sock"));
    let words =
        ["exec".as_ref(), "--tty".as_ref(), "--detach".as_ref(), "--console-socket".as_ref()];
    let rest = ["-u", "7:8", &id, "sh", "-c", "tty; stat -c %u /dev/pts/0; echo x > /dev/tty"];
    let rest = rest.iter().map(|w| (*w).as_ref());
    let _ = oci.call(words.into_iter().chain([receiver.path().as_os_str()]).chain(rest)).ok();
    let (master, name) = receiver.get();
    assert_eq!(name, "/dev/pts/0");
    assert_eq!(read_terminal(master), "/dev/pts/0\n7\nx\n");
    let _ = oci.delete_force(&id).ok();
}

/// Stdin of a test is no terminal: bytes go both ways all the same.
fn run_relays_a_terminal(t: &Test) {
    let bundle = with_terminal(t).sh("stty -echo; tty; read line; echo got $line; exit 6");
    let path = bundle.path().to_string_lossy().into_owned();
    let call = t.oci().command(["run", "--bundle", &path, &t.id()]).stdin("words\n");
    let output = call.output().code(6);
    let text = output.stdout.replace('\r', "");
    assert!(text.contains("/dev/pts/0\n") && text.ends_with("got words\n"), "{output}");
}

/// Far more than a terminal takes: nobody reads it, and the program ends.
fn run_without_a_reader_goes_on(t: &Test) {
    let bundle = with_terminal(t).sh("i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 5");
    let (oci, id) = (t.oci(), t.id());
    let script = format!(
        "({} --root {} run --bundle {} {id}; echo $? > {}) | true",
        oci.program().display(),
        oci.root().display(),
        bundle.path().display(),
        t.dir().join("code").display(),
    );
    let _ = t.shell(&script).output().ok();
    assert_eq!(fs::read_to_string(t.dir().join("code")).expect("a code"), "5\n");
}

fn the_caller_and_the_bundle_agree(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    oci.create(&id, &with_terminal(t)).error_with(["without setting console socket"]);
    let receiver = Receiver::listen(t.dir().join("none.sock"));
    create(&oci, &id, &t.bundle(), &receiver).error_with(["cannot use console socket"]);
}

fn a_socket_that_nobody_listens_on(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = with_terminal(t);
    let words = [
        "create",
        "--bundle",
        &bundle.path().to_string_lossy(),
        "--console-socket",
        "/nowhere/x",
        &id,
    ];
    oci.call(words).error_with(["--console-socket /nowhere/x"]);
}

/// CVE-2025-52565: whatever the link leads to would be covered by the terminal.
fn a_console_that_is_a_symlink_is_refused(t: &Test) {
    let bundle = with_terminal(t).without_mount("/dev/pts").without_mount("/dev/shm");
    let bundle = bundle.without_mount("/dev/mqueue").without_mount("/dev");
    let bundle = bundle.push(
        "/mounts",
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"] }),
    );
    let dev = bundle.rootfs().join("dev");
    let _ = fs::create_dir_all(&dev);
    std::os::unix::fs::symlink("/victim", dev.join("console")).expect("symlink");
    let bundle = bundle.file("victim", "whole");
    let (oci, id) = (t.oci(), t.id());
    let receiver = Receiver::listen(t.dir().join("console.sock"));
    create(&oci, &id, &bundle, &receiver).error_with(["/dev/console"]);
    assert_eq!(fs::metadata(bundle.rootfs().join("victim")).expect("a file").size(), 5);
}

fn without_a_devpts_there_is_none(t: &Test) {
    let bundle = with_terminal(t).without_mount("/dev/pts");
    let (oci, id) = (t.oci(), t.id());
    let receiver = Receiver::listen(t.dir().join("console.sock"));
    create(&oci, &id, &bundle, &receiver).error_with(["open /dev/pts/ptmx"]);
    let fake =
        bundle.file("dev/pts/ptmx", "").without_mount("/dev/shm").without_mount("/dev/mqueue");
    let fake = fake.without_mount("/dev");
    let receiver = Receiver::listen(t.dir().join("fake.sock"));
    create(&oci, &id, &fake, &receiver).error_with(["not of a devpts"]);
}

fn a_long_path_of_a_socket(t: &Test) {
    let folder = t.dir().join("f".repeat(120));
    fs::create_dir(&folder).expect("mkdir");
    let short = t.dir().join("s");
    let receiver = Receiver::listen(short.clone());
    let long = folder.join("socket");
    fs::rename(&short, &long).expect("rename");
    let (oci, id) = (t.oci(), t.id());
    let bundle = with_terminal(t).sh("tty");
    let words = [
        "create",
        "--bundle",
        &bundle.path().to_string_lossy(),
        "--console-socket",
        &long.to_string_lossy(),
        &id,
    ];
    let _ = oci.call(words).ok();
    assert_eq!(receiver.get().1, "/dev/pts/0");
    let _ = oci.delete_force(&id).ok();
}
