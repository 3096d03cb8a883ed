//! A snapshot's stream is read back in any pieces, and anything else than a whole stream is refused.

use bytes::Bytes;
use proto::snapshot::{BadSnapshot, Content, FILE_DIGEST_BYTES, Header, Reader, Writer};

const FAMILIES: u8 = 4;

fn header() -> Header {
    Header {
        raft_index: 70,
        raft_term: 3,
        hash: 0xabc,
        revision: 42,
        since: None,
        membership: Bytes::from_static(b"members"),
    }
}

fn stream(pairs: &[(u8, &str, &str)], cut: usize) -> Vec<u8> {
    stream_of(&header(), pairs, cut)
}

fn stream_of(header: &Header, pairs: &[(u8, &str, &str)], cut: usize) -> Vec<u8> {
    let mut writer = Writer::default();
    let mut out = writer.header(header).to_vec();
    let mut data = Vec::new();
    for (family, key, value) in pairs {
        writer.put_pair(&mut data, *family, key.as_bytes(), value.as_bytes());
    }
    for payload in data.chunks(cut) {
        out.extend_from_slice(&writer.data(payload));
    }
    out.extend_from_slice(&writer.trailer());
    out
}

const PAIRS: [(u8, &str, &str); 3] = [(0, "a", "one"), (0, "b", ""), (2, "a", "x")];

fn read(bytes: &[u8], piece: usize) -> Result<(Content, Vec<String>), BadSnapshot> {
    let mut reader = Reader::new(FAMILIES);
    let mut seen = Vec::new();
    for piece in bytes.chunks(piece) {
        reader.feed(piece);
        while let Some(pair) = reader.pair()? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            seen.push(format!("{} {}={}", pair.family, text(pair.key), text(pair.value)));
        }
    }
    Ok((reader.finish()?, seen))
}

#[test]
fn a_stream_is_read_in_any_pieces() {
    for cut in [1, 12, 1000] {
        let stream = stream(&PAIRS, cut);
        assert_eq!((stream.len() + FILE_DIGEST_BYTES) % 512, 32);
        for piece in [1, 7, 10_000] {
            let (content, pairs) = read(&stream, piece).unwrap();
            assert_eq!((content.header, content.keys, content.bytes), (header(), 2, stream.len() as u64));
            assert_eq!(pairs, ["0 a=one", "0 b=", "2 a=x"]);
        }
    }
    assert_eq!(read(&stream(&[], 1), 3).unwrap().0.keys, 0);
}

#[test]
fn every_flipped_byte_and_every_cut_is_seen() {
    let intact = stream(&PAIRS, 12);
    for at in 0..intact.len() {
        let mut flipped = intact.clone();
        flipped[at] ^= 0x40;
        assert!(read(&flipped, 64).is_err(), "byte {at}");
        assert!(read(&intact[..at], 64).is_err(), "cut at {at}");
    }
    assert!(read(&[&intact[..], &intact[..]].concat(), 64).is_err());
}

#[test]
fn pairs_that_no_server_writes_are_refused() {
    for pairs in [[(0, "b", ""), (0, "a", "")], [(0, "a", ""), (0, "a", "")], [(1, "a", ""), (0, "b", "")]] {
        assert_eq!(read(&stream(&pairs, 100), 64).unwrap_err().0, "pairs are out of order");
    }
    assert_eq!(read(&stream(&[(FAMILIES, "a", "")], 100), 64).unwrap_err().0, "a pair makes no sense");
}

#[test]
fn an_error_is_final() {
    let intact = stream(&PAIRS, 12);
    let mut reader = Reader::new(FAMILIES);
    reader.feed(&[9; 64]);
    assert!(reader.pair().is_err());
    reader.feed(&intact);
    assert!(reader.pair().is_err() && reader.finish().is_err());
}

#[test]
fn changes_say_where_they_begin_and_whose_they_are() {
    // Field 1 of a membership is the cluster; what else there is does not matter here.
    let membership = Bytes::from_static(&[0x08, 0xC1, 0x01, 0x12, 0x02, 0x08, 0x01]);
    let changes = Header { since: Some(40), membership, ..header() };
    let (content, _) = read(&stream_of(&changes, &PAIRS, 12), 7).unwrap();
    assert_eq!((content.header.since, content.header.cluster()), (Some(40), 0xC1));
    assert_eq!(content.header, changes);
    assert_eq!(header().cluster(), 0, "a membership that makes no sense names no cluster");
    let mut cut = stream_of(&changes, &[], 12);
    cut.truncate(40);
    assert!(read(&cut, 64).is_err());
}
