//! A region as a stream ([`proto::snapshot`]), and a received one put in place.
//!
//! The stream's family 0 holds the raw pairs, its family 1 the region's state record, under the key `state`.
//!
//! A received stream goes to a file first, and nothing of it is believed before its end has come. Then, crash-safely:
//!
//! ```text
//!  incoming/region-N.part ──checked, fsynced──▶ renamed to incoming/region-N.whole      (decided: there is no way back)
//!                          (flushed: its range is nobody else's on disk either)
//!                                                 │ the range is emptied, the pairs come in, the records last; flushed
//!                                                 ▼
//!                                               renamed, and removed bit by bit          (done)
//! ```
//! A start that finds a `.whole` file does the second half again, which comes to the same; and so does whoever found no room
//! on the disk in the middle of it.
//!
//! A complete stream claims its range ([`super::claims`]): none is decided for that another region has a part of, or is about to.
//!
//! A region may have taken another one in ([`super::merge`]) whose peer is still here, because this replica missed it: that
//! one's range is emptied with the rest, and its records go in the same batch in which the new ones come.
//!
//! The pairs of a large one become table files that the engine takes over as they are ([`storage::RangeInstall`]); those of a
//! small one are written as any others.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{GroupId, PeerId};
use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSink, SnapshotSource};
use node::disk::{self, Evenly};
use proto::snapshot::{FRAME_BYTES_MAX, Header, PAYLOAD_BYTES_MAX, Reader, Writer};
use storage::{Engine, EngineError, View, WriteBatch};

use super::claims::{Claim, Claims};
use super::layout::{self, RAW, REGION};
use super::{RegionState, merge};

const STATE: &[u8] = b"state";
const FAMILIES: u8 = 2;
/// Pairs are put in batches of about this size.
const BATCH_BYTES: usize = 1 << 20;

/// Streams a region as a view shows it.
pub fn stream(view: Arc<dyn View>, id: GroupId, state: RegionState) -> RegionStream {
    let next = Some(layout::raw_key(&state.start));
    RegionStream { view, id, state, next, stage: Stage::Begin, pending: Vec::new(), writer: Writer::default() }
}

pub struct RegionStream {
    view: Arc<dyn View>,
    id: GroupId,
    state: RegionState,
    /// The next raw key; `None` when all are in.
    next: Option<Vec<u8>>,
    stage: Stage,
    pending: Vec<u8>,
    writer: Writer,
}

#[derive(PartialEq)]
enum Stage {
    Begin,
    Data,
    End,
}

impl SnapshotSource for RegionStream {
    fn mark(&self) -> Mark {
        self.state.mark
    }

    fn membership(&self) -> Bytes {
        self.state.membership.clone()
    }

    fn bytes_total(&self) -> u64 {
        0
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        if self.stage == Stage::Begin {
            self.stage = Stage::Data;
            let Mark { index, term, hash } = self.state.mark;
            let membership = self.state.membership.clone();
            let header = Header {
                raft_index: index,
                raft_term: term,
                hash,
                revision: self.id.0 as i64,
                since: None,
                membership,
            };
            return Ok(Some(self.writer.header(&header)));
        }
        self.fill()?;
        if !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(PAYLOAD_BYTES_MAX));
            let payload = std::mem::replace(&mut self.pending, rest);
            return Ok(Some(self.writer.data(&payload)));
        }
        if self.stage == Stage::End {
            return Ok(None);
        }
        self.stage = Stage::End;
        Ok(Some(self.writer.trailer()))
    }
}

