//! `chainfire check`: is a stopped node's data intact, and how far does it reach?
//!
//! Reads every record of the log and every block of the state against its checksum and changes nothing. What it prints is
//! what the folder itself proves: the honest way to choose which of several members has the most. Of two logs that one is
//! further whose last entry has the higher term, and with equal terms the one with the higher index, as Raft itself
//! chooses; the committed index is only what this node had heard of.

use std::path::Path;

use consensus::{Mark, MemberRole, Membership};
use node::node::GROUP;
use node::{Folder, Identity};
use serde_json::{Value, json};
use storage::log::LogState;
use storage::rocks::{self, StateFiles};
use storage::seglog::{self, LogCheck};

use super::arguments::Arguments;
use super::{DAMAGED, DONE, ExitCode, Failure, folder, print};
use crate::machine::layout;

pub const HELP: &str = "\
Checks the data of a stopped node, and says how far it reaches. Changes nothing.

Usage: chainfire check [--data-dir DIR] [--config FILE] [-o simple|json]

Every record of the Raft log and every block of the state is read against its checksum.
To choose the member that has the most, compare, in this order, raft_last_term and raft_last_index: highest wins.
raft_index is the highest index that this node knew to be committed.

Without --data-dir the folder is the one that the configuration names.
Exit codes: 0 intact, 1 could not be checked (no such folder, in use by a running node), 2 damaged.
";

/// What was found in a folder.
pub struct Found {
    pub identity: Identity,
    pub log: Result<LogCheck, String>,
    pub state: Result<Option<State>, String>,
    /// What a start would do about it, and what else there is to know.
    pub notes: Vec<String>,
}

/// A state in which every checksum is right.
pub struct State {
    pub mark: Mark,
    pub revision: i64,
    pub compacted: i64,
    pub membership: Membership,
    pub files: u64,
    pub bytes: u64,
}

pub fn run(given: &Arguments) -> Result<ExitCode, Failure> {
    let folder = folder(given)?;
    let found = look(&folder)?;
    if given.json {
        print(&format!("{:#}\n", found.json(folder.path())))?;
    } else {
        print(&found.lines(folder.path()))?;
    }
    Ok(if found.is_intact() { DONE } else { DAMAGED })
}

/// Checks everything in a folder.
pub fn look(folder: &Folder) -> Result<Found, Failure> {
    let identity = folder.read()?.unwrap_or_default();
    let log = seglog::verify(&folder.path().join("raft")).map_err(|error| error.to_string());
    let log = match log {
        // A folder that never took part need not have one.
        Err(_) if !identity.voted => Ok(LogCheck::default()),
        log => log,
    };
    let state = rocks::check(folder.path(), &layout::FAMILIES).map_err(|error| error.to_string());
    let state = state.and_then(|files| files.map(|files| State::read(&files)).transpose());
    let mut found = Found { identity, log, state, notes: Vec::new() };
    found.notes = found.remarks(folder);
    Ok(found)
}

impl State {
    fn read(files: &StateFiles) -> Result<State, String> {
        let get = |key: &[u8]| files.get(layout::META, key).map_err(|error| error.to_string());
        let words = |error: consensus::MachineError| error.to_string();
        let stored = get(layout::STATE)?.map(|value| layout::read_state(&value)).transpose().map_err(words)?;
        let (mark, revision) = stored.unwrap_or((Mark::default(), 1));
        let compacted = get(layout::COMPACTED)?.map(|value| layout::read_i64(&value)).transpose().map_err(words)?;
        let membership = get(layout::MEMBERSHIP)?.unwrap_or_default();
        let membership = Membership::decode(&membership).ok_or("damaged: the membership cannot be decoded")?;
        let StateFiles { files, bytes, .. } = files;
        Ok(State { mark, revision, compacted: compacted.unwrap_or(0), membership, files: *files, bytes: *bytes })
    }
}

impl Found {
    pub fn is_intact(&self) -> bool {
        self.log.is_ok() && self.state.is_ok()
    }

    pub fn log_state(&self) -> LogState {
        let log = self.log.as_ref().ok();
        log.and_then(|log| log.groups.get(&GROUP)).copied().unwrap_or_default()
    }

    /// How far the state is applied, durably.
    pub fn mark(&self) -> Mark {
        self.state.as_ref().ok().and_then(Option::as_ref).map_or(Mark::default(), |state| state.mark)
    }

    pub fn membership(&self) -> Option<&Membership> {
        self.state.as_ref().ok()?.as_ref().map(|state| &state.membership)
    }

