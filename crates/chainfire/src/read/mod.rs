//! The read side: what API threads, watchers and tools see of the state machine.
//!
//! After every batch it wrote, the machine publishes a [`StateView`]: an engine view and beside it the revision, the
//! mark, the counts and the alarms as of the same moment. A reader takes the view that is current
//! ([`Reader::current`]) and asks it as often as it likes; all answers come from one moment, and the machine never
//! waits for a reader.
//!
//! Invariants
//! 1. Everything in a view is of one moment: one `mark`, one `revision`.
//! 2. Views are published in order; a reader never sees time run backwards.
//! 3. No answer depends on what the engine has physically cleaned up: what lies at or below `compacted` and is not
//!    live there is refused before it is looked for.
//!
//! A view held for long keeps old data on disk, and the machine waits for it before it puts a received snapshot in
//! place. Long work ([`RangePages`], history) is therefore cut into steps, each of which takes the view as an argument.
//!
//! | file | what it answers |
//! |---|---|
//! | [`range`] | Range: options, limits, sorting, pages |
//! | [`history`] | what changed between two revisions |
//! | [`digest`] | HashKV |
//! | [`leaving`] | nothing more, once whoever asked has left |

pub mod digest;
pub mod history;
pub mod leaving;
pub mod range;

use std::sync::Arc;

use bytes::Bytes;
use consensus::{MachineError, Mark};
use parking_lot::RwLock;
use proto::etcdserverpb::{RangeRequest, TxnRequest};
use storage::engine::{EngineStats, NoView};
use storage::{Engine, EngineError, View};

use crate::error::ApiError;
use crate::machine::count::CountIndex;
use crate::machine::horizon::Horizon;
pub use crate::machine::layout::Lease;
use crate::machine::layout::{self, META};
use crate::machine::source::{Source, Span};
use crate::machine::stage::State;
use crate::machine::txn;
pub use digest::KvHash;
pub use history::History;
pub use leaving::Leaving;
pub use range::{RangeAnswer, RangePage, RangePages};

/// The read side of a machine. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

struct Shared {
    current: RwLock<Arc<StateView>>,
    engine: Arc<dyn Engine>,
}

impl Reader {
    pub(crate) fn new(engine: Arc<dyn Engine>, first: StateView) -> Reader {
        Reader(Arc::new(Shared { current: RwLock::new(Arc::new(first)), engine }))
    }

    /// The picture as of the last applied batch. While a received snapshot is put in place, which waits for views that
    /// are held, it is one in which nothing can be read.
    pub fn current(&self) -> Arc<StateView> {
        self.0.current.read().clone()
    }

    /// Sizes and counters, for metrics and the quota.
    pub fn stats(&self) -> StoreStats {
        let (revision, compacted, keys) = {
            let view = self.current();
            (view.revision, view.compacted, view.keys())
        };
        StoreStats { engine: self.0.engine.stats(), revision, compacted, keys }
    }

    pub(crate) fn publish(&self, view: StateView) {
        let last = std::mem::replace(&mut *self.0.current.write(), Arc::new(view));
        drop(last);
    }

    /// Takes the engine's view away until the next is published.
    pub(crate) fn suspend(&self) {
        let last = self.current();
        let blind = StateView {
            revision: last.revision,
            compacted: last.compacted,
            mark: last.mark,
            membership: last.membership.clone(),
            alarms: last.alarms.clone(),
            counts: last.counts.clone(),
            view: Arc::new(NoView(EngineError::Failed("a received state is being put in place".into()))),
            horizon: None,
        };
        drop(last);
        self.publish(blind);
    }
}

/// Sizes and counters of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub engine: EngineStats,
    pub revision: i64,
    pub compacted: i64,
    /// Live keys.
    pub keys: u64,
}

/// The store at one moment.
pub struct StateView {
    /// The store's revision. An empty store has 1.
    pub revision: i64,
    /// The compacted revision; -1 when nothing was ever compacted. Reads at it are allowed, below it refused.
    pub compacted: i64,
    /// How far the log is applied.
    pub mark: Mark,
    /// As kept by the machine; empty before the founding.
    pub membership: Bytes,
    /// Raised alarms as (kind, member), ordered; kinds are numbers of `AlarmType`.
    pub alarms: Arc<Vec<(i32, u64)>>,
    pub(crate) counts: CountIndex,
    pub(crate) view: Arc<dyn View>,
    /// Keeps physical clean-up from what this view may be asked about. `None`: nothing can be read here.
    pub(crate) horizon: Option<Horizon>,
}

impl StateView {
    /// Whether there is anything to be read: not while a received state is put in place, nor before the first one has come.
    pub fn is_readable(&self) -> bool {
        self.horizon.is_some() && self.mark.index > 0
    }

