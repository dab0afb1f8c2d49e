//! Seccomp profiles compiled to BPF through libseccomp, in the parent, before anything exists.

use std::io::{Read, Seek};

use hafen_spec::Problems;
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Classic BPF as seccomp(2) takes it: code, jump if true, jump if false, operand.
    pub instructions: Vec<(u16, u8, u8, u32)>,
    /// SECCOMP_FILTER_FLAG_* bits.
    pub flags: u32,
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
const INSTRUCTION: usize = 8;

/// Compile a profile.
///
/// # Errors
/// Names the field that libseccomp does not take.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, Problems> {
    let mut problems = Problems::default();
    let compiled = build(profile, &mut problems);
    match compiled {
        Some(filter) => problems.into_result(filter),
        None => Err(problems),
    }
}

fn build(profile: &LinuxSeccomp, problems: &mut Problems) -> Option<Filter> {
    let mut note = |field: &str, e: &SeccompError| {
        problems.add(format!("linux.seccomp.{field}"), e.to_string());
    };
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).map_err(|e| note("defaultAction", &e)).ok()?;
    // The runtime sets no_new_privs itself, where the bundle asks for it.
    filter.set_ctl_nnp(false).map_err(|e| note("flags", &e)).ok()?;
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
    let instructions = export(&filter).map_err(|e| problems.add("linux.seccomp", e)).ok()?;
    let flags = flags(profile.flags().as_deref().unwrap_or_default());
    Some(Filter { instructions, flags })
}

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

fn export(filter: &ScmpFilterContext) -> Result<Vec<(u16, u8, u8, u32)>, String> {
    let memory = memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC)
        .map_err(|e| format!("memfd_create: {e}"))?;
    filter.export_bpf(&memory).map_err(|e| e.to_string())?;
    let mut file = std::fs::File::from(memory);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(|e| format!("read the filter: {e}"))?;
    let instructions: Vec<_> = bytes.chunks_exact(INSTRUCTION).map(instruction).collect();
    if instructions.len() > MOST_INSTRUCTIONS {
        return Err(format!(
            "{} instructions are more than the kernel's {MOST_INSTRUCTIONS}",
            instructions.len()
        ));
    }
    Ok(instructions)
}

/// `struct sock_filter` in the byte order of this machine.
fn instruction(bytes: &[u8]) -> (u16, u8, u8, u32) {
    let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let operand = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    (code, bytes[2], bytes[3], operand)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_profile_becomes_a_filter() {
        let filter = compile(&profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["mkdir", "no_such_call_anywhere"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
            ]
        })))
        .unwrap();
        assert!(filter.len() > 4, "{filter:?}");
        assert_eq!(filter.flags, 2);
        let errno_38 = 0x0005_0000 | 38;
        assert!(filter.instructions.iter().any(|(.., operand)| *operand == errno_38));
    }
}
