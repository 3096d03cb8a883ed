//! Who waits for what in a group: clients of proposals by `seq`, readers by `seq` and then by index.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::Time;
use consensus::{LeaderLease, Outcome, Refusal};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::handle::ReadGrant;

/// What a client gets told.
pub enum Answer {
    /// Of a command, or of a membership change: its body is then the encoded membership. With the index that this node
    /// had applied then.
    Outcome(Outcome, u64),
    Transferred,
    Refused(Refusal),
}

pub type ReadAnswer = Result<ReadGrant, Refusal>;
type Granted = (ReadGrant, oneshot::Sender<ReadAnswer>);

pub struct Waiters {
    next_seq: AtomicU64,
    clients: [Mutex<HashMap<u64, oneshot::Sender<Answer>>>; SHARDS],
    readers: Mutex<HashMap<u64, oneshot::Sender<ReadAnswer>>>,
    /// By index and `seq`.
    behind: Mutex<BTreeMap<(u64, u64), Granted>>,
    applied: AtomicU64,
    committed: AtomicU64,
    lease_until: AtomicU64,
    closed: AtomicBool,
}

const SHARDS: usize = 8;

impl Waiters {
    /// `first_seq` must be unlike that of any earlier life of this peer: draw it.
    pub fn new(first_seq: u64) -> Waiters {
        Waiters {
            next_seq: AtomicU64::new(first_seq),
            clients: Default::default(),
            readers: Mutex::default(),
            behind: Mutex::default(),
            applied: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    pub fn client(&self) -> (u64, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        self.shard(seq).lock().insert(seq, sender);
        // Who comes while it is being closed would wait for nobody.
        if self.closed.load(Ordering::SeqCst) {
            self.answer(seq, Answer::Refused(Refusal::Stopping));
        }
        (seq, receiver)
    }

    pub fn reader(&self) -> (u64, oneshot::Receiver<ReadAnswer>) {
        let (sender, receiver) = oneshot::channel();
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        self.readers.lock().insert(seq, sender);
        if self.closed.load(Ordering::SeqCst) {
            self.refuse(seq, Refusal::Stopping);
        }
        (seq, receiver)
    }

    pub fn answer(&self, seq: u64, answer: Answer) {
        let sender = self.shard(seq).lock().remove(&seq);
        if let Some(sender) = sender {
            // The client may be gone.
            let _ = sender.send(answer);
        }
    }

    pub fn refuse(&self, seq: u64, why: Refusal) {
        if let Some(reader) = self.readers.lock().remove(&seq) {
            let _ = reader.send(Err(why));
        } else {
            self.answer(seq, Answer::Refused(why));
        }
    }

    /// An index for these readers is known; each goes on once this node has applied it.
    pub fn read_ready(&self, seqs: &[u64], grant: ReadGrant) {
        let mut readers = self.readers.lock();
        for seq in seqs {
            let Some(sender) = readers.remove(seq) else { continue };
            if self.applied() >= grant.index {
                let _ = sender.send(Ok(grant));
                continue;
            }
            self.behind.lock().insert((grant.index, *seq), (grant, sender));
        }
        drop(readers);
        // The applier may have passed the index in between.
        self.release_readers();
    }

    pub fn set_applied(&self, index: u64) {
        self.applied.fetch_max(index, Ordering::SeqCst);
        self.release_readers();
    }

    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    /// To be called after each turn, before its outputs are carried out.
    pub fn publish_lease(&self, lease: LeaderLease) {
        // Never back: whoever still holds the old lease's end must not meet an index from before it.
        self.committed.fetch_max(lease.index, Ordering::SeqCst);
        self.lease_until.store(lease.valid_until.as_nanos(), Ordering::SeqCst);
    }

    /// The grant that a leader with a valid lease may give at once; `None` when there is no lease or this node has
    /// not applied that far.
    pub fn lease_grant(&self, now: Time) -> Option<ReadGrant> {
        let valid_until = Time::from_nanos(self.lease_until.load(Ordering::SeqCst));
        let index = self.committed.load(Ordering::SeqCst);
        let valid = now < valid_until && self.applied() >= index;
        valid.then_some(ReadGrant { index, valid_until: Some(valid_until) })
    }

    /// Ends everything: the node stops.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // In the order in which they came.
        let clients: BTreeMap<_, _> =
            self.clients.iter().flat_map(|shard| std::mem::take(&mut *shard.lock())).collect();
        for sender in clients.into_values() {
            let _ = sender.send(Answer::Refused(Refusal::Stopping));
        }
        let readers: BTreeMap<_, _> = std::mem::take(&mut *self.readers.lock()).into_iter().collect();
        for sender in readers.into_values() {
            let _ = sender.send(Err(Refusal::Stopping));
        }
        for (_, sender) in std::mem::take(&mut *self.behind.lock()).into_values() {
            let _ = sender.send(Err(Refusal::Stopping));
        }
    }

    fn release_readers(&self) {
        let mut behind = self.behind.lock();
        if behind.is_empty() {
            return;
        }
        let later = behind.split_off(&(self.applied() + 1, 0));
        let ready = std::mem::replace(&mut *behind, later);
        drop(behind);
        for (grant, sender) in ready.into_values() {
            let _ = sender.send(Ok(grant));
        }
    }

    fn shard(&self, seq: u64) -> &Mutex<HashMap<u64, oneshot::Sender<Answer>>> {
        &self.clients[seq as usize % SHARDS]
    }
}
