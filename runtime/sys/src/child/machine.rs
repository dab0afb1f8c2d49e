use std::ffi::CStr;

use super::{
    At, Chain, Event, IN_PROCFS, Make, MountCalls, Op, Report, SLOTS, Script, Slot, WORDS,
};
use super::{attributes, mounts, notify, terminal};
use crate::file::{OpenHow, resolve};
use crate::mount::{
    AT_EMPTY_PATH, AT_RECURSIVE, MOVE_BETWEEN_DESCRIPTORS, MountAttr, OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE, raw_set_attributes,
};
use crate::raw::{self, Answer, at, call, plain, reg};
use crate::weaken::{Defence, left_out};

const FOLDER_MODE: usize = 0o755;
const SIGKILL_STATUS: i32 = 137;
const LAST_SIGNAL: i32 = 64;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Descriptors of the launch itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipes {
    pub(crate) report: i32,
    pub(crate) go: i32,
}

/// Failure of a part of an operation.
pub(crate) struct Fault {
    pub(crate) detail: u32,
    pub(crate) errno: i32,
    /// A file-system context whose message log may say more.
    pub(crate) log: Option<i32>,
}

impl From<i32> for Fault {
    fn from(errno: i32) -> Self {
        Self { detail: 0, errno, log: None }
    }
}

struct Machine {
    slots: [i32; SLOTS],
    pipes: Pipes,
    /// Answer of `FindProgram`.
    program: usize,
    /// An early try of `Chdir` got there.
    in_folder: bool,
    /// Answer of `OwnPid`, in digits.
    pid: notify::Digits,
    /// The last `Resolve` made what it was asked for.
    made: bool,
    shelf: mounts::Shelf,
}

/// Run the script; never returns.
pub(crate) fn run(script: &Script, pipes: Pipes) -> ! {
    let mut machine = Machine {
        slots: [-1; SLOTS],
        pipes,
        program: 0,
        in_folder: false,
        made: false,
        shelf: mounts::Shelf::new(),
        pid: notify::Digits::default(),
    };
    let mut index: u32 = 0;
    let mut said = false;
    for op in &script.ops {
        if cfg!(feature = "fault-points") && script.die_before == Some(index as usize) {
            raw::exit(SIGKILL_STATUS);
        }
        // The filter may refuse the call that says so.
        if !said && matches!(op, Op::Seccomp { .. } | Op::SeccompNotify(_) | Op::Execute { .. }) {
            machine.send(&Report::new(Event::Executing, index));
            said = true;
        }
        if let Err(fault) = machine.step(op, index) {
            let refused = matches!(op, Op::Execute { .. });
            machine.fail(if refused { Event::Refused } else { Event::Failed }, index, &fault);
        }
        index = index.wrapping_add(1);
    }
    raw::exit(0)
}

impl Machine {
    fn send(&self, report: &Report) {
        let bytes = report.encode();
        // SAFETY: the buffer lives across the call and has the size given.
        let _ = unsafe {
            call(
                libc::SYS_write,
                [reg(self.pipes.report), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0],
            )
        };
    }

    fn fail(&self, event: Event, op: u32, fault: &Fault) -> ! {
        let mut report = Report::new(event, op);
        report.detail = fault.detail;
        report.errno = fault.errno;
        if let Some(log) = fault.log {
            let buffer = report.words.as_mut_ptr() as usize;
            // SAFETY: the buffer has WORDS bytes, of which the last stays 0.
            let _ = unsafe { call(libc::SYS_read, [reg(log), buffer, WORDS - 1, 0, 0, 0]) };
        }
        self.send(&report);
        raw::exit(1)
    }

    fn fd(&self, at: At) -> i32 {
        match at {
            At::Fd(fd) => fd,
            At::Slot(slot) => self.slots.get(slot.0 as usize).copied().unwrap_or(-1),
        }
    }

