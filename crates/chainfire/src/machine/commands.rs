//! What each command does, and what its client is told.
//!
//! A command either takes effect as a whole or is refused with an [`ApiError`] and changes nothing; which of the two
//! depends only on the store and the command, so that all replicas decide alike. Answers are only made on the replica
//! whose client waits; that must not change what is written.
//!
//! While a NOSPACE alarm is raised, what would add data is refused; while a CORRUPT alarm is, everything but alarms and
//! lease checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::NodeId;
use bytes::{Bytes, BytesMut};
use consensus::{MachineError, Member, Outcome};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::alarm_request::AlarmAction;

use super::Identity;
use super::layout::{self, Lease};
use super::record::{Record, int_field, message_field};
use super::source::Span;
use super::stage::Stage;
use super::txn;
use crate::command::Command;
use crate::error::ApiError;
use crate::event::LeaseChange;

/// The longest TTL that a lease may have.
pub const LEASE_TTL_S_MAX: i64 = 9_000_000_000;

/// Numbers of `AlarmType`.
pub const ALARM_NOSPACE: i32 = pb::AlarmType::Nospace as i32;
pub const ALARM_CORRUPT: i32 = pb::AlarmType::Corrupt as i32;

/// Why a command came to nothing.
pub(super) enum Stop {
    /// The client is told; the machine goes on.
    Refused(ApiError),
    /// The machine cannot go on.
    Broken(MachineError),
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Stop {
        Stop::Refused(error)
    }
}

impl From<MachineError> for Stop {
    fn from(error: MachineError) -> Stop {
        Stop::Broken(error)
    }
}

/// Carries one command out. With `reply`, the outcome holds the encoded response. `TooNew` for a command that this program does
/// not know: whoever does comes to another state.
pub(super) fn execute(
    stage: &mut Stage<'_>,
    identity: &Identity,
    term: u64,
    command: Bytes,
    reply: bool,
) -> Result<Outcome, MachineError> {
    if let Some(tag) = Command::unknown_tag(&command) {
        let why = format!(
            "an entry of the log holds a command of a later version (number {tag}): start that version here, too"
        );
        return Err(MachineError::TooNew(why));
    }
    let done = Command::decode(command).and_then(|command| command.in_term(term)).map_err(Stop::from);
    let done = done.and_then(|command| run(stage, command, reply));
    match done {
        Ok(body) => {
            stage.commit();
            if !reply {
                return Ok(Outcome::default());
            }
            let mut out = BytesMut::with_capacity(HEADER_BYTES_MAX + body.len());
            header_field(&mut out, identity, stage.state.revision, term);
            out.extend_from_slice(&body);
            Ok(Outcome { code: 0, body: out.freeze() })
        }
        Err(Stop::Refused(error)) => Ok(Outcome { code: error.code(), body: Bytes::new() }),
        Err(Stop::Broken(error)) => Err(error),
    }
}

/// An upper bound of what [`header_field`] appends.
pub const HEADER_BYTES_MAX: usize = 2 + 4 * 11;

/// Appends a response's `header` field (number 1 in every response).
pub fn header_field(out: &mut impl bytes::BufMut, identity: &Identity, revision: i64, term: u64) {
    let mut header = [0; HEADER_BYTES_MAX];
    let mut rest = &mut header[..];
    int_field(&mut rest, 1, identity.cluster.0 as i64);
    int_field(&mut rest, 2, identity.member.0 as i64);
    int_field(&mut rest, 3, revision);
    int_field(&mut rest, 4, term as i64);
    let left = rest.len();
    message_field(out, 1, &header[..HEADER_BYTES_MAX - left]);
}

