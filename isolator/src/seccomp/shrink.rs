//! The same filter with fewer instructions.
//!
//! The kernel compiles a filter again for each container (seccomp(2), bpf_jit_enable) and tries every call on it; of some
//! thousand instructions that is a tenth of a launch. Most of them compare the number of a call with one number each.
//! Numbers that are treated alike mostly stand in a row: so the answer is found out for every row, and a search among the
//! rows takes the place of the comparisons. What looks at arguments stays as it was.

use std::collections::{BTreeMap, BTreeSet};

use super::{ABOVE, AND, AT_LEAST, EQUAL, Instruction, JUMP, LOAD, RETURN, SET, X32_BIT};

const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// An offset of a conditional jump is a byte; room is left for two instructions that get between.
const FARTHEST: usize = 250;
/// SECCOMP_RET_KILL_PROCESS, where nothing leads to.
const KILL: u32 = 0x8000_0000;
/// What may be left of a number, if it is to be told where its rows begin.
const KEPT_BITS: [u32; 2] = [!X32_BIT, u32::MAX];

/// The shorter of the program and what can be made of it.
pub(super) fn shrink(program: Vec<Instruction>) -> Vec<Instruction> {
    match shorter(&program) {
        Some(shrunk) if shrunk.len() < program.len() => shrunk,
        _ => program,
    }
}

/// `None` for a program that does what neither libseccomp nor this crate has it do.
fn shorter(program: &[Instruction]) -> Option<Vec<Instruction>> {
    let old = Program(program);
    let starts = old.starts();
    let Table { other, named, kept } = old.table(&starts)?;

    let mut draft = Draft::default();
    draft.keep(program, &kept)?;
    let mut next = draft.search(&other);
    for (architecture, rows) in &named {
        let calls = draft.search(rows);
        let calls = draft.load_number(calls);
        next = draft.push_choice(EQUAL, *architecture, calls, next);
    }
    let (shrunk, moved) = draft.finish(next);

    // It is looked at once more as a whole, and has to say the same.
    let new = Program(&shrunk).table(&starts)?;
    let moved = |rows: Vec<Row>| -> Option<Vec<Row>> {
        let move_one = |row: Row| match row.answer {
            Err(looks) => Some(Row { answer: Err(*moved.get(&looks)?), ..row }),
            Ok(_) => Some(row),
        };
        rows.into_iter().map(move_one).collect()
    };
    let named: Option<BTreeMap<u32, Vec<Row>>> =
        named.into_iter().map(|(architecture, rows)| Some((architecture, moved(rows)?))).collect();
    (moved(other)? == new.other && named? == new.named).then_some(shrunk)
}

/// What a program does with all calls.
struct Table {
    named: BTreeMap<u32, Vec<Row>>,
    /// On architectures that it does not name.
    other: Vec<Row>,
    /// What is passed where the answer depends on arguments.
    kept: BTreeSet<usize>,
}

/// Stands for all architectures that a program does not name.
fn unused(named: &BTreeMap<u32, Vec<Row>>) -> Option<u32> {
    (1..=u32::MAX).rev().find(|a| !named.contains_key(a))
}

/// Numbers of calls from `start` to the next row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    start: u32,
    /// What is returned; or, where that depends on arguments, the instruction that looks at one first.
    answer: Result<u32, usize>,
}

/// What the register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Register {
    Known(u32),
    Architecture(u32),
    /// Part of an argument.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    architecture: u32,
    number: u32,
}

/// What an instruction does.
#[derive(Debug)]
enum Step {
    Return(u32),
    To(usize, Register),
    /// As the argument wants it, which is in the register still.
    Either(usize, usize),
}

/// Everything that may happen to one call.
#[derive(Debug, Default)]
struct Walk {
    answers: BTreeSet<u32>,
    /// The first instruction that looks at an argument, and what may be passed from there on.
    looks: Option<usize>,
    passed: BTreeSet<usize>,
}

struct Program<'a>(&'a [Instruction]);

