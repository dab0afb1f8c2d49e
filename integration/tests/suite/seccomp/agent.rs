//! What a runtime sends a filter's listener to, as runtime-spec describes it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use hafen_integration::Value;
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// What an agent saw of one container.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) document: Value,
    /// System calls by number, in the order of their notifications.
    pub(super) calls: Vec<i32>,
}

/// Serve one container: `deny` is refused with this errno, everything else goes on.
pub(super) fn serve(socket: &Path, deny: Option<i32>) -> JoinHandle<Result<Seen, String>> {
    let listener = UnixListener::bind(socket).expect("bind the agent's socket");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().map_err(|e| format!("accept: {e}"))?;
        let (document, descriptor) = receive(&stream)?;
        let document = serde_json(&document)?;
        Ok(Seen { document, calls: answer(&descriptor, deny)? })
    })
}

fn serde_json(text: &[u8]) -> Result<Value, String> {
    std::str::from_utf8(text)
        .map_err(|e| e.to_string())
        .and_then(|text| text.parse().map_err(|e| format!("{text:?}: {e}")))
}

/// The document, up to the end of the stream, and the descriptor that came with its beginning.
fn receive(stream: &UnixStream) -> Result<(Vec<u8>, OwnedFd), String> {
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let mut space = [MaybeUninit::uninit(); 256];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let message = recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|e| format!("recvmsg: {e}"))?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                descriptors.extend(received);
            }
        }
        text.extend_from_slice(&bytes[..message.bytes]);
        if message.bytes == 0 {
            break;
        }
    }
    match <[OwnedFd; 1]>::try_from(descriptors) {
        Ok([descriptor]) => Ok((text, descriptor)),
        Err(all) => {
            Err(format!("{} descriptors with {:?}", all.len(), String::from_utf8_lossy(&text)))
        }
    }
}

/// Until no process has the filter any more.
fn answer(listener: &OwnedFd, deny: Option<i32>) -> Result<Vec<i32>, String> {
    let mut calls = Vec::new();
    loop {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(30_000_u16)).map_err(|e| format!("poll: {e}"))?;
        let events = ready[0].revents().unwrap_or(PollFlags::empty());
        if !events.contains(PollFlags::POLLIN) {
            return Ok(calls);
        }
        // ENOENT: whoever asked was killed meanwhile.
        let Ok(request) = ScmpNotifReq::receive(listener.as_raw_fd()) else { continue };
        let call = i32::from(request.data.syscall);
        calls.push(call);
        let none = ScmpNotifRespFlags::empty();
        let response = match deny {
            Some(errno) if is_mkdir(call) => ScmpNotifResp::new_error(request.id, -errno, none),
            _ => ScmpNotifResp::new_continue(request.id, none),
        };
        let _ = response.respond(listener.as_raw_fd());
    }
}

pub(super) fn is_mkdir(call: i32) -> bool {
    number("mkdir") == Some(call) || number("mkdirat") == Some(call)
}

pub(super) fn number(name: &str) -> Option<i32> {
    libseccomp::ScmpSyscall::from_name(name).ok().map(i32::from)
}