/// The response's fields but for the header; empty without `reply`.
fn run(stage: &mut Stage<'_>, command: Command, reply: bool) -> Result<Vec<u8>, Stop> {
    let raised = |kind| stage.state.alarms.iter().any(|(raised, _)| *raised == kind);
    if !stage.state.alarms.is_empty() {
        if raised(ALARM_CORRUPT) && !matches!(command, Command::Alarm { .. } | Command::LeaseCheckpoint(_)) {
            return Err(ApiError::Corrupt.into());
        }
        let adds = match &command {
            Command::Put(_) | Command::LeaseGrant { .. } => true,
            Command::Txn(request) => txn::has_puts(request),
            _ => false,
        };
        if adds && raised(ALARM_NOSPACE) {
            return Err(ApiError::NoSpace.into());
        }
    }
    let mut body = Vec::new();
    match command {
        Command::Put(request) => {
            check_put(stage, &request)?;
            put(stage, &request, reply.then_some(&mut body))?;
        }
        Command::DeleteRange(request) => delete_range(stage, &request, reply.then_some(&mut body))?,
        Command::Txn(request) => txn::run(stage, &request, reply.then_some(&mut body))?,
        Command::Compact(request) => compact(stage, request.revision)?,
        Command::LeaseGrant { id, ttl_s } => {
            grant(stage, id, ttl_s)?;
            int_field(&mut body, 2, id);
            int_field(&mut body, 3, ttl_s);
        }
        Command::LeaseRevoke { id } => revoke(stage, id)?,
        Command::LeaseCheckpoint(remaining) => {
            for (id, remaining_s) in remaining {
                checkpoint(stage, id, remaining_s)?;
            }
        }
        Command::Alarm { action, member, kind } => alarm(stage, action, member, kind, &mut body)?,
        Command::InTerm { .. } => return Err(ApiError::MalformedCommand.into()),
    }
    Ok(body)
}

/// Refuses a put that names an unknown lease, or that wants to keep something of a key which is not there.
pub(super) fn check_put(stage: &mut Stage<'_>, request: &pb::PutRequest) -> Result<(), Stop> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey.into());
    }
    if request.lease != 0 && stage.meta(&layout::lease_key(request.lease))?.is_none() {
        return Err(ApiError::LeaseNotFound.into());
    }
    if (request.ignore_value || request.ignore_lease) && stage.get(&request.key)?.is_none() {
        return Err(ApiError::KeyNotFound.into());
    }
    Ok(())
}

/// Carries a checked put out.
pub(super) fn put(
    stage: &mut Stage<'_>,
    request: &pb::PutRequest,
    body: Option<&mut Vec<u8>>,
) -> Result<(), MachineError> {
    let previous = stage.get(&request.key)?;
    if let (Some(body), true, Some(previous)) = (body, request.prev_kv, &previous) {
        message_field(body, 2, previous);
    }
    if !request.ignore_value && !request.ignore_lease {
        return stage.put(&request.key, &request.value, request.lease, previous);
    }
    let shared = previous.clone().unwrap_or_default();
    let before = Record::read(&shared)?;
    let value = if request.ignore_value { before.value } else { &request.value };
    let lease = if request.ignore_lease { before.lease } else { request.lease };
    stage.put(&request.key, value, lease, previous)
}

pub(super) fn delete_range(
    stage: &mut Stage<'_>,
    request: &pb::DeleteRangeRequest,
    body: Option<&mut Vec<u8>>,
) -> Result<(), MachineError> {
    let mut doomed = Vec::new();
    match Span::new(&request.key, &request.range_end) {
        Span::One(key) => doomed.extend(stage.get(key)?),
        span => stage.source().visit(&span, None, &mut |record| {
            doomed.push(Bytes::copy_from_slice(record));
            Ok(true)
        })?,
    }
    if let Some(body) = body {
        int_field(body, 2, i64::try_from(doomed.len()).expect("fewer keys than 2^63"));
        if request.prev_kv {
            doomed.iter().for_each(|record| message_field(body, 3, record));
        }
    }
    doomed.into_iter().try_for_each(|record| stage.delete(record))
}

fn compact(stage: &mut Stage<'_>, revision: i64) -> Result<(), Stop> {
    if revision <= stage.state.compacted {
        return Err(ApiError::Compacted.into());
    }
    if revision > stage.state.revision {
        return Err(ApiError::FutureRevision.into());
    }
    stage.compact(revision);
    Ok(())
}

