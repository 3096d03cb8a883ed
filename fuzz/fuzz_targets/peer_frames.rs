//! What a peer's connection brings: frames as they come and under good checksums, and in them greetings, what nodes say of
//! themselves before they are a cluster, messages of consensus, entries, memberships and marks.
#![no_main]

use std::io::Cursor;

use bytes::Bytes;
use consensus::entry::EntryData;
use consensus::membership::ChangeRecord;
use consensus::{Mark, Membership, Message};
use libfuzzer_sys::fuzz_target;
use node::founding::Standing;
use node::transport::frame::{self, Hello, Welcome};

fuzz_target!(|input: (bool, u8, Vec<u8>)| {
    let (framed, cut, data) = input;
    if !framed {
        read(&data);
        return;
    }
    let mut stream = Vec::new();
    data.chunks(usize::from(cut).max(1)).for_each(|payload| frame::put(&mut stream, payload));
    assert_eq!(read(&stream), data.chunks(usize::from(cut).max(1)).count());
    decode(&data);
});

/// Reads frames to the first error; says how many there were.
fn read(stream: &[u8]) -> usize {
    let mut stream = Cursor::new(stream);
    let mut frames = 0;
    while let Ok(payload) = frame::read(&mut stream, frame::SMALL_BYTES_MAX) {
        assert!(payload.len() <= frame::SMALL_BYTES_MAX);
        decode(&payload);
        frames += 1;
    }
    frames
}

fn decode(payload: &[u8]) {
    if let Some(hello) = Hello::decode(payload) {
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
    }
    if let Some(welcome) = Welcome::decode(payload) {
        assert_eq!(Welcome::decode(&welcome.encode()), Some(welcome));
    }
    if let Some(standing) = Standing::decode(Bytes::copy_from_slice(payload)) {
        assert_eq!(Standing::decode(standing.encode()), Some(standing));
    }
    if let Some(message) = Message::decode(Bytes::copy_from_slice(payload)) {
        assert!(Message::decode(message.encode()).is_some());
    }
    if let Some(membership) = Membership::decode(payload) {
        assert_eq!(Membership::decode(&membership.encode()), Some(membership));
    }
    if let Some(record) = ChangeRecord::decode(payload) {
        assert!(ChangeRecord::decode(&record.encode()).is_some());
    }
    assert_eq!(Mark::decode(payload).is_some(), payload.len() == Mark::BYTES);
    if let Some(bytes) = payload.first_chunk::<{ Mark::BYTES }>() {
        assert_eq!(Mark::decode(bytes).map(|mark| mark.encode()), Some(*bytes));
    }
    if let Some(EntryData::Commands(commands)) = EntryData::decode(Bytes::copy_from_slice(payload)) {
        assert!(commands.iter().map(|(_, command)| command.len()).sum::<usize>() <= payload.len());
    }
}