impl RegionStream {
    fn fill(&mut self) -> Result<(), MachineError> {
        let end = layout::raw_end(&self.state.end);
        while self.pending.len() < PAYLOAD_BYTES_MAX
            && let Some(from) = self.next.take()
        {
            let mut walk = self.view.scan(RAW, &from, Some(&end));
            while walk.valid() && self.pending.len() < PAYLOAD_BYTES_MAX {
                self.writer.put_pair(&mut self.pending, RAW.0, walk.key(), walk.value());
                walk.advance();
            }
            if walk.valid() {
                self.next = Some(walk.key().to_vec());
            } else {
                walk.status()?;
                self.writer.put_pair(&mut self.pending, REGION.0, STATE, &layout::write_state(&self.state));
            }
        }
        Ok(())
    }
}

/// Takes a stream in, as the header of this file says.
pub struct Receiver {
    id: GroupId,
    part: PathBuf,
    whole: PathBuf,
    file: BufWriter<Evenly>,
    reader: Reader,
    state: Option<RegionState>,
    /// The first key and the last one, and whether all came in order.
    keys: Option<(Vec<u8>, Vec<u8>)>,
    in_order: bool,
    engine: Arc<dyn Engine>,
    claims: Arc<Claims>,
    /// From the stream's end until it is in place.
    claim: Option<Claim>,
    decided: bool,
}

impl Receiver {
    pub fn new(engine: Arc<dyn Engine>, incoming: &Path, id: GroupId) -> Result<Receiver, MachineError> {
        fs::create_dir_all(incoming).map_err(failed)?;
        let part = incoming.join(format!("region-{id}.part"));
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&part).map_err(failed)?;
        let file = BufWriter::with_capacity(FRAME_BYTES_MAX, Evenly::new(file));
        Ok(Receiver {
            id,
            part,
            whole: whole(incoming, id),
            file,
            reader: Reader::new(FAMILIES),
            state: None,
            keys: None,
            in_order: true,
            engine,
            claims: Arc::default(),
            claim: None,
            decided: false,
        })
    }

    /// `claims`: those of all that come to the store.
    #[must_use]
    pub fn claiming(mut self, claims: Arc<Claims>) -> Receiver {
        self.claims = claims;
        self
    }

    /// Where the snapshot stands; `None` before its end has come.
    pub fn mark(&self) -> Option<Mark> {
        self.state.as_ref().map(|state| state.mark)
    }

    /// The regions that go for it, with their peers here.
    pub(super) fn displaced(&self) -> Result<Vec<(GroupId, PeerId)>, MachineError> {
        self.state.as_ref().map_or_else(|| Ok(Vec::new()), |state| merge::displaced(&*self.engine, self.id, state))
    }

    /// From here on the snapshot is what the region is, whatever happens.
    pub fn decide(&mut self) -> Result<(), MachineError> {
        if self.claim.is_none() {
            return Err(bad("it is not complete"));
        }
        if self.decided {
            return Ok(());
        }
        // That no other region has its range here must outlive a power cut: one that gave the range away would be back as it was
        // before, and apply entries of then to pairs of this one.
        self.engine.flush()?;
        fs::rename(&self.part, &self.whole).map_err(failed)?;
        sync_folder_of(&self.whole)?;
        self.decided = true;
        Ok(())
    }

    /// Its range is the region's by now.
    pub(super) fn is_in_place(&mut self) {
        self.claim = None;
    }
}

/// What was not decided for only takes room.
impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.decided {
            let _ = fs::remove_file(&self.part);
        }
    }
}

