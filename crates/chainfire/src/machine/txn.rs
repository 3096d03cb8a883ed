//! Transactions: compares decide a branch, the branch's operations take effect together.
//!
//! The three steps, as in etcd: all compares, those of nested transactions included, are decided on the store as it was
//! before; everything in the chosen branches that could be refused is checked, also on the store before; then the
//! operations run in order, each seeing what the ones before it wrote, all under one revision. Whatever can go wrong
//! goes wrong before the first write.
//!
//! The decisions are kept in the order in which a walk through the chosen branches meets the transactions.

use consensus::MachineError;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;

use super::commands::{Stop, check_put, delete_range, put};
use super::record::{Record, int_field, message_field};
use super::source::Span;
use super::stage::Stage;
use crate::error::ApiError;
use crate::read::{StateView, range};

/// Whether any branch holds a put.
pub fn has_puts(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => has_puts(nested),
        _ => false,
    })
}

/// Whether no branch holds anything but reads.
pub fn only_reads(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(Request::RequestRange(_)) | None => true,
        Some(Request::RequestTxn(nested)) => only_reads(nested),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => false,
    })
}

/// Whether all that is read may be stale.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => false,
    })
}

/// Runs a transaction that only reads, on a view.
pub fn read(view: &StateView, request: &pb::TxnRequest) -> Result<Vec<u8>, ApiError> {
    let mut stage = Stage::over(&*view.view, view.state());
    let mut body = Vec::new();
    match run(&mut stage, request, Some(&mut body)) {
        Ok(()) => Ok(body),
        Err(Stop::Refused(error)) => Err(error),
        Err(Stop::Broken(error)) => Err(error.into()),
    }
}

/// Runs a transaction; `body` gets the response's fields but for the header.
pub(super) fn run(stage: &mut Stage<'_>, request: &pb::TxnRequest, body: Option<&mut Vec<u8>>) -> Result<(), Stop> {
    let mut decisions = Vec::new();
    decide(stage, request, &mut decisions)?;
    check(stage, request, &mut decisions.iter().copied())?;
    execute(stage, request, &mut decisions.iter().copied(), body)?;
    Ok(())
}

fn decide(stage: &mut Stage<'_>, request: &pb::TxnRequest, decisions: &mut Vec<bool>) -> Result<(), MachineError> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(stage, compare)? {
            succeeded = false;
            break;
        }
    }
    decisions.push(succeeded);
    for op in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            decide(stage, nested, decisions)?;
        }
    }
    Ok(())
}

fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Whether a compare holds for all keys of its range; if there are none, for one that is all zeros, except that a value
/// which is not there equals nothing.
fn holds(stage: &mut Stage<'_>, compare: &pb::Compare) -> Result<bool, MachineError> {
    let (mut any, mut all) = (false, true);
    let mut each = |record: &[u8]| {
        any = true;
        all = holds_for(compare, &Record::read(record)?);
        Ok(all)
    };
    match Span::new(&compare.key, &compare.range_end) {
        Span::One(key) => {
            if let Some(record) = stage.get(key)? {
                each(&record)?;
            }
        }
        span => stage.source().visit(&span, None, &mut each)?,
    }
    if any {
        return Ok(all);
    }
    Ok(compare.target != CompareTarget::Value as i32 && holds_for(compare, &Record::default()))
}

