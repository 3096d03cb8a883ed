//! The raw calls. Each is tried here if the key lies here, and forwarded if not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consensus::{MachineError, Refusal};
use prost::Message as _;
use proto::flaredb as pb;
use rpc::Status;
use rpc::client::Router;

use super::Missed;
use crate::alone;
use crate::region::layout::{self, RAW};
use crate::region::machine::{FROZEN, STALE};
use crate::store::{ReadError, Region, Store};

/// The longest key, and the largest value.
pub const KEY_BYTES_MAX: usize = 16 << 10;
pub const VALUE_BYTES_MAX: usize = 8 << 20;
const MUTATIONS_MAX: usize = 4096;
const ROWS_DEFAULT: u32 = 1000;
const ROWS_MAX: u32 = 100_000;
const BYTES_DEFAULT: u32 = 1 << 20;
const BYTES_MAX: u32 = 32 << 20;
/// What a scan looks at, values that are not wanted included.
const WALKED_BYTES_MAX: usize = 64 << 20;
/// A lease may end, and a region may split, while a request is under way; then it is tried again.
const TRIES: usize = 8;
/// A region that is being merged is waited for, before it is asked for elsewhere.
const FROZEN_PATIENCE: Duration = Duration::from_secs(1);
const FROZEN_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Forwards a call if its key is not here, and makes of a region's error what its sender can use.
macro_rules! here_or_there {
    ($api:expr, $request:expr, $here:ident, $there:ident, $response:ident) => {{
        let routed = $request.context.is_some();
        match $api.$here(&$request).await {
            Ok(response) => Ok(response),
            Err(Missed::Failed(status)) => Err(status),
            Err(Missed::Region(error)) if routed => {
                // Some answers have nothing else to say.
                #[allow(clippy::needless_update)]
                Ok(pb::$response { error: Some(error), ..pb::$response::default() })
            }
            Err(Missed::Region(_)) => $api.router.$there($request).await,
        }
    }};
}

/// What answers them: a store, and whoever knows the way to the others.
pub struct Raw {
    pub store: Arc<Store>,
    pub router: Arc<Router>,
}

