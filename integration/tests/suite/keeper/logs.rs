//! What a program writes, in files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hafen_integration::keeper::{Line, files, lines, whole};
use hafen_integration::{Bundle, Case, Disk, Kept, Test, cases, json, patience, wait_until};
use hafen_spec::keep::ExitRecord;

use super::{Place, noise, sha};

pub(super) fn trials() -> Vec<Case> {
    cases![
        both_streams_with_their_times(Root, Busybox),
        bytes_come_back_as_they_were(Root, Busybox),
        a_line_shows_when_it_ends(Root, Busybox),
        lines_rotate_by_size_and_count(Root, Busybox),
        bytes_rotate_by_size_and_count(Root, Busybox),
        a_hundred_megabytes_of_bytes(Root, Busybox),
        a_million_lines(Root, Busybox),
        a_full_disk_stops_nobody(Root, Busybox),
        a_full_disk_stops_no_bytes(Root, Busybox),
        a_log_that_cannot_be_is_refused(Root, Busybox),
        sizes_that_are_none(Root, Busybox),
        without_a_log(Root, Busybox),
    ]
}

const PLAIN: [&str; 2] = ["--output-format", "plain"];

fn of_stream<'a>(lines: &'a [Line], stream: &str) -> Vec<&'a Line> {
    lines.iter().filter(|line| line.stream == stream).collect()
}

fn joined(lines: &[Line], stream: &str) -> Vec<u8> {
    of_stream(lines, stream).into_iter().flat_map(|line| line.bytes.clone()).collect()
}

fn both_streams_with_their_times(t: &Test) {
    let place = Place::new(t);
    let script = "echo one; read go; echo two >&2; read go; echo three; echo four >&2";
    let kept = place.keep(&t.bundle().sh(script), &["--interactive"]);
    let mut client = kept.connect().attached(true, true);
    client.until_text("one\n");
    client.input(b"\n");
    client.until(|c| c.stderr.ends_with(b"two\n").then_some(()));
    client.input(b"\n");
    let exit = kept.end();
    assert_eq!(exit.exit_code, Some(0));
    let all = lines(&place.log);
    let text =
        |line: &Line| (line.stream.clone(), String::from_utf8_lossy(&line.bytes).into_owned());
    let first: Vec<_> = all.iter().take(2).map(text).collect();
    let pair = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
    assert_eq!(first, [pair("stdout", "one\n"), pair("stderr", "two\n")]);
    assert_eq!(joined(&all, "stdout"), b"one\nthree\n");
    assert_eq!(joined(&all, "stderr"), b"two\nfour\n");
    let times: Vec<&str> = all.iter().map(|line| &*line.time).collect();
    assert!(times.is_sorted() && times[0] > &*exit.started_at, "{times:?} {}", exit.started_at);
    assert!(times.iter().all(|time| time.ends_with('Z') && time.len() == 30), "{times:?}");
}

fn bytes_come_back_as_they_were(t: &Test) {
    let place = Place::new(t);
    let mut bytes = b"text\n\xff\xfe\x00not text\n\n".to_vec();
    bytes.extend(noise(70_001));
    bytes.extend(vec![b'x'; 100_000]);
    bytes.extend("\nä€𝄞 \u{1b}[0m \"quoted\" \\\nno end".as_bytes());
    let bundle = t.bundle().file("data", &bytes).sh("cat /data; cat /data >&2");
    let _ = place.keep(&bundle, &[]).end();
    let all = lines(&place.log);
    for stream in ["stdout", "stderr"] {
        assert_eq!(sha(&joined(&all, stream)), sha(&bytes), "{stream}");
        let found = of_stream(&all, stream);
        assert!(found.iter().all(|line| line.bytes.len() <= 16 << 10), "no line is longer");
        assert_eq!(found.last().expect("a line").bytes, b"no end");
    }
}

