//! Which devices a container may open or make: rules of `linux.resources.devices` as an eBPF program on the container's
//! cgroup, or as files of the v1 devices controller where the kernel has no bpf(2).

use std::path::Path;

use hafen_spec::HostFacts;
use hafen_spec::facts::Home;
use hafen_spec::resolved::{DeviceRule, DeviceType};
use hafen_sys::bpf::{self, Insn, code};
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::cgroup::Setting;

/// How rules are enforced on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confinement {
    /// There is nothing to enforce.
    None,
    /// These rules as a program ([`program`]).
    Program(Vec<DeviceRule>),
    /// These files of the v1 devices controller.
    Legacy(Vec<Setting>),
}

/// Bits of an access as the kernel's program context has them (`BPF_DEVCG_ACC_*`, include/uapi/linux/bpf.h).
mod access {
    pub(super) const MKNOD: u32 = 1;
    pub(super) const READ: u32 = 2;
    pub(super) const WRITE: u32 = 4;
    pub(super) const ALL: u32 = MKNOD | READ | WRITE;
}

/// Major and minor numbers (Documentation/admin-guide/devices.txt) of what a container may always use: null, zero, full,
/// random, urandom, tty, console, ptmx and every pts. All of them are harmless or the container's own.
const ALWAYS: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// A pure decision: rules and host to what is to be done.
///
/// The program comes first also where the devices controller is v1: it says exactly what the rules say, and costs a
/// fourth of the v1 files (`DECISIONS.md`).
///
/// # Errors
/// Why nothing on this host can enforce the rules.
pub fn confinement(rules: &[DeviceRule], facts: &HostFacts) -> Result<Confinement, String> {
    let rules = effective(rules);
    if rules.is_empty() {
        return Ok(Confinement::None);
    }
    if !facts.lacks("bpf") {
        return Ok(Confinement::Program(rules));
    }
    match facts.cgroup.home("devices") {
        Home::Legacy => legacy(&rules).map(Confinement::Legacy),
        _ => Err("cannot be enforced: this host lacks bpf(2) and mounts no v1 devices controller".to_owned()),
    }
}

/// The rules that decide, in order: the last one that matches an access does, and what none matches is denied. Empty if
/// everything is allowed, or nothing was asked for.
fn effective(rules: &[DeviceRule]) -> Vec<DeviceRule> {
    // A rule for everything makes all before it void.
    let start = rules.iter().rposition(is_for_everything).unwrap_or(0);
    let rules = &rules[start..];
    let allows_all = rules.first().is_some_and(|r| r.allow && is_for_everything(r));
    if rules.is_empty() || (allows_all && rules.iter().all(|r| r.allow)) {
        return Vec::new();
    }
    let mknod = [DeviceType::Char, DeviceType::Block]
        .map(|kind| DeviceRule { kind: Some(kind), read: false, write: false, ..ANYTHING });
    let always = ALWAYS.map(|(major, minor)| DeviceRule {
        kind: Some(DeviceType::Char),
        major: Some(major),
        minor,
        ..ANYTHING
    });
    rules.iter().cloned().chain(mknod).chain(always).collect()
}

const ANYTHING: DeviceRule =
    DeviceRule { allow: true, kind: None, major: None, minor: None, read: true, write: true, mknod: true };

fn is_for_everything(rule: &DeviceRule) -> bool {
    *rule == DeviceRule { allow: rule.allow, ..ANYTHING }
}

fn bits(rule: &DeviceRule) -> u32 {
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    bit(rule.mknod, access::MKNOD) | bit(rule.read, access::READ) | bit(rule.write, access::WRITE)
}

/// Registers of the program.
mod register {
    /// The answer: 1 to allow, 0 to deny.
    pub(super) const ANSWER: u8 = 0;
    pub(super) const CONTEXT: u8 = 1;
    pub(super) const KIND: u8 = 2;
    /// What of the access no rule has allowed yet.
    pub(super) const OPEN: u8 = 3;
    pub(super) const MAJOR: u8 = 4;
    pub(super) const MINOR: u8 = 5;
}

