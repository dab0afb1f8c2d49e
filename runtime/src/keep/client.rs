//! One connection to a keeper.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hafen_spec::keep::{Frame, HEAD, Told};
use hafen_sys::socket;
use nix::poll::PollFlags;

/// With more than this waiting for it, a client is slow.
const WAITING: usize = 256 << 10;
/// With more than this, it is gone.
const MOST_WAITING: usize = 8 << 20;
/// stdin, stdout and stderr: nobody sends more with one frame.
const MOST_FDS: usize = 3;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: u64,
    socket: UnixStream,
    incoming: Vec<u8>,
    /// Descriptors that came with what is incoming.
    fds: Vec<OwnedFd>,
    outgoing: VecDeque<u8>,
    pub(crate) attached: Option<Attached>,
    pub(crate) gone: bool,
}

/// How a client gets what the program writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attached {
    pub(crate) lossless: bool,
    /// Bytes left out since the last that were not.
    pub(crate) left_out: u64,
}

impl Client {
    pub(crate) fn new(number: u64, socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            number,
            socket,
            incoming: Vec::new(),
            fds: Vec::new(),
            outgoing: VecDeque::new(),
            attached: None,
            gone: false,
        })
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for; `room` as for [`Self::receive`]. `None`: nothing, not even that it goes, which poll(2) would tell
    /// again and again.
    pub(crate) fn interest(&self, room: bool) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, room || !self.brings_input());
        flags.set(PollFlags::POLLOUT, !self.outgoing.is_empty());
        (!flags.is_empty()).then_some(flags)
    }

    /// Is the program to wait for it?
    pub(crate) fn holds_back(&self) -> bool {
        self.attached.is_some_and(|a| a.lossless) && self.outgoing.len() > WAITING
    }

    pub(crate) fn tell(&mut self, told: &Told) {
        if let Ok(text) = serde_json::to_vec(told) {
            self.queue(Frame::Word, &text);
        }
    }

    /// What the program wrote, if it is attached.
    pub(crate) fn pass(&mut self, frame: Frame, bytes: &[u8]) {
        let Some(attached) = self.attached else { return };
        if !attached.lossless && self.outgoing.len() > WAITING {
            let left_out = attached.left_out + bytes.len() as u64;
            self.attached = Some(Attached { left_out, ..attached });
            return;
        }
        self.tell_of_lag();
        self.queue(frame, bytes);
    }

    /// How much it has not got.
    pub(crate) fn tell_of_lag(&mut self) {
        if let Some(attached @ Attached { left_out: 1.., .. }) = self.attached {
            self.attached = Some(Attached { left_out: 0, ..attached });
            self.tell(&Told::Lagged { bytes: attached.left_out });
        }
    }

    fn queue(&mut self, frame: Frame, bytes: &[u8]) {
        if self.outgoing.len() > MOST_WAITING {
            self.gone = true;
            return;
        }
        self.outgoing.extend(frame.head(bytes.len()));
        self.outgoing.extend(bytes);
        self.flush();
    }

    /// Send what can be sent without waiting.
    pub(crate) fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.gone {
            match self.socket.write(self.outgoing.as_slices().0) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
        if self.outgoing.is_empty() && self.outgoing.capacity() > WAITING {
            self.outgoing = VecDeque::new();
        }
    }

    pub(crate) fn has_all(&self) -> bool {
        self.outgoing.is_empty() || self.gone
    }

    /// The next frame, as soon as all of it has come. Never more than that is read: the descriptors that come with its
    /// bytes are its own. Without `room` nothing is taken that goes to the program. What is no frame ends the connection.
    pub(crate) fn receive(&mut self, room: bool) -> Option<Received> {
        loop {
            if self.gone || (!room && self.brings_input()) {
                return None;
            }
            let (missing, frame) = self.missing()?;
            match frame.filter(|_| missing == 0) {
                Some(frame) => return Some(self.whole(frame)),
                None if self.read(missing) => {}
                None => return None,
            }
        }
    }

    fn brings_input(&self) -> bool {
        self.incoming.first() == Some(&(Frame::Stdin as u8))
    }

    /// Bytes that the head, or the frame, still lacks.
    fn missing(&mut self) -> Option<(usize, Option<Frame>)> {
        let Some(head) = self.incoming.first_chunk() else {
            return Some((HEAD - self.incoming.len(), None));
        };
        let Some((frame, length)) = Frame::read_head(*head) else {
            self.gone = true;
            return None;
        };
        Some((HEAD + length - self.incoming.len(), Some(frame)))
    }

    fn whole(&mut self, frame: Frame) -> Received {
        let content = std::mem::take(&mut self.incoming).split_off(HEAD);
        Received { frame, content, fds: std::mem::take(&mut self.fds) }
    }

    /// At most so many bytes. `false`: nothing is there.
    fn read(&mut self, most: usize) -> bool {
        let mut bytes = [0; 4096];
        let most = most.min(bytes.len());
        match socket::receive_some(&self.socket, &mut bytes[..most], &mut self.fds) {
            Ok(0) => self.gone = true,
            Ok(n) => self.incoming.extend_from_slice(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.gone = true,
        }
        self.gone |= self.fds.len() > MOST_FDS;
        !self.gone
    }
}

/// What a client sent.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) frame: Frame,
    pub(crate) content: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The end of a pipe or terminal that bytes come from, without waiting.
pub(crate) fn read_some(mut from: impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Nobody holds the other end of a terminal any more (pty(7)).
            Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
            answer => return answer,
        }
    }
}
