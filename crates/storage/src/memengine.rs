//! The engine's twin for the simulator and for tests: ordered maps in memory, with a live and a durable image.
//!
//! The maps are persistent (they share what they have in common), so that a view, a flush and a crash each copy
//! a pointer. A write touches the live image; [`Engine::flush`] makes it the durable one; [`MemEngine::crash`]
//! goes back to the durable one. [`MemEngine::maybe_flush`] stands for the flushes that the production engine
//! begins by itself, which end some writes after they began. Physical clean-up really drops what may be dropped, from
//! views that are held too, so that a reader that reaches such a pair is found out.
//!
//! Deterministic: nothing here depends on time, addresses or a random source other than the caller's.
//!
//! Left out: torn states within a flush, because the production engine's manifest makes flushes atomic.

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::Rng;
use bytes::{Buf as _, Bytes};
use parking_lot::RwLock;
use rpds::RedBlackTreeMapSync;

use crate::batch::{Op, WriteBatch};
use crate::engine::{Cursor, Droppable, Engine, EngineError, EngineStats, FamilyId, FamilySpec, Install, Tables, View};

/// An engine in memory. Shared by the incarnations of a simulated node, as a disk would be.
pub struct MemEngine {
    families: &'static [FamilySpec],
    state: RwLock<State>,
    /// The watermark of the last clean-up.
    cleaned: Arc<AtomicU64>,
}

struct State {
    live: Arc<Image>,
    durable: Arc<Image>,
    /// What a flush that the engine began by itself will make durable.
    flushing: Option<Arc<Image>>,
    /// Set, but perhaps not yet in effect.
    watermark_set: u64,
    /// What physical clean-up is asked with: as of the last flush.
    watermark: u64,
    /// The number of the install that may be committed.
    install: u64,
    full: bool,
    /// So many more writes find room.
    writes_left: Option<u64>,
    /// Whether the power is cut during the next commit, and whether the new content then stays.
    cut_commit: Option<bool>,
}

type Map = RedBlackTreeMapSync<Bytes, Bytes>;

#[derive(Clone)]
struct Image {
    families: Vec<Map>,
    /// Bytes of keys and values.
    bytes: u64,
}

impl MemEngine {
    /// An empty engine of these families, in the order of their [`FamilyId`].
    pub fn new(families: &'static [FamilySpec]) -> MemEngine {
        let empty = Arc::new(Image::empty(families.len()));
        let state = State {
            live: empty.clone(),
            durable: empty,
            flushing: None,
            watermark_set: 0,
            watermark: 0,
            install: 0,
            full: false,
            writes_left: None,
            cut_commit: None,
        };
        MemEngine { families, state: RwLock::new(state), cleaned: Arc::default() }
    }

    /// A power cut: what was not durable is gone, and so are installs that were not committed. Views taken
    /// before keep what they show.
    pub fn crash(&self) {
        let mut state = self.state.write();
        state.live = state.durable.clone();
        state.flushing = None;
        state.install += 1;
        state.watermark_set = 0;
        state.watermark = 0;
        state.full = false;
        state.writes_left = None;
        state.cut_commit = None;
    }

    /// A copy of what is on the disk.
    pub fn copy(&self) -> MemEngine {
        let copy = MemEngine::new(self.families);
        let durable = self.state.read().durable.clone();
        let mut state = copy.state.write();
        (state.live, state.durable) = (durable.clone(), durable);
        drop(state);
        copy
    }

