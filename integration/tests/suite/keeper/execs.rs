//! Programs that a keeper runs for others.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::keeper::{Client, borrowed};
use hafen_integration::{
    Case, Kept, Receiver, Test, Value, cases, json, read_terminal, wait_until,
};
use hafen_spec::keep::{Request, Told};

use super::Place;

pub(super) fn trials() -> Vec<Case> {
    cases![
        it_has_the_descriptors_that_came(Root, Busybox),
        codes_of_what_cannot_run(Root, Busybox),
        it_is_like_the_container(Root, Busybox),
        an_end_never_comes_before_its_start(Root, Busybox),
        it_has_a_terminal(Root, Busybox),
        it_gets_a_signal(Root, Busybox),
        its_client_goes(Root, Busybox),
        it_ends_with_the_container(Root, Busybox),
        a_number_is_used_once(Root, Busybox),
    ]
}

fn sleeping(t: &Test) -> (Place, Kept) {
    let place = Place::new(t);
    let kept = place.keep(&t.bundle().args(["/inside", "sleep", "600"]), &[]);
    (place, kept)
}

fn ask(number: u64, process: Value) -> Request {
    Request::Exec { number, process, console: None }
}

fn sh(number: u64, script: &str) -> Request {
    ask(number, json!({ "args": ["sh", "-c", script] }))
}

fn until_started(client: &mut Client, wanted: u64) -> i32 {
    client.until_told(|t| match t {
        Told::ExecStarted { number, pid } if *number == wanted => Some(*pid),
        _ => None,
    })
}

fn until_ended(client: &mut Client, wanted: u64) -> (Option<i32>, Option<i32>) {
    client.until_told(|t| match t {
        Told::ExecEnded { number, code, signal } if *number == wanted => Some((*code, *signal)),
        _ => None,
    })
}

fn end(mut client: Client, kept: Kept) {
    client.ask(&Request::Kill);
    assert_eq!(client.until_exit().signal, Some(9));
    let _ = kept.end();
}

/// stdin, stdout, stderr.
fn files(t: &Test, input: &str) -> ([PathBuf; 2], Vec<File>) {
    let paths = ["out", "err"].map(|name| t.dir().join(name));
    fs::write(t.dir().join("in"), input).expect("write");
    let open = File::open(t.dir().join("in")).expect("open");
    let made = paths.iter().map(|path| File::create(path).expect("create"));
    (paths.clone(), [open].into_iter().chain(made).collect())
}

fn it_has_the_descriptors_that_came(t: &Test) {
    let (_, kept) = sleeping(t);
    let mut client = kept.connect();
    let ([out, err], files) = files(t, "words\n");
    client.ask_with(&sh(7, "read line; echo out $line; echo err >&2; exit 9"), &borrowed(&files));
    // Without any, right behind: they are nobody else's.
    client.ask(&sh(8, "test $(readlink /proc/$$/fd/2) = /dev/null && exit 3"));
    let pid = until_started(&mut client, 7);
    assert!(pid > 0);
    assert_eq!(until_ended(&mut client, 7), (Some(9), None));
    assert_eq!(until_ended(&mut client, 8), (Some(3), None));
    assert_eq!(fs::read_to_string(out).expect("out"), "out words\n");
    assert_eq!(fs::read_to_string(err).expect("err"), "err\n");
    end(client, kept);
}

fn codes_of_what_cannot_run(t: &Test) {
    let (_, kept) = sleeping(t);
    let mut client = kept.connect();
    let ([_, err], files) = files(t, "");
    for (process, code, words) in [
        (json!({ "args": ["none-such"] }), 127, "none-such"),
        (json!({ "args": ["/etc/passwd"] }), 126, "/etc/passwd"),
        (json!({ "args": [] }), 255, "args"),
    ] {
        client.ask_with(&ask(1, process), &borrowed(&files));
        assert_eq!(until_ended(&mut client, 1), (Some(code), None), "{words}");
        let said = fs::read_to_string(&err).expect("err");
        assert!(said.contains(words), "{code}: {said}");
        let started = client.told.iter().any(|t| matches!(t, Told::ExecStarted { .. }));
        assert!(!started, "{:?}", client.told);
    }
    end(client, kept);
}

