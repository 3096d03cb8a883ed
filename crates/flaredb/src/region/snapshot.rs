//! A region as a stream ([`proto::snapshot`]), and a received one put in place.
//!
//! The stream's family 0 holds the raw pairs, its family 1 the region's state record, under the key `state`.
//!
//! A received stream is kept outside the database first, and nothing of it is believed before its end has come. A small one is a
//! file, as it came. Of a large one the pairs are table files as soon as they come ([`storage::Tables`]), in a folder, with a
//! stream of what is left when they are taken out (`rest`). Then, crash-safely:
//!
//! ```text
//!  incoming/region-N-K.part ─checked, fsynced──▶ renamed to incoming/region-N.whole      (decided: there is no way back)
//!                          (flushed: its range is nobody else's on disk either)
//!                                                 │ the range is emptied, the pairs come in, the records last; flushed
//!                                                 ▼
//!                                               renamed to region-N.going, and removed   (done)
//! ```
//! A start that finds a `.whole` one does the second half again, which comes to the same; and so does whoever found no room
//! on the disk in the middle of it. Each receiver has a K of its own: the stream of a peer that was taken away may still come when
//! that of the next one begins. Tables are written once, at the pace at which they come: the engine takes them over as they
//! are, and what is removed at last are names, no bytes.
//!
//! A complete stream claims its range ([`super::claims`]): none is decided for that another region has a part of, or is about to.
//!
//! A region may have taken another one in ([`super::merge`]) whose peer is still here, because this replica missed it: that
//! one's range is emptied with the rest, and its records go in the same batch in which the new ones come.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{GroupId, PeerId};
use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSink, SnapshotSource};
use proto::snapshot::{FRAME_BYTES_MAX, Header, PAYLOAD_BYTES_MAX, Reader, Writer};
use storage::{Engine, EngineError, Tables, View, WriteBatch};

use super::claims::{Claim, Claims};
use super::layout::{self, RAW, REGION};
use super::{RegionState, merge};

const STATE: &[u8] = b"state";
const FAMILIES: u8 = 2;
/// In the folder of a large one, beside its tables.
const REST: &str = "rest";
/// What a file or folder is called of which more is to come.
const PART: &str = "part";
/// Counts receivers: there are none of an earlier life, whose files a start removes.
static RECEIVERS: AtomicU64 = AtomicU64::new(0);
/// What such a file or folder is called that nobody needs any more.
const GOING: &str = "going";
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
    kept: Kept,
    reader: Reader,
    state: Option<RegionState>,
    /// The first key and the last one.
    keys: Option<(Vec<u8>, Vec<u8>)>,
    engine: Arc<dyn Engine>,
    claims: Arc<Claims>,
    /// From the stream's end until it is in place.
    claim: Option<Claim>,
    decided: bool,
}

/// What has come of a stream.
enum Kept {
    /// Of a small one, or one that is small so far: as it came.
    Stream(Vec<u8>),
    Tables(Box<dyn Tables>),
    /// It is on the disk.
    All,
}

impl Receiver {
    pub fn new(engine: Arc<dyn Engine>, incoming: &Path, id: GroupId) -> Result<Receiver, MachineError> {
        fs::create_dir_all(incoming).map_err(failed)?;
        let part = incoming.join(format!("region-{id}-{}.{PART}", RECEIVERS.fetch_add(1, Ordering::Relaxed)));
        Ok(Receiver {
            id,
            part,
            whole: whole(incoming, id),
            kept: Kept::Stream(Vec::new()),
            reader: Reader::new(FAMILIES),
            state: None,
            keys: None,
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
            let _ = remove(&self.part);
        }
    }
}

impl Receiver {
    /// From here on pairs go to tables; those that came in `stream` do now.
    fn begin_tables(&mut self, stream: &[u8]) -> Result<(), MachineError> {
        fs::create_dir(&self.part).map_err(failed)?;
        let mut tables = self.engine.begin_tables(RAW, &self.part)?;
        let mut again = Reader::new(FAMILIES);
        again.feed(stream);
        while let Some(pair) = again.pair().map_err(|why| bad(&why.0))? {
            if pair.family == RAW.0 {
                tables.put(pair.key, pair.value)?;
            }
        }
        self.kept = Kept::Tables(tables);
        Ok(())
    }

