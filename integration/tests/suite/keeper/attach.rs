//! Clients of the socket: output, input, and what is none of both.

use std::time::Duration;

use hafen_integration::keeper::{lines, whole};
use hafen_integration::{Bundle, Case, Kept, Test, cases, json, wait_until};
use hafen_spec::keep::{Frame, LONGEST, Request, Told};

use super::{Place, noise, sha, ticks};

pub(super) fn trials() -> Vec<Case> {
    cases![
        the_last_bytes_come_first(Root, Busybox),
        the_last_bytes_of_a_log_in_bytes_come_first(Root, Busybox),
        a_slow_reader_loses_nothing(Root, Busybox),
        who_does_not_take_it_is_told_how_much_is_missing(Root, Busybox),
        input_and_its_end(Root, Busybox),
        more_input_than_the_program_takes(Root, Busybox),
        everybody_gets_it(Root, Busybox),
        nonsense_closes_that_connection_only(Root, Busybox),
        requests_that_cannot_be(Root, Busybox),
        a_terminal_has_a_size(Root, Busybox),
        a_terminal_without_a_client(Root, Busybox),
        nobody_else_gets_the_terminal(Root, Busybox),
    ]
}

const WAITS: &str = "; read line";

fn interactive(t: &Test, script: &str) -> (Place, Kept) {
    let place = Place::new(t);
    let kept = place.keep(&t.bundle().sh(script), &["--interactive"]);
    (place, kept)
}

fn await_log(place: &Place, text: &str) {
    let found = || String::from_utf8_lossy(&whole(&place.log)).contains(text).then_some(());
    assert!(wait_until(Duration::from_secs(10), found).is_some(), "no {text:?} in the log");
}

fn the_last_bytes_come_first(t: &Test) {
    let (place, kept) = interactive(t, &format!("seq 1 9999; echo end{WAITS}; echo more"));
    await_log(&place, "end");
    let mut client = kept.connect().attached(true, true);
    client.until_text("end\n");
    let all: String = (1..=9999).map(|n| format!("{n}\n")).chain(["end\n".to_owned()]).collect();
    assert!(client.stdout.len() == 16 << 10 && all.ends_with(&client.text()));
    let mut other = kept.connect().attached(false, true);
    client.input(b"\n");
    other.until_text("more\n");
    assert_eq!(other.text(), "more\n", "only what is written from now on");
    let _ = kept.end();
}

fn the_last_bytes_of_a_log_in_bytes_come_first(t: &Test) {
    let place = Place::new(t);
    let bundle = t.bundle().sh(&format!("seq 1 9999; echo end{WAITS}; echo more"));
    let kept = place.keep(&bundle, &["--interactive", "--output-format", "plain"]);
    await_log(&place, "end");
    let mut client = kept.connect().attached(true, true);
    client.until_text("end\n");
    assert_eq!(client.stdout.len(), 16 << 10);
    client.input(b"\n");
    client.until_text("more\n");
    let _ = kept.end();
    assert!(whole(&place.log).ends_with(b"end\nmore\n"));
}

const MUCH: usize = 6 << 20;

fn much(t: &Test, script: &str) -> (Bundle, String) {
    let bytes = noise(MUCH);
    (t.bundle().file("data", &bytes).sh(script), sha(&bytes))
}

fn a_slow_reader_loses_nothing(t: &Test) {
    let place = Place::new(t);
    let (bundle, sum) = much(t, "read go; cat /data; exit 3");
    let kept = place.keep(&bundle, &["--interactive", "--output-format", "plain"]);
    let mut client = kept.connect().attached(false, true);
    client.input(b"\n");
    // It waits: nothing comes to the log any more, and most has not come.
    let mut last = 0;
    let waits = wait_until(Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(200));
        let now = whole(&place.log).len();
        let same = now == last && now > 0;
        last = now;
        same.then_some(())
    });
    assert!(waits.is_some() && last < MUCH / 2, "{last} bytes are in the log");
    assert_eq!(place.oci.status(&place.id).as_deref(), Some("running"));
    client.until(|c| (c.stdout.len() >= MUCH).then_some(()));
    assert_eq!(sha(&client.stdout), sum);
    assert_eq!(sha(&whole(&place.log)), sum);
    assert_eq!(client.until_exit().exit_code, Some(3));
    let _ = kept.end();
}

fn who_does_not_take_it_is_told_how_much_is_missing(t: &Test) {
    let place = Place::new(t);
    let (bundle, sum) = much(t, "read go; cat /data; exit 3");
    let kept = place.keep(&bundle, &["--interactive", "--output-format", "plain"]);
    let mut client = kept.connect().attached(false, false);
    client.input(b"\n");
    let all = || (whole(&place.log).len() == MUCH).then_some(());
    assert!(wait_until(Duration::from_secs(10), all).is_some(), "the program does not wait");
    let _ = client.until_exit();
    let missing: u64 =
        client.told.iter().map(|t| if let Told::Lagged { bytes } = t { *bytes } else { 0 }).sum();
    assert!(missing > 0, "{:?}", client.told);
    assert_eq!(client.stdout.len() as u64 + missing, MUCH as u64);
    assert_eq!(sha(&whole(&place.log)), sum);
    let _ = kept.end();
}

fn input_and_its_end(t: &Test) {
    let (_, kept) = interactive(t, "cat; echo over; exit 6");
    let mut client = kept.connect().attached(true, true);
    let bytes = noise(300_000);
    for piece in bytes.chunks(70_000) {
        client.input(piece);
    }
    client.input(b"");
    client.ask(&Request::EndInput);
    assert_eq!(client.until_exit().exit_code, Some(6));
    assert_eq!(sha(&client.stdout), sha(&[&bytes[..], b"over\n"].concat()));
    let _ = kept.end();
}

