//! Sockets that a runtime sends descriptors through.

use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::patience;

const WAIT: Duration = Duration::from_secs(20);

/// Listens for one descriptor, as conmon and the shim of containerd do on `--console-socket`.
#[derive(Debug)]
pub struct Receiver {
    path: PathBuf,
    answer: mpsc::Receiver<(OwnedFd, String)>,
}

impl Receiver {
    /// # Panics
    /// Where the socket cannot be made.
    #[must_use]
    pub fn listen(path: PathBuf) -> Self {
        let listener =
            UnixListener::bind(&path).unwrap_or_else(|e| panic!("bind {}: {e}", path.display()));
        let (sender, answer) = mpsc::channel();
        thread::spawn(move || {
            let Ok((stream, _)) = listener.accept() else { return };
            if let Some(got) = receive(&stream) {
                let _ = sender.send(got);
            }
        });
        Self { path, answer }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, and the words that came with it.
    ///
    /// # Panics
    /// Where none comes in time.
    #[must_use]
    pub fn get(self) -> (OwnedFd, String) {
        self.answer.recv_timeout(patience(WAIT)).expect("a descriptor comes through the socket")
    }
}

fn receive(stream: &UnixStream) -> Option<(OwnedFd, String)> {
    let mut words = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut vectors = [IoSliceMut::new(&mut words)];
    let message = recvmsg(stream, &mut vectors, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let length = message.bytes;
    let mut descriptors = control.drain().filter_map(|m| match m {
        RecvAncillaryMessage::ScmRights(all) => Some(all),
        _ => None,
    });
    let fd = descriptors.next()?.next()?;
    Some((fd, String::from_utf8_lossy(&words[..length]).into_owned()))
}

/// What a terminal's master says until its other end is closed everywhere, without the carriage returns.
#[must_use]
pub fn read_terminal(master: OwnedFd) -> String {
    let mut file = File::from(master);
    let mut text = Vec::new();
    let mut bytes = [0; 1024];
    // EIO: nobody holds the other end any more (pty(7)).
    while let Ok(length @ 1..) = file.read(&mut bytes) {
        text.extend_from_slice(&bytes[..length]);
    }
    String::from_utf8_lossy(&text).replace('\r', "")
}
