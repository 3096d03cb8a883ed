//! Records of the log: as they come, with nonsense under good checksums, and as they are written, whole and damaged.
#![no_main]

use base::GroupId;
use libfuzzer_sys::fuzz_target;
use storage::HardState;
use storage::log::LogStart;
use storage::seglog::record::{Kind, PartHead, RecordWriter, Shape, decode_record};

const SALT: u64 = 0x5A17;
const SEGMENT: u64 = 4;

/// A part: group, shape, first index, hard state, and the entries' terms, kinds and data.
type Part = (u64, u8, u32, Option<[u64; 3]>, Vec<(u64, u8, Vec<u8>)>);

fuzz_target!(|input: (u8, Vec<u8>, Vec<Part>, u16, u8)| {
    let (way, bytes, parts, at, mask) = input;
    match way % 3 {
        0 => walk(&bytes),
        1 => {
            let mut writer = RecordWriter::default();
            writer.begin(bytes.len());
            writer.meta(&bytes);
            writer.close();
            walk(writer.seal(SALT, SEGMENT, 1, Kind::State));
        }
        _ => written(&parts, at.into(), mask),
    }
});

/// What is taken lies within the bytes.
fn walk(bytes: &[u8]) {
    let Ok(record) = decode_record(bytes, SALT, SEGMENT) else { return };
    for entry in record.parts().flat_map(|part| part.entries()) {
        assert!(entry.at + u64::from(entry.bytes) <= bytes.len() as u64);
    }
}

/// What is written is read back, and not after any byte of it was changed or cut off.
fn written(parts: &[Part], at: usize, mask: u8) {
    let heads: Vec<PartHead> = parts.iter().map(head).collect();
    let mut writer = RecordWriter::default();
    writer.begin(heads.iter().map(PartHead::meta_bytes).sum());
    for (head, (.., entries)) in heads.iter().zip(parts) {
        writer.part(head);
        for (index, (term, kind, data)) in (head.first..).zip(entries) {
            writer.entry(SALT, head.group, index, *term, *kind, data);
        }
    }
    writer.close();
    let good = writer.seal(SALT, SEGMENT, 1, Kind::Batch).to_vec();
    let record = decode_record(&good, SALT, SEGMENT).expect("it was just written");
    assert!(record.parts().map(|part| part.head).eq(heads));
    let data = |at: u64, bytes: u32| &good[at as usize..at as usize + bytes as usize];
    let read = record.parts().flat_map(|part| part.entries()).map(|entry| (entry.term, data(entry.at, entry.bytes)));
    let wrote = parts.iter().flat_map(|(.., entries)| entries).map(|(term, kind, data)| (*term, [&[*kind], &data[..]].concat()));
    assert!(read.map(|(term, data)| (term, data.to_vec())).eq(wrote));
    if mask != 0 {
        let mut bad = good.clone();
        let at = at % bad.len();
        bad[at] ^= mask;
        assert!(decode_record(&bad, SALT, SEGMENT).is_err(), "byte {at}");
    }
}

fn head((group, shape, first, hard, entries): &Part) -> PartHead {
    let start = LogStart { index: u64::from(*first), term: 1 };
    PartHead {
        group: GroupId(*group),
        shape: match shape % 5 {
            0 => Shape::Same,
            1 => Shape::Destroy,
            2 => Shape::Reset(start),
            3 => Shape::Compact(start),
            _ => Shape::Kept(start, u64::from(*first) + 1),
        },
        moved: shape & 0x80 != 0,
        hard: hard.map(|[term, vote, commit]| HardState { term, vote, commit }),
        first: if entries.is_empty() { 0 } else { u64::from(*first) },
        count: entries.len() as u32,
    }
}
