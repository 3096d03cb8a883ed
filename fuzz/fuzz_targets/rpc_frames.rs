//! A client port given well-formed HTTP/2 frames of any kind, flags, stream and payload; header blocks among them reach the
//! decoder of compressed headers.
#![no_main]

#[path = "../connection.rs"]
mod connection;

use libfuzzer_sys::fuzz_target;

const FRAME_BYTES_MAX: usize = 16 << 10;

fuzz_target!(|frames: Vec<(u8, u8, u8, Vec<u8>)>| {
    let mut bytes = connection::PREFACE.to_vec();
    // The settings that a client begins with.
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    for (kind, flags, stream, mut payload) in frames {
        payload.truncate(FRAME_BYTES_MAX);
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind % 11, flags, 0, 0, 0, stream]);
        bytes.extend_from_slice(&payload);
    }
    connection::serve(bytes);
});
