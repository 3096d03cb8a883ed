//! Where a node gossips: at an address that is named, beside its Raft address, or nowhere.

use std::net::SocketAddr;

use node::GossipOptions;
use node::options::overlap;
use settings::listen::is_loopback;

/// What is asked for, and what it has to go together with.
pub(crate) struct GossipAddress<'a> {
    /// `auto`, `off`, or an address.
    pub given: &'a str,
    pub raft: SocketAddr,
    pub clients: &'a [SocketAddr],
    /// Whether members speak TLS.
    pub secure: bool,
}

impl GossipAddress<'_> {
    /// `None`: nowhere. The error begins with "is".
    pub fn options(&self) -> Result<Option<GossipOptions>, String> {
        let listen = match self.given {
            "off" => return Ok(None),
            "auto" => {
                let port = self.raft.port().checked_add(1);
                let port = port.ok_or("is \"auto\", but there is no port above that of Raft: name an address")?;
                SocketAddr::new(self.raft.ip(), port)
            }
            address => address.parse().map_err(|_| "is no address".to_owned())?,
        };
        if !is_loopback(&listen) && !self.secure {
            return Err(format!(
                "is {listen}, but off loopback nodes speak to each other under TLS only: name cert_file, key_file and \
                 ca_file in [network.tls] (scripts/generate-dev-certs.sh makes them), or use an address such as \
                 127.0.0.1:2381"
            ));
        }
        if let Some(taken) = self.clients.iter().find(|taken| overlap(taken, &listen)) {
            return Err(format!("is {listen}, but clients are served at {taken} already: name another, or \"off\""));
        }
        if overlap(&self.raft, &listen) {
            return Err(format!("is {listen}, where Raft listens already: name another, or \"off\""));
        }
        Ok(Some(GossipOptions { listen, required: true }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: &str, raft: &str, secure: bool) -> Result<Option<SocketAddr>, String> {
        let clients = ["127.0.0.1:2379".parse().unwrap()];
        let address = GossipAddress { given, raft: raft.parse().unwrap(), clients: &clients, secure };
        address.options().map(|options| options.map(|options| options.listen))
    }

    #[test]
    fn it_is_beside_raft_unless_told_otherwise() {
        let at = |text: &str| Ok(Some(text.parse().unwrap()));
        assert_eq!(options("auto", "127.0.0.1:2380", false), at("127.0.0.1:2381"));
        assert_eq!(options("auto", "127.0.0.7:4000", false), at("127.0.0.7:4001"));
        assert_eq!(options("auto", "10.0.0.1:2380", true), at("10.0.0.1:2381"));
        assert_eq!(options("127.0.0.3:9", "127.0.0.1:2380", false), at("127.0.0.3:9"));
        assert_eq!(options("off", "127.0.0.1:2380", false), Ok(None));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let refused = |given: &str, raft: &str| options(given, raft, false).unwrap_err();
        assert!(refused("10.0.0.1:2381", "127.0.0.1:2380").contains("under TLS only"));
        assert!(refused("0.0.0.0:2381", "127.0.0.1:2380").contains("under TLS only"));
        assert!(refused("127.0.0.1:2379", "127.0.0.1:2380").contains("clients are served at 127.0.0.1:2379"));
        assert!(refused("auto", "127.0.0.1:2378").contains("clients are served at"));
        assert!(refused("127.0.0.1:2380", "127.0.0.1:2380").contains("where Raft listens"));
        assert!(refused("auto", "127.0.0.1:65535").contains("no port above"));
        assert!(options("0.0.0.0:2380", "127.0.0.1:2380", true).unwrap_err().contains("where Raft listens"));
    }
}