fn holds_for(compare: &pb::Compare, record: &Record<'_>) -> bool {
    use std::cmp::Ordering;
    let union = compare.target_union.as_ref();
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => match union {
            Some(TargetUnion::Value(value)) => record.value.cmp(value),
            _ => record.value.cmp(&[]),
        },
        Ok(CompareTarget::Version) => record.version.cmp(&match union {
            Some(TargetUnion::Version(version)) => *version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => record.create_revision.cmp(&match union {
            Some(TargetUnion::CreateRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => record.mod_revision.cmp(&match union {
            Some(TargetUnion::ModRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => record.lease.cmp(&match union {
            Some(TargetUnion::Lease(lease)) => *lease,
            _ => 0,
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order == Ordering::Equal,
        Ok(CompareResult::NotEqual) => order != Ordering::Equal,
        Ok(CompareResult::Greater) => order == Ordering::Greater,
        Ok(CompareResult::Less) => order == Ordering::Less,
        Err(_) => true,
    }
}

/// Checks the operations of the chosen branches.
fn check(
    stage: &mut Stage<'_>,
    request: &pb::TxnRequest,
    decisions: &mut dyn Iterator<Item = bool>,
) -> Result<(), Stop> {
    let succeeded = decisions.next().expect("a decision for every transaction on the way");
    for op in branch(request, succeeded) {
        match &op.request {
            Some(Request::RequestRange(request)) => {
                range::check_sort(request)?;
                if request.revision > stage.state.revision {
                    return Err(ApiError::FutureRevision.into());
                }
                if request.revision != 0 && request.revision < stage.state.compacted {
                    return Err(ApiError::Compacted.into());
                }
            }
            Some(Request::RequestPut(request)) => check_put(stage, request)?,
            Some(Request::RequestTxn(nested)) => check(stage, nested, decisions)?,
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// Runs the chosen branch. `body` gets `succeeded` and `responses`.
fn execute(
    stage: &mut Stage<'_>,
    request: &pb::TxnRequest,
    decisions: &mut dyn Iterator<Item = bool>,
    mut body: Option<&mut Vec<u8>>,
) -> Result<(), MachineError> {
    let succeeded = decisions.next().expect("a decision for every transaction on the way");
    if let Some(body) = &mut body {
        int_field(*body, 2, i64::from(succeeded));
    }
    for op in branch(request, succeeded) {
        // Of a `ResponseOp`: the number of its one field, and that field's message.
        let mut answer = Vec::new();
        let mut wanted = body.is_some().then_some(&mut answer);
        let number = match &op.request {
            Some(Request::RequestRange(request)) => {
                if let Some(answer) = wanted {
                    header(answer, stage.now());
                    answer.append(&mut range_within(stage, request)?);
                }
                1
            }
            Some(Request::RequestPut(request)) => {
                if let Some(answer) = &mut wanted {
                    header(answer, stage.state.revision + 1);
                }
                put(stage, request, wanted)?;
                2
            }
            Some(Request::RequestDeleteRange(request)) => {
                let mut rest = Vec::new();
                delete_range(stage, request, wanted.is_some().then_some(&mut rest))?;
                if let Some(answer) = wanted {
                    header(answer, stage.now());
                    answer.append(&mut rest);
                }
                3
            }
            Some(Request::RequestTxn(nested)) => {
                if let Some(answer) = &mut wanted {
                    message_field(*answer, 1, &[]);
                }
                execute(stage, nested, decisions, wanted)?;
                4
            }
            None => 0,
        };
        if let Some(body) = &mut body {
            let mut response = Vec::with_capacity(answer.len() + 8);
            if number > 0 {
                message_field(&mut response, number, &answer);
            }
            message_field(*body, 3, &response);
        }
    }
    Ok(())
}

fn range_within(stage: &mut Stage<'_>, request: &pb::RangeRequest) -> Result<Vec<u8>, MachineError> {
    let now = stage.now();
    let at = (request.revision > 0 && request.revision != now).then_some(request.revision);
    let source = if at.is_some() { stage.source_of_all_times() } else { stage.source() };
    // Never broken off: what the client is told must be whole.
    Ok(range::answer(&source, at, now, request, usize::MAX)?.body)
}

/// The header of a response within a transaction: the revision alone.
fn header(out: &mut Vec<u8>, revision: i64) {
    let mut header = Vec::with_capacity(11);
    int_field(&mut header, 3, revision);
    message_field(out, 1, &header);
}