    /// Puts on the disk what is not there yet.
    fn keep(&mut self, header: &Header, state: &RegionState) -> Result<(), MachineError> {
        let written = |path: &Path, bytes: &[u8]| {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        match std::mem::replace(&mut self.kept, Kept::All) {
            Kept::Stream(stream) => written(&self.part, &stream).map_err(failed),
            Kept::Tables(tables) => {
                written(&self.part.join(REST), &rest(header, state)).map_err(failed)?;
                // The folder is synced with them.
                Ok(tables.finish()?)
            }
            Kept::All => Ok(()),
        }
    }
}

/// A stream without its raw pairs.
fn rest(header: &Header, state: &RegionState) -> Vec<u8> {
    let (mut writer, mut record) = (Writer::default(), Vec::new());
    let begun = writer.header(header);
    writer.put_pair(&mut record, REGION.0, STATE, &layout::write_state(state));
    [begun, writer.data(&record), writer.trailer()].concat()
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
                if **last >= *pair.key {
                    return Err(bad("its pairs are out of order"));
                }
                last.clear();
                last.extend_from_slice(pair.key);
                if let Kept::Tables(tables) = &mut self.kept {
                    tables.put(pair.key, pair.value)?;
                }
            }
        }
        if let Kept::Stream(stream) = &mut self.kept {
            stream.extend_from_slice(&chunk);
            if self.engine.is_large_range(stream.len() as u64) {
                let stream = std::mem::take(stream);
                self.begin_tables(&stream)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        let header = self.reader.finish().map_err(|why| bad(&why.0))?.header;
        let mark = Mark { index: header.raft_index, term: header.raft_term, hash: header.hash };
        if self.state.as_ref().map(|state| state.mark) != Some(mark) || header.revision != self.id.0 as i64 {
            return Err(bad("its header contradicts its content"));
        }
        let state = self.state.clone().expect("it has a mark");
        let lies_within = |(first, last): &(Vec<u8>, Vec<u8>)| {
            *first >= layout::raw_key(&state.start) && *last < layout::raw_end(&state.end)
        };
        if !self.keys.as_ref().is_none_or(lies_within) {
            return Err(bad("its pairs are not the region's"));
        }
        self.keep(&header, &state)?;
        let incoming = self.part.parent().expect("it lies in a folder");
        // The sender tries again.
        let claim = self.claims.take(&*self.engine, incoming, self.id, &state)?;
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
    /// If it cannot be removed, it takes room until the next start, no more.
    pub fn clear_away(self) {
        let Some(path) = self.going else { return };
        if let Err(error) = remove(&path) {
            tracing::debug!(target: "flaredb_storage", "A received region was not removed, path={} why={error}", path.display());
        }
    }
}

/// Puts a snapshot in place that was decided for, if there is one.
pub fn roll_forward(engine: &dyn Engine, incoming: &Path, id: GroupId) -> Result<InPlace, MachineError> {
    let path = whole(incoming, id);
    let Some(Decided { state, in_tables }) = decided_for(&path)? else { return Ok(InPlace::default()) };
    let displaced = merge::displaced(engine, id, &state)?;
    let mut batch = WriteBatch::new();
    let header = if in_tables {
        engine.replace_range(RAW, &layout::raw_key(&state.start), &layout::raw_end(&state.end), &path)?;
        walk(&path.join(REST), |_, _, _| Ok(()))?
    } else {
        write_over(engine, &path, &state, &mut batch)?
    };
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
    Ok(InPlace { displaced, going: Some(let_go(&path)?) })
}

/// A file or folder is not what it was any more, however much of it there is; where it lies now.
fn let_go(path: &Path) -> Result<PathBuf, MachineError> {
    let going = path.with_extension(GOING);
    // Of an earlier time, and in the way.
    remove(&going).map_err(failed)?;
    fs::rename(path, &going).map_err(failed)?;
    sync_folder_of(path)?;
    Ok(going)
}

/// A snapshot that is to be put in place.
struct Decided {
    state: RegionState,
    /// It is a folder, and its pairs are in its tables.
    in_tables: bool,
}

fn decided_for(path: &Path) -> Result<Option<Decided>, MachineError> {
    let kind = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        kind => kind.map_err(failed)?,
    };
    let stream = if kind.is_dir() { path.join(REST) } else { path.to_owned() };
    Ok(Some(Decided { state: state_in(&stream)?, in_tables: kind.is_dir() }))
}

/// Writes the pairs as any others; the last of them are in the batch then.
fn write_over(
    engine: &dyn Engine,
    path: &Path,
    state: &RegionState,
    batch: &mut WriteBatch,
) -> Result<Header, MachineError> {
    batch.delete_range(RAW, &layout::raw_key(&state.start), &layout::raw_end(&state.end));
    walk(path, |family, key, value| {
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
        // If it is not there: in place meanwhile, or given up.
        states.extend(decided_for(&whole(incoming, id))?.map(|decided| decided.state));
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
/// it. And what was being received, or removed. To be called before anything is received.
pub fn forget_others(incoming: &Path, here: impl Fn(GroupId) -> bool) -> Result<(), MachineError> {
    for path in names(incoming)?
        .iter()
        .map(|name| incoming.join(name))
        .filter(|path| path.extension().is_some_and(|extension| extension == GOING || extension == PART))
    {
        remove(&path).map_err(failed)?;
    }
    let gone = all_decided(incoming)?.into_iter().filter(|id| !here(*id));
    gone.for_each(|id| forget(incoming, id));
    Ok(())
}

/// Removes what was decided for a region that is gone.
pub fn forget(incoming: &Path, id: GroupId) {
    // There is none, most of the time.
    if let Ok(going) = let_go(&whole(incoming, id)) {
        let _ = remove(&going);
    }
}

/// Removes a file or a folder, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The state record, which stands at the stream's end.
fn state_in(stream: &Path) -> Result<RegionState, MachineError> {
    let mut state = None;
    walk(stream, |family, key, value| {
        if family == REGION.0 && key == STATE {
            state = Some(layout::read_state(Bytes::copy_from_slice(value), Bytes::new())?);
        }
        Ok(())
    })?;
    state.ok_or_else(|| bad("it tells of no region"))
}

fn walk(
    stream: &Path,
    mut each: impl FnMut(u8, &[u8], &[u8]) -> Result<(), MachineError>,
) -> Result<Header, MachineError> {
    let mut file = BufReader::with_capacity(FRAME_BYTES_MAX, File::open(stream).map_err(failed)?);
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
