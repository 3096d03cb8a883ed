//! Who the others are, where they are, and how far a certificate vouches for whoever has connected.
//!
//! An address is either *agreed* (the membership's, or that of an initial member in the configuration) or only *said*, by the
//! node itself as it connected. What is said serves to answer; it proves nothing.
//!
//! | [`Standing`] | its certificate names | it may |
//! |---|---|---|
//! | `Member` | a node that this one knows, by number or by an agreed address | take part |
//! | `Named` | a node that is not known (yet, or any more), by number | ask; take part, as a leader may that was added while this node was away |
//! | `Stranger` | only the address that its owner gives itself | ask to be let in; take part once a member says that it is one |
//!
//! Without certificates everything is on loopback, and everybody is believed.

use std::collections::{BTreeMap, BTreeSet};

use base::{NodeId, PeerId};
use consensus::Membership;
use rustls::pki_types::CertificateDer;

use super::bare_address;
use super::frame::Hello;
use crate::tls::{self, Program, Vouched};

/// Addresses that were only said.
const SAID_MAX: usize = 64;

/// Who is at the other end of a connection, as far as that is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub node: NodeId,
    pub peer: PeerId,
    /// Where it says that it is.
    pub address: String,
    pub standing: Standing,
}

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    Named,
    Stranger,
}

#[derive(Default)]
pub struct Directory {
    program: Program,
    agreed: BTreeMap<NodeId, Vec<String>>,
    said: BTreeMap<NodeId, String>,
    peers: BTreeMap<PeerId, NodeId>,
    removed: BTreeSet<NodeId>,
}

impl Directory {
    /// Of a program's members.
    pub fn of(program: Program) -> Directory {
        Directory { program, ..Directory::default() }
    }

    /// Where a node is to be found.
    pub fn addresses(&self, node: NodeId) -> Option<Vec<String>> {
        self.agreed.get(&node).cloned().or_else(|| self.said.get(&node).map(|address| vec![address.clone()]))
    }

    /// Everybody who is agreed upon.
    pub fn agreed(&self) -> impl Iterator<Item = (NodeId, &[String])> {
        self.agreed.iter().map(|(node, addresses)| (*node, addresses.as_slice()))
    }

    pub fn agree(&mut self, node: NodeId, addresses: Vec<String>) {
        if !addresses.is_empty() {
            self.said.remove(&node);
            self.agreed.insert(node, addresses);
        }
    }

    /// Where a node that is not agreed upon says that it is.
    pub fn hear(&mut self, node: NodeId, address: &str) {
        let known = self.agreed.contains_key(&node) || address.is_empty();
        if !known && (self.said.len() < SAID_MAX || self.said.contains_key(&node)) {
            self.said.insert(node, address.to_owned());
        }
    }

    pub fn learn(&mut self, membership: &Membership) {
        for member in membership.members.values() {
            self.agree(member.node, member.peer_urls.clone());
            let peers = [member.peer, member.successor].into_iter().filter(|peer| !peer.is_none());
            self.peers.extend(peers.map(|peer| (peer, member.node)));
        }
        self.removed = membership.removed.iter().copied().collect();
        for node in &self.removed {
            self.agreed.remove(node);
            self.said.remove(node);
        }
    }

    /// Who has greeted, or why that cannot be so. `certificate`: what it showed, its chain checked; `None` without TLS.
    pub fn vouch(&self, certificate: Option<&CertificateDer<'_>>, hello: &Hello) -> Result<Caller, String> {
        let standing = match certificate {
            Some(certificate) => self.standing(certificate, hello.node, &hello.address)?,
            None if self.agreed.contains_key(&hello.node) => Standing::Member,
            None => Standing::Named,
        };
        // Whoever is being let in has a peer id here before it has a number.
        if hello.cluster.0 != 0 {
            self.owns(hello.node, hello.peer)?;
        }
        Ok(Caller { node: hello.node, peer: hello.peer, address: hello.address.clone(), standing })
    }

    /// How a certificate stands to the claim that its owner is `node`, and listens at `address`.
    pub fn standing(&self, certificate: &CertificateDer<'_>, node: NodeId, address: &str) -> Result<Standing, String> {
        let agreed = self.agreed.get(&node);
        let hosts = agreed.map_or_else(|| vec![address], |known| known.iter().map(String::as_str).collect());
        let vouched = tls::names_member(self.program, certificate, node, hosts.iter().copied())
            .map_err(|why| format!("certificate verify failed: {why}"))?;
        match (agreed, vouched) {
            (Some(_), Some(_)) => Ok(Standing::Member),
            (None, Some(Vouched::ByNumber)) if !self.removed.contains(&node) => Ok(Standing::Named),
            (None, Some(_)) => Ok(Standing::Stranger),
            (_, None) => Err(format!(
                "certificate verify failed: it names neither {} nor {}, and so does not belong to node {node}",
                self.program.name_of(node),
                hosts.iter().map(|address| tls::host_of(address)).collect::<Vec<_>>().join(", ")
            )),
        }
    }

