//! Commands of Chainfire, as they lie in its log: what can be decoded comes back the same after encoding, and is none of a later
//! version. Their file is compiled in here by itself, because the rest of its crate stands on RocksDB.
#![no_main]

#[allow(dead_code)]
#[path = "../../crates/chainfire/src/command.rs"]
mod command;

use bytes::Bytes;
use command::Command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let unknown = Command::unknown_tag(bytes);
    if let Ok(command) = Command::decode(Bytes::copy_from_slice(bytes)) {
        assert_eq!(unknown, None);
        assert!(Command::decode(command.encode()).as_ref() == Ok(&command));
    }
});

/// Of the errors those that commands name.
mod error {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ApiError {
        LeaderChanged,
        MalformedCommand,
    }
}
