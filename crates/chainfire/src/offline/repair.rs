//! `chainfire repair`: damaged data of a stopped node.
//!
//! The others have what is damaged here, so the first choice is to take it from them: the folder begins a new incarnation,
//! what it held is put aside in `lost-PEER/`, and the next start fills it from its peers. That is what a node whose log is
//! damaged does by itself; here it is also done for a state, or for both, before the node is started.
//!
//! `--local` lets RocksDB make what it can of the files. That is for a member without peers; where there are peers,
//! what comes out is good for a look at it, and the next start gets the state from a peer all the same.

use consensus::Membership;
use node::Folder;
use storage::rocks;

use super::arguments::Arguments;
use super::check::{self, Found};
use super::{DAMAGED, DONE, ExitCode, Failure, folder, give_to_owner, print};
use crate::machine::layout;

pub const HELP: &str = "\
Repairs the damaged data of a stopped node.

Usage: chainfire repair [--local] [--data-dir DIR] [--config FILE]

Checks everything first, and does nothing when all of it is intact. Otherwise the member is rebuilt from the others: its
folder begins anew under a new peer id, what it held is put aside in lost-PEER/, and the next start copies everything from
a peer. It needs a majority of the other members, and one whose address is in the configuration (initial_members).

  --local   for a member without peers: RocksDB keeps what it can still read of the state. Keys may be missing or old
            afterwards, and nothing says which. Restoring a snapshot is better, if there is one. A member with peers
            gives such a state up at its next start and gets it from them. The log is not repaired.

Exit codes: 0 nothing to repair, or done; 1 not done (no such folder, in use by a running node, nothing to rebuild from);
2 what is left cannot be used.
";

pub fn run(given: &Arguments) -> Result<ExitCode, Failure> {
    let folder = folder(given)?;
    let found = check::look(&folder)?;
    if found.is_intact() {
        return print("nothing to repair: every checksum of log and state is right\n");
    }
    let log = found.log.as_ref().err().map(|why| format!("the log is damaged: {why}\n"));
    let state = found.state.as_ref().err().map(|why| format!("the state is damaged: {why}\n"));
    print(&[log, state].into_iter().flatten().collect::<String>())?;
    if given.local { salvage(&folder, &found) } else { rebuild(&folder, &found, given) }
}

/// Gives the incarnation up, so that the next start fills a new one.
fn rebuild(folder: &Folder, found: &Found, given: &Arguments) -> Result<ExitCode, Failure> {
    let peers = given.configured_peers();
    if found.membership().is_some_and(is_alone) {
        return Err(Failure::not_done(
            "this is the only member: there is nobody to rebuild it from; restore a snapshot into an empty data folder, or \
             salvage what can be read with --local code=CF4105",
        ));
    }
    if found.identity.cluster.0 == 0 {
        return Err(Failure::not_done(
            "the folder belongs to no cluster: there is nothing in it to rebuild; empty it code=CF4105",
        ));
    }
    let next = folder.reincarnate(&found.identity)?;
    give_to_owner(folder)?;
    print(&format!(
        "the folder begins anew as peer {} of cluster {}; what it held lies in lost-{}/ until the member stands again\n\
         next: start the node; it is filled by the other members\n",
        next.peer, next.cluster, found.identity.peer
    ))?;
    if peers.is_empty() {
        print(
            "warning: the configuration names no other member (initial_members): add the address of one, so that the node \
             finds its cluster\n",
        )?;
    }
    Ok(DONE)
}

/// Lets RocksDB keep what it can read.
fn salvage(folder: &Folder, found: &Found) -> Result<ExitCode, Failure> {
    if found.state.is_ok() {
        return Err(Failure {
            exit: DAMAGED,
            line: "the state is intact, and a log cannot be salvaged: run `chainfire repair` without --local, or, for the \
                   only member, `chainfire recover --unsafe`, which goes on with the state alone code=CF4105"
                .to_owned(),
        });
    }
    folder.mark_repaired()?;
    let repaired = rocks::repair(folder.path(), &layout::FAMILIES);
    give_to_owner(folder)?;
    repaired.map_err(|error| Failure::damaged(format!("RocksDB cannot repair it: {error} code=CF4104")))?;
    let after = check::look(folder)?;
    let state = match &after.state {
        Ok(Some(state)) if state.mark.index > 0 => Ok(state),
        Ok(_) => Err("what says how far it reaches is lost"),
        Err(why) => Err(why.as_str()),
    };
    let unusable = |why| Failure::damaged(format!("what could be salvaged cannot be used: {why} code=CF4104"));
    let state = state.map_err(unusable)?;
    let kept = rocks::check(folder.path(), &layout::FAMILIES).ok().flatten().map_or(0, |files| files.files);
    print(&format!(
        "salvaged: {kept} files that can be read, up to index {} and revision {}; files that were dropped lie in {}/\n\
         keys may be missing or old, and nothing says which\n",
        state.mark.index,
        state.revision,
        rocks::LOST
    ))?;
    print(if is_alone(&state.membership) {
        "next: this is the only member: it starts with what was salvaged; compare it with a backup\n"
    } else {
        "next: start the node; it gives this state up and gets it from the other members\n"
    })
}

fn is_alone(membership: &Membership) -> bool {
    membership.voters.len() == 1
}
