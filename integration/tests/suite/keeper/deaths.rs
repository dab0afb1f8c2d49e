//! A keeper that dies, and the next one.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::keeper::{exit, lines, whole};
use hafen_integration::{Bundle, Case, Kept, Test, cases, wait_until};
use hafen_spec::keep::Request;
use nix::sys::signal::Signal;

use super::Place;

pub(super) fn trials() -> Vec<Case> {
    cases![
        at_every_point_of_the_launch(Root, Busybox),
        at_every_point_of_its_own(Root, Busybox),
        of_the_first_process_at_every_step(Root, Busybox),
        while_lines_flow(Root, Busybox),
        while_bytes_flow(Root, Busybox),
        in_the_middle_of_a_line(Root, Busybox),
        the_program_ends_without_a_keeper(Root, Busybox),
        the_next_one_does_all_that_the_first_did(Root, Busybox),
        one_that_was_replaced_is_not_taken_over(Root, Busybox),
        without_its_folder(Root),
    ]
}

/// For a file that [`go`] makes.
const WAIT: &str = "until test -e /go; do usleep 10000; done";

/// Writes two lines, and waits between them.
fn two_lines(t: &Test) -> Bundle {
    t.bundle().sh(&format!("echo one; {WAIT}; echo two; exit 6"))
}

fn go(bundle: &Bundle) {
    fs::write(bundle.rootfs().join("go"), "").expect("write");
}

/// How often each line of stdout is in the log.
fn counted(place: &Place) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in lines(&place.log).iter().filter(|line| line.stream == "stdout") {
        *found.entry(String::from_utf8_lossy(&line.bytes).into_owned()).or_default() += 1;
    }
    found
}

#[track_caller]
fn assert_two_lines(place: &Place, when: &str) {
    let found = counted(place);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["one\n", "two\n"], "{when}");
    assert!(found.values().all(|n| *n <= 2), "{when}: {found:?}");
}

fn has_one(place: &Place) -> bool {
    place.log.exists() && fs::read_to_string(&place.log).is_ok_and(|text| text.contains("one"))
}

const MOST_POINTS: usize = 80;

/// Before the container is there; or there is one, which the next keeper takes over.
fn at_every_point_of_the_launch(t: &Test) {
    let mut taken_over = 0;
    for point in 0..MOST_POINTS {
        let (place, bundle) = (Place::new(t), two_lines(t));
        let when = format!("HAFEN_FAULT={point}");
        go(&bundle);
        let oci = place.oci.clone().env("HAFEN_FAULT", point.to_string());
        let output = Kept::spawn(&oci, &place.dir, place.words(&bundle, &[])).wait();
        if output.signal != Some(9) {
            let _ = output.ok();
            assert!(point > 8 && taken_over > 0, "{point} points, {taken_over} with a container");
            return;
        }
        if !place.dir.exists() {
            continue;
        }
        let next = Kept::spawn(&place.oci, &place.dir, ["--resume"]).wait();
        if next.exit == Some(0) {
            taken_over += 1;
            if exit(&place.dir).exit_code == Some(1) {
                // It was never let go to its program.
                assert!(counted(&place).is_empty(), "{when}");
            } else {
                assert_eq!(exit(&place.dir).exit_code, Some(6), "{when}");
            }
            place.assert_gone(&when);
        } else {
            let _ = place.oci.delete_force(&place.id).ok();
            // And the folder is of use again.
            let again = place.keep(&bundle, &[]).end();
            assert_eq!(again.exit_code, Some(6), "{when}");
            place.assert_gone(&when);
        }
    }
    panic!("no end of points");
}

