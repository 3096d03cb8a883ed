//! Who a member is. It is known by its gossip address; of several identities with one address the latest wins: a process
//! that was started later (`generation`), was told that it is down and came back (`renewal`), or has something new to say
//! of itself (`revision`).
//!
//! | bytes | full | key |
//! |---|---|---|
//! | 8 peer, 8 generation, 4 renewal, 4 revision, address | ✓ | ✓ |
//! | 8 cluster, 8 node, 1 role, Raft address, version, 1 number of URLs, URLs | ✓ | |
//!
//! Numbers are little-endian. A text is one byte of length and so many printable ASCII characters: what is shown to
//! people and written into logs cannot break their lines. The key is what tells identities apart; it stands where a message
//! only addresses somebody.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use base::{ClusterId, NodeId, PeerId};
use bytes::{Buf, BufMut};

const TEXT_BYTES_MAX: usize = 255;
const URLS_MAX: usize = 4;
/// No encoded identity is longer.
pub const BYTES_MAX: usize = 24 + 17 + (4 + URLS_MAX) * (1 + TEXT_BYTES_MAX);

#[derive(Clone)]
pub struct Identity {
    /// `host:port` where it is reached by gossip.
    pub address: Arc<str>,
    /// The incarnation of its data folder.
    pub peer: PeerId,
    /// When its process was started, in milliseconds since 1970; later if that would not win.
    pub generation: u64,
    pub renewal: u32,
    pub revision: u32,
    /// Not part of what tells identities apart: it changes with the revision only.
    pub about: Arc<About>,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Zero: it belongs to none yet.
    pub cluster: ClusterId,
    /// Zero: its cluster has not named it yet.
    pub node: NodeId,
    pub role: Role,
    pub raft_address: String,
    /// The first few.
    pub client_urls: Vec<String>,
    pub version: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It belongs to no cluster, or its cluster does not know it.
    #[default]
    Waiting = 0,
    Follower = 1,
    Leader = 2,
    Learner = 3,
    /// It is stopping in good order.
    Leaving = 4,
    /// One of a later version.
    Other = 255,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Waiting => "waiting",
            Role::Follower => "follower",
            Role::Leader => "leader",
            Role::Learner => "learner",
            Role::Leaving => "leaving",
            Role::Other => "other",
        }
    }

    fn from_byte(byte: u8) -> Role {
        match byte {
            0 => Role::Waiting,
            1 => Role::Follower,
            2 => Role::Leader,
            3 => Role::Learner,
            4 => Role::Leaving,
            _ => Role::Other,
        }
    }
}

impl About {
    /// Cut down to what can be told: texts that are too long or not printable are left out.
    pub fn bounded(mut self) -> About {
        self.client_urls.retain(|url| is_text(url));
        self.client_urls.truncate(URLS_MAX);
        for text in [&mut self.raft_address, &mut self.version] {
            if !is_text(text) {
                text.clear();
            }
        }
        self
    }
}

impl Identity {
    /// `None` when the address cannot be told to anyone.
    pub fn new(address: &str, peer: PeerId, generation: u64, about: About) -> Option<Identity> {
        is_address(address).then(|| Identity {
            address: address.into(),
            peer,
            generation,
            renewal: 0,
            revision: 0,
            about: Arc::new(about.bounded()),
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.encode_key();
        let About { cluster, node, role, raft_address, client_urls, version } = &*self.about;
        out.put_u64_le(cluster.0);
        out.put_u64_le(node.0);
        out.put_u8(*role as u8);
        put_text(&mut out, raft_address);
        put_text(&mut out, version);
        out.put_u8(client_urls.len() as u8);
        client_urls.iter().for_each(|url| put_text(&mut out, url));
        out
    }

    /// `None` when the bytes are not an identity.
    pub fn decode(bytes: &mut &[u8]) -> Option<Identity> {
        let key = Identity::decode_key(bytes)?;
        let cluster = ClusterId(bytes.try_get_u64_le().ok()?);
        let node = NodeId(bytes.try_get_u64_le().ok()?);
        let role = Role::from_byte(bytes.try_get_u8().ok()?);
        let raft_address = take_text(bytes)?;
        let version = take_text(bytes)?;
        let urls = usize::from(bytes.try_get_u8().ok()?);
        if urls > URLS_MAX {
            return None;
        }
        let client_urls = (0..urls).map(|_| take_text(bytes)).collect::<Option<Vec<_>>>()?;
        let about = About { cluster, node, role, raft_address, client_urls, version };
        Some(Identity { about: Arc::new(about), ..key })
    }

    pub(crate) fn encode_key(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.put_u64_le(self.peer.0);
        out.put_u64_le(self.generation);
        out.put_u32_le(self.renewal);
        out.put_u32_le(self.revision);
        put_text(&mut out, &self.address);
        out
    }

    /// An identity that says nothing of itself.
    pub(crate) fn decode_key(bytes: &mut &[u8]) -> Option<Identity> {
        let peer = PeerId(bytes.try_get_u64_le().ok()?);
        let generation = bytes.try_get_u64_le().ok()?;
        let renewal = bytes.try_get_u32_le().ok()?;
        let revision = bytes.try_get_u32_le().ok()?;
        let address = take_text(bytes).filter(|address| is_address(address))?;
        Some(Identity { address: address.into(), peer, generation, renewal, revision, about: Arc::default() })
    }

    /// This identity, with something else to say of itself.
    pub(crate) fn revised(&self, about: About) -> Identity {
        Identity { revision: self.revision.saturating_add(1), about: Arc::new(about.bounded()), ..self.clone() }
    }

    /// Whether members of the two clusters may know each other; zero is none yet.
    pub fn is_of(&self, cluster: ClusterId) -> bool {
        let own = self.about.cluster;
        own == cluster || own == ClusterId::default() || cluster == ClusterId::default()
    }

    fn age(&self) -> (u64, u32, u32, PeerId) {
        (self.generation, self.renewal, self.revision, self.peer)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.age() == other.age() && self.address == other.address
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { address, generation, renewal, revision, .. } = self;
        write!(f, "{address}@{generation}.{renewal}.{revision}")
    }
}

impl foca::Identity for Identity {
    type Addr = Arc<str>;

    fn renew(&self) -> Option<Identity> {
        Some(Identity { renewal: self.renewal.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> Arc<str> {
        self.address.clone()
    }

    fn win_addr_conflict(&self, adversary: &Identity) -> bool {
        self.age().cmp(&adversary.age()) == Ordering::Greater
    }
}

fn is_text(text: &str) -> bool {
    text.len() <= TEXT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_address(text: &str) -> bool {
    is_text(text) && text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = usize::from(bytes.try_get_u8().ok()?);
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok().filter(|text| is_text(text))
}
