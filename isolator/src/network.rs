//! Network interfaces of the host that a container gets (runtime-spec, config-linux, "Network Devices").

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use hafen_sys::{CallError, Context};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

/// Move an interface into a network namespace under another name or its own, with its lasting addresses, and bring it
/// up. When the namespace ends, the kernel takes virtual interfaces away and returns physical ones.
///
/// # Errors
/// Names the interface and the step.
pub fn hand_over(host: &str, inside: &str, namespace: &Path) -> Result<(), CallError> {
    let step = |what: &str| {
        let what = what.to_owned();
        move || format!("linux.netDevices: interface {host}: {what}")
    };
    let target = open(namespace, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open {}", namespace.display()))?;
    let ours = Route::here().call(step("open a netlink socket"))?;
    let theirs = Route::there(&target).call(step("open a netlink socket in the container"))?;
    let index = ours.index(host).call(step("look for it on the host"))?;
    // Afterwards it would be too late: the interface would be gone with the failed container.
    match theirs.index(inside) {
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => {}
        Ok(_) => {
            let taken = io::Error::from_raw_os_error(Errno::EEXIST as i32);
            return Err(CallError::new(
                step(&format!("call it {inside} in the container"))(),
                taken,
            ));
        }
        Err(e) => return Err(CallError::new(step("look into the container")(), e)),
    }
    let addresses = ours.addresses(index).call(step("read its addresses"))?;
    ours.give(index, inside, &target).call(step("move it into the container"))?;
    // It may have got another number there.
    let index = theirs.index(inside).call(step("look for it in the container"))?;
    for address in addresses {
        theirs.add(address, index).call(step("give it its addresses"))?;
    }
    theirs.up(index).call(step("bring it up"))
}

/// Bring an interface of the calling thread's network namespace up.
///
/// # Errors
/// Names the interface.
pub fn bring_up(name: &str) -> Result<(), CallError> {
    let bring = || Route::here().and_then(|here| here.up(here.index(name)?));
    bring().call(|| format!("bring the interface {name} up"))
}

/// A socket that speaks of the network namespace in which it was opened (rtnetlink(7)).
struct Route(Socket);

impl Route {
    fn here() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// We go there and come back: this process has one thread.
    fn there(namespace: &OwnedFd) -> io::Result<Self> {
        let own =
            open("/proc/thread-self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let socket = Self::here();
        setns(own, CloneFlags::CLONE_NEWNET)?;
        socket
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self.ask(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
            _ => None,
        });
        found.ok_or_else(|| io::Error::from_raw_os_error(Errno::ENODEV as i32))
    }

    /// Those that somebody set, not those that came with the link or with a lease.
    fn addresses(&self, index: u32) -> io::Result<Vec<AddressMessage>> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.ask(question, NLM_F_REQUEST | NLM_F_DUMP)?;
        let lasting = |address: &AddressMessage| {
            address.header.index == index
                && address.header.scope == AddressScope::Universe
                && address.header.flags.contains(AddressHeaderFlags::Permanent)
        };
        let address = |answer| match answer {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(address).filter(lasting).collect())
    }

    fn give(&self, index: u32, name: &str, namespace: impl AsFd) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.ask(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    fn add(&self, mut address: AddressMessage, index: u32) -> io::Result<()> {
        address.header.index = index;
        // The label would name the old interface, and the times are the kernel's own.
        address.attributes.retain(|attribute| {
            matches!(
                attribute,
                AddressAttribute::Address(_)
                    | AddressAttribute::Local(_)
                    | AddressAttribute::Broadcast(_)
                    | AddressAttribute::Flags(_)
            )
        });
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.ask(RouteNetlinkMessage::NewAddress(address), flags).map(drop)
    }

    fn up(&self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    /// Send one question and read until its last answer.
    fn ask(
        &self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::from(question);
        message.header.flags = flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let many = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            if read(&bytes, many, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// One datagram of answers; true with the last one.
fn read(mut bytes: &[u8], many: bool, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|e| io::Error::other(e.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4).min(bytes.len());
        match message.payload {
            NetlinkPayload::Error(error) => {
                return error.code.map_or(Ok(true), |_| Err(error.to_io()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::InnerMessage(answer) => {
                answers.push(answer);
                if !many {
                    return Ok(true);
                }
            }
            _ => {}
        }
        if length == 0 {
            break;
        }
        bytes = &bytes[length..];
    }
    Ok(false)
}