/// A program writes it in pieces, and the first of them is not in the log for as long as there is no more.
fn a_line_shows_when_it_ends(t: &Test) {
    let place = Place::new(t);
    let script = "printf begun; echo also >&2; read go; echo ' and ended'";
    let kept = place.keep(&t.bundle().sh(script), &["--interactive"]);
    let mut client = kept.connect().attached(true, true);
    // What comes first of both is told as one.
    client.until(|c| (c.stdout.len() + c.stderr.len() == 10).then_some(()));
    assert_eq!(joined(&lines(&place.log), "stdout"), b"");
    client.input(b"\n");
    let _ = kept.end();
    let all = lines(&place.log);
    assert_eq!(of_stream(&all, "stdout")[0].bytes, b"begun and ended\n");
    place.assert_gone("after its end");
}

fn numbers(place: &Place, options: &[&str], t: &Test) -> Vec<u8> {
    let limits = ["--output-max", "4K", "--output-files", "3"];
    let options: Vec<&str> = limits.into_iter().chain(options.iter().copied()).collect();
    let _ = place.keep(&t.bundle().sh("seq 1 3000"), &options).end();
    let all = files(&place.log);
    assert_eq!(all.len(), 3, "{all:?}");
    for file in all {
        let size = fs::metadata(&file).expect("a file").len();
        assert!(size <= 4 << 10, "{} has {size} bytes", file.display());
    }
    (1..=3000).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn lines_rotate_by_size_and_count(t: &Test) {
    let place = Place::new(t);
    let written = numbers(&place, &[], t);
    let kept = joined(&lines(&place.log), "stdout");
    assert!(kept.len() > 300 && written.ends_with(&kept), "the last lines, without a gap");
    assert!(written[..written.len() - kept.len()].ends_with(b"\n"), "whole lines");
}

fn bytes_rotate_by_size_and_count(t: &Test) {
    let place = Place::new(t);
    let written = numbers(&place, &PLAIN, t);
    let kept = whole(&place.log);
    assert!(kept.len() > 8 << 10 && written.ends_with(&kept), "the last bytes, without a gap");
}

fn with_data(t: &Test, length: usize, script: &str) -> (Bundle, String) {
    let bytes = noise(length);
    let sum = sha(&bytes);
    (t.bundle().file("data", bytes).sh(script), sum)
}

fn a_hundred_megabytes_of_bytes(t: &Test) {
    const LENGTH: usize = 100 << 20;
    let place = Place::new(t);
    let (bundle, sum) = with_data(t, LENGTH, "cat /data");
    let options = ["--output-format", "plain", "--output-max", "8M", "--output-files", "20"];
    let began = Instant::now();
    let exit = place.keep(&bundle, &options).end();
    let took = began.elapsed();
    assert_eq!((exit.exit_code, exit.log_lost_bytes), (Some(0), 0));
    assert_eq!(files(&place.log).len(), LENGTH.div_ceil(8 << 20));
    let kept = whole(&place.log);
    assert_eq!((kept.len(), sha(&kept)), (LENGTH, sum));
    assert!(took < patience(Duration::from_secs(10)), "it took {took:?}");
}

/// Some 90 MB of log; a tenth of that where the machine is emulated.
fn a_million_lines(t: &Test) {
    let is_slow = patience(Duration::from_secs(1)) > Duration::from_secs(1);
    let count = if is_slow { 100_000 } else { 1_000_000 };
    let place = Place::new(t);
    let bundle = t.bundle().sh(&format!("seq 1 {count}"));
    let options = ["--output-max", "2M", "--output-files", "100"];
    let exit = place.keep(&bundle, &options).end();
    assert_eq!((exit.exit_code, exit.log_lost_bytes), (Some(0), 0));
    let all = lines(&place.log);
    assert_eq!(all.len(), count);
    let wrong = all.iter().zip(1..).find(|(line, n)| line.bytes != format!("{n}\n").into_bytes());
    assert_eq!(wrong, None);
    assert!(files(&place.log).len() > 3, "it has rotated");
}

fn log_in(t: &Test, folder: &Path) -> Place {
    Place { log: folder.join("log"), ..Place::new(t) }
}

const WRITTEN: u64 = 400_000;

/// Much more than finds room; then there is room again.
fn fill_up(t: &Test, options: &[&str]) -> (Place, Disk, ExitRecord) {
    let folder = t.dir().join("small");
    let small = Disk::mount(&folder, "size=256k");
    let place = log_in(t, &folder);
    fs::write(folder.join("filler"), vec![0; 128 << 10]).expect("fill");
    let script = "cat /data; touch /mnt/full; until test -e /mnt/go; do usleep 10000; done; echo after; exit 5";
    let data: Vec<u8> = (0..WRITTEN / 40).flat_map(|n| format!("{n:039}\n").into_bytes()).collect();
    let bundle = t.bundle().file("data", data).sh(script).set("/root/readonly", json!(false));
    let kept = place.keep(&bundle, options);
    let passed = || bundle.rootfs().join("mnt/full").exists().then_some(());
    assert!(wait_until(Duration::from_secs(10), passed).is_some(), "the program goes on");
    fs::remove_file(folder.join("filler")).expect("make room");
    let _ = bundle.file("mnt/go", "");
    let exit = kept.end();
    assert_eq!(exit.exit_code, Some(5));
    assert!(exit.log_lost_bytes > 100_000, "{exit:?}");
    (place, small, exit)
}

/// What the notes in a log say together.
fn noted(text: &str) -> u64 {
    let notes = text.split("bytes could not be written here").map(|before| {
        before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default()
    });
    let numbers: Vec<u64> = notes.filter_map(|digits| digits.parse().ok()).collect();
    numbers.iter().sum()
}

fn a_full_disk_stops_nobody(t: &Test) {
    let (place, _small, exit) = fill_up(t, &[]);
    let all = lines(&place.log);
    let kept = joined(&all, "stdout").len() as u64;
    assert_eq!(kept + exit.log_lost_bytes, WRITTEN + 6, "what is not kept is counted");
    assert_eq!(all.last().expect("a line").bytes, b"after\n");
    let notes = String::from_utf8(joined(&all, "keeper")).expect("words");
    assert_eq!(noted(&notes), exit.log_lost_bytes, "{notes}");
}

fn a_full_disk_stops_no_bytes(t: &Test) {
    let (place, _small, exit) = fill_up(t, &["--output-format", "plain"]);
    let text = String::from_utf8(whole(&place.log)).expect("digits");
    // In the middle of a line, where that was cut.
    let mut notes = String::new();
    let mut kept = 0;
    for (n, piece) in text.split("[keeper: ").enumerate() {
        let (note, rest) =
            if n == 0 { ("", piece) } else { piece.split_once("]\n").expect("its end") };
        notes.push_str(note);
        kept += rest.len() as u64;
    }
    assert_eq!(kept + exit.log_lost_bytes, WRITTEN + 6, "what is not kept is counted");
    assert!(text.ends_with("after\n"), "{:?}", &text[text.len() - 100..]);
    assert_eq!(noted(&notes), exit.log_lost_bytes, "{notes}");
}

fn a_log_that_cannot_be_is_refused(t: &Test) {
    let folder = t.dir().join("small");
    let _small = Disk::mount(&folder, "ro");
    let place = log_in(t, &folder);
    let call = Kept::spawn(&place.oci, &place.dir, place.words(&t.bundle(), &[]));
    call.wait().error_with(["open log", "small/log", "Read-only file system"]);
    assert_eq!(place.oci.status(&place.id), None, "there is no container");
    assert!(!place.dir.exists());
}

fn sizes_that_are_none(t: &Test) {
    let place = Place::new(t);
    for (options, wanted) in [
        (["--output-max", "large"], "--output-max"),
        (["--output-files", "0"], "--output-files"),
        (["--output-format", "xml"], "--output-format"),
    ] {
        let call = Kept::spawn(&place.oci, &place.dir, place.words(&t.bundle(), &options));
        call.wait().error_with([wanted]);
    }
}

fn without_a_log(t: &Test) {
    let place = Place::new(t);
    let path = t.bundle().sh("seq 1 100000; exit 3").path().display().to_string();
    let kept = Kept::begin(&place.oci, &place.dir, ["--bundle", &path, &place.id]);
    let exit = kept.end();
    assert_eq!((exit.exit_code, exit.log_lost_bytes), (Some(3), 0));
    assert!(!place.log.exists());
}
