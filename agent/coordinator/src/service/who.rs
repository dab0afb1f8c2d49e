//! Who calls, and what they may.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use hafen_door::Caller;
use tonic::Status;

use super::ca::Paper;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Whoever the operator trusts: of this machine, through the socket or an address of it.
    Trusted(String),
    /// Their certificate says so.
    Node(Holder),
    User(Holder),
    /// It did, and counts no more.
    Withdrawn(Holder),
    /// Without a certificate.
    Stranger(IpAddr),
    /// The socket's owner does not know them.
    Denied(String),
}

/// Of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// [`NODE`] or [`USER`].
    kind: &'static str,
    pub(super) name: String,
    /// Of the certificate, among those of the same name.
    pub(super) number: u64,
    /// Of the certificate, in hexadecimal.
    pub(super) serial: String,
    pub(super) until: SystemTime,
    address: IpAddr,
}

/// Of what a certificate says in its alternative names.
pub(super) const NODE: &str = "hafen:node:";
pub(super) const USER: &str = "hafen:user:";

impl Holder {
    /// As the certificate says it.
    pub(super) fn uri(&self) -> String {
        format!("{}{}", self.kind, self.name)
    }

    pub(super) fn is_node(&self) -> bool {
        self.kind == NODE
    }
}

impl Who {
    /// As it was noted when the connection was made.
    pub(super) fn of(extensions: &axum::http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_else(|| Self::Denied("nobody".to_owned()))
    }

    pub(super) fn local(caller: &Caller, group: Option<u32>) -> Self {
        let name = caller.to_string();
        if caller.may(group) { Self::Trusted(name) } else { Self::Denied(name) }
    }

    /// By the names in their certificate: exactly one of ours.
    pub(super) fn remote(paper: &Paper, address: IpAddr) -> Self {
        let [uri] = &*paper.uris else { return Self::Stranger(address) };
        let holder = |kind| {
            let name = uri.strip_prefix(kind)?.to_owned();
            let Paper { number, until, .. } = *paper;
            Some(Holder { kind, name, number, serial: paper.serial.clone(), until, address })
        };
        let node = holder(NODE).map(Self::Node);
        node.or_else(|| holder(USER).map(Self::User)).unwrap_or(Self::Stranger(address))
    }

    /// Of a certificate that counts, as far as the connection knows.
    pub(super) const fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Node(holder) | Self::User(holder) => Some(holder),
            Self::Trusted(_) | Self::Withdrawn(_) | Self::Stranger(_) | Self::Denied(_) => None,
        }
    }

    pub(super) const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Node(holder) | Self::User(holder) | Self::Withdrawn(holder) => {
                Some(holder.address)
            }
            Self::Stranger(address) => Some(*address),
            Self::Trusted(_) | Self::Denied(_) => None,
        }
    }

    /// What their certificate says of them as a node.
    pub(super) const fn node(&self) -> Option<&Holder> {
        match self {
            Self::Node(holder) => Some(holder),
            _ => None,
        }
    }

    pub(super) fn is_node(&self, name: &str) -> bool {
        match self {
            Self::Trusted(_) => true,
            Self::Node(own) => own.name == name,
            Self::User(_) | Self::Withdrawn(_) | Self::Stranger(_) | Self::Denied(_) => false,
        }
    }

    /// Whether they may open a channel, and it makes sense to listen to a Hello of them.
    pub(super) fn may_connect(&self) -> Result<(), Status> {
        match self {
            Self::Trusted(_) | Self::Node(_) => Ok(()),
            Self::User(_) => Err(Status::permission_denied("a user's certificate is no node's")),
            Self::Withdrawn(_) => Err(Status::unauthenticated(WITHDRAWN)),
            Self::Stranger(_) => Err(Status::unauthenticated("a node's certificate is needed")),
            Self::Denied(_) => Err(Status::permission_denied("you may not")),
        }
    }

    /// Whether they may see and direct the cluster.
    pub(super) const fn is_person(&self) -> bool {
        matches!(self, Self::Trusted(_) | Self::User(_))
    }
}

pub(super) const WITHDRAWN: &str = "the certificate was withdrawn";

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trusted(name) | Self::Denied(name) => f.write_str(name),
            Self::Node(Holder { name, address, .. }) => write!(f, "node {name} at {address}"),
            Self::User(Holder { name, address, .. }) => write!(f, "user {name} at {address}"),
            Self::Withdrawn(holder) => {
                write!(f, "{} at {}, whose certificate was withdrawn", holder.uri(), holder.address)
            }
            Self::Stranger(address) => write!(f, "{address} without a certificate"),
        }
    }
}
