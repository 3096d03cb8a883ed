//! The raft crate trusts its messages and stops the process at absurd ones. So each message is checked first: a
//! damaged, forged or misdirected one is dropped and reported, and can neither crash the host nor make it
//! contradict itself.

use base::PeerId;
use raft::eraftpb::{Message, MessageType};
use raft::{Raft, StateRole};

use crate::log::LogView;

/// The raft crate's mark on votes that a leader asked for.
pub(crate) const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

const CONTEXT_BYTES_MAX: usize = 64;
/// Terms grow by one an election. At ten elections a second this takes thirteen years; a few messages that leap further
/// would use all terms up, and there would never be a leader again.
const TERM_LEAP_MAX: u64 = 1 << 32;

/// `Err` says in words why the message must not be stepped.
pub(crate) fn raft_message(message: &Message, from: PeerId, to: PeerId, raft: &Raft<LogView>) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{why} in {:?}", message.msg_type));
    if message.from != from.0 || message.to != to.0 || from.is_none() || from == to {
        return fail("wrong sender or receiver");
    }
    let Some(kind) = message_type(message.msg_type) else {
        return fail("unknown type");
    };
    if message.term == 0 {
        return fail("no term");
    }
    if message.term.saturating_sub(raft.term) > TERM_LEAP_MAX {
        return fail("a term from far away");
    }
    if message.context.len() > CONTEXT_BYTES_MAX {
        return fail("oversized context");
    }
    if kind != MessageType::MsgAppend && !message.entries.is_empty() {
        return fail("unexpected entries");
    }
    match kind {
        MessageType::MsgAppend => append(message, raft),
        MessageType::MsgHeartbeat => {
            if message.term >= raft.term && message.commit > raft.raft_log.last_index() {
                return fail("commit beyond the log");
            }
            Ok(())
        }
        // Only a leader listens. One that restarted may hear of entries it lost, acknowledged to its earlier life.
        MessageType::MsgAppendResponse if raft.state != StateRole::Leader => Ok(()),
        MessageType::MsgAppendResponse => {
            if message.index > raft.raft_log.last_index() && message.term == raft.term && !message.reject {
                return fail("acknowledged index beyond the log");
            }
            if message.commit > raft.raft_log.last_index() && message.term == raft.term {
                return fail("commit beyond the log");
            }
            Ok(())
        }
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            if metadata.index == 0 || metadata.term == 0 || metadata.term > message.term {
                return fail("absurd snapshot");
            }
            Ok(())
        }
        MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        // Proposals, reads and transfers travel in messages of our own.
        _ => fail("a type that does not travel"),
    }
}

fn append(message: &Message, raft: &Raft<LogView>) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{why} in an append after {}", message.index));
    if message.log_term > message.term {
        return fail("a term from the future");
    }
    let mut index = message.index;
    let mut term = message.log_term;
    for entry in &message.entries {
        if index.checked_add(1) != Some(entry.index) {
            return fail("a gap");
        }
        if entry.term < term || entry.term > message.term || !(0..=2).contains(&entry.entry_type) {
            return fail("an entry out of order");
        }
        (index, term) = (entry.index, entry.term);
    }
    if message.term >= raft.term {
        let committed = raft.raft_log.committed;
        let contradicts = message
            .entries
            .iter()
            .take_while(|entry| entry.index <= committed)
            // Zero: the entry is compacted. What the turn has appended so far counts too.
            .any(|entry| raft.raft_log.term(entry.index).is_ok_and(|ours| ours != 0 && ours != entry.term));
        if contradicts {
            return fail("a contradiction to what is committed");
        }
    }
    Ok(())
}

fn message_type(raw: i32) -> Option<MessageType> {
    (0..=18).contains(&raw).then(|| MessageType::from_i32(raw)).flatten()
}
