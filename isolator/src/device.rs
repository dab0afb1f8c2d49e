//! Which devices a container may open or make: rules of `linux.resources.devices` as an eBPF program on the container's
//! cgroup, or as files of the v1 devices controller where the host has it.

mod legacy;

use std::os::fd::OwnedFd;
use std::path::Path;

use hafen_spec::HostFacts;
use hafen_spec::facts::Home;
use hafen_spec::resolved::{DeviceRule, DeviceType};
use hafen_sys::bpf::{self, Insn, code};
use hafen_sys::{CallError, Context};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::cgroup::Setting;
use legacy::Table;
pub(crate) use legacy::way_back;

/// A jump inside a program reaches 32767 instructions, and a rule takes at most three for each kind of device.
const MOST_RULES: usize = 4096;

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
/// Where the devices controller is v1 its files say it: clients read them there. What they cannot say, a program does.
///
/// # Errors
/// Why nothing on this host can enforce the rules.
pub fn confinement(rules: &[DeviceRule], facts: &HostFacts) -> Result<Confinement, String> {
    let rules = effective(rules);
    if rules.is_empty() {
        return Ok(Confinement::None);
    }
    if rules.len() > MOST_RULES {
        return Err(format!("are {}, and more than {MOST_RULES} cannot be enforced", rules.len()));
    }
    // Only the machine's root may load a program: what a user can open is decided by the rights of that user, and
    // devices of its own nobody can make in a user namespace.
    if facts.rootless {
        return Ok(Confinement::None);
    }
    let files = match facts.cgroup.home("devices") {
        Home::Legacy if !facts.cgroup.is_closed("devices") => {
            Table::of(&rules).map(|table| table.files())
        }
        _ => Err("this host mounts no v1 devices controller".to_owned()),
    };
    match files {
        Ok(files) => Ok(Confinement::Legacy(files)),
        Err(_) if !facts.lacks("bpf") => Ok(Confinement::Program(rules)),
        Err(why) => Err(format!("cannot be enforced: {why}, and this host lacks bpf(2)")),
    }
}

/// What is to be written for other rules to a folder of the v1 controller that shows `list` as its `devices.list`.
/// Nothing that is allowed before and after is denied in between, unless what is denied turns into what is allowed.
///
/// # Errors
/// Why the controller cannot say the rules.
pub(crate) fn transition(list: &str, rules: &[DeviceRule]) -> Result<Vec<Setting>, String> {
    let rules = effective(rules);
    let wanted = if rules.is_empty() { Table::of_everything() } else { Table::of(&rules)? };
    Ok(wanted.transition_from(&Table::read(list)))
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
    let mknod = [DeviceType::Char, DeviceType::Block].map(|kind| DeviceRule {
        kind: Some(kind),
        read: false,
        write: false,
        ..ANYTHING
    });
    let always = ALWAYS.map(|(major, minor)| DeviceRule {
        kind: Some(DeviceType::Char),
        major: Some(major),
        minor,
        ..ANYTHING
    });
    rules.iter().cloned().chain(mknod).chain(always).collect()
}

const ANYTHING: DeviceRule = DeviceRule {
    allow: true,
    kind: None,
    major: None,
    minor: None,
    read: true,
    write: true,
    mknod: true,
};

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
    /// Both numbers in one.
    pub(super) const NUMBER: u8 = 6;
}

/// `dev_t` inside the kernel (include/linux/kdev_t.h): 12 bits of major above 20 bits of minor.
const MINOR_BITS: u32 = 20;

/// The rules as a program: the last one that matches decides, and what none matches is denied.
///
/// Each kind of access is decided by itself: opening for reading and writing needs both, and may have each from
/// another rule. So the rules are asked from the last to the first; one that allows takes its kinds off what is still
/// open, one that denies ends it if it meets any of that. A usual rule is one instruction: loading is part of every
/// launch, and the kernel's verifier takes its time by the branch.
#[must_use]
pub fn program(rules: &[DeviceRule]) -> Vec<Insn> {
    use register::{CONTEXT, KIND, MAJOR, MINOR, NUMBER, OPEN};
    const BLOCK: u32 = 1; // BPF_DEVCG_DEV_BLOCK
    // struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }, where access_type is access << 16 | kind.
    let start = [
        Insn::between(code::LOAD, KIND, CONTEXT, 0),
        Insn::between(code::COPY, OPEN, KIND, 0),
        Insn::number(code::SHIFT_RIGHT, OPEN, 16),
        Insn::number(code::AND, KIND, 0xffff),
        Insn::between(code::LOAD, MAJOR, CONTEXT, 4),
        Insn::between(code::LOAD, MINOR, CONTEXT, 8),
        Insn::between(code::COPY, NUMBER, MAJOR, 0),
        Insn::number(code::SHIFT_LEFT, NUMBER, MINOR_BITS),
        Insn::between(code::OR, NUMBER, MINOR, 0),
    ];
    let mut draft = Draft { program: start.to_vec(), decisions: Vec::new() };
    let fork = draft.program.len();
    draft.program.push(Insn::branch(code::JUMP_EQUAL, KIND, BLOCK, 0));
    draft.section(rules, DeviceType::Char);
    draft.land(fork);
    draft.section(rules, DeviceType::Block);
    draft.finish()
}

/// A program whose decisions are jumps to an end that is not there yet.
struct Draft {
    program: Vec<Insn>,
    /// Where they are, and whether they allow.
    decisions: Vec<(usize, bool)>,
}

