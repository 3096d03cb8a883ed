//! `chainfire recover --unsafe`: a majority is gone for good, and one member's data goes on as a new cluster.
//!
//! What the node has applied and what its log still holds becomes the state of a cluster of one member, under a cluster id and
//! a peer id that nobody has met (`consensus::recover`, `node::recovery`). Whoever comes from the old cluster, should
//! it not have been gone after all, is a stranger to the new one and is told so; the others come back with empty
//! folders, through `member-add`.
//!
//! What may be lost: what the lost members had acknowledged and this node never received. Nobody can say whether there was
//! anything, which is why the word `--unsafe` has to be said, and why `chainfire check` on every member that is left comes
//! first.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::Arc;

use base::NodeId;
use consensus::recover::{found_anew, replay};
use consensus::{Member, MemberRole, Membership, StateMachine};
use node::node::GROUP;
use node::recovery::NewIds;
use node::{Folder, Identity};
use storage::rocks::{RocksEngine, RocksOptions};
use storage::seglog::{SegLog, SegLogOptions};
use storage::{Engine, LogStore};

use super::arguments::Arguments;
use super::check::{self, Found};
use super::{DONE, ExitCode, Failure, folder, give_to_owner, print};
use crate::event::{EventSink, RevisionEvents};
use crate::machine::{self, Machine, layout};

pub const HELP: &str = "\
A majority of the members is lost for good: goes on with what one stopped member has, as a new cluster of one.

Usage: chainfire recover --unsafe [--yes] [--committed-only] [--data-dir DIR] [--config FILE]

Before: stop every member that is left, run `chainfire check` on each, and choose the one with the highest
raft_last_term, then the highest raft_last_index. Writes that only the lost members had are lost.
After:  start this node; it is a cluster of its own with a new cluster id. Bring the others back one by one: empty the data
        folder, `chainfire-client member-add --node-id N --peer-url HOST:PORT`, start. A member that comes back with its old
        data is refused, and says so.

  --unsafe           say that you know this
  --yes              do not ask
  --committed-only   leave out the end of the log that is not known to be committed. By default it is taken along: a client
                     may have been told that it is

Exit codes: 0 done; 1 not done (no such folder, in use by a running node, not confirmed); 2 the state cannot be used.
";

pub fn run(given: &Arguments) -> Result<ExitCode, Failure> {
    if !given.is_unsafe {
        return Err(Failure::not_done(
            "this may lose acknowledged writes: say --unsafe if a majority of the members is lost for good, and see \
             chainfire recover --help code=CF4107",
        ));
    }
    let folder = folder(given)?;
    let found = check::look(&folder)?;
    let old = found.identity;
    if old.cluster.0 == 0 {
        return Err(Failure::not_done("the folder belongs to no cluster: there is nothing to recover code=CF4107"));
    }
    if let Err(why) = &found.state {
        return Err(Failure::damaged(format!("the state is damaged: {why}; recover another member code=CF4104")));
    }
    let through = if given.committed_only { found.committed() } else { u64::MAX };
    print(&announcement(&found, through))?;
    if !given.yes && !confirmed(old.node) {
        return Err(Failure::not_done("not confirmed, and nothing was changed code=CF4107"));
    }
    let ids = folder.begin_recovery()?;
    let (index, revision) = make_own(&folder, &found, ids, through)?;
    folder.finish_recovery(&old, ids)?;
    give_to_owner(&folder)?;
    print(&format!(
        "recovered: cluster {} of one member, node {}, at index {index} and revision {revision}\n\
         next: start this node. Then bring back the others, each with an empty data folder: `chainfire-client member-add \
         --node-id N --peer-url HOST:PORT`, and start it\n",
        ids.cluster, old.node
    ))?;
    Ok(DONE)
}

fn announcement(found: &Found, through: u64) -> String {
    let (last_term, last_index) = found.last();
    let state = found.mark().index;
    let taken = last_index.min(through.max(state));
    let members = found.membership().map(|membership| {
        let members =
            membership.members.values().map(|member| format!("{} at {}", member.node, member.peer_urls.join(",")));
        members.collect::<Vec<_>>().join("; ")
    });
    let mut text = format!(
        "found: node {} of cluster {}, whose members were: {}\n\
         found: state up to index {state}, log up to index {last_index} of term {last_term}, known to be committed up to {}\n\
         taken along: everything up to index {taken}\n\
         may be lost: what the other members acknowledged beyond that\n",
        found.identity.node,
        found.identity.cluster,
        members.unwrap_or_default(),
        found.committed(),
    );
    if let Err(why) = &found.log {
        text += &format!(
            "the log is damaged ({why}): only the state is taken along, and what was acknowledged after index {state} is lost\n"
        );
    }
    text
}

/// The node's number, typed, says that it is this one that is meant.
fn confirmed(node: NodeId) -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("not at a terminal: say --yes");
        return false;
    }
    eprint!("type the number of this node, {node}, to make it a new cluster: ");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok() && line.trim() == node.to_string()
}

/// Makes the state that of a cluster of one; its last index and revision.
fn make_own(folder: &Folder, found: &Found, ids: NewIds, through: u64) -> Result<(u64, i64), Failure> {
    let failed = |why: String| Failure::damaged(format!("{why}; the recovery can be tried again code=CF4108"));
    let engine = RocksEngine::open(folder.path(), &layout::FAMILIES, &RocksOptions::default());
    let engine: Arc<dyn Engine> = Arc::new(engine.map_err(|error| failed(error.to_string()))?);
    let identity = machine::Identity { cluster: ids.cluster, member: found.identity.node };
    let opened = Machine::open(engine, identity, Arc::new(Nobody));
    let (mut machine, reader) = opened.map_err(|error| failed(error.to_string()))?;
    let before = Membership::decode(&machine.membership()).unwrap_or_default();
    if before.cluster != ids.cluster {
        let mut term = found.log_state().hard.term;
        // A log that never was, or that is damaged, has nothing to give.
        if found.log.is_ok() && folder.path().join("raft").is_dir() {
            let options = SegLogOptions { must_exist: true, ..SegLogOptions::new(node::clock::random_u64()) };
            let log = SegLog::open(&folder.path().join("raft"), options).map_err(|error| failed(error.to_string()))?;
            let log: Arc<dyn LogStore> = Arc::new(log);
            term = term.max(log.state(GROUP).map_or(0, |state| state.last_term));
            replay(log, GROUP, &mut machine, through).map_err(|error| failed(error.to_string()))?;
        }
        let alone = alone(&before, &found.identity, ids);
        found_anew(&mut machine, &alone, term).map_err(|error| failed(error.to_string()))?;
    }
    Ok((machine.mark().index, reader.current().revision))
}

/// The membership of a cluster of this member alone. The others count as removed.
fn alone(before: &Membership, identity: &Identity, ids: NewIds) -> Membership {
    let known = before.members.get(&identity.node).cloned().unwrap_or_default();
    let own = Member {
        node: identity.node,
        peer: ids.peer,
        role: MemberRole::Voter,
        promote_when_ready: false,
        successor: base::PeerId::NONE,
        ..known
    };
    let removed = before.members.keys().copied().filter(|node| *node != identity.node).collect();
    Membership { removed, ..Membership::founding(ids.cluster, vec![own]) }
}

/// Nobody watches.
struct Nobody;

impl EventSink for Nobody {
    fn publish(&self, _: Arc<Vec<RevisionEvents>>, _: i64) {}

    fn compacted(&self, _: i64) {}

    fn reset(&self, _: i64) {}
}
