//! Ports of the node that lead to a task.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use hafen_protocol::v1;
use hafen_spec::Problem;
use serde_json::{Value, json};

use crate::failure::{Failure, Kind, chain};

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn of(name: &str) -> Option<Self> {
        match name {
            "" | "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// On the node; 0: not yet chosen.
    pub host: u16,
    pub container: u16,
    pub protocol: Protocol,
    /// Of the node; `None`: all.
    pub host_ip: Option<IpAddr>,
}

/// Why ports cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The request is wrong.
    #[error("network.ports[{index}].{field}: {reason}")]
    Invalid { index: usize, field: &'static str, reason: String },
    /// Somebody has it.
    #[error(
        "port {port} of the node is in use by {by}: choose another one, or 0 for any that is free"
    )]
    Taken { port: String, by: &'static str },
    /// The kernel would not give it.
    #[error("bind port {port} of the node")]
    Bind { port: String, source: io::Error },
    /// Too few are left.
    #[error(
        "no free {protocol} port of the node was found: remove tasks that publish ports, or name the port"
    )]
    Exhausted { protocol: Protocol },
}

impl PortError {
    /// With the field of the request, where it is about one.
    #[must_use]
    pub fn problem(self) -> Problem {
        match self {
            Self::Invalid { index, field, reason } => {
                Problem { field: format!("network.ports[{index}].{field}"), reason }
            }
            other => Problem { field: "network.ports".to_owned(), reason: chain(&other) },
        }
    }
}

impl Publish {
    fn read(index: usize, port: &v1::Port) -> Result<Self, PortError> {
        let invalid = |field, reason: String| PortError::Invalid { index, field, reason };
        let number = |field, value: u32| {
            u16::try_from(value).map_err(|_| invalid(field, format!("{value} is above 65535")))
        };
        let (host, container) = (number("host", port.host)?, number("container", port.container)?);
        if container == 0 {
            return Err(invalid("container", "must be from 1 to 65535".to_owned()));
        }
        let protocol = Protocol::of(&port.protocol).ok_or_else(|| {
            let reason = format!("{:?} is none of tcp, udp and sctp", port.protocol);
            invalid("protocol", reason)
        })?;
        if host == 0 && protocol == Protocol::Sctp {
            return Err(invalid("host", "must be named for sctp".to_owned()));
        }
        let host_ip = match port.host_ip.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| invalid("host_ip", format!("{text:?} is no IP address")))?,
            ),
        };
        Ok(Self {
            host,
            container,
            protocol,
            host_ip: host_ip.filter(|ip: &IpAddr| !ip.is_unspecified()),
        })
    }

    /// Whether both would get the same packets.
    fn meets(&self, other: &Self) -> bool {
        let same_ip =
            self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip;
        self.host == other.host && self.protocol == other.protocol && same_ip
    }

    /// For [`v1::TaskStatus::ports`].
    #[must_use]
    pub fn to_message(&self) -> v1::Port {
        v1::Port {
            host: self.host.into(),
            container: self.container.into(),
            protocol: self.protocol.to_string(),
            host_ip: self.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        }
    }

    /// For a plugin with the capability `portMappings` (CNI conventions).
    #[must_use]
    pub fn to_mapping(&self) -> Value {
        let mut mapping = json!({
            "hostPort": self.host,
            "containerPort": self.container,
            "protocol": self.protocol.to_string(),
        });
        if let Some(ip) = self.host_ip {
            mapping["hostIP"] = ip.to_string().into();
        }
        mapping
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(ip) => write!(f, "{}/{}", SocketAddr::new(ip, self.host), self.protocol),
            None => write!(f, "{}/{}", self.host, self.protocol),
        }
    }
}

/// Read the ports of a task.
///
/// # Errors
/// Names the field.
pub fn validate(ports: &[v1::Port]) -> Result<Vec<Publish>, PortError> {
    let mut read: Vec<Publish> = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let port = Publish::read(index, port)?;
        if port.host != 0 && read.iter().any(|other| other.meets(&port)) {
            let reason = format!("{port} is published twice");
            return Err(PortError::Invalid { index, field: "host", reason });
        }
        read.push(port);
    }
    Ok(read)
}