    /// Lets the engine flush by itself or not, as `rng` has it: begins a flush of what has been written, or ends
    /// one that was begun, by which what was written at its beginning becomes durable; or cleans up. To be
    /// called now and then.
    pub fn maybe_flush(&self, rng: &mut Rng) {
        let mut state = self.state.write();
        match rng.below(8) {
            0 | 1 => match state.flushing.take() {
                Some(image) => state.durable = image,
                None => state.flushing = Some(state.live.clone()),
            },
            2 => {
                state.clean_up(self.families);
                self.cleaned.fetch_max(state.watermark, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// A full disk: from here on writes are refused with [`EngineError::NoSpace`], until `full` is false again or a
    /// crash.
    pub fn set_full(&self, full: bool) {
        self.state.write().full = full;
    }

    /// The disk is full ([`MemEngine::set_full`]) after so many more writes.
    pub fn set_full_after(&self, writes: u64) {
        self.state.write().writes_left = Some(writes);
    }

    /// Cuts the power in the middle of the next [`Engine::commit_install`], which then fails; `rng` decides whether
    /// the old content survives or the new.
    pub fn cut_power_in_next_commit(&self, rng: &mut Rng) {
        self.state.write().cut_commit = Some(rng.percent(50));
    }
}

impl Engine for MemEngine {
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let mut state = self.state.write();
        state.find_room()?;
        let image = Arc::make_mut(&mut state.live);
        for op in batch.ops() {
            match op {
                Op::Put { family, key, value } => image.put(family, key, value),
                Op::Delete { family, key } => image.delete(family, key),
                Op::DeleteRange { family, from, to } => image.delete_range(family, from, to),
            }
        }
        Ok(())
    }

    fn view(&self) -> Arc<dyn View> {
        let image = self.state.read().live.clone();
        Arc::new(MemView { image, families: self.families, cleaned: self.cleaned.clone() })
    }

    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.read().live.map(family).get(key).cloned())
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut state = self.state.write();
        state.durable = state.live.clone();
        state.flushing = None;
        state.watermark = state.watermark_set;
        Ok(())
    }

    fn durable_get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.read().durable.map(family).get(key).cloned())
    }

    fn set_watermark(&self, watermark: u64) {
        let mut state = self.state.write();
        state.watermark_set = state.watermark_set.max(watermark);
    }

    fn reclaim(&self) -> Result<(), EngineError> {
        self.flush()?;
        let mut state = self.state.write();
        state.clean_up(self.families);
        self.cleaned.fetch_max(state.watermark, Ordering::Relaxed);
        Ok(())
    }

    fn begin_install(&self) -> Result<Box<dyn Install>, EngineError> {
        let mut state = self.state.write();
        state.install += 1;
        Ok(Box::new(MemInstall {
            number: state.install,
            image: Image::empty(self.families.len()),
            finished: false,
            failed: false,
        }))
    }

    fn commit_install(&self, install: &mut dyn Install) -> Result<(), EngineError> {
        let mut state = self.state.write();
        let staged = install
            .as_any()
            .downcast_mut::<MemInstall>()
            .filter(|staged| staged.finished && staged.number == state.install)
            .ok_or_else(|| EngineError::Failed("this install is not finished, or not the latest".into()))?;
        let new = Arc::new(std::mem::replace(&mut staged.image, Image::empty(0)));
        state.install += 1;
        state.flushing = None;
        let cut = state.cut_commit.take();
        if cut != Some(false) {
            state.durable = new;
        }
        state.live = state.durable.clone();
        match cut {
            Some(_) => Err(EngineError::Failed("the power was cut".into())),
            None => Ok(()),
        }
    }

    fn begin_tables(&self, _: FamilyId, folder: &Path) -> Result<Box<dyn Tables>, EngineError> {
        Ok(Box::new(MemTables { file: folder.join(TABLE), last: None, pairs: Vec::new() }))
    }

    /// Of the rest nothing becomes durable by it.
    fn replace_range(&self, family: FamilyId, from: &[u8], to: &[u8], folder: &Path) -> Result<(), EngineError> {
        let pairs = table_in(folder).map_err(|error| EngineError::Failed(error.to_string()))?;
        if pairs.iter().any(|(key, _)| **key < *from || **key >= *to) {
            return Err(EngineError::Failed("a pair does not belong to the range that is replaced".into()));
        }
        let mut state = self.state.write();
        state.find_room()?;
        state.images().for_each(|image| image.delete_range(family, from, to));
        state.find_room()?;
        state.images().for_each(|image| pairs.iter().for_each(|(key, value)| image.put(family, key, value)));
        Ok(())
    }

    fn stats(&self) -> EngineStats {
        let bytes = self.state.read().live.bytes;
        EngineStats { total_bytes: bytes, live_bytes: bytes, memory_bytes: bytes, ..EngineStats::default() }
    }
}

impl State {
    fn find_room(&mut self) -> Result<(), EngineError> {
        match &mut self.writes_left {
            Some(0) => (self.full, self.writes_left) = (true, None),
            Some(left) => *left -= 1,
            None => {}
        }
        if self.full { Err(EngineError::NoSpace("the simulated disk is full".into())) } else { Ok(()) }
    }