fn at_every_point_of_its_own(t: &Test) {
    for point in 0..MOST_POINTS {
        let (place, bundle) = (Place::new(t), two_lines(t));
        let when = format!("HAFEN_FAULT=k{point}");
        let oci = place.oci.clone().env("HAFEN_FAULT", format!("k{point}"));
        let mut kept = Kept::spawn(&oci, &place.dir, place.words(&bundle, &[]));
        // Who dies before the program ends is replaced before: what is in the fifos goes with the last who has them open.
        let early = wait_until(Duration::from_secs(10), || {
            let ended = kept.has_ended();
            (ended || has_one(&place)).then_some(ended)
        });
        let next = early.expect("a line or an end").then(|| place.resume());
        go(&bundle);
        let output = kept.wait();
        let died = output.signal == Some(9);
        if let Some(next) = next {
            let _ = next.end();
        } else if died {
            let next = Kept::spawn(&place.oci, &place.dir, ["--resume"]).wait();
            assert!(next.exit == Some(0), "{when}: {next}");
        } else {
            let _ = output.ok();
        }
        let exit = exit(&place.dir);
        assert_eq!((exit.exit_code, exit.signal), (Some(6), None), "{when}");
        assert_two_lines(&place, &when);
        place.assert_gone(&when);
        if !died {
            assert!(point >= 8, "only {point} points");
            return;
        }
    }
    panic!("no end of points");
}

/// One that dies before it is the program is a launch that has failed.
fn of_the_first_process_at_every_step(t: &Test) {
    const MOST_STEPS: usize = 300;
    let bundle = t.bundle().sh("exit 6");
    for step in 0..MOST_STEPS {
        let place = Place::new(t);
        let when = format!("HAFEN_FAULT=c{step}");
        let oci = place.oci.clone().env("HAFEN_FAULT", format!("c{step}"));
        let output = Kept::spawn(&oci, &place.dir, place.words(&bundle, &[])).wait();
        if output.exit == Some(0) {
            assert_eq!(exit(&place.dir).exit_code, Some(6), "{when}");
            assert!(step > 20, "only {step} steps");
            return;
        }
        assert!(output.exit == Some(1) && !output.stderr.is_empty(), "{when}: {output}");
        assert_eq!(super::names(&place.dir), ["lock"], "{when}");
        place.assert_gone(&when);
    }
    panic!("no end of steps");
}

const LINES: usize = 30_000;
/// Milliseconds between a start and a death.
const LIVES: [u64; 14] = [0, 3, 17, 1, 40, 8, 2, 70, 5, 11, 29, 0, 55, 4];

/// The keeper dies again and again; the last one stays to the end.
fn let_die(t: &Test, options: &[&str]) -> Place {
    let place = Place::new(t);
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; {WAIT}; exit 3");
    let bundle = t.bundle().sh(&script);
    let more = ["--output-max", "64K", "--output-files", "200"];
    let options: Vec<&str> = options.iter().copied().chain(more).collect();
    let mut kept = place.keep(&bundle, &options);
    let mut deaths = 0;
    for life in LIVES {
        std::thread::sleep(Duration::from_millis(life));
        kept.signal(Signal::SIGKILL);
        // It may have come to its end before.
        let output = kept.wait();
        deaths += usize::from(output.signal == Some(9));
        kept = place.resume();
    }
    // What a program leaves behind that ends without a keeper is lost: so it ends with one.
    go(&bundle);
    let exit = kept.end();
    assert!(deaths > 3, "{deaths} deaths");
    assert_eq!((exit.exit_code, exit.log_lost_bytes), (Some(3), 0));
    place.assert_gone("after all");
    place
}

fn while_lines_flow(t: &Test) {
    let place = let_die(t, &[]);
    let found = counted(&place);
    let missing: Vec<usize> =
        (0..LINES).filter(|n| !found.contains_key(&format!("line {n}\n"))).collect();
    assert!(missing.is_empty(), "{} lines are lost, first {:?}", missing.len(), missing.first());
}

fn while_bytes_flow(t: &Test) {
    let place = let_die(t, &["--output-format", "plain"]);
    let wanted: Vec<u8> = (0..LINES).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    assert!(whole(&place.log) == wanted, "each byte is there once");
}

