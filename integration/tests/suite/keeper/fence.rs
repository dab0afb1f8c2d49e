//! A container that nobody directs any more.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hafen_integration::keeper::exit;
use hafen_integration::{Bundle, Case, Kept, Test, cases, patience, wait_until};
use hafen_spec::keep::{ExitRecord, Heard};
use nix::sys::signal::Signal;

use super::Place;

pub(super) fn trials() -> Vec<Case> {
    cases![
        it_is_asked_to_end_when_the_time_is_up(Root, Busybox),
        who_is_heard_keeps_it_alive(Root, Busybox),
        what_says_nothing_new_does_not(Root, Busybox),
        who_does_not_end_is_killed_after_the_grace(Root, Busybox),
        a_paused_one_is_killed(Root, Busybox),
        the_next_keeper_knows_when(Root, Busybox),
        the_next_keeper_comes_too_late(Root, Busybox),
        the_next_keeper_goes_on_with_the_grace(Root, Busybox),
        a_time_that_was_up_before_is_refused(Root, Busybox),
        an_end_of_its_own_is_no_fence(Root, Busybox),
    ]
}

/// Of the machine (proc(5)): it counts on while the machine sleeps.
fn since_boot() -> Duration {
    let text = fs::read_to_string("/proc/uptime").expect("the uptime");
    let seconds = text.split(' ').next().and_then(|n| n.parse().ok()).expect("seconds");
    Duration::from_secs_f64(seconds)
}

fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's name");
    text.trim().to_owned()
}

/// What tells a keeper who was heard when.
struct Ear(PathBuf);

impl Ear {
    fn new(place: &Place) -> Self {
        let ear = Self(place.dir.with_extension("heard"));
        ear.hear(since_boot());
        ear
    }

    fn hear(&self, at: Duration) {
        self.say(&boot_id(), at);
    }

    fn say(&self, boot_id: &str, at: Duration) {
        self.write(&Heard { boot_id: boot_id.to_owned(), at }.to_string());
    }

    fn write(&self, text: &str) {
        let draft = self.0.with_extension("draft");
        fs::write(&draft, text).expect("written");
        fs::rename(&draft, &self.0).expect("replaced");
    }

    fn keep(&self, place: &Place, bundle: &Bundle, after: Duration, grace: Duration) -> Kept {
        let file = self.0.display().to_string();
        let [after, grace] = [after, grace].map(|time| time.as_secs_f64().to_string());
        let words = ["--fence", &after, "--fence-file", &file, "--fence-grace", &grace];
        let kept = place.keep(bundle, &words);
        let is_ready = || place.log.exists().then(|| fs::read_to_string(&place.log).ok())?;
        let ready =
            wait_until(Duration::from_secs(10), || is_ready()?.contains("ready").then_some(()));
        assert!(ready.is_some(), "it says that it is ready");
        kept
    }
}

/// The first process of a container has no handler of a signal but its own.
fn obedient(t: &Test) -> Bundle {
    t.bundle().sh("trap 'exit 7' TERM; echo ready; while :; do usleep 10000; done")
}

fn stubborn(t: &Test) -> Bundle {
    t.bundle().sh("trap '' TERM; echo ready; while :; do usleep 10000; done")
}

/// It began to end at least so long after the moment, and not much later.
#[track_caller]
fn assert_fenced(exit: &ExitRecord, after: Duration, since: Duration, least: Duration) {
    let took = since_boot().saturating_sub(since);
    assert_eq!(exit.fenced_after_usec.map(Duration::from_micros), Some(after), "{exit:?}");
    // The uptime is cut to hundredths.
    let least = least.saturating_sub(Duration::from_millis(20));
    assert!(took >= least && took < least + patience(Duration::from_secs(2)), "{took:?}");
}

/// Longer where a processor is emulated: a launch must not take all of it.
fn seconds(number: f64) -> Duration {
    let time = Duration::from_secs_f64(number);
    patience(time).min(time * 3)
}

fn it_is_asked_to_end_when_the_time_is_up(t: &Test) {
    let place = Place::new(t);
    let heard = since_boot();
    let exit = Ear::new(&place).keep(&place, &obedient(t), seconds(1.5), seconds(20.0)).end();
    assert_eq!((exit.exit_code, exit.signal), (Some(7), None));
    let after = seconds(1.5);
    assert_fenced(&exit, after, heard, after);
    place.assert_gone("after its end");
}

fn who_is_heard_keeps_it_alive(t: &Test) {
    let place = Place::new(t);
    let ear = Ear::new(&place);
    let after = seconds(1.0);
    let mut kept = ear.keep(&place, &obedient(t), after, seconds(20.0));
    for _ in 0..15 {
        std::thread::sleep(after / 5);
        ear.hear(since_boot());
        assert!(!kept.has_ended(), "it was heard");
    }
    let heard = since_boot();
    ear.hear(heard);
    assert_fenced(&kept.end(), after, heard, after);
}

