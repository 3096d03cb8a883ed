//! Floor 0: the words every other crate speaks. Ids, time as a plain number, seeded randomness, ordered key
//! codecs and the hash that replicas compare.
//!
//! Nothing here reads a clock, draws from a global random source, opens a socket or spawns a task: time and
//! seeds come in as arguments, so that everything built on this floor can be replayed.

pub mod codec;
pub mod hash;
pub mod ids;
pub mod moment;
pub mod rng;
pub mod time;

pub use ids::{ClusterId, GroupId, NodeId, PeerId};
pub use moment::Moment;
pub use rng::Rng;
pub use time::Time;

/// The folder of the crate that says this, for tests that read its files. As cargo says at run time: a program may have been built
/// in another checkout.
#[macro_export]
macro_rules! crate_folder {
    () => {
        ::std::path::PathBuf::from(
            ::std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()),
        )
    };
}
