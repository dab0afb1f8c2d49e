//! Seccomp profiles compiled to BPF through libseccomp, in the parent, before anything exists.

mod shrink;

use std::io::{Read, Seek};
use std::path::PathBuf;

use hafen_spec::Problems;
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    ScmpVersion,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

/// Classic BPF as seccomp(2) takes it: code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub instructions: Vec<Instruction>,
    /// SECCOMP_FILTER_FLAG_* bits.
    pub flags: u32,
    /// Who hears from it, where some rule notifies.
    pub agent: Option<Agent>,
}

/// Where the listener of a filter goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub path: PathBuf,
    pub metadata: Option<String>,
}

impl Filter {
    #[must_use]
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }
}

/// The kernel takes at most BPF_MAXINSNS instructions (bpf_common.h).
const MOST_INSTRUCTIONS: usize = 4096;
const DEFAULT_ERRNO: u32 = 1;
/// What libseccomp takes; the kernel's MAX_ERRNO is one more.
const MOST_ERRNO: u32 = 4094;
/// SECCOMP_RET_ACTION_FULL
const ACTION_MASK: u32 = 0xffff_0000;
const INSTRUCTION: usize = 8;
/// SECCOMP_RET_ERRNO
const RETURN_ERRNO: u32 = 0x0005_0000;
const X32_BIT: u32 = 0x4000_0000;
// Classic BPF (linux/bpf_common.h) on `struct seccomp_data`: number, architecture.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const ABOVE: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const SET: u16 = 0x45;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
/// SCMP_FLTATR_CTL_OPTIMIZE (seccomp_attr_set(3), libseccomp 2.5).
const LIST: u32 = 1;
const TREE: u32 = 2;
/// libseccomp makes a wrong tree of nothing (its issue 370, in 2.5.3 and before).
const WORTH_A_TREE: usize = 16;
/// Raised when the same profile comes out of this module otherwise than before.
const COMPILER: u32 = 3;

/// Everything that decides the instructions of a profile: of two profiles with the same recipe they are the same.
/// The kernel decides nothing, it only has to know the actions. `None`: it cannot be told.
#[must_use]
pub fn recipe(profile: &LinuxSeccomp) -> Option<Vec<u8>> {
    // All fields but the flags and the listener.
    let default = (profile.default_action(), profile.default_errno_ret());
    let rules = (default, profile.architectures(), profile.syscalls());
    let library = ScmpVersion::current().map(|v| (v.major, v.minor, v.micro));
    serde_json::to_vec(&(COMPILER, library.ok()?, std::env::consts::ARCH, rules)).ok()
}

/// Compile a profile, or take its instructions as they were compiled before from the same [`recipe`].
///
/// # Errors
/// Names the field that libseccomp does not take.
pub fn compile(
    profile: &LinuxSeccomp,
    known: Option<Vec<Instruction>>,
) -> Result<Filter, Problems> {
    let mut problems = Problems::default();
    check_actions(profile, &mut problems);
    check_flags(profile, &mut problems);
    let instructions = match known {
        _ if !problems.0.is_empty() => None,
        None => build(profile, &mut problems),
        known => known,
    };
    let flags = flags(profile.flags().as_deref().unwrap_or_default());
    match instructions {
        Some(instructions) => {
            problems.into_result(Filter { instructions, flags, agent: agent(profile) })
        }
        None => Err(problems),
    }
}

fn build(profile: &LinuxSeccomp, problems: &mut Problems) -> Option<Vec<Instruction>> {
    let names = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    let shape = if names.count() < WORTH_A_TREE { LIST } else { TREE };
    build_as(shape, profile, problems).map(shrink::shrink)
}

