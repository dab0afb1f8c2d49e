//! Unix sockets that clients name.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::{Mode, umask};

/// The longest path of a socket's address, with its NUL (unix(7)).
const LONGEST: usize = 108;

/// Connect, also where the path is longer than an address: then through its folder.
///
/// # Errors
/// Of opening the folder or connecting.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() < LONGEST {
        return UnixStream::connect(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder =
        open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

/// The supplementary groups of whoever connected, as they were then (unix(7), SO_PEERGROUPS, Linux 4.13).
///
/// # Errors
/// Of getsockopt(2).
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    // More than a process can have (NGROUPS_MAX) are never asked for.
    const FIRST: usize = 64;
    let fd = socket.as_fd().as_raw_fd();
    let mut groups = vec![0_u32; FIRST];
    loop {
        let mut size = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(0);
        let at = groups.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `size` bytes to `at`, which are all of `groups`; `size` is ours.
        let answer = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, at, &raw mut size)
        };
        let count = usize::try_from(size).unwrap_or(0) / size_of::<u32>();
        match Errno::result(answer) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It says how much it needs.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Send a descriptor with some words (SCM_RIGHTS).
///
/// # Errors
/// Of sendmsg(2).
pub fn send(socket: &UnixStream, fd: BorrowedFd<'_>, words: &[u8]) -> io::Result<()> {
    let descriptors = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(words)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receive one descriptor, whatever words come with it.
///
/// # Errors
/// Of recvmsg(2); EBADMSG for a message without a descriptor, or the end of the stream.
pub fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut words = [0; 64];
    let mut vectors = [IoSliceMut::new(&mut words)];
    let mut space = cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(all) = control
            && let Some(fd) = all.first()
        {
            // SAFETY: the kernel has just put it into our table, and nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(Errno::EBADMSG.into())
}

/// Listen for our own user only, also where the path is longer than an address. What had the name before is gone. To be
/// called where there is one thread: the mode of the socket comes from the mask of the process.
///
/// # Errors
/// Of opening the folder or binding.
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let path = folder.join(name);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let folder =
        open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let address = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let mask = umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let listener = UnixListener::bind(address);
    umask(mask);
    listener
}

/// The most descriptors that come with one message.
pub const MOST: usize = 4;

/// Receive bytes and the descriptors that came with them.
///
/// # Errors
/// Of recvmsg(2).
pub fn receive_some(
    socket: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut vectors = [IoSliceMut::new(bytes)];
    let mut space = cmsg_space!([RawFd; MOST]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(all) = control {
            // SAFETY: the kernel has just put them into our table, and nobody else knows them.
            fds.extend(all.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(message.bytes)
}

/// Send bytes with descriptors, which go with the first of them. The answer is how many bytes were taken.
///
/// # Errors
/// Of sendmsg(2).
pub fn send_some(
    socket: BorrowedFd<'_>,
    fds: &[BorrowedFd<'_>],
    bytes: &[u8],
) -> io::Result<usize> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    let words = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket.as_raw_fd(), &words, control, MsgFlags::MSG_NOSIGNAL, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_groups_are_the_peers() {
        let (here, _there) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        let mut peers = peer_groups(&here).unwrap();
        own.sort_unstable();
        peers.sort_unstable();
        assert_eq!(peers, own);
    }
}