    /// Answers a Range with etcd's semantics: `count` ignores limit and filters; filters and sorting come before the
    /// limit. Errors: `Compacted`, `FutureRevision`, `InvalidSortOption`, `AnswerTooLarge`, `Storage`.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeAnswer, ApiError> {
        range::check_sort(request)?;
        let at = range::check_revision(request.revision, self.revision, self.compacted)?;
        let answer = range::answer(&self.source(), at, self.revision, request, range::ANSWER_BYTES_MAX)?;
        if answer.too_large { Err(ApiError::AnswerTooLarge) } else { Ok(answer) }
    }

    /// Answers a transaction that only reads: the response's fields but for the header. Errors: as [`StateView::range`].
    pub fn txn(&self, request: &TxnRequest) -> Result<Vec<u8>, ApiError> {
        txn::read(self, request)
    }

    pub(crate) fn state(&self) -> State {
        State {
            mark: self.mark,
            revision: self.revision,
            compacted: self.compacted,
            membership: self.membership.clone(),
            alarms: self.alarms.clone(),
            counts: self.counts.clone(),
        }
    }

    /// The live version of one key as an encoded `mvccpb.KeyValue`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ApiError> {
        Ok(self.source().get(key)?)
    }

    /// How many keys of the range are live.
    pub fn count(&self, key: &[u8], range_end: &[u8]) -> Result<u64, ApiError> {
        Ok(self.source().count(&Span::new(key, range_end))?)
    }

    /// How many keys are live in all.
    pub fn keys(&self) -> u64 {
        self.counts.total()
    }

    /// The changes from revision `from` up to and including `to` in the key range, as etcd writes ranges (`end` empty:
    /// the key alone; one zero byte: to the end). Stops after about `bytes_max` bytes of events, but never within a
    /// revision, and after a bounded number of changes that lie outside the range; [`History::next`] says where to go
    /// on. Errors: `Compacted` when `from` lies below the compacted revision, `Storage`.
    pub fn history(&self, from: i64, to: i64, key: &[u8], end: &[u8], bytes_max: usize) -> Result<History, ApiError> {
        if from < self.compacted {
            return Err(ApiError::Compacted);
        }
        let range = Span::new(key, end);
        Ok(history::read(&self.source(), self.compacted, from, to.min(self.revision), &range, bytes_max)?)
    }

    /// A checksum of all keys and versions from the compacted revision up to `revision` (zero: the current one), equal
    /// on all replicas with the same `compacted`. Reads everything. Errors: `Compacted`, `FutureRevision`, `Storage`.
    pub fn hash_kv(&self, revision: i64) -> Result<KvHash, ApiError> {
        let at = range::check_revision(revision, self.revision, self.compacted)?.unwrap_or(self.revision);
        Ok(digest::hash_kv(&self.source(), self.compacted, at)?)
    }

    /// As [`StateView::hash_kv`], and of all keys as they were at `revision` besides.
    pub fn digest(&self, revision: i64) -> Result<u64, ApiError> {
        let at = range::check_revision(revision, self.revision, self.compacted)?.unwrap_or(self.revision);
        Ok(digest::digest(&self.source(), self.compacted, at)?)
    }

    /// A short form of the rolling hash: equal on replicas that applied the same entries.
    pub fn hash(&self) -> u32 {
        (self.mark.hash ^ (self.mark.hash >> 32)) as u32
    }

    pub fn lease(&self, id: i64) -> Result<Option<Lease>, ApiError> {
        let value = self.view.get(META, &layout::lease_key(id))?;
        Ok(value.map(|value| Lease::read(id, &value)).transpose()?)
    }

    /// All leases in the order of their ids (as unsigned numbers).
    pub fn leases(&self) -> Result<Vec<Lease>, ApiError> {
        let mut leases = Vec::new();
        let mut walk = self.view.scan(META, &[layout::LEASE], Some(&[layout::LEASE + 1]));
        while walk.valid() {
            leases.push(Lease::read(layout::read_lease_key(walk.key())?, walk.value())?);
            walk.advance();
        }
        walk.status()?;
        Ok(leases)
    }

    /// The keys attached to a lease, in order.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, ApiError> {
        Ok(self.source().lease_keys(id)?)
    }

    /// Whether an alarm of this kind is raised by any member.
    pub fn alarmed(&self, kind: i32) -> bool {
        self.alarms.iter().any(|(raised, _)| *raised == kind)
    }

    pub(crate) fn source(&self) -> Source<'_> {
        Source::new(&*self.view, &self.counts)
    }
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> ApiError {
        if let MachineError::Engine(storage::EngineError::Replaced) = error {
            // As if it had not caught up yet: another member answers, and this one in a moment.
            return ApiError::NoLeader;
        }
        tracing::error!(target: "chainfire_storage", "A read of the state failed, why={error} code=CF1006");
        ApiError::Storage
    }
}