impl Raw {
    pub async fn get(&self, request: pb::GetRequest) -> Result<pb::GetResponse, Status> {
        check_key(&request.key)?;
        here_or_there!(self, request, get_here, get, GetResponse)
    }

    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        check_key(&request.key)?;
        check_value(Some(&request.value))?;
        here_or_there!(self, request, put_here, put, PutResponse)
    }

    pub async fn delete(&self, request: pb::DeleteRequest) -> Result<pb::DeleteResponse, Status> {
        check_key(&request.key)?;
        here_or_there!(self, request, delete_here, delete, DeleteResponse)
    }

    pub async fn compare_and_swap(
        &self,
        request: pb::CompareAndSwapRequest,
    ) -> Result<pb::CompareAndSwapResponse, Status> {
        check_key(&request.key)?;
        check_value(request.value.as_ref())?;
        here_or_there!(self, request, swap_here, compare_and_swap, CompareAndSwapResponse)
    }

    /// Mutations of several regions are done region by region, in the order of their keys: where one fails, those before are done.
    pub async fn batch(&self, mut request: pb::BatchRequest) -> Result<pb::BatchResponse, Status> {
        if request.mutations.len() > MUTATIONS_MAX {
            return Err(Status::invalid_argument(format!("a batch holds at most {MUTATIONS_MAX} mutations")));
        }
        for mutation in &request.mutations {
            check_key(&mutation.key)?;
            check_value(mutation.value.as_ref())?;
        }
        if request.context.is_some() {
            return self.batch_part(request).await;
        }
        // Later ones of a key win, as they would one after the other.
        request.mutations.sort_by(|a, b| a.key.cmp(&b.key));
        let all = request.mutations.len();
        let (mut rest, mut cut_anew) = (request.mutations, 0);
        while let Some(first) = rest.first() {
            let end = match self.store.region_at(&first.key) {
                Some(region) => Some(region.state().end.clone()).filter(|end| !end.is_empty()),
                None => {
                    let end = self.router.end_of_region(&first.key).await;
                    end.map_err(|why| done_in_part(why, all - rest.len(), all))?
                }
            };
            let many = match &end {
                Some(end) => rest.partition_point(|mutation| mutation.key < *end).max(1),
                None => rest.len(),
            };
            let later = rest.split_off(many);
            let done = all - later.len() - rest.len();
            let part = pb::BatchRequest { context: None, mutations: rest };
            match self.batch_part(part.clone()).await {
                Ok(_) => (rest, cut_anew) = (later, 0),
                // The region was cut since.
                Err(why) if why.code == rpc::Code::Aborted && why.nothing_done && cut_anew < TRIES => {
                    cut_anew += 1;
                    self.store.node.sleep(FROZEN_LOOK_EVERY).await;
                    rest = part.mutations;
                    rest.extend(later);
                }
                Err(why) => return Err(done_in_part(why, done, all)),
            }
        }
        Ok(pb::BatchResponse::default())
    }

    async fn batch_part(&self, request: pb::BatchRequest) -> Result<pb::BatchResponse, Status> {
        if request.mutations.is_empty() {
            return Ok(pb::BatchResponse::default());
        }
        here_or_there!(self, request, batch_here, batch_of_one, BatchResponse)
    }

    /// Answers from one region; where it ends before the range does, the resume key leads on.
    pub async fn scan(&self, request: pb::ScanRequest) -> Result<pb::ScanResponse, Status> {
        if !request.end.is_empty() && request.end <= request.start {
            return Ok(pb::ScanResponse::default());
        }
        here_or_there!(self, request, scan_here, scan, ScanResponse)
    }

    async fn get_here(&self, request: &pb::GetRequest) -> Result<pb::GetResponse, Missed> {
        let get = async |region: Region| {
            let value = self.store.get(&request.key).await?;
            let bytes = request.key.len() + value.as_ref().map_or(0, Bytes::len);
            region.cell.traffic.read(&request.key, &request.key, 1, bytes as u64);
            Ok(value)
        };
        let value = self.read(&request.key, request.context.as_ref(), get).await?;
        Ok(pb::GetResponse { error: None, value })
    }

    async fn scan_here(&self, request: &pb::ScanRequest) -> Result<pb::ScanResponse, Missed> {
        let scan = |region: Region| {
            let (store, request) = (self.store.clone(), request.clone());
            async move {
                let _room = store.scans.enter(kib_of(&request)).await?;
                let walked = store.clone();
                store.reads.run_if_room(move || Ok(scan_region(&walked, &region, &request)?)).await
            }
        };
        self.read(&request.start, request.context.as_ref(), scan).await
    }

    async fn put_here(&self, request: &pb::PutRequest) -> Result<pb::PutResponse, Missed> {
        let mutation = pb::Mutation { key: request.key.clone(), value: Some(request.value.clone()) };
        let write = pb::Write { mutations: vec![mutation], tell: false };
        self.propose(&request.key, request.context.as_ref(), pb::command::What::Write(write)).await?;
        Ok(pb::PutResponse::default())
    }

    async fn delete_here(&self, request: &pb::DeleteRequest) -> Result<pb::DeleteResponse, Missed> {
        let mutation = pb::Mutation { key: request.key.clone(), value: None };
        let write = pb::Write { mutations: vec![mutation], tell: true };
        let outcome = self.propose(&request.key, request.context.as_ref(), pb::command::What::Write(write)).await?;
        Ok(pb::DeleteResponse { error: None, existed: outcome.existed.first() == Some(&true) })
    }

    async fn swap_here(&self, request: &pb::CompareAndSwapRequest) -> Result<pb::CompareAndSwapResponse, Missed> {
        let swap = pb::CompareAndSwap {
            key: request.key.clone(),
            expected: request.expected.clone(),
            value: request.value.clone(),
        };
        let what = pb::command::What::CompareAndSwap(swap);
        let pb::Outcome { swapped, previous, .. } = self.propose(&request.key, request.context.as_ref(), what).await?;
        Ok(pb::CompareAndSwapResponse { error: None, swapped, previous })
    }

    async fn batch_here(&self, request: &pb::BatchRequest) -> Result<pb::BatchResponse, Missed> {
        let key = &request.mutations.first().expect("an empty batch is done already").key;
        let write = pb::Write { mutations: request.mutations.clone(), tell: false };
        self.propose(key, request.context.as_ref(), pb::command::What::Write(write)).await?;
        Ok(pb::BatchResponse::default())
    }

    /// Reads from the region that covers a key, linearizably.
    async fn read<T, R: Future<Output = Result<T, ReadError>>>(
        &self,
        key: &[u8],
        context: Option<&pb::Context>,
        read: impl Fn(Region) -> R,
    ) -> Result<T, Missed> {
        for _ in 0..TRIES {
            let region = self.unfrozen(key, context).await?;
            if self.is_elsewhere(&region, key).await {
                return Err(not_here());
            }
            let grant = match region.handle.read().await {
                Ok(grant) => grant,
                // It was taken away meanwhile. (Of what was proposed there it is not known what became of it.)
                Err(Refusal::Stopping) if self.store.region(region.id()).is_none() => return Err(not_here()),
                Err(why) => return Err(self.missed(&region, key, why).await),
            };
            let seen = region.cell.seen();
            if !seen.state.covers(key) || seen.state.frozen.is_some() {
                continue;
            }
            let found = read(region.clone()).await.map_err(|error| match error {
                ReadError::Busy => Status::resource_exhausted(error.to_string()),
                ReadError::State(error) => Status::internal(error.to_string()),
            })?;
            if region.handle.still_valid(&grant) && region.cell.is_as(&seen) {
                return Ok(found);
            }
        }
        Err(Status::unavailable("the region changes too fast; try again").with_nothing_done().into())
    }

    async fn propose(
        &self,
        key: &[u8],
        context: Option<&pb::Context>,
        what: pb::command::What,
    ) -> Result<pb::Outcome, Missed> {
        let puts = match &what {
            pb::command::What::Write(write) => write.mutations.iter().any(|mutation| mutation.value.is_some()),
            pb::command::What::CompareAndSwap(swap) => swap.value.is_some(),
            _ => false,
        };
        for _ in 0..TRIES {
            let region = self.unfrozen(key, context).await?;
            if puts && let Err(store) = self.store.wait_for_room(&region).await {
                return Err(Status::resource_exhausted(format!(
                    "no space left: the disk of store {store}, which leads region {}, is full; only deletes are taken",
                    region.id()
                ))
                .into());
            }
            let state = region.state();
            if let pb::command::What::Write(write) = &what
                && write.mutations.iter().any(|mutation| !state.covers(&mutation.key))
            {
                let why = format!("region {} has not all keys of the batch", region.id());
                return Err(Status::new(rpc::Code::Aborted, why).with_nothing_done().into());
            }
            let command = pb::Command { version: state.version, what: Some(what.clone()) };
            if self.is_elsewhere(&region, key).await {
                return Err(not_here());
            }
            let outcome = match region.handle.propose(command.encode_to_vec().into()).await {
                Ok(outcome) => outcome,
                Err(why) => return Err(self.missed(&region, key, why).await),
            };
            match outcome.code {
                0 => {
                    let told = pb::Outcome::decode(outcome.body);
                    return told.map_err(|_| Status::internal("an outcome of a later version").into());
                }
                STALE | FROZEN => {}
                code => return Err(Status::internal(format!("the region does not know this command: {code}")).into()),
            }
        }
        Err(Status::unavailable("the region changes too fast; try again").with_nothing_done().into())
    }

    /// As [`Raw::region`]; waits a while for one that is being merged: then it is another one, or goes on as it was.
    async fn unfrozen(&self, key: &[u8], context: Option<&pb::Context>) -> Result<Region, Missed> {
        let asked = self.store.node.now();
        loop {
            let region = self.region(key, context)?;
            if region.state().frozen.is_none() {
                return Ok(region);
            }
            if self.store.node.now().since(asked) >= FROZEN_PATIENCE {
                return Err(Missed::Region(pb::RegionError { why: Some(pb::region_error::Why::NotHere(true)) }));
            }
            self.store.node.sleep(FROZEN_LOOK_EVERY).await;
        }
    }

    /// The region here that covers a key, if it is as the sender thinks.
    fn region(&self, key: &[u8], context: Option<&pb::Context>) -> Result<Region, Missed> {
        let told = |why| Missed::Region(pb::RegionError { why: Some(why) });
        let region = self.store.region_at(key).ok_or_else(|| told(pb::region_error::Why::NotHere(true)))?;
        let state = region.state();
        match context {
            Some(context) if (context.region_id, context.version) != (region.id().0, state.version) => {
                let regions = vec![state.describe(region.id())];
                Err(told(pb::region_error::Why::StaleEpoch(pb::Regions { regions })))
            }
            _ => Ok(region),
        }
    }

    /// Whether this replica is one no more (its region has gone on without it, as it knows itself, or as the placement driver
    /// or, where it is silent, the other replicas' stores say while it hears of no leader), or does not go on for want of room.
    async fn is_elsewhere(&self, region: &Region, key: &[u8]) -> bool {
        let held = self.store.space.is_held(region.id()) && !region.handle.is_leader();
        if held || region.handle.membership().by_peer(region.peer).is_none() {
            return true;
        }
        if !region.handle.status().leader.is_none() {
            return false;
        }
        let Some(known) = self.router.ask(region.id(), key).await else {
            return alone::goes_on_without(&self.store, region, key).await;
        };
        let state = region.state();
        let member = known.peers.iter().any(|peer| peer.id == region.peer.0);
        let later = known.version > state.version || known.conf_version > state.conf_version;
        later && (known.id != region.id().0 || !member)
    }

    /// What was refused was not done; where another replica may do it, it is asked.
    async fn missed(&self, region: &Region, key: &[u8], why: Refusal) -> Missed {
        match why {
            Refusal::NoGroup | Refusal::Held => not_here(),
            // It knows one, and may not answer for its state.
            Refusal::NoLeader if !region.handle.status().leader.is_none() => not_here(),
            Refusal::NoLeader if self.is_elsewhere(region, key).await => not_here(),
            why => Missed::Failed(failure(region, why)),
        }
    }
}