/// Ports with their numbers, and the sockets that keep others away from them until this is dropped. Packets that a
/// plugin redirects need no socket.
#[derive(Debug)]
pub struct Chosen {
    pub ports: Vec<Publish>,
    _held: Vec<Socket>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held open, not used")]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Choose what is 0, and see that nobody has the others: no process of the node, and none of `taken`, the ports that
/// tasks of this node publish already (no socket shows those).
///
/// # Errors
/// The port that somebody has.
pub fn choose(wanted: &[Publish], taken: &[Publish]) -> Result<Chosen, PortError> {
    let mut chosen = Chosen { ports: wanted.to_vec(), _held: Vec::new() };
    // Those with a number first: a free one is not to be one of them.
    for named in wanted.iter().filter(|port| port.host != 0) {
        if taken.iter().any(|other| other.meets(named)) {
            return Err(PortError::Taken { port: named.to_string(), by: "another task" });
        }
        chosen._held.extend(hold(named)?.map(|(_, socket)| socket));
    }
    for at in 0..chosen.ports.len() {
        if chosen.ports[at].host == 0 {
            let (port, socket) = free(&chosen.ports[at], &chosen.ports, taken)?;
            chosen.ports[at] = port;
            chosen._held.push(socket);
        }
    }
    Ok(chosen)
}

fn free(
    wanted: &Publish,
    own: &[Publish],
    taken: &[Publish],
) -> Result<(Publish, Socket), PortError> {
    const TRIES: u32 = 256;
    // Held, so that the kernel does not offer the same number again.
    let mut unfit = Vec::new();
    for _ in 0..TRIES {
        let Some((host, socket)) = hold(wanted)? else { break };
        let port = Publish { host, ..*wanted };
        if !own.iter().chain(taken).any(|other| other.meets(&port)) {
            return Ok((port, socket));
        }
        unfit.push(socket);
    }
    Err(PortError::Exhausted { protocol: wanted.protocol })
}

/// Nothing of sctp: its sockets need a kernel module that a node may lack.
fn hold(port: &Publish) -> Result<Option<(u16, Socket)>, PortError> {
    let address = SocketAddr::new(port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port.host);
    let held = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address)
            .and_then(|socket| Ok((socket.local_addr()?.port(), Socket::Tcp(socket)))),
        Protocol::Udp => UdpSocket::bind(address)
            .and_then(|socket| Ok((socket.local_addr()?.port(), Socket::Udp(socket)))),
        Protocol::Sctp => return Ok(None),
    };
    match held {
        Ok(held) => Ok(Some(held)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            Err(PortError::Taken { port: port.to_string(), by: "a process of the node" })
        }
        Err(source) => Err(PortError::Bind { port: port.to_string(), source }),
    }
}

impl From<PortError> for Failure {
    fn from(e: PortError) -> Self {
        let kind = match &e {
            PortError::Invalid { .. } => Kind::Invalid,
            PortError::Taken { .. } => Kind::Exists,
            PortError::Exhausted { .. } => Kind::Exhausted,
            PortError::Bind { .. } => Kind::Internal,
        };
        Self::of(kind, &e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: u32, container: u32, protocol: &str, host_ip: &str) -> v1::Port {
        v1::Port { host, container, protocol: protocol.to_owned(), host_ip: host_ip.to_owned() }
    }

    #[test]
    fn errors_name_the_field() {
        for (bad, says) in [
            (port(65536, 80, "", ""), "network.ports[0].host: 65536"),
            (port(80, 0, "", ""), "network.ports[0].container: must"),
            (port(80, 80, "icmp", ""), "network.ports[0].protocol: \"icmp\""),
            (port(80, 80, "", "localhost"), "network.ports[0].host_ip: \"localhost\""),
            (port(0, 80, "sctp", ""), "network.ports[0].host: must be named"),
        ] {
            let error = validate(&[bad]).unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }

    #[test]
    fn a_port_is_published_once() {
        let twice = |a, b| validate(&[a, b]).is_err();
        assert!(twice(port(80, 1, "", ""), port(80, 2, "tcp", "")));
        assert!(twice(port(80, 1, "", "127.0.0.1"), port(80, 2, "", "0.0.0.0")));
        assert!(!twice(port(80, 1, "", ""), port(80, 1, "udp", "")));
        assert!(!twice(port(80, 1, "", "127.0.0.1"), port(80, 1, "", "127.0.0.2")));
        assert!(!twice(port(0, 1, "", ""), port(0, 1, "", "")));
    }

    #[test]
    fn what_is_free_is_chosen_and_held() {
        let wanted =
            validate(&[port(0, 80, "", "127.0.0.1"), port(0, 80, "udp", "127.0.0.1")]).unwrap();
        let chosen = choose(&wanted, &[]).unwrap();
        assert!(chosen.ports.iter().all(|port| port.host != 0));
        let again = [chosen.ports[0]];
        let error = choose(&again, &[]).unwrap_err();
        assert!(matches!(error, PortError::Taken { by: "a process of the node", .. }), "{error}");
        drop(chosen);
        assert!(matches!(choose(&again, &again), Err(PortError::Taken { by: "another task", .. })));
        choose(&again, &[]).unwrap();
    }

    #[test]
    fn a_free_port_is_none_that_a_task_has() {
        let wanted = validate(&[port(0, 80, "", "127.0.0.1")]).unwrap();
        let all: Vec<Publish> = (1..=65535)
            .map(|host| Publish { host, container: 1, protocol: Protocol::Tcp, host_ip: None })
            .collect();
        assert!(matches!(choose(&wanted, &all), Err(PortError::Exhausted { .. })));
    }

    #[test]
    fn a_mapping_is_what_portmap_reads() {
        let port = validate(&[port(8080, 80, "", "10.0.0.1")]).unwrap()[0];
        let mapping = json!({
            "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "10.0.0.1",
        });
        assert_eq!(port.to_mapping(), mapping);
        assert_eq!(port.to_string(), "10.0.0.1:8080/tcp");
    }
}