    /// The highest index known to be committed. What is applied is.
    pub fn committed(&self) -> u64 {
        self.log_state().hard.commit.max(self.mark().index)
    }

    /// Term and index of the last entry that this folder has: in its log, or in its state.
    pub fn last(&self) -> (u64, u64) {
        let (log, mark) = (self.log_state(), self.mark());
        (log.last_term, log.last).max((mark.term, mark.index))
    }

    fn remarks(&self, folder: &Folder) -> Vec<String> {
        let mut notes = Vec::new();
        let here = |name: &str| folder.path().join(name).exists();
        if here(node::recovery::RECOVERING) {
            notes.push("a recovery was interrupted: run `chainfire recover --unsafe` again".to_owned());
        }
        if let Some(why) = folder.repaired() {
            notes.push(format!("{why}: the next start gets it from a peer"));
        }
        if self.identity.cluster.0 == 0 {
            notes.push("the folder belongs to no cluster yet".to_owned());
        } else if !self.identity.voted {
            notes.push("this incarnation has taken no part yet: the next start fills it from its peers".to_owned());
        }
        if let Ok(log) = &self.log {
            if let Some(place) = &log.recovery.torn {
                notes.push(format!("a record was being written when the node ended ({place}); it is cut off"));
            }
            if self.log_state().start.index > self.mark().index && self.state.is_ok() {
                notes.push("the state ends before the log begins: the next start gets it from a peer".to_owned());
            }
        }
        if !self.is_intact() {
            notes.push("damaged: run `chainfire repair`, which has it rebuilt from the other members".to_owned());
        }
        notes
    }

    fn lines(&self, path: &Path) -> String {
        let (last_term, last_index) = self.last();
        let mut lines = vec![
            format!("data_dir: {}", path.display()),
            format!("node: {}", self.identity.node),
            format!("cluster: {}", self.identity.cluster),
            format!("peer: {}", self.identity.peer),
            format!("raft_term: {}", self.log_state().hard.term.max(last_term)),
            format!("raft_last_term: {last_term}"),
            format!("raft_last_index: {last_index}"),
            format!("raft_index: {}", self.committed()),
            format!("raft_applied_index: {}", self.mark().index),
            format!("raft_durable_index: {}", self.mark().index),
        ];
        if let Ok(Some(state)) = &self.state {
            lines.push(format!("revision: {}", state.revision));
            lines.push(format!("compact_revision: {}", state.compacted.max(0)));
            for member in state.membership.members.values() {
                let role = if member.role == MemberRole::Voter { "voter" } else { "learner" };
                let urls = member.peer_urls.join(",");
                lines.push(format!("member: {}, {}, {role}, {urls}", member.node, member.name));
            }
        }
        lines.push(match &self.log {
            Ok(log) => {
                let (records, bytes) = (log.recovery.records, log.recovery.bytes);
                format!("log: intact, segments={} records={records} bytes={bytes}", log.segments)
            }
            Err(why) => format!("log: damaged, {why} code=CF4103"),
        });
        lines.push(match &self.state {
            Ok(Some(state)) => format!("state: intact, files={} bytes={}", state.files, state.bytes),
            Ok(None) => "state: none".to_owned(),
            Err(why) => format!("state: damaged, {why} code=CF4104"),
        });
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n") + "\n"
    }

    fn json(&self, path: &Path) -> Value {
        let (last_term, last_index) = self.last();
        let state = self.state.as_ref().ok().and_then(Option::as_ref);
        let members = state.iter().flat_map(|state| state.membership.members.values()).map(|member| {
            json!({
                "node_id": member.node.0,
                "name": member.name,
                "peer_urls": member.peer_urls,
                "client_urls": member.client_urls,
                "learner": member.role == MemberRole::Learner,
                "peer_id": member.peer.to_string(),
            })
        });
        json!({
            "data_dir": path.display().to_string(),
            "node_id": self.identity.node.0,
            "cluster_id": self.identity.cluster.to_string(),
            "peer_id": self.identity.peer.to_string(),
            "raft_term": self.log_state().hard.term.max(last_term),
            "raft_last_term": last_term,
            "raft_last_index": last_index,
            "raft_index": self.committed(),
            "raft_applied_index": self.mark().index,
            "raft_durable_index": self.mark().index,
            "revision": state.map(|state| state.revision),
            "compact_revision": state.map(|state| state.compacted.max(0)),
            "members": members.collect::<Vec<_>>(),
            "intact": self.is_intact(),
            "log_damage": self.log.as_ref().err(),
            "state_damage": self.state.as_ref().err(),
            "notes": self.notes,
        })
    }
}
