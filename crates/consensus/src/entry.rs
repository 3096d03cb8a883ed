//! What an entry's data holds. All commands that one host proposes in one turn travel in one entry, so that the
//! log, the messages and the followers pay per turn and not per command.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind: 1 commands, 2 membership record |
//! | 8 | origin: the peer whose clients wait (little-endian) |
//! | 4 | number of commands |
//! | then, for each | 8 `seq`, 4 length, the command |
//!
//! The origin's applier answers its waiting clients when it applies the entry itself, wherever the leader was.

use base::PeerId;
use bytes::{Buf, BufMut, Bytes, BytesMut};

const KIND_COMMANDS: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;
const HEADER: usize = 13;
const COMMAND_HEADER: usize = 12;

/// A decoded entry's data.
#[derive(Clone, Debug)]
pub enum EntryData {
    Empty,
    Commands(Commands),
    /// An encoded [`crate::membership::ChangeRecord`].
    Membership(Bytes),
}

impl EntryData {
    /// `None` when the bytes make no sense.
    pub fn decode(data: Bytes) -> Option<EntryData> {
        match data.first() {
            None => Some(EntryData::Empty),
            Some(&KIND_COMMANDS) => Commands::decode(data).map(EntryData::Commands),
            Some(&KIND_MEMBERSHIP) => Some(EntryData::Membership(data.slice(1..))),
            Some(_) => None,
        }
    }

    pub fn membership(record: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(1 + record.len());
        out.put_u8(KIND_MEMBERSHIP);
        out.put_slice(record);
        out.freeze()
    }
}

/// Commands of one origin, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands {
    pub origin: PeerId,
    data: Bytes,
    count: u32,
}

impl Commands {
    /// Checks the whole structure, so that `iter` cannot fail.
    pub fn decode(data: Bytes) -> Option<Commands> {
        let mut rest = data.as_ref();
        if rest.len() < HEADER || rest.get_u8() != KIND_COMMANDS {
            return None;
        }
        let origin = PeerId(rest.get_u64_le());
        let count = rest.get_u32_le();
        for _ in 0..count {
            if rest.len() < COMMAND_HEADER {
                return None;
            }
            rest.advance(8);
            let length = rest.get_u32_le() as usize;
            rest = rest.get(length..)?;
        }
        rest.is_empty().then_some(Commands { origin, data, count })
    }

    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded form, as it lies in the log.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// (`seq`, command) in order; the commands share the entry's memory.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        let mut at = HEADER;
        (0..self.count).map(move |_| {
            let mut header = &self.data[at..at + COMMAND_HEADER];
            let seq = header.get_u64_le();
            let length = header.get_u32_le() as usize;
            at += COMMAND_HEADER + length;
            (seq, self.data.slice(at - length..at))
        })
    }

    /// The `seq`s alone.
    pub fn seqs(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter().map(|(seq, _)| seq)
    }
}

/// Packs commands into one entry's data.
#[derive(Debug)]
pub struct CommandsBuilder {
    bytes: BytesMut,
    count: u32,
}

impl CommandsBuilder {
    pub fn new(origin: PeerId) -> CommandsBuilder {
        let mut bytes = BytesMut::with_capacity(4096);
        bytes.put_u8(KIND_COMMANDS);
        bytes.put_u64_le(origin.0);
        bytes.put_u32_le(0);
        CommandsBuilder { bytes, count: 0 }
    }

    pub fn push(&mut self, seq: u64, command: &[u8]) {
        self.bytes.put_u64_le(seq);
        self.bytes.put_u32_le(u32::try_from(command.len()).expect("commands are bounded far below 4 GiB"));
        self.bytes.put_slice(command);
        self.count += 1;
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn finish(mut self) -> Bytes {
        self.bytes[9..13].copy_from_slice(&self.count.to_le_bytes());
        self.bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_round_trip_and_damage_is_refused() {
        let mut builder = CommandsBuilder::new(PeerId(9));
        builder.push(3, b"abc");
        builder.push(4, b"");
        let data = builder.finish();
        let commands = Commands::decode(data.clone()).unwrap();
        assert_eq!(commands.origin, PeerId(9));
        assert_eq!(commands.iter().collect::<Vec<_>>(), [(3, Bytes::from("abc")), (4, Bytes::new())]);
        for cut in 1..data.len() {
            assert!(Commands::decode(data.slice(..cut)).is_none(), "cut at {cut}");
        }
        assert!(EntryData::decode(Bytes::from_static(&[9])).is_none());
        assert!(matches!(EntryData::decode(Bytes::new()), Some(EntryData::Empty)));
    }
}
