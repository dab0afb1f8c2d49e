//! Device rules as files of the v1 controller (Documentation/admin-guide/cgroup-v1/devices.rst).

use std::fmt;

use hafen_spec::facts::Home;
use hafen_spec::resolved::{DeviceRule, DeviceType};

use super::{access, bits, is_for_everything};
use crate::cgroup::Setting;

const ALLOW: &str = "devices.allow";
const DENY: &str = "devices.deny";

/// A general answer and the exceptions from it: what the controller keeps, where rules are a list of which the last match
/// decides. Writing the rules one by one would lose some without a word: a denial takes away only exceptions with exactly
/// its numbers. So the table is worked out here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    allows: bool,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    kind: DeviceType,
    major: Option<u32>,
    minor: Option<u32>,
    bits: u32,
}

impl Exception {
    fn covers(&self, other: &Self) -> bool {
        let wide = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && wide(self.major, other.major) && wide(self.minor, other.minor)
    }

    fn meets(&self, other: &Self) -> bool {
        let common = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind
            && common(self.major, other.major)
            && common(self.minor, other.minor)
    }

    fn is_about_the_same(&self, other: &Self) -> bool {
        self.covers(other) && other.covers(self)
    }

    /// A line of `devices.list`: `c 1:3 rwm`.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = match words.next()? {
            "b" => DeviceType::Block,
            "c" => DeviceType::Char,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let letters = words.next()?;
        let bits =
            LETTERS.iter().filter(|(_, l)| letters.contains(*l)).fold(0, |all, (b, _)| all | b);
        Some(Self { kind, major: major.parse().ok(), minor: minor.parse().ok(), bits })
    }
}

const LETTERS: [(u32, char); 3] = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MKNOD, 'm')];

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == DeviceType::Block { 'b' } else { 'c' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        LETTERS
            .iter()
            .filter(|(bit, _)| self.bits & bit != 0)
            .try_for_each(|(_, letter)| write!(f, "{letter}"))
    }
}

impl Table {
    pub(super) fn of_everything() -> Self {
        Self { allows: true, exceptions: Vec::new() }
    }

    pub(super) fn of(rules: &[DeviceRule]) -> Result<Self, String> {
        let (allows, rules) = match rules.split_first() {
            Some((first, rest)) if is_for_everything(first) => (first.allow, rest),
            _ => (false, rules),
        };
        let mut exceptions: Vec<Exception> = Vec::new();
        for rule in rules {
            for exception in exceptions_of(rule) {
                if rule.allow == allows {
                    withdraw(&mut exceptions, &exception)?;
                } else {
                    add(&mut exceptions, exception);
                }
            }
        }
        if !allows {
            combine(&mut exceptions);
        }
        Ok(Self { allows, exceptions })
    }

    /// `devices.list`. While everything is allowed in general it does not tell the exceptions.
    pub(super) fn read(list: &str) -> Self {
        let allows = list.lines().any(|line| line.starts_with("a "));
        Self { allows, exceptions: list.lines().filter_map(Exception::read).collect() }
    }

    /// For a new folder, which has what the one above it has: a denial of everything is said first. A folder above that
    /// denies anything lets none below say that everything is allowed.
    pub(super) fn files(&self) -> Vec<Setting> {
        let first = (!self.allows).then(|| file(DENY, "a"));
        first.into_iter().chain(self.lines()).collect()
    }

    fn lines(&self) -> impl Iterator<Item = Setting> {
        let name = if self.allows { DENY } else { ALLOW };
        self.exceptions.iter().map(move |e| file(name, &e.to_string()))
    }

    /// What is new is allowed before what is gone is denied.
    pub(super) fn transition_from(&self, current: &Self) -> Vec<Setting> {
        if self.allows || current.allows {
            let first = file(if self.allows { ALLOW } else { DENY }, "a");
            return [first].into_iter().chain(self.lines()).collect();
        }
        let new = self.without(current).into_iter().map(|e| file(ALLOW, &e.to_string()));
        let gone = current.without(self).into_iter().map(|e| file(DENY, &e.to_string()));
        new.chain(gone).collect()
    }

    fn without(&self, other: &Self) -> Vec<Exception> {
        let rest = |e: &Exception| {
            let same = other.exceptions.iter().filter(|o| o.is_about_the_same(e));
            Exception { bits: same.fold(e.bits, |bits, o| bits & !o.bits), ..*e }
        };
        self.exceptions.iter().map(rest).filter(|e| e.bits != 0).collect()
    }
}

/// What to write, and where beside the file of this name, to have it again as before `value` was written; `list` is
/// `devices.list` then.
pub(crate) fn way_back(name: &str, value: &str, list: &str) -> Option<Vec<Setting>> {
    let other = if name == ALLOW { DENY } else { ALLOW };
    let before = Table::read(list);
    match (value, before.allows) {
        ("a", false) => Some(before.files()),
        // What it excepted cannot be read.
        ("a", true) => None,
        _ => Some(vec![file(other, value)]),
    }
}

fn file(name: &str, value: &str) -> Setting {
    Setting {
        controller: "devices".to_owned(),
        home: Home::Legacy,
        file: name.to_owned(),
        value: value.to_owned(),
        instead: None,
    }
}

fn exceptions_of(rule: &DeviceRule) -> Vec<Exception> {
    let kinds = match rule.kind {
        None => vec![DeviceType::Block, DeviceType::Char],
        Some(DeviceType::Fifo) => Vec::new(),
        Some(kind) => vec![kind],
    };
    let exception =
        |kind| Exception { kind, major: rule.major, minor: rule.minor, bits: bits(rule) };
    kinds.into_iter().map(exception).collect()
}

fn add(exceptions: &mut Vec<Exception>, new: Exception) {
    match exceptions.iter_mut().find(|e| e.is_about_the_same(&new)) {
        Some(same) => same.bits |= new.bits,
        None => exceptions.push(new),
    }
}

/// Part of an exception cannot be taken back: there is no exception from an exception.
fn withdraw(exceptions: &mut Vec<Exception>, gone: &Exception) -> Result<(), String> {
    for exception in exceptions.iter_mut().filter(|e| e.meets(gone) && e.bits & gone.bits != 0) {
        if !gone.covers(exception) {
            return Err(format!("the v1 devices controller cannot except {gone} from {exception}"));
        }
        exception.bits &= !gone.bits;
    }
    exceptions.retain(|e| e.bits != 0);
    Ok(())
}

/// One exception must allow an access alone, so a narrow one gets what the wider ones allow of reading and writing: a
/// device is never made and opened at once.
fn combine(exceptions: &mut [Exception]) {
    for i in 0..exceptions.len() {
        let narrow = exceptions[i];
        let wider = exceptions.iter().filter(|e| e.covers(&narrow));
        let opening = access::READ | access::WRITE;
        exceptions[i].bits = wider.fold(narrow.bits, |bits, e| bits | e.bits & opening);
    }
}