    fn put(&mut self, slot: Slot, fd: i32) {
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            if *place >= 0 {
                let _ = raw::close(*place);
            }
            *place = fd;
        }
    }

    fn step(&mut self, op: &Op, index: u32) -> Result<(), Fault> {
        match op {
            Op::NewMount { fstype, source, options, attributes, mode_of, into } => {
                let folder = mode_of.filter(|_| !self.made).map(|slot| self.fd(At::Slot(slot)));
                let mount = mounts::new_mount(fstype, source, options, *attributes, folder)?;
                self.put(*into, mount);
            }
            Op::OpenTree { path, clone, recursive, into } => {
                // Without a copy it is the same as O_PATH, which kernels without open_tree have, too.
                let tree = if *clone {
                    open_tree(libc::AT_FDCWD, path, true, *recursive)?
                } else {
                    open_path(libc::AT_FDCWD, path)?
                };
                self.put(*into, tree);
            }
            Op::Keep { fd, into } => {
                let copy = duplicate(*fd)?;
                self.put(*into, copy);
            }
            Op::RenewMount { from, folder, into } => {
                let from = self.fd(*from);
                let fresh = match self.shelf.renew(from, *folder) {
                    Ok(fresh) => fresh,
                    Err(_) => duplicate(from)?,
                };
                self.put(*into, fresh);
            }
            Op::Resolve { root, chain, make, follow, into } => {
                let (found, made) = resolve_place(self.fd(*root), chain, *make, *follow)?;
                self.made = made;
                self.put(*into, found);
            }
            Op::ResolveWithoutLinks { root, chain, into } => {
                let found = open_ordinary(self.fd(*root), &chain.full)?;
                self.put(*into, found);
            }
            Op::Mask { root, chain, empty, calls } => self.mask(*root, chain, *empty, *calls)?,
            Op::AwaitGo => self.await_go()?,
            Op::Pause => {
                self.send(&Report::new(Event::Ready, index));
                self.await_go()?;
            }
            Op::AwaitStart { start, report } => self.await_start(*start, *report, index)?,
            // The try that counts comes later, and fails again under its own name.
            Op::Chdir { path, lenient: true } => self.in_folder = enter_folder(path).is_ok(),
            Op::Chdir { path, lenient: false } => match enter_folder(path) {
                Err(libc::EACCES) if self.in_folder => check_folder()?,
                answer => answer.map_err(Fault::from).and_then(|()| check_folder())?,
            },
            Op::FindProgram { candidates } => self.program = find_program(candidates)?,
            Op::Execute { candidates, arguments, environment } => {
                let program = candidates.get(self.program).ok_or(libc::ENOENT)?;
                let arguments = [at(program), arguments.pointer(), environment.pointer(), 0, 0, 0];
                // SAFETY: three null-terminated arrays prepared by `Strings`, alive in this address space.
                unsafe { call(libc::SYS_execve, arguments) }?;
            }
            Op::CloseFrom { from, keep } => self.close_from(*from, keep)?,
            Op::Terminal(wanted) => terminal::open(wanted, self.fd(wanted.root))?,
            Op::OwnPid { proc } => self.pid = notify::own_pid(*proc)?,
            Op::SeccompNotify(notify) => {
                notify::install(
                    notify,
                    &self.pid,
                    notify::Way { report: self.pipes.report, op: index },
                )?;
            }
            _ => self.step_on_descriptors(op)?,
        }
        Ok(())
    }

    /// Operations that use descriptors but keep nothing.
    fn step_on_descriptors(&self, op: &Op) -> Result<(), Fault> {
        match op {
            Op::MountOn { target, mode_of, .. } => {
                let target = self.fd(*target);
                let folder = if *mode_of && !self.made { Some(target) } else { None };
                mount_on(op, target, folder)?;
            }
            Op::RemountOn { target, set, clear } => remount(self.fd(*target), *set, *clear)?,
            Op::RefuseProcfs { at } => {
                if is_procfs(self.fd(*at))? {
                    return Err(Fault { detail: IN_PROCFS, errno: libc::EPERM, log: None });
                }
            }
            Op::SetAttributes { mount, attributes, recursive } => {
                raw_set_attributes(self.fd(*mount), attributes, *recursive)?;
            }
            Op::Reconfigure { mount, options } => {
                mounts::reconfigure(self.fd(*mount), options)?;
            }
            Op::MoveMount { from, to } => {
                move_mount(self.fd(*from), self.fd(*to))?;
            }
            Op::MoveMountTo { from, path } => {
                let target = open_path(libc::AT_FDCWD, path)?;
                let moved = move_mount(self.fd(*from), target);
                let _ = raw::close(target);
                moved?;
            }
            Op::Label { folder, label } => set_label(self.fd(*folder), label)?,
            Op::MakeNode { root, folder, name, mode, device, uid, gid } => {
                let folder = resolve_chain(self.fd(*root), folder, Make::Folder)?;
                let made = make_node(folder, name, *mode, *device, *uid, *gid);
                let _ = raw::close(folder);
                made?;
            }
            Op::MakeSymlink { root, folder, name, target, exact } => {
                let folder = resolve_chain(self.fd(*root), folder, Make::Folder)?;
                let made = make_symlink(folder, name, target, *exact);
                let _ = raw::close(folder);
                made?;
            }
            Op::ReadonlyPath { root, chain, calls } => {
                readonly_path(self.fd(*root), chain, *calls)?;
            }
            Op::PivotRoot { root } => pivot_root(self.fd(*root))?,
            Op::MoveRoot { root, calls } => move_root(self.fd(*root), *calls)?,
            Op::Chroot { root } => {
                plain(libc::SYS_fchdir, [reg(self.fd(*root)), 0, 0, 0, 0, 0])?;
                chroot_here()?;
            }
            _ => simple_step(op)?,
        }
        Ok(())
    }

    fn mask(
        &mut self,
        root: At,
        chain: &Chain,
        empty: Slot,
        calls: MountCalls,
    ) -> Result<(), Fault> {
        let Some(target) = existing(self.fd(root), chain)? else { return Ok(()) };
        let masked = match (is_folder(target)?, calls) {
            (false, MountCalls::New) => {
                let null = self.null_device(root)?;
                let moved = move_mount(null, target);
                let _ = raw::close(null);
                moved
            }
            (true, MountCalls::New) => self.mask_folder(target, empty),
            (false, MountCalls::Classic) => {
                mount(Some(c"/dev/null"), FdPath::new(target).as_c_str(), None, libc::MS_BIND, None)
            }
            (true, MountCalls::Classic) => mount(
                Some(c"none"),
                FdPath::new(target).as_c_str(),
                Some(c"tmpfs"),
                libc::MS_RDONLY,
                None,
            ),
        };
        let _ = raw::close(target);
        masked?;
        Ok(())
    }

    /// The host's, while it is in sight: a container may have put anything in the place of its own (CVE-2025-31133).
    fn null_device(&self, root: At) -> Answer {
        if left_out(Defence::MaskSource) {
            let own = open_in_root(self.fd(root), c"dev/null", 0)?;
            return open_tree(own, c"", true, false);
        }
        open_tree(libc::AT_FDCWD, c"/dev/null", true, false)
    }

    /// One empty tmpfs serves all masked folders: the first mask attaches it, the others show copies.
    fn mask_folder(&mut self, target: i32, empty: Slot) -> Answer {
        let first = self.fd(At::Slot(empty));
        if first >= 0 {
            let copy = open_tree(first, c"", true, false)?;
            let moved = move_mount(copy, target);
            let _ = raw::close(copy);
            return moved;
        }
        let fresh = mounts::empty_tmpfs()?;
        let moved = move_mount(fresh, target)?;
        self.put(empty, fresh);
        Ok(moved)
    }

    fn await_go(&self) -> Result<(), Fault> {
        wait_for_byte(self.pipes.go)
    }

    fn await_start(&mut self, start: i32, report: i32, index: u32) -> Result<(), Fault> {
        self.send(&Report::new(Event::Created, index));
        let _ = raw::close(self.pipes.report);
        let _ = raw::close(self.pipes.go);
        self.pipes = Pipes { report, go: -1 };
        wait_for_byte(start)?;
        let _ = raw::close(start);
        Ok(())
    }

    /// Close everything from `from` on but the pipes (and fifos) that the launch still needs.
    fn close_from(&mut self, from: i32, keep: &[i32]) -> Result<(), Fault> {
        self.slots = [-1; SLOTS];
        if left_out(Defence::Descriptors) {
            return Ok(());
        }
        let pipes = [self.pipes.report, self.pipes.go];
        let mut first = from;
        loop {
            let kept = keep.iter().chain(&pipes).copied().filter(|fd| *fd >= first).min();
            let Some(kept) = kept else { break };
            close_range(first, kept.wrapping_sub(1))?;
            first = kept.wrapping_add(1);
        }
        close_range(first, i32::MAX)?;
        Ok(())
    }
}

