//! Replicas compared by what lies in their stores, and what is done when nobody can say who is right.
//!
//! The rolling hash (`consensus`, its file `hashes`) covers what replicas *do*, all the time: effects that differ are found
//! within some hundred entries. It does not cover what becomes of them afterwards, at rest. Checksums cover that, and the
//! scrub reads them. What is left is a store that was altered checksums and all, by a fault above them or by a hand. So the
//! leader compares *digests* now and then: after each pass of its own scrub it asks every member for a
//! checksum of all keys and their history at one revision ([`StateView::digest`]), and tells those that differ from a
//! majority of the voters. Whoever is told looks at what it answered itself, and has itself rebuilt (`node::heal`).
//!
//! Digests are compared only where they were made under the same compacted revision; where a compaction came in between, the
//! next pass compares.
//!
//! Where no majority agrees, by digest or by rolling hash, nobody is rebuilt: the alarm CORRUPT is raised for every member
//! that has another word than the leader, and for the leader. As with etcd it keeps all writes from the cluster until an
//! operator has found out who is right, restored the others, and disarmed it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{NodeId, PeerId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus::{Membership, Refusal, Role};
use node::GroupHandle;
use node::heal::{Damage, What};
use node::scrub::Scrub;
use parking_lot::Mutex;
use proto::etcdserverpb::{AlarmType, alarm_request::AlarmAction};

use crate::command::Command;
use crate::store::Stores;

/// Digest at a revision: 8 bytes revision in; 8 peer, 8 compacted revision, 8 digest out.
pub const DIGEST: u8 = node::FIRST_METHOD + 2;
/// A majority has another digest: 8 revision, 8 compacted revision, 8 digest in; nothing out.
pub const DIFFERS: u8 = node::FIRST_METHOD + 3;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A member that lags has so long to come to the revision.
const CATCH_UP: Duration = Duration::from_secs(5);
/// A digest reads everything.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(600);
const SAY_TRIES: u32 = 20;

/// A store's content at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    compacted: i64,
    digest: u64,
}

/// What this node last answered: revision and word.
#[derive(Default)]
pub struct Answered(Mutex<Option<(i64, Word)>>);

/// Starts both: comparing after each pass of the scrub, and listening for differences that nobody can judge.
pub fn start(handle: &GroupHandle, stores: &Arc<Stores>, scrub: &Arc<Scrub>) {
    tokio::spawn(compare_after_scrubs(handle.clone(), stores.clone(), scrub.clone()));
    tokio::spawn(listen(handle.clone()));
}

/// The member's side of [`DIGEST`].
pub async fn answer_digest(
    handle: &GroupHandle,
    stores: &Stores,
    answered: &Answered,
    mut body: Bytes,
) -> Result<Bytes, Refusal> {
    let revision = body.try_get_i64_le().map_err(|_| Refusal::UnknownMember)?;
    let word = own_word(handle, stores, revision).await?;
    *answered.0.lock() = Some((revision, word));
    let mut out = BytesMut::with_capacity(24);
    out.put_u64_le(handle.peer().0);
    out.put_i64_le(word.compacted);
    out.put_u64_le(word.digest);
    Ok(out.freeze())
}

/// The member's side of [`DIFFERS`]. Only what it answered itself counts against it.
pub fn told_it_differs(handle: &GroupHandle, answered: &Answered, mut body: Bytes) -> Result<Bytes, Refusal> {
    let mut number = || body.try_get_u64_le().map_err(|_| Refusal::UnknownMember);
    let (revision, right) = (number()? as i64, Word { compacted: number()? as i64, digest: number()? });
    if let Some((at, own)) = *answered.0.lock()
        && at == revision
        && own.compacted == right.compacted
        && own.digest != right.digest
    {
        handle.health().report(differs(revision, own, right));
    }
    Ok(Bytes::new())
}

fn differs(revision: i64, own: Word, right: Word) -> Damage {
    let (own, right) = (own.digest, right.digest);
    Damage::new(What::Differs, format!("its store at revision {revision} has digest {own:x}, and most have {right:x}"))
}