fn grant(stage: &mut Stage<'_>, id: i64, ttl_s: i64) -> Result<(), Stop> {
    if id == 0 {
        return Err(ApiError::LeaseNotFound.into());
    }
    if ttl_s > LEASE_TTL_S_MAX {
        return Err(ApiError::LeaseTtlTooLarge.into());
    }
    let key = layout::lease_key(id);
    if stage.meta(&key)?.is_some() {
        return Err(ApiError::LeaseExists.into());
    }
    let lease = Lease { id, ttl_s, remaining_s: 0 };
    stage.set_meta(key.to_vec(), Some(&lease.value()));
    stage.lease_changes.push(LeaseChange::Granted { id, ttl_s });
    Ok(())
}

/// Deletes all keys of a lease in one revision, in order, and the lease.
fn revoke(stage: &mut Stage<'_>, id: i64) -> Result<(), Stop> {
    let lease_key = layout::lease_key(id);
    if stage.meta(&lease_key)?.is_none() {
        return Err(ApiError::LeaseNotFound.into());
    }
    let keys = stage.source().lease_keys(id)?;
    for key in keys {
        if let Some(record) = stage.get(&key)? {
            stage.delete(record)?;
        }
    }
    stage.set_meta(lease_key.to_vec(), None);
    stage.lease_changes.push(LeaseChange::Revoked { id });
    Ok(())
}

/// Notes the time that a lease has left; one that is gone meanwhile is passed over.
fn checkpoint(stage: &mut Stage<'_>, id: i64, remaining_s: i64) -> Result<(), MachineError> {
    let key = layout::lease_key(id);
    if let Some(value) = stage.meta(&key)? {
        let lease = Lease { remaining_s, ..Lease::read(id, &value)? };
        stage.set_meta(key.to_vec(), Some(&lease.value()));
        stage.lease_changes.push(LeaseChange::Checkpointed { id, remaining_s });
    }
    Ok(())
}

/// Raises, lowers or lists alarms; kind zero means all kinds, and member zero, when lowering, all members.
fn alarm(stage: &mut Stage<'_>, action: i32, member: u64, kind: i32, body: &mut Vec<u8>) -> Result<(), Stop> {
    let action = AlarmAction::try_from(action).map_err(|_| ApiError::MalformedCommand)?;
    let none = pb::AlarmType::None as i32;
    let mut alarms = stage.state.alarms.to_vec();
    let named = match action {
        AlarmAction::Activate if kind == none => Vec::new(),
        AlarmAction::Activate => {
            if !alarms.contains(&(kind, member)) {
                alarms.push((kind, member));
                alarms.sort_unstable();
                stage.set_meta(layout::alarm_key(kind, member).to_vec(), Some(&[]));
            }
            vec![(kind, member)]
        }
        AlarmAction::Get => alarms.iter().copied().filter(|(raised, _)| kind == none || *raised == kind).collect(),
        AlarmAction::Deactivate => {
            let covers = |alarm: &(i32, u64)| (kind == none || alarm.0 == kind) && (member == 0 || alarm.1 == member);
            let lowered: Vec<_> = alarms.iter().copied().filter(covers).collect();
            alarms.retain(|alarm| !covers(alarm));
            for (kind, member) in &lowered {
                stage.set_meta(layout::alarm_key(*kind, *member).to_vec(), None);
            }
            lowered
        }
    };
    stage.state.alarms = Arc::new(alarms);
    for (kind, member) in named {
        let mut alarm = Vec::new();
        int_field(&mut alarm, 1, member as i64);
        int_field(&mut alarm, 2, i64::from(kind));
        message_field(body, 2, &alarm);
    }
    Ok(())
}

/// Lowers the alarms of nodes that are no members any more: nobody else would.
pub(super) fn lower_alarms_of_strangers(stage: &mut Stage<'_>, members: &BTreeMap<NodeId, Member>) {
    let (kept, lowered) =
        stage.state.alarms.iter().partition::<Vec<_>, _>(|(_, member)| members.contains_key(&NodeId(*member)));
    for (kind, member) in &lowered {
        stage.set_meta(layout::alarm_key(*kind, *member).to_vec(), None);
    }
    stage.state.alarms = Arc::new(kept);
}
