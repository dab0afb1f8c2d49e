//! Who calls, and what they may.

use std::fmt;
use std::net::IpAddr;

use hafen_door::Caller;
use tonic::Status;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Whoever the operator trusts: of this machine, through the socket or an address of it.
    Trusted(String),
    /// Their certificate says so.
    Node(String, IpAddr),
    User(String, IpAddr),
    /// Without a certificate.
    Stranger(IpAddr),
    /// The socket's owner does not know them.
    Denied(String),
}

/// Of what a certificate says in its alternative names.
pub(super) const NODE: &str = "hafen:node:";
pub(super) const USER: &str = "hafen:user:";

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
    pub(super) fn remote(uris: &[String], address: IpAddr) -> Self {
        let named = |uri: &String| {
            let node = uri.strip_prefix(NODE).map(|name| Self::Node(name.to_owned(), address));
            node.or_else(|| Some(Self::User(uri.strip_prefix(USER)?.to_owned(), address)))
        };
        match uris {
            [uri] => named(uri).unwrap_or(Self::Stranger(address)),
            _ => Self::Stranger(address),
        }
    }

    /// The name that their certificate has as a node.
    pub(super) fn node(&self) -> Option<&str> {
        match self {
            Self::Node(name, _) => Some(name),
            _ => None,
        }
    }

    pub(super) fn is_node(&self, name: &str) -> bool {
        match self {
            Self::Trusted(_) => true,
            Self::Node(own, _) => own == name,
            Self::User(..) | Self::Stranger(_) | Self::Denied(_) => false,
        }
    }

    /// Whether it makes sense to listen to a Hello of them.
    pub(super) fn may_connect(&self) -> Result<(), Status> {
        match self {
            Self::Trusted(_) | Self::Node(..) => Ok(()),
            Self::User(..) => Err(Status::permission_denied("a user's certificate is no node's")),
            Self::Stranger(_) => Err(Status::unauthenticated("a node's certificate is needed")),
            Self::Denied(_) => Err(Status::permission_denied("you may not")),
        }
    }

    /// Whether they may see and direct the cluster.
    pub(super) const fn is_person(&self) -> bool {
        matches!(self, Self::Trusted(_) | Self::User(..))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trusted(name) | Self::Denied(name) => f.write_str(name),
            Self::Node(name, address) => write!(f, "node {name} at {address}"),
            Self::User(name, address) => write!(f, "user {name} at {address}"),
            Self::Stranger(address) => write!(f, "{address} without a certificate"),
        }
    }
}