/// Others are heard all the same, and nothing goes round and round.
fn more_input_than_the_program_takes(t: &Test) {
    let (place, kept) =
        interactive(t, "echo ready; until test -e /go; do usleep 20000; done; wc -c");
    let mut pushing = kept.connect();
    pushing.input_as_taken(&vec![b'x'; 1000]);
    pushing.input_as_taken(&vec![b'x'; 200_000]);
    pushing.input_as_taken(&vec![b'x'; 900_000]);
    let mut other = kept.connect().attached(true, true);
    other.ask(&Request::Resize { rows: 1, columns: 1 });
    assert!(other.until_failed().contains("no terminal"), "it is heard");
    drop(pushing);
    let before = ticks(kept.pid());
    std::thread::sleep(Duration::from_millis(500));
    let used = ticks(kept.pid()) - before;
    assert!(used < 20, "{used} ticks while nothing can be done");
    std::fs::write(bundle_root(&place).join("go"), "").expect("go");
    other.ask(&Request::EndInput);
    let _ = other.until_exit();
    let count: usize = other.text().trim_start_matches("ready\n").trim().parse().expect("a number");
    assert!(count >= 201_000, "whole frames have come: {count}");
    let _ = kept.end();
}

fn bundle_root(place: &Place) -> std::path::PathBuf {
    let state = place.oci.state(&place.id);
    std::path::Path::new(state["bundle"].as_str().expect("a bundle")).join("rootfs")
}

fn everybody_gets_it(t: &Test) {
    let (_, kept) = interactive(t, "while read line; do echo \"got $line\"; done; exit 2");
    let mut clients: Vec<_> = (0..5).map(|_| kept.connect().attached(true, true)).collect();
    for n in 0..clients.len() {
        clients[n].input(format!("{n}\n").as_bytes());
        clients.iter_mut().for_each(|c| c.until_text(&format!("got {n}\n")));
    }
    clients[0].ask(&Request::EndInput);
    for client in &mut clients {
        assert_eq!(client.until_exit().exit_code, Some(2));
        assert_eq!(client.text(), "got 0\ngot 1\ngot 2\ngot 3\ngot 4\n");
    }
    drop(clients);
    let _ = kept.end();
}

fn nonsense_closes_that_connection_only(t: &Test) {
    let (_, kept) = interactive(t, "read line; echo \"got $line\"");
    let mut good = kept.connect().attached(true, true);
    let too_long = (u32::try_from(LONGEST).expect("a length") + 1).to_le_bytes();
    let wrong: [&[u8]; 4] = [
        &[0xff; 64],
        b"GET / HTTP/1.1\r\n\r\n",
        &[&[Frame::Word as u8][..], &too_long].concat(),
        &Frame::Stdout.head(0),
    ];
    for bytes in wrong {
        let mut client = kept.connect();
        client.raw(bytes);
        client.to_the_end();
        assert!(client.told.is_empty(), "{:?}", client.told);
    }
    // Half of a frame is none.
    let mut half = kept.connect();
    half.raw(&Frame::Stdin.head(10));
    half.raw(b"12345");
    drop(half);
    good.input(b"fine\n");
    good.until_text("got fine\n");
    let _ = kept.end();
}

fn requests_that_cannot_be(t: &Test) {
    let (_, kept) = interactive(t, "read line; exit 4");
    let mut client = kept.connect();
    for (word, wanted) in [
        ("", "request:"),
        ("{}", "request:"),
        ("{\"ask\":\"dance\"}", "dance"),
        ("{\"ask\":\"resize\",\"rows\":24,\"columns\":80}", "no terminal"),
        ("{\"ask\":\"signalExec\",\"number\":1,\"signal\":9}", "not running"),
    ] {
        client.raw(&Frame::Word.head(word.len()));
        client.raw(word.as_bytes());
        let error = client.until_failed();
        assert!(error.contains(wanted), "{word}: {error}");
    }
    client.input(b"\n");
    assert_eq!(client.until_exit().exit_code, Some(4));
    let _ = kept.end();
}

fn with_terminal(t: &Test, script: &str) -> Bundle {
    t.bundle().set("/process/terminal", json!(true)).sh(script)
}

fn a_terminal_has_a_size(t: &Test) {
    let place = Place::new(t);
    let script =
        "stty -echo; tty; echo err >&2; read line; stty size; read line; echo got $line; exit 8";
    let kept = place.keep(&with_terminal(t, script), &[]);
    let mut client = kept.connect().attached(true, true);
    assert!(client.status.terminal);
    client.until_text("/dev/pts/0\nerr\n");
    client.ask(&Request::Resize { rows: 33, columns: 77 });
    client.input(b"\n");
    client.until_text("33 77\n");
    client.input(b"words\n");
    assert_eq!(client.until_exit().exit_code, Some(8));
    assert!(
        client.text().ends_with("got words\n") && client.stderr.is_empty(),
        "{}",
        client.text()
    );
    let _ = kept.end();
    let last = lines(&place.log).pop().expect("a line");
    assert_eq!((&*last.stream, &*last.bytes), ("stdout", &b"got words\r\n"[..]));
}

fn nobody_else_gets_the_terminal(t: &Test) {
    let place = Place::new(t);
    let words = place.words(&with_terminal(t, "true"), &["--console-socket", "/nowhere"]);
    let call = Kept::spawn(&place.oci, &place.dir, words);
    call.wait().error_with(["--console-socket", "the keeper itself"]);
}

fn a_terminal_without_a_client(t: &Test) {
    let place = Place::new(t);
    let kept = place.keep(&with_terminal(t, "seq 1 20000; exit 3"), &[]);
    assert_eq!(kept.end().exit_code, Some(3));
    assert_eq!(lines(&place.log).len(), 20_000);
}
