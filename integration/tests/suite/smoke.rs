//! The first things to work.

use hafen_integration::{Case, Test, cases, json};

pub(crate) fn trials() -> Vec<Case> {
    cases![
        exit_code_is_the_containers(Launcher, Busybox),
        output_of_the_container_comes_through(Launcher, Busybox),
        facts_can_be_read(Launcher, Busybox),
        shell_reads_its_files(Launcher, Busybox),
        no_signal_is_ignored(Launcher, Busybox),
        create_start_kill_delete(Launcher, Busybox),
        a_signal_ends_it_with_128_and_its_number(Launcher, Busybox),
        an_unknown_program_is_named(Launcher, Busybox),
    ]
}

fn exit_code_is_the_containers(t: &Test) {
    let bundle = t.bundle().args(["/inside", "exit", "7"]);
    t.oci().run(&t.id(), &bundle).code(7);
}

fn output_of_the_container_comes_through(t: &Test) {
    let bundle = t.bundle().sh("echo out; echo err >&2");
    let output = t.oci().run(&t.id(), &bundle).ok();
    assert_eq!((&*output.stdout, &*output.stderr), ("out\n", "err\n"));
}

fn facts_can_be_read(t: &Test) {
    let facts = t.oci().facts(&t.id(), &t.bundle());
    assert_eq!(facts.pid, 1);
    assert_eq!(facts.hostname, "hafen-test");
    assert_eq!(facts.status.no_new_privs, 1);
    assert_eq!(facts.fds.keys().collect::<Vec<_>>(), [&0, &1, &2]);
    assert_eq!(facts.root_write, "EROFS");
}

fn shell_reads_its_files(t: &Test) {
    let bundle = t.bundle().file("/etc/motd", "ahoy\n").sh("cat /etc/motd");
    assert_eq!(t.oci().run(&t.id(), &bundle).ok().stdout, "ahoy\n");
}

/// A Rust program ignores SIGPIPE, and what is ignored stays so across exec. What the caller ignored may stay; the two
/// signals behind the classic ones are the C library's own.
fn no_signal_is_ignored(t: &Test) {
    const SIGPIPE: u64 = 1 << 12;
    let mask = |status: &str, field: &str| {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("the field is there")
            .trim();
        u64::from_str_radix(value, 16).expect("a mask is hexadecimal") & 0x7fff_ffff
    };
    let own = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let seen = t.oci().run(&t.id(), &t.bundle().sh("exec cat /proc/self/status")).ok().stdout;
    assert_eq!(mask(&seen, "SigIgn:") & !(mask(&own, "SigIgn:") & !SIGPIPE), 0, "{seen}");
    assert_eq!(mask(&seen, "SigBlk:"), 0, "{seen}");
}

fn create_start_kill_delete(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().args(["/inside", "await", "15", "3"]);
    let _ = oci.create(&id, &bundle).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("created"));
    let _ = oci.start(&id).ok();
    assert_eq!(oci.status(&id).as_deref(), Some("running"));
    let _ = oci.kill(&id, "KILL").ok();
    oci.await_status(&id, "stopped");
    let _ = oci.delete(&id).ok();
    assert_eq!(oci.status(&id), None);
}

fn a_signal_ends_it_with_128_and_its_number(t: &Test) {
    let (oci, id) = (t.oci(), t.id());
    let bundle = t.bundle().sh("echo ready; exec sleep 60");
    let words = ["run".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()];
    let mut run = oci.spawn(words);
    run.await_text("ready");
    let _ = oci.kill(&id, "KILL").ok();
    run.wait().code(128 + 9);
}

fn an_unknown_program_is_named(t: &Test) {
    let bundle = t.bundle().set("/process/args", json!(["/no/such/program"]));
    t.oci().run(&t.id(), &bundle).error_with(["/no/such/program"]);
}
