//! A pseudoterminal inside the container. No name of it is ever looked up: the other end comes from its master
//! (TIOCGPTPEER, Linux 4.13), and it is mounted by its descriptor.

use super::machine::{Fault, FdPath, make_file, mount, move_mount, open_in_root, open_tree, stat};
use super::{MountCalls, Terminal};
use crate::file::{OpenHow, resolve};
use crate::mount::AT_EMPTY_PATH;
use crate::raw::{self, Answer, call, plain, reg};
use crate::weaken::{Defence, left_out};

/// statfs(2).
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
/// "/dev/pts/" and ten digits.
const LONGEST_NAME: usize = 19;

/// Where it failed, for the sentence about it.
mod stage {
    pub(super) const MASTER: u32 = 1;
    pub(super) const NOT_DEVPTS: u32 = 2;
    pub(super) const PEER: u32 = 3;
    pub(super) const SEND: u32 = 4;
    pub(super) const CONSOLE: u32 = 5;
    pub(super) const CONTROL: u32 = 6;
}

fn at_stage(detail: u32) -> impl Fn(i32) -> Fault {
    move |errno| Fault { detail, errno, log: None }
}

pub(super) fn open(wanted: &Terminal, root: i32) -> Result<(), Fault> {
    let root = if root >= 0 { root } else { open_root().map_err(at_stage(stage::MASTER))? };
    let master = open_master(root)?;
    let (other, number) = open_peer(master, wanted).map_err(at_stage(stage::PEER))?;
    send(wanted.socket, master, number).map_err(at_stage(stage::SEND))?;
    let _ = raw::close(master);
    let _ = raw::close(wanted.socket);
    if let Some(calls) = wanted.console {
        mount_console(root, other, calls).map_err(at_stage(stage::CONSOLE))?;
    }
    stand_on(other).map_err(at_stage(stage::CONTROL))
}

fn open_root() -> Answer {
    open_in_root(libc::AT_FDCWD, c"/", libc::O_DIRECTORY)
}

