//! `placement-driver recover --unsafe`: a majority of the members is lost for good, and what one of them has goes on as a
//! placement driver of one.
//!
//! What the member has applied and what its log still holds becomes the state of a group of one, under a Raft cluster id and a
//! peer id that nobody has met ([`node::recovery`]): a member of the old group that comes back after all is a stranger. The
//! stores stay who they are: the id that they know the cluster by is a record of its own ([`crate::machine`]).
//!
//! What may be lost: what the lost members had acknowledged and this one never received. Of regions and their replicas nothing
//! is: stores hold those, and report them. Of the ids that were given out some may be unknown: new ones begin far beyond. A store that only the lost members knew is refused its heartbeats and has to
//! register again.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use base::PeerId;
use consensus::recover::{found_anew, replay};
use consensus::{Member, MemberRole, Membership, StateMachine as _};
use node::node::GROUP;
use node::recovery::NewIds;
use node::{Folder, Identity};
use settings::command_line::Environment;
use settings::source::{Request, Source};
use storage::rocks::{RocksEngine, RocksOptions};
use storage::seglog::{SegLog, SegLogOptions};
use storage::{Engine, LogStore};

use crate::config::{SCHEMA, validate};
use crate::machine::{FAMILIES, PlacementMachine};

/// The first word of the command line that asks for it.
pub const COMMAND: &str = "recover";

const HELP: &str = "\
A majority of the placement driver's members is lost for good: goes on with what one stopped member has, as a placement
driver of one.

Usage: placement-driver recover --unsafe [--yes] [--data-dir DIR] [--config FILE]

Before: stop every member that is left. Of several, choose the one with the highest last term, then the highest last index;
        without --yes both are printed and nothing is changed. What only the lost members knew is lost; data is in the stores.
After:  start this member. Stores come back by themselves. Bring the other members back one by one: empty the data folder,
        `flaredb-client --endpoint http://PD:2379 pd add --node-id N --peer-url HOST:PORT`, start.

  --unsafe   say that you know this
  --yes      do it

Exit code 0: done; 1: not done, and one line on standard error says why.
";

/// What was found, and done about it.
struct Found {
    identity: Identity,
    membership: Membership,
    last: (u64, u64),
    applied: u64,
}

/// `words` follow the command. The error is one line for people.
pub fn run(words: impl Iterator<Item = OsString>, environment: Environment) -> Result<String, String> {
    let words: Vec<OsString> = words.collect();
    let asked = |flag: &str| words.iter().any(|word| word == flag);
    if asked("--help") || asked("-h") {
        return Ok(HELP.to_owned());
    }
    if !asked("--unsafe") {
        return Err(
            "this may lose what was acknowledged: say --unsafe if a majority of the members is lost for good, and see \
                    placement-driver recover --help code=CF8021"
                .to_owned(),
        );
    }
    let rest = words.iter().filter(|word| !["--unsafe", "--yes"].iter().any(|own| word == own)).cloned();
    let settings = match Source::new(&SCHEMA, validate, rest, environment)?.read()? {
        Request::Run(told) => told.settings,
        Request::Check { answer: text, .. } | Request::Print(text) => return Ok(text),
    };
    let folder = Folder::stopped(&settings.node.data_dir).map_err(|error| format!("{error} code=CF8021"))?;
    recover(&folder, asked("--yes"))
}

fn recover(folder: &Folder, yes: bool) -> Result<String, String> {
    let found = look(folder)?;
    let Found { identity, membership, last: (term, index), applied } = &found;
    let members: Vec<String> = membership
        .members
        .values()
        .map(|member| format!("{} at {}", member.node, member.peer_urls.join(",")))
        .collect();
    let announced = format!(
        "found: member {} of cluster {}, whose members were: {}\nlast_term: {term}\nlast_index: {index}\napplied_index: {applied}\n\
         may be lost: what the other members acknowledged beyond that\n",
        identity.node,
        identity.cluster,
        members.join("; ")
    );
    let give_to_owner = || {
        folder.give_to_owner().map_err(|error| {
            format!("files belong to root and cannot be given to the folder's owner: {error}; run chown -R code=CF8021")
        })
    };
    if !yes {
        // Whoever looks opens the database, which makes files.
        give_to_owner()?;
        return Ok(format!("{announced}nothing was changed: say --yes to go on with this member\n"));
    }
    let ids = folder.begin_recovery().map_err(|error| format!("{error} code=CF8021"))?;
    let index = make_own(folder.path(), &found, ids)?;
    folder.finish_recovery(identity, ids).map_err(|error| format!("{error} code=CF8021"))?;
    give_to_owner()?;
    Ok(format!(
        "{announced}recovered: a placement driver of one, member {}, at index {index}\n\
         next: start this member, and bring the others back one by one (placement-driver recover --help)\n",
        identity.node
    ))
}

fn look(folder: &Folder) -> Result<Found, String> {
    let damaged = |why: String| format!("{why}; recover another member code=CF8022");
    let identity = folder.read().map_err(|error| damaged(error.to_string()))?.unwrap_or_default();
    if identity.cluster.0 == 0 {
        return Err("the folder belongs to no cluster: there is nothing to recover code=CF8021".to_owned());
    }
    let (_, machine) = open(folder.path(), &identity).map_err(damaged)?;
    let mark = machine.mark();
    let log = storage::seglog::verify(&folder.path().join("raft"));
    // That of a recovery that was interrupted lies aside.
    let log = if folder.path().join("raft").is_dir() {
        log.map_err(|error| damaged(error.to_string()))?.groups.get(&GROUP).copied().unwrap_or_default()
    } else {
        Default::default()
    };
    Ok(Found {
        identity,
        membership: Membership::decode(&machine.membership()).unwrap_or_default(),
        last: (log.last_term, log.last).max((mark.term, mark.index)),
        applied: mark.index,
    })
}

