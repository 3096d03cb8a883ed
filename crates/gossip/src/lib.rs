//! Floor 2: who is alive, at which address, in which version and role, as members tell one another (SWIM, by `foca`).
//! It informs people and helps nodes to find each other; it decides nothing. Who is a member of the cluster is Raft's to say.
//!
//! # The life of a suspicion
//! ```text
//!  every 400 ms: Ping one member ──no Ack in 160 ms──▶ PingReq to up to three others, who ping it for us
//!                                └─ nor by them before the 400 ms are over ─▶ SUSPECT, told along with all messages
//!  nobody listens at its address (its process died) ─────────────────────────▶ SUSPECT at once
//!      it hears of that, and refutes it with a higher incarnation ─▶ ALIVE     or does not within 3 s ─▶ DOWN
//! ```
//! Down is final for an identity. Whoever is told that it is down takes a new one (its next renewal) and is back; down
//! members are knocked at every two seconds, so that the halves of a healed network meet. A member that stops in good order
//! says so and is LEFT instead of down. A member that probes a silent one in a cluster of three finds out within four
//! periods, 1.6 s.
//!
//! # Rooms
//! [`identity`] who a member is, and the bytes of it · [`codec`] the bytes of a message, and what is taken from them ·
//! [`core`] the machine: [`Gossip::turn`] takes what came in and the time, and gives what is to be sent and what changed.
//!
//! # Invariants
//! 1. The same inputs, times and seed give the same outputs: no clock, no socket, no global randomness.
//! 2. Nothing of another cluster is taken in: not a message, nor a member that is mentioned in one. Whoever belongs to no
//!    cluster yet talks to everyone.
//! 3. Bounded: so many members, so long an address, so large a message; more is refused.
//! 4. A node that itself came late (it was paused, the machine is busy) blames nobody for the time that it missed.
//!
//! Left out: authentication and encryption. The shell (`node::gossip`) knows who is at the other end of a connection, and
//! passes on what came from there only if it claims to be from them.

pub mod codec;
pub mod core;
mod dice;
pub mod identity;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
#[cfg(test)]
mod tests;

pub use codec::{MESSAGE_BYTES_MAX, sender};
pub use core::{Change, Event, Gossip, Input, MEMBERS_MAX, Member, Output, Settings, State, Stats};
pub use identity::{About, Identity, Role};