fn what_says_nothing_new_does_not(t: &Test) {
    let after = seconds(2.0);
    for (number, earlier) in (0..).zip(["earlier", "later", "of another boot", "no line", "gone"]) {
        let place = Place::new(t);
        let ear = Ear::new(&place);
        let heard = since_boot();
        let kept = ear.keep(&place, &obedient(t), after, seconds(20.0));
        match number {
            0 => ear.hear(heard.saturating_sub(seconds(1.0))),
            1 => ear.hear(heard + seconds(3600.0)),
            2 => ear.say("00000000-0000-0000-0000-000000000000", since_boot()),
            3 => ear.write("not even a line"),
            _ => fs::remove_file(&ear.0).expect("removed"),
        }
        let exit = kept.end();
        assert_eq!(exit.exit_code, Some(7), "{earlier}");
        assert_fenced(&exit, after, heard, after);
    }
}

fn who_does_not_end_is_killed_after_the_grace(t: &Test) {
    let place = Place::new(t);
    let heard = since_boot();
    let exit = Ear::new(&place).keep(&place, &stubborn(t), seconds(1.0), seconds(1.5)).end();
    assert_eq!((exit.exit_code, exit.signal), (None, Some(9)));
    assert_fenced(&exit, seconds(1.0), heard, seconds(2.5));
    place.assert_gone("after its end");
}

/// It cannot take the signal.
fn a_paused_one_is_killed(t: &Test) {
    let place = Place::new(t);
    let heard = since_boot();
    let kept = Ear::new(&place).keep(&place, &obedient(t), seconds(2.0), seconds(1.0));
    let _ = place.oci.call(["pause", &place.id]).ok();
    let exit = kept.end();
    assert_eq!((exit.exit_code, exit.signal), (None, Some(9)));
    assert_fenced(&exit, seconds(2.0), heard, seconds(3.0));
    place.assert_gone("after its end");
}

/// Also what was heard while there was none.
fn the_next_keeper_knows_when(t: &Test) {
    for renewed in [false, true] {
        let place = Place::new(t);
        let ear = Ear::new(&place);
        let mut heard = since_boot();
        ear.keep(&place, &obedient(t), seconds(3.0), seconds(20.0)).kill();
        if renewed {
            std::thread::sleep(seconds(1.0));
            heard = since_boot();
            ear.hear(heard);
        }
        let kept = place.resume();
        assert_fenced(&kept.end(), seconds(3.0), heard, seconds(3.0));
        assert_eq!(exit(&place.dir).exit_code, Some(7));
        place.assert_gone("after its end");
    }
}

fn the_next_keeper_comes_too_late(t: &Test) {
    let place = Place::new(t);
    let ear = Ear::new(&place);
    let heard = since_boot();
    ear.keep(&place, &stubborn(t), seconds(1.0), seconds(0.5)).kill();
    std::thread::sleep(seconds(2.0));
    // Here the time was up, and nobody was there to see it.
    let kept = place.resume();
    let exit = kept.end();
    assert_eq!(exit.signal, Some(9), "without a grace, which is over as well");
    assert_fenced(&exit, seconds(1.0), heard, seconds(2.0));
}

/// Who is heard meanwhile is heard too late.
fn the_next_keeper_goes_on_with_the_grace(t: &Test) {
    let place = Place::new(t);
    let ear = Ear::new(&place);
    let heard = since_boot();
    let kept = ear.keep(&place, &stubborn(t), seconds(1.0), seconds(3.0));
    let policy = place.dir.join("keep.json");
    let is_over = || {
        let text = fs::read_to_string(&policy).ok()?;
        let policy: serde_json::Value = serde_json::from_str(&text).ok()?;
        policy["fence"]["overUsec"].as_u64().map(drop)
    };
    assert!(wait_until(Duration::from_secs(10), is_over).is_some(), "it is written down");
    kept.signal(Signal::SIGKILL);
    assert_eq!(kept.wait().signal, Some(9));
    ear.hear(since_boot());
    let exit = place.resume().end();
    assert_eq!(exit.signal, Some(9));
    assert_fenced(&exit, seconds(1.0), heard, seconds(4.0));
}

fn a_time_that_was_up_before_is_refused(t: &Test) {
    let place = Place::new(t);
    let file = place.dir.with_extension("heard");
    let path = file.display().to_string();
    let words = || place.words(&obedient(t), &["--fence", "5", "--fence-file", &path]);
    let call = || Kept::spawn(&place.oci, &place.dir, words()).wait();
    call().error_with([&*path, "nobody was heard since the machine was started"]);
    Ear(file).hear(since_boot().saturating_sub(Duration::from_secs(6)));
    call().error_with(["--fence: nobody was heard for 6"]);
    assert_eq!(place.oci.status(&place.id), None);
}

fn an_end_of_its_own_is_no_fence(t: &Test) {
    let place = Place::new(t);
    let exit = Ear::new(&place)
        .keep(&place, &t.bundle().sh("echo ready; exit 3"), seconds(30.0), seconds(20.0))
        .end();
    assert_eq!((exit.exit_code, exit.fenced_after_usec), (Some(3), None));
    let place = Place::new(t);
    let _ = place.keep(&t.bundle().sh("exit 3"), &[]).end();
    let policy = fs::read_to_string(place.dir.join("keep.json")).expect("its policy");
    assert!(!policy.contains("fence"), "{policy}");
}
