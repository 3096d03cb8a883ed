//! Snapshot streams, of states and of changes, as they come and as frames under good checksums; and the look into their
//! pairs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::content::{Check, FAMILIES};
use proto::snapshot::{Header, Reader, Writer};

fuzz_target!(|input: (bool, u8, Option<i64>, Vec<u8>)| {
    let (framed, cut, since, data) = input;
    if !framed {
        read(&data, usize::from(cut).max(1));
        return;
    }
    let cut = usize::from(cut).max(1);
    let mut writer = Writer::default();
    let mut stream = writer.header(&Header { since, revision: 1 << 20, ..Header::default() }).to_vec();
    data.chunks(cut).for_each(|payload| stream.extend_from_slice(&writer.data(payload)));
    stream.extend_from_slice(&writer.trailer());
    read(&stream, cut);
});

fn read(stream: &[u8], piece: usize) {
    let mut reader = Reader::new(FAMILIES);
    let mut check = Check::default();
    let mut given = 0;
    for piece in stream.chunks(piece) {
        reader.feed(piece);
        while let Ok(Some((pair, header))) = reader.pair_and_header() {
            assert!(pair.family < FAMILIES);
            given += pair.key.len() + pair.value.len();
            // Whether it makes sense does not matter here.
            let _ = check.pair(header, pair);
        }
    }
    assert!(given <= stream.len());
    let _ = check.finish(reader.header());
    if let Ok(content) = reader.finish() {
        assert_eq!(content.bytes, stream.len() as u64);
    }
}