fn build_as(
    shape: u32,
    profile: &LinuxSeccomp,
    problems: &mut Problems,
) -> Option<Vec<Instruction>> {
    let mut note = |field: &str, e: &SeccompError| {
        problems.add(format!("linux.seccomp.{field}"), e.to_string());
    };
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).map_err(|e| note("defaultAction", &e)).ok()?;
    // The runtime sets no_new_privs itself, where the bundle asks for it.
    filter.set_ctl_nnp(false).map_err(|e| note("flags", &e)).ok()?;
    // The kernel tries every call on a new filter (`seccomp_cache_prepare`, Linux 5.11): in a list each one goes past
    // half of the rules.
    filter.set_ctl_optimize(shape).map_err(|e| note("syscalls", &e)).ok()?;
    for (i, arch) in profile.architectures().iter().flatten().enumerate() {
        // Both lists are the audit architectures of the kernel (audit.h), by the same names.
        let arch: Result<ScmpArch, _> = arch.to_string().parse();
        arch.and_then(|a| filter.add_arch(a))
            .map_err(|e| note(&format!("architectures[{i}]"), &e))
            .ok()?;
    }
    for (i, rule) in profile.syscalls().iter().flatten().enumerate() {
        // A rule that does what the default does is no rule, and libseccomp refuses it.
        if action(rule.action(), rule.errno_ret()) == default {
            continue;
        }
        add_rule(&mut filter, rule).map_err(|e| note(&format!("syscalls[{i}]"), &e)).ok()?;
    }
    let mut instructions = newer_calls(profile);
    instructions.extend(nameless_calls(profile));
    let rules = export(&filter, instructions.len());
    instructions.extend(rules.map_err(|e| problems.add("linux.seccomp", e)).ok()?);
    Some(instructions)
}

/// Architectures as the kernel tells them to a filter (`AUDIT_ARCH_*`, include/uapi/linux/audit.h).
const AUDIT_ARCHES: [(ScmpArch, u32); 8] = [
    (ScmpArch::X8664, 0xc000_003e),
    (ScmpArch::X86, 0x4000_0003),
    (ScmpArch::Aarch64, 0xc000_00b7),
    (ScmpArch::Arm, 0x4000_0028),
    (ScmpArch::Riscv64, 0xc000_00f3),
    (ScmpArch::Ppc64Le, 0xc000_0015),
    (ScmpArch::S390X, 0x8000_0016),
    (ScmpArch::S390, 0x0000_0016),
];

/// A call that is newer than all that a profile names cannot have been meant: it is answered with ENOSYS, as by an older
/// kernel, so that a C library takes the call that it had before. An EPERM would make it give up. As runc has it, where
/// what is not named is denied.
fn newer_calls(profile: &LinuxSeccomp) -> Vec<Instruction> {
    use LinuxSeccompAction as A;
    const ENOSYS: u32 = 38;
    let denies = matches!(
        profile.default_action(),
        A::ScmpActErrno
            | A::ScmpActTrap
            | A::ScmpActKill
            | A::ScmpActKillThread
            | A::ScmpActKillProcess
    );
    if !denies || profile.default_errno_ret() == Some(ENOSYS) {
        return Vec::new();
    }
    let newest: Vec<(u32, u32)> = architectures_of(profile)
        .filter_map(|(arch, audit)| Some((audit, newest_call(profile, arch)?)))
        .collect();
    if newest.is_empty() {
        return Vec::new();
    }
    const EACH: usize = 6;
    let mut program = vec![(LOAD, 0, 0, 4)];
    for (i, (audit, call)) in newest.iter().enumerate() {
        let to_the_rules = (newest.len() - i - 1) * EACH + 1;
        program.extend([
            (EQUAL, 0, 5, *audit),
            (LOAD, 0, 0, 0),
            // Numbers of x32 are another matter.
            (SET, 1, 0, X32_BIT),
            (ABOVE, 1, 0, *call),
            (JUMP, 0, 0, u32::try_from(to_the_rules).unwrap_or_default()),
            (RETURN, 0, 0, RETURN_ERRNO | ENOSYS),
        ]);
    }
    program
}

/// Calls that libseccomp may be too old to name, by the number that they have on every architecture.
const RECENT: [(&str, u32); 1] = [("file_setattr", 469)];

/// Plain refusals of such calls: a name that nobody knows would be no rule.
fn nameless_calls(profile: &LinuxSeccomp) -> Vec<Instruction> {
    let refusals = profile.syscalls().iter().flatten().filter(|rule| {
        rule.action() == LinuxSeccompAction::ScmpActErrno
            && rule.args().iter().flatten().count() == 0
    });
    let refused =
        refusals.flat_map(|rule| rule.names().iter().map(|name| (name, rule.errno_ret())));
    let known = |name: &str| ScmpSyscall::from_name(name).is_ok();
    let recent = |name: &str| RECENT.iter().find(|(n, _)| *n == name && !known(name));
    refused.filter_map(|(name, errno)| Some(refusal(recent(name)?.1, errno))).flatten().collect()
}

fn refusal(call: u32, errno: Option<u32>) -> [Instruction; 4] {
    [
        (LOAD, 0, 0, 0),
        (AND, 0, 0, !X32_BIT),
        (EQUAL, 0, 1, call),
        (RETURN, 0, 0, RETURN_ERRNO | errno.unwrap_or(DEFAULT_ERRNO)),
    ]
}

