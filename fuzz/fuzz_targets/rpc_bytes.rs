//! A client port given any bytes, after HTTP/2's preface or without it.
#![no_main]

#[path = "../connection.rs"]
mod connection;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (is_http2, bytes) = input;
    let preface = if is_http2 { connection::PREFACE } else { b"" };
    connection::serve([preface, bytes].concat());
});