impl Draft {
    /// What is to be asked about one kind of device.
    fn section(&mut self, rules: &[DeviceRule], kind: DeviceType) {
        let mine = |r: &&DeviceRule| r.kind.is_none_or(|k| k == kind) && is_possible(r);
        for rule in rules.iter().rev().filter(mine) {
            match (number_of(rule), bits(rule)) {
                (None, access::ALL) => {
                    // Instructions after this could never be reached, which the verifier refuses.
                    return self.decide(Insn::branch(code::JUMP, 0, 0, 0), rule.allow);
                }
                (Some((register, number)), access::ALL) => {
                    self.decide(Insn::branch(code::JUMP_EQUAL, register, number, 0), rule.allow);
                }
                (number, bits) => self.partial(rule.allow, number, bits),
            }
        }
        self.decide(Insn::branch(code::JUMP, 0, 0, 0), false);
    }

    /// A rule about some kinds of access only.
    fn partial(&mut self, allow: bool, number: Option<(u8, u32)>, bits: u32) {
        let condition = self.program.len();
        if let Some((register, number)) = number {
            self.program.push(Insn::branch(code::JUMP_UNEQUAL, register, number, 0));
        }
        if allow {
            self.program.push(Insn::number(code::AND, register::OPEN, !bits));
            self.decide(Insn::branch(code::JUMP_EQUAL, register::OPEN, 0, 0), true);
        } else {
            self.decide(Insn::branch(code::JUMP_COMMON, register::OPEN, bits, 0), false);
        }
        if number.is_some() {
            self.land(condition);
        }
    }

    fn decide(&mut self, jump: Insn, allow: bool) {
        self.decisions.push((self.program.len(), allow));
        self.program.push(jump);
    }

    /// Let the jump at `from` lead to the next instruction.
    fn land(&mut self, from: usize) {
        let skip = self.program.len() - from - 1;
        // `MOST_RULES` keeps it below the limit.
        self.program[from].offset = i16::try_from(skip).unwrap_or(i16::MAX);
    }

    fn finish(mut self) -> Vec<Insn> {
        for allow in [false, true] {
            let jumps: Vec<usize> =
                self.decisions.iter().filter(|d| d.1 == allow).map(|d| d.0).collect();
            if jumps.is_empty() {
                continue;
            }
            jumps.into_iter().for_each(|from| self.land(from));
            self.program.push(Insn::number(code::SET, register::ANSWER, u32::from(allow)));
            self.program.push(Insn::number(code::EXIT, 0, 0));
        }
        self.program
    }
}

/// No device has numbers that do not fit.
fn is_possible(rule: &DeviceRule) -> bool {
    rule.major.is_none_or(|m| m < 1 << (32 - MINOR_BITS))
        && rule.minor.is_none_or(|m| m < 1 << MINOR_BITS)
}

/// The one comparison that a rule's numbers need.
fn number_of(rule: &DeviceRule) -> Option<(u8, u32)> {
    match (rule.major, rule.minor) {
        (None, None) => None,
        (Some(major), None) => Some((register::MAJOR, major)),
        (None, Some(minor)) => Some((register::MINOR, minor)),
        (Some(major), Some(minor)) => Some((register::NUMBER, major << MINOR_BITS | minor)),
    }
}

/// Attach the rules to a folder of the cgroup2 tree; they stay as long as it does.
pub(crate) fn confine(cgroup: &Path, rules: &[DeviceRule]) -> Result<(), CallError> {
    let folder = open_folder(cgroup)?;
    let attached =
        bpf::load_device_program(&program(rules)).and_then(|program| bpf::attach(program, folder));
    attached.map_err(|e| at(cgroup, e))
}

fn open_folder(cgroup: &Path) -> Result<OwnedFd, CallError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(cgroup, flags, Mode::empty()).call(|| format!("open {}", cgroup.display()))
}

fn at(cgroup: &Path, e: CallError) -> CallError {
    CallError::new(format!("{} {}", e.call, cgroup.display()), e.source)
}

/// The program that a folder had before [`reconfine`], and the one that it has now.
#[derive(Debug)]
pub(crate) struct Exchange {
    folder: OwnedFd,
    former: Option<OwnedFd>,
    current: Option<OwnedFd>,
}

/// Have other rules from now on, in one step; none of them allows everything.
pub(crate) fn reconfine(cgroup: &Path, rules: &[DeviceRule]) -> Result<Exchange, CallError> {
    let exchange = || {
        let folder = open_folder(cgroup)?;
        let former = bpf::attached(&folder)?;
        let current = match rules {
            [] => None,
            rules => Some(bpf::load_device_program(&program(rules))?),
        };
        exchange(former.as_ref(), current.as_ref(), &folder)?;
        Ok(Exchange { folder, former, current })
    };
    exchange().map_err(|e| at(cgroup, e))
}

impl Exchange {
    /// Have the former rules again.
    pub(crate) fn undo(&self) -> Result<(), CallError> {
        exchange(self.current.as_ref(), self.former.as_ref(), &self.folder)
    }
}

fn exchange(
    old: Option<&OwnedFd>,
    new: Option<&OwnedFd>,
    folder: &OwnedFd,
) -> Result<(), CallError> {
    match (old, new) {
        (None, None) => Ok(()),
        (None, Some(new)) => bpf::attach(new, folder),
        (Some(old), Some(new)) => bpf::replace(old, new, folder),
        (Some(old), None) => bpf::detach(old, folder),
    }
}

#[cfg(test)]
mod tests;