fn not_here() -> Missed {
    Missed::Region(pb::RegionError { why: Some(pb::region_error::Why::NotHere(true)) })
}

/// What a scan may bring.
fn kib_of(request: &pb::ScanRequest) -> u32 {
    let bytes_max = if request.bytes_max == 0 { BYTES_DEFAULT } else { request.bytes_max.min(BYTES_MAX) };
    bytes_max.div_ceil(1 << 10)
}

fn scan_region(store: &Store, region: &Region, request: &pb::ScanRequest) -> Result<pb::ScanResponse, MachineError> {
    let rows_max = if request.rows_max == 0 { ROWS_DEFAULT } else { request.rows_max.min(ROWS_MAX) } as usize;
    let bytes_max = if request.bytes_max == 0 { BYTES_DEFAULT } else { request.bytes_max.min(BYTES_MAX) } as usize;
    let state = region.state();
    let ends_first = !state.end.is_empty() && (request.end.is_empty() || state.end < request.end);
    let end = if ends_first { &state.end } else { &request.end };
    let view = store.engine.view();
    let mut walk = view.scan(RAW, &layout::raw_key(&request.start), Some(&layout::raw_end(end)));
    let (mut pairs, mut bytes, mut walked) = (Vec::new(), 0, 0);
    let mut resume = None;
    while walk.valid() {
        let key = Bytes::copy_from_slice(layout::client_key(walk.key()));
        if pairs.len() >= rows_max || bytes >= bytes_max || walked >= WALKED_BYTES_MAX {
            resume = Some(key);
            break;
        }
        walked += key.len() + walk.value().len();
        let value = if request.keys_only { Bytes::new() } else { Bytes::copy_from_slice(walk.value()) };
        bytes += key.len() + value.len();
        pairs.push(pb::Pair { key, value });
        walk.advance();
    }
    walk.status()?;
    let last = pairs.last().map_or(&request.start, |pair| &pair.key);
    region.cell.traffic.read(&request.start, last, pairs.len() as u64, bytes as u64);
    if resume.is_none() && ends_first {
        resume = Some(state.end.clone());
    }
    Ok(pb::ScanResponse { error: None, pairs, resume })
}

