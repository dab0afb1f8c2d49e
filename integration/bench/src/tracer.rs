//! How many instructions and system calls a command takes, counted one by one: ptrace(2), PTRACE_SINGLESTEP.
//!
//! Hardware counters are not there in most virtual machines, and emulators such as valgrind know neither clone3(2) nor
//! the mount calls. A step here is some 20 us in a virtual machine, since each one leaves it, but it is the same program on
//! the same kernel, and every number is exact.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::measure::Job;

/// What a process is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Before `main`, which begins with poll(2)
    Start,
    /// Until it has a child
    Prepare,
    /// Until it asks how its child ended
    Accompany,
    /// Until its own end
    Release,
    /// Of a child: until it executes a program
    Child,
}

impl Phase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "until main",
            Self::Prepare => "until the clone",
            Self::Accompany => "until the child's end",
            Self::Release => "until its own end",
            Self::Child => "until its program",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Count {
    pub calls: u64,
    pub instructions: u64,
}

/// A process, from its birth until it executes a program of somebody else's.
#[derive(Debug, Clone)]
pub struct Process {
    phase: Phase,
    pub counts: BTreeMap<Phase, Count>,
    /// How often each address was executed.
    pub addresses: HashMap<u64, u64>,
    at: u64,
}

impl Process {
    fn new(phase: Phase) -> Self {
        Self { phase, counts: BTreeMap::new(), addresses: HashMap::new(), at: 0 }
    }

    fn count(&mut self) -> &mut Count {
        self.counts.entry(self.phase).or_default()
    }

    /// It stands before the instruction at `address`.
    fn step(&mut self, address: u64) {
        // A repeated string instruction stays where it is, and is one for a processor's counter.
        if self.at != address {
            self.count().instructions += 1;
            *self.addresses.entry(address).or_default() += 1;
        }
        self.at = address;
    }

    fn call(&mut self, number: u64) {
        self.phase = match (self.phase, number as i64) {
            (Phase::Start, libc::SYS_poll) => Phase::Prepare,
            (Phase::Accompany, libc::SYS_wait4 | libc::SYS_waitid) => Phase::Release,
            (phase, _) => phase,
        };
        self.count().calls += 1;
    }
}

/// `syscall`, in the order of bytes in memory (Intel's manual, volume 2).
const SYSCALL: i64 = 0x050f;
/// Of a child that was seized with its parent, before its first instruction.
const STOP: i32 = Event::PTRACE_EVENT_STOP as i32;

/// All processes of a command in the order of their birth.
#[derive(Debug)]
pub struct Tracer {
    first: Pid,
    processes: Vec<Process>,
    living: HashMap<Pid, usize>,
}

/// Runs it. Its children are followed until they execute a program.
///
/// # Errors
/// Of a call, or how the command failed.
pub fn count(job: &Job) -> io::Result<Vec<Process>> {
    let mut tracer = Tracer::begin(job)?;
    let status = tracer.run()?;
    if status.success() {
        return Ok(tracer.processes);
    }
    Err(io::Error::other(format!("{} {:?}: {status}", job.program.display(), job.arguments)))
}

impl Tracer {
    /// A shell that stops itself, so that nobody has to act between fork and exec.
    fn begin(job: &Job) -> io::Result<Self> {
        let child = Command::new("/bin/sh")
            .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
            .arg(&job.program)
            .args(&job.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let first = Pid::from_raw(child.id().cast_signed());
        waitpid(first, Some(WaitPidFlag::WUNTRACED))?;
        let options = Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(first, options)?;
        kill(first, Signal::SIGCONT)?;
        Ok(Self { first, processes: Vec::new(), living: HashMap::new() })
    }

    fn run(&mut self) -> io::Result<ExitStatus> {
        use std::os::unix::process::ExitStatusExt;
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(pid, _, event) => self.event(pid, event)?,
                WaitStatus::Stopped(pid, Signal::SIGTRAP) => self.stepped(pid)?,
                WaitStatus::Stopped(pid, signal) => self.go_on(pid, Some(signal))?,
                WaitStatus::Exited(pid, code) if pid == self.first => {
                    return Ok(ExitStatus::from_raw(code << 8));
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.first => {
                    return Ok(ExitStatus::from_raw(signal as i32));
                }
                _ => {}
            }
        }
    }

    fn event(&mut self, pid: Pid, event: i32) -> io::Result<()> {
        let known = self.living.get(&pid).copied();
        if event == Event::PTRACE_EVENT_EXEC as i32 {
            match known {
                // The command, now that the shell has become it.
                None => self.add(pid, Phase::Start),
                Some(0) => {}
                Some(_) => {
                    self.living.remove(&pid);
                    return Ok(ptrace::detach(pid, None)?);
                }
            }
        } else if event == STOP && known.is_none() && pid != self.first {
            self.add(pid, Phase::Child);
        } else if event != STOP
            && let Some(parent) = known.map(|index| &mut self.processes[index])
            && parent.phase == Phase::Prepare
        {
            parent.phase = Phase::Accompany;
        }
        self.go_on(pid, None)
    }

    fn add(&mut self, pid: Pid, phase: Phase) {
        self.living.insert(pid, self.processes.len());
        self.processes.push(Process::new(phase));
    }

    fn stepped(&mut self, pid: Pid) -> io::Result<()> {
        if let Some(process) = self.living.get(&pid).map(|index| &mut self.processes[*index]) {
            let registers = ptrace::getregs(pid)?;
            process.step(registers.rip);
            let code = ptrace::read(pid, registers.rip as ptrace::AddressType)?;
            if code & 0xffff == SYSCALL {
                process.call(registers.rax);
            }
        }
        self.go_on(pid, None)
    }

    fn go_on(&self, pid: Pid, signal: Option<Signal>) -> io::Result<()> {
        let answer = match self.living.contains_key(&pid) {
            true => ptrace::step(pid, signal),
            false => ptrace::cont(pid, signal),
        };
        match answer {
            // Killed meanwhile, which the next wait tells.
            Err(Errno::ESRCH) => Ok(()),
            answer => Ok(answer?),
        }
    }
}