fn it_is_like_the_container(t: &Test) {
    let place = Place::new(t);
    let bundle = t.bundle().push("/process/env", json!("OWN=1")).set("/process/cwd", json!("/tmp"));
    let kept = place.keep(&bundle.args(["/inside", "sleep", "600"]), &[]);
    let mut client = kept.connect();
    let ([out, _], files) = files(t, "");
    let script = "echo $OWN $MORE $PWD; cat /proc/1/cmdline | tr '\\0' ' '";
    let process = json!({ "args": ["sh", "-c", script], "env": ["MORE=2"] });
    client.ask_with(&ask(1, process), &borrowed(&files));
    assert_eq!(until_ended(&mut client, 1), (Some(0), None));
    assert_eq!(fs::read_to_string(out).expect("out"), "1 2 /tmp\n/inside sleep 600 ");
    end(client, kept);
}

/// The program is often over before the runtime that starts it is.
fn an_end_never_comes_before_its_start(t: &Test) {
    let (_, kept) = sleeping(t);
    let mut client = kept.connect();
    for number in 0..30 {
        client.ask(&ask(number, json!({ "args": ["true"] })));
    }
    client.until(|c| {
        let ends = c.told.iter().filter(|t| matches!(t, Told::ExecEnded { .. })).count();
        (ends == 30).then_some(())
    });
    for wanted in 0..30 {
        let of = |t: &&Told| matches!(t, Told::ExecStarted { number, .. } | Told::ExecEnded { number, .. } if *number == wanted);
        let told: Vec<&Told> = client.told.iter().filter(of).collect();
        assert!(
            matches!(told[..], [Told::ExecStarted { .. }, Told::ExecEnded { code: Some(0), .. }]),
            "{told:?}"
        );
    }
    end(client, kept);
}

fn it_has_a_terminal(t: &Test) {
    let (_, kept) = sleeping(t);
    let mut client = kept.connect();
    let receiver = Receiver::listen(t.dir().join("console"));
    let process = json!({ "args": ["sh", "-c", "tty; exit 5"], "terminal": true });
    let console = Some(receiver.path().to_owned());
    client.ask(&Request::Exec { number: 1, process, console });
    assert_eq!(read_terminal(receiver.get().0), "/dev/pts/0\n");
    assert_eq!(until_ended(&mut client, 1), (Some(5), None));
    end(client, kept);
}

fn it_gets_a_signal(t: &Test) {
    let (_, kept) = sleeping(t);
    let (mut client, mut other) = (kept.connect(), kept.connect());
    client.ask(&ask(1, json!({ "args": ["sleep", "600"] })));
    let pid = until_started(&mut client, 1);
    other.ask(&Request::SignalExec { number: 1, signal: 15 });
    assert!(other.until_failed().contains("not running"), "it is none of that client's");
    assert!(PathBuf::from(format!("/proc/{pid}")).exists());
    client.ask(&Request::SignalExec { number: 1, signal: 15 });
    assert_eq!(until_ended(&mut client, 1), (None, Some(15)));
    end(client, kept);
}

fn its_client_goes(t: &Test) {
    let (_, kept) = sleeping(t);
    let mut client = kept.connect();
    let ([out, _], files) = files(t, "");
    client.ask_with(&sh(1, "usleep 300000; echo done"), &borrowed(&files));
    let _ = until_started(&mut client, 1);
    drop(client);
    let done = || (fs::read_to_string(&out).ok()? == "done\n").then_some(());
    assert!(wait_until(Duration::from_secs(10), done).is_some(), "it goes on");
    end(kept.connect(), kept);
}

fn it_ends_with_the_container(t: &Test) {
    let (place, kept) = sleeping(t);
    let mut client = kept.connect();
    client.ask(&ask(1, json!({ "args": ["sleep", "600"] })));
    let _ = until_started(&mut client, 1);
    client.ask(&Request::Kill);
    client.until(|c| c.told.iter().any(|t| matches!(t, Told::Exited(_))).then_some(()));
    assert!(
        matches!(
            client.told[..],
            [Told::ExecEnded { number: 1, signal: Some(9), .. }, Told::Exited(_)]
        ),
        "{:?}",
        client.told
    );
    let _ = kept.end();
    place.assert_gone("after its end");
}

fn a_number_is_used_once(t: &Test) {
    let (_, kept) = sleeping(t);
    let (mut client, mut other) = (kept.connect(), kept.connect());
    client.ask(&ask(1, json!({ "args": ["sleep", "600"] })));
    let _ = until_started(&mut client, 1);
    client.ask(&ask(1, json!({ "args": ["true"] })));
    assert!(client.until_failed().contains("number 1 is in use"));
    other.ask(&ask(1, json!({ "args": ["true"] })));
    assert_eq!(until_ended(&mut other, 1), (Some(0), None), "another client has its own");
    end(client, kept);
}