async fn own_word(handle: &GroupHandle, stores: &Stores, revision: i64) -> Result<Word, Refusal> {
    let mut waited = Duration::ZERO;
    let view = loop {
        let view = stores.get().filter(|_| !handle.health().is_quarantined()).map(|store| store.reader.current());
        match view.filter(|view| view.is_readable() && view.revision >= revision) {
            Some(view) => break view,
            None if waited >= CATCH_UP => return Err(Refusal::TimedOut),
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
        waited += LOOK_EVERY;
    };
    let compacted = view.compacted;
    let made = tokio::task::spawn_blocking(move || view.digest(revision)).await;
    let digest = made.map_err(|_| Refusal::Stopping)?.map_err(|_| Refusal::TimedOut)?;
    Ok(Word { compacted, digest })
}

async fn compare_after_scrubs(handle: GroupHandle, stores: Arc<Stores>, scrub: Arc<Scrub>) {
    let mut compared = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let passes = scrub.progress().passes;
        if passes == compared || !handle.is_leader() {
            // A leader that comes later compares after its next pass.
            compared = passes;
            continue;
        }
        compared = passes;
        match compare(&handle, &stores).await {
            Ok(members) => {
                tracing::info!(target: "chainfire_storage", "Digests compared, members={members}");
            }
            Err(why) => {
                tracing::info!(target: "chainfire_storage", "Digests were not compared this time, why={why}");
            }
        }
    }
}

/// Asks all members, judges, and tells. How many could be compared.
async fn compare(handle: &GroupHandle, stores: &Stores) -> Result<usize, String> {
    let revision = stores.get().ok_or("there is no store")?.reader.current().revision;
    let own = own_word(handle, stores, revision).await.map_err(|why| why.to_string())?;
    let membership = handle.membership();
    let mut words = BTreeMap::from([(handle.peer(), own)]);
    let mut nodes = BTreeMap::new();
    let others = membership.members.keys().filter(|node| **node != handle.node());
    let asked = others.map(|node| {
        let body = Bytes::copy_from_slice(&revision.to_le_bytes());
        (*node, tokio::spawn(handle.call_node(*node, DIGEST, body, DIGEST_TIMEOUT)))
    });
    for (node, asked) in asked.collect::<Vec<_>>() {
        let Ok(Ok(mut answer)) = asked.await else { continue };
        if answer.len() == 24 {
            let peer = PeerId(answer.get_u64_le());
            words.insert(peer, Word { compacted: answer.get_i64_le(), digest: answer.get_u64_le() });
            nodes.insert(peer, node);
        }
    }
    words.retain(|_, word| word.compacted == own.compacted);
    if words.values().all(|word| *word == own) {
        return Ok(words.len());
    }
    let Some(right) = majority(&membership, &words) else {
        let members = words.keys().filter_map(|peer| membership.node_of(*peer)).collect();
        let all: Vec<String> = words.iter().map(|(peer, word)| format!("{peer}:{:x}", word.digest)).collect();
        tracing::error!(
            target: "chainfire_storage",
            "Stores differ and no majority agrees, nobody is rebuilt: find out which is right and restore it, \
             revision={revision} digests={} code=CF4006",
            all.join(",")
        );
        raise(handle, members).await;
        return Ok(words.len());
    };
    for (peer, node) in nodes.iter().filter(|(peer, _)| words.get(peer).is_some_and(|word| *word != right)) {
        tracing::error!(
            target: "chainfire_storage",
            "A store differs from most, node={node} peer={peer} revision={revision} code=CF4007"
        );
        let mut body = BytesMut::with_capacity(24);
        body.put_i64_le(revision);
        body.put_i64_le(right.compacted);
        body.put_u64_le(right.digest);
        // One that cannot be told now differs at the next pass too.
        let _ = handle.call_node(*node, DIFFERS, body.freeze(), DIGEST_TIMEOUT).await;
    }
    if own != right {
        handle.health().report(differs(revision, own, right));
    }
    Ok(words.len())
}