/// This machine's own, and those that the profile names.
fn architectures_of(profile: &LinuxSeccomp) -> impl Iterator<Item = (ScmpArch, u32)> {
    let named: Vec<ScmpArch> = profile
        .architectures()
        .iter()
        .flatten()
        .filter_map(|arch| arch.to_string().parse().ok())
        .chain(std::iter::once(ScmpArch::native()))
        .collect();
    AUDIT_ARCHES.into_iter().filter(move |(arch, _)| named.contains(arch))
}

fn newest_call(profile: &LinuxSeccomp, arch: ScmpArch) -> Option<u32> {
    let names = profile.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    let number = |name: &String| {
        let call = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
        u32::try_from(i32::from(call)).ok()
    };
    names.filter_map(number).max()
}

fn agent(profile: &LinuxSeccomp) -> Option<Agent> {
    let path = profile.listener_path().clone().filter(|_| notifies(profile))?;
    Some(Agent { path, metadata: profile.listener_metadata().clone() })
}

/// Does anything in it ask an agent?
fn notifies(profile: &LinuxSeccomp) -> bool {
    actions(profile).any(|(action, ..)| action == LinuxSeccompAction::ScmpActNotify)
}

/// Every action with its errno and the name of its field.
fn actions(
    profile: &LinuxSeccomp,
) -> impl Iterator<Item = (LinuxSeccompAction, Option<u32>, String)> {
    let default = (profile.default_action(), profile.default_errno_ret(), "default".to_owned());
    let rules = profile.syscalls().iter().flatten().enumerate();
    let rules = rules.map(|(i, rule)| (rule.action(), rule.errno_ret(), format!("syscalls[{i}].")));
    std::iter::once(default).chain(rules)
}

fn check_actions(profile: &LinuxSeccomp, problems: &mut Problems) {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActTrace};
    for (action, errno, place) in actions(profile) {
        let field = |name: &str| match &*place {
            "default" => format!("linux.seccomp.default{name}"),
            rule => format!("linux.seccomp.{rule}{}{}", name[..1].to_lowercase(), &name[1..]),
        };
        let most = match action {
            ScmpActErrno => MOST_ERRNO,
            ScmpActTrace => u32::from(u16::MAX),
            // "The runtime MUST print an error and fail" (runtime-spec); a zero is how some write nothing.
            _ => 0,
        };
        match errno {
            Some(value) if value > most && most == 0 => {
                problems.add(field("ErrnoRet"), format!("{action} returns no errno"));
            }
            Some(value) if value > most => {
                problems.add(field("ErrnoRet"), format!("{value} is above {most}"));
            }
            _ => {}
        }
        if !hafen_sys::seccomp::knows_action(action.as_u32(None) & ACTION_MASK) {
            problems.add(field("Action"), format!("this kernel does not know {action}"));
        }
    }
}

fn check_flags(profile: &LinuxSeccomp, problems: &mut Problems) {
    for (i, flag) in profile.flags().iter().flatten().enumerate() {
        let field = || format!("linux.seccomp.flags[{i}]");
        if !hafen_sys::seccomp::knows_flags(flags(&[*flag])) {
            problems.add(field(), format!("this kernel does not know {flag}"));
        }
        if *flag == LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv && !notifies(profile)
        {
            problems.add(field(), format!("{flag} needs a rule with SCMP_ACT_NOTIFY"));
        }
    }
}

/// Names of the filter flags that this kernel knows.
#[must_use]
pub fn supported_flags() -> Vec<String> {
    FLAGS
        .iter()
        .filter(|flag| hafen_sys::seccomp::knows_flags(flags(&[**flag])))
        .map(ToString::to_string)
        .collect()
}

/// Names of all filter flags of the runtime spec.
#[must_use]
pub fn known_flags() -> Vec<String> {
    FLAGS.iter().map(ToString::to_string).collect()
}