impl Program<'_> {
    /// Where the answer for a number can differ from that for the number before.
    fn starts(&self) -> BTreeSet<u32> {
        let mut starts = BTreeSet::new();
        let mut add = |operand: u32| {
            // With and without the bit that makes a number one of x32, which programs look at or take away.
            for upper in (0..4).map(|quarter| quarter * X32_BIT) {
                let one = upper | operand & (X32_BIT - 1);
                starts.extend([Some(one), one.checked_add(1)].into_iter().flatten());
            }
        };
        add(0);
        for (code, _, _, operand) in self.0 {
            if matches!(*code, EQUAL | ABOVE | AT_LEAST) {
                add(*operand);
            }
        }
        starts
    }

    fn table(&self, starts: &BTreeSet<u32>) -> Option<Table> {
        let (mut named, mut kept) = (BTreeMap::new(), BTreeSet::new());
        let mut left = BTreeSet::new();
        let mut other = None;
        loop {
            let next = left.pop_first();
            if next.is_none() && other.is_some() {
                break;
            }
            let architecture = next.or_else(|| unused(&named))?;
            let mut more = BTreeSet::new();
            let rows = self.rows(architecture, starts, &mut kept, &mut more)?;
            left.extend(more.into_iter().filter(|a| !named.contains_key(a) && *a != architecture));
            match next {
                Some(_) => drop(named.insert(architecture, rows)),
                // Unless it is the program that names this very one.
                None => other = Some(rows).filter(|_| !left.contains(&architecture)),
            }
        }
        (!named.is_empty()).then_some(Table { named, other: other?, kept })
    }

    fn rows(
        &self,
        architecture: u32,
        starts: &BTreeSet<u32>,
        kept: &mut BTreeSet<usize>,
        named: &mut BTreeSet<u32>,
    ) -> Option<Vec<Row>> {
        let mut rows: Vec<Row> = Vec::new();
        for start in starts {
            let call = Call { architecture, number: *start };
            let walk = self.walk(call, &mut |architecture| {
                named.insert(architecture);
            })?;
            let mut answers = walk.answers.iter();
            let answer = match (answers.next(), answers.next()) {
                (Some(only), None) => Ok(*only),
                _ => {
                    kept.extend(walk.passed);
                    Err(walk.looks?)
                }
            };
            if rows.last().is_none_or(|last| last.answer != answer) {
                rows.push(Row { start: *start, answer });
            }
        }
        Some(rows)
    }

    /// Follow a call on all ways that its arguments may lead. `None`: what happens cannot be told.
    fn walk(&self, call: Call, named: &mut impl FnMut(u32)) -> Option<Walk> {
        let mut walk = Walk::default();
        let mut next = (0, Register::Known(0));
        let looks = loop {
            match self.step(next, call, named)? {
                Step::Return(answer) => {
                    walk.answers.insert(answer);
                    return Some(walk);
                }
                Step::To(_, Register::Unknown) => break next.0,
                Step::To(at, register) => next = (at, register),
                Step::Either(..) => return None,
            }
        };
        walk.looks = Some(looks);
        let (mut seen, mut left) = (BTreeSet::new(), vec![next]);
        while let Some(next) = left.pop() {
            if !seen.insert(next) {
                continue;
            }
            walk.passed.insert(next.0);
            match self.step(next, call, named)? {
                Step::Return(answer) => {
                    walk.answers.insert(answer);
                }
                Step::To(at, register) => left.push((at, register)),
                Step::Either(yes, no) => {
                    left.extend([(yes, Register::Unknown), (no, Register::Unknown)]);
                }
            }
        }
        Some(walk)
    }

    fn step(
        &self,
        (at, register): (usize, Register),
        call: Call,
        named: &mut impl FnMut(u32),
    ) -> Option<Step> {
        let (code, yes, no, operand) = *self.0.get(at)?;
        let next = at + 1;
        let choose = |holds| Step::To(next + usize::from(if holds { yes } else { no }), register);
        Some(match (code, register) {
            (RETURN, _) => Step::Return(operand),
            (JUMP, _) => Step::To(next + usize::try_from(operand).ok()?, register),
            (LOAD, _) => Step::To(
                next,
                match operand {
                    NUMBER => Register::Known(call.number),
                    ARCHITECTURE => Register::Architecture(call.architecture),
                    _ => Register::Unknown,
                },
            ),
            (AND, Register::Known(value)) if KEPT_BITS.contains(&operand) => {
                Step::To(next, Register::Known(value & operand))
            }
            (AND, Register::Unknown) => Step::To(next, register),
            (EQUAL | ABOVE | AT_LEAST | SET, Register::Unknown) => {
                Step::Either(next + usize::from(yes), next + usize::from(no))
            }
            (EQUAL, Register::Architecture(value)) => {
                named(operand);
                choose(value == operand)
            }
            (EQUAL, Register::Known(value)) => choose(value == operand),
            (ABOVE, Register::Known(value)) => choose(value > operand),
            (AT_LEAST, Register::Known(value)) => choose(value >= operand),
            (SET, Register::Known(value)) if operand == X32_BIT => choose(value & operand != 0),
            _ => return None,
        })
    }
}

/// A program from its end to its beginning: jumps lead to what is there already. Places are counted from the end.
#[derive(Debug, Default)]
struct Draft {
    reversed: Vec<Instruction>,
    /// Where a return is that was written last.
    returns: BTreeMap<u32, usize>,
    /// Where an instruction of the old program is.
    moved: BTreeMap<usize, usize>,
}

impl Draft {
    /// They stand in the same order and not farther apart than before.
    fn keep(&mut self, program: &[Instruction], kept: &BTreeSet<usize>) -> Option<()> {
        if kept.is_empty() {
            return Some(());
        }
        let nowhere = self.push((RETURN, 0, 0, KILL));
        for at in kept.iter().rev() {
            let (code, yes, no, operand) = *program.get(*at)?;
            let moved = |offset: usize| *self.moved.get(&(at + 1 + offset)).unwrap_or(&nowhere);
            let instruction = match code {
                EQUAL | ABOVE | AT_LEAST | SET => {
                    let (yes, no) = (moved(yes.into()), moved(no.into()));
                    let offset = |to| u8::try_from(self.offset(to)).ok();
                    (code, offset(yes)?, offset(no)?, operand)
                }
                JUMP => {
                    let to = moved(usize::try_from(operand).ok()?);
                    (code, 0, 0, u32::try_from(self.offset(to)).ok()?)
                }
                RETURN => (code, 0, 0, operand),
                // What follows is passed as well, and stands behind it.
                _ if moved(0) + 1 == self.reversed.len() => (code, 0, 0, operand),
                _ => return None,
            };
            let place = self.push(instruction);
            self.moved.insert(*at, place);
        }
        Some(())
    }