impl SnapshotSink for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.reader.feed(&chunk);
        while let Some(pair) = self.reader.pair().map_err(|why| bad(&why.0))? {
            if pair.family == REGION.0 && pair.key == STATE {
                self.state = Some(layout::read_state(Bytes::copy_from_slice(pair.value), Bytes::new())?);
            }
            if pair.family == RAW.0 {
                let (_, last) = self.keys.get_or_insert_with(|| (pair.key.to_vec(), Vec::new()));
                self.in_order &= **last < *pair.key;
                last.clear();
                last.extend_from_slice(pair.key);
            }
        }
        self.file.write_all(&chunk).map_err(failed)
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        let header = self.reader.finish().map_err(|why| bad(&why.0))?.header;
        let mark = Mark { index: header.raft_index, term: header.raft_term, hash: header.hash };
        if self.state.as_ref().map(|state| state.mark) != Some(mark) || header.revision != self.id.0 as i64 {
            return Err(bad("its header contradicts its content"));
        }
        let (state, keys) = (self.state.as_ref().expect("it has a mark"), self.keys.as_ref());
        let lies_within = |(first, last): &(Vec<u8>, Vec<u8>)| {
            *first >= layout::raw_key(&state.start) && *last < layout::raw_end(&state.end)
        };
        if !self.in_order || !keys.is_none_or(lies_within) {
            return Err(bad("its pairs are out of order, or not the region's"));
        }
        self.file.flush().map_err(failed)?;
        self.file.get_ref().file().sync_all().map_err(failed)?;
        let incoming = self.part.parent().expect("it lies in a folder");
        // The sender tries again.
        let claim = self.claims.take(&*self.engine, incoming, self.id, state)?;
        self.claim = Some(claim.ok_or_else(|| bad("its range is another region's here"))?);
        Ok(mark)
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// What came of a snapshot that was decided for.
#[derive(Default)]
pub struct InPlace {
    /// The regions, with their peers here, that had to go for it.
    pub displaced: Vec<(GroupId, PeerId)>,
    /// What was received, which is not needed any more.
    going: Option<PathBuf>,
}

impl InPlace {
    /// Takes its time.
    pub fn clear_away(self) {
        self.going.iter().for_each(|path| disk::remove_evenly(path));
    }
}

/// Puts a snapshot in place that was decided for, if there is one.
pub fn roll_forward(engine: &dyn Engine, incoming: &Path, id: GroupId) -> Result<InPlace, MachineError> {
    let path = whole(incoming, id);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(InPlace::default()),
        Err(error) => return Err(failed(error)),
    };
    let state = state_in(File::open(&path).map_err(failed)?)?;
    let displaced = merge::displaced(engine, id, &state)?;
    let mut batch = WriteBatch::new();
    let large = engine.is_large_range(file.metadata().map_err(failed)?.len());
    let header = if large { replace(engine, file, &state)? } else { write_over(engine, file, &state, &mut batch)? };
    batch.put(REGION, &layout::state_key(id), &layout::write_state(&state));
    batch.put(REGION, &layout::membership_key(id), &header.membership);
    batch.delete(REGION, &layout::lacking_key(id));
    for (gone, peer) in &displaced {
        batch.delete(REGION, &layout::peer_key(*gone));
        batch.put(REGION, &layout::retired_key(*gone), &peer.0.to_le_bytes());
        batch.delete(REGION, &layout::state_key(*gone));
        batch.delete(REGION, &layout::membership_key(*gone));
        forget(incoming, *gone);
    }
    engine.write(&batch)?;
    engine.flush()?;
    let going = path.with_extension(disk::GOING);
    fs::rename(&path, &going).map_err(failed)?;
    sync_folder_of(&path)?;
    Ok(InPlace { displaced, going: Some(going) })
}

/// Has the engine take the pairs over as they are.
fn replace(engine: &dyn Engine, file: File, state: &RegionState) -> Result<Header, MachineError> {
    let mut range = engine.replace_range(RAW, &layout::raw_key(&state.start), &layout::raw_end(&state.end))?;
    let header = walk(file, |family, key, value| {
        if family == RAW.0 {
            range.put(key, value)?;
        }
        Ok(())
    })?;
    range.commit()?;
    Ok(header)
}

/// Writes the pairs as any others; the last of them are in the batch then.
fn write_over(
    engine: &dyn Engine,
    file: File,
    state: &RegionState,
    batch: &mut WriteBatch,
) -> Result<Header, MachineError> {
    batch.delete_range(RAW, &layout::raw_key(&state.start), &layout::raw_end(&state.end));
    walk(file, |family, key, value| {
        if family == RAW.0 {
            batch.put(RAW, key, value);
            if batch.bytes().len() >= BATCH_BYTES {
                engine.write(batch)?;
                batch.clear();
            }
        }
        Ok(())
    })
}