pub(super) const RDONLY: u64 = 1;

/// The kernel's answer where only success matters.
fn done(answer: Answer) -> Result<(), i32> {
    answer.map(|_| ())
}

/// For calls whose refusal is no failure, as the place says.
fn ignore(_answer: Answer) {}

fn close_range(first: i32, last: i32) -> Answer {
    if first > last {
        return Ok(0);
    }
    plain(libc::SYS_close_range, [reg(first), reg(last), 0, 0, 0, 0])
}

/// Operations that need nothing but their own arguments.
fn simple_step(op: &Op) -> Result<(), Fault> {
    match op {
        Op::Close(fd) => ignore(raw::close(*fd)),
        Op::ResetSignals => reset_signals(),
        // EPERM: we lead a process group already, which is as good.
        Op::NewSession => ignore(plain(libc::SYS_setsid, [0; 6])),
        Op::JoinKeyring { name } => join_keyring(name)?,
        Op::Setns { fd, flag } => done(plain(libc::SYS_setns, [reg(*fd), reg(*flag), 0, 0, 0, 0]))?,
        Op::SetnsProc { proc, path, flag } => setns_proc(*proc, path, *flag)?,
        Op::Unshare { flags } => done(plain(libc::SYS_unshare, [*flags as usize, 0, 0, 0, 0, 0]))?,
        Op::LoopbackUp => loopback_up()?,
        Op::Umask { mask } => done(plain(libc::SYS_umask, [*mask as usize, 0, 0, 0, 0, 0]))?,
        Op::WriteProc { proc, path, data } => write_proc(*proc, path, data)?,
        Op::Write { fd, data } => write_last(*fd, data)?,
        Op::Attribute(attribute) => attributes::set(attribute, 0)?,
        // SAFETY: the name lives across the call and has the length given.
        Op::Hostname { name } => done(unsafe {
            call(libc::SYS_sethostname, [name.as_ptr() as usize, name.len(), 0, 0, 0, 0])
        })?,
        // SAFETY: as above.
        Op::Domainname { name } => done(unsafe {
            call(libc::SYS_setdomainname, [name.as_ptr() as usize, name.len(), 0, 0, 0, 0])
        })?,
        Op::MountPath { source, target, fstype, flags, data } => {
            mount(source.as_deref(), target, fstype.as_deref(), *flags, data.as_deref())?;
        }
        Op::MakeFolderPath { path, mode } => make_folder(libc::AT_FDCWD, path, *mode as usize)?,
        Op::Rlimit { resource, soft, hard } => set_rlimit(*resource, *soft, *hard)?,
        Op::Prctl { option, arguments: a } => {
            done(plain(libc::SYS_prctl, [reg(*option), a[0], a[1], a[2], a[3], 0]))?;
        }
        Op::DropBounding { capabilities } => drop_bounding(*capabilities)?,
        Op::Ids { uid, gid, groups } => set_ids(*uid, *gid, groups.as_deref())?,
        Op::Duplicate { from, to } => {
            done(plain(libc::SYS_dup3, [reg(*from), reg(*to), 0, 0, 0, 0]))?;
        }
        Op::OwnStandard { uid } => own_standard(*uid),
        Op::SetCapabilities { effective, permitted, inheritable } => {
            set_capabilities(*effective, *permitted, *inheritable)?;
        }
        Op::Ambient { raise, last } => ambient(*raise, *last)?,
        Op::Seccomp { program, flags } => done(seccomp(program, *flags))?,
        // Every other operation is carried out before this point: see `Machine::step`.
        _ => return Err(libc::ENOSYS.into()),
    }
    Ok(())
}