/// Commands that are still in the log were meant for the old cluster.
fn open(dir: &Path, identity: &Identity) -> Result<(Arc<dyn Engine>, PlacementMachine), String> {
    let engine = RocksEngine::open(dir, &FAMILIES, &RocksOptions::default()).map_err(|error| error.to_string())?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let machine = PlacementMachine::open(engine.clone(), identity.cluster).map_err(|error| error.to_string())?;
    Ok((engine, machine))
}

/// Makes the state that of a group of one; its last index.
fn make_own(dir: &Path, found: &Found, ids: NewIds) -> Result<u64, String> {
    let failed = |why: String| format!("{why}; the recovery can be tried again code=CF8022");
    let (_engine, mut machine) = open(dir, &found.identity).map_err(failed)?;
    let before = Membership::decode(&machine.membership()).unwrap_or_default();
    if before.cluster != ids.cluster {
        let mut term = found.last.0;
        if dir.join("raft").is_dir() {
            let options = SegLogOptions { must_exist: true, ..SegLogOptions::new(node::clock::random_u64()) };
            let log = SegLog::open(&dir.join("raft"), options).map_err(|error| failed(error.to_string()))?;
            let log: Arc<dyn LogStore> = Arc::new(log);
            term = term.max(log.state(GROUP).map_or(0, |state| state.hard.term));
            replay(log, GROUP, &mut machine, u64::MAX).map_err(|error| failed(error.to_string()))?;
        }
        machine.go_on_alone().map_err(|error| failed(error.to_string()))?;
        found_anew(&mut machine, &alone(&before, &found.identity, ids), term)
            .map_err(|error| failed(error.to_string()))?;
    }
    Ok(machine.mark().index)
}

/// The membership of a group of this member alone. The others count as removed.
fn alone(before: &Membership, identity: &Identity, ids: NewIds) -> Membership {
    let known = before.members.get(&identity.node).cloned().unwrap_or_default();
    let own = Member {
        node: identity.node,
        peer: ids.peer,
        role: MemberRole::Voter,
        promote_when_ready: false,
        successor: PeerId::NONE,
        ..known
    };
    let removed = before.members.keys().copied().filter(|node| *node != identity.node).collect();
    Membership { removed, ..Membership::founding(ids.cluster, vec![own]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_happens_that_was_not_asked_for() {
        let run = |words: &[&str]| run(words.iter().map(OsString::from), Environment::new());
        assert!(run(&["--help"]).unwrap().contains("--unsafe"));
        assert!(run(&["--yes"]).unwrap_err().contains("say --unsafe"));
        let folder = "--data-dir=/nowhere/at/all";
        assert!(run(&["--unsafe", "--yes", folder]).unwrap_err().contains("CF8021"));
        assert!(run(&["--unsafe", "--no-such-flag"]).is_err());
    }

    /// A split that the member never heard of may have drawn what it would draw next.
    #[test]
    fn ids_go_on_far_beyond_what_the_lost_members_may_have_drawn() {
        use proto::placement as pb;
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: base::ClusterId(7), node: base::NodeId(1), ..Identity::default() };
        let draw = |machine: &mut PlacementMachine| {
            let command = pb::Command { what: Some(pb::command::What::Allocate(pb::AllocateIdsRequest { count: 1 })) };
            let mut commands = consensus::entry::CommandsBuilder::new(PeerId(1));
            commands.push(1, &prost::Message::encode_to_vec(&command));
            let payload = consensus::Payload::Commands(consensus::entry::Commands::decode(commands.finish()).unwrap());
            let mark = machine.mark();
            let mut applied = consensus::Applied::default();
            let entry = consensus::Entry { index: mark.index + 1, term: mark.term, payload };
            machine.apply(&[entry], PeerId(1), &mut applied).unwrap();
            let (_, outcome) = applied.outcomes.pop().unwrap();
            <pb::AllocateIdsResponse as prost::Message>::decode(outcome.body).unwrap().first
        };
        let before = {
            let (engine, mut machine) = open(folder.path(), &identity).unwrap();
            let member = Member { node: base::NodeId(1), peer: PeerId(1), ..Member::default() };
            let membership = Membership::founding(base::ClusterId(7), vec![member]);
            let mark = consensus::Mark { index: 1, term: 1, hash: base::hash::START };
            machine.found(mark, membership.encode().into()).unwrap();
            let drawn = draw(&mut machine);
            // What is not on disk comes from the log, which is not here.
            engine.flush().unwrap();
            drawn
        };
        let found = Found { identity, membership: Membership::default(), last: (1, 2), applied: 2 };
        let ids = NewIds { cluster: base::ClusterId(8), peer: PeerId(2) };
        make_own(folder.path(), &found, ids).unwrap();
        make_own(folder.path(), &found, ids).unwrap();
        let (_engine, mut machine) = open(folder.path(), &found.identity).unwrap();
        let after = draw(&mut machine);
        assert!(after > before + (1 << 32), "{before}, and then {after}");
        assert!(after < before + (2 << 32), "once");
    }
}
