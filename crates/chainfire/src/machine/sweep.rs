//! What follows a compaction: the part of `rev` below the compacted revision goes.
//!
//! Some versions in it can still be read: those that were superseded after the compacted revision. The changes that
//! superseded them name them, so the sweep walks the changes from the compacted revision to the present, copies what
//! they name to `old`, and then deletes the whole part with one range deletion. Later changes need no sweep: they
//! keep such versions themselves ([`super::stage`]).
//!
//! The walk is done in small steps between the applier's other work. A sweep changes nothing that can be read, stands
//! outside the rolling hash, and may be cut short anywhere: what it has copied is right, and it is begun again.

use consensus::MachineError;
use storage::{Engine, View, WriteBatch};

use super::layout::{self, META, OLD, REV, Rev, damaged};

/// Changes walked over in a step; what a step copies is bounded by this many records, and by [`STEP_BYTES`].
const STEP_CHANGES: usize = 256;
const STEP_BYTES: usize = 256 << 10;

/// How far `rev` is swept, and the sweep under way.
#[derive(Debug, Default)]
pub struct Sweep {
    /// There is nothing before this revision in `rev`.
    swept: i64,
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    /// What is before this revision goes.
    before: i64,
    /// The key in `rev` to go on from.
    next: Vec<u8>,
    /// The last revision that needs to be looked at.
    until: i64,
}

impl Sweep {
    pub fn load(view: &dyn View) -> Result<Sweep, MachineError> {
        let swept = view.get(META, layout::SWEPT)?.map(|value| layout::read_i64(&value)).transpose()?;
        Ok(Sweep { swept: swept.unwrap_or(0), under_way: None })
    }

    /// Does a little; whether there is more to do. `revision` is the store's.
    pub fn step(&mut self, engine: &dyn Engine, compacted: i64, revision: i64) -> Result<bool, MachineError> {
        if self.under_way.is_none() && compacted <= self.swept {
            return Ok(false);
        }
        let begin = || UnderWay { before: compacted, next: layout::rev_start(compacted + 1).to_vec(), until: revision };
        // A step that fails is not to be gone on from: what it walked over was not copied.
        let mut under_way = self.under_way.take().unwrap_or_else(begin);
        let mut batch = WriteBatch::new();
        let walked_all = under_way.walk(engine, &mut batch)?;
        let before = under_way.before;
        if walked_all {
            batch.delete_range(REV, &layout::rev_start(0), &layout::rev_start(before));
            batch.put(META, layout::SWEPT, &before.to_le_bytes());
        }
        if !batch.is_empty() {
            engine.write(&batch)?;
        }
        if walked_all {
            self.swept = before;
        } else {
            self.under_way = Some(under_way);
        }
        Ok(self.under_way.is_some() || compacted > self.swept)
    }
}

impl UnderWay {
    /// Copies what the next changes name; whether those were the last.
    fn walk(&mut self, engine: &dyn Engine, batch: &mut WriteBatch) -> Result<bool, MachineError> {
        let view = engine.view();
        let mut walk = view.scan(REV, &self.next, None);
        let (mut there, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..STEP_CHANGES {
            if !walk.valid() || batch.bytes().len() > STEP_BYTES {
                break;
            }
            let change = Rev::read(walk.key(), walk.value())?;
            if change.revision > self.until {
                return Ok(true);
            }
            if change.previous != 0 && change.previous < self.before {
                layout::rev_key(&mut there, change.previous, change.key);
                // What is not in `rev` any more was copied before.
                if let Some(superseded) = view.get(REV, &there)? {
                    let record = Rev::read(&there, &superseded)?.record;
                    let record = record.ok_or_else(|| damaged("version named in history", change.key))?;
                    layout::old_key(&mut key, change.key, change.previous);
                    layout::old_value(&mut value, change.revision, Some(record));
                    batch.put(OLD, &key, &value);
                }
            }
            walk.advance();
        }
        walk.status()?;
        if walk.valid() {
            self.next.clear();
            self.next.extend_from_slice(walk.key());
        }
        Ok(!walk.valid())
    }
}