/// Architectures that libseccomp can add to a filter of this machine's.
#[must_use]
pub fn architectures() -> Vec<String> {
    const ALL: [&str; 22] = [
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_LOONGARCH64",
        "SCMP_ARCH_M68K",
        "SCMP_ARCH_MIPS",
        "SCMP_ARCH_MIPS64",
        "SCMP_ARCH_MIPS64N32",
        "SCMP_ARCH_MIPSEL",
        "SCMP_ARCH_MIPSEL64",
        "SCMP_ARCH_MIPSEL64N32",
        "SCMP_ARCH_PARISC",
        "SCMP_ARCH_PARISC64",
        "SCMP_ARCH_PPC",
        "SCMP_ARCH_PPC64",
        "SCMP_ARCH_PPC64LE",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_S390",
        "SCMP_ARCH_S390X",
        "SCMP_ARCH_SH",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X86_64",
    ];
    let takes = |name: &&str| {
        let arch = name.parse::<ScmpArch>();
        let filter = ScmpFilterContext::new(ScmpAction::Allow);
        arch.and_then(|arch| filter?.add_arch(arch).map(|_| ())).is_ok()
    };
    ALL.into_iter().filter(takes).map(str::to_owned).collect()
}

const FLAGS: [LinuxSeccompFilterFlag; 4] = [
    LinuxSeccompFilterFlag::SeccompFilterFlagLog,
    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
    LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
];

/// Names that this kernel or libseccomp does not know are passed over: profiles list the calls of all
/// architectures and of kernels to come (runtime-spec, config-linux, "Seccomp").
fn add_rule(filter: &mut ScmpFilterContext, rule: &LinuxSyscall) -> Result<(), SeccompError> {
    let action = action(rule.action(), rule.errno_ret());
    let comparators: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(comparator).collect();
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        if comparators.is_empty() {
            filter.add_rule(action, call)?;
        } else if has_repeated_index(rule.args().as_deref().unwrap_or_default()) {
            // libseccomp takes one comparison for each argument: the others are alternatives.
            for comparator in &comparators {
                filter.add_rule_conditional(action, call, &[*comparator])?;
            }
        } else {
            filter.add_rule_conditional(action, call, &comparators)?;
        }
    }
    Ok(())
}

fn has_repeated_index(args: &[LinuxSeccompArg]) -> bool {
    args.iter().enumerate().any(|(i, a)| args.iter().take(i).any(|b| a.index() == b.index()))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    use LinuxSeccompAction as A;
    let errno = errno.unwrap_or(DEFAULT_ERRNO);
    match action {
        A::ScmpActKill | A::ScmpActKillThread => ScmpAction::KillThread,
        A::ScmpActKillProcess => ScmpAction::KillProcess,
        A::ScmpActTrap => ScmpAction::Trap,
        A::ScmpActErrno => ScmpAction::Errno(errno.cast_signed()),
        A::ScmpActNotify => ScmpAction::Notify,
        A::ScmpActTrace => ScmpAction::Trace(errno as u16),
        A::ScmpActLog => ScmpAction::Log,
        A::ScmpActAllow => ScmpAction::Allow,
    }
}

