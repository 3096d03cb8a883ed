//! Range: etcd's options on top of a walk over the store.
//!
//! The order in which the options work, as in etcd: the revision picks the versions; `count` counts them all; the
//! min/max filters thin them out; they are sorted; the limit cuts. Only where no sorting and no filter is asked for
//! does the limit bound the walk. A sort target other than the key without an order is a special case of etcd's: it cuts
//! first, by key, and sorts what is left, ascending.
//!
//! Work is bounded by what is returned wherever the question allows it: the count comes from the index, a limited
//! range walks its limit, a descending range by key walks backwards, and a sorted range with a limit keeps no more than
//! twice its limit in memory.
//!
//! Left out: splitting a plain Range's answer. It is one message; who expects a big one uses [`RangePages`].

use std::cmp::Ordering;

use bytes::Bytes;
use consensus::MachineError;
use proto::etcdserverpb::RangeRequest;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::StateView;
use crate::error::ApiError;
use crate::machine::layout::KV;
use crate::machine::record::{Record, int_field, message_field, varint, varint_len};
use crate::machine::source::{Source, Span};

/// Looking at one change since a revision costs a twentieth of looking for a key's version among the old ones: so many
/// changes, for each key that may be returned, are gone through before a past range is read the long way.
const CHANGES_PER_KEY: i64 = 20;
const CHANGES_MIN: i64 = 200;
const CHANGES_MAX: i64 = 5_000;

/// The fields of a `RangeResponse` but for its header: a response is the header field followed by `body`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeAnswer {
    pub body: Vec<u8>,
    /// All keys of the range.
    pub count: u64,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Key-values in `body`.
    pub returned: usize,
    /// Not all fitted into a message.
    pub too_large: bool,
}

/// The revision to read at: `None` is the present. Errors: `FutureRevision`, `Compacted`.
pub fn check_revision(wanted: i64, current: i64, compacted: i64) -> Result<Option<i64>, ApiError> {
    if wanted > current {
        Err(ApiError::FutureRevision)
    } else if wanted <= 0 || wanted == current {
        Ok(None)
    } else if wanted < compacted {
        Err(ApiError::Compacted)
    } else {
        Ok(Some(wanted))
    }
}

/// Refuses sort orders and targets that do not exist.
pub fn check_sort(request: &RangeRequest) -> Result<(), ApiError> {
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(ApiError::InvalidSortOption) }
}

/// Answers a checked request at a checked revision; `now` is the store's revision. An answer beyond `bytes_max` is broken
/// off and says so.
pub fn answer(
    source: &Source<'_>,
    at: Option<i64>,
    now: i64,
    request: &RangeRequest,
    bytes_max: usize,
) -> Result<RangeAnswer, MachineError> {
    let span = Span::new(&request.key, &request.range_end);
    let mut answer = Builder::new(request, bytes_max);
    if let Span::One(key) = span {
        let record = match at {
            None => source.get(key)?,
            Some(at) => source.get_at(key, at)?,
        };
        answer.count = u64::from(record.is_some());
        if let Some(record) = record
            && !request.count_only
            && answer.passes(&record)?
        {
            answer.out.reserve_exact(record.len() + 1 + varint_len(record.len() as u64) + 2);
            answer.push(&record)?;
        }
        return Ok(answer.finish());
    }
    let Span::Many(from, to) = span else { unreachable!("single keys were answered above") };
    if request.count_only {
        answer.count = match at {
            None => source.count(&span)?,
            Some(at) => source.count_at(&span, at, now)?,
        };
        return Ok(answer.finish());
    }
    let Some(at) = at else {
        present(source, from, to, &mut answer)?;
        return Ok(answer.finish());
    };
    let changes_max = answer.limit.map_or(CHANGES_MAX, |limit| {
        i64::try_from(limit).unwrap_or(CHANGES_MAX).saturating_mul(CHANGES_PER_KEY).clamp(CHANGES_MIN, CHANGES_MAX)
    });
    if let Some(overlays) = source.patches(&span, at, now, changes_max)? {
        present(&source.patched(&overlays), from, to, &mut answer)?;
        return Ok(answer.finish());
    }
    answer.count = source.count_at(&span, at, now)?;
    match Order::of(request) {
        Order::ByKey => source.visit(&span, Some(at), &mut |record| answer.offer(record))?,
        Order::ByKeyDescending => sorted(source, &span, Some(at), None, &mut answer, BY_KEY, true).map(|_| ())?,
        Order::Sorted { compare, descending, cut_first } => {
            let cut = cut_first.then(|| answer.cut()).flatten();
            sorted(source, &span, Some(at), cut, &mut answer, compare, descending).map(|_| ())?;
        }
    }
    Ok(answer.finish())
}

