//! Scopes of systemd: where it runs, it owns the cgroup tree, and wants to be asked for a folder in it.

mod bus;

use std::path::Path;
use std::time::{Duration, Instant};

use hafen_spec::facts::Home;
use hafen_spec::plan::{Property, PropertyValue};
use hafen_sys::child::{Op, Script};
use hafen_sys::spawn::{self, Birth, Launched};
use hafen_sys::{CallError, pidfd};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::cgroup::Setting;
use bus::{Body, Bus, Refusal};

/// systemd makes this folder when it is the init of the machine (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Does systemd run here?
#[must_use]
pub fn is_running() -> bool {
    Path::new(BOOTED).is_dir()
}

/// systemd writes what it knows about a unit to its files, at any time (`daemon-reload`): so it must know what we write.
#[must_use]
pub(crate) fn properties(settings: &[Setting]) -> Vec<Property> {
    let own = settings.iter().filter(|s| s.home == Home::Unified);
    own.flat_map(|s| of_file(&s.file, &s.value)).collect()
}

fn of_file(file: &str, value: &str) -> Vec<Property> {
    let number = |name: &'static str| vec![property(name, PropertyValue::Number(amount(value)))];
    let mask = |name: &'static str| vec![property(name, PropertyValue::Bytes(bits(value)))];
    match file {
        "cpu.weight" => number("CPUWeight"),
        "cpu.max" => bandwidth(value),
        "cpuset.cpus" => mask("AllowedCPUs"),
        "cpuset.mems" => mask("AllowedMemoryNodes"),
        "memory.max" => number("MemoryMax"),
        "memory.high" => number("MemoryHigh"),
        "memory.low" => number("MemoryLow"),
        "memory.min" => number("MemoryMin"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        _ => Vec::new(),
    }
}

fn property(name: &str, value: PropertyValue) -> Property {
    Property { name: name.to_owned(), value }
}

/// systemd's word for "no limit" is the largest number.
fn amount(value: &str) -> u64 {
    value.trim().parse().unwrap_or(u64::MAX)
}

/// Microseconds in each second, in the whole percents that systemd keeps, rounded up.
fn bandwidth(value: &str) -> Vec<Property> {
    const PERCENT: u64 = 10_000;
    const SECOND: u64 = 1_000_000;
    let mut words = value.split_whitespace();
    let (quota, period) =
        (words.next().map_or(u64::MAX, amount), words.next().map_or(100_000, amount));
    let share = match quota {
        u64::MAX => u64::MAX,
        quota => quota.saturating_mul(SECOND).div_ceil(period.max(1)).next_multiple_of(PERCENT),
    };
    vec![
        property("CPUQuotaPerSecUSec", PropertyValue::Number(share)),
        property("CPUQuotaPeriodUSec", PropertyValue::Number(period)),
    ]
}

/// `0-3,7` as bits, the lowest first.
fn bits(list: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>())
        else {
            continue;
        };
        for n in usize::from(first)..=usize::from(last) {
            bytes.resize(bytes.len().max(n / 8 + 1), 0);
            bytes[n / 8] |= 1 << (n % 8);
        }
    }
    bytes
}

/// A process that keeps a scope alive until the container's first one is in it. Ended with this, and with the runtime.
#[derive(Debug)]
pub(crate) struct Placeholder(Launched);

impl Placeholder {
    fn new() -> Result<Self, CallError> {
        let waits = Script { ops: vec![Op::AwaitGo], die_before: None };
        let birth = Birth { namespaces: 0, cgroup: None, classic: true, joins: &[] };
        spawn::launch(&waits, birth).map(Self)
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = pidfd::send_signal(&self.0.pidfd, Signal::SIGKILL as i32);
        let _ = pidfd::wait(self.0.pid, true);
    }
}

