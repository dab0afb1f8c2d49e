//! Window sizes (ioctl_tty(2)).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Rows, columns, and the two numbers of pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
    pub pixels: [u16; 2],
}

/// The size of a terminal's window; `None` for what is no terminal.
#[must_use]
pub fn size(terminal: impl AsFd) -> Option<Size> {
    let mut size = Size::default();
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes a struct winsize, which `Size` is.
    let answer = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0).then_some(size)
}

/// # Errors
/// ENOTTY for what is no terminal.
pub fn set_size(terminal: impl AsFd, size: Size) -> Result<(), Errno> {
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads a struct winsize, which `Size` is.
    let answer = unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) };
    Errno::result(answer).map(|_| ())
}
