//! Who calls, whether they may, and how much of the agent one caller may hold.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hafen_sys::socket;
use nix::unistd::Uid;
use tokio::net::UnixStream;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// As the kernel says (unix(7), SO_PEERCRED and SO_PEERGROUPS): no database of users is asked.
    Local { uid: u32, gid: u32, pid: Option<i32>, groups: Vec<u32> },
    /// Their certificate was verified.
    Remote { address: IpAddr, certificate: String },
}

impl Caller {
    /// # Errors
    /// The call that failed.
    pub fn local(stream: &UnixStream) -> io::Result<Self> {
        let who = stream.peer_cred()?;
        let groups = socket::peer_groups(stream)?;
        Ok(Self::Local { uid: who.uid(), gid: who.gid(), pid: who.pid(), groups })
    }

    /// Root, our own user and the members of the group; whoever has a certificate that we trust.
    #[must_use]
    pub fn may(&self, group: Option<u32>) -> bool {
        let Self::Local { uid, gid, groups, .. } = self else { return true };
        let is_member = |group: u32| *gid == group || groups.contains(&group);
        *uid == 0 || *uid == Uid::effective().as_raw() || group.is_some_and(is_member)
    }

    #[must_use]
    pub const fn party(&self) -> Party {
        match self {
            Self::Local { uid, .. } => Party::User(*uid),
            Self::Remote { address, .. } => Party::Host(*address),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid: Some(pid), .. } => write!(f, "uid {uid} pid {pid}"),
            Self::Local { uid, pid: None, .. } => write!(f, "uid {uid}"),
            Self::Remote { address, certificate } => write!(f, "{address} ({certificate})"),
        }
    }
}

/// What connections are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    User(u32),
    Host(IpAddr),
}

/// Connections under way. Nobody can take them all: each party has its own bound, and root is not kept out by others.
#[derive(Debug, Clone)]
pub struct Seats {
    taken: Arc<Mutex<BTreeMap<Party, usize>>>,
    each: usize,
    all: usize,
}

/// One connection, for as long as it lives.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    party: Party,
}

impl Seats {
    #[must_use]
    pub fn new(each: usize, all: usize) -> Self {
        Self { taken: Arc::default(), each, all }
    }

    #[must_use]
    pub fn take(&self, party: Party) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.iter().filter(|(p, _)| **p != Party::User(0)).map(|(_, n)| n).sum();
        let own = taken.entry(party).or_default();
        let most = if party == Party::User(0) { self.all } else { self.each };
        let full = *own >= most || (party != Party::User(0) && all >= self.all);
        if full {
            return None;
        }
        *own += 1;
        Some(Seat { seats: self.clone(), party })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.party) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.remove(&self.party);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_keep_out_another_and_nobody_root() {
        let seats = Seats::new(2, 3);
        let (greedy, other) = (Party::User(1000), Party::User(1001));
        let held: Vec<_> = (0..4).filter_map(|_| seats.take(greedy)).collect();
        assert_eq!(held.len(), 2);
        let third = seats.take(other);
        assert!(third.is_some());
        assert!(seats.take(other).is_none(), "all are taken");
        assert!(seats.take(Party::User(0)).is_some());
        drop(held);
        assert!(seats.take(other).is_some());
    }

    #[test]
    fn root_and_the_group_may() {
        let local = |uid, gid| Caller::Local { uid, gid, pid: None, groups: vec![7, 8] };
        assert!(local(0, 0).may(None));
        assert!(!local(4_000_000, 5).may(None));
        assert!(!local(4_000_000, 5).may(Some(6)));
        assert!(local(4_000_000, 5).may(Some(5)));
        assert!(local(4_000_000, 5).may(Some(8)));
    }
}