fn in_the_middle_of_a_line(t: &Test) {
    let place = Place::new(t);
    let script =
        "printf begun; until test -e /go; do usleep 10000; done; echo ' and ended'; exit 2";
    let bundle = t.bundle().sh(script);
    let kept = place.keep(&bundle, &[]);
    let held = place.dir.join("held-stdout");
    let there = || fs::read(&held).is_ok_and(|bytes| bytes == b"begun").then_some(());
    assert!(wait_until(Duration::from_secs(10), there).is_some(), "it is held");
    kept.kill();
    let kept = place.resume();
    go(&bundle);
    assert_eq!(kept.end().exit_code, Some(2));
    let found: Vec<String> = counted(&place).into_keys().collect();
    assert_eq!(found, ["begun and ended\n"]);
    place.assert_gone("after its end");
}

/// Its status stays with its zombie for as long as nobody waits for it. What it wrote last has gone with it.
fn the_program_ends_without_a_keeper(t: &Test) {
    let place = Place::new(t);
    let bundle = two_lines(t);
    let kept = place.keep(&bundle, &[]);
    let pid = kept.connect().status.pid;
    assert!(wait_until(Duration::from_secs(10), || has_one(&place).then_some(())).is_some());
    kept.kill();
    go(&bundle);
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.starts_with('Z').then_some(())
    };
    assert!(wait_until(Duration::from_secs(10), state).is_some(), "it ends");
    let next = Kept::spawn(&place.oci, &place.dir, ["--resume"]).wait();
    let _ = next.ok();
    assert_eq!(exit(&place.dir).exit_code, Some(6));
    assert_eq!(counted(&place).get("one\n"), Some(&1));
    place.assert_gone("after its end");
}

fn the_next_one_does_all_that_the_first_did(t: &Test) {
    let place = Place::new(t);
    let bundle =
        t.bundle().sh("echo one; until test -e /go; do usleep 10000; done; echo two; exit 6");
    let kept = place.keep(&bundle, &["--interactive"]);
    let started = kept.connect().status.started_at;
    assert!(wait_until(Duration::from_secs(10), || has_one(&place).then_some(())).is_some());
    kept.kill();
    let kept = place.resume();
    let mut client = kept.connect().attached(false, true);
    // /proc has hundredths.
    assert!(
        second_of_day(&client.status.started_at).abs_diff(second_of_day(&started)) <= 1,
        "{started} {:?}",
        client.status
    );
    let process = serde_json::json!({ "args": ["sh", "-c", "exit 4"] });
    client.ask(&Request::Exec { number: 1, process, console: None });
    client.until_told(|t| {
        matches!(t, hafen_spec::keep::Told::ExecEnded { code: Some(4), .. }).then_some(())
    });
    go(&bundle);
    client.until_text("two\n");
    assert_eq!(client.until_exit().exit_code, Some(6));
    let _ = kept.end();
    assert_two_lines(&place, "after its end");
}

/// Of a time in RFC 3339.
fn second_of_day(time: &str) -> u32 {
    let numbers = time[11..19].split(':').map(|n| n.parse::<u32>().expect("a number"));
    numbers.fold(0, |all, n| all * 60 + n)
}

fn one_that_was_replaced_is_not_taken_over(t: &Test) {
    let place = Place::new(t);
    let bundle = t.bundle().args(["/inside", "sleep", "600"]);
    place.keep(&bundle, &[]).kill();
    let _ = place.oci.delete_force(&place.id).ok();
    let _ = place.oci.create(&place.id, &bundle).ok();
    let call = Kept::spawn(&place.oci, &place.dir, ["--resume"]).wait();
    call.error_with([&*place.id, "does not exist"]);
    assert_eq!(place.oci.status(&place.id).as_deref(), Some("created"), "it is left alone");
    let _ = place.oci.delete_force(&place.id).ok();
}

fn without_its_folder(t: &Test) {
    let oci = t.oci();
    let dir: PathBuf = t.dir().join("none");
    Kept::spawn(&oci, &dir, ["--resume"]).wait().error_with(["none/lock"]);
}
