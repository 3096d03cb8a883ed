//! `bench log`: our Raft log beside raft-engine and RocksDB's write-ahead log.
//!
//! Each log is written by one thread: batches of 1, 16 or 256 entries of 300 bytes, each batch synced before the next.
//! RocksDB holds an entry under (group, index) and writes with `sync`; raft-engine gets its own batches with `sync` and
//! no compression (entries do not compress). Rounds alternate between the logs; the median round counts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use base::{GroupId, Rng};
use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use serde::{Deserialize, Serialize};
use storage::{
    GroupWrite, HardState, LogBatch, LogEntry, LogStore,
    seglog::{SegLog, SegLogOptions},
};

use crate::{compare::median, procfs, progress};

const ENTRY_BYTES: usize = 300;
const BATCHES: [usize; 3] = [1, 16, 256];
const GROUP: u64 = 1;
/// Entries that lie further behind are compacted away, as after a snapshot.
const KEPT: u64 = 200_000;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Measured seconds of each batch size
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogFigures {
    pub log: String,
    pub batch: usize,
    pub entries_per_second: f64,
    pub cpu_us_per_entry: f64,
}

/// A log under test.
trait Subject {
    /// Appends the entries from `first` on and makes them durable.
    fn append(&mut self, first: u64, entries: &[Bytes]) -> Result<()>;
    /// Forgets the entries before `first`.
    fn forget(&mut self, first: u64) -> Result<()>;
}

