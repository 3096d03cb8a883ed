//! Who is who. A *node* is a label that people use (1, 2, 3 …); a *peer* is one incarnation of a data folder
//! and is what Raft knows; a *group* is one Raft group; a *cluster* is the set of nodes that share a founding.
//!
//! A peer id is drawn anew for every incarnation and never used twice, so that a wiped or cloned folder can
//! never act under an old identity.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $show:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $show, self.0)
            }
        }

        impl From<u64> for $name {
            fn from(raw: u64) -> Self {
                Self(raw)
            }
        }
    };
}

id!(
    /// The label of a node, chosen by the operator or drawn for an etcd-style member. Zero means none.
    NodeId,
    "{}"
);
id!(
    /// One incarnation of a data folder, as Raft knows it. Random, never reused. Zero means none.
    PeerId,
    "{:x}"
);
id!(
    /// A Raft group within a host.
    GroupId,
    "{}"
);
id!(
    /// The founding that a set of nodes shares. Zero means not founded.
    ClusterId,
    "{:x}"
);

impl PeerId {
    pub const NONE: PeerId = PeerId(0);

    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}