    fn push(&mut self, instruction: Instruction) -> usize {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// From the instruction that comes next.
    fn offset(&self, to: usize) -> usize {
        self.reversed.len() - 1 - to
    }

    /// A search among rows, each time by half.
    fn search(&mut self, rows: &[Row]) -> usize {
        match rows {
            [] => self.answer(KILL),
            [one] => match one.answer {
                Ok(answer) => self.answer(answer),
                Err(looks) => self.moved.get(&looks).copied().unwrap_or_else(|| self.answer(KILL)),
            },
            _ => {
                let (lower, upper) = rows.split_at(rows.len() / 2);
                let yes = self.search(upper);
                let no = self.search(lower);
                self.push_choice(AT_LEAST, upper[0].start, yes, no)
            }
        }
    }

    fn answer(&mut self, answer: u32) -> usize {
        match self.returns.get(&answer) {
            Some(place) => *place,
            None => self.push_answer(answer),
        }
    }

    fn push_answer(&mut self, answer: u32) -> usize {
        let place = self.push((RETURN, 0, 0, answer));
        self.returns.insert(answer, place);
        place
    }

    fn push_choice(&mut self, code: u16, operand: u32, yes: usize, no: usize) -> usize {
        let (yes, no) = (self.near(yes), self.near(no));
        let offset = |to| u8::try_from(self.offset(to)).unwrap_or_default();
        self.push((code, offset(yes), offset(no), operand))
    }

    /// The same, where a conditional jump gets to.
    fn near(&mut self, to: usize) -> usize {
        if self.offset(to) <= FARTHEST {
            return to;
        }
        match self.reversed[to] {
            (RETURN, _, _, answer) => self.push_answer(answer),
            _ => self.push_jump(to),
        }
    }

    fn push_jump(&mut self, to: usize) -> usize {
        let offset = u32::try_from(self.offset(to)).unwrap_or(u32::MAX);
        self.push((JUMP, 0, 0, offset))
    }

    /// Before the search, which may begin elsewhere.
    fn load_number(&mut self, search: usize) -> usize {
        if search + 1 != self.reversed.len() {
            self.push_jump(search);
        }
        self.push((LOAD, 0, 0, NUMBER))
    }

    /// The program, and where in it the instructions of the old one are.
    fn finish(mut self, first: usize) -> (Vec<Instruction>, BTreeMap<usize, usize>) {
        if first + 1 != self.reversed.len() {
            self.push_jump(first);
        }
        self.push((LOAD, 0, 0, ARCHITECTURE));
        self.reversed.reverse();
        let last = self.reversed.len() - 1;
        (self.reversed, self.moved.into_iter().map(|(old, new)| (old, last - new)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const HERE: u32 = 0xc000_003e;
    const FIRST_ARGUMENT: u32 = 16;

    /// Calls 0 to 39 on one architecture, all of them allowed; call 40 with the argument 7.
    fn long() -> Vec<Instruction> {
        let mut program =
            vec![(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, HERE), (RETURN, 0, 0, KILL)];
        program.push((LOAD, 0, 0, NUMBER));
        program.extend((0..40).flat_map(|call| [(EQUAL, 0, 1, call), (RETURN, 0, 0, ALLOW)]));
        program.extend([
            (EQUAL, 0, 3, 40),
            (LOAD, 0, 0, FIRST_ARGUMENT),
            (EQUAL, 0, 1, 7),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, 0),
        ]);
        program
    }

    #[test]
    fn numbers_in_a_row_are_one_comparison() {
        let shrunk = shrink(long());
        let comparisons = shrunk.iter().filter(|(code, ..)| *code == AT_LEAST).count();
        assert_eq!(comparisons, 2, "three rows: {shrunk:?}");
        assert!(shrunk.contains(&(LOAD, 0, 0, FIRST_ARGUMENT)));
        assert!(shrunk.len() < 14, "{shrunk:?}");
    }

    #[test]
    fn what_cannot_be_told_stays_as_it_is() {
        for odd in [(0x87, 0, 0, 0), (AND, 0, 0, 0xff), (SET, 0, 0, 2), (0x28, 0, 0, 0)] {
            let mut program = long();
            program.insert(4, odd);
            assert_eq!(shrink(program.clone()), program, "{odd:?}");
        }
        let mut beyond = long();
        beyond.pop();
        assert_eq!(shrink(beyond.clone()), beyond, "it does not end");
        let short = long()[..3].to_vec();
        assert_eq!(shrink(short.clone()), short);
    }
}