fn failure(region: &Region, why: Refusal) -> Status {
    match why {
        Refusal::TimedOut => Status::new(
            rpc::Code::DeadlineExceeded,
            format!("region {}: the request timed out, and may yet take effect", region.id()),
        ),
        Refusal::Busy => Status::resource_exhausted(format!("region {}: {why}", region.id())).with_nothing_done(),
        Refusal::TooLarge => Status::invalid_argument(why.to_string()),
        // It had been proposed, or perhaps had.
        Refusal::Stopping => {
            let why = format!("region {}: its replica here ended, and the request may yet take effect", region.id());
            Status::new(rpc::Code::DeadlineExceeded, why)
        }
        // Most of all that it is not known who leads.
        why => Status::unavailable(format!("region {}: {why}", region.id())).with_nothing_done(),
    }
}

/// What a batch failed with, when so many of its mutations had been done.
fn done_in_part(why: Status, done: usize, all: usize) -> Status {
    if done == 0 {
        return why;
    }
    let part = format!(
        "{done} of the batch's {all} mutations were done, those of the least keys, before this: {}",
        why.message
    );
    Status::new(why.code, part)
}

fn check_key(key: &[u8]) -> Result<(), Status> {
    match key.len() {
        0 => Err(Status::invalid_argument("key is not provided")),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(Status::invalid_argument(format!("key of {bytes} bytes: at most {KEY_BYTES_MAX} are allowed"))),
    }
}

fn check_value(value: Option<&Bytes>) -> Result<(), Status> {
    let bytes = value.map_or(0, Bytes::len);
    if bytes <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("value of {bytes} bytes: at most {VALUE_BYTES_MAX} are allowed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_was_done_in_part_says_so() {
        let why = Status::unavailable("region 7: no leader");
        let first = done_in_part(why.clone(), 0, 9);
        assert_eq!((first.code, &*first.message), (why.code, "region 7: no leader"));
        let later = done_in_part(why.clone(), 4, 9);
        assert_eq!(later.code, why.code);
        assert!(
            later.message.starts_with("4 of the batch's 9 mutations were done")
                && later.message.ends_with(&*why.message)
        );
    }

    #[test]
    fn a_scan_takes_as_much_room_as_it_may_bring() {
        let kib = |bytes_max| kib_of(&pb::ScanRequest { bytes_max, ..Default::default() });
        assert_eq!((kib(0), kib(1), kib(4096), kib(u32::MAX)), (1024, 1, 4, 32 << 10));
    }
}
