//! What only the leader can answer: other nodes ask for it through calls, this node's own API through the same door.
//! (And what the leader asks others: [`crate::corruption`].)

use std::sync::Arc;
use std::time::Duration;

use base::NodeId;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus::{Refusal, Role};
use node::GroupHandle;
use node::transport::{CallFuture, CallService, Caller};

use crate::command::Command;
use crate::corruption::{self, Answered};
use crate::lessor::Renewal;
use crate::space::Reports;
use crate::store::Stores;

/// Renew a lease: 8 bytes id in; 8 bytes TTL in seconds out, zero when it is gone.
pub const RENEW: u8 = node::FIRST_METHOD;
/// 8 bytes id in; 8 bytes remaining seconds out, −1 when it is gone.
pub const REMAINING: u8 = node::FIRST_METHOD + 1;

/// 8 bytes node id in: its disk is full, or its quota is exceeded. 8 bytes out: 1 when a quorum is full.
pub const DISK_FULL: u8 = node::FIRST_METHOD + 4;
pub const OVER_QUOTA: u8 = node::FIRST_METHOD + 5;
/// 8 bytes node id in: its disk has room again.
pub const DISK_ROOMY: u8 = node::FIRST_METHOD + 6;

const WAIT: Duration = Duration::from_millis(5);

pub struct LeaderCalls {
    pub handle: GroupHandle,
    pub stores: Arc<Stores>,
    pub reports: Arc<Reports>,
    pub answered: Arc<Answered>,
}

impl CallService for LeaderCalls {
    fn call(&self, caller: &Caller, method: u8, mut body: Bytes) -> CallFuture {
        let (handle, stores) = (self.handle.clone(), self.stores.clone());
        let (reports, answered) = (self.reports.clone(), self.answered.clone());
        let caller = caller.node;
        Box::pin(async move {
            match method {
                corruption::DIGEST => return corruption::answer_digest(&handle, &stores, &answered, body).await,
                // Whoever says so may cost this member its data: only the leader may.
                corruption::DIFFERS if caller != handle.status().leader_node => return Err(Refusal::NoLeader),
                corruption::DIFFERS => return corruption::told_it_differs(&handle, &answered, body),
                _ => {}
            }
            let id = body.try_get_i64_le().map_err(|_| Refusal::UnknownMember)?;
            let answer = match method {
                RENEW => renew(&handle, &stores, id).await?,
                REMAINING => remaining(&handle, &stores, id).await?,
                DISK_FULL | OVER_QUOTA | DISK_ROOMY if handle.status().role != Role::Leader => {
                    return Err(Refusal::NoLeader);
                }
                // Each speaks for its own disk.
                DISK_FULL | OVER_QUOTA | DISK_ROOMY if caller != NodeId(id as u64) => {
                    return Err(Refusal::UnknownMember);
                }
                DISK_FULL | OVER_QUOTA | DISK_ROOMY => reports.take(method, NodeId(id as u64), &handle),
                _ => return Err(Refusal::NoGroup),
            };
            let mut out = BytesMut::with_capacity(8);
            out.put_i64_le(answer);
            Ok(out.freeze())
        })
    }
}

/// A lease that is not known may have been granted by an entry that is committed, and applied where the client was
/// answered, but not here yet. What [`confirm`] reads settles that: only who is gone after it is gone.
async fn renew(handle: &GroupHandle, stores: &Stores, id: i64) -> Result<i64, Refusal> {
    let store = stores.get().ok_or(Refusal::NoLeader)?;
    let mut settled = false;
    loop {
        let (renewal, term) = {
            let mut lessor = store.lessor.lock();
            (lessor.renew(id, handle.now()), lessor.term())
        };
        match renewal {
            Renewal::Renewed { ttl_s } => {
                confirm(handle, term).await?;
                return Ok(ttl_s);
            }
            Renewal::ClearFirst => {
                let term = term.ok_or(Refusal::NoLeader)?;
                let clear = Box::new(Command::LeaseCheckpoint(vec![(id, 0)]));
                handle.propose(Command::InTerm { term, command: clear }.encode()).await?;
            }
            Renewal::Wait => tokio::time::sleep(WAIT).await,
            Renewal::Gone if settled => return Ok(0),
            Renewal::Gone => {
                confirm(handle, term).await?;
                settled = true;
            }
            Renewal::NotLeading => return Err(Refusal::NoLeader),
        }
    }
}

async fn remaining(handle: &GroupHandle, stores: &Stores, id: i64) -> Result<i64, Refusal> {
    let store = stores.get().ok_or(Refusal::NoLeader)?;
    let look = || {
        let mut lessor = store.lessor.lock();
        (lessor.remaining_s(id, handle.now()), lessor.term())
    };
    let (remaining, term) = look();
    if term.is_none() {
        return Err(Refusal::NoLeader);
    }
    confirm(handle, term).await?;
    // As in `renew`: what was not known before may be known after.
    let remaining = remaining.or_else(|| look().0);
    Ok(remaining.map_or(-1, |(_, remaining_s)| remaining_s))
}

/// What this node said as the leader counts only if it still is: a successor may have revoked the lease already.
async fn confirm(handle: &GroupHandle, term: Option<u64>) -> Result<(), Refusal> {
    handle.read().await?;
    let status = handle.status();
    if status.role == Role::Leader && Some(status.term) == term { Ok(()) } else { Err(Refusal::NoLeader) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corruption::{DIFFERS, DIGEST};

    #[test]
    fn every_call_has_a_number_of_its_own() {
        let mut numbers = vec![RENEW, REMAINING, DIGEST, DIFFERS, DISK_FULL, OVER_QUOTA, DISK_ROOMY];
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }
}