fn comparator(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator as O;
    let (op, datum) = match arg.op() {
        O::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        O::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        O::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        O::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        O::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        O::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // For a masked comparison `value` is the mask and `valueTwo` what is expected.
        O::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

fn flags(flags: &[LinuxSeccompFilterFlag]) -> u32 {
    use LinuxSeccompFilterFlag as F;
    flags.iter().fold(0, |bits, flag| {
        bits | match flag {
            F::SeccompFilterFlagTsync => 1,
            F::SeccompFilterFlagLog => 1 << 1,
            F::SeccompFilterFlagSpecAllow => 1 << 2,
            F::SeccompFilterFlagWaitKillableRecv => 1 << 5,
        }
    })
}

fn export(filter: &ScmpFilterContext, before: usize) -> Result<Vec<Instruction>, String> {
    let memory = memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC)
        .map_err(|e| format!("memfd_create: {e}"))?;
    filter.export_bpf(&memory).map_err(|e| e.to_string())?;
    let mut file = std::fs::File::from(memory);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(|e| format!("read the filter: {e}"))?;
    let instructions: Vec<_> = bytes.chunks_exact(INSTRUCTION).map(instruction).collect();
    let all = before + instructions.len();
    if all > MOST_INSTRUCTIONS {
        return Err(format!("{all} instructions are more than the kernel's {MOST_INSTRUCTIONS}"));
    }
    Ok(instructions)
}

/// `struct sock_filter` in the byte order of this machine.
fn instruction(bytes: &[u8]) -> Instruction {
    let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let operand = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    (code, bytes[2], bytes[3], operand)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    /// What the kernel makes of a call, as far as these instructions decide it.
    fn verdict(program: &[Instruction], arch: u32, number: u32) -> Option<u32> {
        verdict_with(program, arch, number, 0)
    }

    fn verdict_with(program: &[Instruction], arch: u32, number: u32, argument: u32) -> Option<u32> {
        let (mut at, mut register) = (0, 0);
        while let Some(&(code, yes, no, operand)) = program.get(at) {
            let jump = |condition| usize::from(if condition { yes } else { no });
            at += 1 + match code {
                0x20 => {
                    register = match operand {
                        0 => number,
                        4 => arch,
                        // The lower half of any argument.
                        at if at >= 16 && at % 8 == 0 => argument,
                        _ => 0,
                    };
                    0
                }
                0x54 => {
                    register &= operand;
                    0
                }
                0x05 => operand as usize,
                0x15 => jump(register == operand),
                0x25 => jump(register > operand),
                0x35 => jump(register >= operand),
                0x45 => jump(register & operand != 0),
                0x06 => return Some(operand),
                other => panic!("{other:#x}"),
            };
        }
        assert_eq!(at, program.len(), "it leads to the first of the rules");
        None
    }

    #[test]
    fn a_recent_call_is_refused_by_its_number() {
        const EPERM: Option<u32> = Some(0x0005_0001);
        let program = refusal(469, None);
        for (_, arch) in &AUDIT_ARCHES {
            assert_eq!(verdict(&program, *arch, 469), EPERM);
            assert_eq!(verdict(&program, *arch, X32_BIT | 469), EPERM);
            assert_eq!(verdict(&program, *arch, 468), None);
        }
        let rule = |action: &str| {
            let rule = json!({ "names": ["file_setattr", "read"], "action": action });
            profile(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }))
        };
        let named = ScmpSyscall::from_name("file_setattr").is_ok();
        let program = nameless_calls(&rule("SCMP_ACT_ERRNO"));
        assert_eq!(program.len(), if named { 0 } else { 4 });
        assert_eq!(nameless_calls(&rule("SCMP_ACT_LOG")), []);
    }

    #[test]
    fn calls_newer_than_the_profile_do_not_exist() {
        let profile = |default: &str| {
            profile(json!({
                "defaultAction": default,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
                "syscalls": [{ "names": ["read", "openat2", "fork"], "action": "SCMP_ACT_ALLOW" }]
            }))
        };
        let program = newer_calls(&profile("SCMP_ACT_ERRNO"));
        const OPENAT2: u32 = 437;
        const ENOSYS: Option<u32> = Some(0x0005_0026);
        for (_, arch) in &AUDIT_ARCHES[..3] {
            assert_eq!(verdict(&program, *arch, OPENAT2), None);
            assert_eq!(verdict(&program, *arch, 3), None);
            assert_eq!(verdict(&program, *arch, OPENAT2 + 1), ENOSYS);
        }
        assert_eq!(verdict(&program, 0xc000_003e, 0x4000_0000 | 999), None, "x32");
        assert_eq!(verdict(&program, 0xc000_00f3, 999), None, "not of this profile");
        assert_eq!(newer_calls(&profile("SCMP_ACT_ALLOW")), []);
        assert_eq!(newer_calls(&profile("SCMP_ACT_LOG")), []);
    }

    #[test]
    fn a_tree_says_what_a_list_says() {
        let names: Vec<String> = (0..460)
            .filter(|number| number % 3 != 0)
            .filter_map(|number| ScmpSyscall::from(number).get_name().ok())
            .filter(|name| !["personality", "clone", "ioctl"].contains(&name.as_str()))
            .collect();
        for (default, action) in
            [("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"), ("SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS")]
        {
            let profile = profile(json!({
                "defaultAction": default,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
                "syscalls": [
                    {"names": names, "action": action},
                    {"names": ["personality"], "action": "SCMP_ACT_TRAP",
                     "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["clone"], "action": "SCMP_ACT_LOG",
                     "args": [{"index": 0, "value": 0x30, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ"}]},
                    {"names": ["ioctl"], "action": "SCMP_ACT_TRACE",
                     "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_GE"}]}
                ]
            }));
            let build = |shape| build_as(shape, &profile, &mut Problems::default()).unwrap();
            let (list, tree) = (build(LIST), build(TREE));
            assert_ne!(list, tree);
            let shrunk = [shrink::shrink(list.clone()), shrink::shrink(tree.clone())];
            assert!(shrunk.iter().all(|s| s.len() < tree.len()), "{shrunk:?}");
            let mut seen = std::collections::BTreeSet::new();
            for (_, arch) in AUDIT_ARCHES {
                for number in (0..600).chain(0x4000_0000..0x4000_0258) {
                    for argument in [0, 8, 9, 0x10] {
                        let said = verdict_with(&list, arch, number, argument);
                        for same in shrunk.iter().chain([&tree]) {
                            assert_eq!(
                                verdict_with(same, arch, number, argument),
                                said,
                                "{arch:x} {number:x} {argument}"
                            );
                        }
                        seen.insert(said);
                    }
                }
            }
            assert!(seen.len() > 5, "{seen:x?}");
        }
    }

    #[test]
    fn the_usual_profile_decides_by_capabilities_and_arguments() {
        const ALLOWED: u32 = 0x7fff_0000;
        const REFUSED: u32 = 0x0005_0001;
        const ABSENT: u32 = 0x0005_0026;
        const X86_64: u32 = 0xc000_003e;
        if !cfg!(target_arch = "x86_64") {
            return;
        }
        let usual = |capabilities, keep_projects| {
            let value = hafen_spec::seccomp::usual(capabilities, keep_projects);
            compile(&profile(value), None).unwrap().instructions
        };
        let admin = hafen_spec::rights::bit("SYS_ADMIN").unwrap();
        let (few, more, bounded) = (usual(0, false), usual(admin, false), usual(0, true));
        for (call, argument, without, with) in [
            ("read", 0, ALLOWED, ALLOWED),
            ("mount", 0, REFUSED, ALLOWED),
            ("keyctl", 0, REFUSED, REFUSED),
            ("clone", 0x0120_0011, ALLOWED, ALLOWED),
            ("clone", 0x1000_0011, REFUSED, ALLOWED),
            ("unshare", 0x200, ALLOWED, ALLOWED),
            ("unshare", 0x80, REFUSED, ALLOWED),
            ("clone3", 0, ABSENT, ALLOWED),
            ("personality", u32::MAX, ALLOWED, ALLOWED),
            ("personality", 0x40_0000, REFUSED, REFUSED),
            ("ioctl", 0x401c_5820, ALLOWED, ALLOWED),
        ] {
            let number = ScmpSyscall::from_name_by_arch(call, ScmpArch::X8664).unwrap();
            let number = i32::from(number).cast_unsigned();
            let verdict = |program| verdict_with(program, X86_64, number, argument);
            assert_eq!(verdict(&few), Some(without), "{call} {argument:#x}");
            assert_eq!(
                verdict(&more),
                Some(with),
                "{call} {argument:#x}, of who has CAP_SYS_ADMIN"
            );
        }
        for (arch, ioctl) in [(X86_64, 16), (0x4000_0003, 54)] {
            assert_eq!(verdict(&few, arch, 9999), Some(ABSENT));
            for (request, wanted) in [
                (0x401c_5820, REFUSED),
                (0x4008_6602, REFUSED),
                (0x4004_6602, REFUSED),
                (0x4008_6603, ALLOWED),
                (0x5401, ALLOWED),
                (u32::MAX, ALLOWED),
            ] {
                let found = verdict_with(&bounded, arch, ioctl, request);
                assert_eq!(found, Some(wanted), "{arch:x} {request:#x}");
            }
        }
    }

    #[test]
    fn a_profile_becomes_a_filter() {
        let filter = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["mkdir", "no_such_call_anywhere"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
            ]
        })), None)
        .unwrap();
        assert!(filter.len() > 4, "{filter:?}");
        assert_eq!(filter.flags, 2);
        let errno_38 = 0x0005_0000 | 38;
        assert!(filter.instructions.iter().any(|(.., operand)| *operand == errno_38));
    }

    #[test]
    fn a_recipe_is_what_decides_the_instructions() {
        let notifying = |path: &str, call: &str| {
            profile(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": path,
                "listenerMetadata": path,
                "syscalls": [{"names": [call], "action": "SCMP_ACT_NOTIFY"}]
            }))
        };
        let (one, other) = (notifying("/run/one", "mkdir"), notifying("/run/other", "mkdir"));
        assert!(recipe(&one).is_some());
        assert_eq!(recipe(&one), recipe(&other));
        assert_ne!(recipe(&one), recipe(&notifying("/run/one", "rmdir")));
        let compiled = compile(&one, None).unwrap();
        let again = compile(&other, Some(compiled.instructions.clone())).unwrap();
        assert_eq!(again.instructions, compiled.instructions);
        assert_eq!(again.agent.unwrap().path, PathBuf::from("/run/other"));
    }
}