/// The states that were decided for and are not in place, of regions that count.
pub fn decided(incoming: &Path, counts: impl Fn(GroupId) -> bool) -> Result<Vec<RegionState>, MachineError> {
    let mut states = Vec::new();
    for id in all_decided(incoming)?.into_iter().filter(|id| counts(*id)) {
        match File::open(whole(incoming, id)) {
            Ok(file) => states.push(state_in(file)?),
            // In place meanwhile, or given up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(states)
}

fn all_decided(incoming: &Path) -> Result<Vec<GroupId>, MachineError> {
    let id_of = |name: &OsString| name.to_str()?.strip_prefix("region-")?.strip_suffix(".whole")?.parse().ok();
    Ok(names(incoming)?.iter().filter_map(id_of).map(GroupId).collect())
}

/// Of the files in the folder.
fn names(incoming: &Path) -> Result<Vec<OsString>, MachineError> {
    match fs::read_dir(incoming) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect()).map_err(failed),
    }
}

/// Removes what was decided for regions that are not here: their peers went before it was in place, and nobody is to wait for
/// it. And what was being removed.
pub fn forget_others(incoming: &Path, here: impl Fn(GroupId) -> bool) -> Result<(), MachineError> {
    for path in names(incoming)?
        .iter()
        .map(|name| incoming.join(name))
        .filter(|path| path.extension() == Some(disk::GOING.as_ref()))
    {
        fs::remove_file(path).map_err(failed)?;
    }
    let gone = all_decided(incoming)?.into_iter().filter(|id| !here(*id));
    gone.for_each(|id| forget(incoming, id));
    Ok(())
}

/// Removes what a region that is gone may have left here.
pub fn forget(incoming: &Path, id: GroupId) {
    for path in [whole(incoming, id), incoming.join(format!("region-{id}.part"))] {
        // There is none, most of the time.
        let _ = fs::remove_file(path);
    }
}

/// The state record, which stands at the stream's end.
fn state_in(file: File) -> Result<RegionState, MachineError> {
    let mut state = None;
    walk(file, |family, key, value| {
        if family == REGION.0 && key == STATE {
            state = Some(layout::read_state(Bytes::copy_from_slice(value), Bytes::new())?);
        }
        Ok(())
    })?;
    state.ok_or_else(|| bad("it tells of no region"))
}

fn walk(
    file: File,
    mut each: impl FnMut(u8, &[u8], &[u8]) -> Result<(), MachineError>,
) -> Result<Header, MachineError> {
    let mut file = BufReader::with_capacity(FRAME_BYTES_MAX, file);
    let (mut reader, mut buffer) = (Reader::new(FAMILIES), vec![0; FRAME_BYTES_MAX]);
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            return Ok(reader.finish().map_err(|why| bad(&why.0))?.header);
        }
        reader.feed(&buffer[..length]);
        while let Some(pair) = reader.pair().map_err(|why| bad(&why.0))? {
            each(pair.family, pair.key, pair.value)?;
        }
    }
}

fn whole(incoming: &Path, id: GroupId) -> PathBuf {
    incoming.join(format!("region-{id}.whole"))
}

fn sync_folder_of(path: &Path) -> Result<(), MachineError> {
    let folder = path.parent().expect("it lies in a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn failed(error: io::Error) -> MachineError {
    let full = error.kind() == io::ErrorKind::StorageFull;
    let why = format!("a received region: {error}");
    MachineError::Engine(if full { EngineError::NoSpace(why) } else { EngineError::Failed(why) })
}

fn bad(why: &str) -> MachineError {
    MachineError::BadSnapshot(why.into())
}

#[cfg(test)]
mod tests;
