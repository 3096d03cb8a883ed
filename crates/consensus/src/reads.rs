//! Linearizable reads: at which index may this host read?
//!
//! On the leader, under its lease, at the committed index and at once. Otherwise after a *round*: heartbeats with a
//! context that a quorum acknowledges; all reads of a turn share one. A follower asks the leader with one query
//! per turn. A context is used once: whatever is asked again, after a lost message or a change of leader, is
//! asked under another one, because an old context may be answered from before the read began.
//!
//! The leader begins a round every heartbeat interval anyhow. The sending time of the last acknowledged round is
//! where its lease starts.

use std::collections::BTreeMap;

use base::{PeerId, Time};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub seq: u64,
    pub deadline: Time,
}

/// Who waits for a round.
#[derive(Default)]
pub(crate) struct Round {
    pub sent: Time,
    pub local: Vec<Read>,
    /// (peer, its context)
    pub remote: Vec<(PeerId, u64)>,
}

pub(crate) struct Query {
    pub sent: Time,
    pub reads: Vec<Read>,
}

/// Queries that may be on their way to the leader at a time; further reads wait and share the next.
const QUERIES_MAX: usize = 16;
const REMOTE_WAITING_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Reads {
    context: u64,
    pub waiting: Vec<Read>,
    pub remote_waiting: Vec<(PeerId, u64)>,
    rounds: BTreeMap<u64, Round>,
    queries: BTreeMap<u64, Query>,
    /// No query before this: the leader just said no.
    pub query_not_before: Time,
    /// Where the lease starts: the sending time of the last round that a quorum acknowledged in this term.
    pub lease_from: Option<Time>,
    /// A transfer was begun in this term: no lease until the next.
    pub lease_void: bool,
}

impl Reads {
    /// Contexts start anywhere, so that those of another life of this peer are not met again.
    pub fn new(seed: u64) -> Reads {
        Reads { context: seed, ..Reads::default() }
    }

    pub fn len(&self) -> usize {
        let rounds = self.rounds.values().map(|round| round.local.len());
        let queries = self.queries.values().map(|query| query.reads.len());
        self.waiting.len() + rounds.sum::<usize>() + queries.sum::<usize>()
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        let rounds = self.rounds.values().all(|round| round.local.is_empty() && round.remote.is_empty());
        self.waiting.is_empty() && self.remote_waiting.is_empty() && self.queries.is_empty() && rounds
    }

    /// The lease ends, and no round that is under way brings it back. Nobody waits for one.
    pub fn forget_rounds(&mut self) {
        self.rounds.clear();
        self.lease_from = None;
    }

    pub fn push_remote(&mut self, peer: PeerId, context: u64) -> bool {
        let room = self.remote_waiting.len() < REMOTE_WAITING_MAX;
        if room {
            self.remote_waiting.push((peer, context));
        }
        room
    }

    /// Begins a round for all that waits, or for the lease alone. Returns its context.
    pub fn begin_round(&mut self, now: Time) -> u64 {
        self.context = self.context.wrapping_add(1);
        let local = std::mem::take(&mut self.waiting);
        let remote = std::mem::take(&mut self.remote_waiting);
        self.rounds.insert(self.context, Round { sent: now, local, remote });
        self.context
    }

    /// A quorum acknowledged this round.
    pub fn end_round(&mut self, context: u64) -> Option<Round> {
        let round = self.rounds.remove(&context)?;
        if !self.lease_void {
            self.lease_from = Some(self.lease_from.map_or(round.sent, |from| from.max(round.sent)));
        }
        Some(round)
    }

    pub fn may_query(&self, now: Time) -> bool {
        !self.waiting.is_empty() && self.queries.len() < QUERIES_MAX && now >= self.query_not_before
    }

    pub fn begin_query(&mut self, now: Time) -> u64 {
        self.context = self.context.wrapping_add(1);
        let reads = std::mem::take(&mut self.waiting);
        self.queries.insert(self.context, Query { sent: now, reads });
        self.context
    }

    pub fn end_query(&mut self, context: u64) -> Option<Query> {
        self.queries.remove(&context)
    }

    /// Queries sent before `time` are asked again.
    pub fn requeue_queries(&mut self, sent_before: Time) {
        let old: Vec<u64> =
            self.queries.iter().filter(|(_, query)| query.sent < sent_before).map(|(context, _)| *context).collect();
        for context in old {
            let query = self.queries.remove(&context).expect("just listed");
            self.waiting.extend(query.reads);
        }
    }

    /// The role or the term changed: rounds and queries are void, their reads wait again; returns the remote
    /// ones, to be told.
    pub fn reset(&mut self) -> Vec<(PeerId, u64)> {
        self.lease_from = None;
        self.lease_void = false;
        let mut remote = std::mem::take(&mut self.remote_waiting);
        for round in std::mem::take(&mut self.rounds).into_values() {
            self.waiting.extend(round.local);
            remote.extend(round.remote);
        }
        for query in std::mem::take(&mut self.queries).into_values() {
            self.waiting.extend(query.reads);
        }
        remote
    }

    /// Ends reads past their deadline. Those within rounds and queries come back to waiting first, in time.
    pub fn expire(&mut self, now: Time) -> Vec<u64> {
        let mut ended = Vec::new();
        let mut keep = |reads: &mut Vec<Read>| {
            reads.retain(|read| {
                let open = now < read.deadline;
                if !open {
                    ended.push(read.seq);
                }
                open
            });
        };
        keep(&mut self.waiting);
        self.rounds.values_mut().for_each(|round| keep(&mut round.local));
        self.queries.values_mut().for_each(|query| keep(&mut query.reads));
        ended
    }

    pub fn drain(&mut self) -> Vec<u64> {
        self.reset();
        std::mem::take(&mut self.waiting).into_iter().map(|read| read.seq).collect()
    }
}