    /// All that may be read from now on.
    fn images(&mut self) -> impl Iterator<Item = &mut Image> {
        let State { live, durable, flushing, .. } = self;
        [Some(live), Some(durable), flushing.as_mut()].into_iter().flatten().map(Arc::make_mut)
    }

    /// Drops from every image what may be dropped.
    fn clean_up(&mut self, families: &[FamilySpec]) {
        let watermark = self.watermark;
        for image in [Some(&mut self.live), Some(&mut self.durable), self.flushing.as_mut()].into_iter().flatten() {
            for (at, droppable) in families.iter().enumerate().filter_map(|(at, spec)| Some((at, spec.droppable?))) {
                let unreachable: Vec<Bytes> = image.families[at]
                    .iter()
                    .filter(|(key, value)| droppable(key, value, watermark))
                    .map(|(key, _)| key.clone())
                    .collect();
                if !unreachable.is_empty() {
                    let image = Arc::make_mut(image);
                    let family = FamilyId(u8::try_from(at).expect("families are numbered by a byte"));
                    unreachable.iter().for_each(|key| image.delete(family, key));
                }
            }
        }
    }
}

impl Image {
    fn empty(families: usize) -> Image {
        Image { families: vec![Map::new_sync(); families], bytes: 0 }
    }

    fn map(&self, family: FamilyId) -> &Map {
        &self.families[usize::from(family.0)]
    }

    fn put(&mut self, family: FamilyId, key: &[u8], value: &[u8]) {
        let map = &mut self.families[usize::from(family.0)];
        match map.get(key) {
            Some(old) => self.bytes -= old.len() as u64,
            None => self.bytes += key.len() as u64,
        }
        self.bytes += value.len() as u64;
        map.insert_mut(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    }

    fn delete(&mut self, family: FamilyId, key: &[u8]) {
        let map = &mut self.families[usize::from(family.0)];
        if let Some(old) = map.get(key) {
            self.bytes -= (key.len() + old.len()) as u64;
            map.remove_mut(key);
        }
    }

    fn delete_range(&mut self, family: FamilyId, from: &[u8], to: &[u8]) {
        let all = Shown { map: self.map(family), droppable: None };
        let doomed: Vec<Bytes> = pairs(all, from, Some(to)).map(|(key, _)| key.clone()).collect();
        doomed.iter().for_each(|key| self.delete(family, key));
    }
}

struct MemView {
    image: Arc<Image>,
    families: &'static [FamilySpec],
    cleaned: Arc<AtomicU64>,
}

impl MemView {
    fn shown(&self, family: FamilyId) -> Shown<'_> {
        let watermark = self.cleaned.load(Ordering::Relaxed);
        let droppable = self.families[usize::from(family.0)].droppable;
        Shown { map: self.image.map(family), droppable: droppable.map(|droppable| (droppable, watermark)) }
    }
}

impl View for MemView {
    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let shown = self.shown(family);
        Ok(shown.map.get(key).filter(|value| shown.is_there(key, value)).cloned())
    }

    fn scan(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        Box::new(Forward(Walk::new(self.shown(family), from, to, Pairs::next)))
    }

    fn scan_back(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        Box::new(Backward(Walk::new(self.shown(family), from, to, Pairs::next_back)))
    }
}

/// A family as clean-up has left it.
#[derive(Clone, Copy)]
struct Shown<'a> {
    map: &'a Map,
    droppable: Option<(Droppable, u64)>,
}

impl Shown<'_> {
    fn is_there(&self, key: &[u8], value: &[u8]) -> bool {
        self.droppable.is_none_or(|(droppable, watermark)| !droppable(key, value, watermark))
    }
}

type Pair<'a> = (&'a Bytes, &'a Bytes);
type Pairs<'a> = dyn DoubleEndedIterator<Item = Pair<'a>> + 'a;

/// The pairs of `from..to`; none when the bounds are the wrong way round.
fn pairs<'a>(shown: Shown<'a>, from: &[u8], to: Option<&[u8]>) -> Box<Pairs<'a>> {
    let (from, to) = (Bytes::copy_from_slice(from), to.map(Bytes::copy_from_slice));
    match to {
        Some(to) if from >= to => Box::new(std::iter::empty()),
        to => {
            let to = to.map_or(Bound::Unbounded, Bound::Excluded);
            let all = shown.map.range::<Bytes, _>((Bound::Included(from), to));
            Box::new(all.filter(move |(key, value)| shown.is_there(key, value)))
        }
    }
}