pub fn run(options: &Options, folder: &Path) -> Result<Vec<LogFigures>> {
    let names = ["ours", "raft-engine 0.4", "RocksDB WAL"];
    let bar = progress::steps((options.rounds * names.len() * BATCHES.len()) as u64);
    let mut rounds = vec![vec![(Vec::new(), Vec::new()); BATCHES.len()]; names.len()];
    for round in 0..options.rounds {
        for turn in 0..names.len() {
            let which = (turn + round) % names.len();
            let place = tempfile::Builder::new().prefix("bench-log-").tempdir_in(folder)?;
            let mut subject = open(which, place.path()).context(names[which])?;
            let mut next = 1;
            for (index, batch) in BATCHES.into_iter().enumerate() {
                bar.set_message(format!("round {} · {} · batches of {batch}", round + 1, names[which]));
                let span = Duration::from_secs_f64(options.seconds);
                let (rate, cost) = measure(subject.as_mut(), batch, &mut next, span).context(names[which])?;
                rounds[which][index].0.push(rate);
                rounds[which][index].1.push(cost);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let mut found = Vec::new();
    for (name, batches) in names.into_iter().zip(rounds) {
        for (batch, (rates, costs)) in BATCHES.into_iter().zip(batches) {
            found.push(LogFigures {
                log: name.into(),
                batch,
                entries_per_second: median(rates),
                cpu_us_per_entry: median(costs),
            });
        }
    }
    Ok(found)
}

fn open(which: usize, folder: &Path) -> Result<Box<dyn Subject>> {
    Ok(match which {
        0 => Box::new(Ours(SegLog::open(folder, SegLogOptions::new(1))?)),
        1 => Box::new(RaftEngine::open(folder)?),
        _ => Box::new(Rocks::open(folder)?),
    })
}

/// Entries per second and processor time in µs per entry, all threads of this process together.
fn measure(subject: &mut dyn Subject, batch: usize, next: &mut u64, span: Duration) -> Result<(f64, f64)> {
    let mut rng = Rng::new(batch as u64);
    let noise: Bytes = (0..8192).flat_map(|_| rng.next_u64().to_le_bytes()).collect::<Vec<u8>>().into();
    let (begun, cpu, first) = (Instant::now(), procfs::own_processor_time(), *next);
    let mut forgotten = first;
    while begun.elapsed() < span {
        let entry = |_| {
            let start = rng.below((noise.len() - ENTRY_BYTES) as u64) as usize;
            noise.slice(start..start + ENTRY_BYTES)
        };
        let entries: Vec<Bytes> = (0..batch).map(entry).collect();
        subject.append(*next, &entries)?;
        *next += batch as u64;
        if *next > forgotten + 2 * KEPT {
            forgotten = *next - KEPT;
            subject.forget(forgotten)?;
        }
    }
    let entries = (*next - first) as f64;
    let cpu = (procfs::own_processor_time() - cpu).as_secs_f64() * 1e6;
    Ok((entries / begun.elapsed().as_secs_f64(), cpu / entries))
}

struct Ours(SegLog);

impl Subject for Ours {
    fn append(&mut self, first: u64, entries: &[Bytes]) -> Result<()> {
        let entry = |(index, data): (u64, &Bytes)| LogEntry { index, term: 1, kind: 0, data: data.clone() };
        let write = GroupWrite {
            group: GroupId(GROUP),
            entries: (first..).zip(entries).map(entry).collect(),
            hard: Some(HardState { term: 1, vote: 1, commit: first - 1 }),
            ..Default::default()
        };
        Ok(self.0.write(&LogBatch { groups: vec![write] })?)
    }

    fn forget(&mut self, first: u64) -> Result<()> {
        let write = GroupWrite { group: GroupId(GROUP), compact_to: Some(first - 1), ..Default::default() };
        Ok(self.0.write(&LogBatch { groups: vec![write] })?)
    }
}

struct RaftEngine {
    engine: raft_engine::Engine,
    batch: raft_engine::LogBatch,
}

/// raft-engine stores messages that know their index: this one says it in its first eight bytes.
struct Indexed;

impl raft_engine::MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let head = entry.value.first_chunk().expect("entries are made with their index in front");
        u64::from_be_bytes(*head)
    }
}

impl RaftEngine {
    fn open(folder: &Path) -> Result<RaftEngine> {
        let config = raft_engine::Config {
            dir: folder.display().to_string(),
            batch_compression_threshold: raft_engine::ReadableSize(0),
            ..Default::default()
        };
        Ok(RaftEngine { engine: raft_engine::Engine::open(config)?, batch: raft_engine::LogBatch::default() })
    }
}

impl Subject for RaftEngine {
    fn append(&mut self, first: u64, entries: &[Bytes]) -> Result<()> {
        let message = |(index, data): (u64, &Bytes)| {
            let mut message = BytesValue::new();
            // The index takes the place of eight bytes of the entry, so that its size is the same as elsewhere.
            message.value = [&index.to_be_bytes(), &data[8..]].concat();
            message
        };
        let messages: Vec<BytesValue> = (first..).zip(entries).map(message).collect();
        self.batch.add_entries::<Indexed>(GROUP, &messages)?;
        self.engine.write(&mut self.batch, true)?;
        Ok(())
    }

    fn forget(&mut self, first: u64) -> Result<()> {
        self.engine.compact_to(GROUP, first);
        self.engine.purge_expired_files()?;
        Ok(())
    }
}

struct Rocks {
    db: rust_rocksdb::DB,
    options: rust_rocksdb::WriteOptions,
}

impl Rocks {
    fn open(folder: &Path) -> Result<Rocks> {
        let mut options = rust_rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_compression_type(rust_rocksdb::DBCompressionType::None);
        let db = rust_rocksdb::DB::open(&options, folder)?;
        let mut options = rust_rocksdb::WriteOptions::default();
        options.set_sync(true);
        Ok(Rocks { db, options })
    }

    fn key(index: u64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&GROUP.to_be_bytes());
        key[8..].copy_from_slice(&index.to_be_bytes());
        key
    }
}

impl Subject for Rocks {
    fn append(&mut self, first: u64, entries: &[Bytes]) -> Result<()> {
        let mut batch = rust_rocksdb::WriteBatch::default();
        for (index, data) in (first..).zip(entries) {
            batch.put(Rocks::key(index), data);
        }
        Ok(self.db.write_opt(&batch, &self.options)?)
    }

    fn forget(&mut self, first: u64) -> Result<()> {
        let mut batch = rust_rocksdb::WriteBatch::default();
        batch.delete_range(Rocks::key(0), Rocks::key(first));
        Ok(self.db.write_opt(&batch, &self.options)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_log_takes_batches_and_forgets() {
        for which in 0..3 {
            let place = tempfile::tempdir().unwrap();
            let mut subject = open(which, place.path()).unwrap();
            let entry = Bytes::from(vec![7; ENTRY_BYTES]);
            subject.append(1, &vec![entry.clone(); 16]).unwrap();
            subject.append(17, std::slice::from_ref(&entry)).unwrap();
            subject.forget(10).unwrap();
            subject.append(18, &[entry]).unwrap();
        }
    }
}
