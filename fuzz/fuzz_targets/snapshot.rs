//! Snapshot streams, as they come and as frames under good checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::snapshot::{Header, Reader, Writer};

const FAMILIES: u8 = 4;

fuzz_target!(|input: (bool, u8, Vec<u8>)| {
    let (framed, cut, data) = input;
    if !framed {
        read(&data, usize::from(cut).max(1));
        return;
    }
    let cut = usize::from(cut).max(1);
    let mut writer = Writer::default();
    let mut stream = writer.header(&Header::default()).to_vec();
    data.chunks(cut).for_each(|payload| stream.extend_from_slice(&writer.data(payload)));
    stream.extend_from_slice(&writer.trailer());
    read(&stream, cut);
});

fn read(stream: &[u8], piece: usize) {
    let mut reader = Reader::new(FAMILIES);
    let mut given = 0;
    for piece in stream.chunks(piece) {
        reader.feed(piece);
        while let Ok(Some(pair)) = reader.pair() {
            assert!(pair.family < FAMILIES);
            given += pair.key.len() + pair.value.len();
        }
    }
    assert!(given <= stream.len());
    if let Ok(content) = reader.finish() {
        assert_eq!(content.bytes, stream.len() as u64);
    }
}