/// The rules as a program: the last one that matches decides, and what none matches is denied.
///
/// Each kind of access is decided by itself: opening for reading and writing needs both, and may have each from
/// another rule. So the rules are asked from the last to the first; one that allows takes its kinds off what is still
/// open, one that denies ends it if it meets any of that.
#[must_use]
pub fn program(rules: &[DeviceRule]) -> Vec<Insn> {
    use register::{CONTEXT, KIND, MAJOR, MINOR, OPEN};
    // struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }, where access_type is access << 16 | kind.
    let mut program = vec![
        Insn::between(code::LOAD, KIND, CONTEXT, 0),
        Insn::between(code::COPY, OPEN, KIND, 0),
        Insn::number(code::SHIFT_RIGHT, OPEN, 16),
        Insn::number(code::AND, KIND, 0xffff),
        Insn::between(code::LOAD, MAJOR, CONTEXT, 4),
        Insn::between(code::LOAD, MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule));
        if is_for_everything(rule) {
            // The verifier refuses instructions that can never be reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn answer(allow: bool) -> [Insn; 2] {
    [Insn::number(code::SET, register::ANSWER, u32::from(allow)), Insn::number(code::EXIT, 0, 0)]
}

/// One rule: conditions that lead past its end, then what it does.
fn block(rule: &DeviceRule) -> Vec<Insn> {
    use register::{KIND, MAJOR, MINOR, OPEN};
    let kind = match rule.kind {
        None => None,
        // BPF_DEVCG_DEV_BLOCK and BPF_DEVCG_DEV_CHAR
        Some(DeviceType::Block) => Some(1),
        Some(DeviceType::Char) => Some(2),
        // Not a device: the kernel never asks.
        Some(DeviceType::Fifo) => return Vec::new(),
    };
    let end = match (rule.allow, bits(rule)) {
        (_, access::ALL) => answer(rule.allow).to_vec(),
        (true, bits) => [
            &[Insn::number(code::AND, OPEN, !bits), Insn::branch(code::JUMP_UNEQUAL, OPEN, 0, 2)][..],
            &answer(true),
        ]
        .concat(),
        (false, bits) => {
            [&[Insn::branch(code::JUMP_COMMON, OPEN, bits, 1), Insn::branch(code::JUMP, 0, 0, 2)][..], &answer(false)]
                .concat()
        }
    };
    let conditions: Vec<(u8, u32)> = [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
    let past_end = |i: usize| (conditions.len() - 1 - i + end.len()) as i16;
    let jumps = conditions.iter().enumerate();
    let jumps = jumps.map(|(i, (register, value))| Insn::branch(code::JUMP_UNEQUAL, *register, *value, past_end(i)));
    jumps.chain(end.iter().copied()).collect()
}

/// Attach the rules to a folder of the cgroup2 tree; they stay as long as it does.
pub(crate) fn confine(cgroup: &Path, rules: &[DeviceRule]) -> Result<(), CallError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = open(cgroup, flags, Mode::empty()).call(|| format!("open {}", cgroup.display()))?;
    let attached = bpf::load_device_program(&program(rules)).and_then(|program| bpf::attach(program, folder));
    attached.map_err(|e| CallError::new(format!("{} {}", e.call, cgroup.display()), e.source))
}

/// An exception from what the v1 controller allows or denies in general.
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
        self.kind == other.kind && common(self.major, other.major) && common(self.minor, other.minor)
    }
}

impl std::fmt::Display for Exception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.kind == DeviceType::Block { 'b' } else { 'c' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let letters = [(access::READ, "r"), (access::WRITE, "w"), (access::MKNOD, "m")];
        letters.iter().filter(|(bit, _)| self.bits & bit != 0).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

/// The rules as files of the v1 controller (Documentation/admin-guide/cgroup-v1/devices.rst), which keeps a general
/// answer and a set of exceptions, not a list in which the last match decides. Writing the rules one by one would lose
/// some without a word: a denial takes away only exceptions with exactly its numbers. So the set is worked out here.
fn legacy(rules: &[DeviceRule]) -> Result<Vec<Setting>, String> {
    let (general, rules) = match rules.split_first() {
        Some((first, rest)) if is_for_everything(first) => (first.allow, rest),
        _ => (false, rules),
    };
    let mut exceptions: Vec<Exception> = Vec::new();
    for rule in rules {
        for exception in exceptions_of(rule) {
            if rule.allow == general {
                withdraw(&mut exceptions, &exception)?;
            } else {
                add(&mut exceptions, exception);
            }
        }
    }
    if !general {
        combine(&mut exceptions);
    }
    let first = (!general).then(|| file("devices.deny", "a".to_owned()));
    let name = if general { "devices.deny" } else { "devices.allow" };
    Ok(first.into_iter().chain(exceptions.iter().map(|e| file(name, e.to_string()))).collect())
}

fn file(name: &str, value: String) -> Setting {
    Setting { controller: "devices".to_owned(), home: Home::Legacy, file: name.to_owned(), value }
}

fn exceptions_of(rule: &DeviceRule) -> Vec<Exception> {
    let kinds = match rule.kind {
        None => vec![DeviceType::Block, DeviceType::Char],
        Some(DeviceType::Fifo) => Vec::new(),
        Some(kind) => vec![kind],
    };
    let exception = |kind| Exception { kind, major: rule.major, minor: rule.minor, bits: bits(rule) };
    kinds.into_iter().map(exception).collect()
}

fn add(exceptions: &mut Vec<Exception>, new: Exception) {
    match exceptions.iter_mut().find(|e| e.covers(&new) && new.covers(e)) {
        Some(same) => same.bits |= new.bits,
        None => exceptions.push(new),
    }
}

/// Part of an exception cannot be taken back: there is no exception from an exception.
fn withdraw(exceptions: &mut Vec<Exception>, gone: &Exception) -> Result<(), String> {
    for exception in exceptions.iter_mut().filter(|e| e.meets(gone) && e.bits & gone.bits != 0) {
        if !gone.covers(exception) {
            return Err(format!(
                "the v1 devices controller cannot except {gone} from {exception}, and this host lacks bpf(2)"
            ));
        }
        exception.bits &= !gone.bits;
    }
    exceptions.retain(|e| e.bits != 0);
    Ok(())
}

/// One exception must allow an access alone, so a narrow one gets what the wider ones allow.
fn combine(exceptions: &mut [Exception]) {
    for i in 0..exceptions.len() {
        let narrow = exceptions[i];
        let wider = exceptions.iter().filter(|e| e.covers(&narrow));
        exceptions[i].bits = wider.fold(narrow.bits, |bits, e| bits | e.bits);
    }
}

#[cfg(test)]
mod tests;
