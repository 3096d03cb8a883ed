//! What both worlds are made of: [`queue`] the order of everything · [`net`] messages and their fates · [`clock`] each node's
//! own · [`shadow`] what is really on a disk · [`trace`] every step, hashed and printed.

pub mod clock;
pub mod net;
pub mod queue;
pub mod shadow;
pub mod trace;

/// A millisecond and a second of a world.
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