/// The container may have put anything in place of its ptmx: only that of a devpts is taken.
fn open_master(root: i32) -> Result<i32, Fault> {
    let how = OpenHow {
        flags: (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: resolve::IN_ROOT | resolve::NO_MAGICLINKS | resolve::NO_SYMLINKS,
    };
    // Opening a device of another kind could have an effect already: look at it first.
    let seen = open_in_root(root, c"dev/pts/ptmx", libc::O_NOFOLLOW);
    let seen = seen.map_err(at_stage(stage::MASTER))?;
    check_devpts(seen)?;
    let _ = raw::close(seen);
    let master = raw::open_how(root, c"dev/pts/ptmx", &how).map_err(at_stage(stage::MASTER))?;
    check_devpts(master)?;
    Ok(master)
}

fn check_devpts(fd: i32) -> Result<(), Fault> {
    let mut statfs = [0_u64; 15];
    let arguments = [reg(fd), statfs.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: the buffer is a whole struct statfs of the 64-bit kernel ABI, fifteen words.
    unsafe { call(libc::SYS_fstatfs, arguments) }.map_err(at_stage(stage::MASTER))?;
    if statfs[0] == DEVPTS_SUPER_MAGIC {
        return Ok(());
    }
    Err(Fault { detail: stage::NOT_DEVPTS, errno: libc::ENOTTY, log: None })
}

/// struct winsize (ioctl_tty(2)).
#[repr(C)]
struct WindowSize {
    rows: u16,
    columns: u16,
    pixels: [u16; 2],
}

/// The other end, and its number.
fn open_peer(master: i32, wanted: &Terminal) -> Result<(i32, u32), i32> {
    let unlock: i32 = 0;
    ioctl(master, libc::TIOCSPTLCK, std::ptr::from_ref(&unlock) as usize)?;
    let mut number: u32 = 0;
    ioctl(master, libc::TIOCGPTN, (&raw mut number) as usize)?;
    if let Some((rows, columns)) = wanted.size {
        let size = WindowSize { rows, columns, pixels: [0; 2] };
        ioctl(master, libc::TIOCSWINSZ, std::ptr::from_ref(&size) as usize)?;
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let other = ioctl(master, libc::TIOCGPTPEER, flags as usize)?;
    if wanted.uid != 0 {
        let arguments = [reg(other), wanted.uid as usize, libc::gid_t::MAX as usize, 0, 0, 0];
        plain(libc::SYS_fchown, arguments)?;
    }
    Ok((other, number))
}

/// Every argument given here is a number or points to a live value of the request's type.
fn ioctl(fd: i32, request: libc::Ioctl, argument: usize) -> Answer {
    // SAFETY: see above.
    unsafe { call(libc::SYS_ioctl, [reg(fd), request as usize, argument, 0, 0, 0]) }
}

/// `struct cmsghdr` with one descriptor, padded to the alignment of a long (cmsg(3)).
#[repr(C)]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    descriptor: i32,
    padding: i32,
}

/// sendmsg(2) with the descriptor and the other end's name (unix(7)).
fn send(socket: i32, master: i32, number: u32) -> Result<(), i32> {
    let (name, length) = name(number);
    let data = libc::iovec { iov_base: name.as_ptr().cast_mut().cast(), iov_len: length };
    let control = Control {
        length: size_of::<Control>().wrapping_sub(4),
        level: libc::SOL_SOCKET,
        kind: libc::SCM_RIGHTS,
        descriptor: master,
        padding: 0,
    };
    // struct msghdr of the kernel: name, its length, vectors, their number, control, its length, flags.
    let vectors = std::ptr::from_ref(&data) as usize;
    let control_at = std::ptr::from_ref(&control) as usize;
    let message = [0, 0, vectors, 1, control_at, size_of::<Control>(), 0];
    let flags = libc::MSG_NOSIGNAL as usize;
    // SAFETY: the message points to the values above, which live across the call; the kernel only reads them.
    unsafe { call(libc::SYS_sendmsg, [reg(socket), message.as_ptr() as usize, flags, 0, 0, 0]) }?;
    Ok(())
}

fn name(number: u32) -> ([u8; LONGEST_NAME], usize) {
    let mut text = [0; LONGEST_NAME];
    let prefix = b"/dev/pts/";
    let mut digits: usize = 1;
    let mut rest = number / 10;
    while rest > 0 {
        digits = digits.wrapping_add(1);
        rest /= 10;
    }
    for (to, from) in text.iter_mut().zip(prefix) {
        *to = *from;
    }
    let length = prefix.len().wrapping_add(digits);
    let mut left = number;
    for digit in text.iter_mut().take(length).skip(prefix.len()).rev() {
        *digit = b'0'.wrapping_add((left % 10) as u8);
        left /= 10;
    }
    (text, length)
}

/// A console that is a symlink would choose what is covered (CVE-2025-52565).
fn mount_console(root: i32, other: i32, calls: MountCalls) -> Result<(), i32> {
    let folder = open_in_root(root, c"dev", libc::O_DIRECTORY)?;
    make_file(folder, c"console")?;
    let target = if left_out(Defence::ConsoleTarget) {
        open_in_root(root, c"dev/console", 0)?
    } else {
        open_in_root(folder, c"console", libc::O_NOFOLLOW)?
    };
    let _ = raw::close(folder);
    let kind = stat(target, c"", AT_EMPTY_PATH)?.st_mode & libc::S_IFMT;
    if kind != libc::S_IFREG && kind != libc::S_IFCHR {
        return Err(if kind == libc::S_IFLNK { libc::ELOOP } else { libc::EINVAL });
    }
    match calls {
        MountCalls::New => {
            let tree = open_tree(other, c"", true, false)?;
            move_mount(tree, target)?;
            let _ = raw::close(tree);
        }
        MountCalls::Classic => {
            let (from, to) = (FdPath::new(other), FdPath::new(target));
            mount(Some(from.as_c_str()), to.as_c_str(), None, libc::MS_BIND, None)?;
        }
    }
    let _ = raw::close(target);
    Ok(())
}

fn stand_on(other: i32) -> Result<(), i32> {
    ioctl(other, libc::TIOCSCTTY, 0)?;
    for standard in 0..3 {
        plain(libc::SYS_dup3, [reg(other), standard, 0, 0, 0, 0])?;
    }
    let _ = raw::close(other);
    Ok(())
}

/// What the detail in a report about [`Op::Terminal`](super::Op::Terminal) means.
#[must_use]
pub const fn words(detail: u32) -> Option<&'static str> {
    match detail {
        stage::MASTER => Some("open /dev/pts/ptmx"),
        stage::NOT_DEVPTS => Some("/dev/pts/ptmx is not of a devpts"),
        stage::PEER => Some("open the terminal"),
        stage::SEND => Some("send it through the console socket"),
        stage::CONSOLE => Some("mount it on /dev/console"),
        stage::CONTROL => Some("make it the controlling terminal"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_are_written_without_allocation() {
        let text = |number| {
            let (bytes, length) = name(number);
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        assert_eq!(text(0), "/dev/pts/0");
        assert_eq!(text(10), "/dev/pts/10");
        assert_eq!(text(u32::MAX), "/dev/pts/4294967295");
    }
}