/// Answers from the present. The count is what was walked over, or comes from the index where the walk was cut short.
fn present(source: &Source<'_>, from: &[u8], to: Option<&[u8]>, answer: &mut Builder<'_>) -> Result<(), MachineError> {
    let span = Span::Many(from, to);
    let walked = match Order::of(answer.request) {
        Order::ByKey => {
            let mut walk = source.walk(KV, from, to);
            let mut visited = 0;
            while walk.valid() && answer.offer(walk.value())? {
                visited += 1;
                walk.advance();
            }
            walk.status()?;
            answer.count = source.count_rest(walk, visited, from, to)?;
            return Ok(());
        }
        Order::ByKeyDescending if source.is_plain() => {
            let (mut visited, mut cut_short) = (0, false);
            source.visit_back(from, to, &mut |record| {
                cut_short = !answer.offer(record)?;
                visited += 1;
                Ok(!cut_short)
            })?;
            (!cut_short).then_some(visited)
        }
        Order::ByKeyDescending => sorted(source, &span, None, None, answer, BY_KEY, true)?,
        Order::Sorted { compare, descending, cut_first } => {
            let cut = cut_first.then(|| answer.cut()).flatten();
            sorted(source, &span, None, cut, answer, compare, descending)?
        }
    };
    answer.count = match walked {
        Some(visited) => visited,
        None => source.count(&span)?,
    };
    Ok(())
}

/// What a request's sort options come to.
enum Order {
    ByKey,
    ByKeyDescending,
    Sorted { compare: Compare, descending: bool, cut_first: bool },
}

type Compare = fn(&Record<'_>, &Record<'_>) -> Ordering;

const BY_KEY: Compare = |a, b| a.key.cmp(b.key);

impl Order {
    fn of(request: &RangeRequest) -> Order {
        let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        let descending = order == SortOrder::Descend;
        let compare: Compare = match SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key) {
            SortTarget::Key if descending => return Order::ByKeyDescending,
            SortTarget::Key => return Order::ByKey,
            SortTarget::Version => |a, b| a.version.cmp(&b.version),
            SortTarget::Create => |a, b| a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => |a, b| a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => |a, b| a.value.cmp(b.value),
        };
        Order::Sorted { compare, descending, cut_first: order == SortOrder::None && !has_filters(request) }
    }
}

fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Collects, sorts and appends. `cut` bounds the walk instead of the result. Returns the number of keys walked over, if
/// those were all.
fn sorted(
    source: &Source<'_>,
    span: &Span<'_>,
    at: Option<i64>,
    cut: Option<usize>,
    answer: &mut Builder<'_>,
    compare: Compare,
    descending: bool,
) -> Result<Option<u64>, MachineError> {
    let mut kept: Vec<Bytes> = Vec::new();
    let (mut passed, mut visited, mut cut_short) = (0_usize, 0_u64, false);
    let kept_max = answer.limit.map_or(usize::MAX, |limit| limit.saturating_mul(2).saturating_add(64));
    let sort = |kept: &mut Vec<Bytes>| {
        // The sort is stable, so that keys stay in order among equals.
        fn read(record: &Bytes) -> Record<'_> {
            Record::read(record).unwrap_or_default()
        }
        kept.sort_by(|a, b| {
            let order = compare(&read(a), &read(b));
            if descending { order.reverse() } else { order }
        });
    };
    source.visit(span, at, &mut |record| {
        visited += 1;
        if answer.passes(record)? {
            passed += 1;
            kept.push(Bytes::copy_from_slice(record));
            if kept.len() >= kept_max {
                sort(&mut kept);
                kept.truncate(answer.limit.unwrap_or(usize::MAX));
            }
        }
        cut_short = cut.is_some_and(|cut| passed >= cut);
        Ok(!cut_short)
    })?;
    sort(&mut kept);
    for record in kept.iter().take(answer.limit.unwrap_or(usize::MAX)) {
        answer.push(record)?;
    }
    answer.more = answer.limit.is_some_and(|limit| passed > limit);
    Ok((!cut_short).then_some(visited))
}

/// A response under construction.
struct Builder<'a> {
    request: &'a RangeRequest,
    filters: bool,
    limit: Option<usize>,
    count: u64,
    more: bool,
    returned: usize,
    out: Vec<u8>,
    too_large: bool,
    bytes_max: usize,
}

/// A larger answer is not given to a client.
pub const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

