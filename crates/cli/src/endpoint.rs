//! Where a server is, as people write it.

use rpc::client::TlsFiles;

use crate::failure::Failure;

/// An endpoint as it is used: with a scheme, which is https where a CA is named.
pub fn with_scheme(endpoint: &str, tls: &TlsFiles) -> Result<String, Failure> {
    let endpoint = endpoint.trim().trim_end_matches('/');
    if endpoint.is_empty() {
        return Err(Failure::usage("an endpoint is empty").advise("write host:port, such as 127.0.0.1:2379"));
    }
    match endpoint.split_once("://") {
        Some(("http" | "https", _)) => Ok(endpoint.to_owned()),
        Some((scheme, _)) => {
            Err(Failure::usage(format!("{endpoint}: `{scheme}` is not spoken here")).advise("use http:// or https://"))
        }
        None if tls.ca.is_some() || tls.trust_anyone => Ok(format!("https://{endpoint}")),
        None => Ok(format!("http://{endpoint}")),
    }
}

/// A member's Raft address: `host:port`, with or without a scheme.
pub fn peer_url(text: &str) -> Result<String, Failure> {
    let text = text.trim().trim_end_matches('/');
    let address = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(text.to_owned()),
        _ => {
            Err(Failure::usage(format!("`{text}` is no peer address")).advise("write host:port, such as 10.0.0.4:2380"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_addresses() {
        assert_eq!(peer_url("10.0.0.4:2380").unwrap(), "10.0.0.4:2380");
        assert_eq!(peer_url("https://node:2380/").unwrap(), "https://node:2380");
        for bad in ["node", "node:", ":2380", "node:port", "node:0"] {
            assert!(peer_url(bad).is_err(), "{bad}");
        }
    }
}