fn setns_proc(proc: i32, path: &CStr, flag: i32) -> Result<(), Fault> {
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { call(libc::SYS_openat, [reg(proc), at(path), flags, 0, 0, 0]) }?;
    let joined = plain(libc::SYS_setns, [reg(fd), reg(flag), 0, 0, 0, 0]);
    let _ = raw::close(fd);
    joined.map_err(|errno| Fault { detail: 1, errno, log: None })?;
    Ok(())
}

/// `struct kernel_sigaction` with SIG_DFL is all zero.
fn reset_signals() {
    let default = [0_u64; 4];
    let pointer = default.as_ptr() as usize;
    let mut signal = 1;
    while signal <= LAST_SIGNAL {
        // SAFETY: 32 zero bytes are a valid sigaction of the kernel; SIGKILL and SIGSTOP are refused, which is fine.
        let _ = unsafe { call(libc::SYS_rt_sigaction, [reg(signal), pointer, 0, 8, 0, 0]) };
        signal = signal.wrapping_add(1);
    }
    // SAFETY: eight zero bytes are the empty signal set.
    let _ = unsafe {
        call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, pointer, 0, 8, 0, 0])
    };
}

fn join_keyring(name: &CStr) -> Result<(), Fault> {
    const JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { call(libc::SYS_keyctl, [JOIN_SESSION_KEYRING, at(name), 0, 0, 0, 0]) } {
        // A kernel without keyrings has none to leak.
        Ok(_) | Err(libc::ENOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// `struct ifreq` with the flags of its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

fn loopback_up() -> Result<(), Fault> {
    let mut request = InterfaceRequest { name: [0; 16], flags: 0, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().zip(b"lo") {
        *to = *from;
    }
    request.flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize;
    let socket = plain(libc::SYS_socket, [libc::AF_INET as usize, kind, 0, 0, 0, 0])?;
    let pointer = std::ptr::from_ref(&request) as usize;
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq, which lives across the call.
    let set = unsafe {
        call(libc::SYS_ioctl, [reg(socket), libc::SIOCSIFFLAGS as usize, pointer, 0, 0, 0])
    };
    let _ = raw::close(socket);
    done(set)?;
    Ok(())
}

/// No mount that was laid over the procfs is crossed, and no link but its own `self` and `thread-self` is followed
/// (CVE-2025-52881: a label or setting that went to another file).
fn write_proc(proc: i32, path: &CStr, data: &[u8]) -> Result<(), Fault> {
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    let how = OpenHow {
        flags: flags as u64,
        mode: 0,
        resolve: resolve::BENEATH | resolve::NO_XDEV | resolve::NO_MAGICLINKS,
    };
    let fd = if left_out(Defence::ProcfsWrites) {
        open_file(open_path(libc::AT_FDCWD, c"/proc")?, path, flags)?
    } else {
        raw::open_how(proc, path, &how)?
    };
    write_last(fd, data).map_err(|fault| Fault { detail: 1, ..fault })
}

fn write_last(fd: i32, data: &[u8]) -> Result<(), Fault> {
    // SAFETY: the data lives across the call and has the length given.
    let written =
        unsafe { call(libc::SYS_write, [reg(fd), data.as_ptr() as usize, data.len(), 0, 0, 0]) };
    let _ = raw::close(fd);
    written?;
    Ok(())
}

fn open_file(dir: i32, path: &CStr, flags: i32) -> Answer {
    // SAFETY: the path is a C string that outlives the call.
    unsafe { call(libc::SYS_openat, [reg(dir), at(path), flags as usize, 0, 0, 0]) }
}

fn is_procfs(fd: i32) -> Result<bool, i32> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    Ok(statfs(fd)?[0] == PROC_SUPER_MAGIC)
}

/// struct statfs of the 64-bit kernel ABI is fifteen words, of which f_type is the first and f_flags the eleventh.
fn statfs(fd: i32) -> Result<[u64; 15], i32> {
    let mut statfs = [0_u64; 15];
    // SAFETY: the buffer is a whole struct statfs.
    unsafe { call(libc::SYS_fstatfs, [reg(fd), statfs.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    Ok(statfs)
}

/// By itself, as the others with a buffer of a page: the stack of all operations would be that much larger, and a page
/// that is touched first takes longer than most calls.
#[inline(never)]
fn mount_on(op: &Op, target: i32, folder: Option<i32>) -> Result<(), Fault> {
    let Op::MountOn { source, fstype, flags, data, .. } = op else { return Ok(()) };
    let text = mounts::Data::new(data.as_deref().unwrap_or(c""), folder)?;
    mount(
        source.as_deref(),
        FdPath::new(target).as_c_str(),
        fstype.as_deref(),
        *flags,
        data.as_ref().map(|_| text.as_c_str()),
    )?;
    Ok(())
}

pub(super) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Answer {
    let arguments = [
        source.map_or(0, at),
        at(target),
        fstype.map_or(0, at),
        flags as usize,
        data.map_or(0, at),
        0,
    ];
    // SAFETY: null or C strings that outlive the call.
    unsafe { call(libc::SYS_mount, arguments) }
}

/// Flags that mount(2) would take away if they were not given again, by their number in statfs(2), where they are the same.
const KEPT_FLAGS: u64 = libc::MS_RDONLY
    | libc::MS_NOSUID
    | libc::MS_NODEV
    | libc::MS_NOEXEC
    | libc::MS_NOATIME
    | libc::MS_NODIRATIME;

fn remount(fd: i32, set: u64, clear: u64) -> Result<(), Fault> {
    let has = statfs(fd)?[10] & KEPT_FLAGS;
    let flags = (has & !clear) | set | libc::MS_BIND | libc::MS_REMOUNT;
    mount(None, FdPath::new(fd).as_c_str(), None, flags, None)?;
    Ok(())
}

/// `/proc/self/fd/N` without an allocation.
pub(super) struct FdPath([u8; 32]);

impl FdPath {
    pub(super) fn new(fd: i32) -> Self {
        let mut path = [0; 32];
        let prefix = b"/proc/self/fd/";
        let mut digits = [0; 10];
        let mut count: usize = 0;
        let mut rest = fd.unsigned_abs();
        for digit in &mut digits {
            *digit = b'0'.wrapping_add((rest % 10) as u8);
            rest /= 10;
            count = count.wrapping_add(1);
            if rest == 0 {
                break;
            }
        }
        let text = prefix.iter().chain(digits.iter().take(count).rev());
        for (to, from) in path.iter_mut().zip(text) {
            *to = *from;
        }
        Self(path)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

pub(super) fn open_tree(dir: i32, path: &CStr, clone: bool, recursive: bool) -> Answer {
    let clone_flag = if clone { OPEN_TREE_CLONE } else { 0 };
    let recursive_flag = if recursive { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | clone_flag | recursive_flag;
    // SAFETY: the path is a C string that outlives the call.
    unsafe { call(libc::SYS_open_tree, [reg(dir), at(path), flags as usize, 0, 0, 0]) }
}

fn duplicate(fd: i32) -> Answer {
    plain(libc::SYS_fcntl, [reg(fd), libc::F_DUPFD_CLOEXEC as usize, 0, 0, 0, 0])
}

pub(super) fn move_mount(from: i32, to: i32) -> Answer {
    // SAFETY: two empty C strings.
    unsafe {
        call(
            libc::SYS_move_mount,
            [reg(from), at(c""), reg(to), at(c""), MOVE_BETWEEN_DESCRIPTORS as usize, 0],
        )
    }
}

pub(super) fn open_path(dir: i32, path: &CStr) -> Answer {
    let flags = (libc::O_PATH | libc::O_CLOEXEC) as usize;
    // SAFETY: the path is a C string that outlives the call.
    unsafe { call(libc::SYS_openat, [reg(dir), at(path), flags, 0, 0, 0]) }
}

pub(super) fn open_in_root(root: i32, path: &CStr, flags: i32) -> Answer {
    let how = OpenHow {
        flags: (flags | libc::O_PATH | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: if left_out(Defence::ResolveInRoot) {
            0
        } else {
            resolve::IN_ROOT | resolve::NO_MAGICLINKS
        },
    };
    // openat2(2): a rename elsewhere may make a resolution in a root give up; it is to be repeated.
    let mut tries = 0_u32;
    loop {
        match raw::open_how(root, path, &how) {
            Err(libc::EAGAIN) if tries < 64 => tries = tries.wrapping_add(1),
            answer => return answer,
        }
    }
}

/// ELOOP where a part of the path is a symlink, ENOTDIR where it names no folder.
fn open_ordinary(root: i32, path: &CStr) -> Answer {
    let how = OpenHow {
        flags: (libc::O_DIRECTORY | libc::O_PATH | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: resolve::BENEATH | resolve::NO_SYMLINKS,
    };
    let mut tries = 0_u32;
    loop {
        match raw::open_how(root, path, &how) {
            Err(libc::EAGAIN) if tries < 64 => tries = tries.wrapping_add(1),
            answer => return answer,
        }
    }
}

/// `None` where nothing is at the path: there is nothing to hide or protect then.
fn existing(root: i32, chain: &Chain) -> Result<Option<i32>, Fault> {
    match open_in_root(root, &chain.full, 0) {
        Ok(fd) => Ok(Some(fd)),
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn resolve_chain(root: i32, chain: &Chain, make: Make) -> Result<i32, Fault> {
    Ok(resolve_place(root, chain, make, true)?.0)
}

/// What is at the place, and whether it was made.
fn resolve_place(root: i32, chain: &Chain, make: Make, follow: bool) -> Result<(i32, bool), Fault> {
    let flags = if follow { 0 } else { libc::O_NOFOLLOW };
    match open_in_root(root, &chain.full, flags) {
        Err(libc::ENOENT) if make != Make::Nothing => {}
        Ok(found) if !follow && make == Make::Folder && !is_folder(found)? => {
            return Err(libc::ENOTDIR.into());
        }
        answer => return Ok((answer?, false)),
    }
    make_parts(root, chain, make == Make::File)?;
    Ok((open_in_root(root, &chain.full, flags)?, true))
}

/// Make what is missing of a path. Mostly only its end is: so the first folder that exists is looked for from there.
fn make_parts(root: i32, chain: &Chain, file: bool) -> Result<(), Fault> {
    let mut index = chain.parts.len();
    let mut found = Err(libc::ENOENT);
    for part in chain.parts.iter().rev() {
        index = index.wrapping_sub(1);
        found = open_in_root(root, &part.folder, libc::O_DIRECTORY);
        if found.is_ok() {
            break;
        }
    }
    for part in chain.parts.iter().skip(index) {
        let last = index.wrapping_add(1) == chain.parts.len();
        let made = found.and_then(|folder| make_part(folder, &part.name, last && file));
        made.map_err(|errno| Fault { detail: index as u32, errno, log: None })?;
        index = index.wrapping_add(1);
        if let Some(next) = chain.parts.get(index) {
            found = open_in_root(root, &next.folder, libc::O_DIRECTORY);
        }
    }
    Ok(())
}

/// In a folder that is let go.
fn make_part(folder: i32, name: &CStr, file: bool) -> Result<(), i32> {
    let made = if file { make_file(folder, name) } else { make_folder(folder, name, FOLDER_MODE) };
    let _ = raw::close(folder);
    made
}

pub(super) fn make_folder(folder: i32, name: &CStr, mode: usize) -> Result<(), i32> {
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { call(libc::SYS_mkdirat, [reg(folder), at(name), mode, 0, 0, 0]) } {
        Ok(_) | Err(libc::EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn make_file(folder: i32, name: &CStr) -> Result<(), i32> {
    const FILE_MODE: usize = 0o644;
    let flags = (libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY | libc::O_CLOEXEC)
        as usize;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { call(libc::SYS_openat, [reg(folder), at(name), flags, FILE_MODE, 0, 0]) } {
        Ok(fd) => {
            let _ = raw::close(fd);
            Ok(())
        }
        Err(libc::EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn stat(folder: i32, name: &CStr, flags: u32) -> Result<libc::stat, i32> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let pointer = stat.as_mut_ptr() as usize;
    // SAFETY: a C string and a whole struct stat, alive across the call.
    unsafe { call(libc::SYS_newfstatat, [reg(folder), at(name), pointer, flags as usize, 0, 0]) }?;
    // SAFETY: zeroed before and filled by the kernel: plain integers.
    Ok(unsafe { stat.assume_init() })
}

fn is_folder(fd: i32) -> Result<bool, i32> {
    Ok(stat(fd, c"", AT_EMPTY_PATH)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// A node that exists with the same type and number is kept, as images bring their own `/dev`.
fn make_node(
    folder: i32,
    name: &CStr,
    mode: u32,
    device: u64,
    uid: u32,
    gid: u32,
) -> Result<(), Fault> {
    const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW as u32;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe {
        call(libc::SYS_mknodat, [reg(folder), at(name), mode as usize, device as usize, 0, 0])
    } {
        // The mask is 0, and the runtime is root: a new node has its mode already, and mostly its owner.
        Ok(_) if uid == 0 && gid == 0 => return Ok(()),
        Ok(_) => {}
        Err(libc::EEXIST) => {
            let found = stat(folder, name, NOFOLLOW)?;
            if found.st_mode & libc::S_IFMT != mode & libc::S_IFMT || found.st_rdev != device {
                return Err(libc::EEXIST.into());
            }
        }
        Err(e) => return Err(e.into()),
    }
    // An existing node has its own mode and owner. fchownat first: it clears set-id bits.
    // SAFETY: as above.
    unsafe {
        call(
            libc::SYS_fchownat,
            [reg(folder), at(name), uid as usize, gid as usize, NOFOLLOW as usize, 0],
        )
    }?;
    // SAFETY: as above; the node is ours or was just compared, and is no symlink.
    unsafe {
        call(libc::SYS_fchmodat, [reg(folder), at(name), (mode & 0o7777) as usize, 0, 0, 0])
    }?;
    Ok(())
}

/// The descriptor only stands for a place: fsetxattr(2) needs the folder open.
fn set_label(place: i32, label: &CStr) -> Result<(), Fault> {
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    // SAFETY: a C string.
    let folder = unsafe { call(libc::SYS_openat, [reg(place), at(c"."), flags, 0, 0, 0]) }?;
    let length = label.count_bytes();
    let arguments = [reg(folder), at(c"security.selinux"), at(label), length, 0, 0];
    // SAFETY: two C strings that outlive the call, the second of the length given.
    let set = unsafe { call(libc::SYS_fsetxattr, arguments) };
    let _ = raw::close(folder);
    done(set)?;
    Ok(())
}

fn make_symlink(folder: i32, name: &CStr, target: &CStr, exact: bool) -> Result<(), i32> {
    // SAFETY: two C strings that outlive the call.
    match unsafe { call(libc::SYS_symlinkat, [at(target), reg(folder), at(name), 0, 0, 0]) } {
        Err(libc::EEXIST) if exact && !mounts::leads_to(folder, name, target) => Err(libc::EEXIST),
        Ok(_) | Err(libc::EEXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

fn readonly_path(root: i32, chain: &Chain, calls: MountCalls) -> Result<(), Fault> {
    let Some(target) = existing(root, chain)? else { return Ok(()) };
    match calls {
        MountCalls::New => {
            let tree = open_tree(target, c"", true, true)?;
            raw_set_attributes(tree, &MountAttr { set: RDONLY, ..MountAttr::default() }, true)?;
            move_mount(tree, target)?;
            let _ = raw::close(tree);
        }
        MountCalls::Classic => {
            let path = FdPath::new(target);
            mount(
                Some(path.as_c_str()),
                path.as_c_str(),
                None,
                libc::MS_BIND | libc::MS_REC,
                None,
            )?;
            // The old descriptor stands for what is below the new mount.
            let upper = open_in_root(root, &chain.full, 0)?;
            remount(upper, libc::MS_RDONLY, 0)?;
            let _ = raw::close(upper);
        }
    }
    let _ = raw::close(target);
    Ok(())
}

/// pivot_root(".", ".") stacks the old root on the new one, which is then unmounted (pivot_root(2), NOTES).
fn pivot_root(root: i32) -> Result<(), Fault> {
    let stage = |detail| move |errno| Fault { detail, errno, log: None };
    plain(libc::SYS_fchdir, [reg(root), 0, 0, 0, 0, 0])?;
    // SAFETY: C strings.
    unsafe { call(libc::SYS_pivot_root, [at(c"."), at(c"."), 0, 0, 0, 0]) }.map_err(stage(1))?;
    // SAFETY: a C string.
    unsafe { call(libc::SYS_umount2, [at(c"."), libc::MNT_DETACH as usize, 0, 0, 0, 0]) }
        .map_err(stage(2))?;
    // SAFETY: a C string.
    unsafe { call(libc::SYS_chdir, [at(c"/"), 0, 0, 0, 0, 0]) }.map_err(stage(3))?;
    Ok(())
}

/// For roots that cannot be pivoted (initramfs): the mount is moved over `/`.
fn move_root(root: i32, calls: MountCalls) -> Result<(), Fault> {
    plain(libc::SYS_fchdir, [reg(root), 0, 0, 0, 0, 0])?;
    match calls {
        MountCalls::New => {
            let slash = open_path(libc::AT_FDCWD, c"/")?;
            move_mount(root, slash)?;
            let _ = raw::close(slash);
        }
        MountCalls::Classic => done(mount(Some(c"."), c"/", None, libc::MS_MOVE, None))?,
    }
    chroot_here()
}

fn chroot_here() -> Result<(), Fault> {
    // SAFETY: a C string.
    unsafe { call(libc::SYS_chroot, [at(c"."), 0, 0, 0, 0, 0]) }?;
    // SAFETY: a C string.
    unsafe { call(libc::SYS_chdir, [at(c"/"), 0, 0, 0, 0, 0]) }?;
    Ok(())
}

fn enter_folder(path: &CStr) -> Result<(), i32> {
    // SAFETY: the path is a C string that outlives the call.
    done(unsafe { call(libc::SYS_chdir, [at(path), 0, 0, 0, 0, 0]) })
}

/// A path through a leaked descriptor of the host would leave us outside our root, where getcwd(2)
/// answers "(unreachable)..." (CVE-2024-21626).
#[inline(never)]
fn check_folder() -> Result<(), Fault> {
    if left_out(Defence::WorkingDirectory) {
        return Ok(());
    }
    let mut buffer = [0_u8; 4096];
    // SAFETY: the buffer has the length given.
    match unsafe {
        call(libc::SYS_getcwd, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0])
    } {
        // Deeper than the buffer is not outside.
        Err(libc::ERANGE) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(_) if buffer.first() == Some(&b'/') => Ok(()),
        Ok(_) => Err(Fault { detail: 1, errno: libc::EXDEV, log: None }),
    }
}

fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), i32> {
    let limit = [soft, hard];
    // SAFETY: struct rlimit64 is two 64-bit numbers, soft first (prlimit(2)).
    unsafe { call(libc::SYS_prlimit64, [0, resource as usize, limit.as_ptr() as usize, 0, 0, 0]) }?;
    Ok(())
}

/// Pipes only: they are made for the container. A file, a device or the caller's terminal is somebody else's.
fn own_standard(uid: u32) {
    for fd in 0..3 {
        let Ok(found) = stat(fd, c"", AT_EMPTY_PATH) else { continue };
        if found.st_uid != uid && found.st_mode & libc::S_IFMT == libc::S_IFIFO {
            let arguments = [reg(fd), uid as usize, libc::gid_t::MAX as usize, 0, 0, 0];
            ignore(plain(libc::SYS_fchown, arguments));
        }
    }
}

fn drop_bounding(capabilities: u64) -> Result<(), Fault> {
    let mut left = capabilities;
    while left != 0 {
        let cap = left.trailing_zeros();
        plain(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as usize, cap as usize, 0, 0, 0, 0])
            .map_err(|errno| Fault { detail: cap, errno, log: None })?;
        left &= left.wrapping_sub(1);
    }
    Ok(())
}

fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Fault> {
    let stage = |detail| move |errno| Fault { detail, errno, log: None };
    let (uid, gid) = (uid as usize, gid as usize);
    if let Some(groups) = groups.filter(|_| !left_out(Defence::Setgroups)) {
        // SAFETY: an array of the length given.
        unsafe { call(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0]) }
            .map_err(stage(0))?;
    }
    plain(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0]).map_err(stage(1))?;
    plain(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0]).map_err(stage(2))?;
    Ok(())
}

fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), i32> {
    let header = [CAPABILITY_VERSION_3, 0];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        low(effective),
        low(permitted),
        low(inheritable),
        high(effective),
        high(permitted),
        high(inheritable),
    ];
    // SAFETY: header and data as capset(2) wants them for version 3, alive across the call.
    unsafe {
        call(libc::SYS_capset, [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0])
    }?;
    Ok(())
}

fn ambient(raise: u64, last: u32) -> Result<(), Fault> {
    const CLEAR_ALL: usize = 4;
    const RAISE: usize = 2;
    plain(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as usize, CLEAR_ALL, 0, 0, 0, 0])?;
    let mut cap: u32 = 0;
    while cap <= last {
        if raise.checked_shr(cap).unwrap_or(0) & 1 == 1 {
            plain(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as usize, RAISE, cap as usize, 0, 0, 0])
                .map_err(|errno| Fault { detail: cap, errno, log: None })?;
        }
        cap = cap.wrapping_add(1);
    }
    Ok(())
}

/// `struct sock_fprog`.
#[repr(C)]
struct FilterProgram {
    length: u16,
    filter: *const libc::sock_filter,
}

pub(super) fn seccomp(program: &[libc::sock_filter], flags: u32) -> Answer {
    const SET_MODE_FILTER: usize = 1;
    let program = FilterProgram { length: program.len() as u16, filter: program.as_ptr() };
    let pointer = std::ptr::from_ref(&program) as usize;
    // SAFETY: the program and its instructions live across the call; its length was checked when it was compiled.
    unsafe { call(libc::SYS_seccomp, [SET_MODE_FILTER, flags as usize, pointer, 0, 0, 0]) }
}

fn wait_for_byte(fd: i32) -> Result<(), Fault> {
    let mut byte = [0_u8; 1];
    loop {
        // SAFETY: one byte of buffer for one byte.
        match unsafe { call(libc::SYS_read, [reg(fd), byte.as_mut_ptr() as usize, 1, 0, 0, 0]) } {
            Err(libc::EINTR) => {}
            Err(e) => return Err(e.into()),
            // Nobody is left to finish the launch or to hear about it.
            Ok(0) => raw::exit(1),
            Ok(_) => return Ok(()),
        }
    }
}

/// The first candidate that may be executed; otherwise the most telling refusal.
fn find_program(candidates: &[std::ffi::CString]) -> Result<usize, Fault> {
    let mut index: usize = 0;
    let mut worst = Fault::from(libc::ENOENT);
    for candidate in candidates {
        match executable(candidate) {
            Ok(()) => return Ok(index),
            Err(libc::ENOENT | libc::ENOTDIR) => {}
            Err(errno) => worst = Fault { detail: index as u32, errno, log: None },
        }
        index = index.wrapping_add(1);
    }
    Err(worst)
}

fn executable(path: &CStr) -> Result<(), i32> {
    let found = stat(libc::AT_FDCWD, path, 0)?;
    if found.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(libc::EISDIR);
    }
    let arguments =
        [reg(libc::AT_FDCWD), at(path), libc::X_OK as usize, libc::AT_EACCESS as usize, 0, 0];
    // SAFETY: the path is a C string that outlives the call.
    match unsafe { call(libc::SYS_faccessat2, arguments) } {
        Ok(_) | Err(libc::ENOSYS) => Ok(()),
        Err(e) => Err(e),
    }
}
