//! The rolling hash that replicas compare: each step folds what one log entry changed into the hash of all
//! entries before it, so that equal hashes at one index mean equal histories.

/// The hash before anything was applied.
pub const START: u64 = 0;

/// Folds the effects of one entry (a serialized write batch) into the hash so far.
pub fn roll(hash: u64, effects: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(effects, hash)
}