/// Have systemd make a scope with our limits, and wait until its folder is there. Of a unit that is there already the
/// error is EEXIST.
pub(crate) fn start(
    unit: &str,
    slice: &str,
    folder: &Path,
    limits: &[Property],
) -> Result<Placeholder, CallError> {
    let call = || format!("start scope {unit} in {slice}");
    let placeholder = Placeholder::new()?;
    let mut bus = Bus::connect()?;
    let body = scope(unit, slice, placeholder.0.pid.cast_unsigned(), limits);
    let mut answer = bus.call("StartTransientUnit", &body);
    if answer.as_ref().is_err_and(|e| e.is(UNIT_EXISTS)) {
        // One that failed once stays known by its name; one that is alive is somebody else's.
        let _ = bus.call("ResetFailedUnit", Body::default().text(unit));
        answer = bus.call("StartTransientUnit", &body);
    }
    let job = match answer {
        Ok(answer) => answer.first_text(),
        Err(e) if e.is(UNIT_EXISTS) => {
            return Err(CallError::errno(
                format!("{} (it is there already)", call()),
                Errno::EEXIST,
            ));
        }
        Err(e) => return Err(e.into_error(call())),
    };
    bus.wait_for_job(&job).map_err(|e| e.into_error(call()))?;
    if folder.is_dir() {
        return Ok(placeholder);
    }
    let why = format!("{} (systemd made it, but {} is not there)", call(), folder.display());
    Err(CallError::errno(why, Errno::ENOENT))
}

fn scope(unit: &str, slice: &str, pid: u32, limits: &[Property]) -> Body {
    let body = Body::default().text(unit).text("fail");
    let all = |list: Body| {
        let on =
            ["Delegate", "CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"];
        let list = on.iter().fold(list, |list, name| list.property(name, "b", |v| v.number(1)));
        let list = list
            .property("Description", "s", |v| v.text(&format!("container {unit}")))
            .property("Slice", "s", |v| v.text(slice))
            .property("DefaultDependencies", "b", |v| v.number(0))
            .property("PIDs", "au", |v| v.list(|l| l.number(pid)));
        limits.iter().fold(list, limit)
    };
    // Units to be started with it: none.
    body.structs(all).structs(|none| none).signature("ssa(sv)a(sa(sv))")
}

fn limit(list: Body, property: &Property) -> Body {
    match &property.value {
        PropertyValue::Number(n) => list.property(&property.name, "t", |v| v.long(*n)),
        PropertyValue::Bytes(b) => list.property(&property.name, "ay", |v| v.bytes(b)),
    }
}

/// Tell systemd about other limits, until the unit is gone.
pub(crate) fn set_properties(unit: &str, limits: &[Property]) -> Result<(), CallError> {
    let list = |list: Body| limits.iter().fold(list, limit);
    let body = Body::default().text(unit).number(1).structs(list).signature("sba(sv)");
    let answer = Bus::connect()?.call("SetUnitProperties", &body);
    answer.map(|_| ()).map_err(|e| e.into_error(format!("set properties of {unit}")))
}

/// Have systemd forget a scope, whose processes were ended. Where systemd does not run any more there is nothing to tell.
pub(crate) fn stop(unit: &str, folder: &Path, patience: Duration) -> Result<(), CallError> {
    if !is_running() {
        return Ok(());
    }
    let deadline = Instant::now() + patience;
    let stopped = || -> Result<(), Refusal> {
        let mut bus = Bus::connect()?;
        let answer = bus.call("StopUnit", Body::default().text(unit).text("replace"));
        match answer {
            Ok(answer) => bus.wait_for_job(&answer.first_text())?,
            Err(e) if e.is(NO_SUCH_UNIT) => return Ok(()),
            Err(e) => return Err(e),
        }
        match bus.call("ResetFailedUnit", Body::default().text(unit)) {
            // It did not fail, and is forgotten by itself.
            Err(e) if e.is(NO_SUCH_UNIT) => Ok(()),
            answer => answer.map(|_| ()),
        }
    };
    let stopped = stopped().map_err(|e| e.into_error(format!("stop scope {unit}")));
    // A folder that is gone, and time that is up, are the end in any case.
    if folder.exists() && Instant::now() < deadline { stopped } else { Ok(()) }
}

#[cfg(test)]
mod tests;