impl<'a> Builder<'a> {
    fn new(request: &'a RangeRequest, bytes_max: usize) -> Builder<'a> {
        Builder {
            request,
            filters: has_filters(request),
            limit: (request.limit > 0).then(|| usize::try_from(request.limit).unwrap_or(usize::MAX)),
            count: 0,
            more: false,
            returned: 0,
            out: Vec::new(),
            too_large: false,
            bytes_max,
        }
    }

    /// Takes the next record in key order; false when it lies beyond the limit, or the answer can take no more.
    fn offer(&mut self, record: &[u8]) -> Result<bool, MachineError> {
        if self.passes(record)? {
            if self.limit.is_some_and(|limit| self.returned >= limit) {
                self.more = true;
                return Ok(false);
            }
            self.push(record)?;
        }
        Ok(!self.too_large)
    }

    /// One more than the limit.
    fn cut(&self) -> Option<usize> {
        self.limit.map(|limit| limit.saturating_add(1))
    }

    fn passes(&self, record: &[u8]) -> Result<bool, MachineError> {
        if !self.filters {
            return Ok(true);
        }
        let record = Record::read(record)?;
        let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
        let request = self.request;
        Ok(within(record.mod_revision, request.min_mod_revision, request.max_mod_revision)
            && within(record.create_revision, request.min_create_revision, request.max_create_revision))
    }

    fn push(&mut self, record: &[u8]) -> Result<(), MachineError> {
        self.too_large |= self.out.len() + record.len() > self.bytes_max;
        if self.too_large {
            return Ok(());
        }
        push_kv(&mut self.out, record, self.request.keys_only)?;
        self.returned += 1;
        Ok(())
    }

    fn finish(mut self) -> RangeAnswer {
        push_trailer(&mut self.out, self.more, self.count);
        let Builder { out: body, count, more, returned, too_large, .. } = self;
        RangeAnswer { body, count, more, returned, too_large }
    }
}

/// Appends one of a `RangeResponse`'s `kvs`.
fn push_kv(out: &mut Vec<u8>, record: &[u8], keys_only: bool) -> Result<(), MachineError> {
    if keys_only {
        let bare = Record { value: &[], ..Record::read(record)? };
        let mut bytes = Vec::with_capacity(bare.bytes_max());
        bare.write(&mut bytes);
        message_field(out, 2, &bytes);
    } else {
        message_field(out, 2, record);
    }
    Ok(())
}

/// Appends a `RangeResponse`'s `more` and `count`.
fn push_trailer(out: &mut Vec<u8>, more: bool, count: u64) {
    int_field(out, 3, i64::from(more));
    if count != 0 {
        out.push(4 << 3);
        varint(out, count);
    }
}

/// A long range in pages, all of one revision. Between two pages nothing is held, so that the view may be a later one
/// each time, until the revision is compacted.
pub struct RangePages {
    request: RangeRequest,
    /// Of the first page's view; for the response's header.
    pub revision: i64,
    at: i64,
    count: u64,
    /// Where the next page begins; `None` when the last page was given.
    next: Option<Bytes>,
    returned: u64,
}

/// A part of a `RangeResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePage {
    /// Some `kvs`, and on the last page `more` and `count`.
    pub body: Vec<u8>,
    pub last: bool,
}

impl RangePages {
    /// Fixes the revision and counts. Errors: as [`StateView::range`], and `StreamCustomSort` and
    /// `StreamRevisionFilter` for what cannot be answered page by page.
    pub fn new(view: &StateView, request: RangeRequest) -> Result<RangePages, ApiError> {
        check_sort(&request)?;
        if !matches!(Order::of(&request), Order::ByKey) {
            return Err(ApiError::StreamCustomSort);
        }
        if has_filters(&request) {
            return Err(ApiError::StreamRevisionFilter);
        }
        let at = check_revision(request.revision, view.revision, view.compacted)?;
        let span = Span::new(&request.key, &request.range_end);
        let count = match at {
            None => view.source().count(&span)?,
            Some(at) => view.source().count_at(&span, at, view.revision)?,
        };
        let next = Some(request.key.clone());
        let at = at.unwrap_or(view.revision);
        Ok(RangePages { request, revision: view.revision, at, count, next, returned: 0 })
    }

    /// The next page, of about `bytes_max` bytes but at least one key-value; `None` after the last one.
    pub fn next(&mut self, view: &StateView, bytes_max: usize) -> Result<Option<RangePage>, ApiError> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let at = check_revision(self.at, view.revision, view.compacted)?;
        let mut body = Vec::new();
        let limit = u64::try_from(self.request.limit).ok().filter(|limit| *limit > 0).unwrap_or(u64::MAX);
        if !self.request.count_only {
            let span = match Span::new(&self.request.key, &self.request.range_end) {
                Span::One(key) => Span::One(key),
                Span::Many(_, to) => Span::Many(&from, to),
            };
            let (next, returned, keys_only) = (&mut self.next, &mut self.returned, self.request.keys_only);
            view.source().visit(&span, at, &mut |record| {
                if *returned == limit {
                    return Ok(false);
                }
                if body.len() >= bytes_max && !body.is_empty() {
                    *next = Some(Bytes::copy_from_slice(Record::read(record)?.key));
                    return Ok(false);
                }
                push_kv(&mut body, record, keys_only)?;
                *returned += 1;
                Ok(true)
            })?;
        }
        let last = self.next.is_none();
        if last {
            let more = !self.request.count_only && self.count > self.returned;
            push_trailer(&mut body, more, self.count);
        }
        Ok(Some(RangePage { body, last }))
    }
}