    /// Nobody speaks under a peer id that is another's.
    pub fn owns(&self, node: NodeId, peer: PeerId) -> Result<(), String> {
        match self.peers.get(&peer) {
            Some(owner) if *owner != node => {
                Err(format!("peer {peer} belongs to node {owner}, and not to node {node}"))
            }
            _ => Ok(()),
        }
    }
}

impl Caller {
    /// Whether an address is the one that the caller has given itself.
    pub fn is_at(&self, address: &str) -> bool {
        bare_address(&self.address) == bare_address(address)
    }
}

#[cfg(test)]
mod tests {
    use consensus::Member;
    use rustls::pki_types::pem::PemObject as _;

    use super::super::frame::Purpose;
    use super::*;
    use crate::tls::tests::Authority;

    fn directory() -> Directory {
        let member = |node: u64| Member {
            node: NodeId(node),
            peer: PeerId(node + 10),
            peer_urls: vec![format!("https://10.0.0.{node}:2380")],
            ..Member::default()
        };
        let mut membership = Membership::founding(base::ClusterId(1), (1..=3).map(member).collect());
        membership.removed.push(NodeId(4));
        let mut directory = Directory::default();
        directory.learn(&membership);
        directory
    }

    fn certificate(names: &[&str], client: bool) -> CertificateDer<'static> {
        let pem = Authority::new("ca").sign(names, client, false).0;
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn hello(node: u64, peer: u64, address: &str) -> Hello {
        Hello {
            purpose: Purpose::Messages,
            cluster: base::ClusterId(1),
            node: NodeId(node),
            peer: PeerId(peer),
            address: address.to_owned(),
        }
    }

    #[test]
    fn a_certificate_vouches_for_whom_it_names() {
        let directory = directory();
        let stand = |names: &[&str], hello: &Hello| {
            directory.vouch(Some(&certificate(names, false)), hello).map(|caller| caller.standing)
        };
        let two = hello(2, 12, "10.0.0.2:2380");
        assert_eq!(stand(&["chainfire-node-2"], &two), Ok(Standing::Member));
        assert_eq!(stand(&["10.0.0.2"], &two), Ok(Standing::Member));
        assert!(stand(&["10.0.0.3"], &two).is_err(), "another member's host");
        assert!(stand(&["10.0.0.9"], &hello(2, 12, "10.0.0.9:2380")).is_err(), "where a member is, is agreed");
        assert!(stand(&["chainfire-node-3", "10.0.0.2"], &two).is_err(), "whoever has a number is that one only");
        assert_eq!(stand(&["chainfire-node-9"], &hello(9, 19, "h:1")), Ok(Standing::Named));
        assert_eq!(stand(&["chainfire-node-4"], &hello(4, 14, "h:1")), Ok(Standing::Stranger), "it was removed");
        assert_eq!(stand(&["10.0.0.9"], &hello(9, 19, "10.0.0.9:2380")), Ok(Standing::Stranger));
        assert!(stand(&["client"], &hello(9, 19, "10.0.0.9:2380")).is_err());
        assert_eq!(directory.vouch(None, &two).unwrap().standing, Standing::Member);
    }

    #[test]
    fn certificates_of_clients_and_of_other_programs_vouch_for_nobody() {
        let directory = directory();
        let client = hello(9, 19, "client:2380");
        let why = directory.vouch(Some(&certificate(&["client"], true)), &client).unwrap_err();
        assert!(why.contains("not made for members"), "{why}");
        let store = certificate(&["flaredb-node-2", "10.0.0.2"], false);
        let why = directory.vouch(Some(&store), &hello(2, 12, "10.0.0.2:2380")).unwrap_err();
        assert!(why.contains("flaredb-node-2"), "{why}");
    }

    #[test]
    fn nobody_takes_another_members_peer_id() {
        let directory = directory();
        let certificate = certificate(&["chainfire-node-2"], false);
        assert!(directory.vouch(Some(&certificate), &hello(2, 13, "")).unwrap_err().contains("belongs to node 3"));
        assert!(directory.vouch(None, &hello(2, 13, "")).is_err(), "without certificates neither");
        assert!(directory.vouch(Some(&certificate), &hello(2, 77, "")).is_ok(), "a new folder of its own");
    }

    #[test]
    fn what_is_said_is_bounded_and_never_in_place_of_what_is_agreed() {
        let mut directory = directory();
        directory.hear(NodeId(2), "10.9.9.9:1");
        assert_eq!(directory.addresses(NodeId(2)).unwrap(), ["https://10.0.0.2:2380"]);
        for node in 100..1_000 {
            directory.hear(NodeId(node), "10.9.9.9:1");
        }
        assert_eq!((100..1_000).filter(|node| directory.addresses(NodeId(*node)).is_some()).count(), SAID_MAX);
    }
}
