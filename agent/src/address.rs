//! Where an agent, a coordinator or another master is.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// Without TLS.
    Plain(String, u16),
    Tls(String, u16),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is none of https://HOST:PORT, http://HOST:PORT, unix:///PATH");
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(wrong()) };
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        match scheme {
            "http" if is_host => Ok(Self::Plain(host.to_owned(), port)),
            "https" if is_host => Ok(Self::Tls(host.to_owned(), port)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix://{}", path.display()),
            Self::Plain(host, port) => ("http", host, port),
            Self::Tls(host, port) => ("https", host, port),
        };
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

impl Address {
    /// Whoever is between us and the master can read and change what is said.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let Self::Plain(host, _) = self else { return false };
        host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, open) in [
            ("unix:///run/hafen/coordinator.sock", false),
            ("http://127.0.0.1:7000", false),
            ("http://localhost:7000", false),
            ("http://[::1]:7000", false),
            ("http://m.example:7000", true),
            ("https://m.example:7000", false),
            ("https://[2001:db8::1]:7000", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.to_string(), address.is_open()), (text.to_owned(), open));
        }
        for wrong in ["", "m:1", "unix://m", "https://m", "https://:1", "tcp://m:1", "http://u@m:1"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