/// What more than half of the voters say. While a change of voters is under way nobody is judged.
fn majority(membership: &Membership, words: &BTreeMap<PeerId, Word>) -> Option<Word> {
    let count = |word: &Word| membership.voters.iter().filter(|voter| words.get(voter) == Some(word)).count();
    let most = words.values().find(|word| count(word) > membership.voters.len() / 2).copied();
    most.filter(|_| !membership.is_joint())
}

/// Raises the alarm for differences in the rolling hash that nobody can judge.
async fn listen(handle: GroupHandle) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(peers) = handle.take_unclear() {
            let membership = handle.membership();
            raise(&handle, peers.iter().filter_map(|peer| membership.node_of(*peer)).collect()).await;
        }
    }
}

/// Who is deposed under way leaves it to the next leader, which finds the same.
async fn raise(handle: &GroupHandle, members: Vec<NodeId>) {
    for member in members {
        let (action, kind) = (AlarmAction::Activate as i32, AlarmType::Corrupt as i32);
        let command = Command::Alarm { action, member: member.0, kind }.encode();
        let propose = || handle.propose(command.clone());
        until_done(
            propose,
            || handle.status().role == Role::Leader,
            LOOK_EVERY,
            |why| {
                tracing::error!(
                    target: "chainfire_storage",
                    "The alarm CORRUPT cannot be raised yet, member={member} why={why} code=CF4013"
                );
            },
        )
        .await;
    }
}

/// Tries until it is done or this node does not lead any more; whether it was done. What keeps it is said at the first try
/// and at every [`SAY_TRIES`]th.
async fn until_done<T, F: Future<Output = Result<T, Refusal>>>(
    try_it: impl Fn() -> F,
    leads: impl Fn() -> bool,
    pause: Duration,
    say: impl Fn(Refusal),
) -> bool {
    for tries in 0u32.. {
        let Err(why) = try_it().await else { return true };
        if !leads() {
            say(why);
            return false;
        }
        if tries.is_multiple_of(SAY_TRIES) {
            say(why);
        }
        tokio::time::sleep(pause).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_of_the_voters_are_right() {
        let voters = |voters: &[u64]| Membership {
            voters: voters.iter().copied().map(PeerId).collect(),
            ..Membership::default()
        };
        let word = |digest| Word { compacted: 1, digest };
        let words = |words: &[(u64, u64)]| -> BTreeMap<PeerId, Word> {
            words.iter().map(|(peer, digest)| (PeerId(*peer), word(*digest))).collect()
        };
        let three = voters(&[1, 2, 3]);
        assert_eq!(majority(&three, &words(&[(1, 7), (2, 7), (3, 8)])), Some(word(7)));
        assert_eq!(majority(&three, &words(&[(1, 8), (2, 7), (3, 7)])), Some(word(7)));
        assert_eq!(majority(&three, &words(&[(1, 8), (2, 7)])), None);
        assert_eq!(majority(&three, &words(&[(1, 8), (4, 7), (5, 7)])), None, "learners do not count");
        assert_eq!(majority(&voters(&[1, 2]), &words(&[(1, 8), (2, 7)])), None);
        let joint = Membership { voters_outgoing: vec![PeerId(1)], ..three };
        assert_eq!(majority(&joint, &words(&[(1, 7), (2, 7), (3, 7)])), None);
    }

    #[tokio::test]
    async fn an_alarm_is_tried_until_it_is_raised_or_another_leads() {
        let (tries, said) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let refused_until = |last: u32| {
            tries.set(0);
            said.set(0);
            let tries = &tries;
            move || {
                tries.set(tries.get() + 1);
                std::future::ready(if tries.get() > last { Ok(()) } else { Err(Refusal::TimedOut) })
            }
        };
        let say = |_| said.set(said.get() + 1);
        assert!(until_done(refused_until(50), || true, Duration::ZERO, say).await);
        assert_eq!((tries.get(), said.get()), (51, 3));
        assert!(!until_done(refused_until(u32::MAX), || tries.get() < 30, Duration::ZERO, say).await);
        assert_eq!((tries.get(), said.get()), (30, 3), "and that it is left to another");
    }
}
