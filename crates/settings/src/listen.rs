//! Addresses as people write them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An address that other nodes reach a node at.
#[derive(Debug, PartialEq, Eq)]
pub enum Plain {
    /// `http://HOST:PORT`.
    Address(String),
    /// `https://HOST:PORT`: it asks for TLS.
    Secure(String),
    /// It is no address.
    Wrong,
}

/// `HOST:PORT`, with or without a scheme, and nothing behind it.
pub fn peer_address(text: &str) -> Plain {
    let (secure, bare) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest.strip_suffix('/').unwrap_or(rest)),
        Some(("https", rest)) => (true, rest.strip_suffix('/').unwrap_or(rest)),
        Some(_) => return Plain::Wrong,
        None => (false, text),
    };
    match host_and_port(bare) {
        Some(_) if secure => Plain::Secure(format!("https://{bare}")),
        Some(_) => Plain::Address(format!("http://{bare}")),
        None => Plain::Wrong,
    }
}

/// Splits `HOST:PORT`; the host is a name, an IPv4 address, or an IPv6 address in brackets.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    const HOST_BYTES_MAX: usize = 253;
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let named = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let six = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let good = match six {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => named && !host.is_empty() && host.len() <= HOST_BYTES_MAX,
    };
    good.then_some((host, port))
}

/// An address to listen at: `IP:PORT` or `localhost:PORT`.
pub fn client_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = host_and_port(text)?;
    if host == "localhost" {
        return Some((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().ok()
}

/// Whether only this machine reaches the address.
pub fn is_loopback(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(four) => four.is_loopback(),
        IpAddr::V6(six) => six.is_loopback() || six.to_ipv4_mapped().is_some_and(|four| four.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let good = |address: &str| Plain::Address(format!("http://{address}"));
        assert_eq!(peer_address("127.0.0.1:2380"), good("127.0.0.1:2380"));
        assert_eq!(peer_address("http://node-1.example:2380/"), good("node-1.example:2380"));
        assert_eq!(peer_address("[::1]:2380"), good("[::1]:2380"));
        assert_eq!(peer_address("https://one:2380"), Plain::Secure("https://one:2380".to_owned()));
        for wrong in ["", "one", "one:", ":2380", "one:0", "one:99999", "a b:1", "unix://x:1", "http://one:1/path"] {
            assert_eq!(peer_address(wrong), Plain::Wrong, "{wrong}");
        }
    }

    #[test]
    fn only_addresses_of_this_machine_are_listened_at() {
        assert_eq!(client_address("localhost:1"), Some(([127, 0, 0, 1], 1).into()));
        assert!(client_address("example.org:1").is_none());
        assert!(is_loopback(&"127.0.0.3:1".parse().unwrap()));
        assert!(is_loopback(&"[::1]:1".parse().unwrap()));
        assert!(!is_loopback(&"0.0.0.0:1".parse().unwrap()));
        assert!(!is_loopback(&"10.0.0.1:1".parse().unwrap()));
    }
}
