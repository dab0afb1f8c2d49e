//! The device rules of a bundle as an eBPF program for `BPF_CGROUP_DEVICE` (Linux 4.15), or as files of the v1 controller.
//!
//! The measured bundles deny everything, which leaves what the runtime specification gives
//! every container: making any node, and using its default devices and its terminals.
//!
//! The verifier follows both sides of every branch, so its time grows with their number. Hence
//! one branch per major number, and the minor numbers as bits of a mask, instead of a
//! list of rules: that is verified several times faster.

/// Character devices that may be used: major number, and minor numbers as bits of a mask.
const ALLOWED: [(u32, u32); 2] =
    [(1, 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9), (5, 1 << 0 | 1 << 2)];
/// Terminals: any minor number.
const TERMINALS: u32 = 136;
/// `BPF_DEVCG_ACC_MKNOD` and `BPF_DEVCG_DEV_CHAR`.
const MAKE_NODE: u32 = 1;
const CHARACTER: u32 = 2;

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SHIFT_RIGHT_BY: u8 = 0x7c;
const MOVE: u8 = 0xb4;
const COPY: u8 = 0xbc;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_GREATER: u8 = 0x26;
const JUMP_UNEQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction (struct bpf_insn on a little-endian machine). `skip` is the number of
/// instructions that a jump leaves out, or the byte offset of a load.
const fn instruction(code: u8, to: u8, from: u8, skip: u16, value: u32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (skip as u64) << 16
        | (value as u64) << 32
}

/// The same for the devices controller of v1: files, and what is written to them.
pub fn files() -> Vec<(&'static str, String)> {
    let minors = |mask: u32| (0..32).filter(move |minor| mask & 1 << minor != 0);
    let used = ALLOWED
        .iter()
        .flat_map(|(major, mask)| minors(*mask).map(move |minor| format!("c {major}:{minor} rwm")));
    let made = ["c *:* m", "b *:* m"].map(str::to_owned).into_iter();
    let all = made.chain(used).chain([format!("c {TERMINALS}:* rwm")]);
    std::iter::once(("devices.deny", "a".to_owned()))
        .chain(all.map(|rule| ("devices.allow", rule)))
        .collect()
}

const fn answer(verdict: u32) -> [u64; 2] {
    [instruction(MOVE, VERDICT, 0, 0, verdict), instruction(EXIT, 0, 0, 0, 0)]
}

/// The program, one word per instruction. Its context is `struct bpf_cgroup_dev_ctx`: type
/// in the low and access in the high half of the first word, then major and minor.
pub fn instructions() -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        instruction(COPY, ACCESS, TYPE, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(AND, TYPE, 0, 0, 0xffff),
    ];
    let only = |code, register, value| instruction(code, register, 0, 2, value);
    program.push(only(JUMP_UNEQUAL, ACCESS, MAKE_NODE));
    program.extend(answer(1));
    program.push(instruction(JUMP_EQUAL, TYPE, 0, 2, CHARACTER));
    program.extend(answer(0));
    program.push(only(JUMP_UNEQUAL, MAJOR, TERMINALS));
    program.extend(answer(1));
    // A mask has 32 bits; a shift by more would wrap.
    program.push(instruction(JUMP_GREATER, MINOR, 0, ALLOWED.len() as u16 * 5, 31));
    for (major, minors) in ALLOWED {
        program.push(instruction(JUMP_UNEQUAL, MAJOR, 0, 4, major));
        program.push(instruction(MOVE, VERDICT, 0, 0, minors));
        program.push(instruction(SHIFT_RIGHT_BY, VERDICT, MINOR, 0, 0));
        program.push(instruction(AND, VERDICT, 0, 0, 1));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.extend(answer(0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn verdict(block: bool, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | if block { 1 } else { 2 }, major, minor];
        let (mut registers, mut at) = ([0_u32; 6], 0);
        let program = instructions();
        loop {
            let word = program[at];
            let (to, from) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (skip, value) = (usize::from((word >> 16) as u16), (word >> 32) as u32);
            at += 1;
            let jumps = match word as u8 {
                LOAD_WORD => {
                    registers[to] = context[skip / 4];
                    false
                }
                JUMP_EQUAL => registers[to] == value,
                JUMP_UNEQUAL => registers[to] != value,
                JUMP_GREATER => registers[to] > value,
                EXIT => return registers[0],
                code => {
                    registers[to] = compute(code, registers[to], registers[from], value);
                    false
                }
            };
            at += if jumps { skip } else { 0 };
        }
    }

    fn compute(code: u8, to: u32, from: u32, value: u32) -> u32 {
        match code {
            AND => to & value,
            SHIFT_RIGHT => to >> value,
            SHIFT_RIGHT_BY => to >> from,
            MOVE => value,
            COPY => from,
            other => panic!("unknown instruction {other:#x}"),
        }
    }

    #[test]
    fn defaults_are_allowed_and_nothing_else() {
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 77)] {
            assert_eq!(verdict(false, 6, major, minor), 1, "use {major}:{minor}");
            assert_eq!(verdict(true, 6, major, minor), 0, "use block device {major}:{minor}");
        }
        for (major, minor) in [(1, 1), (1, 35), (5, 1), (5, 64), (10, 200), (137, 0)] {
            assert_eq!(verdict(false, 2, major, minor), 0, "read {major}:{minor}");
        }
        assert_eq!(verdict(true, 1, 8, 0), 1, "make a disk's node");
        assert_eq!(verdict(true, 3, 8, 0), 0, "make and read a disk");
    }
}