/// Where a cursor stands, and what lies before it.
struct Walk<'a> {
    shown: Shown<'a>,
    from: Bytes,
    to: Option<Bytes>,
    here: Option<Pair<'a>>,
    rest: Box<Pairs<'a>>,
}

impl<'a> Walk<'a> {
    fn new(
        shown: Shown<'a>,
        from: &[u8],
        to: Option<&[u8]>,
        step: impl FnOnce(&mut Pairs<'a>) -> Option<Pair<'a>>,
    ) -> Walk<'a> {
        let mut rest = pairs(shown, from, to);
        let here = step(&mut *rest);
        Walk { shown, from: Bytes::copy_from_slice(from), to: to.map(Bytes::copy_from_slice), here, rest }
    }

    fn pair(&self) -> Pair<'a> {
        self.here.expect("asked only while valid")
    }
}

struct Forward<'a>(Walk<'a>);
struct Backward<'a>(Walk<'a>);

impl Cursor for Forward<'_> {
    fn valid(&self) -> bool {
        self.0.here.is_some()
    }

    fn key(&self) -> &[u8] {
        self.0.pair().0
    }

    fn value(&self) -> &[u8] {
        self.0.pair().1
    }

    fn advance(&mut self) {
        self.0.here = self.0.here.and_then(|_| self.0.rest.next());
    }

    fn seek(&mut self, key: &[u8]) {
        let walk = &mut self.0;
        if walk.here.is_some_and(|(here, _)| &**here < key) {
            walk.rest = pairs(walk.shown, key, walk.to.as_deref());
            walk.here = walk.rest.next();
        }
    }

    fn status(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Cursor for Backward<'_> {
    fn valid(&self) -> bool {
        self.0.here.is_some()
    }

    fn key(&self) -> &[u8] {
        self.0.pair().0
    }

    fn value(&self) -> &[u8] {
        self.0.pair().1
    }

    fn advance(&mut self) {
        self.0.here = self.0.here.and_then(|_| self.0.rest.next_back());
    }

    fn seek(&mut self, key: &[u8]) {
        let walk = &mut self.0;
        if walk.here.is_some_and(|(here, _)| &**here > key) {
            // The key's successor in the order of bytes ends the range that includes it.
            let end = [key, &[0]].concat();
            walk.rest = pairs(walk.shown, &walk.from, Some(&end));
            walk.here = walk.rest.next_back();
        }
    }

    fn status(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// A file of pairs, each key and each value behind its length.
struct MemTables {
    file: PathBuf,
    last: Option<Vec<u8>>,
    pairs: Vec<u8>,
}

const TABLE: &str = "table";

impl Tables for MemTables {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if self.last.as_ref().is_some_and(|last| **last >= *key) {
            return Err(EngineError::Failed("the pairs of a table must be in order".into()));
        }
        for bytes in [key, value] {
            self.pairs.extend((bytes.len() as u32).to_le_bytes());
            self.pairs.extend(bytes);
        }
        self.last = Some(key.to_vec());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        fs::write(&self.file, &self.pairs).map_err(|error| EngineError::Failed(error.to_string()))
    }
}

/// None where there is no file.
fn table_in(folder: &Path) -> io::Result<Vec<(Bytes, Bytes)>> {
    let mut rest = match fs::read(folder.join(TABLE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => Bytes::from(bytes?),
    };
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let mut next = || {
            let length = rest.try_get_u32_le().map_err(io::Error::other)? as usize;
            if length > rest.len() {
                return Err(io::Error::other("a table that was cut off"));
            }
            Ok(rest.split_to(length))
        };
        pairs.push((next()?, next()?));
    }
    Ok(pairs)
}

struct MemInstall {
    number: u64,
    image: Image,
    finished: bool,
    failed: bool,
}

impl Install for MemInstall {
    fn put(&mut self, family: FamilyId, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if self.finished || self.failed {
            return Err(EngineError::Failed("this install takes no more pairs".into()));
        }
        if self.image.map(family).last().is_some_and(|(last, _)| &**last >= key) {
            self.failed = true;
            return Err(EngineError::Failed("the pairs of an install must be in order".into()));
        }
        self.image.put(family, key, value);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        if self.finished || self.failed {
            return Err(EngineError::Failed("this install takes no more pairs".into()));
        }
        self.finished = true;
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
